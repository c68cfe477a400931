//! A store in a folder, with the leases of peers that nobody runs.

use std::{
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use flannel_core::{LeaseAttrs, NetworkConfig, RawJson, Subnet};
use flannel_store::FileStore;
use ipnetwork::{IpNetwork, Ipv4Network};
use tempfile::TempDir;

/// The folder, and the backend that its leases are of.
#[derive(Debug)]
pub(crate) struct Leases {
    folder: TempDir,
    backend: String,
    next_revision: u64,
}

impl Leases {
    /// A store with a network of `backend`, and the leases of the peers number 0 to `count` - 1.
    pub(crate) async fn build(scratch: &Path, backend: &str, count: u32) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("flannel-bench-").tempdir_in(scratch);
        let folder =
            folder.with_context(|| format!("cannot make a folder in {}", scratch.display()))?;
        let mut leases = Self { folder, backend: backend.into(), next_revision: 1 };
        FileStore::init(leases.store(), &network(backend)?).await?;
        for number in 0..count {
            leases.add(number)?;
        }
        // Without it the next writer counts the revisions of all leases anew.
        let path = leases.store().join("revision");
        fs::write(&path, format!("{}\n", leases.next_revision))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(leases)
    }

    /// The folder for everything else that belongs to the same cluster.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The store itself.
    pub(crate) fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// Where the leases are.
    pub(crate) fn subnets(&self) -> PathBuf {
        self.store().join("subnets")
    }

    /// Writes the lease of a peer, in one step.
    pub(crate) fn add(&mut self, number: u32) -> Result<()> {
        let text = lease_file(&self.backend, number, self.next_revision, SystemTime::now())?;
        self.next_revision += 1;
        let (temporary, path) = (self.folder.path().join("lease"), self.path(number)?);
        let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, &path));
        written.with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes the lease of a peer.
    pub(crate) fn remove(&self, number: u32) -> Result<()> {
        let path = self.path(number)?;
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// Reads every file once, as plainly as can be; returns how many bytes there were.
    pub(crate) fn read_plainly(&self) -> io::Result<u64> {
        let mut bytes = 0;
        for file in fs::read_dir(self.subnets())? {
            bytes += fs::read(file?.path())?.len() as u64;
        }
        Ok(bytes)
    }

    fn path(&self, number: u32) -> Result<PathBuf> {
        let subnet = Subnet::new(Some(block(number)), None).context("a block is a subnet")?;
        Ok(self.subnets().join(subnet.to_string()))
    }
}

/// The cluster's network: room for 65,000 subnets.
pub(crate) fn network(backend: &str) -> Result<NetworkConfig> {
    let config = serde_json::json!({
        "Network": NETWORK.to_string(),
        "SubnetLen": 24,
        "Backend": { "Type": backend },
    });
    Ok(config.to_string().parse()?)
}

/// The blocks of peers number 0 to `count` - 1.
pub(crate) fn blocks(count: u32) -> impl Iterator<Item = IpNetwork> {
    (0..count).map(|number| IpNetwork::V4(block(number)))
}

/// The block of a peer. The first 256 subnets are left to real nodes.
pub(crate) fn block(number: u32) -> Ipv4Network {
    let address = u32::from(NETWORK.ip()) + ((number + 256) << 8);
    Ipv4Network::new(address.into(), 24).expect("24 is a prefix length")
}

/// Checks that there are addresses for so many peers.
pub(crate) fn check_count(count: u32) -> Result<()> {
    ensure!(count <= MOST_PEERS, "{count} peers are too many, expected at most {MOST_PEERS}");
    Ok(())
}

/// The address of a peer on the underlay. The first 4096 addresses are left to real hosts.
fn address(number: u32) -> Ipv4Addr {
    (u32::from(UNDERLAY.ip()) + 4096 + number).into()
}

fn lease_file(backend: &str, number: u32, revision: u64, now: SystemTime) -> Result<String> {
    let mut attrs = LeaseAttrs {
        public_ip: Some(address(number)),
        backend_type: backend.into(),
        ..LeaseAttrs::default()
    };
    if backend == "vxlan" {
        let [_, a, b, c] = number.to_be_bytes();
        let data = format!(r#"{{"VNI":1,"VtepMAC":"02:f2:00:{a:02x}:{b:02x}:{c:02x}"}}"#);
        attrs.backend_data = Some(RawJson::new(&data)?);
    }
    let expires = humantime::format_rfc3339_seconds(now + LIFETIME);
    let ours = serde_json::json!({
        "Node": format!("peer{number}"),
        "Revision": revision,
        "Expires": expires.to_string(),
    });
    Ok(format!("{attrs}\n{ours}\n"))
}

/// The range for benchmarks of RFC 2544, so that the addresses of all peers are on one link.
pub(crate) const UNDERLAY: Ipv4Network =
    match Ipv4Network::new_checked(Ipv4Addr::new(198, 18, 0, 0), 15) {
        Some(block) => block,
        None => panic!("15 is a prefix length"),
    };

const NETWORK: Ipv4Network = match Ipv4Network::new_checked(Ipv4Addr::new(10, 0, 0, 0), 8) {
    Some(block) => block,
    None => panic!("8 is a prefix length"),
};

/// Some of the 65,536 subnets are left over for real nodes.
const MOST_PEERS: u32 = 65_000;

/// Longer than any benchmark.
const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

#[cfg(test)]
mod tests {
    use flannel_store::{FileRegistry, Lifetime, Registry};

    use super::*;

    #[tokio::test]
    async fn the_store_reads_what_was_written() {
        let scratch = tempfile::tempdir().unwrap();
        for backend in ["host-gw", "vxlan"] {
            let mut leases = Leases::build(scratch.path(), backend, 300).await.unwrap();
            leases.remove(299).unwrap();
            leases.add(300).unwrap();
            let registry = FileRegistry::open(leases.store()).await.unwrap();
            let listed = registry.list().await.unwrap();
            assert_eq!(listed.records.len(), 300);
            for record in &listed.records {
                let lease = record.lease().unwrap();
                assert_eq!(record.lifetime, Lifetime::Bounded);
                assert_eq!(lease.attrs.backend_type, backend);
                assert_eq!(lease.attrs.backend_data.is_some(), backend == "vxlan");
                assert!(UNDERLAY.contains(lease.attrs.public_ip.unwrap()));
            }
            assert!(leases.read_plainly().unwrap() > 300 * 50);
        }
    }

    #[test]
    fn peers_share_neither_blocks_nor_addresses() {
        let last = MOST_PEERS - 1;
        assert_eq!(block(0).to_string(), "10.1.0.0/24");
        assert_eq!(block(last).to_string(), "10.254.231.0/24");
        assert!(UNDERLAY.contains(address(last)) && address(last) < UNDERLAY.broadcast());
        assert!(check_count(MOST_PEERS).is_ok() && check_count(MOST_PEERS + 1).is_err());
    }
}
