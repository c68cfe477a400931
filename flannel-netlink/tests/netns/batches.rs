use flannel_netlink::{Connection, Request, attributes};

use crate::support::fresh;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const NLM_F_CREATE_EXCL: u16 = 0x600;

fn link_named(name: &str, kind: &str) -> Request {
    let mut body = vec![0; 16];
    let mut attribute = |kind: u16, value: &[u8]| {
        body.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(value);
        body.resize(body.len().next_multiple_of(4), 0);
    };
    attribute(3, name.as_bytes());
    let mut info = Vec::new();
    info.extend(u16::try_from(4 + kind.len()).unwrap().to_ne_bytes());
    info.extend(1_u16.to_ne_bytes());
    info.extend(kind.as_bytes());
    attribute(18, &info);
    Request::new(RTM_NEWLINK, NLM_F_CREATE_EXCL, &body)
}

async fn names(connection: &mut Connection) -> Vec<String> {
    let list = Request::new(RTM_GETLINK, 0, &[0; 16]);
    let found = connection
        .dump(&list, |message| {
            let name = attributes(message.body.get(16..)?).find(|attribute| attribute.kind == 3)?;
            Some(name.text()?.to_owned())
        })
        .await;
    found.unwrap()
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn each_request_has_its_own_result() {
    let mut connection = Connection::open(&fresh()).unwrap();
    let results = connection
        .apply(&[
            link_named("br0", "bridge"),
            link_named("br0", "bridge"),
            link_named("x0", "no-such-kind"),
            link_named("br1", "bridge"),
        ])
        .await;
    assert_eq!(results.len(), 4);
    assert_eq!(results[0], Ok(()));
    assert!(results[1].as_ref().unwrap_err().exists());
    let unknown = results[2].as_ref().unwrap_err();
    assert!(unknown.unsupported());
    assert_eq!(unknown.message.as_deref(), Some("Unknown device type"));
    assert_eq!(results[3], Ok(()), "a failure does not stop those behind it");
    let found = names(&mut connection).await;
    assert!(["lo", "br0", "br1"].iter().all(|name| found.iter().any(|other| other == name)));
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn five_thousand_failures_are_all_told_apart() {
    let mut connection = Connection::open(&fresh()).unwrap();
    // Addresses for a device that does not exist, and every hundredth request is a good one.
    let mut requests = vec![Request::new(RTM_NEWADDR, 0, &[2, 32, 0, 0, 0xff, 0, 0, 0]); 5000];
    for (number, index) in (0..5000).step_by(100).enumerate() {
        requests[index] = link_named(&format!("br{number}"), "bridge");
    }
    let results = connection.apply(&requests).await;
    assert_eq!(results.len(), 5000);
    for (index, result) in results.iter().enumerate() {
        assert_eq!(result.is_ok(), index % 100 == 0, "request {index}: {result:?}");
        assert!(!result.as_ref().is_err_and(|error| error.outcome_unknown()), "{result:?}");
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn nothing_to_do_sends_nothing() {
    let mut connection = Connection::open(&fresh()).unwrap();
    assert!(connection.apply(&[]).await.is_empty());
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_listing_that_the_kernel_refuses_is_an_error() {
    let mut connection = Connection::open(&fresh()).unwrap();
    // Strict checking refuses a header field that is not a filter.
    let list = Request::new(RTM_GETLINK, 0, &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let error = connection.dump(&list, |_| Some(())).await.unwrap_err();
    assert_eq!(error.errno, 22);
    assert!(error.message.as_deref().is_some_and(|text| text.contains("Invalid")), "{error}");
}
