//! Node objects as real clusters have them.

use serde_json::{Value, json};

/// A node as a kubelet registers it and the controller-manager completes it.
pub(super) fn node(name: &str, pod_cidrs: &[&str], real_size: bool) -> Value {
    let mut node = json!({
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {
            "name": name,
            "labels": { "kubernetes.io/hostname": name, "kubernetes.io/os": "linux" },
            "annotations": { "volumes.kubernetes.io/controller-managed-attach-detach": "true" },
        },
        "spec": {},
        "status": {
            "capacity": { "cpu": "8", "memory": "32Gi", "pods": "110" },
            "conditions": [{
                "type": "Ready",
                "status": "True",
                "lastHeartbeatTime": "2026-01-01T00:00:00Z",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
                "reason": "KubeletReady",
                "message": "kubelet is posting ready status",
            }],
        },
    });
    if let Some(first) = pod_cidrs.first() {
        node["spec"] = json!({ "podCIDR": first, "podCIDRs": pod_cidrs });
    }
    if real_size {
        // The 50 images that a kubelet reports at most.
        let images = (0..50).map(|n| {
            let digest = format!("{n:064x}");
            json!({
                "names": [
                    format!("registry.example/team-{n}/service@sha256:{digest}"),
                    format!("registry.example/team-{n}/service:v1.{n}.0"),
                ],
                "sizeBytes": 100_000_000 + n,
            })
        });
        node["status"]["images"] = Value::Array(images.collect());
        let fields: serde_json::Map<String, Value> =
            (0..40).map(|n| (format!("f:field{n}"), json!({ "f:value": {} }))).collect();
        node["metadata"]["managedFields"] = json!([{
            "manager": "kubelet",
            "operation": "Update",
            "apiVersion": "v1",
            "time": "2026-01-01T00:00:00Z",
            "fieldsType": "FieldsV1",
            "fieldsV1": fields,
        }]);
    }
    node
}
