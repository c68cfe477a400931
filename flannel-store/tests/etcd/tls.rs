//! Certificates that Go takes and others do not.

use std::process::Command;

use flannel_core::{Store, StoreError};
use flannel_store::{EtcdConfig, EtcdPem, EtcdStore, LeaseOptions};

use crate::{
    certificates::Authority,
    cluster::{Cluster, PREFIX, Security},
    flannel::{acquire, at},
};

async fn cluster() -> Cluster {
    let cluster = Cluster::start(1, Security::Passwords).await;
    cluster.put(&format!("{PREFIX}/config"), r#"{"Network":"10.3.0.0/16"}"#);
    cluster
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn certificates_may_be_given_as_text() {
    let cluster = Cluster::start(1, Security::Certificates).await;
    cluster.put(&format!("{PREFIX}/config"), r#"{"Network":"10.3.0.0/16"}"#);
    let text = |pem: Option<EtcdPem>| {
        let path = pem.unwrap().path().unwrap().to_owned();
        Some(EtcdPem::Bytes(std::fs::read(path).unwrap()))
    };
    let EtcdConfig { ca, cert, key, .. } = cluster.config();
    let config = EtcdConfig { ca: text(ca), cert: text(cert), key: text(key), ..cluster.config() };
    let open = |config: &EtcdConfig| {
        EtcdStore::open(config, "n1".parse().unwrap(), LeaseOptions::default())
    };
    std::fs::remove_file(cluster.path("client.key")).unwrap();
    acquire(&open(&config).unwrap(), 1).await;

    for (config, said) in [
        (
            EtcdConfig { key: config.cert.clone(), ..config.clone() },
            "cannot use the key that was given for TLS",
        ),
        (
            EtcdConfig { ca: config.key.clone(), ..config.clone() },
            "cannot use the certificate of the CA that was given for TLS",
        ),
    ] {
        assert_eq!(open(&config).unwrap_err().to_string(), said);
    }
}

/// Why a node has no lease.
async fn refused(cluster: &Cluster) -> String {
    let options = LeaseOptions::default();
    let store = EtcdStore::open(&cluster.config(), "n2".parse().unwrap(), options).unwrap();
    match store.acquire(&at(2)).await.unwrap_err() {
        StoreError::Denied { source, .. } | StoreError::Unavailable { source, .. } => {
            source.to_string()
        }
        error => panic!("{error:?}"),
    }
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn a_certificate_that_signs_itself_is_good_where_it_was_given() {
    let cluster = cluster().await;
    let ip = &*cluster.members[0].ip;
    let (authority, serving) = Authority::serving("self", &[ip]);
    authority.write(&cluster.path("ca.pem"));
    serving.write(&cluster.path("server.pem"), &cluster.path("server.key"));
    acquire(&cluster.store("n1"), 1).await;

    let (elsewhere, serving) = Authority::serving("self", &["127.255.0.1"]);
    elsewhere.write(&cluster.path("ca.pem"));
    serving.write(&cluster.path("server.pem"), &cluster.path("server.key"));
    let reason = refused(&cluster).await;
    assert!(reason.contains("is for another name"), "{reason}");

    let (_, other) = Authority::serving("self", &[ip]);
    other.write(&cluster.path("server.pem"), &cluster.path("server.key"));
    let reason = refused(&cluster).await;
    assert!(reason.contains("give this very certificate as that of the CA"), "{reason}");
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
#[expect(clippy::disallowed_methods, reason = "our library for certificates has no such keys")]
async fn what_the_tls_library_lacks_is_said() {
    let cluster = cluster().await;
    let subject = format!("subjectAltName=IP:{}", cluster.members[0].ip);
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-521", "-nodes"])
        .args(["-subj", "/CN=etcd", "-days", "2", "-addext", &subject, "-keyout"])
        .arg(cluster.path("server.key"))
        .arg("-out")
        .arg(cluster.path("server.pem"))
        .output()
        .expect("openssl is installed");
    assert!(made.status.success(), "{made:?}");
    std::fs::copy(cluster.path("server.pem"), cluster.path("ca.pem")).unwrap();
    let reason = refused(&cluster).await;
    assert!(reason.contains("P-521"), "{reason}");
}
