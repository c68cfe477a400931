//! What the udp backend says of its packets.

use flannel_backend_udp::{DropReason, Engine, Stats, Traffic};
use serde_json::{Map, Value, json};

/// Its part of the document.
pub(super) fn document(stats: &Stats) -> Value {
    let features = stats.engine.as_ref().map(Engine::features);
    json!({
        "engine": stats.engine.as_ref().map(Engine::name),
        "ebpf_refused": stats.ebpf_refused,
        "workers": features.map(|features| features.workers),
        "features": features.map(|features| features.named().into_iter().collect::<std::collections::BTreeMap<_, _>>()),
        "missing": features.map(|features| &features.missing),
        "sent": traffic(stats.sent),
        "received": traffic(stats.received),
        "by_ebpf": stats.by_ebpf,
        "answered": stats.answered,
        "dropped": dropped(stats.drops()),
    })
}

fn traffic(traffic: Traffic) -> Value {
    json!({ "packets": traffic.packets, "bytes": traffic.bytes, "calls": traffic.calls })
}

/// The reasons that there were.
fn dropped(drops: impl Iterator<Item = (DropReason, u64)>) -> Value {
    let some = drops.filter(|(_, count)| *count > 0);
    Value::Object(some.map(|(why, count)| (why.name().into(), count.into())).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use flannel_backend_udp::Features;

    use super::*;

    #[test]
    fn what_the_engine_does_is_in_the_document() {
        let mut features = Features::default();
        features.workers = 2;
        let mut stats = Stats::default();
        assert_eq!(document(&stats)["engine"], Value::Null);
        stats.engine = Some(Engine::Userspace(features));
        (stats.sent.packets, stats.sent.bytes) = (44, 65_000);
        let document = document(&stats);
        assert_eq!(document["features"]["tun_udp"], false);
        assert_eq!((&document["workers"], &document["sent"]["bytes"]), (&json!(2), &json!(65_000)));
        assert_eq!(document["dropped"], json!({}));
    }
}
