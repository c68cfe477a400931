use std::{fs, io::ErrorKind, path::Path};

use ipnetwork::IpNetwork;

use crate::protocol::{Code, Error, block};

/// What flannel says about this node, in `/run/flannel/subnet.env`, read as flannel's plugin reads it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct SubnetEnv {
    /// The networks of all nodes, IPv4 first.
    pub networks: Vec<IpNetwork>,
    /// This node's part of IPv4.
    pub subnet: Option<IpNetwork>,
    /// This node's part of IPv6.
    pub ipv6_subnet: Option<IpNetwork>,
    /// The largest packet of a pod, bytes.
    pub mtu: u32,
    /// Whether flannel masquerades, so that the plugin does not.
    pub masquerades: bool,
}

impl SubnetEnv {
    /// Reads the text of the file, whose `name` is for errors.
    ///
    /// # Errors
    ///
    /// [`Code::InvalidConfig`] with what is missing or cannot be read.
    pub fn parse(text: &str, name: &str) -> Result<Self, Error> {
        let invalid = |what: String| Error::new(Code::InvalidConfig, format!("{name} {what}"));
        let (mut ipv4, mut ipv6) = (Vec::new(), Vec::new());
        let (mut subnet, mut ipv6_subnet, mut mtu, mut masquerades) = (None, None, None, None);
        for line in text.lines() {
            // Unlike flannel's plugin, which ends with a panic for a known key without a value.
            let Some((key, value)) = line.split_once('=') else { continue };
            let network = |value: &str| {
                let network = block::parse(value).ok();
                let network = network.filter(|it| it.is_ipv6() == key.contains("IPV6"));
                network.map(canonical).ok_or_else(|| invalid(format!("has {key}={value:?}")))
            };
            match key {
                "FLANNEL_NETWORK" | "FLANNEL_IPV6_NETWORK" => {
                    let list = if key == "FLANNEL_NETWORK" { &mut ipv4 } else { &mut ipv6 };
                    for value in value.split(',') {
                        let network = network(value)?;
                        if !list.contains(&network) {
                            list.push(network);
                        }
                    }
                }
                "FLANNEL_SUBNET" => subnet = Some(network(value)?),
                "FLANNEL_IPV6_SUBNET" => ipv6_subnet = Some(network(value)?),
                "FLANNEL_MTU" => {
                    let number = value.parse();
                    mtu = Some(number.map_err(|_| invalid(format!("has {key}={value:?}")))?);
                }
                "FLANNEL_IPMASQ" => masquerades = Some(value == "true"),
                _ => {}
            }
        }
        let networks = [ipv4, ipv6].concat();
        let mut missing = Vec::new();
        if networks.is_empty() {
            missing.extend(["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"]);
        }
        if subnet.is_none() && ipv6_subnet.is_none() {
            missing.extend(["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"]);
        }
        missing.extend(mtu.is_none().then_some("FLANNEL_MTU"));
        missing.extend(masquerades.is_none().then_some("FLANNEL_IPMASQ"));
        match (mtu, masquerades) {
            (Some(mtu), Some(masquerades)) if missing.is_empty() => {
                Ok(Self { networks, subnet, ipv6_subnet, mtu, masquerades })
            }
            _ => Err(invalid(format!("is missing {}", missing.join(", ")))),
        }
    }
}

/// Reads the file; [`Code::TryAgainLater`] if it is not there.
pub(super) fn read(path: &Path) -> Result<SubnetEnv, Error> {
    match fs::read_to_string(path) {
        Ok(text) => SubnetEnv::parse(&text, &path.display().to_string()),
        Err(error) => {
            let code = match error.kind() {
                ErrorKind::NotFound => Code::TryAgainLater,
                _ => Code::Io,
            };
            // The words of flannel's plugin, which operators search for.
            let message = format!(
                "failed to load flannel 'subnet.env' file: cannot read {}: {error}. Check the flannel pod log for this node.",
                path.display()
            );
            Err(Error::new(code, message)
                .with_details("flannel has no subnet for this node yet; pods start once it has"))
        }
    }
}

/// Without host bits.
fn canonical(network: IpNetwork) -> IpNetwork {
    IpNetwork::new(network.network(), network.prefix()).expect("the prefix is that of a network")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_flannel_writes_is_read() {
        let text = "FLANNEL_NETWORK=10.42.0.0/16,10.43.0.0/16,10.42.0.0/16\nFLANNEL_SUBNET=10.42.7.1/24\n\
                    FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\nFLANNEL_IPV6_SUBNET=2001:cafe:42:7::1/64\n\
                    FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\nOTHER=x\nno value\n";
        let env = SubnetEnv::parse(text, "f").unwrap();
        let networks: Vec<String> = env.networks.iter().map(ToString::to_string).collect();
        assert_eq!(networks, ["10.42.0.0/16", "10.43.0.0/16", "2001:cafe:42::/56"]);
        assert_eq!(env.subnet.unwrap().to_string(), "10.42.7.0/24");
        assert_eq!(env.ipv6_subnet.unwrap().to_string(), "2001:cafe:42:7::/64");
        assert_eq!((env.mtu, env.masquerades), (1450, true));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for (text, expected) in [
            (
                "",
                "f is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ",
            ),
            (
                "FLANNEL_NETWORK=10.0.0.0/8\nFLANNEL_SUBNET=10.1.0.0/16\nFLANNEL_IPMASQ=yes",
                "f is missing FLANNEL_MTU",
            ),
            ("FLANNEL_NETWORK=10.0.0.0/8,x", "f has FLANNEL_NETWORK=\"x\""),
            ("FLANNEL_SUBNET=10.1.0.0", "f has FLANNEL_SUBNET=\"10.1.0.0\""),
            ("FLANNEL_SUBNET=fd00::/64", "f has FLANNEL_SUBNET=\"fd00::/64\""),
            ("FLANNEL_MTU=-1", "f has FLANNEL_MTU=\"-1\""),
        ] {
            let error = SubnetEnv::parse(text, "f").unwrap_err();
            assert_eq!((error.code, &*error.message), (Code::InvalidConfig, expected));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "(FLANNEL_(IPV6_)?(NETWORK|SUBNET|MTU|IPMASQ)=?[0-9a-f.:/,]{0,20}\n?){0,6}") {
            let _ = SubnetEnv::parse(&text, "f");
        }
    }
}
