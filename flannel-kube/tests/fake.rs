//! The client and the reflector against an API server with faults on demand.

#[path = "fake/incomplete.rs"]
mod incomplete;
#[path = "fake/outages.rs"]
mod outages;
#[path = "fake/recorded.rs"]
mod recorded;

use std::{collections::BTreeMap, fs, sync::Arc, time::Duration};

use flannel_core::Backoff;
use flannel_kube::{
    Client, ClientConfig, Credentials, Merged, NodeView, ObjectMeta, Projection, Reason,
    Reflection, Reflector, ReflectorOptions, RequestError, Resource,
};
use flannel_testbed::{
    kube::{FakeApiServer, Refusal, Request},
    soon,
};
use serde_json::json;
use tokio::time::{Instant, timeout};

/// Keeps the first block of addresses and one annotation.
struct Blocks;

impl Projection for Blocks {
    type Kept = (String, String);

    fn project(&self, _: &Arc<str>, object: &str) -> Result<Self::Kept, serde_json::Error> {
        let node: NodeView<'_> = serde_json::from_str(object)?;
        let note = node.metadata.annotations.get("note").map(ToString::to_string);
        Ok((node.spec.pod_cidr.into_owned(), note.unwrap_or_default()))
    }

    fn merge(
        &self,
        _: &Arc<str>,
        metadata: &ObjectMeta<'_>,
        known: Option<&Self::Kept>,
    ) -> Merged<Self::Kept> {
        match known {
            Some((block, _)) if !block.is_empty() => {
                let note = metadata.annotations.get("note").map(ToString::to_string);
                Merged::Complete((block.clone(), note.unwrap_or_default()))
            }
            _ => Merged::Incomplete,
        }
    }
}

fn client(server: &FakeApiServer) -> Client {
    Client::new(ClientConfig::anonymous(server.url().parse().unwrap()))
}

fn reflector(server: &FakeApiServer, metadata_only: bool) -> Reflector<Blocks> {
    let options = ReflectorOptions {
        metadata_only,
        protobuf: metadata_only,
        quiet_limit: Duration::from_secs(2),
        page: 3,
        backoff: Backoff::new(Duration::from_millis(10), Duration::from_millis(100)),
        ..ReflectorOptions::default()
    };
    Reflector::new(client(server), Resource::cluster("nodes"), Blocks, options)
}

fn server(nodes: u8) -> FakeApiServer {
    let server = FakeApiServer::on_loopback();
    for n in 1..=nodes {
        server.add_node(&format!("n{n}"), &[&format!("10.244.{n}.0/24")], true);
    }
    server
}

fn note(server: &FakeApiServer, node: &str, text: &str) {
    server.patch("nodes", node, &json!({"metadata": {"annotations": {"note": text}}}));
}

type Known = BTreeMap<String, (String, String)>;

fn known(reflector: &Reflector<Blocks>) -> Known {
    reflector.objects().iter().map(|(name, kept)| (name.to_string(), kept.clone())).collect()
}

fn truth(server: &FakeApiServer, names: &[&str]) -> Known {
    let kept = |name: &&str| {
        let node = server.get("nodes", name)?;
        let block = node["spec"]["podCIDR"].as_str().unwrap_or_default().to_owned();
        let note = node["metadata"]["annotations"]["note"].as_str().unwrap_or_default().to_owned();
        Some((name.to_string(), (block, note)))
    };
    names.iter().filter_map(kept).collect()
}

/// Follows until what is known is true; the errors on the way are counted.
async fn until_true(
    reflector: &mut Reflector<Blocks>,
    server: &FakeApiServer,
    names: &[&str],
) -> usize {
    let mut errors = 0;
    let follow = async {
        while known(reflector) != truth(server, names) {
            errors += usize::from(reflector.next().await.is_err());
        }
    };
    soon(follow).await;
    errors
}

#[tokio::test]
async fn a_snapshot_is_whole_by_stream_and_by_pages() {
    for watch_list in [true, false] {
        let server = server(10);
        server.behave(|it| it.watch_list = watch_list);
        let mut reflector = reflector(&server, false);
        assert_eq!(soon(reflector.next()).await.unwrap(), Reflection::Reset);
        assert_eq!(reflector.objects().len(), 10);
        let asked = server.take_requests();
        let pages = asked.iter().filter(|it| it.query.contains("limit=3")).count();
        assert_eq!(pages, if watch_list { 0 } else { 4 });
    }
}

#[tokio::test]
async fn news_waits_behind_a_heartbeat_and_only_once() {
    let server = server(2);
    let lull = Duration::from_secs(4);
    let options = ReflectorOptions { metadata_only: true, lull, ..ReflectorOptions::default() };
    let client = client(&server);
    let mut reflector = Reflector::new(client, Resource::cluster("nodes"), Blocks, options);
    soon(reflector.next()).await.unwrap();
    let beat = |n: u8| {
        let labels = json!({"beat": n.to_string()});
        server.patch("nodes", "n2", &json!({"metadata": {"labels": labels}}));
    };
    let mut told = Vec::new();
    for before in ["nothing", "news", "a heartbeat"] {
        if before == "a heartbeat" {
            beat(0);
            // It is read, and nothing of it is told.
            assert!(timeout(lull / 4, reflector.next()).await.is_err());
            (1..5).for_each(beat);
        }
        let since = Instant::now();
        note(&server, "n1", before);
        soon(reflector.next()).await.unwrap();
        told.push(since.elapsed());
    }
    assert_eq!(known(&reflector), truth(&server, &["n1", "n2"]));
    assert!(told[0].max(told[1]) < lull / 2, "{told:?}");
    assert!(told[2] > lull / 2 && told[2] < 2 * lull, "{told:?}");
}

#[tokio::test]
async fn servers_without_protobuf_send_json_and_the_same_comes_out() {
    let mut found = Vec::new();
    for protobuf in [false, true] {
        let server = server(4);
        server.behave(|it| it.protobuf = protobuf);
        let mut reflector = reflector(&server, true);
        soon(reflector.next()).await.unwrap();
        note(&server, "n1", "quoted \"\u{e9}\n");
        server.delete("nodes", "n2");
        server.add_node("late", &[], true);
        server.patch("nodes", "late", &json!({"spec": {"podCIDR": "10.244.9.0/24"}}));
        until_true(&mut reflector, &server, &["n1", "n2", "n3", "n4", "late"]).await;
        assert_eq!(reflector.malformed(), 0);
        let watches = server.take_requests();
        let watches = watches.iter().filter(|it| it.query.contains("watch=true"));
        assert!(watches.clone().count() > 1);
        let is_asked = |it: &Request| it.accept.starts_with("application/vnd.kubernetes.protobuf");
        assert!(watches.clone().all(is_asked), "protobuf first");
        assert!(watches.clone().all(|it| it.accept.contains(",application/json")), "JSON else");
        found.push(known(&reflector));
    }
    assert_eq!(found[0], found[1]);
}

#[tokio::test]
async fn changes_come_one_by_one_and_what_changes_nothing_is_silent() {
    for metadata_only in [false, true] {
        let server = server(2);
        let mut reflector = reflector(&server, metadata_only);
        soon(reflector.next()).await.unwrap();
        note(&server, "n1", "a");
        let block = |n: u8| format!("10.244.{n}.0/24");
        let before = Some((block(1), String::new()));
        assert_eq!(
            soon(reflector.next()).await.unwrap(),
            Reflection::Upserted("n1".into(), before)
        );
        // A heartbeat.
        server.patch("nodes", "n2", &json!({"status": {"capacity": {"cpu": "9"}}}));
        server.add_node("n3", &["10.244.3.0/24"], true);
        assert_eq!(soon(reflector.next()).await.unwrap(), Reflection::Upserted("n3".into(), None));
        server.delete("nodes", "n1");
        let gone = Reflection::Deleted("n1".into(), (block(1), "a".into()));
        assert_eq!(soon(reflector.next()).await.unwrap(), gone);
        assert_eq!(known(&reflector), truth(&server, &["n1", "n2", "n3"]));
    }
}

#[tokio::test]
async fn a_node_whose_block_comes_late_is_read_whole() {
    let server = server(1);
    let mut reflector = reflector(&server, true);
    soon(reflector.next()).await.unwrap();
    server.add_node("late", &[], true);
    until_true(&mut reflector, &server, &["n1", "late"]).await;
    server.patch("nodes", "late", &json!({"spec": {"podCIDR": "10.244.9.0/24"}}));
    until_true(&mut reflector, &server, &["n1", "late"]).await;
    let sent = server.bytes_sent();
    note(&server, "n1", "x");
    until_true(&mut reflector, &server, &["n1", "late"]).await;
    assert!(server.bytes_sent() - sent < 4000, "images were sent");
}

#[tokio::test]
async fn cut_and_silent_streams_and_lost_history_lose_nothing() {
    let names = ["n1", "n2", "n3", "n4", "n5"];
    for metadata_only in [false, true] {
        let server = server(3);
        let mut reflector = reflector(&server, metadata_only);
        soon(reflector.next()).await.unwrap();
        server.cut_streams();
        note(&server, "n1", "after a cut");
        until_true(&mut reflector, &server, &names).await;
        // Both sides keep the connection, and nothing comes.
        note(&server, "n1", "so that a watch is open");
        until_true(&mut reflector, &server, &names).await;
        server.silence_streams();
        server.delete("nodes", "n2");
        assert!(until_true(&mut reflector, &server, &names).await > 0, "the silence is told");
        server.cut_streams();
        server.delete("nodes", "n3");
        server.add_node("n4", &["10.244.4.0/24"], false);
        server.compact();
        until_true(&mut reflector, &server, &names).await;
        // A storm.
        server.behave(|it| it.expired_watches = 10);
        server.cut_streams();
        server.add_node("n5", &["10.244.5.0/24"], false);
        until_true(&mut reflector, &server, &names).await;
    }
}

#[tokio::test]
async fn half_a_list_is_no_snapshot() {
    let server = Arc::new(server(3));
    server.behave(|it| it.watch_list = false);
    let mut reflector = reflector(&server, false);
    soon(reflector.next()).await.unwrap();
    for n in 4..=9 {
        server.add_node(&format!("n{n}"), &[], false);
    }
    server.take_requests();
    server.compact();
    // The first page comes, and then nobody knows any more what the second one belongs to.
    server.behave(|it| it.delay = Duration::from_millis(50));
    let disturbed = Arc::clone(&server);
    let disturber = tokio::spawn(async move {
        let mut times = 0;
        while times < 2 {
            let asked = disturbed.take_requests();
            if asked.iter().any(|it| it.query.contains("continue")) {
                disturbed.compact();
                times += 1;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let (mut seen, mut errors) = (Vec::new(), 0);
    let follow = async {
        while !disturber.is_finished() || reflector.objects().len() != 9 {
            match reflector.next().await {
                Ok(_) => seen.push(reflector.objects().len()),
                Err(_) => errors += 1,
            }
        }
    };
    soon(follow).await;
    // Old or new, and nothing in between.
    assert!(seen.iter().all(|count| [3, 9].contains(count)), "{seen:?}");
    assert!(errors >= 1, "{errors}");
}

#[tokio::test]
async fn refusals_have_the_servers_words_and_busy_servers_are_asked_again() {
    let server = server(1);
    let client = client(&server);
    let nodes = Resource::cluster("nodes");
    let refuse = |refusal: Refusal, times| server.behave(|it| it.refusal = Some((refusal, times)));
    refuse(Refusal::new(403, "Forbidden", "nodes is forbidden: User \"x\" cannot get"), 1);
    let error = soon(client.get(&nodes, "n1")).await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot get nodes/n1 at {}/", server.url()));
    let words = "403 Forbidden: nodes is forbidden: User \"x\" cannot get";
    assert_eq!(error.reason.to_string(), words);
    let busy = Refusal { retry_after: Some(1), ..Refusal::new(429, "TooManyRequests", "busy") };
    refuse(busy.clone(), 2);
    let began = Instant::now();
    soon(client.get(&nodes, "n1")).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(2));
    let patient = Refusal { retry_after: Some(60), ..busy };
    refuse(patient, 1);
    let error = soon(client.get(&nodes, "n1")).await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(60)));
    let error = soon(client.get(&nodes, "nobody")).await.unwrap_err();
    assert!(error.is_not_found());
}

#[tokio::test]
async fn no_answer_is_to_be_compressed_and_one_that_is_all_the_same_is_refused_by_name() {
    let server = server(3);
    for watch_list in [true, false] {
        server.behave(|it| it.watch_list = watch_list);
        soon(reflector(&server, watch_list).next()).await.unwrap();
    }
    let (client, nodes) = (client(&server), Resource::cluster("nodes"));
    soon(client.get(&nodes, "n1")).await.unwrap();
    let asked = server.take_requests();
    assert!(asked.len() >= 4 && asked.iter().all(|it| it.accept_encoding.is_empty()), "{asked:?}");
    server.behave(|it| it.compresses_unasked = true);
    let error = soon(client.list(&nodes, 9, |_| {})).await.unwrap_err();
    assert!(error.reason.to_string().contains("in the encoding gzip, which was not"), "{error:?}");
}

#[tokio::test]
async fn a_token_that_expired_is_replaced_by_what_is_in_its_file() {
    let server = server(1);
    server.behave(|it| it.token = Some("new".into()));
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "old").unwrap();
    let mut config = ClientConfig::anonymous(server.url().parse().unwrap());
    config.credentials = Credentials::TokenFile(file.path().into());
    let client = Client::new(config);
    let nodes = Resource::cluster("nodes");
    let unauthorized = |error: &RequestError| error.status().is_some_and(|it| it.code == 401);
    assert!(unauthorized(&soon(client.get(&nodes, "n1")).await.unwrap_err()));
    fs::write(file.path(), "new\n").unwrap();
    soon(client.get(&nodes, "n1")).await.unwrap();
}

#[tokio::test]
async fn a_request_that_cannot_be_written_is_an_error() {
    let server = server(1);
    let nodes = Resource::cluster("nodes");
    let mut config = ClientConfig::anonymous(server.url().parse().unwrap());
    config.user_agent = "two\nlines".into();
    let error = soon(Client::new(config).get(&nodes, "n1")).await.unwrap_err();
    assert!(matches!(error.reason, Reason::Request(_)), "{error:?}");
    // More than a URL may have.
    let next = "x".repeat(70_000);
    let page = json!({"metadata": {"resourceVersion": "1", "continue": next}, "items": []});
    server.answer_with(move |_| Some((200, page.to_string().into())));
    let error = soon(client(&server).list(&nodes, 1, |_| {})).await.unwrap_err();
    assert!(matches!(error.reason, Reason::Request(_)), "{error:?}");
}

#[tokio::test]
async fn patches_change_what_they_name() {
    let server = server(1);
    let client = client(&server);
    let nodes = Resource::cluster("nodes");
    let patch = json!({
        "metadata": {"annotations": {"a": "b"}},
        "spec": {"podCIDR": "10.9.9.0/24"},
        "status": {"conditions": [{"type": "NetworkUnavailable", "status": "False"}]},
    });
    let patched =
        soon(client.patch(&nodes, "n1", Some("status"), patch.to_string())).await.unwrap();
    let node: NodeView<'_> = serde_json::from_slice(&patched).unwrap();
    assert_eq!(node.metadata.annotations["a"], "b");
    assert_eq!(node.spec.pod_cidr, "10.244.1.0/24", "not a part of the status");
    let kinds: Vec<_> = node.status.conditions.iter().map(|it| &*it.kind).collect();
    assert_eq!(kinds, ["Ready", "NetworkUnavailable"]);
}

#[tokio::test]
async fn an_object_that_is_none_costs_only_itself() {
    let server = server(1);
    server.put("nodes", "odd", json!({"metadata": {"name": "odd"}, "spec": {"podCIDR": 7}}));
    let mut reflector = reflector(&server, false);
    soon(reflector.next()).await.unwrap();
    assert_eq!((reflector.objects().len(), reflector.malformed()), (1, 1));
    server.put("nodes", "n1", json!({"metadata": {"name": "n1"}, "spec": {"podCIDR": 7}}));
    assert!(matches!(soon(reflector.next()).await.unwrap(), Reflection::Deleted(..)));
    server.add_node("n1", &["10.244.1.0/24"], false);
    assert!(matches!(soon(reflector.next()).await.unwrap(), Reflection::Upserted(..)));
}

#[tokio::test]
async fn dropping_a_reflector_closes_its_connection() {
    let server = server(1);
    let mut reflector = reflector(&server, false);
    soon(reflector.next()).await.unwrap();
    assert_eq!(server.open_streams(), 1);
    drop(reflector);
    let closed = async {
        while server.open_streams() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(closed).await;
}

#[tokio::test]
async fn nobody_listens_there() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = Client::new(ClientConfig::anonymous(url.parse().unwrap()));
    let error = soon(client.get(&Resource::cluster("nodes"), "n1")).await.unwrap_err();
    assert!(matches!(error.reason, Reason::Connect { step: "connect", .. }), "{error:?}");
}
