//! What flannel-node says of itself, on the socket beside its subnet file. flanneld has none.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::{Duration, timeout},
};

/// Whether the node can serve pods.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
pub(super) struct Readiness {
    ready: bool,
    #[serde(default)]
    missing: Vec<String>,
    not_ready_seconds: Option<u64>,
}

impl Readiness {
    /// What is missing, if something is.
    pub(super) fn reason(&self) -> Option<String> {
        (!self.ready).then(|| format!("flannel-node is not ready: {}", self.missing.join("; ")))
    }

    /// The same, once it has been so for longer than a node takes to start or to take up a change.
    pub(super) fn lasting_reason(&self) -> Option<String> {
        let seconds = self.not_ready_seconds.filter(|seconds| *seconds >= GRACE.as_secs())?;
        Some(format!(
            "flannel-node has not been ready for {seconds} s: {}",
            self.missing.join("; ")
        ))
    }
}

/// Asks the node whose subnet file this is; `None` if it does not answer.
pub(super) async fn ask(subnet_file: &Path) -> Option<Readiness> {
    let answer = timeout(DEADLINE, exchange(&socket(subnet_file))).await.ok()?.ok()?;
    parse(&answer)
}

/// Where flannel-node answers.
pub(super) fn socket(subnet_file: &Path) -> PathBuf {
    subnet_file.with_extension("sock")
}

async fn exchange(path: &Path) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(path).await?;
    // HTTP 1.0 ends with the connection.
    stream.write_all(b"GET /readiness HTTP/1.0\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.take(MOST_BYTES).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// What an answer says; `None` if it is another one.
fn parse(answer: &[u8]) -> Option<Readiness> {
    let (head, body) = str::from_utf8(answer).ok()?.split_once("\r\n\r\n")?;
    let is_fine = head.lines().next()?.contains(" 200 ");
    serde_json::from_str(body).ok().filter(|_| is_fine)
}

/// Runtimes wait for the answer.
const DEADLINE: Duration = Duration::from_secs(1);
/// As long as flannel-node waits before it says so in the Node's condition `NetworkUnavailable`.
const GRACE: Duration = Duration::from_secs(60);
/// More than there are things that can be missing.
const MOST_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(body: &str) -> Option<Readiness> {
        parse(format!("HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{body}").as_bytes())
    }

    #[test]
    fn a_node_says_what_is_missing_and_for_how_long() {
        let ready = r#"{"ready":true,"missing":[],"notes":["x"],"not_ready_seconds":null}"#;
        let ready = answer(ready).unwrap();
        assert_eq!((ready.reason(), ready.lasting_reason()), (None, None));
        let not = |seconds| {
            answer(&format!(r#"{{"ready":false,"missing":["a: b","c: d"],"notes":[],"not_ready_seconds":{seconds}}}"#)).unwrap()
        };
        assert_eq!(not(0).reason().unwrap(), "flannel-node is not ready: a: b; c: d");
        assert_eq!(not(59).lasting_reason(), None);
        let lasting = "flannel-node has not been ready for 60 s: a: b; c: d";
        assert_eq!(not(60).lasting_reason().unwrap(), lasting);
    }

    #[test]
    fn another_answer_is_none() {
        assert_eq!(parse(b"HTTP/1.0 404 Not Found\r\n\r\n{\"ready\": false}"), None);
        assert_eq!(answer("there are /healthz, /readyz and /metrics"), None);
    }

    proptest! {
        #[test]
        fn any_answer_is_read_without_panic(bytes in any::<Vec<u8>>(), body in any::<String>()) {
            let _ = parse(&bytes);
            let _ = answer(&body);
        }
    }
}
