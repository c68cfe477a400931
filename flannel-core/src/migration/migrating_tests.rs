//! A node with one backend, among others that migrate.

use std::sync::Arc;

use super::{BackendSource, Migrating, MigrationOptions, MigrationRecord, Place};
use crate::{
    Backend, BackendError, Lease, LeaseAttrs, LeaseEvent, NetworkConfig, Peers, SecondBackend,
    SecondRole, testing::FakeBackend,
};

#[derive(Debug)]
struct Source(FakeBackend);

impl BackendSource for Source {
    fn build(&self, _: &NetworkConfig, _: Place) -> Result<Arc<dyn Backend>, BackendError> {
        Ok(Arc::new(self.0.clone()))
    }

    fn remember(&self, _: &MigrationRecord) -> Result<(), BackendError> {
        Ok(())
    }

    fn recall(&self) -> Option<MigrationRecord> {
        None
    }
}

fn lease(n: u8, kind: &'static str, second: Option<&'static str>) -> Lease {
    let second = second.map(|kind| {
        Box::new(SecondBackend {
            backend_type: kind.into(),
            backend_data: None,
            backend_v6_data: None,
            role: SecondRole::Next,
        })
    });
    let public_ip = Some([192, 0, 2, n].into());
    let attrs =
        LeaseAttrs { public_ip, backend_type: kind.into(), second, ..LeaseAttrs::default() };
    Lease::new(format!("10.3.{n}.0-24").parse().unwrap(), attrs)
}

#[tokio::test]
async fn a_peer_is_reached_from_when_it_publishes_our_backend_as_its_second_one() {
    let host = FakeBackend::of_kind("two", [192, 0, 2, 1].into());
    let config: NetworkConfig =
        r#"{"Network":"10.3.0.0/16","Backend":{"Type":"two"}}"#.parse().unwrap();
    let source = Arc::new(Source(host.clone()));
    let backend = Migrating::new(source, &config, MigrationOptions::default()).unwrap();
    let own = lease(1, "two", None);
    let mut network = backend.start(&own).await.unwrap();
    let mut peers = Peers::new(config, own);
    let mut reached = Vec::new();
    for peer in [
        lease(3, "two", None),
        lease(2, "one", None),
        lease(2, "one", Some("two")),
        lease(4, "two", None),
        lease(2, "two", None),
        lease(2, "one", None),
    ] {
        peers.fold(LeaseEvent::Upsert(peer));
        network.sync(&peers).await.unwrap();
        let routes = host.routes();
        reached.push((routes.contains_key(&"10.3.2.0-24".parse().unwrap()), routes.len()));
    }
    assert_eq!(reached, [(false, 1), (false, 1), (true, 2), (true, 3), (true, 3), (false, 2)]);
}
