//! Which commands are run when, and with what.

use std::{fs, time::Duration};

use flannel_backend_extension::remove_all;
use flannel_core::{
    Backend, Lease, LeaseAttrs, LeaseEvent, NetworkConfig, PeerFault, Peers, RawJson,
};
use flannel_testbed::Testbed;
use tempfile::TempDir;
use tokio::time::timeout;

use super::support::{IPV4, extension, lines};

/// One host, whose commands write down that they were run.
struct Bench {
    testbed: Testbed,
    folder: TempDir,
    config: NetworkConfig,
}

impl Bench {
    /// `backend` may name the folder as `DIR`.
    async fn new(backend: &str) -> Self {
        let testbed = Testbed::new(1).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let backend = backend.replace("DIR", &folder.path().display().to_string());
        let config = format!(r#"{{{IPV4},"Backend":{{"Type":"extension",{backend}}}}}"#);
        Self { testbed, folder, config: config.parse().unwrap() }
    }

    /// The backend of a process that has just been started.
    fn backend(&self) -> impl Backend {
        extension(self.testbed.host(0), &self.config, self.folder.path().join("record"))
    }

    async fn own(&self, backend: &impl Backend) -> Lease {
        Lease::new("10.244.1.0-24".parse().unwrap(), backend.advertise(None).await.unwrap())
    }

    fn peers(&self, own: &Lease, peers: &[Lease]) -> Peers {
        let mut all = Peers::new(self.config.clone(), own.clone());
        all.fold(LeaseEvent::reset(peers.to_vec()));
        all
    }

    fn log(&self) -> Vec<String> {
        lines(&self.folder.path().join("log"))
    }
}

fn peer(n: u8, data: Option<&str>) -> Lease {
    let attrs = LeaseAttrs {
        public_ip: Some([192, 0, 2, n].into()),
        backend_type: "extension".into(),
        backend_data: data
            .map(|data| RawJson::new(&format!("\"{}\"", data.replace('"', "\\\""))).unwrap()),
        ..LeaseAttrs::default()
    };
    Lease::new(format!("10.244.{n}.0-24").parse().unwrap(), attrs)
}

const ALL: &str = r#"
    "PreStartupCommand": "echo pre >> DIR/log; echo ' mine '",
    "PostStartupCommand": "echo post $NETWORK $SUBNET $PUBLIC_IP >> DIR/log",
    "SubnetAddCommand": "echo add $SUBNET $PUBLIC_IP $(cat) >> DIR/log",
    "SubnetRemoveCommand": "echo remove $SUBNET $PUBLIC_IP $(cat) >> DIR/log",
    "ShutdownCommand": "echo shutdown $SUBNET >> DIR/log"
"#;

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn each_command_is_run_in_its_turn_and_told_what_it_needs() {
    let bench = Bench::new(ALL).await;
    let backend = bench.backend();
    let own = bench.own(&backend).await;
    assert_eq!(own.attrs.backend_data.as_ref().unwrap().as_str(), "\"mine\"");
    // A node asks again and again.
    assert_eq!(bench.own(&backend).await, own);
    let mut network = backend.start(&own).await.unwrap();
    let two = [peer(7, Some("seven")), peer(8, None)];
    let report = network.sync(&bench.peers(&own, &two)).await.unwrap();
    assert_eq!((report.added, report.writes(), report.problems), (2, 2, vec![]));
    let changed = [peer(7, Some("other"))];
    let report = network.sync(&bench.peers(&own, &changed)).await.unwrap();
    assert_eq!((report.replaced, report.removed, report.problems), (1, 1, vec![]));
    network.teardown().await.unwrap();
    let expected = [
        "pre",
        "post 10.244.0.0/16 10.244.1.0/24 192.0.2.1",
        "add 10.244.7.0/24 192.0.2.7 seven",
        "add 10.244.8.0/24 192.0.2.8",
        "remove 10.244.8.0/24 192.0.2.8",
        "remove 10.244.7.0/24 192.0.2.7 seven",
        "add 10.244.7.0/24 192.0.2.7 other",
        "remove 10.244.7.0/24 192.0.2.7 other",
        "shutdown 10.244.1.0/24",
    ];
    assert_eq!(bench.log(), expected);
    assert!(!bench.folder.path().join("record").exists());
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_a_peer_publishes_is_never_run() {
    let bench = Bench::new(r#""SubnetAddCommand": "cat > DIR/data""#).await;
    let backend = bench.backend();
    let own = bench.own(&backend).await;
    let mut network = backend.start(&own).await.unwrap();
    let evil = bench.folder.path().join("evil");
    let data = format!("$(touch {0}) `touch {0}`; touch {0}\\n\"; touch {0} #", evil.display());
    network.sync(&bench.peers(&own, &[peer(7, Some(&data))])).await.unwrap();
    let given = fs::read_to_string(bench.folder.path().join("data")).unwrap();
    assert_eq!(given, data.replace("\\n", "\n") + "\n");
    assert!(!evil.exists());
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_failed_add_is_named_and_run_again_after_a_removal_and_costs_nobody_else() {
    let bench = Bench::new(
        r#"
        "SubnetAddCommand": "echo add $SUBNET >> DIR/log; test $SUBNET != 10.244.7.0/24 -o -e DIR/works || { echo broken >&2; exit 7; }",
        "SubnetRemoveCommand": "echo remove $SUBNET >> DIR/log; exit 1"
        "#,
    )
    .await;
    let backend = bench.backend();
    let own = bench.own(&backend).await;
    let mut network = backend.start(&own).await.unwrap();
    let peers = bench.peers(&own, &[peer(7, None), peer(8, None)]);
    let report = network.sync(&peers).await.unwrap();
    assert_eq!((report.added, report.problems.len(), report.wants_retry()), (1, 1, true));
    assert_eq!(report.problems[0].peer, peer(7, None).subnet);
    let PeerFault::Kernel { operation, reason } = &report.problems[0].fault else {
        panic!("{report:?}");
    };
    assert_eq!(
        (operation.as_str(), reason.as_str()),
        ("run SubnetAddCommand", "exit status: 7: broken")
    );
    // Not before its time, however often somebody asks.
    let report = network.sync(&peers).await.unwrap();
    assert_eq!((report.writes(), report.problems.len()), (0, 1));
    assert_eq!(bench.log(), ["add 10.244.7.0/24", "add 10.244.8.0/24"]);
    fs::write(bench.folder.path().join("works"), "").unwrap();
    let report = loop {
        let report = network.sync(&peers).await.unwrap();
        if report.problems.is_empty() {
            break report;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!((report.replaced, report.wants_retry()), (1, false));
    assert_eq!(bench.log()[2..], ["remove 10.244.7.0/24", "add 10.244.7.0/24"]);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_restart_removes_who_left_and_adds_again_what_a_start_may_have_reset() {
    let bench = Bench::new(ALL).await;
    let backend = bench.backend();
    let own = bench.own(&backend).await;
    let mut network = backend.start(&own).await.unwrap();
    network.sync(&bench.peers(&own, &[peer(7, None), peer(8, None)])).await.unwrap();
    drop(network);
    let before = bench.log().len();

    let backend = bench.backend();
    let own = bench.own(&backend).await;
    let mut network = backend.start(&own).await.unwrap();
    network.sync(&bench.peers(&own, &[peer(8, None)])).await.unwrap();
    let expected = [
        "pre",
        "post 10.244.0.0/16 10.244.1.0/24 192.0.2.1",
        "remove 10.244.7.0/24 192.0.2.7",
        "remove 10.244.8.0/24 192.0.2.8",
        "add 10.244.8.0/24 192.0.2.8",
    ];
    assert_eq!(bench.log()[before..], expected);
    drop(network);

    // Nobody runs, and the record has all that is needed.
    let before = bench.log().len();
    let namespace = bench.testbed.host(0).namespace();
    let record = bench.folder.path().join("record");
    remove_all(namespace, &record).await.unwrap();
    let expected = ["remove 10.244.8.0/24 192.0.2.8", "shutdown 10.244.1.0/24"];
    assert_eq!(bench.log()[before..], expected);
    remove_all(namespace, &record).await.unwrap();
    assert_eq!(bench.log().len(), before + 2);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn who_is_made_by_other_commands_is_removed_by_those() {
    let mut bench = Bench::new(ALL).await;
    let backend = bench.backend();
    let own = bench.own(&backend).await;
    let mut network = backend.start(&own).await.unwrap();
    network.sync(&bench.peers(&own, &[peer(7, None)])).await.unwrap();
    drop(network);
    let before = bench.log().len();
    let other = format!(
        r#"{{{IPV4},"Backend":{{"Type":"extension","SubnetAddCommand":"echo new $SUBNET >> {}"}}}}"#,
        bench.folder.path().join("log").display()
    );
    bench.config = other.parse().unwrap();
    let backend = bench.backend();
    let mut network = backend.start(&own).await.unwrap();
    network.sync(&bench.peers(&own, &[peer(7, None)])).await.unwrap();
    let expected = ["remove 10.244.7.0/24 192.0.2.7", "new 10.244.7.0/24"];
    assert_eq!(bench.log()[before..], expected);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_command_that_outlasts_a_sync_costs_nobody_else() {
    let bench = Bench::new(
        r#""SubnetAddCommand": "[ $SUBNET != 10.244.7.0/24 ] || sleep 600; echo $SUBNET >> DIR/log""#,
    )
    .await;
    let backend = bench.backend();
    let own = bench.own(&backend).await;
    let mut network = backend.start(&own).await.unwrap();
    let peers = bench.peers(&own, &[peer(7, None), peer(8, None), peer(9, None)]);
    // As a node does after 30 s.
    timeout(Duration::from_secs(1), network.sync(&peers)).await.unwrap_err();
    let others_turn = timeout(Duration::from_secs(10), network.sync(&peers));
    let report = others_turn.await.expect("the next sync does not wait for it").unwrap();
    assert_eq!(bench.log(), ["10.244.8.0/24", "10.244.9.0/24"]);
    let problems: Vec<_> = report.problems.iter().map(|it| it.peer.to_string()).collect();
    assert_eq!(problems, ["10.244.7.0-24"]);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_check_that_outlasts_a_sync_costs_nobody_else() {
    let bench = Bench::new(
        r#""SubnetCheckCommand": "[ $SUBNET != 10.244.7.0/24 ] || sleep 600; echo $SUBNET >> DIR/log""#,
    )
    .await;
    let backend = bench.backend();
    let own = bench.own(&backend).await;
    let mut network = backend.start(&own).await.unwrap();
    let peers = bench.peers(&own, &[peer(7, None), peer(8, None), peer(9, None)]);
    network.sync(&peers).await.unwrap();
    let addresses = ["192.0.2.1/24", "192.0.2.77/24"].map(|it| it.parse().unwrap());
    bench.testbed.host(0).set_addresses(addresses).await.unwrap();
    network.drifted().await.unwrap();
    for _ in 0..2 {
        timeout(Duration::from_secs(1), network.sync(&peers)).await.unwrap_err();
        timeout(Duration::from_secs(10), network.drifted()).await.expect("there is more").unwrap();
    }
    let others_turn = timeout(Duration::from_secs(10), network.sync(&peers));
    let report = others_turn.await.expect("the third does not wait for it").unwrap();
    assert_eq!(bench.log(), ["10.244.8.0/24", "10.244.9.0/24"]);
    assert_eq!((report.drifted, report.replaced), (1, 1), "it is added again");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_teardown_goes_on_where_it_failed() {
    let bench = Bench::new(
        r#""SubnetAddCommand": "mkdir DIR/${SUBNET%%/*}",
        "SubnetRemoveCommand": "rmdir DIR/${SUBNET%%/*}""#,
    )
    .await;
    let backend = bench.backend();
    let own = bench.own(&backend).await;
    let mut network = backend.start(&own).await.unwrap();
    let peers = bench.peers(&own, &[peer(7, None), peer(8, None), peer(9, None)]);
    assert_eq!(network.sync(&peers).await.unwrap().problems, []);
    drop(network);
    let (namespace, record) =
        (bench.testbed.host(0).namespace(), bench.folder.path().join("record"));
    let stuck = bench.folder.path().join("10.244.8.0/stuck");
    fs::create_dir(&stuck).unwrap();
    for _ in 0..2 {
        let error = remove_all(namespace, &record).await.unwrap_err().to_string();
        assert!(error.contains("10.244.8.0-24"), "only that is left: {error}");
    }
    fs::remove_dir(stuck).unwrap();
    remove_all(namespace, &record).await.unwrap();
    assert!(!record.exists());
}
