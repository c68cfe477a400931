//! The document as a page, and as JSON there and back.

use flannel_core::{Activity, FaultKind, LeaseAttrs, PeerFault, RoutingMode};

use super::*;
use crate::{
    explain::{Broken, Explanation, Passed},
    journal::Kind,
};

/// A document in which everything there may be is there.
fn full() -> StatusDocument {
    let lease = |n: u8, backend: &str| {
        let public_ip = Some([192, 0, 2, n].into());
        let attrs = LeaseAttrs {
            public_ip,
            backend_type: backend.to_owned().into(),
            ..LeaseAttrs::default()
        };
        LeaseStatus::of(&Lease::new(format!("10.3.{n}.0-24").parse().unwrap(), attrs))
    };
    let transport = Transport::new(Some(RoutingMode::Encapsulated), None);
    let path = PathStatus {
        state: "less".into(),
        mtu: Some(1400),
        needed: 1500,
        underlay_checksums: "intact".into(),
        overlay_checksums: "corrupted".into(),
    };
    let fault = PeerFault::OtherBackend { ours: "vxlan".into(), theirs: "udp".into() };
    let problem = PeerProblem::new("10.3.3.0-24".parse().unwrap(), None, fault);
    let mut totals = Totals::default();
    (totals.added, totals.replaced) = (9, 1);
    for (name, count) in
        [("firewall_rules_added", 8), ("firewall_rules_removed", 2), ("firewall_program_runs", 3)]
    {
        totals.counters.insert(name.into(), count);
    }
    let mut backend_report = BackendReport::default();
    backend_report.properties.insert("engine".into(), "userspace".into());
    backend_report.counters.insert("packets_sent".into(), 4);
    backend_report.counters.insert("packets_received".into(), 0);
    let fault = Fault::new(FaultKind::StoreAway, "store", "watch leases", "refused");
    StatusDocument {
        version: "1.2.3".into(),
        pid: 7,
        started: "2026-01-02T03:04:05Z".into(),
        node: Some("n1".parse().unwrap()),
        store: Some("etcd, 1 endpoints, under /x".into()),
        network: Some(r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"}}"#.parse().unwrap()),
        backend: Some("vxlan".into()),
        subnet_file: "/run/flannel/subnet.env".into(),
        ready: false,
        readiness: Readiness {
            missing: vec!["subnet.env: not there".into()],
            notes: vec!["a note".into()],
        },
        lease: Some(lease(1, "vxlan")),
        lease_remaining_seconds: Some(3661),
        mtu: Some(1450),
        faults: vec![fault.during(Activity::Watch).with_remedy("start etcd")],
        last_error: Some("renew the lease: refused".into()),
        peers: Some(vec![
            PeerStatus {
                lease: lease(2, "vxlan"),
                transport: Some(transport.clone()),
                path: Some(BTreeMap::from([("ipv4".into(), path)])),
                problem: None,
            },
            PeerStatus {
                lease: lease(4, ""),
                transport: Some(transport.carried_by("userspace")),
                path: None,
                problem: Some("it is odd".into()),
            },
        ]),
        refused: vec![problem.clone()],
        probing: Some(ProbeStatus {
            paths: [("enough", 0), ("less", 1), ("no_answer", 1)]
                .map(|(state, count)| (state.to_owned(), count))
                .into(),
            faults: vec!["cannot use UDP port 8286 of 192.0.2.1: in use".into()],
            software_checksums: vec!["ipv4".into()],
            asked: 3,
            answered: 2,
            answers: 1,
            ignored: 0,
        }),
        syncs: 4,
        totals,
        repaired: BTreeMap::from([("link".into(), 1), ("route".into(), 2)]),
        last_sync: Some({
            let mut sync = SyncReport::default();
            sync.problems.push(problem);
            sync
        }),
        firewall: Some(FirewallStatus {
            mode: "iptables".into(),
            faults: Vec::new(),
            notes: vec!["a chain drops".into()],
        }),
        backend_report,
        journal: vec![Entry {
            at: humantime::parse_rfc3339("2026-01-02T03:04:06Z").unwrap(),
            kind: Kind::Repair,
            text: "route 10.3.2.0/24 removed".into(),
        }],
    }
}

#[test]
fn a_page_shows_what_an_operator_looks_for() {
    let expected = "\
node         n1 (process 7, version 1.2.3, since 2026-01-02T03:04:05Z)
store        etcd, 1 endpoints, under /x
network      10.3.0.0/16, backend vxlan
lease        10.3.1.0-24 at 192.0.2.1, good for 1h 1m 1s, MTU 1450
ready        no
  missing    subnet.env: not there
  note       a note
syncs        4; 9 objects added, 1 replaced, 0 removed
firewall     iptables, as it should be; 8 rules added, 2 removed, iptables run 3 times
engine       userspace
counters     packets_sent 4
repaired     link 1, route 2
paths        less 1, no answer 1, ipv4 checksums computed in software
  fault      cannot use UDP port 8286 of 192.0.2.1: in use
last error   renew the lease: refused
peers        2
             10.3.2.0-24                  192.0.2.2                    vxlan encapsulated  path MTU 1400, 1500 needed  overlay checksums corrupted
             10.3.4.0-24                  192.0.2.4                     encapsulated by userspace  it is odd
refused      10.3.3.0-24 it uses the backend \"udp\", not \"vxlan\"
journal
             2026-01-02T03:04:06.000Z repair   route 10.3.2.0/24 removed
";
    assert_eq!(full().to_string(), expected);
}

#[tokio::test]
async fn a_node_that_is_being_set_up_has_a_page_too() {
    let daemon = DaemonHandle::new(Path::new("/no/such/subnet.env"), false);
    let document = document(&daemon).await;
    let page = document.to_string();
    for line in ["lease        none", "peers        not known yet", "ready        no"] {
        assert!(page.lines().any(|it| it == line), "no {line:?} in:\n{page}");
    }
    assert_eq!(there_and_back(&document), document);
}

#[test]
fn documents_readiness_and_explanations_survive_their_json() {
    let full = full();
    assert_eq!(there_and_back(&full), full);
    assert_eq!(there_and_back(&full.readiness), full.readiness);
    let passed = vec![Passed { link: "network".into(), says: "10.3.0.0/16".into() }];
    let broken =
        Broken { link: "route".into(), says: "there is none".into(), remedy: "add it".into() };
    let (source, destination) = ([10, 3, 1, 2].into(), [10, 3, 2, 2].into());
    let explanation = Explanation { source, destination, passed, broken: Some(broken) };
    assert_eq!(there_and_back(&explanation), explanation);
}

fn there_and_back<T: Serialize + for<'a> Deserialize<'a>>(value: &T) -> T {
    serde_json::from_str(&serde_json::to_string(value).unwrap()).unwrap()
}
