//! kubectl's configuration files.

use std::path::{Path, PathBuf};

use base64::Engine;
use serde_json::Value;

use super::{ClientConfig, ConfigError, Credentials, Secret, Source, parse_server, yaml};

/// What the current context of the kubeconfig in `text` says, or the one called `context`. Relative files are beside `path`.
pub(super) fn parse(
    text: &str,
    path: &Path,
    context: Option<&str>,
) -> Result<ClientConfig, ConfigError> {
    read(text, path, context)
        .map_err(|reason| ConfigError::Kubeconfig { place: path.display().to_string(), reason })
}

fn read(text: &str, path: &Path, context: Option<&str>) -> Result<ClientConfig, String> {
    let document = yaml::parse(text)?;
    let current = context
        .or_else(|| text_of(&document, "current-context"))
        .ok_or("it has no current-context: kubectl config use-context NAME sets it")?;
    let context = named(&document, "contexts", "context", current)?;
    let cluster_name = text_of(context, "cluster")
        .ok_or_else(|| format!("the context {current:?} names no cluster"))?;
    let cluster = named(&document, "clusters", "cluster", cluster_name)?;
    if text_of(cluster, "proxy-url").is_some() {
        return Err(format!(
            "proxy-url of the cluster {cluster_name:?}: connections through a proxy are not supported, leave it out"
        ));
    }
    if text_of(cluster, "insecure-skip-tls-verify") == Some("true") {
        return Err(format!(
            "insecure-skip-tls-verify of the cluster {cluster_name:?}: the API server has to be known, give its \
             certificate-authority instead"
        ));
    }
    let url = text_of(cluster, "server")
        .ok_or_else(|| format!("the cluster {cluster_name:?} has no server"))?;
    let server = parse_server(url).map_err(|error| error.to_string())?;
    let source = |object: &Value, key: &str| source(object, key, path);
    let mut config = ClientConfig {
        tls_server_name: text_of(cluster, "tls-server-name").map(str::to_owned),
        certificate_authority: source(cluster, "certificate-authority")?,
        namespace: text_of(context, "namespace").map(str::to_owned),
        ..ClientConfig::anonymous(server)
    };
    let Some(user_name) = text_of(context, "user") else { return Ok(config) };
    let user = named(&document, "users", "user", user_name)?;
    for (key, remedy) in [
        ("exec", "programs are not run, give a token, a tokenFile or a client certificate"),
        ("auth-provider", "it is not supported, give a token, a tokenFile or a client certificate"),
        ("username", "the API server takes no passwords, give a token or a client certificate"),
        ("as", "impersonation is not supported, leave it out"),
    ] {
        if user.get(key).is_some_and(|value| !value.is_null()) {
            return Err(format!("{key} of the user {user_name:?}: {remedy}"));
        }
    }
    config.user = Some(user_name.into());
    config.client_certificate = match (
        source(user, "client-certificate")?,
        source(user, "client-key")?,
    ) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => {
            return Err(format!(
                "the user {user_name:?} has one of client-certificate and client-key, both are needed"
            ));
        }
    };
    // As client-go: the file is used if both are there.
    config.credentials = match (text_of(user, "tokenFile"), text_of(user, "token")) {
        (Some(file), _) => Credentials::TokenFile(beside(path, file)),
        (None, Some(token)) => Credentials::Token(Secret::new(token)),
        (None, None) => Credentials::None,
    };
    Ok(config)
}

/// The object with this name in a list of named ones.
fn named<'a>(
    document: &'a Value,
    list: &str,
    member: &str,
    name: &str,
) -> Result<&'a Value, String> {
    let entries = document.get(list).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let found = entries.iter().find(|entry| text_of(entry, "name") == Some(name));
    found
        .and_then(|entry| entry.get(member))
        .ok_or_else(|| format!("there is no {member} {name:?} in {list}"))
}

fn text_of<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get(key)?.as_str().filter(|text| !text.is_empty())
}

/// What is in `KEY-data`, or the file that `KEY` names: data wins, as with kubectl.
fn source(object: &Value, key: &str, path: &Path) -> Result<Option<Source>, String> {
    let data_key = format!("{key}-data");
    if let Some(data) = text_of(object, &data_key) {
        let compact: String = data.split_ascii_whitespace().collect();
        let data = base64::engine::general_purpose::STANDARD.decode(compact);
        return data
            .map(|data| Some(Source::Data(data)))
            .map_err(|_| format!("{data_key} is not base64"));
    }
    Ok(text_of(object, key).map(|file| Source::File(beside(path, file))))
}

fn beside(path: &Path, file: &str) -> PathBuf {
    path.parent().map_or_else(|| file.into(), |folder| folder.join(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "\
apiVersion: v1
kind: Config
current-context: c
contexts:
- name: other
- name: c
  context: {cluster: k, user: u}
clusters:
- name: k
  cluster:
    server: https://192.0.2.1:6443
    tls-server-name: api.example
    certificate-authority: pki/ca.crt
users:
- name: u
  user:
    client-certificate-data: Q0VSVA==
    client-key: /keys/u.key
    token: secret
";

    fn parsed(text: &str) -> Result<ClientConfig, ConfigError> {
        parse(text, Path::new("/etc/kubernetes/flannel.conf"), None)
    }

    #[test]
    fn the_current_context_is_used() {
        let config = parsed(WHOLE).unwrap();
        assert_eq!(config.server.to_string(), "https://192.0.2.1:6443/");
        assert_eq!(config.tls_server_name.as_deref(), Some("api.example"));
        assert_eq!(config.user.as_deref(), Some("u"));
        let files = ["/etc/kubernetes/pki/ca.crt", "/keys/u.key"].map(PathBuf::from);
        assert_eq!(config.files(), files);
        let Some((Source::Data(certificate), Source::File(_))) = &config.client_certificate else {
            panic!("{:?}", config.client_certificate);
        };
        assert_eq!(certificate, b"CERT");
        assert!(matches!(config.credentials, Credentials::Token(_)));
        assert!(!format!("{config:?}").contains("secret"));
        let with_file = WHOLE.replace("    token:", "    tokenFile: t\n    token:");
        let config = parsed(&with_file).unwrap();
        assert_eq!(config.files()[2], PathBuf::from("/etc/kubernetes/t"));
    }

    #[test]
    fn another_context_can_be_named() {
        let path = Path::new("/x");
        let text =
            WHOLE.replace("- name: other", "- name: other\n  context: {cluster: k, namespace: n}");
        let config = parse(&text, path, Some("other")).unwrap();
        assert_eq!((config.user, config.namespace.as_deref()), (None, Some("n")));
        let error = parse(&text, path, Some("third")).unwrap_err().to_string();
        assert!(error.contains("no context \"third\" in contexts"), "{error}");
    }

    #[test]
    fn what_is_missing_or_not_supported_is_named() {
        for (from, to, words) in [
            ("current-context: c\n", "", "no current-context"),
            ("current-context: c", "current-context: d", "no context \"d\" in contexts"),
            ("user: u}", "user: v}", "no user \"v\" in users"),
            ("server: https", "server: ftp", "is not the URL of an API server"),
            ("tls-server-name: api.example", "proxy-url: http://p", "proxy-url of the cluster"),
            ("tls-server-name: api.example", "insecure-skip-tls-verify: true", "has to be known"),
            (
                "token: secret",
                "exec: {command: aws}",
                "exec of the user \"u\": programs are not run",
            ),
            ("token: secret", "auth-provider: {name: gcp}", "auth-provider of the user"),
            ("    client-key: /keys/u.key\n", "", "both are needed"),
            ("Q0VSVA==", "-?-", "client-certificate-data is not base64"),
            (WHOLE, "a: [", "not YAML"),
        ] {
            let error = parsed(&WHOLE.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("flannel.conf"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
