//! New keys for all nodes of a WireGuard network, by a move to the other name of the backend.

use flannel_backend_wireguard::NAMES;
use flannel_core::{LeaseAttrs, NetworkConfig};
use flannel_store::{ConfigText, Lifetime, Registry};
use serde_json::{Map, Value};

use crate::{Backends, InvalidOptions, operate::OperateError};

/// Lets the nodes of a `wireguard` network move to `wireguard-2`, or from that to `wireguard`, while packets flow: by the other name, each
/// node has another private key. With `preshared_key`, 32 bytes in base64, the network has another one as well.
///
/// Returns what the configuration was.
///
/// # Errors
///
/// [`OperateError`] if the network's backend has no keys, the preshared key is none, or nodes have not finished the move before. Nothing is
/// written then.
pub async fn rotate_key(
    registry: &dyn Registry,
    preshared_key: Option<&str>,
    backends: &Backends,
) -> Result<ConfigText, OperateError> {
    let was = registry.config().await?;
    let text = was.text.as_deref().ok_or_else(|| {
        InvalidOptions::new(format!("there is no network config in {}", was.place))
    })?;
    let json = rotated(text, preshared_key)?;
    let config: NetworkConfig = text.parse().map_err(InvalidOptions::new)?;
    backends.check(&json.parse().map_err(InvalidOptions::new)?)?;
    let leases = registry.list().await?.records;
    let leases = leases.iter().filter(|record| record.lifetime != Lifetime::Lapsed);
    let leases = leases.filter_map(|record| record.lease().ok());
    // Also those that have not begun: they would stay where they are.
    let is_to_move = |attrs: &LeaseAttrs| {
        let has_keys = NAMES.contains(&&*attrs.backend_type);
        attrs.second.is_some() || has_keys && attrs.backend_type != config.backend().lease_type()
    };
    let moving: Vec<_> =
        leases.filter(|lease| is_to_move(&lease.attrs)).map(|lease| lease.subnet).collect();
    if !moving.is_empty() {
        return Err(OperateError::Moving { leases: moving });
    }
    registry.set_config(&was, &json).await?;
    Ok(was)
}

/// The configuration with the other name of the backend.
fn rotated(text: &str, preshared_key: Option<&str>) -> Result<String, InvalidOptions> {
    let mut config: Map<String, Value> = serde_json::from_str(text).map_err(InvalidOptions::new)?;
    let mut nothing = Map::new();
    let backend = member(&mut config, "Backend").as_object_mut().unwrap_or(&mut nothing);
    let name = member(backend, "Type");
    let kind = name.as_str().unwrap_or_default();
    let at = NAMES.iter().position(|name| name.eq_ignore_ascii_case(kind)).ok_or_else(|| {
        InvalidOptions::new(format!(
            "network config: Backend.Type is {kind:?}, which has no keys; {} has",
            NAMES.join(" or ")
        ))
    })?;
    *name = NAMES[1 - at].into();
    if let Some(key) = preshared_key {
        *member(backend, "PSK") = key.into();
    }
    Ok(Value::Object(config).to_string())
}

/// A member, whose name is read in any case, as flannel does; null if there is none.
fn member<'a>(object: &'a mut Map<String, Value>, name: &str) -> &'a mut Value {
    let known = object.keys().find(|key| key.eq_ignore_ascii_case(name)).cloned();
    object.entry(known.unwrap_or_else(|| name.into())).or_insert(Value::Null)
}

#[cfg(test)]
mod tests {
    use flannel_store::{MemoryCluster, NewRecord};

    use super::*;

    const OLD: &str = r#"{"backend":{"mtu":1400,"psk":"old","type":"WireGuard"},"Network":"10.3.0.0/16","Unknown":[1]}"#;
    const PSK: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";

    #[test]
    fn only_the_name_and_the_preshared_key_change() {
        let next = rotated(OLD, None).unwrap();
        let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(value(&next), value(&OLD.replace("WireGuard", "wireguard-2")));
        let again = rotated(&next, None).unwrap();
        assert_eq!(value(&again), value(&OLD.replace("WireGuard", "wireguard")));
        let next = rotated(OLD, Some("new")).unwrap();
        assert!(next.contains(r#""psk":"new","type":"wireguard-2""#), "{next}");
        for (text, words) in [
            ("7", "invalid type"),
            ("{}", r#"Backend.Type is "", which has no keys; wireguard or wireguard-2 has"#),
            (r#"{"Backend":{"Type":"vxlan"}}"#, r#"Backend.Type is "vxlan", which has no keys"#),
        ] {
            let error = rotated(text, None).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[tokio::test]
    async fn a_network_whose_nodes_are_moving_or_with_a_key_that_is_none_is_left_as_it_is() {
        let config: NetworkConfig =
            r#"{"Network":"10.3.0.0/16","Backend":{"Type":"wireguard"}}"#.parse().unwrap();
        let cluster = MemoryCluster::new(&config);
        let (registry, backends) = (cluster.registry(), Backends::default());
        let stored = async || registry.config().await.unwrap().text.unwrap();
        let before = stored().await;

        let error = rotate_key(&registry, Some("c2hvcnQ="), &backends).await.unwrap_err();
        assert!(error.to_string().contains("PSK is not a key"), "{error}");
        let value = r#"{"PublicIP":"192.0.2.7","BackendType":"wireguard","SecondBackend":{"Type":"wireguard-2","Role":"unused"}}"#;
        let lease = NewRecord { value: value.into(), owner: None, ttl: None };
        cluster.put("10.3.2.0-24", &lease);
        let error = rotate_key(&registry, None, &backends).await.unwrap_err();
        assert!(error.to_string().contains("1 nodes have not moved yet (10.3.2.0-24)"), "{error}");
        assert_eq!(stored().await, before);

        let reserved = NewRecord { value: r#"{"PublicIP":"192.0.2.8"}"#.into(), ..lease.clone() };
        cluster.put("10.3.3.0-24", &reserved);
        let value = r#"{"PublicIP":"192.0.2.7","BackendType":"wireguard"}"#;
        cluster.put("10.3.2.0-24", &NewRecord { value: value.into(), owner: None, ttl: None });
        rotate_key(&registry, Some(PSK), &backends).await.unwrap();
        let error = rotate_key(&registry, None, &backends).await.unwrap_err();
        assert!(error.to_string().contains("have not moved yet"), "it has not begun: {error}");
        let now: NetworkConfig = stored().await.parse().unwrap();
        assert_eq!(now.backend().kind(), "wireguard-2");
        assert!(stored().await.contains(PSK));
    }
}
