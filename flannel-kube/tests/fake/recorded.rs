//! What a real API server answered, replayed: by a server, and to the parsers. `recordings/record.py` records it anew.

use base64::{Engine, engine::general_purpose::STANDARD};
use flannel_testbed::{kube::Body, soon};

use super::*;

/// A question and its answer.
struct Recording {
    method: String,
    /// The path, and what of the query tells requests from each other.
    path: String,
    query: String,
    code: u16,
    body: Body,
}

impl Recording {
    fn text(&self) -> &str {
        let Body::Text(text) = &self.body else { panic!("it is protobuf") };
        text
    }
}

fn recording(name: &str) -> Recording {
    let path = format!("{}/tests/recordings/{name}.http", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let (question, answer) = text.split_once("\n\n").unwrap();
    let (method, target) = question.lines().next().unwrap().split_once(' ').unwrap();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    // Between a question with a body and its answer is that body.
    let answer =
        if answer.starts_with('{') { answer.split_once("\n\n").unwrap().1 } else { answer };
    let (head, body) = answer.split_once("\n\n").unwrap();
    let protobuf = || STANDARD.decode(body.replace('\n', "")).unwrap();
    let is_protobuf = head.contains("application/vnd.kubernetes.protobuf");
    Recording {
        method: method.into(),
        path: path.into(),
        query: query.into(),
        code: head.lines().next().unwrap().parse().unwrap(),
        body: if is_protobuf { Body::Protobuf(protobuf()) } else { body.into() },
    }
}

/// Answers as recorded. A watch and a list differ in that, and pages in the token; the rest of the query is each client's own.
fn replay(names: &[&str]) -> FakeApiServer {
    let server = FakeApiServer::on_loopback();
    let recordings: Vec<_> = names.iter().map(|name| recording(name)).collect();
    let kind = |query: &str| {
        ["watch=true", "sendInitialEvents=true", "continue="].map(|part| query.contains(part))
    };
    server.answer_with(move |request| {
        let asked = recordings.iter().find(|it| {
            (&it.method, &it.path, kind(&it.query))
                == (&request.method, &request.path, kind(&request.query))
        });
        asked.map(|it| (it.code, it.body.clone()))
    });
    server
}

fn names(reflector: &Reflector<Blocks>) -> Vec<&str> {
    reflector.objects().keys().map(|name| &**name).collect()
}

#[tokio::test]
async fn a_recorded_list_and_recorded_streams_are_the_same_snapshot() {
    let streamed = replay(&["watch-list"]);
    let in_protobuf = replay(&["watch-list-protobuf"]);
    let paged = replay(&["list-page-1", "list-page-2", "watch-list-refused"]);
    let mut snapshots = Vec::new();
    for server in [&streamed, &in_protobuf, &paged] {
        let mut reflector = reflector(server, true);
        assert_eq!(soon(reflector.next()).await.unwrap(), Reflection::Reset);
        assert_eq!(names(&reflector), ["n1", "n2", "n3"]);
        assert_eq!(reflector.objects()["n2"].0, "10.244.2.0/24");
        snapshots.push((known(&reflector), reflector.malformed()));
        // What it goes on from is what the server said.
        soon(reflector.next()).await.ok();
        let asked = server.take_requests();
        let version = recording("watch-metadata").query;
        let (_, version) = version.split_once("resourceVersion=").unwrap();
        let version = format!("&resourceVersion={}&", version.split_once('&').unwrap().0);
        assert!(asked.iter().any(|it| it.query.contains(&version)), "{version}: {asked:?}");
    }
    assert_eq!(snapshots[0], snapshots[1]);
    assert_eq!(snapshots[0], snapshots[2]);
    assert_eq!(snapshots[0].1, 0);
}

#[tokio::test]
async fn a_recorded_watch_of_metadata_is_followed_with_what_is_missing_read() {
    for recordings in
        [["watch-list", "watch-metadata"], ["watch-list-protobuf", "watch-metadata-protobuf"]]
    {
        let server = replay(&recordings);
        let mut reflector = reflector(&server, true);
        soon(reflector.next()).await.unwrap();
        // n4 is new: the server has it as n1 is, but for the name.
        let whole = recording("get").text().replace("\"n1\"", "\"n4\"");
        server.put("nodes", "n4", serde_json::from_str(&whole).unwrap());
        let follow = async {
            while names(&reflector) != ["n1", "n2", "n4"] {
                reflector.next().await.unwrap();
            }
        };
        soon(follow).await;
        assert_eq!(reflector.malformed(), 0);
        let asked = server.take_requests();
        let read: Vec<_> =
            asked.iter().filter(|it| it.query.is_empty()).map(|it| &*it.path).collect();
        assert_eq!(read[0], "/api/v1/nodes/n4");
    }
}

#[tokio::test]
async fn recorded_refusals_are_what_they_say() {
    let nodes = Resource::cluster("nodes");
    for (name, code, words) in [
        ("forbidden", 403, "403 Forbidden: nodes \"n1\" is forbidden: User \"nobody\" cannot get"),
        ("unauthorized", 401, "401 Unauthorized: Unauthorized"),
    ] {
        let server = replay(&[name]);
        let error = soon(client(&server).get(&nodes, "n1")).await.unwrap_err();
        assert_eq!(error.status().unwrap().code, code);
        assert!(error.reason.to_string().starts_with(words), "{}", error.reason);
    }
    let server = replay(&["not-found", "already-exists", "list-from-the-future"]);
    let client = client(&server);
    assert!(soon(client.get(&nodes, "nobody")).await.unwrap_err().is_not_found());
    let node = json!({"metadata": {"name": "n1"}}).to_string();
    assert!(soon(client.create(&nodes, node)).await.unwrap_err().is_conflict());
    let future = soon(client.list(&nodes, 2, |_| {})).await.unwrap_err();
    let status = future.status().unwrap();
    assert!(status.is_from_the_future && future.retry_after().is_some(), "{status:?}");
}

#[tokio::test]
async fn a_recorded_loss_of_history_is_followed_by_another_list() {
    for expired in ["watch-expired", "watch-expired-protobuf"] {
        let server = replay(&["watch-list", expired]);
        let mut reflector = reflector(&server, true);
        for _ in 0..3 {
            assert_eq!(soon(reflector.next()).await.unwrap(), Reflection::Reset);
            assert_eq!(names(&reflector), ["n1", "n2", "n3"]);
        }
    }
    let server = replay(&["watch-list-refused", "list-page-1", "list-expired"]);
    let mut reflector = reflector(&server, true);
    let error = soon(reflector.next()).await.unwrap_err();
    assert_eq!((error.status().unwrap().code, reflector.objects().len()), (410, 0));
}

#[tokio::test]
async fn a_recorded_answer_to_a_patch_is_the_node() {
    let server = replay(&["patch"]);
    let patch = json!({"metadata": {"annotations": {}}}).to_string();
    let nodes = Resource::cluster("nodes");
    let answer = soon(client(&server).patch(&nodes, "n1", Some("status"), patch)).await.unwrap();
    let node: NodeView<'_> = serde_json::from_slice(&answer).unwrap();
    let address = &node.metadata.annotations["flannel.alpha.coreos.com/public-ip"];
    assert_eq!((&*node.spec.pod_cidr, &**address), ("10.244.1.0/24", "192.0.2.1"));
}

/// The tests' server is as good as it is true.
#[tokio::test]
async fn the_tests_server_refuses_as_the_real_one_does() {
    let server = server(3);
    let client = client(&server);
    let nodes = Resource::cluster("nodes");
    let refused = |error: RequestError| {
        let status = error.status().unwrap();
        (status.code, status.reason.clone())
    };
    let real = |name: &str| {
        let body: serde_json::Value = serde_json::from_str(recording(name).text()).unwrap();
        (recording(name).code, body["reason"].as_str().unwrap().to_owned())
    };
    let missing = soon(client.get(&nodes, "nobody")).await.unwrap_err();
    assert_eq!(refused(missing), real("not-found"));
    let node = json!({"metadata": {"name": "n1"}}).to_string();
    assert_eq!(
        refused(soon(client.create(&nodes, node)).await.unwrap_err()),
        real("already-exists")
    );
    server.behave(|it| it.token = Some("t".into()));
    assert_eq!(refused(soon(client.get(&nodes, "n1")).await.unwrap_err()), real("unauthorized"));
    server.behave(|it| {
        it.token = None;
        it.forbidden = vec![("GET".into(), "nodes".into())];
    });
    assert_eq!(refused(soon(client.get(&nodes, "n1")).await.unwrap_err()), real("forbidden"));
}
