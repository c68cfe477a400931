//! A real API server, with an etcd of its own.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use flannel_testbed::{Host, Process};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::cluster_node::ClusterNode;
use crate::etcd::{Put, Server};

/// kube-apiserver, which ends when this is dropped.
///
/// Nodes are written into its etcd, as API servers write them: what writing them through it would cost is not what is measured.
#[derive(Debug)]
pub(super) struct KubeApiServer {
    // Ends before its etcd.
    _process: Process,
    etcd: Server,
    kubeconfig: PathBuf,
}

impl KubeApiServer {
    /// Starts both on `host`, and waits until nodes can be read.
    pub(super) async fn start(
        program: &Path,
        host: &Host,
        folder: &Path,
        nodes: &[ClusterNode],
    ) -> Result<Self> {
        // Of the version that the API server wants, if it came with one.
        let beside = program.with_file_name("etcd");
        let etcd = if beside.is_file() { &beside } else { Path::new("etcd") };
        let etcd = Server::start(etcd, host, folder).await?;
        put(&etcd, nodes).await?;
        let key = folder.join("accounts.key");
        #[expect(clippy::disallowed_methods, reason = "it is what people make keys with")]
        let mut openssl = Command::new("openssl");
        openssl.args(["genrsa", "-out"]).arg(&key).arg("2048");
        host.run(openssl).await.context("cannot make a key for service accounts")?;
        let tokens = folder.join("tokens.csv");
        write(&tokens, &format!("{TOKEN},bench,bench,system:masters\n"))?;
        let address = SocketAddr::new(host.ip(), 6443);
        let certificates = folder.join("apiserver");
        #[expect(clippy::disallowed_methods, reason = "the server is a part of the measurement")]
        let mut command = Command::new(program);
        command
            .arg(format!("--etcd-servers=http://{}", etcd.address))
            .arg(format!("--bind-address={}", address.ip()))
            .arg(format!("--secure-port={}", address.port()))
            .arg(option("--cert-dir", &certificates))
            .arg(option("--token-auth-file", &tokens))
            .arg(option("--service-account-key-file", &key))
            .arg(option("--service-account-signing-key-file", &key))
            .args(["--service-account-issuer=https://bench.example", "--authorization-mode=RBAC"])
            .args(["--service-cluster-ip-range=10.96.0.0/16", "--profiling=false"]);
        let mut process =
            host.spawn(command).with_context(|| format!("cannot start {}", program.display()))?;
        // It signs its own certificate, and puts the authority for that behind it.
        let authority = certificates.join("apiserver.crt");
        let kubeconfig = folder.join("kubeconfig");
        let server = format!("https://{address}");
        write(&kubeconfig, &json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "bench", "cluster": { "server": server, "certificate-authority": authority } }],
            "users": [{ "name": "bench", "user": { "token": TOKEN } }],
            "contexts": [{ "name": "bench", "context": { "cluster": "bench", "user": "bench" } }],
            "current-context": "bench",
        }).to_string())?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            #[expect(clippy::disallowed_methods, reason = "a client that is none of ours")]
            let mut curl = Command::new("curl");
            let header = format!("Authorization: Bearer {TOKEN}");
            curl.args(["-sf", "--cacert"]).arg(&authority).args(["-H", &header]);
            // Its cache of nodes is full once it has answered that.
            curl.args(["-o", "/dev/null"])
                .arg(format!("{server}/readyz"))
                .args(["-o", "/dev/null"]);
            curl.arg(format!("{server}/api/v1/nodes?resourceVersion=0"));
            let Err(error) = host.run(curl).await else { break };
            if Instant::now() > deadline {
                let said = process.output().join("\n  ");
                bail!("the API server did not serve after {PATIENCE:?}: {error}:\n  {said}");
            }
            tokio::select! {
                ended = process.wait() => {
                    let said = process.output().join("\n  ");
                    bail!("the API server ended with {} before it served:\n  {said}", ended?);
                }
                () = sleep(LOOK_AGAIN) => {}
            }
        }
        Ok(Self { _process: process, etcd, kubeconfig })
    }

    pub(super) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    pub(super) async fn put(&self, nodes: &[ClusterNode]) -> Result<()> {
        put(&self.etcd, nodes).await
    }
}

async fn put(etcd: &Server, nodes: &[ClusterNode]) -> Result<()> {
    for nodes in nodes.chunks(NODES_PER_WRITE) {
        let key = |node: &ClusterNode| format!("/registry/minions/{}", node.name);
        let put =
            |node: &ClusterNode| Put { key: key(node), value: node.object().to_string(), lease: 0 };
        etcd.client.write(&nodes.iter().map(put).collect::<Vec<_>>(), &[]).await?;
    }
    Ok(())
}

fn option(name: &str, path: &Path) -> std::ffi::OsString {
    let mut option = std::ffi::OsString::from(format!("{name}="));
    option.push(path);
    option
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// It is good for a server of this benchmark alone, which nobody else can reach.
const TOKEN: &str = "benchmark";

/// etcd takes 1.5 MiB at once.
const NODES_PER_WRITE: usize = 64;

/// What a start may take, on a loaded machine too.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(200);
