//! What a node tells of itself: its condition and events.

use super::*;
use flannel_testbed::soon;

#[tokio::test]
async fn the_condition_is_told_once_and_kept() {
    let cluster = Cluster::of_nodes(1);
    let (ready, is_ready) = watch::channel(false);
    let condition = cluster.store("n1").condition();
    let keeping = tokio::spawn(condition.keep(is_ready));
    let status = || {
        let node = cluster.server.get("nodes", "n1").unwrap();
        let conditions = node["status"]["conditions"].as_array().unwrap().clone();
        assert_eq!(conditions[0]["type"], "Ready", "others' conditions stay");
        conditions.into_iter().find(|it| it["type"] == "NetworkUnavailable")
    };
    sleep(Duration::from_millis(300)).await;
    assert_eq!(status(), None);
    ready.send(true).unwrap();
    until("the condition is told", || status().is_some_and(|it| it["status"] == "False")).await;
    assert_eq!(status().unwrap()["reason"], "FlannelIsUp");
    let patches = || {
        let asked = cluster.server.take_requests();
        asked.iter().filter(|it| it.method == "PATCH").count()
    };
    patches();
    // A cloud's controller says otherwise.
    let other = json!({"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"});
    cluster.server.patch("nodes", "n1", &json!({"status": {"conditions": [other]}}));
    until("it is put right", || status().is_some_and(|it| it["status"] == "False")).await;
    assert_eq!(patches(), 1);
    drop(ready);
    soon(keeping).await.unwrap();
}

/// The node's events: reason, message, how often, and whether it is a warning.
fn told(server: &FakeApiServer) -> Vec<(String, String, u64, String)> {
    let events = server.names("events").into_iter().map(|key| server.get("events", &key).unwrap());
    let events = events.map(|event| {
        let text = |name: &str| event[name].as_str().unwrap().to_owned();
        assert_eq!(event["involvedObject"]["name"], "n1");
        assert!(event["lastTimestamp"].as_str().unwrap().ends_with('Z'));
        (text("reason"), text("message"), event["count"].as_u64().unwrap(), text("type"))
    });
    events.collect()
}

fn warning(reason: &'static str, message: &str) -> Notice {
    Notice { reason, message: message.into(), ends: None }
}

#[tokio::test]
async fn what_is_the_case_for_long_is_an_event_of_the_node() {
    let cluster = Cluster::of_nodes(1);
    let (notices, present) = watch::channel(vec![warning("PeerUnusable", "peer 10.3.2.0/24")]);
    let keeping = tokio::spawn(cluster.store("n1").events().keep(present));
    until("it is told", || !told(&cluster.server).is_empty()).await;
    let expected = ("PeerUnusable".into(), "peer 10.3.2.0/24".into(), 1, "Warning".into());
    assert_eq!(told(&cluster.server), [expected]);
    assert_eq!(cluster.server.names("events")[0].split('.').next(), Some("default/n1"));
    drop(notices);
    soon(keeping).await.unwrap();
}

#[tokio::test]
async fn without_the_right_to_events_none_are_asked_for_all_the_time() {
    let cluster = Cluster::of_nodes(1);
    cluster.server.behave(|it| it.forbidden = vec![("POST".into(), "events".into())]);
    let (_notices, present) = watch::channel(vec![warning("A", "x"), warning("B", "y")]);
    let _keeping = tokio::spawn(cluster.store("n1").events().keep(present));
    let mut attempts = 0;
    until("it is refused", || {
        attempts += cluster.server.take_requests().len();
        attempts > 0
    })
    .await;
    sleep(Duration::from_secs(2)).await;
    // One, and more only if this machine stood still.
    attempts += cluster.server.take_requests().len();
    assert!(attempts < 5, "{attempts} requests");
    assert_eq!(told(&cluster.server), []);
}
