//! Answers that are compressed.

/// A gzip file (RFC 1952) with `bytes` in blocks that are stored as they are.
pub(super) fn file(bytes: &[u8]) -> Vec<u8> {
    // Deflated, without a name, a time or a system.
    let mut file = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let mut blocks = bytes.chunks(usize::from(u16::MAX)).peekable();
    while let Some(block) = blocks.next() {
        let length = block.len() as u16;
        file.push(u8::from(blocks.peek().is_none()));
        file.extend_from_slice(&length.to_le_bytes());
        file.extend_from_slice(&(!length).to_le_bytes());
        file.extend_from_slice(block);
    }
    file.extend_from_slice(&crc32(bytes).to_le_bytes());
    file.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    file
}

/// The checksum of RFC 1952.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use serde_json::{Value, json};

    use crate::kube::FakeApiServer;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "another client than ours")]
    fn lists_of_all_groups_are_compressed_for_who_wants_that() {
        let server = FakeApiServer::on_loopback();
        // More than a block of deflate.
        let object = json!({"metadata": {"name": "one", "annotations": {"a": "x".repeat(70_000)}}});
        server.put("namespaces", "one", object.clone());
        server.put("networkpolicies", "prod/one", object);
        for (path, version, kind) in [
            ("/api/v1/namespaces", "v1", "NamespaceList"),
            (
                "/apis/networking.k8s.io/v1/networkpolicies",
                "networking.k8s.io/v1",
                "NetworkPolicyList",
            ),
        ] {
            for (option, expected) in [("--compressed", "gzip"), ("--silent", "")] {
                let mut curl = Command::new("curl");
                curl.args(["-sS", option, "-w", "\n%header{content-encoding}"]);
                let output = curl.arg(format!("{}{path}", server.url())).output().unwrap();
                let text = String::from_utf8(output.stdout).unwrap();
                let (body, encoding) = text.rsplit_once('\n').expect("curl ran");
                assert_eq!(encoding, expected, "{path}");
                let list: Value = serde_json::from_str(body).unwrap();
                assert_eq!((&list["apiVersion"], &list["kind"]), (&json!(version), &json!(kind)));
                let all = list["items"].as_array().unwrap();
                assert_eq!((all.len(), &all[0]["metadata"]["name"]), (1, &json!("one")), "{path}");
            }
        }
        assert!(server.get("networkpolicies", "prod/one").is_some());
    }
}
