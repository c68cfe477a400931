//! Objects that cannot be read whole, beside others that can.

use std::sync::Mutex;

use flannel_testbed::soon;

use super::*;

const BAD: &str = "/api/v1/nodes/bad";

/// A reflector that knows n1, and a Node that is new and cannot be read.
async fn with_bad_node(
    break_it: impl FnOnce(&FakeApiServer),
) -> (FakeApiServer, Reflector<Blocks>) {
    let server = server(1);
    let mut reflector = reflector(&server, true);
    soon(reflector.next()).await.unwrap();
    note(&server, "n1", "so that a watch is open");
    change(&mut reflector).await;
    break_it(&server);
    server.add_node("bad", &["10.244.66.0/24"], true);
    (server, reflector)
}

fn refuse(server: &FakeApiServer) {
    server.answer_with(|request| (request.path == BAD).then(|| (500, "cannot decode it".into())));
}

fn say_nothing(server: &FakeApiServer) {
    server.behave(|it| it.unanswered = Some(BAD.into()));
}

/// What happens, which is no error.
async fn change(reflector: &mut Reflector<Blocks>) -> Reflection<(String, String)> {
    soon(reflector.next()).await.unwrap()
}

#[tokio::test]
async fn an_object_that_cannot_be_read_delays_no_other_and_is_retried() {
    let (server, mut reflector) = with_bad_node(refuse).await;
    for text in ["a", "b", "c"] {
        note(&server, "n1", text);
        let Reflection::Upserted(name, _) = change(&mut reflector).await else { panic!() };
        assert_eq!(&*name, "n1");
    }
    let mut attempts = 0;
    let retried = async {
        while attempts < 4 {
            let asked = timeout(Duration::from_millis(50), reflector.next()).await;
            assert!(asked.is_err(), "{asked:?} while nothing changes");
            attempts += server.take_requests().iter().filter(|it| it.path == BAD).count();
        }
    };
    soon(retried).await;
    server.answer_with(|_| None);
    assert_eq!(change(&mut reflector).await, Reflection::Upserted("bad".into(), None));
    assert_eq!(known(&reflector), truth(&server, &["n1", "bad"]));
}

#[tokio::test]
async fn an_object_that_is_never_answered_delays_no_other() {
    let (server, mut reflector) = with_bad_node(say_nothing).await;
    let names = ["n1", "n2", "n3", "n4", "n5", "n6"];
    for n in 2..=6 {
        server.add_node(&format!("n{n}"), &[&format!("10.244.{n}.0/24")], true);
        // It changes while it is being read.
        note(&server, "bad", &n.to_string());
        note(&server, &format!("n{n}"), "x");
    }
    assert_eq!(until_true(&mut reflector, &server, &names).await, 0);
    server.delete("nodes", "bad");
    server.behave(|it| it.unanswered = None);
    server.add_node("bad", &["10.244.67.0/24"], true);
    until_true(&mut reflector, &server, &["n1", "n2", "n3", "n4", "n5", "n6", "bad"]).await;
}

#[tokio::test]
async fn what_changes_while_it_is_read_is_read_again() {
    let (server, mut reflector) = with_bad_node(|server| {
        server.behave(|it| it.delay = Duration::from_millis(300));
    })
    .await;
    // The first answer is of before the change, and on its way when that is seen.
    let stale = Mutex::new(server.get("nodes", "bad"));
    let answer =
        move || stale.lock().unwrap().take().map(|object| (200, object.to_string().into()));
    server.answer_with(move |request| (request.path == BAD).then(&answer)?);
    let disturb = async {
        while !server.take_requests().iter().any(|it| it.path == BAD) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        note(&server, "bad", "later");
    };
    let (first, ()) = tokio::join!(change(&mut reflector), soon(disturb));
    assert_eq!(first, Reflection::Upserted("bad".into(), None));
    until_true(&mut reflector, &server, &["n1", "bad"]).await;
}

#[tokio::test]
async fn a_silent_watch_is_noticed_while_an_object_is_retried_and_by_who_waits_in_pieces() {
    let (server, mut reflector) = with_bad_node(refuse).await;
    server.silence_streams();
    note(&server, "n1", "unseen");
    let in_pieces = async {
        loop {
            if let Ok(change) = timeout(Duration::from_millis(100), reflector.next()).await {
                return change;
            }
        }
    };
    let error = soon(in_pieces).await.unwrap_err();
    assert!(matches!(error.reason, Reason::Silent { .. }), "{error:?}");
    until_true(&mut reflector, &server, &["n1"]).await;
}
