//! Node objects as large as those of real clusters.

use std::collections::BTreeMap;

use flannel_core::LeaseAttrs;
use ipnetwork::Ipv4Network;
use serde_json::{Map, Value, json};

/// A Node, as far as Nodes differ.
#[derive(Clone, Debug)]
pub(super) struct ClusterNode {
    pub(super) name: String,
    uid: String,
    /// Its podCIDR, once the controller-manager has given it one.
    pub(super) block: Option<Ipv4Network>,
    /// What flannel has published for it.
    pub(super) published: Option<LeaseAttrs>,
    heartbeats: u32,
}

impl ClusterNode {
    /// A Node that a kubelet has just registered.
    pub(super) fn registered(name: String) -> Self {
        let hash = name.bytes().fold(0_u64, |hash, byte| hash * 131 + u64::from(byte));
        let uid = format!(
            "{:08x}-0000-4000-8000-{hash:012x}",
            hash >> 32,
            hash = hash & 0xffff_ffff_ffff
        );
        Self { name, uid, block: None, published: None, heartbeats: 0 }
    }

    /// The kubelet says that it is still there.
    pub(super) fn beat(&mut self) {
        self.heartbeats += 1;
    }

    /// The object, of 13 to 14 kB.
    pub(super) fn object(&self) -> Value {
        let mut annotations = BTreeMap::from([
            ("node.alpha.kubernetes.io/ttl".to_owned(), "0".to_owned()),
            ("volumes.kubernetes.io/controller-managed-attach-detach".into(), "true".into()),
        ]);
        if let Some(attrs) = &self.published {
            let data =
                attrs.backend_data.as_ref().map_or_else(|| "null".into(), ToString::to_string);
            let address = attrs.public_ip.map(|it| it.to_string()).unwrap_or_default();
            for (name, value) in [
                ("backend-data", data),
                ("backend-type", attrs.backend_type.to_string()),
                ("kube-subnet-manager", "true".into()),
                ("public-ip", address),
            ] {
                annotations.insert(format!("flannel.alpha.coreos.com/{name}"), value);
            }
        }
        let spec = match &self.block {
            Some(block) => json!({ "podCIDR": block.to_string(), "podCIDRs": [block.to_string()] }),
            None => json!({}),
        };
        let labels: BTreeMap<_, _> = LABELS.into_iter().chain([(HOSTNAME, &*self.name)]).collect();
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.name,
                "uid": self.uid,
                "creationTimestamp": CREATED,
                "labels": labels,
                "annotations": annotations,
                "managedFields": self.managed_fields(),
            },
            "spec": spec,
            "status": self.status(),
        })
    }

    fn status(&self) -> Value {
        let resources = json!({
            "cpu": "8", "ephemeral-storage": "203056560Ki", "hugepages-1Gi": "0", "hugepages-2Mi": "0",
            "memory": "32863328Ki", "pods": "110",
        });
        let conditions = CONDITIONS.map(|kind| {
            json!({
                "type": kind,
                "status": if kind == "Ready" { "True" } else { "False" },
                "lastHeartbeatTime": self.heartbeat(),
                "lastTransitionTime": CREATED,
                "reason": format!("KubeletHas{kind}"),
                "message": format!("kubelet says what is the case with {kind}"),
            })
        });
        let images = (0..IMAGES).map(|n| {
            let digest = format!("{:064x}", u128::from(n) << 64 | 0x9e37_79b9_7f4a_7c15);
            json!({
                "names": [
                    format!("registry.example.com/team-{n}/service@sha256:{digest}"),
                    format!("registry.example.com/team-{n}/service:v1.{n}.0"),
                ],
                "sizeBytes": 100_000_000 + n,
            })
        });
        json!({
            "addresses": [
                { "address": "192.0.2.1", "type": "InternalIP" },
                { "address": self.name, "type": "Hostname" },
            ],
            "allocatable": resources,
            "capacity": resources,
            "conditions": conditions,
            "daemonEndpoints": { "kubeletEndpoint": { "Port": 10250 } },
            "images": images.collect::<Vec<_>>(),
            "nodeInfo": {
                "architecture": "amd64",
                "bootID": "2e7f1f2c-6a7e-4c43-9d5f-0f6f6f0a2a11",
                "containerRuntimeVersion": "containerd://2.1.5",
                "kernelVersion": "6.12.57+deb13-amd64",
                "kubeProxyVersion": "",
                "kubeletVersion": "v1.36.3",
                "machineID": "5b3c0d1f0c7a4f6e8b1d2c3a4e5f6071",
                "operatingSystem": "linux",
                "osImage": "Debian GNU/Linux 13 (trixie)",
                "systemUUID": "5b3c0d1f-0c7a-4f6e-8b1d-2c3a4e5f6071",
            },
        })
    }

    /// Who wrote what, as an API server keeps it for kubelet, controller-manager and flannel.
    fn managed_fields(&self) -> Value {
        let nothing = || Value::Object(Map::new());
        let set = |names: &[&str]| -> Value {
            let mut fields = Map::new();
            for name in names {
                fields.insert((*name).to_owned(), nothing());
            }
            Value::Object(fields)
        };
        let labels: Vec<_> = LABELS.iter().map(|(name, _)| format!("f:{name}")).collect();
        let labels: Vec<_> = [".", "f:kubernetes.io/hostname"]
            .into_iter()
            .chain(labels.iter().map(String::as_str))
            .collect();
        let entry = |manager: &str, part: &str, time: &str, fields: Value| {
            let mut entry = json!({
                "manager": manager, "operation": "Update", "apiVersion": "v1", "time": time,
                "fieldsType": "FieldsV1", "fieldsV1": fields,
            });
            if !part.is_empty() {
                entry["subresource"] = part.into();
            }
            entry
        };
        let mut entries = vec![entry(
            "kubelet",
            "",
            CREATED,
            json!({ "f:metadata": {
                "f:annotations": set(&[".", "f:volumes.kubernetes.io/controller-managed-attach-detach"]),
                "f:labels": set(&labels),
            }}),
        )];
        if let Some(block) = &self.block {
            entries.push(entry("kube-controller-manager", "", CREATED, json!({
                "f:metadata": { "f:annotations": set(&["f:node.alpha.kubernetes.io/ttl"]) },
                "f:spec": { "f:podCIDR": {}, "f:podCIDRs": set(&[".", &format!("v:\"{block}\"")]) },
            })));
        }
        if self.published.is_some() {
            let annotations = ["backend-data", "backend-type", "kube-subnet-manager", "public-ip"]
                .map(|name| format!("f:flannel.alpha.coreos.com/{name}"));
            entries.push(entry("flanneld", "status", CREATED, json!({
                "f:metadata": { "f:annotations": set(&annotations.each_ref().map(String::as_str)) },
                "f:status": { "f:conditions": { "k:{\"type\":\"NetworkUnavailable\"}": set(&[
                    ".", "f:lastHeartbeatTime", "f:lastTransitionTime", "f:message", "f:reason", "f:status", "f:type",
                ])}},
            })));
        }
        let mut conditions = Map::new();
        for kind in CONDITIONS {
            let times = [
                "f:lastHeartbeatTime",
                "f:lastTransitionTime",
                "f:message",
                "f:reason",
                "f:status",
            ];
            conditions.insert(format!("k:{{\"type\":\"{kind}\"}}"), set(&times));
        }
        let status = json!({ "f:status": { "f:conditions": conditions, "f:images": {} } });
        entries.push(entry("kubelet", "status", &self.heartbeat(), status));
        Value::Array(entries)
    }

    fn heartbeat(&self) -> String {
        let (minute, second) = (self.heartbeats / 60 % 60, self.heartbeats % 60);
        format!("2026-01-02T00:{minute:02}:{second:02}Z")
    }
}

const CREATED: &str = "2026-01-01T00:00:00Z";
const HOSTNAME: &str = "kubernetes.io/hostname";
const LABELS: [(&str, &str); 4] = [
    ("beta.kubernetes.io/arch", "amd64"),
    ("beta.kubernetes.io/os", "linux"),
    ("kubernetes.io/arch", "amd64"),
    ("kubernetes.io/os", "linux"),
];
const CONDITIONS: [&str; 4] = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"];
/// As many as a kubelet reports at most.
const IMAGES: u32 = 50;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{leases::attrs, network::block};

    #[test]
    fn a_node_is_as_large_as_a_real_one_and_says_what_it_has() {
        let mut node = ClusterNode::registered("peer7".into());
        (node.block, node.published) = (Some(block(7)), Some(attrs("vxlan", 7).unwrap()));
        let text = node.object().to_string();
        assert!((13_000..14_000).contains(&text.len()), "{} bytes", text.len());
        let object = node.object();
        assert_eq!(object["spec"]["podCIDR"], block(7).to_string());
        let annotations = &object["metadata"]["annotations"];
        assert_eq!(annotations["flannel.alpha.coreos.com/backend-type"], "vxlan");
        node.beat();
        let beaten = node.object().to_string();
        assert_ne!(beaten, text);
        assert_eq!(beaten.len(), text.len());
    }
}
