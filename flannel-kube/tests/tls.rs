//! Which certificates of API servers are good, and what is said of the others.

use std::{error::Error, sync::Arc};

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
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
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

/// Asks an API server that shows the certificate of `server`, with that of `authority` as the one that is trusted.
async fn ask(server: &Pair, authority: &Pair) -> Result<Vec<u8>, RequestError> {
    let chain = CertificateDer::pem_slice_iter(server.pem.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(server.key.serialize_pem().as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        // A client that trusts nobody here leaves.
        let Ok(mut stream) = TlsAcceptor::from(Arc::new(config)).accept(stream).await else {
            return;
        };
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await;
        let _ = stream.read(&mut [0; 1]).await;
    });
    let mut config = ClientConfig::anonymous(url.parse().unwrap());
    config.certificate_authority = Some(Source::Data(authority.pem.clone().into()));
    let answer = Client::new(config).get(&Resource::cluster("nodes"), "n1").await;
    serving.abort();
    answer
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
