//! API servers that go away and come back.

use std::net::TcpListener;

use flannel_testbed::soon;

use super::*;

#[tokio::test]
async fn a_server_that_is_killed_a_hundred_times_while_objects_come_and_go_costs_none() {
    let names: Vec<_> = (0..9).map(|n| format!("n{n}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    for metadata_only in [false, true] {
        let mut server = server(3);
        let mut reflector = reflector(&server, metadata_only);
        soon(reflector.next()).await.unwrap();
        for round in 0..50_u8 {
            server.stop();
            // What happens while nobody can hear of it; n1 stays.
            let n = 2 + round % 7;
            let (name, block) = (format!("n{n}"), format!("10.244.{}.0/24", n + round));
            server.delete("nodes", &name);
            let blocks = [block.as_str()];
            let is_late = round % 3 == 1;
            if round % 3 != 2 {
                // Perhaps one of that name again, with another uid.
                server.add_node(&name, if is_late { &[] } else { &blocks }, true);
            }
            if round % 4 == 0 {
                server.compact();
            }
            server.behave(|it| {
                it.watch_list = round % 5 != 1;
                it.expired_watches = usize::from(round % 6);
                it.refusal = match round % 7 {
                    2 => Some((Refusal::new(403, "Forbidden", "no roles yet"), 1)),
                    5 => Some((Refusal::new(500, "InternalError", "no leader"), 2)),
                    _ => None,
                };
            });
            server.resume().unwrap();
            let follow = async {
                while round % 10 != 9 || known(&reflector) != truth(&server, &names) {
                    let change = reflector.next().await;
                    let stays = reflector.objects().contains_key("n1");
                    assert!(stays, "{change:?} removes what is there all the time");
                }
            };
            // It is killed again from before it was connected to until all is known.
            let patience = Duration::from_millis(u64::from(round) * 7 % 40);
            let patience = if round % 10 == 9 { Duration::from_secs(30) } else { patience };
            let outcome = timeout(patience, follow).await;
            assert!(outcome.is_ok() || round % 10 != 9, "round {round}: {:?}", known(&reflector));
            if is_late {
                server.patch("nodes", &name, &json!({"spec": {"podCIDR": block}}));
            }
        }
        until_true(&mut reflector, &server, &names).await;
    }
}

#[tokio::test]
async fn a_server_that_is_away_is_told_once_more_when_it_is_back() {
    let mut server = server(3);
    let mut reflector = reflector(&server, true);
    soon(reflector.next()).await.unwrap();
    server.stop();
    let error = soon(reflector.next()).await.unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    assert!(soon(reflector.next()).await.is_err());
    server.resume().unwrap();
    let recovered = async {
        loop {
            if let Ok(change) = reflector.next().await {
                return change;
            }
        }
    };
    assert_eq!(soon(recovered).await, Reflection::Reset);
    assert_eq!(reflector.objects().len(), 3);
}

#[tokio::test]
async fn what_a_watch_cannot_get_past_is_listed() {
    for metadata_only in [false, true] {
        let mut server = server(3);
        let mut reflector = reflector(&server, metadata_only);
        soon(reflector.next()).await.unwrap();
        server.behave(|it| it.broken_watches = true);
        server.stop();
        server.add_node("n4", &["10.244.4.0/24"], true);
        server.resume().unwrap();
        until_true(&mut reflector, &server, &["n1", "n2", "n3", "n4"]).await;
    }
}

#[tokio::test]
async fn a_server_that_comes_back_with_an_older_state_is_listed_again() {
    for metadata_only in [false, true] {
        let server = server(9);
        let mut reflector = reflector(&server, metadata_only);
        soon(reflector.next()).await.unwrap();
        let address = server.url().strip_prefix("http://").unwrap().to_owned();
        drop(server);
        let restored = FakeApiServer::start(move || TcpListener::bind(&address)).unwrap();
        restored.add_node("n1", &["10.244.1.0/24"], true);
        until_true(&mut reflector, &restored, &["n1"]).await;
        assert_eq!(reflector.objects().len(), 1);
    }
}
