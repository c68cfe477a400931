//! Why a request failed, in words that name what was asked, of whom and by whom.

use std::{fmt, io, time::Duration};

use flannel_tls::Flaw;
use serde::Deserialize;
use tokio_rustls::rustls;

use crate::{ConfigError, Verb};

/// A request that failed: what was asked for, where, and as whom.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {object} at {server}{}", As(account))]
#[non_exhaustive]
pub struct RequestError {
    /// What was to be done.
    pub verb: Verb,
    /// With what, such as `nodes/worker-7/status`.
    pub object: String,
    /// The API server.
    pub server: String,
    /// As whom, where that is known.
    pub account: Option<String>,
    /// What came in between.
    #[source]
    pub reason: Reason,
}

/// What came between a request and its answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// The connection broke.
    #[error("the connection broke")]
    Broken(#[source] hyper::Error),
    /// Our own files cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The answer is not what was asked for.
    #[error("the answer is not as expected")]
    Decode(#[source] serde_json::Error),
    /// The answer is compressed, which was not asked for.
    #[error(
        "the answer is in the encoding {encoding}, which was not asked for: let no proxy in between compress answers"
    )]
    Encoded {
        /// What it is called.
        encoding: String,
    },
    /// Our certificate or the signers of the API server's cannot be used.
    #[error("{place} cannot be used for TLS")]
    Certificate {
        /// Where they are from.
        place: String,
        /// What is wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The API server cannot be connected to.
    #[error("cannot {step}")]
    Connect {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("could not {step} within {} s", limit.as_secs())]
    Late {
        /// What was being done.
        step: &'static str,
        /// How long it may take.
        limit: Duration,
    },
    /// An object or a line is longer than any that an API server stores.
    #[error("a single object has more than {limit} bytes")]
    Oversized {
        /// The most that is taken.
        limit: usize,
    },
    /// What is asked for cannot be written as HTTP: a header has a line break, or a path is too long.
    #[error("the request cannot be written")]
    Request(#[source] hyper::http::Error),
    /// The API server's certificate is not good.
    #[error("the API server has a certificate that {}: {}", flaw.says(), flaw.remedy())]
    ServerCertificate {
        /// What is wrong with it.
        flaw: Flaw,
        /// The same in the library's words.
        #[source]
        source: rustls::Error,
    },
    /// A stream that should have said something did not.
    #[error("nothing came for {} s, not even a bookmark", after.as_secs())]
    Silent {
        /// How long it was waited for.
        after: Duration,
    },
    /// The API server refuses.
    #[error(transparent)]
    Status(ApiStatus),
}

/// What an API server says instead of doing what was asked.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{code}{}: {message}", Paren(reason))]
#[non_exhaustive]
pub struct ApiStatus {
    /// The HTTP status.
    pub code: u16,
    /// One word, such as `Forbidden` or `Expired`; may be empty.
    pub reason: String,
    /// The server's own words.
    pub message: String,
    /// How long it wants to be left alone.
    pub retry_after: Option<Duration>,
    /// The snapshot that is asked for is of the future: the server's data is older than ours.
    pub is_from_the_future: bool,
}

impl RequestError {
    /// What the API server answered, if it did.
    pub fn status(&self) -> Option<&ApiStatus> {
        match &self.reason {
            Reason::Status(status) => Some(status),
            _ => None,
        }
    }

    /// Whether there is no such object.
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(|status| status.code == 404)
    }

    /// Whether there is an object of that name already.
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(|status| status.code == 409)
    }

    /// Whether the account lacks a right.
    pub fn is_forbidden(&self) -> bool {
        self.status().is_some_and(|status| status.code == 403)
    }

    /// How long the API server wants to be left alone, if it said so.
    pub fn retry_after(&self) -> Option<Duration> {
        self.status().and_then(|status| status.retry_after)
    }

    /// Whether the server could not be talked to at all, so that it may be away.
    pub fn is_unreachable(&self) -> bool {
        match &self.reason {
            Reason::Broken(_)
            | Reason::Connect { .. }
            | Reason::Late { .. }
            | Reason::ServerCertificate { .. }
            | Reason::Silent { .. } => true,
            Reason::Status(status) => status.code >= 500,
            _ => false,
        }
    }
}

impl ApiStatus {
    /// What an answer with this HTTP status says.
    pub(crate) fn of_answer(code: u16, body: &[u8], retry_after: Option<Duration>) -> Self {
        let view = serde_json::from_slice::<StatusView>(body).ok().filter(|it| it.kind == "Status");
        let status = view.map(|view| Self::of_view(view, code));
        let mut status = status.unwrap_or_else(|| Self {
            code,
            reason: String::new(),
            message: shortened(&String::from_utf8_lossy(body)),
            retry_after: None,
            is_from_the_future: false,
        });
        status.retry_after = retry_after.or(status.retry_after);
        status
    }

    /// What an `ERROR` event of a watch says.
    pub(crate) fn of_event(object: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(object).map(|view| Self::of_view(view, 500))
    }

    /// Whether what a watch or a list goes on from is not there any more, so that it has to begin anew.
    pub(crate) fn is_expired(&self) -> bool {
        self.code == 410 || matches!(self.reason.as_str(), "Expired" | "Gone")
    }

    fn of_view(view: StatusView, code: u16) -> Self {
        let causes = view.details.causes.unwrap_or_default();
        Self {
            code: view.code.unwrap_or(code),
            reason: shortened(&view.reason),
            message: shortened(&view.message),
            retry_after: view
                .details
                .retry_after_seconds
                .filter(|it| *it > 0)
                .map(Duration::from_secs),
            is_from_the_future: causes
                .iter()
                .any(|cause| cause.reason == "ResourceVersionTooLarge")
                || view.message.contains("Too large resource version"),
        }
    }
}

/// `metav1.Status`.
#[derive(Deserialize)]
#[serde(default)]
struct StatusView {
    kind: String,
    code: Option<u16>,
    reason: String,
    message: String,
    details: DetailsView,
}

impl Default for StatusView {
    fn default() -> Self {
        let empty = String::new;
        Self {
            kind: empty(),
            code: None,
            reason: empty(),
            message: empty(),
            details: DetailsView::default(),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct DetailsView {
    retry_after_seconds: Option<u64>,
    causes: Option<Vec<CauseView>>,
}

#[derive(Deserialize)]
struct CauseView {
    #[serde(default)]
    reason: String,
}

struct As<'a>(&'a Option<String>);

impl fmt::Display for As<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |account| write!(f, " as {account}"))
    }
}

struct Paren<'a>(&'a str);

impl fmt::Display for Paren<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " {}", self.0) }
    }
}

/// A text of a length that a log can bear, on one line.
fn shortened(text: &str) -> String {
    let line = |c: char| if c.is_control() { ' ' } else { c };
    let short: String = text.trim().chars().take(LONGEST).map(line).collect();
    if text.trim().chars().count() > LONGEST { short + "…" } else { short }
}

/// The most characters of a server's message that are kept.
const LONGEST: usize = 400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_verb_object_account_and_the_servers_words() {
        let body = br#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"nodes \"n1\" is forbidden: User \"x\" cannot patch","reason":"Forbidden","details":{"name":"n1","kind":"nodes"},"code":403}"#;
        let error = RequestError {
            verb: Verb::Patch,
            object: "nodes/n1/status".into(),
            server: "https://192.0.2.1:6443".into(),
            account: Some("x".into()),
            reason: Reason::Status(ApiStatus::of_answer(403, body, None)),
        };
        let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
        assert_eq!(
            text,
            "cannot patch nodes/n1/status at https://192.0.2.1:6443 as x: 403 Forbidden: nodes \"n1\" is forbidden: User \"x\" cannot patch"
        );
    }

    #[test]
    fn servers_say_when_to_ask_again_and_what_is_too_old() {
        let busy = ApiStatus::of_answer(429, b"Too many requests", Some(Duration::from_secs(1)));
        assert_eq!(busy.to_string(), "429: Too many requests");
        assert_eq!(busy.retry_after, Some(Duration::from_secs(1)));
        let gone = ApiStatus::of_event(
            r#"{"kind":"Status","code":410,"reason":"Expired","message":"too old resource version: 1 (9)"}"#,
        );
        assert!(gone.unwrap().is_expired());
        let future = br#"{"kind":"Status","code":504,"reason":"Timeout","message":"Timeout: Too large resource version: 99, current: 5","details":{"causes":[{"reason":"ResourceVersionTooLarge","message":"Too large resource version"}],"retryAfterSeconds":1}}"#;
        let future = ApiStatus::of_answer(504, future, None);
        assert!(future.is_from_the_future && !future.is_expired());
        assert_eq!(future.retry_after, Some(Duration::from_secs(1)));
        let long = ApiStatus::of_answer(500, "é\n".repeat(1000).as_bytes(), None);
        assert_eq!(long.message.chars().count(), LONGEST + 1);
        assert!(!long.message.contains('\n'));
    }
}
