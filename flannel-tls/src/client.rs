//! A client's side of TLS.

use std::{fmt, sync::Arc};

use tokio_rustls::rustls::{
    self, ClientConfig, RootCertStore,
    client::WebPkiServerVerifier,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::verifier::Verifier;

/// Certificates and a key, as PEM.
#[derive(Clone, Copy, Default)]
pub struct Pem<'a> {
    /// The certificates that the server's has to be signed by, or to be one of; the machine's if there are none.
    pub authority: Option<&'a [u8]>,
    /// Our certificate, with those of its signers, and its key.
    pub own: Option<(&'a [u8], &'a [u8])>,
}

/// What of them cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{part} cannot be used")]
pub struct PemError {
    /// Which of them.
    pub part: Part,
    /// What is wrong with it.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// One of those that [`Pem`] is made of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Part {
    /// The certificates that the server's has to be signed by.
    Authority,
    /// Our certificate.
    Certificate,
    /// Our key.
    Key,
}

impl Pem<'_> {
    /// The configuration of a client that speaks `protocol`, such as `h2`, inside.
    ///
    /// # Errors
    ///
    /// [`PemError`] that names the part.
    pub fn client_config(self, protocol: &str) -> Result<ClientConfig, PemError> {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        let mut pinned = Vec::new();
        match self.authority {
            Some(authority) => {
                for certificate in certificates(authority, Part::Authority)? {
                    pinned.push(certificate.clone());
                    roots.add(certificate).map_err(|error| unusable(Part::Authority, error))?;
                }
            }
            // What cannot be read of the machine's own is no more than one signer less.
            None => drop(
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
            ),
        }
        let roots = WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone());
        let roots = roots.build().map_err(|error| unusable(Part::Authority, error))?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has the cipher suites of TLS 1.2 and 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier { roots, pinned }));
        let mut config = match self.own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(certificate, Part::Certificate)?;
                let secret = PrivateKeyDer::from_pem_slice(key).map_err(|error| {
                    unusable(Part::Key, format!("it holds no private key: {error}"))
                })?;
                let builder = builder.with_client_auth_cert(chain, secret);
                builder.map_err(|error| match error {
                    rustls::Error::InconsistentKeys(_) => unusable(Part::Certificate, error),
                    error => unusable(
                        Part::Key,
                        format!(
                            "{error}; it may be of RSA, P-256, P-384 or Ed25519, and not of P-521"
                        ),
                    ),
                })?
            }
        };
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        Ok(config)
    }
}

impl fmt::Debug for Pem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never what is in them: one is a private key.
        f.debug_struct("Pem")
            .field("authority", &self.authority.is_some())
            .field("own", &self.own.is_some())
            .finish()
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Authority => "the certificate of the CA",
            Self::Certificate => "the certificate",
            Self::Key => "the key",
        })
    }
}

fn certificates(pem: &[u8], part: Part) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err(unusable(part, "it holds no certificate")),
        Ok(all) => Ok(all),
        Err(error) => Err(unusable(part, error)),
    }
}

fn unusable(part: Part, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> PemError {
    PemError { part, source: source.into() }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn pair() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["a".to_owned()]).unwrap();
        (certificate.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn a_key_is_never_printed() {
        let pem = Pem { authority: None, own: Some((b"certificate", b"key")) };
        assert_eq!(format!("{pem:?}"), "Pem { authority: false, own: true }");
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let ((certificate, key), (_, other)) = (pair(), pair());
        let (certificate, key) = (certificate.as_bytes(), key.as_bytes());
        let authority = Some(certificate);
        for (pem, expected) in [
            (Pem { authority, own: Some((certificate, key)) }, None),
            (Pem { authority: Some(b""), own: None }, Some(Part::Authority)),
            (Pem { authority, own: Some((key, key)) }, Some(Part::Certificate)),
            (Pem { authority, own: Some((certificate, certificate)) }, Some(Part::Key)),
            (
                Pem { authority, own: Some((certificate, other.as_bytes())) },
                Some(Part::Certificate),
            ),
        ] {
            let made = pem.client_config("h2");
            assert_eq!(made.err().map(|error| error.part), expected);
        }
    }
}
