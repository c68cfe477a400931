//! Clauses about acquiring, holding, losing and giving up a subnet.

use std::collections::BTreeSet;

use futures::future::join_all;

use super::{ROOMY, StoreFixture, TINY, at, soon};
use crate::{
    config::NetworkConfig,
    identity::NodeId,
    store::{Store, StoreError, SubnetLease},
    subnet::Subnet,
    testing::polled,
};

/// When every subnet is taken, acquiring fails and names the network; when one comes free, it succeeds.
pub async fn a_full_network_says_so<F: StoreFixture>() {
    let fixture = F::build(TINY).await;
    let mut leases = Vec::new();
    for n in 1..=3 {
        leases.push(acquire(&*fixture.store(&format!("n{n}")).await, n).await);
    }
    let late = fixture.store("late").await;
    let error = soon("acquire", late.acquire(&at(9))).await.unwrap_err();
    let StoreError::Full { source } = error else {
        panic!("expected Full, got {error:?}");
    };
    assert_eq!((source.total, source.network.to_string()), (3, "10.3.0.0/28".into()));
    let freed = leases.remove(1);
    let subnet = freed.lease().subnet;
    soon("release", freed.release()).await.unwrap();
    assert_eq!(acquire(&*late, 9).await.lease().subnet, subnet);
}

/// A missing configuration and one that cannot be used are different errors; acquiring reports them too.
pub async fn a_network_without_a_usable_config_says_so<F: StoreFixture>() {
    let fixture = F::build(ROOMY).await;
    let store = fixture.store("n1").await;
    assert_eq!(store.config().await.unwrap(), ROOMY.parse().unwrap());
    fixture.set_config(Some(r#"{"Network":"10.3.0.0/33"}"#)).await;
    let error = store.config().await.unwrap_err();
    assert!(matches!(error, StoreError::Config { .. }), "{error:?}");
    fixture.set_config(None).await;
    let error = store.config().await.unwrap_err();
    assert!(matches!(error, StoreError::ConfigMissing { .. }), "{error:?}");
    let error = store.acquire(&at(1)).await.unwrap_err();
    assert!(matches!(error, StoreError::ConfigMissing { .. }), "{error:?}");
    assert!(fixture.entries().await.is_empty());
}

/// A node that acquires again gets the same subnet: with the same handle, a new one, and another address.
pub async fn a_node_keeps_its_subnet<F: StoreFixture>() {
    let fixture = F::build(ROOMY).await;
    let first = fixture.store("n1").await;
    let subnet = acquire(&*first, 1).await.lease().subnet;
    assert_eq!(acquire(&*first, 1).await.lease().subnet, subnet);
    let again = fixture.store("n1").await;
    let mut lease = acquire(&*again, 2).await;
    assert_eq!((lease.lease().subnet, &lease.lease().attrs), (subnet, &at(2)));
    let entries = fixture.entries().await;
    assert_eq!(entries.keys().collect::<Vec<_>>(), [&subnet.to_string()]);
    assert_eq!(entries[&subnet.to_string()].value, at(2).to_string());
    soon("renew", lease.renew()).await.unwrap();
}

/// After a release the subnet is nobody's.
pub async fn a_release_gives_the_subnet_back<F: StoreFixture>() {
    let fixture = F::build(ROOMY).await;
    let store = fixture.store("n1").await;
    let lease = acquire(&*store, 1).await;
    assert_eq!(fixture.entries().await.len(), 1);
    soon("release", lease.release()).await.unwrap();
    assert!(fixture.entries().await.is_empty());
    assert_eq!(store.previous().await.unwrap(), None);
}

/// Renewing, publishing and releasing a lease that is gone, replaced or another node's is refused, says so, and changes
/// nothing.
pub async fn a_renewal_of_a_lost_lease_is_revoked<F: StoreFixture>() {
    let fixture = F::build(ROOMY).await;
    for (n, loss) in [Loss::Gone, Loss::Replaced, Loss::Taken].into_iter().enumerate() {
        for operation in [Operation::Publish, Operation::Release, Operation::Renew] {
            let name = format!("{loss:?}-{operation:?}-{n}");
            let mut lease = acquire(&*fixture.store(&name).await, 1).await;
            let (subnet, key) = (lease.lease().subnet, lease.lease().subnet.to_string());
            match loss {
                Loss::Gone => fixture.remove(&key).await,
                Loss::Replaced => fixture.put(&key, &at(99).to_string()).await,
                Loss::Taken => {
                    fixture.put(&key, &at(99).to_string()).await;
                    let thief = acquire(&*fixture.store("thief").await, 99).await;
                    assert_eq!(thief.lease().subnet, subnet);
                }
            }
            let before = fixture.entries().await;
            let result = match operation {
                Operation::Publish => soon("publish", lease.publish(&at(2))).await,
                Operation::Release => soon("release", lease.release()).await,
                Operation::Renew => soon("renew", lease.renew()).await,
            };
            let Err(StoreError::Revoked { subnet: lost, owner }) = result else {
                panic!("{operation:?} of a lease that is {loss:?}: {result:?}");
            };
            assert_eq!(lost, subnet);
            match loss {
                Loss::Gone => assert_eq!(owner, None),
                Loss::Replaced => assert_ne!(owner, NodeId::new(&*name).ok()),
                Loss::Taken => assert_eq!(owner, NodeId::new("thief").ok()),
            }
            assert_eq!(fixture.entries().await, before, "{operation:?} wrote something");
            fixture.remove(&key).await;
        }
    }
}

/// A lease without expiry and owner goes to the node with its address, to no other, and stays a reservation for ever.
pub async fn a_reservation_is_honoured_and_never_expires<F: StoreFixture>() {
    let fixture = F::build(ROOMY).await;
    let key = "10.3.77.0-24";
    fixture.put(key, &at(7).to_string()).await;
    let other = acquire(&*fixture.store("other").await, 8).await;
    assert_ne!(other.lease().subnet.to_string(), key);

    let store = fixture.store("n1").await;
    let mut lease = acquire(&*store, 7).await;
    assert_eq!(lease.lease().subnet.to_string(), key);
    assert_eq!(lease.ttl(), None);
    assert_ne!(other.ttl(), None);

    soon("renew", lease.renew()).await.unwrap();
    soon("publish", lease.publish(&at(9))).await.unwrap();
    assert_eq!(lease.ttl(), None);
    let again = acquire(&*fixture.store("n1").await, 9).await;
    assert_eq!((again.lease().subnet.to_string().as_str(), again.ttl()), (key, None));
    assert!(!fixture.entries().await[key].expires);
    soon("release", again.release()).await.unwrap();
    assert!(!fixture.entries().await[key].expires, "a person's reservation stays");
}

/// What is handed out is aligned and in range, and so never the network's first subnet.
pub async fn a_subnet_fits_the_network<F: StoreFixture>() {
    let config: NetworkConfig = TINY.parse().unwrap();
    let fixture = F::build(TINY).await;
    let mut subnets = BTreeSet::new();
    for n in 1..=3 {
        let lease = acquire(&*fixture.store(&format!("n{n}")).await, n).await;
        assert!(config.admits(&lease.lease().subnet), "{}", lease.lease().subnet);
        subnets.insert(lease.lease().subnet.to_string());
    }
    assert!(!subnets.contains("10.3.0.0-30"));
    assert_eq!(subnets.len(), 3);
}

/// Only [`SubnetLease::release`] gives a subnet up.
pub async fn dropping_a_lease_keeps_it<F: StoreFixture>() {
    let fixture = F::build(ROOMY).await;
    let store = fixture.store("n1").await;
    drop(acquire(&*store, 1).await);
    drop(store);
    let entries = fixture.entries().await;
    assert_eq!(entries.len(), 1);
    assert!(entries.values().all(|entry| entry.value == at(1).to_string() && entry.expires));
}

/// Wherever acquiring is interrupted, the node has its one lease after the next attempt, and nothing else is left.
pub async fn dropping_acquire_midway_leaves_at_most_our_lease<F: StoreFixture>() {
    let fixture = F::build(ROOMY).await;
    for polls in 0.. {
        assert!(polls < 1000, "acquire does not end");
        let name = format!("n{polls}");
        let store = fixture.store(&name).await;
        let last = (polls % 250) as u8;
        let finished = soon("acquire", polled(store.acquire(&at(last)), polls)).await;
        let finished = finished.map(|lease| lease.unwrap().lease().subnet);
        let lease = acquire(&*fixture.store(&name).await, last).await;
        assert!(finished.is_none_or(|subnet| subnet == lease.lease().subnet));
        assert_eq!(fixture.entries().await.len(), polls + 1, "after {polls} polls");
        if finished.is_some() {
            assert!(polls > 1, "nothing was interrupted");
            return;
        }
    }
}

/// Networks of either family and of both give subnets of exactly these families.
pub async fn ipv6_and_dual_stack_networks_are_served<F: StoreFixture>() {
    for (config, families) in [
        (r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:3::/56"}"#, (false, true)),
        (
            r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:3::/56"}"#,
            (true, true),
        ),
    ] {
        let fixture = F::build(config).await;
        let config: NetworkConfig = config.parse().unwrap();
        let mut attrs = at(1);
        attrs.public_ip = attrs.public_ip.filter(|_| families.0);
        attrs.public_ipv6 = Some("2001:db8::1".parse().unwrap());
        let (one, two) = (fixture.store("n1").await, fixture.store("n2").await);
        let mut one = soon("acquire", one.acquire(&attrs)).await.unwrap();
        let mut others = at(2);
        others.public_ip = others.public_ip.filter(|_| families.0);
        others.public_ipv6 = Some("2001:db8::2".parse().unwrap());
        let two = soon("acquire", two.acquire(&others)).await.unwrap();
        let (one_subnet, two_subnet) = (one.lease().subnet, two.lease().subnet);
        assert_eq!((one_subnet.ipv4().is_some(), one_subnet.ipv6().is_some()), families);
        assert!(config.admits(&one_subnet) && config.admits(&two_subnet));
        assert!(!one_subnet.overlaps(&two_subnet));
        let entry = &fixture.entries().await[&one_subnet.to_string()];
        assert_eq!(entry.value, attrs.to_string());
        soon("renew", one.renew()).await.unwrap();
        let again = fixture.store("n1").await;
        let again = soon("acquire", again.acquire(&attrs)).await.unwrap();
        assert_eq!(again.lease().subnet, one_subnet);
        assert_eq!(fixture.entries().await.len(), 2);
    }
}

/// Before anything is written, a restarted node can learn what it published.
pub async fn previous_is_what_the_node_holds<F: StoreFixture>() {
    let fixture = F::build(ROOMY).await;
    assert_eq!(fixture.store("n1").await.previous().await.unwrap(), None);
    let lease = acquire(&*fixture.store("n1").await, 1).await.lease().clone();
    acquire(&*fixture.store("n2").await, 2).await;
    let previous = fixture.store("n1").await.previous().await.unwrap();
    assert_eq!(previous, Some(lease));
    assert_eq!(fixture.store("n3").await.previous().await.unwrap(), None);
}

/// Twenty nodes that ask for twenty subnets at the same time get one each.
pub async fn two_nodes_never_share_a_subnet<F: StoreFixture>() {
    let config = r#"{"Network":"10.3.0.0/24","SubnetLen":29,"SubnetMax":"10.3.0.160"}"#;
    let fixture = F::build(config).await;
    let mut stores = Vec::new();
    for n in 0..20 {
        stores.push(fixture.store(&format!("n{n}")).await);
    }
    let all = stores.iter().zip(1..).map(|(store, n)| async move { acquire(&**store, n).await });
    let all = join_all(all);
    let leases = soon("twenty nodes", all).await;
    let subnets: BTreeSet<Subnet> = leases.iter().map(|lease| lease.lease().subnet).collect();
    assert_eq!(subnets.len(), 20);
    assert_eq!(fixture.entries().await.len(), 20);
}

#[derive(Clone, Copy, Debug)]
enum Loss {
    Gone,
    Replaced,
    Taken,
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    Publish,
    Release,
    Renew,
}

pub(super) async fn acquire(store: &dyn Store, last: u8) -> Box<dyn SubnetLease> {
    soon("acquire", store.acquire(&at(last))).await.unwrap()
}
