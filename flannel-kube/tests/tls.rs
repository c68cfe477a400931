//! Which certificates of API servers are good, and what is said of the others.

use std::{error::Error, fs, sync::Arc};

use flannel_kube::{Client, ClientConfig, RequestError, Resource, Source};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    },
};

/// A certificate for 127.0.0.1 and its key.
struct Pair {
    params: CertificateParams,
    key: KeyPair,
    pem: String,
}

impl Pair {
    fn new(is_authority: bool, signer: Option<&Self>) -> Self {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, if is_authority { "ca" } else { "server" });
        if is_authority {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        Self::of(params, signer)
    }

    fn of(params: CertificateParams, signer: Option<&Self>) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = match signer {
            None => params.self_signed(&key),
            Some(signer) => {
                let issuer = Issuer::from_params(&signer.params, &signer.key);
                params.signed_by(&key, &issuer)
            }
        };
        Self { pem: certificate.unwrap().pem(), params, key }
    }
}

/// A server that shows the certificate of `server`, and wants one that `clients` has signed, if that is given.
fn shows(server: &Pair, clients: Option<&Pair>) -> ServerConfig {
    let chain = CertificateDer::pem_slice_iter(server.pem.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(server.key.serialize_pem().as_bytes()).unwrap();
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(clients.pem.as_bytes()).unwrap()).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.unwrap())
        }
    };
    builder.with_single_cert(chain, key).unwrap()
}

/// Starts an API server that answers one request on each connection, which it takes with the next of these; and how to reach it.
async fn serve(servers: Vec<ServerConfig>) -> ClientConfig {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    // Ends with the test's runtime.
    tokio::spawn(async move {
        for server in servers {
            let (stream, _) = listener.accept().await.unwrap();
            // A client that trusts nobody here leaves, and so does the server.
            let Ok(mut stream) = TlsAcceptor::from(Arc::new(server)).accept(stream).await else {
                continue;
            };
            let _ = stream.read(&mut [0; 4096]).await;
            let head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}";
            let _ = stream.write_all(head).await;
            let _ = stream.shutdown().await;
        }
    });
    ClientConfig::anonymous(url.parse().unwrap())
}

async fn get(client: &Client) -> Result<Vec<u8>, RequestError> {
    client.get(&Resource::cluster("nodes"), "n1").await
}

/// Asks an API server that shows the certificate of `server`, with that of `authority` as the one that is trusted.
async fn ask(server: &Pair, authority: &Pair) -> Result<Vec<u8>, RequestError> {
    let mut config = serve(vec![shows(server, None)]).await;
    config.certificate_authority = Some(Source::Data(authority.pem.clone().into()));
    get(&Client::new(config)).await
}

fn said(answer: Result<Vec<u8>, RequestError>) -> String {
    let error = answer.unwrap_err();
    assert!(error.is_unreachable(), "a node starts from its last state: {error:?}");
    let reason = error.source().unwrap();
    format!("{reason} ({})", reason.source().unwrap())
}

#[tokio::test]
async fn a_certificate_that_signs_itself_is_good_if_it_is_the_one_that_was_given() {
    let (own, other) = (Pair::new(true, None), Pair::new(true, None));
    assert_eq!(ask(&own, &own).await.unwrap(), b"{}");
    let text = said(ask(&own, &other).await);
    assert!(text.contains("this very certificate as that of the CA"), "{text}");
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_said_with_the_remedy() {
    let authority = Pair::new(true, None);
    assert_eq!(ask(&Pair::new(false, Some(&authority)), &authority).await.unwrap(), b"{}");
    // As some control planes have it.
    let text = said(ask(&Pair::new(true, Some(&authority)), &authority).await);
    let expected = "the API server has a certificate that is an authority's (CA:TRUE): give this very certificate as that of \
                    the CA, or give the server one without CA:TRUE (";
    assert!(text.starts_with(expected), "{text}");
    // Signed by itself, or by a CA that was made anew under the same name.
    for signer in [None, Some(&Pair::new(true, None))] {
        let text = said(ask(&Pair::new(false, signer), &authority).await);
        assert!(text.contains("give the certificate of the CA that has signed it"), "{text}");
    }
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let text = said(ask(&Pair::of(params, Some(&authority)), &authority).await);
    assert!(text.contains("is not valid for a server: replace it there"), "{text}");
}

#[tokio::test]
async fn a_server_that_wants_to_know_who_asks_is_shown_the_certificate_that_the_files_have_then() {
    let [authority, clients, others] = std::array::from_fn(|_| Pair::new(true, None));
    let server = Pair::new(false, Some(&authority));
    let mut config = serve((0..3).map(|_| shows(&server, Some(&clients))).collect()).await;
    config.certificate_authority = Some(Source::Data(authority.pem.into()));
    let refused = get(&Client::new(config.clone())).await.unwrap_err();
    assert!(refused.is_unreachable(), "nobody: {refused:?}");
    let folder = tempfile::tempdir().unwrap();
    let [certificate, key] = ["tls.crt", "tls.key"].map(|name| folder.path().join(name));
    let write = |signer: &Pair| {
        let mut params = CertificateParams::new(["n1".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let own = Pair::of(params, Some(signer));
        fs::write(&certificate, own.pem).unwrap();
        fs::write(&key, own.key.serialize_pem()).unwrap();
    };
    config.client_certificate =
        Some((Source::File(certificate.clone()), Source::File(key.clone())));
    let client = Client::new(config);
    write(&others);
    let refused = get(&client).await.unwrap_err();
    assert!(refused.is_unreachable(), "somebody else: {refused:?}");
    write(&clients);
    assert_eq!(get(&client).await.unwrap(), b"{}");
}

#[tokio::test]
async fn a_certificate_has_to_have_the_name_that_the_kubeconfig_says() {
    let authority = Pair::new(true, None);
    let params = CertificateParams::new(["api.example".to_owned()]).unwrap();
    let server = Pair::of(params, Some(&authority));
    let mut config = serve((0..3).map(|_| shows(&server, None)).collect()).await;
    config.certificate_authority = Some(Source::Data(authority.pem.into()));
    for (name, is_good) in [(None, false), (Some("api.example"), true), (Some("other"), false)] {
        config.tls_server_name = name.map(str::to_owned);
        let answer = get(&Client::new(config.clone())).await;
        assert_eq!(answer.is_ok(), is_good, "{name:?}: {answer:?}");
    }
}

#[tokio::test]
async fn an_authority_that_is_exchanged_counts_from_the_next_connection_on() {
    let [old, new] = std::array::from_fn(|_| Pair::new(true, None));
    let signed = |signer| shows(&Pair::new(false, Some(signer)), None);
    let mut config = serve(vec![signed(&old), signed(&new), signed(&new)]).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &old.pem).unwrap();
    config.certificate_authority = Some(Source::File(file.path().into()));
    let client = Client::new(config);
    assert_eq!(get(&client).await.unwrap(), b"{}");
    let text = said(get(&client).await);
    assert!(text.contains("give the certificate of the CA that has signed it"), "{text}");
    fs::write(file.path(), &new.pem).unwrap();
    assert_eq!(get(&client).await.unwrap(), b"{}");
}
