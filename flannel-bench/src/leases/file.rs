//! Leases as files in a folder.

use std::{
    ffi::OsString,
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use flannel_store::{FileRegistry, FileStore, Registry};
use tokio::time::Instant;

use super::{LIFETIME, attrs, key, node, replace_config};
use crate::network::{Plan, network};

/// A folder in `FileStore`'s format.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    next_revision: u64,
}

impl File {
    pub(super) async fn make(path: PathBuf, plan: Plan<'_>) -> Result<Self> {
        FileStore::init(&path, &network(plan.backend, plan.family)?).await?;
        let mut file = Self { path, next_revision: 1 };
        for number in 0..plan.peers {
            file.add(plan.backend, number)?;
        }
        // Without it the next writer counts the revisions of all leases anew.
        let path = file.path.join("revision");
        fs::write(&path, format!("{}\n", file.next_revision))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(file)
    }

    /// Where the leases are.
    pub(super) fn subnets(&self) -> PathBuf {
        self.path.join("subnets")
    }

    pub(super) fn node_args(&self) -> Vec<OsString> {
        let mut store = OsString::from("file:");
        store.push(&self.path);
        vec!["--store".into(), store]
    }

    pub(super) fn add(&mut self, backend: &str, number: u32) -> Result<()> {
        let text = text(backend, number, self.next_revision, SystemTime::now())?;
        self.next_revision += 1;
        let (temporary, path) = (self.path.with_extension("lease"), self.lease(number)?);
        let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, &path));
        written.with_context(|| format!("cannot write {}", path.display()))
    }

    pub(super) fn remove(&self, number: u32) -> Result<()> {
        let path = self.lease(number)?;
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    pub(super) async fn list(&self) -> Result<(usize, Duration)> {
        let registry = FileRegistry::open(&self.path).await?;
        let start = Instant::now();
        let listed = registry.list().await?;
        Ok((listed.records.len(), start.elapsed()))
    }

    /// Reads every file once.
    pub(super) fn read_plainly(&self) -> Result<Duration> {
        let start = Instant::now();
        let read = fs::read_dir(self.subnets()).and_then(|files| {
            files.map(|file| fs::read(file?.path())).collect::<Result<Vec<_>, _>>()
        });
        drop(read.with_context(|| format!("cannot read {}", self.path.display()))?);
        Ok(start.elapsed())
    }

    pub(super) async fn reconfigure(&self, json: &str) -> Result<()> {
        Ok(replace_config(&FileRegistry::open(&self.path).await?, json).await?)
    }

    fn lease(&self, number: u32) -> Result<PathBuf> {
        Ok(self.subnets().join(key(number)?))
    }
}

fn text(backend: &str, number: u32, revision: u64, now: SystemTime) -> Result<String> {
    let expires = humantime::format_rfc3339_seconds(now + LIFETIME);
    let ours = serde_json::json!({
        "Node": node(number),
        "Revision": revision,
        "Expires": expires.to_string(),
    });
    Ok(format!("{}\n{ours}\n", attrs(backend, number)?))
}

#[cfg(test)]
mod tests {
    use flannel_core::NetworkConfig;
    use flannel_store::Lifetime;

    use super::*;
    use crate::{
        args::{Family, StoreKind},
        network::address,
    };

    #[tokio::test]
    async fn the_store_reads_what_was_written() {
        let scratch = tempfile::tempdir().unwrap();
        for backend in ["host-gw", "vxlan"] {
            let path = scratch.path().join(backend);
            let plan = Plan { store: StoreKind::File, backend, family: Family::V4, peers: 300 };
            let mut file = File::make(path, plan).await.unwrap();
            file.remove(299).unwrap();
            file.add(backend, 300).unwrap();
            let registry = FileRegistry::open(&file.path).await.unwrap();
            let listed = registry.list().await.unwrap();
            assert_eq!(listed.records.len(), 300);
            for record in &listed.records {
                let lease = record.lease().unwrap();
                assert_eq!(record.lifetime, Lifetime::Bounded);
                assert_eq!(lease.attrs.backend_type, backend);
                assert_eq!(lease.attrs.backend_data.is_some(), backend == "vxlan");
                assert!(lease.attrs.public_ip.unwrap() >= address(0));
            }
            assert_eq!(file.list().await.unwrap().0, 300);
            file.read_plainly().unwrap();
            let other = network("vxlan", Family::V4).unwrap();
            file.reconfigure(&serde_json::to_string(&other).unwrap()).await.unwrap();
            let text = registry.config().await.unwrap().text.unwrap();
            assert_eq!(text.parse::<NetworkConfig>().unwrap().backend().kind(), "vxlan");
        }
    }
}
