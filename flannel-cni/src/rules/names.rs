use ring::digest::{SHA512, digest};

/// The chain of iptables that containernetworking's plugins make for a container.
pub(crate) fn chain_name(network: &str, container_id: &str, prefix: &str) -> String {
    let hash = hex(&format!("{network}{container_id}"));
    format!("CNI-{prefix}{hash}")[..28].to_owned()
}

/// What their comments begin with.
pub(crate) fn short_hash(text: &str) -> String {
    hex(text)[..16].to_owned()
}

fn hex(text: &str) -> String {
    let digest = digest(&SHA512, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // As in utils_test.go of containernetworking/plugins 1.10.0.
    #[test]
    fn names_are_those_of_upstream() {
        assert_eq!(chain_name("test", "1234", ""), "CNI-2bbe0c48b91a7d1b8a6753a8");
        assert_eq!(chain_name("test", "1234", "PREFIX-"), "CNI-PREFIX-2bbe0c48b91a7d1b8");
        assert_eq!(short_hash("test1234").len(), 16);
    }
}
