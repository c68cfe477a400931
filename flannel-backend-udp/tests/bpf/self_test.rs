//! What `auto` means: programs where the self-test passes, threads where it does not.

use std::{
    fs,
    process::Command,
    sync::{Arc, Mutex},
    thread,
};

use flannel_backend_udp::{Engine, SelfTest, SelfTestError, Udp, uses_ebpf};
use flannel_core::{Backend, Lease};
use flannel_testbed::{Host, Testbed, eventually, soon};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::{
    nft::Nft,
    support,
    world::{Cluster, run},
};

fn auto(host: &Host) -> Udp {
    support::udp(host, &support::DUAL.replace("userspace", "auto").parse().unwrap())
}

/// The self-test of a backend, which is started by this thread.
async fn tested(backend: &Udp) -> Result<SelfTest, SelfTestError> {
    backend.begin_self_test();
    eventually(async || backend.stats().self_test.is_some()).await;
    backend.stats().self_test.unwrap()
}

/// Held by a test: a self-test has little time.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The namespaces of the last self-test that was spoiled.
static SEEN: Mutex<Vec<u64>> = Mutex::new(Vec::new());

fn is_held(inode: u64) -> bool {
    let name = format!("net:[{inode}]");
    let links = |folder: &str| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| fs::read_link(entry.path()).ok()).collect::<Vec<_>>()
    };
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let of_threads = tasks.filter_map(|task| fs::read_link(task.path().join("ns/net")).ok());
    links("/proc/self/fd").into_iter().chain(of_threads).any(|link| link.as_os_str() == &*name)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn all_kinds_of_flows_pass_and_nothing_is_left() {
    let _alone = ALONE.lock().await;
    let testbed = Testbed::new(1).await.unwrap();
    let host = testbed.host(0);
    let backend = auto(host).with_masquerade(Nft { works: true }).with_spoiled_self_test(|a, b| {
        *SEEN.lock().unwrap() = vec![a.inode(), b.inode()];
    });
    let passed = tested(&backend).await.unwrap();
    assert_eq!(passed.nat_not_tried, None);
    println!("self-test of both families: {passed}");
    let seen = SEEN.lock().unwrap().clone();
    assert_eq!(seen.len(), 2);
    eventually(async || !seen.iter().any(|inode| is_held(*inode))).await;
    let properties = backend.report().properties;
    assert!(properties["self_test"].starts_with("passed in "), "{properties:?}");
    let without = tested(&auto(host)).await.unwrap();
    assert!(without.nat_not_tried.is_some());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn a_source_that_is_not_translated_fails_it() {
    let _alone = ALONE.lock().await;
    let testbed = Testbed::new(1).await.unwrap();
    let host = testbed.host(0);
    let failed = tested(&auto(host).with_masquerade(Nft { works: false })).await.unwrap_err();
    let SelfTestError::Flow { flow: "TCP with a translated source", .. } = failed else {
        panic!("{failed}");
    };
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn who_may_not_make_namespaces_does_not_try_it() {
    let _alone = ALONE.lock().await;
    let testbed = Testbed::new(1).await.unwrap();
    let host = testbed.host(0);
    let backend = Arc::new(auto(host));
    let begins = Arc::clone(&backend);
    // Capabilities are a thread's.
    let without_rights = thread::spawn(move || {
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::SYS_ADMIN);
        sets.permitted.remove(CapabilitySet::SYS_ADMIN);
        set_capabilities(None, sets).unwrap();
        begins.begin_self_test();
    });
    without_rights.join().unwrap();
    let SelfTestError::NotTried { reason } = tested(&backend).await.unwrap_err() else {
        panic!("{:?}", backend.stats());
    };
    assert!(reason.contains("CAP_SYS_ADMIN"), "{reason}");
    let attrs = backend.advertise(None).await.unwrap();
    assert!(!uses_ebpf(&attrs));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn auto_means_programs_where_it_passes_and_threads_where_it_fails() {
    let _alone = ALONE.lock().await;
    let cluster = Cluster::with(support::DUAL, |host, config| {
        let backend = support::udp(host, &config.replace("userspace", "auto").parse().unwrap());
        if host.name() != "host1" {
            return backend;
        }
        // Threads carry the packets of a node whose programs are gone.
        backend.with_spoiled_self_test(|first, _| {
            run(first, "tc qdisc del dev flannel0 clsact");
        })
    })
    .await;
    for host in [0, 1, 2] {
        let (stats, lease) = (cluster.stats(host), cluster.nodes.lease(host));
        let fails = cluster.host(host).name() == "host1";
        let is_ebpf = matches!(stats.engine, Some(Engine::Ebpf(_)));
        assert_eq!((is_ebpf, uses_ebpf(&lease.attrs)), (!fails, !fails), "{stats:?}");
        assert_eq!(stats.self_test.unwrap().is_err(), fails);
        let refused = stats.ebpf_refused.unwrap_or_default();
        assert_eq!(
            refused.starts_with("self-test failed: TCP over IPv4: programs carried "),
            fails
        );
        let filters = cluster.run(host, "tc filter show dev eth0 ingress");
        assert_eq!(filters.contains("flannel-udp"), !fails, "{filters}");
    }
    for (from, to) in [(0, 1), (1, 0), (0, 2), (1, 2)] {
        assert!(cluster.reaches(from, to).await, "{from} to {to}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn programs_that_are_refused_later_are_published_no_more() {
    let _alone = ALONE.lock().await;
    let mut cluster = Cluster::with(support::IPV4, |host, config| {
        support::udp(host, &config.replace("userspace", "auto").parse().unwrap())
    })
    .await;
    assert!(uses_ebpf(&cluster.nodes.lease(0).attrs));
    // Somebody else's filter in the place of ours.
    cluster.run(0, "tc filter del dev eth0 ingress");
    let filter = "filter add dev eth0 ingress prio 8285 handle 8285 protocol all bpf da bytecode";
    let mut tc = Command::new("tc");
    tc.args(filter.split(' ')).arg("1,6 0 0 4294967295");
    assert!(cluster.host(0).namespace().run(|| tc.status()).unwrap().unwrap().success());
    let report = cluster.nodes.sync(0).await;
    assert!(report.faults.is_empty(), "{report:?}");
    let stats = cluster.stats(0);
    assert!(stats.ebpf_refused.is_some_and(|reason| reason.contains("another program's filter")));
    assert!(matches!(stats.engine, Some(Engine::Userspace(_))));
    // The node asks again for what it publishes.
    let drifted = cluster.nodes.network(0).drifted();
    soon(drifted).await.unwrap();
    let attrs = cluster.backend(0).advertise(None).await.unwrap();
    assert!(!uses_ebpf(&attrs));
    // Others then finish what they send it.
    let lease = Lease::new(cluster.nodes.lease(0).subnet, attrs);
    let peers = cluster.nodes.peers(1, [lease, cluster.nodes.lease(1).clone()]);
    cluster.nodes.network(1).sync(&peers).await.unwrap();
    assert!(cluster.reaches(0, 1).await);
}
