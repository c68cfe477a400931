//! How to reach etcd, as a user says it.

use std::{
    fmt,
    net::Ipv6Addr,
    path::{Path, PathBuf},
};

/// How to reach a network's leases in etcd. The fields are flanneld's `--etcd-*` options, and their defaults are flanneld's.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// The certificates that etcd's is to be signed by; those that the machine trusts if there are none. It works without a
    /// certificate of our own, where flannel would go on without TLS.
    pub ca: Option<EtcdPem>,
    /// Our own certificate and those that signed it, to show to etcd.
    pub cert: Option<EtcdPem>,
    /// The members' client addresses, such as `https://192.0.2.1:2379`. The port is 2379 if none is given, and the scheme
    /// `https` if any certificate is, else `http`. Each node begins with any of them and takes the next one if it fails.
    pub endpoints: Vec<String>,
    /// The key of our own certificate.
    pub key: Option<EtcdPem>,
    /// The user's password.
    pub password: Option<EtcdPassword>,
    /// What all keys of the network begin with.
    pub prefix: String,
    /// The user to log in as.
    pub username: Option<String>,
}

/// Certificates or a key in PEM.
#[derive(Clone, Eq, PartialEq)]
pub enum EtcdPem {
    /// The text itself, which is never printed.
    Bytes(Vec<u8>),
    /// A file, which is read again for each connection, so that a renewed one is used from the next one on.
    File(PathBuf),
}

/// A password, which is never printed.
#[derive(Clone, Eq, PartialEq)]
pub struct EtcdPassword(String);

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EtcdConfigError {
    /// A certificate or a key cannot be used for TLS.
    #[error("cannot use {place} for TLS")]
    Certificate {
        /// The file, or what was given in its place.
        place: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An endpoint is not one.
    #[error("{endpoint:?} is not an etcd endpoint: {reason}")]
    Endpoint {
        /// What was given; only its end if it has a password in it.
        endpoint: String,
        /// What is wrong with it, and what would be valid.
        reason: &'static str,
    },
    /// Only one half of a certificate or a login was given.
    #[error("{given} is given without {missing}: give both or none")]
    Half {
        /// What there is.
        given: &'static str,
        /// What there is not.
        missing: &'static str,
    },
    /// There is no endpoint.
    #[error("no etcd endpoint is given, such as https://192.0.2.1:2379")]
    NoEndpoint,
    /// TLS was asked for and all endpoints do without.
    #[error("certificates are given and all etcd endpoints are http: write https://, or give none")]
    Plain,
}

/// One member's address.
#[derive(Clone, Eq, PartialEq)]
pub(super) struct Endpoint {
    /// Without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: bool,
}

impl EtcdConfig {
    /// The endpoints, each once.
    pub(super) fn parse_endpoints(&self) -> Result<Vec<Endpoint>, EtcdConfigError> {
        for (given, missing) in [
            (("cert", self.cert.is_some()), ("key", self.key.is_some())),
            (("username", self.username.is_some()), ("password", self.password.is_some())),
        ] {
            match (given, missing) {
                ((given, true), (missing, false)) | ((missing, false), (given, true)) => {
                    return Err(EtcdConfigError::Half { given, missing });
                }
                _ => {}
            }
        }
        let tls = self.ca.is_some() || self.cert.is_some();
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for text in self.endpoints.iter().map(|text| text.trim()).filter(|text| !text.is_empty()) {
            let endpoint = parse_endpoint(text, tls).map_err(|reason| {
                let secret = text.rfind('@').map_or(0, |at| at + 1);
                EtcdConfigError::Endpoint { endpoint: text[secret..].into(), reason }
            })?;
            if !endpoints.contains(&endpoint) {
                endpoints.push(endpoint);
            }
        }
        match endpoints.iter().any(|endpoint| endpoint.tls) {
            _ if endpoints.is_empty() => Err(EtcdConfigError::NoEndpoint),
            false if tls => Err(EtcdConfigError::Plain),
            _ => Ok(endpoints),
        }
    }
}

impl Default for EtcdConfig {
    fn default() -> Self {
        Self {
            ca: None,
            cert: None,
            endpoints: vec!["http://127.0.0.1:4001".into(), "http://127.0.0.1:2379".into()],
            key: None,
            password: None,
            prefix: "/coreos.com/network".into(),
            username: None,
        }
    }
}

impl EtcdPem {
    /// The file, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Bytes(_) => None,
            Self::File(path) => Some(path),
        }
    }
}

impl From<PathBuf> for EtcdPem {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl fmt::Debug for EtcdPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(_) => f.write_str("EtcdPem(..)"),
            Self::File(path) => path.fmt(f),
        }
    }
}

impl EtcdPassword {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl<T: Into<String>> From<T> for EtcdPassword {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for EtcdPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EtcdPassword(..)")
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        match self.host.parse::<Ipv6Addr>() {
            Ok(host) => write!(f, "{scheme}://[{host}]:{}", self.port),
            Err(_) => write!(f, "{scheme}://{}:{}", self.host, self.port),
        }
    }
}

fn parse_endpoint(text: &str, tls: bool) -> Result<Endpoint, &'static str> {
    let (tls, rest) = match text.split_once("://") {
        None => (tls, text),
        Some(("http", rest)) => (false, rest),
        Some(("https", rest)) => (true, rest),
        Some(_) => return Err("expected http:// or https://"),
    };
    if rest.contains('@') {
        return Err("give the user as username and password");
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '?', '#']) {
        return Err("expected nothing behind the port");
    }
    let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or(FORM)?)),
        None => rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let is_valid = match rest.starts_with('[') {
        true => host.parse::<Ipv6Addr>().is_ok(),
        false => !host.is_empty() && host.chars().all(is_name),
    };
    if !is_valid {
        return Err(FORM);
    }
    let port = port.map_or(Ok(DEFAULT_PORT), str::parse);
    let port = port.ok().filter(|port| *port > 0).ok_or("expected a port from 1 to 65535")?;
    Ok(Endpoint { host: host.into(), port, tls })
}

const FORM: &str = "expected a form such as https://192.0.2.1:2379";

/// What etcd listens on for clients by default.
const DEFAULT_PORT: u16 = 2379;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoints(texts: &[&str]) -> Result<String, String> {
        let endpoints = texts.iter().map(|text| (*text).into()).collect();
        let config = EtcdConfig { endpoints, ..EtcdConfig::default() };
        config.parse_endpoints().map(|all| format!("{all:?}")).map_err(|error| error.to_string())
    }

    #[test]
    fn endpoints_are_read_with_and_without_scheme_and_port() {
        let texts =
            ["etcd-1", " http://127.0.0.1:4001/ ", "https://[2001:db8::1]", "", "etcd-1:2379"];
        let expected = "[http://etcd-1:2379, http://127.0.0.1:4001, https://[2001:db8::1]:2379]";
        assert_eq!(endpoints(&texts).as_deref(), Ok(expected));
        let config = EtcdConfig {
            ca: Some(PathBuf::from("ca.pem").into()),
            endpoints: vec!["etcd-1".into()],
            ..EtcdConfig::default()
        };
        assert_eq!(format!("{:?}", config.parse_endpoints().unwrap()), "[https://etcd-1:2379]");
    }

    #[test]
    fn what_is_no_endpoint_is_refused_with_what_would_be() {
        for (text, message) in [
            (
                "unix:///run/etcd",
                "\"unix:///run/etcd\" is not an etcd endpoint: expected http:// or https://",
            ),
            (
                "http://etcd:x",
                "\"http://etcd:x\" is not an etcd endpoint: expected a port from 1 to 65535",
            ),
            (
                "http://etcd:0",
                "\"http://etcd:0\" is not an etcd endpoint: expected a port from 1 to 65535",
            ),
            (
                "http://etcd/v3",
                "\"http://etcd/v3\" is not an etcd endpoint: expected nothing behind the port",
            ),
            (
                "http://root:hunter2@etcd",
                "\"etcd\" is not an etcd endpoint: give the user as username and password",
            ),
            (
                "a b",
                "\"a b\" is not an etcd endpoint: expected a form such as https://192.0.2.1:2379",
            ),
            (" ", "no etcd endpoint is given, such as https://192.0.2.1:2379"),
        ] {
            assert_eq!(endpoints(&[text]), Err(message.into()));
        }
    }

    #[test]
    fn halves_and_contradictions_are_refused() {
        let message = |config: EtcdConfig| config.parse_endpoints().unwrap_err().to_string();
        let key =
            EtcdConfig { key: Some(PathBuf::from("key.pem").into()), ..EtcdConfig::default() };
        assert_eq!(message(key), "key is given without cert: give both or none");
        let user = EtcdConfig { username: Some("flannel".into()), ..EtcdConfig::default() };
        assert_eq!(message(user), "username is given without password: give both or none");
        let ca = EtcdConfig { ca: Some(PathBuf::from("ca.pem").into()), ..EtcdConfig::default() };
        assert_eq!(
            message(ca),
            "certificates are given and all etcd endpoints are http: write https://, or give none"
        );
    }

    #[test]
    fn secrets_are_not_printed() {
        let config = EtcdConfig {
            key: Some(EtcdPem::Bytes(b"hunter2".into())),
            password: Some("hunter2".into()),
            ..EtcdConfig::default()
        };
        let printed = format!("{config:?}");
        assert!(printed.contains("password: Some(EtcdPassword(..))"), "{printed}");
        assert!(printed.contains("key: Some(EtcdPem(..))"), "{printed}");
    }

    proptest! {
        #[test]
        fn no_endpoint_panics_and_each_one_is_read_again(
            text in "(https?://)?(\\[[0-9a-f:]{0,12}\\]|[a-z0-9.]{0,8}|\\PC{0,12})(:[0-9]{0,6})?/?",
        ) {
            if let Ok(endpoint) = parse_endpoint(&text, false) {
                prop_assert_eq!(parse_endpoint(&endpoint.to_string(), false), Ok(endpoint));
            }
        }
    }
}
