//! The userspace engine over minutes, which cost nothing where time is virtual.

mod once {
    use std::time::Duration;

    use flannel_core::Backend;
    use flannel_testbed::probe;
    use tokio::time::sleep;

    use crate::lab::{IPV4, Lab};

    /// Keys are replaced after 120 s, and refused after 180 s.
    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "needs another kernel: run ./ci.sh vm"]
    async fn sessions_are_renewed_while_packets_flow_and_none_is_lost() {
        let lab = Lab::new(&[IPV4; 2]).await;
        assert!(lab.reaches(0, 1).await);
        let before = [0, 1].map(|n| lab.count(n, "handshakes_received"));
        let stream = probe::stream(&lab.pods[0], lab.pods[1].ip(), 10).unwrap();
        sleep(Duration::from_secs(400)).await;
        let report = stream.stop().await;
        let handshakes = [0, 1].map(|n| lab.count(n, "handshakes_received") - before[n]);
        println!("{report}; {handshakes:?} messages of handshakes");
        assert!(report.sent >= 3900 && report.lost == 0, "{report}");
        // At 120, 240 and 360 s, each a message to either end.
        assert!(handshakes.iter().all(|it| *it >= 3), "{handshakes:?}");
        for node in &lab.nodes {
            let counters = node.backend.report().counters;
            assert_eq!(counters["dropped_no_session"], 0, "{counters:?}");
        }
    }
}
