//! Tells the host about this node's subnet.

use std::time::Duration;

use flannel_core::{NodeHandle, Status, SubnetEnv};
use flannel_netlink::LogLimit;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::{
    error::chain, handle::DaemonHandle, readiness::File, retry::Outage, sandbox::Allowed,
    subnet_file, supervisor,
};

/// Keeps `subnet.env` equal to what the node holds, whenever it can serve pods with that. Ends with the node.
pub(crate) async fn publish(mut handle: NodeHandle, daemon: DaemonHandle, allowed: Allowed) {
    let (mut told, mut outage) = (None, Outage::default());
    let mut limit = LogLimit::default();
    loop {
        let news =
            |status: &Status| daemon.env(status).is_some_and(|env| told.as_ref() != Some(&env));
        let status = match timeout(LOOK, handle.wait_for(news)).await {
            Ok(Some(status)) => status,
            Ok(None) => return,
            Err(_) => {
                if is_spoilt(&daemon, told.as_ref()) {
                    if limit.allows(Instant::now()).is_some() {
                        warn!(file = %daemon.subnet_file().display(), "removed or changed by somebody else, writing it again");
                    }
                    told = None;
                }
                continue;
            }
        };
        let (Some(env), Some(lease)) = (daemon.env(&status), &status.lease) else { continue };
        let path = daemon.subnet_file();
        if let Err(error) = subnet_file::write(path, &env) {
            if outage.failed(Instant::now()) {
                warn!("{}; retrying", chain(&allowed.explain_file(error)));
            }
            sleep(RETRY).await;
            continue;
        }
        outage.end(Instant::now());
        info!(subnet = %lease.subnet, mtu = env.mtu, file = %path.display(), "ready");
        let line = format!("holds {}, MTU {}", lease.subnet, env.mtu.unwrap_or_default());
        match told {
            None => supervisor::ready(&line),
            Some(_) => supervisor::status(&line),
        }
        told = Some(env);
    }
}

/// Whether somebody else removed or changed what was written.
fn is_spoilt(daemon: &DaemonHandle, told: Option<&SubnetEnv>) -> bool {
    matches!(daemon.file(told), File::Different | File::Missing)
}

/// How often the file is looked at. The kubelet asks for a pod's network again after some seconds.
const LOOK: Duration = Duration::from_secs(10);

/// Between attempts to write it.
const RETRY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flannel_core::{LeaseAttrs, NetworkConfig, Node, testing::FakeBackend};
    use flannel_store::{MemoryCluster, NewRecord};

    use super::*;
    use crate::handle::Facts;

    /// A node that is ready, and what it tells.
    async fn ready() -> (tempfile::TempDir, MemoryCluster, FakeBackend, NodeHandle, DaemonHandle) {
        let config: NetworkConfig = r#"{"Network":"10.3.0.0/16"}"#.parse().unwrap();
        let cluster = MemoryCluster::new(&config);
        let backend = FakeBackend::new([192, 0, 2, 1].into());
        let node = Node::new(cluster.store("n1".parse().unwrap()), backend.clone());
        let mut handle = node.handle();
        let folder = tempfile::tempdir().unwrap();
        let daemon = DaemonHandle::new(&folder.path().join("subnet.env"), false);
        let id = "n1".parse().unwrap();
        let facts = Facts { id, store: "memory".into(), backend: Arc::new(backend.clone()) };
        daemon.runs(facts, handle.clone());
        tokio::spawn(node.run());
        tokio::spawn(publish(handle.clone(), daemon.clone(), Allowed::default()));
        handle.wait_for(Status::is_ready).await.unwrap();
        while !daemon.readiness().is_ready() {
            sleep(RETRY).await;
        }
        (folder, cluster, backend, handle, daemon)
    }

    #[tokio::test(start_paused = true)]
    async fn the_host_is_told_of_a_new_subnet_when_its_data_path_is_up() {
        let (_folder, cluster, backend, mut handle, daemon) = ready().await;
        let told = || subnet_file::read(daemon.subnet_file()).held();
        let first = handle.status().lease.unwrap();
        assert_eq!(told(), Some(first.subnet));

        backend.fail_starts(u32::MAX);
        let owner = Some("n2".parse().unwrap());
        let attrs = LeaseAttrs { public_ip: Some([192, 0, 2, 2].into()), ..first.attrs.clone() };
        let thief = NewRecord { value: attrs.to_string(), owner, ttl: None };
        cluster.put(&first.subnet.to_string(), &thief);
        let moved = |status: &Status| {
            status.lease.as_ref().is_some_and(|lease| lease.subnet != first.subnet)
        };
        let second = handle.wait_for(moved).await.unwrap().lease.unwrap();
        sleep(10 * RETRY).await;
        assert_eq!(told(), Some(first.subnet));
        assert!(!daemon.readiness().is_ready());

        backend.fail_starts(0);
        handle.wait_for(Status::is_ready).await.unwrap();
        sleep(RETRY).await;
        assert_eq!(told(), Some(second.subnet));
        assert!(daemon.readiness().is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_somebody_else_spoils_makes_the_node_unready_until_it_is_written_again() {
        let (_folder, _cluster, _backend, _handle, daemon) = ready().await;
        let path = daemon.subnet_file();
        let exact = std::fs::read_to_string(path).unwrap();
        let spoil: [&dyn Fn(); 2] = [&|| std::fs::remove_file(path).unwrap(), &|| {
            std::fs::write(path, "FLANNEL_MTU=9000\n").unwrap()
        }];
        for (spoil, line) in spoil.into_iter().zip(["not there", "says something else"]) {
            spoil();
            assert_eq!(daemon.readiness().missing, [format!("subnet.env: {line}")]);
            sleep(LOOK + RETRY).await;
            assert_eq!(std::fs::read_to_string(path).unwrap(), exact);
            assert!(daemon.readiness().is_ready());
        }
    }
}
