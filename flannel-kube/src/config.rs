//! Which API server to talk to, and as whom.

mod kubeconfig;
mod yaml;

use std::{
    env, fmt, fs, io,
    path::{Path, PathBuf},
};

use hyper::http::Uri;

/// Which API server to talk to, and as whom.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientConfig {
    /// Where it is, such as `https://10.96.0.1:443`; a path in front of all requests is kept.
    pub server: Uri,
    /// The name that its certificate has to have, if not the one in `server`.
    pub tls_server_name: Option<String>,
    /// The certificates that its own has to be signed by; the machine's if there are none.
    pub certificate_authority: Option<Source>,
    /// Our certificate and its key.
    pub client_certificate: Option<(Source, Source)>,
    /// What we show with each request.
    pub credentials: Credentials,
    /// Who the kubeconfig says that we are, for messages.
    pub user: Option<String>,
    /// The namespace that the kubeconfig says is meant where none is named.
    pub namespace: Option<String>,
    /// What program we say that we are, in the API server's audit log.
    pub user_agent: String,
}

/// Something that is given, or is in a file.
#[derive(Clone)]
pub enum Source {
    /// The content itself.
    Data(Vec<u8>),
    /// A file, read anew for each connection or request: it is replaced when it expires.
    File(PathBuf),
}

/// What is shown with each request.
#[derive(Clone, Debug, Default)]
pub enum Credentials {
    /// Nothing.
    #[default]
    None,
    /// This token.
    Token(Secret),
    /// The token in this file, as it is at each request: the kubelet replaces it about once an hour.
    TokenFile(PathBuf),
}

/// A text that is never printed.
#[derive(Clone)]
pub struct Secret(String);

/// Why there is no API server to talk to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file that is named cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Neither is this a pod, nor was an API server named.
    #[error(
        "this is not a pod of a cluster (KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set): give a kubeconfig \
         or the API server's URL"
    )]
    NotInCluster,
    /// A kubeconfig does not say what is needed, or something that is not supported.
    #[error("the kubeconfig {place} cannot be used: {reason}")]
    Kubeconfig {
        /// Which one.
        place: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// The API server's address is none.
    #[error("{url:?} is not the URL of an API server, expected one such as https://192.0.2.1:6443")]
    Server {
        /// What was given.
        url: String,
    },
}

impl ClientConfig {
    /// As flanneld finds its API server: the one at `url`, or the one of the kubeconfig in `file`; with both, that of `url` with the
    /// credentials of the file; with neither, the one of the cluster that this pod is in.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] that says what is missing.
    pub fn find(url: Option<&str>, file: Option<&Path>) -> Result<Self, ConfigError> {
        let server = url.map(parse_server).transpose()?;
        let config = match (server, file) {
            (None, None) => Self::in_cluster(|name| env::var(name).ok())?,
            (Some(server), None) => Self::anonymous(server),
            (server, Some(path)) => {
                let text = fs::read_to_string(path)
                    .map_err(|source| ConfigError::File { path: path.into(), source })?;
                let mut config = kubeconfig::parse(&text, path, None)?;
                config.server = server.unwrap_or(config.server);
                config
            }
        };
        if env::var_os("HTTPS_PROXY").or_else(|| env::var_os("https_proxy")).is_some() {
            tracing::warn!("HTTPS_PROXY has no effect: the API server is connected to directly");
        }
        Ok(config)
    }

    /// As kubectl finds its API server: in the kubeconfig `file`, or the one that `KUBECONFIG` names, or `~/.kube/config`, by the
    /// context called `context` or the current one; without a file, the one of the cluster that this pod is in.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] that says what is missing.
    pub fn as_kubectl(
        file: Option<&Path>,
        context: Option<&str>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        let path = match (file, set("KUBECONFIG"), set("HOME")) {
            (Some(file), ..) => file.to_owned(),
            (None, Some(files), _) if files.contains(':') => {
                let reason =
                    "KUBECONFIG names several files, which are not merged: name one".into();
                return Err(ConfigError::Kubeconfig { place: files, reason });
            }
            (None, Some(file), _) => file.into(),
            (None, None, home) => {
                let usual = home.map(|home| Path::new(&home).join(".kube/config"));
                match usual.filter(|path| path.exists()) {
                    Some(path) => path,
                    None => return Self::in_cluster(variable),
                }
            }
        };
        let text = fs::read_to_string(&path)
            .map_err(|source| ConfigError::File { path: path.clone(), source })?;
        kubeconfig::parse(&text, &path, context)
    }

    /// The API server of the cluster that this pod is in, according to these variables and to the files that every pod has.
    ///
    /// # Errors
    ///
    /// [`ConfigError::NotInCluster`], or [`ConfigError::Server`] if the variables make no URL.
    pub fn in_cluster(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        let (Some(host), Some(port)) =
            (set("KUBERNETES_SERVICE_HOST"), set("KUBERNETES_SERVICE_PORT"))
        else {
            return Err(ConfigError::NotInCluster);
        };
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let folder = PathBuf::from(SERVICE_ACCOUNT);
        Ok(Self {
            certificate_authority: Some(Source::File(folder.join("ca.crt"))),
            credentials: Credentials::TokenFile(folder.join("token")),
            ..Self::anonymous(parse_server(&format!("https://{host}:{port}"))?)
        })
    }

    /// The API server at `server`, as nobody.
    pub fn anonymous(server: Uri) -> Self {
        Self {
            server,
            tls_server_name: None,
            certificate_authority: None,
            client_certificate: None,
            credentials: Credentials::None,
            user: None,
            namespace: None,
            user_agent: concat!("flannel-kube/", env!("CARGO_PKG_VERSION")).into(),
        }
    }

    /// The files that are read while the client works.
    pub fn files(&self) -> Vec<PathBuf> {
        let pair = self.client_certificate.iter().flat_map(|(certificate, key)| [certificate, key]);
        let sources = self.certificate_authority.iter().chain(pair);
        let files = sources.filter_map(|source| match source {
            Source::File(path) => Some(path.clone()),
            Source::Data(_) => None,
        });
        let token = match &self.credentials {
            Credentials::TokenFile(path) => Some(path.clone()),
            Credentials::None | Credentials::Token(_) => None,
        };
        files.chain(token).collect()
    }
}

impl Credentials {
    /// The token as it is now.
    pub(crate) fn token(&self) -> Result<Option<Secret>, ConfigError> {
        match self {
            Self::None => Ok(None),
            Self::Token(token) => Ok(Some(token.clone())),
            Self::TokenFile(path) => {
                let text = fs::read_to_string(path)
                    .map_err(|source| ConfigError::File { path: path.clone(), source })?;
                Ok(Some(Secret(text.trim().into())))
            }
        }
    }
}

impl Secret {
    /// Takes a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// Whom a token of Kubernetes is for, such as `system:serviceaccount:kube-flannel:flannel`. The API server judges whether that
    /// is true.
    pub(crate) fn subject(&self) -> Option<String> {
        use base64::Engine;
        let payload = self.0.split('.').nth(1)?;
        let json = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).ok()?;
        let claims: serde_json::Value = serde_json::from_slice(&json).ok()?;
        Some(claims.get("sub")?.as_str()?.chars().take(300).collect())
    }
}

impl Source {
    /// The content as it is now.
    pub(crate) fn read(&self) -> Result<Vec<u8>, ConfigError> {
        match self {
            Self::Data(data) => Ok(data.clone()),
            Self::File(path) => {
                fs::read(path).map_err(|source| ConfigError::File { path: path.clone(), source })
            }
        }
    }

    pub(crate) fn place(&self) -> String {
        match self {
            Self::Data(_) => "the kubeconfig's data".into(),
            Self::File(path) => path.display().to_string(),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place())
    }
}

/// An API server's URL; a missing scheme is as with kubectl.
fn parse_server(url: &str) -> Result<Uri, ConfigError> {
    let wrong = || ConfigError::Server { url: url.into() };
    let full = if url.contains("://") { url.into() } else { format!("http://{url}") };
    let uri: Uri = full.parse().map_err(|_| wrong())?;
    let is_known = matches!(uri.scheme_str(), Some("http" | "https"));
    let has_password = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    if !is_known || uri.host().is_none_or(str::is_empty) || uri.query().is_some() || has_password {
        return Err(wrong());
    }
    Ok(uri)
}

/// Where the kubelet puts what a pod needs to talk to its API server.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_knows_its_api_server() {
        let variables = |host: &'static str| {
            move |name: &str| match name {
                "KUBERNETES_SERVICE_HOST" => Some(host.to_owned()),
                "KUBERNETES_SERVICE_PORT" => Some("6443".into()),
                _ => None,
            }
        };
        for (host, url) in
            [("10.96.0.1", "https://10.96.0.1:6443/"), ("fd00::1", "https://[fd00::1]:6443/")]
        {
            let config = ClientConfig::in_cluster(variables(host)).unwrap();
            assert_eq!(config.server.to_string(), url);
            assert_eq!(config.files().len(), 2);
        }
        let nowhere = ClientConfig::in_cluster(variables("")).unwrap_err();
        assert!(matches!(nowhere, ConfigError::NotInCluster));
    }

    #[test]
    fn kubeconfigs_are_found_as_kubectl_finds_them() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, host: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let text = format!(
                "current-context: c\ncontexts: [{{name: c, context: {{cluster: k}}}}]\nclusters: [{{name: k, cluster: \
                 {{server: 'https://{host}'}}}}]"
            );
            fs::write(&path, text).unwrap();
            path
        };
        let named = write("named", "named");
        let listed = write("listed", "listed").display().to_string();
        let home = folder.path().display().to_string();
        let find = |file: Option<&Path>, kubeconfig: Option<&str>| {
            let variable = |name: &str| match name {
                "HOME" => Some(home.clone()),
                "KUBECONFIG" => kubeconfig.map(str::to_owned),
                "KUBERNETES_SERVICE_HOST" => Some("pod".into()),
                "KUBERNETES_SERVICE_PORT" => Some("1".into()),
                _ => None,
            };
            let found = ClientConfig::as_kubectl(file, None, variable);
            found.map(|config| config.server.host().unwrap().to_owned())
        };
        assert_eq!(find(None, None).unwrap(), "pod");
        write(".kube/config", "usual");
        assert_eq!(find(None, None).unwrap(), "usual");
        assert_eq!(find(None, Some(&listed)).unwrap(), "listed");
        assert_eq!(find(Some(&named), Some(&listed)).unwrap(), "named");
        let two = find(None, Some("/a:/b")).unwrap_err().to_string();
        assert!(two.contains("/a:/b") && two.contains("name one"), "{two}");
    }

    #[test]
    fn servers_are_read_as_kubectl_reads_them() {
        for (url, expected) in [
            ("https://192.0.2.1:6443", "https://192.0.2.1:6443/"),
            ("192.0.2.1:8080", "http://192.0.2.1:8080/"),
            ("https://rancher/k8s/clusters/c-1", "https://rancher/k8s/clusters/c-1"),
        ] {
            assert_eq!(parse_server(url).unwrap().to_string(), expected);
        }
        for url in ["", "ftp://x", "https://", "https://user:secret@x", "https://x?y=z", "a b"] {
            assert!(parse_server(url).is_err(), "{url}");
        }
    }

    #[test]
    fn tokens_say_whose_they_are_and_are_never_printed() {
        // {"alg":"none"} and {"sub":"system:serviceaccount:kube-flannel:flannel"}
        let token = Secret::new(
            "eyJhbGciOiJub25lIn0.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQ6a3ViZS1mbGFubmVsOmZsYW5uZWwifQ.x",
        );
        let subject = "system:serviceaccount:kube-flannel:flannel";
        assert_eq!(token.subject().as_deref(), Some(subject));
        assert_eq!(format!("{:?}", Credentials::Token(token)), "Token(***)");
        assert_eq!(Secret::new("opaque").subject(), None);
    }

    #[test]
    fn a_token_file_is_read_each_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let credentials = Credentials::TokenFile(file.path().into());
        for token in ["one\n", "two"] {
            fs::write(file.path(), token).unwrap();
            assert_eq!(credentials.token().unwrap().unwrap().expose(), token.trim());
        }
    }
}
