//! What a person reads when something is set up wrongly.

use std::path::PathBuf;

use flannel_core::{Store, StoreError};
use flannel_store::{EtcdConfig, EtcdStore, LeaseOptions};
use tokio::time::timeout;

use crate::{
    certificates::{Authority, Signed},
    cluster::{Cluster, PREFIX, Security},
    faults::chain,
    flannel::{LIMIT, acquire, at},
};

/// Tries the store, by everything that it does, and has the one error with its reasons.
async fn error(config: &EtcdConfig) -> StoreError {
    let store = EtcdStore::open(config, "n1".parse().unwrap(), LeaseOptions::default()).unwrap();
    let error = timeout(LIMIT, store.config()).await.expect("in time").unwrap_err();
    let again = timeout(LIMIT, store.acquire(&at(1))).await.expect("in time").unwrap_err();
    // But for what the kernel says of a line that was hung up.
    let begin = |error: &StoreError| chain(error).split(" (").next().map(str::to_owned);
    assert_eq!(begin(&again), begin(&error), "it says the same each time");
    error
}

/// Whose error nobody cures by waiting, and what it says with the endpoint as `ENDPOINT`.
async fn denied(cluster: &Cluster, config: &EtcdConfig) -> String {
    let error = error(config).await;
    assert!(matches!(error, StoreError::Denied { .. }) && !error.is_retryable(), "{error:?}");
    told(cluster, &error)
}

async fn unavailable(cluster: &Cluster, config: &EtcdConfig) -> String {
    let error = error(config).await;
    assert!(matches!(error, StoreError::Unavailable { .. }) && error.is_retryable(), "{error:?}");
    told(cluster, &error)
}

fn told(cluster: &Cluster, error: &StoreError) -> String {
    let text = chain(error);
    assert!(!text.contains("hunter2"), "{text}");
    text.replace(&cluster.endpoint(0), "ENDPOINT")
}

async fn cluster(security: Security) -> Cluster {
    let cluster = Cluster::start(1, security).await;
    cluster.put(&format!("{PREFIX}/config"), r#"{"Network":"10.3.0.0/16"}"#);
    cluster
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn a_missing_config() {
    let cluster = Cluster::start(1, Security::None).await;
    let error = error(&cluster.config()).await;
    assert!(matches!(error, StoreError::ConfigMissing { .. }) && error.is_retryable());
    assert_eq!(
        chain(&error),
        r#"no network config in etcd key /coreos.com/network/config: write one there, such as {"Network":"10.244.0.0/16"}"#
    );
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn users_and_passwords() {
    let cluster = cluster(Security::Passwords).await;
    let config = EtcdConfig { password: Some("hunter22".into()), ..cluster.config() };
    assert_eq!(
        denied(&cluster, &config).await,
        "the store refuses to read etcd key /coreos.com/network/config: ENDPOINT refuses the user flannel with this password: correct username or password"
    );
    let config = EtcdConfig { password: None, username: None, ..cluster.config() };
    assert_eq!(
        denied(&cluster, &config).await,
        "the store refuses to read etcd key /coreos.com/network/config: ENDPOINT wants a user: give username and password"
    );
    let config = EtcdConfig { prefix: "/somewhere/else".into(), ..cluster.config() };
    assert_eq!(
        denied(&cluster, &config).await,
        "the store refuses to read etcd key /somewhere/else/config: ENDPOINT does not let the user flannel do this (etcdserver: permission denied): grant it readwrite on everything that begins with /somewhere/else"
    );
    // Who may read alone can follow, and is told what is missing to write.
    cluster.ctl(&["role", "revoke-permission", "flannel", "--prefix=true", PREFIX]);
    cluster.ctl(&["role", "grant-permission", "flannel", "--prefix=true", "read", PREFIX]);
    let store = cluster.store("n1");
    let mut watch = store.watch();
    crate::flannel::item(&mut watch).await.unwrap();
    let error = store.acquire(&at(1)).await.unwrap_err();
    let lease = "10.3.128.0-24";
    assert_eq!(
        told(&cluster, &error),
        format!(
            "the store refuses to create the lease {lease}: ENDPOINT does not let the user flannel do this (etcdserver: permission denied): grant it readwrite on everything that begins with /coreos.com/network"
        )
    );
    cluster.put(&Cluster::lease_key("10.3.7.0-24"), &at(7).to_string());
    assert!(matches!(
        crate::flannel::item(&mut watch).await,
        Ok(flannel_core::LeaseEvent::Upsert(_))
    ));
    // And one that may not even read is told so by its watch as well.
    cluster.ctl(&["role", "revoke-permission", "flannel", "--prefix=true", PREFIX]);
    let error = crate::flannel::item(&mut store.watch()).await.unwrap_err();
    assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn a_login_where_there_are_no_users_is_no_error() {
    let cluster = cluster(Security::None).await;
    let config = EtcdConfig {
        password: Some("hunter2".into()),
        username: Some("flannel".into()),
        ..cluster.config()
    };
    let store = EtcdStore::open(&config, "n1".parse().unwrap(), LeaseOptions::default()).unwrap();
    acquire(&store, 1).await;
    assert!(!format!("{store:?}").contains("hunter2"));
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn certificates() {
    let cluster = cluster(Security::Certificates).await;
    let other = |name: &str| cluster.path(&format!("other-{name}"));
    let authority = Authority::new("another authority");
    authority.write(&other("ca.pem"));
    authority.sign("other", &[]).write(&other("client.pem"), &other("client.key"));

    let config = EtcdConfig { ca: Some(other("ca.pem").into()), ..cluster.config() };
    assert_eq!(
        denied(&cluster, &config).await,
        "the store refuses to read etcd key /coreos.com/network/config: ENDPOINT has a certificate that is not to be trusted (invalid peer certificate: UnknownIssuer): give the certificate of the CA that has signed it"
    );
    let config = EtcdConfig { ca: None, ..cluster.config() };
    assert!(denied(&cluster, &config).await.contains("UnknownIssuer"));
    let none = EtcdConfig { cert: None, key: None, ..cluster.config() };
    let untrusted = EtcdConfig {
        cert: Some(other("client.pem").into()),
        key: Some(other("client.key").into()),
        ..cluster.config()
    };
    for config in [none, untrusted] {
        let said = denied(&cluster, &config).await;
        // Which alert it is depends on the release of etcd.
        let (before, rest) = said.split_once("received fatal alert: ").expect(&said);
        assert_eq!(
            before,
            "the store refuses to read etcd key /coreos.com/network/config: ENDPOINT refuses our certificate, or that there is none ("
        );
        assert!(rest.ends_with("): give a certificate and a key that its CA has signed"), "{said}");
    }

    // etcd reads its certificate for each connection.
    let authority = cluster.write_certificates();
    let server =
        |signed: Signed| signed.write(&cluster.path("server.pem"), &cluster.path("server.key"));
    server(authority.sign("server", &["192.0.2.1"]));
    let said = denied(&cluster, &cluster.config()).await;
    assert!(
        said.contains(
            "ENDPOINT has a certificate that is for another name (invalid peer certificate: "
        ),
        "{said}"
    );
    assert!(said.ends_with("): use an address that is in it, or add this one to it"), "{said}");
    server(authority.sign_until("server", &[&cluster.members[0].ip], 2020));
    let said = unavailable(&cluster, &cluster.config()).await;
    assert!(
        said.contains("ENDPOINT has a certificate that is out of date (invalid peer certificate: "),
        "{said}"
    );
    assert!(said.ends_with("): renew it there, or set the clock here"), "{said}");
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn files_that_cannot_be_used() {
    let cluster = cluster(Security::Certificates).await;
    let error = |config: &EtcdConfig| {
        let store = EtcdStore::open(config, "n1".parse().unwrap(), LeaseOptions::default());
        chain(&store.unwrap_err()).replace(&cluster.folder.path().display().to_string(), "FOLDER")
    };
    let missing: PathBuf = cluster.path("missing.pem");
    let config = EtcdConfig { ca: Some(missing.into()), ..cluster.config() };
    assert_eq!(
        error(&config),
        "cannot use FOLDER/missing.pem for TLS: No such file or directory (os error 2)"
    );
    let config = EtcdConfig { ca: Some(cluster.path("client.key").into()), ..cluster.config() };
    assert_eq!(error(&config), "cannot use FOLDER/client.key for TLS: it holds no certificate");
    let config = EtcdConfig { key: Some(cluster.path("client.pem").into()), ..cluster.config() };
    assert_eq!(
        error(&config),
        "cannot use FOLDER/client.pem for TLS: it holds no private key: no items found"
    );
    let config = EtcdConfig { key: Some(cluster.path("server.key").into()), ..cluster.config() };
    assert_eq!(
        error(&config),
        "cannot use FOLDER/client.pem for TLS: keys may not be consistent: KeyMismatch"
    );
}

#[tokio::test]
#[ignore = "needs etcd: run ./ci.sh etcd"]
async fn endpoints() {
    let plain = cluster(Security::None).await;
    let secure = cluster(Security::Certificates).await;
    let at =
        |endpoint: String, config: EtcdConfig| EtcdConfig { endpoints: vec![endpoint], ..config };
    let closed = plain.endpoint(0).replace("2379", "1");
    assert_eq!(
        unavailable(&plain, &at(closed.clone(), plain.config())).await.replace(&closed, "ENDPOINT"),
        "cannot read etcd key /coreos.com/network/config: ENDPOINT cannot be reached (Connection refused (os error 111)): check the address, and whether etcd runs there"
    );
    let unknown = at("http://etcd.invalid".into(), plain.config());
    let said = unavailable(&plain, &unknown).await;
    assert!(
        said.contains("http://etcd.invalid:2379 cannot be reached (failed to lookup"),
        "{said}"
    );

    let config = at(secure.endpoint(0).replace("https", "http"), plain.config());
    let said = unavailable(&secure, &config).await;
    assert!(said.ends_with("if it wants TLS, write https://"), "{said}");
    let config = at(plain.endpoint(0).replace("http", "https"), secure.config());
    let said = unavailable(&plain, &config).await;
    assert!(said.ends_with("if it wants none, write http://"), "{said}");
}
