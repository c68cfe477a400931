//! What happens to one node, to the API server and to clocks, seen by two nodes that stay.

use std::{fs, path::Path, path::PathBuf, process::Command, time::Duration};

use flannel_testbed::probe;
use serde_json::json;
use tokio::time::sleep;

use crate::cluster::{Cluster, eventually, ipv4};

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh kube"]
async fn two_nodes_lose_no_packet_whatever_happens_to_a_third_and_to_what_they_are_told() {
    let cluster = Cluster::new(3, &ipv4("vxlan")).await;
    let (server, folder) = (&cluster.server, cluster.folder.path());
    let (token, kubeconfig) = (folder.join("token"), folder.join("kubeconfig"));
    fs::write(&token, "first").unwrap();
    server.behave(|it| it.token = Some("first".into()));
    let config = json!({
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": server.url()}}],
        "users": [{"name": "u", "user": {"tokenFile": token}}],
    });
    fs::write(&kubeconfig, config.to_string()).unwrap();
    // The two that stay agree on no clock, with each other or with the third.
    let mut nodes = Vec::new();
    for (n, days) in [(0, 1), (1, -1), (2, 0)] {
        let mut command = cluster.ours(n);
        command.arg("-kubeconfig-file").arg(&kubeconfig);
        command.env("LD_PRELOAD", clock_of_another_day(folder, days));
        nodes.push(cluster.start(n, command).await);
    }
    eventually("they tell their conditions", async || {
        [0, 1].iter().all(|n| cluster.condition(*n).is_some())
    })
    .await;
    let told = [0, 1].map(|n| cluster.condition(n).unwrap()["lastTransitionTime"].take());
    let told = told.map(|time| humantime::parse_rfc3339(time.as_str().unwrap()).unwrap());
    let apart = told[0].duration_since(told[1]).expect("the first is ahead");
    assert!(apart > Duration::from_secs(47 * 3600), "{apart:?}");
    let pods = cluster.connected_pods().await;
    let stream = probe::stream(&pods[0], pods[1].ip(), 100).unwrap();
    let stay = [0, 1];

    for is_late in [false, true] {
        server.delete("nodes", "node2");
        cluster.converged(&stay, &[], &[2]).await;
        server.add_node("node2", if is_late { &[] } else { &["10.244.2.0/24"] }, true);
        if is_late {
            sleep(Duration::from_secs(2)).await;
            cluster.converged(&stay, &[], &[2]).await;
            let spec = json!({"podCIDR": "10.244.2.0/24", "podCIDRs": ["10.244.2.0/24"]});
            server.patch("nodes", "node2", &json!({ "spec": spec }));
        }
        cluster.converged(&stay, &[2], &[]).await;
        eventually("pods reach each other", async || probe::reachability(&pods).await.complete())
            .await;
    }

    // Whoever goes on, or lists, is told that what it knows is too old.
    for n in 100..110 {
        server.behave(|it| it.expired_watches = 4);
        cluster.add_stranger(&format!("extra{n}"), n);
        server.compact();
        server.cut_streams();
        sleep(Duration::from_millis(200)).await;
    }
    server.behave(|it| it.expired_watches = 0);
    cluster.converged(&stay, &(100..110).collect::<Vec<_>>(), &[]).await;

    // The token that they have is good no more, and then there is another one in its place.
    server.behave(|it| it.token = Some("second".into()));
    server.cut_streams();
    for n in 100..110 {
        server.delete("nodes", &format!("extra{n}"));
    }
    sleep(Duration::from_secs(2)).await;
    fs::write(&token, "second").unwrap();
    cluster.converged(&[0, 1, 2], &[], &(100..110).collect::<Vec<_>>()).await;
    assert!(probe::reachability(&pods).await.complete());
    let report = stream.stop().await;
    assert_eq!(report.lost, 0, "{report}");
}

/// A library that moves the wall clock of whoever loads it by some days.
fn clock_of_another_day(folder: &Path, days: i32) -> PathBuf {
    let (source, library) = (folder.join("clock.c"), folder.join(format!("clock{days}.so")));
    let text = "#include <sys/syscall.h>\n#include <time.h>\n#include <unistd.h>\n\
        int clock_gettime(clockid_t id, struct timespec *at) {\n\
            long result = syscall(SYS_clock_gettime, id, at);\n\
            if (id == CLOCK_REALTIME) at->tv_sec += DAYS * 86400L;\n\
            return result;\n\
        }\n";
    fs::write(&source, text).unwrap();
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source);
    let status = command.arg(format!("-DDAYS={days}")).status().expect("a C compiler");
    assert!(status.success(), "{command:?}: {status}");
    library
}
