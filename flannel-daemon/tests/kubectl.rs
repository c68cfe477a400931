//! What `kubectl flannel` does, against an API server in this process.

use std::{
    future::pending,
    sync::{Mutex, mpsc},
    time::Duration,
};

use flannel_daemon::kubectl::{BenchOptions, ClusterAccess, KubectlError, bench, explain, status};
use flannel_kube::ClientConfig;
use flannel_testbed::{
    kube::{FakeApiServer, Request},
    soon,
};
use serde_json::{Value, json};
use tokio::time::sleep;

/// Two nodes with flannel's pods, and a pod of somebody else on each.
fn cluster() -> FakeApiServer {
    let server = FakeApiServer::on_loopback();
    for n in 1..=2 {
        let node = format!("n{n}");
        server.add_node(&node, &[&format!("10.3.{n}.0/24")], false);
        let annotations = json!({
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/backend-type": "host-gw",
            "flannel.alpha.coreos.com/public-ip": format!("192.0.2.{n}"),
        });
        server.patch("nodes", &node, &json!({"metadata": {"annotations": annotations}}));
        let name = format!("kube-flannel-ds-{n}");
        let mut flannel = pod(&name, &node, &format!("192.0.2.{n}"), json!({"app": "flannel"}));
        flannel["spec"]["containers"] = json!([
            {"name": "exporter", "image": "exporter:1", "ports": [{"containerPort": 9100}]},
            {"name": "kube-flannel", "image": "flannel-node:1"},
        ]);
        server.put("pods", &format!("kube-flannel/{name}"), flannel.clone());
        // The one that it has replaced.
        flannel["metadata"]["name"] = json!(format!("{name}-old"));
        flannel["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        server.put("pods", &format!("kube-flannel/{name}-old"), flannel);
        let web = format!("web-{n}");
        let web_pod = pod(&web, &node, &format!("10.3.{n}.2"), json!({"app": "web"}));
        server.put("pods", &format!("default/{web}"), web_pod);
    }
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}}});
    server.put("services", "default/web", service);
    server
}

fn pod(name: &str, node: &str, ip: &str, labels: Value) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": name, "labels": labels},
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "podIPs": [{"ip": ip}]},
    })
}

fn access(server: &FakeApiServer) -> ClusterAccess {
    let config = ClientConfig::anonymous(server.url().parse().unwrap());
    ClusterAccess::new(config, "kube-flannel", None)
}

/// The path behind the API server's proxy to flannel's pod on this node.
fn behind(request: &Request, n: u8) -> Option<&str> {
    let path = format!("/api/v1/namespaces/kube-flannel/pods/kube-flannel-ds-{n}%3A8081/proxy/");
    request.path.strip_prefix(&path)
}

#[tokio::test]
async fn status_is_what_nodes_and_their_programs_say() {
    let server = cluster();
    server.add_node("n3", &["10.3.3.0/24"], true);
    server.answer_with(|request| match (behind(request, 1), behind(request, 2)) {
        (Some("readyz"), _) => Some((200, "flannel-node is ready\npeers: one is odd\n".into())),
        (Some("metrics"), _) => Some((200, "flannel_mtu_bytes 1500\n".into())),
        (_, Some("readyz")) => {
            Some((503, "flannel-node is not ready\nlease: none is held\n".into()))
        }
        (_, Some(_)) => Some((404, "not found".into())),
        _ => None,
    });
    let shown = soon(status(&access(&server), "flannel.alpha.coreos.com")).await.unwrap();
    let expected = "\
NODE  SUBNET       ADDRESS    BACKEND  MTU   READY    PROBLEMS
n1    10.3.1.0/24  192.0.2.1  host-gw  1500  yes      peers: one is odd
n2    10.3.2.0/24  192.0.2.2  host-gw  -     no       lease: none is held
n3    10.3.3.0/24  -          -        -     unknown  it has no annotations of flannel's: no node of flannel has run there; no pod of flannel runs there
";
    assert_eq!(shown.to_string(), expected);
    assert!(!shown.is_ready());
}

#[tokio::test]
async fn a_node_object_that_cannot_be_read_is_a_problem_of_that_node() {
    let server = cluster();
    server.patch("nodes", "n2", &json!({"spec": {"podCIDRs": 7}}));
    server.answer_with(|request| match (behind(request, 1), behind(request, 2)) {
        (None, None) => None,
        _ => Some((200, "flannel-node is ready\n".into())),
    });
    let shown = soon(status(&access(&server), "flannel.alpha.coreos.com")).await.unwrap();
    assert!(!shown.is_ready());
    let text = shown.to_string();
    let row = text.lines().find(|line| line.starts_with("n2 ")).unwrap();
    assert!(row.contains("its Node object cannot be read"), "{text}");
}

#[tokio::test]
async fn what_nobody_has_the_right_to_is_named_with_verb_and_resource() {
    let server = cluster();
    server.behave(|it| it.forbidden = vec![("GET".into(), "pods".into())]);
    let error = soon(status(&access(&server), "x.y")).await.unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("cannot list pods in namespace kube-flannel at http://127"), "{text}");
    let KubectlError::Request(error) = error else { panic!("{error:?}") };
    assert!(error.is_forbidden());
}

#[tokio::test]
async fn both_nodes_explain_a_path_to_a_pod_and_to_those_behind_a_service() {
    let server = cluster();
    server.answer_with(|request| {
        let (n, path) = match (behind(request, 1), behind(request, 2)) {
            (Some(path), _) => (1, path),
            (_, Some(path)) => (2, path),
            _ => return None,
        };
        let query = request.query.split('&').map(|pair| pair.split_once('=').unwrap().1);
        let [source, destination] = query.collect::<Vec<_>>()[..] else { return None };
        let broken = (n == 2 && source != destination)
            .then(|| json!({"link": "route", "says": "none", "remedy": "add it"}));
        let explanation = json!({
            "source": source, "destination": destination,
            "passed": [{"link": "network", "says": "10.3.0.0/16"}], "broken": broken,
        });
        (path == "explain").then(|| (200, explanation.to_string().into()))
    });
    let explained = async |from: &str, to: &str| {
        let access = access(&server);
        soon(explain(&access, &from.parse().unwrap(), &to.parse().unwrap())).await
    };
    let report = explained("web-1", "default/web-2").await.unwrap();
    let expected = "\
default/web-1 (10.3.1.2 on n1) to default/web-2 (10.3.2.2 on n2)
  n1 says:
    ok      network           10.3.0.0/16
    10.3.1.2 and 10.3.2.2 reach each other, as far as this host can tell
  n2 says:
    ok      network           10.3.0.0/16
    broken  route             none
    remedy                    add it
";
    assert_eq!(report.to_string(), expected);
    assert!(!report.is_fine());
    // A service by its bare name, and by its kind.
    for service in ["web", "svc/web"] {
        let text = explained("web-1", service).await.unwrap().to_string();
        assert!(
            text.contains("to default/web-1 (") && text.contains("to default/web-2 ("),
            "{text}"
        );
    }
    for (to, words) in [
        ("web-9", "cannot get services in namespace default/web-9"),
        ("pod/web", "cannot get pods in namespace default/web at"),
    ] {
        let error = explained("web-1", to).await.unwrap_err().to_string();
        assert!(error.starts_with(words), "{error}");
    }
    let error = explained("svc/web", "web-1").await.unwrap_err().to_string();
    assert!(error.starts_with("service default/web sends no packets"), "{error}");
    server.delete("pods", "kube-flannel/kube-flannel-ds-2-old");
    server.delete("pods", "kube-flannel/kube-flannel-ds-2");
    let text = explained("web-1", "web-2").await.unwrap().to_string();
    assert!(text.contains("no pod of flannel runs on the node n2"), "{text}");
}

#[tokio::test]
async fn nodes_that_do_not_explain_are_said_to_need_an_option() {
    let server = cluster();
    server.answer_with(|request| behind(request, 1).map(|_| (404, "there are /healthz".into())));
    let (from, to) = ("web-1".parse().unwrap(), "pod/web-1".parse().unwrap());
    let report = soon(explain(&access(&server), &from, &to)).await.unwrap();
    let text = report.to_string();
    assert!(!report.is_fine() && text.contains("start it with --healthz-explain"), "{text}");
}

fn options() -> BenchOptions {
    BenchOptions {
        from: "n1".into(),
        to: "n2".into(),
        length: Duration::from_secs(1),
        host_network: false,
    }
}

/// Those of the measurement.
fn bench_pods(server: &FakeApiServer) -> Vec<String> {
    server.names("pods").into_iter().filter(|name| name.contains("flannel-bench-")).collect()
}

/// Lets pods of the measurement become what a kubelet would make of them.
async fn be_kubelet(server: &FakeApiServer, phases: [Value; 2]) {
    for (ending, status) in ["-to", "-from"].iter().zip(phases) {
        let name = loop {
            match bench_pods(server).into_iter().find(|name| name.ends_with(ending)) {
                Some(name) => break name,
                None => sleep(Duration::from_millis(10)).await,
            }
        };
        server.patch("pods", &name, &json!({ "status": status }));
    }
    pending().await
}

#[tokio::test]
async fn a_measurement_leaves_no_pod_behind() {
    let measured = json!({
        "bits_per_second": 1e9, "seconds": 1.0, "round_trips": 10, "lost": 0, "median_us": 50.0, "p99_us": 90.0,
    });
    let log = format!("a line\n{measured}\n");
    let running = || json!({"phase": "Running", "podIPs": [{"ip": "10.3.2.7"}]});
    let waiting = json!({"containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}]});
    for (phases, expected) in [
        ([running(), json!({"phase": "Succeeded"})], Ok(10)),
        (
            [running(), json!({"phase": "Failed", "message": "out of memory"})],
            Err("failed: out of memory"),
        ),
        ([waiting, json!({})], Err("does not run: ErrImagePull no such image")),
    ] {
        let server = cluster();
        let log = log.clone();
        server.answer_with(move |request| {
            request.path.ends_with("/log").then(|| (200, log.clone().into()))
        });
        let (access, options) = (access(&server), options());
        let mut said = Vec::new();
        let outcome = soon(async {
            tokio::select! {
                outcome = bench(&access, &options, pending(), |line| said.push(line.to_owned())) => outcome,
                () = be_kubelet(&server, phases) => unreachable!("it goes on for ever"),
            }
        })
        .await;
        match (outcome, expected) {
            (Ok(measured), Ok(round_trips)) => {
                assert_eq!(measured.round_trips, round_trips);
                let made = server.take_requests().into_iter().filter(|it| it.method == "POST");
                let made: Vec<Value> =
                    made.map(|it| serde_json::from_str(&it.body).unwrap()).collect();
                let [to, from] = &made[..] else { panic!("{made:?}") };
                assert_eq!([&to["spec"]["nodeName"], &from["spec"]["nodeName"]], ["n2", "n1"]);
                assert_eq!(to["spec"]["containers"][0]["image"], "flannel-node:1");
                let args = from["spec"]["containers"][0]["args"].as_array().unwrap();
                assert!(args.contains(&json!("10.3.2.7:5281")), "{args:?}");
            }
            (Err(error), Err(words)) => {
                assert!(error.to_string().contains(words), "{error}");
            }
            (outcome, expected) => panic!("{outcome:?}, expected {expected:?}"),
        }
        assert_eq!(bench_pods(&server), [""; 0], "{said:?}");
    }
}

#[tokio::test]
async fn a_pod_whose_creation_was_not_confirmed_is_used() {
    let server = cluster();
    let (sent, bodies) = mpsc::channel();
    let (stored, is_stored) = mpsc::channel();
    let (sent, is_stored) = (Mutex::new(sent), Mutex::new(is_stored));
    server.answer_with(move |request| {
        (request.method == "POST").then(|| {
            sent.lock().unwrap().send(request.body.clone()).unwrap();
            is_stored.lock().unwrap().recv().unwrap();
            (409, "it is there".into())
        })
    });
    let (access, options) = (access(&server), options());
    let kubelet = async {
        let body = loop {
            match bodies.try_recv() {
                Ok(body) => break body,
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        };
        let mut pod: Value = serde_json::from_str(&body).unwrap();
        pod["status"] = json!({"phase": "Failed", "message": "it was looked at"});
        let key = format!("kube-flannel/{}", pod["metadata"]["name"].as_str().unwrap());
        server.put("pods", &key, pod);
        stored.send(()).unwrap();
        pending().await
    };
    let outcome = soon(async {
        tokio::select! {
            outcome = bench(&access, &options, pending(), |_| {}) => outcome,
            () = kubelet => unreachable!("it goes on for ever"),
        }
    })
    .await;
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("it was looked at"), "{error}");
    assert_eq!(bench_pods(&server), [""; 0]);
}

#[tokio::test]
async fn a_measurement_that_is_stopped_leaves_no_pod_behind() {
    let server = cluster();
    let (access, options) = (access(&server), options());
    let there = async {
        while bench_pods(&server).is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let outcome = soon(bench(&access, &options, there, |_| {})).await;
    assert!(matches!(outcome, Err(KubectlError::Stopped)), "{outcome:?}");
    assert_eq!(bench_pods(&server), [""; 0]);
    // The server works on the first pod after the client has gone.
    server.take_requests();
    server.behave(|it| it.delay = Duration::from_millis(300));
    let sent = async {
        while server.take_requests().iter().all(|request| request.method != "POST") {
            sleep(Duration::from_millis(10)).await;
        }
        server.behave(|it| it.delay = Duration::ZERO);
    };
    let outcome = soon(bench(&access, &options, sent, |_| {})).await;
    assert!(matches!(outcome, Err(KubectlError::Stopped)), "{outcome:?}");
    sleep(Duration::from_millis(500)).await;
    assert_eq!(bench_pods(&server), [""; 0]);
    let unknown = BenchOptions { to: "n9".into(), ..options };
    let error = soon(bench(&access, &unknown, pending(), |_| {})).await.unwrap_err();
    assert!(error.to_string().contains("no pod of flannel runs on the node n9"), "{error}");
}
