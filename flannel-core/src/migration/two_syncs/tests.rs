use std::sync::Mutex;

use async_trait::async_trait;

use super::*;
use crate::{
    BackendConfig, LeaseAttrs, LeaseEvent, Network, NetworkConfig, PeerFault, PeerProblem,
    SecondBackend, SecondRole,
    migration::{
        MigrationOptions, MigrationRecord, Recorded,
        migrating_tests::{config, hosts},
        migration_plan::Layout,
        shared_state::Shared,
    },
    testing::MockBackend,
};

/// How a second backend is written after the first one here.
const ROLES: [(char, SecondRole); 3] =
    [('>', SecondRole::Next), ('+', SecondRole::InUse), ('-', SecondRole::Unused)];

/// `2 one>two` is the lease of node 2, which has one and takes two next.
fn lease(text: &str) -> Lease {
    let (n, types) = text.split_once(' ').unwrap();
    let found = ROLES.into_iter().find_map(|(sign, role)| Some((types.split_once(sign)?, role)));
    let (first, second) = match found {
        Some(((first, second), role)) => (first, Some((second, role))),
        None => (types, None),
    };
    let second = second.map(|(name, role)| {
        let backend_type = name.to_owned().into();
        Box::new(SecondBackend { backend_type, backend_data: None, backend_v6_data: None, role })
    });
    let public_ip = format!("192.0.2.{n}").parse().ok();
    let backend_type = first.to_owned().into();
    let attrs = LeaseAttrs { public_ip, backend_type, second, ..LeaseAttrs::default() };
    Lease::new(subnet(n), attrs)
}

fn subnet(n: &str) -> Subnet {
    format!("10.3.{n}.0-24").parse().unwrap()
}

/// The inverse of [`lease`].
fn written(lease: &Lease) -> String {
    let n = lease.attrs.public_ip.unwrap().octets()[3];
    let second = lease.attrs.second.as_ref().map(|it| {
        let sign = ROLES.into_iter().find(|(_, role)| *role == it.role).unwrap().0;
        format!("{sign}{}", it.backend_type)
    });
    format!("{n} {}{}", lease.attrs.backend_type, second.unwrap_or_default())
}

fn peers(own: &str, others: &[&str]) -> Peers {
    let mut peers = Peers::new(config("one"), lease(own));
    peers.fold(LeaseEvent::reset(others.iter().map(|it| lease(it))));
    peers
}

/// A network that writes down what it is told.
#[derive(Debug, Default)]
struct Recorder {
    name: &'static str,
    log: Arc<Mutex<Vec<String>>>,
    knows_senders: bool,
    /// Peers with another backend only are known to get this one.
    foresees: bool,
    denies: Option<&'static str>,
    /// The peers that it has no way to.
    refuses: Option<&'static str>,
    fails: bool,
}

#[async_trait]
impl Network for Recorder {
    fn mtu(&self) -> u32 {
        1500
    }

    async fn sync(&mut self, peers: &Peers) -> Result<SyncReport, BackendError> {
        let shown = peers.iter().map(|peer| {
            let standby = if peers.is_standby(&peer.subnet) { " standby" } else { "" };
            format!("{}{standby}", written(peer))
        });
        let shown: Vec<_> = shown.collect();
        assert_eq!(written(peers.own()), format!("1 {}", self.name));
        let told = format!("{:?}: {}", peers.route_scope(), shown.join(", "));
        self.log.lock().unwrap().push(told.trim().into());
        if self.fails {
            let operation = self.name.into();
            return Err(BackendError::Kernel { operation, source: "refused by the test".into() });
        }
        let refused = self.refuses.map(subnet).filter(|it| peers.get(it).is_some());
        let fault = PeerFault::BadData { detail: self.name.into() };
        let problems = refused.map(|it| PeerProblem::new(it, None, fault)).into_iter().collect();
        Ok(SyncReport { added: 1, problems, ..SyncReport::default() })
    }

    async fn drifted(&mut self) -> Result<(), BackendError> {
        std::future::pending().await
    }

    fn reconfigure(&mut self, options: &BackendConfig) -> Result<(), BackendError> {
        self.log.lock().unwrap().push(options.to_string());
        Ok(())
    }

    fn foresee(&self, attrs: &LeaseAttrs) -> Option<LeaseAttrs> {
        let backend_type = format!("{}, foreseen", self.name).into();
        self.foresees.then(|| LeaseAttrs { backend_type, ..attrs.clone() })
    }

    fn knows_senders(&self) -> bool {
        self.knows_senders
    }

    fn is_accepted(&self, peer: &Subnet) -> bool {
        self.denies.map(subnet) != Some(*peer)
    }

    async fn teardown(self: Box<Self>) -> Result<(), BackendError> {
        Ok(())
    }
}

/// A node with one and two, and what both are told.
async fn node(
    networks: [Recorder; 2],
) -> (MigratingNetwork, [Running; 2], Arc<Mutex<Vec<String>>>) {
    let (_, source) = hosts();
    let running = ["one", "two"].map(|kind| {
        let recorded = Recorded { config: config(kind), alternate: false };
        Running::new(source.as_ref(), recorded, true).unwrap()
    });
    let shared = Shared::new(source, &config("one"), MigrationOptions::default()).unwrap();
    let mut network = MigratingNetwork::start(Arc::new(shared), &lease("1 one")).await.unwrap();
    let log = Arc::<Mutex<Vec<String>>>::default();
    let [base, beside] = networks.map(|it| Box::new(Recorder { log: Arc::clone(&log), ..it }));
    network.base = base;
    network.beside = Some(beside);
    (network, running, log)
}

fn recorders() -> [Recorder; 2] {
    ["one", "two"].map(|name| Recorder { name, ..Recorder::default() })
}

#[tokio::test]
async fn a_network_alone_is_shown_each_peer_as_one_of_its_own_backend() {
    for (scope, own, peer, told) in [
        (RouteScope::Network, "1 one", "2 one", "Network: 2 one"),
        (RouteScope::Both, "1 one", "2 one", "Both: 2 one"),
        (RouteScope::Network, "1 one", "2 one>two", "Network: 2 one"),
        (RouteScope::Network, "1 one", "2 two-one", "Network: 2 one"),
        (RouteScope::Network, "1 one", "2 two-three", "Network: 2 two-three"),
        (RouteScope::Network, "1 two-one", "2 two", "Network: 2 two"),
    ] {
        let (mut network, [one, _], log) = node(recorders()).await;
        for _ in 0..2 {
            network.sync_alone(&one, &peers(own, &[peer]), scope).await.unwrap();
        }
        assert_eq!(*log.lock().unwrap(), [told, told]);
    }
}

/// A sync of node 1, which has one and two.
struct Sync {
    own: &'static str,
    others: &'static [&'static str],
    target: Side,
    /// Who was sent to by what before, if any sync was.
    before: Option<&'static [(&'static str, Side)]>,
    change: fn(&mut [Recorder; 2]),
    /// What both networks are told, in order, and what comes of it.
    told: &'static str,
}

impl Sync {
    async fn run(&self) -> String {
        let mut networks = recorders();
        (self.change)(&mut networks);
        let (mut network, [one, two], log) = node(networks).await;
        network.via = self.before.map(|it| it.iter().map(|(n, side)| (subnet(n), *side)).collect());
        let now = Instant::now();
        let peers = peers(self.own, self.others);
        let synced = network.sync_both([&one, &two], self.target, &peers).await;
        let mut told = log.lock().unwrap().clone();
        told.push(match synced {
            Ok((report, plan)) => {
                let names = plan.via.values().map(|side| ["one", "two"][*side as usize]);
                let mut all = vec![
                    format!("{}: {}", published(plan.layout), names.collect::<Vec<_>>().join(", ")),
                    format!("{} added", report.added),
                ];
                if network.via.as_ref() != Some(&plan.via) {
                    all.insert(1, "not kept".into());
                }
                all.extend(report.faults.iter().map(|_| "two failed".into()));
                all.extend(report.problems.iter().map(|it| format!("{} refused", it.peer)));
                all.join("; ")
            }
            Err(error) => error.to_string(),
        });
        told.extend(network.look_at.map(|at| format!("again after {:?}", at - now)));
        told.join(" | ")
    }
}

fn published(layout: Layout) -> String {
    let name = |side: Side| ["one", "two"][side as usize];
    match layout {
        Layout::Only(side) => name(side).into(),
        Layout::Both { first, role } => {
            let sign = ROLES.into_iter().find(|it| it.1 == role).unwrap().0;
            format!("{}{sign}{}", name(first), name(first.other()))
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_gains_peers_is_told_first_and_nobody_loses_its_way() {
    use Side::{Base, Beside};
    let plain = Sync {
        own: "1 one>two",
        others: &["2 one", "3 one>two", "4 two"],
        target: Beside,
        before: None,
        change: |_| {},
        told: "",
    };
    let denying: fn(&mut [Recorder; 2]) = |it| it[1].denies = Some("2");
    let refusing: fn(&mut [Recorder; 2]) = |it| it[1].refuses = Some("3");
    let failing: fn(&mut [Recorder; 2]) = |it| it[1].fails = true;
    let base_failing: fn(&mut [Recorder; 2]) = |it| it[0].fails = true;
    let both = &["2 one>two", "3 one>two"];
    let back = Sync {
        own: "1 two>one",
        others: &["2 one", "3 two>one"],
        target: Base,
        before: Some(&[("2", Base), ("3", Beside)]),
        ..plain
    };
    let cases = [
        Sync {
            told: "Peers: 3 two, 4 two | Network: 2 one | one>two: one, two, two; 2 added",
            ..plain
        },
        // What the process before has left may be of either side.
        Sync {
            before: Some(&[]),
            told: "Peers: 3 two, 4 two | Network: 2 one | one>two: one, two, two; 2 added",
            ..plain
        },
        Sync {
            change: |it| it[0].knows_senders = true,
            told: "Peers: 3 two, 4 two | Network: 2 one, 3 one standby | one>two: one, two, two; 2 added",
            ..plain
        },
        Sync {
            change: |it| (it[1].knows_senders, it[1].foresees) = (true, true),
            told: "Peers: 2 two, foreseen standby, 3 two, 4 two | Network: 2 one | one>two: one, two, two; 2 added",
            ..plain
        },
        Sync {
            change: |it| it[1].foresees = true,
            told: "Peers: 3 two, 4 two | Network: 2 one | one>two: one, two, two; 2 added",
            ..plain
        },
        // Nobody moves.
        Sync {
            before: Some(&[("3", Beside), ("4", Beside)]),
            told: "Peers: 3 two, 4 two | Network: 2 one | one>two: one, two, two; 2 added",
            ..plain
        },
        Sync {
            own: "1 one+two",
            target: Base,
            before: Some(&[("3", Beside), ("4", Beside)]),
            told: "Network: 2 one | Peers: 3 two, 4 two | one+two: one, two, two; 2 added",
            ..plain
        },
        // Back.
        Sync { told: "Network: 2 one, 3 one | Peers: | one-two: one, one; 2 added", ..back },
        // Against the way of the node itself.
        Sync {
            own: "1 one+two",
            others: &["2 one>two"],
            target: Base,
            told: "Peers: 2 two | Network: | one+two: two; 2 added",
            ..plain
        },
        // That nobody is sent to by the one that is left is said before it is named no more.
        Sync {
            own: "1 two+one",
            others: &["4 two"],
            told: "Peers: 4 two | Network: | two-one: two; 2 added",
            ..plain
        },
        Sync {
            own: "1 two-one",
            others: &["4 two"],
            told: "Peers: 4 two | Network: | two: two; 2 added",
            ..plain
        },
        // Some move to either side.
        Sync {
            others: &["2 one>two", "3 two>one", "4 one"],
            before: Some(&[("2", Base), ("3", Beside)]),
            told: "Peers: 2 two, 3 two | Network: 3 one, 4 one | Peers: 2 two | one>two: two, one, one; 3 added",
            ..plain
        },
        Sync {
            own: "1 one+two",
            target: Base,
            others: &["2 one>two", "3 two>one", "4 one"],
            before: Some(&[("2", Base), ("3", Beside)]),
            told: "Network: 2 one, 3 one, 4 one | Peers: 2 two | Network: 3 one, 4 one | one+two: two, one, one; 3 added",
            ..plain
        },
        // A peer does not accept packets yet.
        Sync {
            others: both,
            change: denying,
            told: "Peers: 3 two | Network: 2 one | one>two: one, two; 2 added | again after 1s",
            ..plain
        },
        Sync {
            others: both,
            before: Some(&[("2", Beside)]),
            change: denying,
            told: "Peers: 2 two, 3 two | Network: | two-one: two, two; 2 added",
            ..plain
        },
        Sync {
            own: "1 two-one",
            others: both,
            change: denying,
            told: "Peers: 2 two, 3 two | Network: | two-one: two, two; 2 added",
            ..plain
        },
        Sync {
            change: |it| it[0].denies = Some("3"),
            told: "Network: 2 one | Peers: 3 two | two>one: one, two; 2 added | again after 1s",
            ..back
        },
        // What we say that we send nobody by is not used before we say otherwise.
        Sync {
            own: "1 two-one",
            others: &["2 two>one"],
            before: Some(&[("2", Beside)]),
            told: "Peers: 2 two | Network: | two+one: two; 2 added",
            ..plain
        },
        // The kernel refuses the way to a peer.
        Sync {
            others: both,
            change: refusing,
            told: "Peers: 2 two, 3 two | Peers: 2 two | Network: 3 one | one>two: two, one; 3 added; 10.3.3.0-24 refused",
            ..plain
        },
        Sync {
            others: both,
            before: Some(&[("3", Beside)]),
            change: refusing,
            told: "Peers: 2 two, 3 two | Network: | two-one: two, two; 2 added; 10.3.3.0-24 refused",
            ..plain
        },
        Sync {
            others: &["2 two>one", "3 two>one"],
            before: Some(&[("2", Beside), ("3", Beside)]),
            change: |it| it[0].refuses = Some("3"),
            told: "Network: 2 one, 3 one | Peers: | one>two: one, one; 2 added; 10.3.3.0-24 refused",
            ..plain
        },
        // A network fails.
        Sync {
            others: both,
            change: failing,
            told: "Peers: 2 two, 3 two | Network: 2 one, 3 one | one>two: one, one; not kept; 1 added; two failed",
            ..plain
        },
        Sync {
            others: both,
            before: Some(&[("2", Beside)]),
            change: failing,
            told: "Peers: 2 two, 3 two | Network: 3 one | one>two: two; 1 added; two failed",
            ..plain
        },
        Sync {
            change: failing,
            told: "Network: 2 one, 3 one | Peers: | one-two: one, one; 1 added; two failed",
            ..back
        },
        Sync {
            change: base_failing,
            told: "Peers: 3 two, 4 two | Network: 2 one | cannot one",
            ..plain
        },
        Sync { change: base_failing, told: "Network: 2 one, 3 one | cannot one", ..back },
    ];
    for case in cases {
        let told = case.run().await;
        assert_eq!(told, case.told, "{} beside {:?}", case.own, case.others);
    }
}

#[tokio::test]
async fn new_options_go_to_the_network_of_their_backend_and_are_remembered() {
    let (mut network, [_, two], log) = node(recorders()).await;
    network.shared.state().beside = Some(two);
    let changed = ["one", "two"].map(|kind| {
        let json = r#"{"Network":"10.3.0.0/16","Backend":{"Type":"KIND","Port":7}}"#;
        json.replace("KIND", kind).parse::<NetworkConfig>().unwrap()
    });
    for config in &changed {
        network.reconfigure(config.backend()).unwrap();
    }
    assert_eq!(*log.lock().unwrap(), changed.each_ref().map(|it| it.backend().to_string()));
    let MigrationRecord { base, beside } = network.shared.source.recall().unwrap();
    assert_eq!([base.config, beside.unwrap().config], changed);
    // On the way back and forth as well, if they are others.
    log.lock().unwrap().clear();
    for (config, side) in
        [(&changed[0], Side::Base), (&changed[1], Side::Beside), (&config("one"), Side::Base)]
    {
        network.migrate(config).unwrap();
        assert_eq!(network.shared.state().target, side);
    }
    assert_eq!(*log.lock().unwrap(), [config("one").backend().to_string()]);
}

#[tokio::test]
async fn a_second_backend_that_does_not_say_what_it_publishes_publishes_what_it_did() {
    let (network, [_, two], _) = node(recorders()).await;
    let shared = network.shared;
    let mut silent = MockBackend::new();
    silent
        .expect_advertise()
        .returning(|_| Err(BackendError::Interface { source: "there is none".into() }));
    shared.state().beside = Some(Running { backend: Arc::new(silent), ..two });
    shared.state().layout = Some(Layout::Both { first: Side::Base, role: SecondRole::Next });
    let told = async |previous: Option<&Lease>| {
        written(&Lease::new(subnet("1"), shared.advertise(previous).await.unwrap()))
    };
    assert_eq!(told(None).await, "1 one");
    assert_eq!(told(Some(&lease("1 one>two"))).await, "1 one>two");
    assert_eq!(told(None).await, "1 one>two", "as before");
    shared.state().layout = Some(Layout::Only(Side::Beside));
    assert!(shared.advertise(None).await.is_err());
}
