//! The API server that nodes follow: the one of the tests, or a real one.

use std::{
    ffi::OsString,
    fs, io,
    net::{SocketAddr, TcpListener},
    path::Path,
};

use anyhow::{Context, Result};
use flannel_core::NetworkConfig;
use flannel_testbed::{Host, kube::FakeApiServer};

use super::{cluster_node::ClusterNode, kube_apiserver::KubeApiServer};

/// An API server with Nodes.
#[derive(Debug)]
pub(super) enum ApiServer {
    Fake(FakeApiServer),
    Real(Box<KubeApiServer>),
}

impl ApiServer {
    /// Starts one on `host`: `program`, or that of the tests.
    pub(super) async fn start(
        program: Option<&Path>,
        host: &Host,
        folder: &Path,
        nodes: &[ClusterNode],
    ) -> Result<Self> {
        if let Some(program) = program {
            let server = KubeApiServer::start(program, host, folder, nodes).await?;
            return Ok(Self::Real(Box::new(server)));
        }
        let (namespace, address) = (host.namespace().clone(), SocketAddr::new(host.ip(), 8080));
        let bind =
            move || namespace.run(|| TcpListener::bind(address)).map_err(io::Error::other)?;
        let server =
            FakeApiServer::start(bind).context("cannot start the API server of the tests")?;
        nodes.iter().for_each(|node| server.put("nodes", &node.name, node.object()));
        Ok(Self::Fake(server))
    }

    /// Creates or replaces a Node, in one write.
    pub(super) async fn put(&self, node: &ClusterNode) -> Result<()> {
        match self {
            Self::Fake(server) => {
                server.put("nodes", &node.name, node.object());
                Ok(())
            }
            Self::Real(server) => server.put(std::slice::from_ref(node)).await,
        }
    }

    /// How a node is told of it, in flanneld's words.
    pub(super) fn node_args(
        &self,
        folder: &Path,
        network: &NetworkConfig,
    ) -> Result<Vec<OsString>> {
        let path = folder.join("net-conf.json");
        let text = serde_json::to_string(network).context("cannot print a network config")?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        let mut args = vec!["--kube-subnet-mgr".into(), "--net-config-path".into(), path.into()];
        match self {
            Self::Fake(server) => args.extend(["--kube-api-url".into(), server.url().into()]),
            Self::Real(server) => {
                args.extend(["--kubeconfig-file".into(), server.kubeconfig().into()])
            }
        }
        Ok(args)
    }
}
