//! The contract of a store, kept in a folder; and what becomes of a folder that people and faults damage.

mod damage;

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use flannel_core::{
    LeaseAttrs, LeaseEvent, NodeId, Store, StoreError,
    testing::{Entry, StoreFixture},
};
use flannel_store::{
    FileRegistry, FileStore, InitError, LeaseOptions, Registry, testing::RegistryFixture,
};
use futures::{Stream, StreamExt};
use tempfile::TempDir;
use tokio::time::{Instant, timeout};

struct Folder(TempDir);

impl Folder {
    fn path(&self) -> &Path {
        self.0.path()
    }

    fn lease(&self, key: impl AsRef<OsStr>) -> PathBuf {
        self.path().join("subnets").join(key.as_ref())
    }

    async fn open(&self, node: &str, options: LeaseOptions) -> FileStore {
        FileStore::open(self.path(), node.parse().unwrap(), options).await.unwrap()
    }
}

impl StoreFixture for Folder {
    async fn build(config: &str) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        FileStore::init(folder.path(), &config.parse().unwrap()).await.unwrap();
        folder
    }

    async fn store(&self, node: &str) -> Arc<dyn Store> {
        Arc::new(self.open(node, LeaseOptions::default()).await)
    }

    async fn put(&self, key: &str, value: &str) {
        fs::write(self.lease(key), value).unwrap();
    }

    async fn remove(&self, key: &str) {
        if self.lease(key).exists() {
            fs::remove_file(self.lease(key)).unwrap();
        }
    }

    async fn entries(&self) -> BTreeMap<String, Entry> {
        let files = fs::read_dir(self.path().join("subnets")).unwrap().map(Result::unwrap);
        let entry = |file: fs::DirEntry| {
            let text = String::from_utf8(fs::read(file.path()).unwrap()).unwrap();
            let (value, ours) = text.split_once('\n').unwrap_or((&text, ""));
            let entry = Entry { value: value.into(), expires: ours.contains("\"Expires\"") };
            (file.file_name().into_string().unwrap(), entry)
        };
        files.map(entry).collect()
    }

    async fn set_config(&self, config: Option<&str>) {
        match config {
            Some(text) => fs::write(self.path().join("config"), text).unwrap(),
            None => fs::remove_file(self.path().join("config")).unwrap(),
        }
    }

    /// Overflows the kernel's queue of notices.
    async fn outrun(&self) {
        let queue = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        for _ in 0..queue.trim().parse::<u32>().unwrap() {
            fs::write(self.lease(".noise"), "").unwrap();
            fs::remove_file(self.lease(".noise")).unwrap();
        }
    }

    /// The inotify instances of this process that watch the folder.
    async fn open_watches(&self) -> usize {
        let inode = fs::metadata(self.path().join("subnets")).unwrap().ino();
        let watch = format!(" ino:{inode:x} ");
        let descriptors = fs::read_dir("/proc/self/fdinfo").unwrap().map(Result::unwrap);
        let text = |file: fs::DirEntry| fs::read_to_string(file.path()).unwrap_or_default();
        descriptors
            .filter(|file| file.path().exists())
            .map(text)
            .filter(|text| text.contains(&watch))
            .count()
    }
}

flannel_core::store_conformance!(Folder, real_time);

struct Registries(Folder);

impl RegistryFixture for Registries {
    async fn build(config: &str) -> Self {
        Self(Folder::build(config).await)
    }

    async fn registry(&self, _node: &str) -> impl Registry {
        FileRegistry::open(self.0.path()).await.unwrap()
    }
}

mod registry {
    flannel_store::registry_conformance!(super::Registries, real_time);
}

const NETWORK: &str = r#"{"Network":"10.3.0.0/16"}"#;
/// Long enough for a loaded machine.
const LIMIT: Duration = Duration::from_secs(20);

const TINY: &str = r#"{"Network":"10.3.0.0/28"}"#;

fn at(last: u8) -> LeaseAttrs {
    LeaseAttrs { public_ip: Some([192, 0, 2, last].into()), ..LeaseAttrs::default() }
}

async fn item(
    watch: &mut (impl Stream<Item = Result<LeaseEvent, StoreError>> + Unpin),
) -> Result<LeaseEvent, StoreError> {
    timeout(LIMIT, watch.next()).await.expect("an event").unwrap()
}

#[tokio::test]
async fn files_are_as_documented() {
    let folder = Folder::build(NETWORK).await;
    let store = folder.open("n1", LeaseOptions::default()).await;
    let lease = store.acquire(&at(1)).await.unwrap();
    let text = fs::read_to_string(folder.lease(lease.lease().subnet.to_string())).unwrap();
    let (value, ours) = text.split_once('\n').unwrap();
    assert_eq!(value, r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#);
    assert!(ours.starts_with(r#"{"Node":"n1","Revision":1,"Expires":"2"#), "{ours}");
    assert!(ours.ends_with("Z\"}\n"), "{ours}");
    let config = fs::read_to_string(folder.path().join("config")).unwrap();
    assert_eq!(config.parse(), NETWORK.parse::<flannel_core::NetworkConfig>());
    let mut names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config", "lock", "revision", "subnets"]);
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(folder.path().join("subnets")), 0o755);
}

#[tokio::test]
async fn a_network_is_set_up_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b");
    let vxlan = r#"{"Network":"10.3.0.0/16", "Backend": {"Type": "vxlan"}}"#.parse().unwrap();
    FileStore::init(&path, &vxlan).await.unwrap();
    fs::write(
        path.join("config"),
        "{\n \"network\" : \"10.3.0.0/16\",\n \"backend\": {\n\"Type\":\"vxlan\"} }",
    )
    .unwrap();
    FileStore::init(&path, &vxlan).await.unwrap();
    let error = FileStore::init(&path, &TINY.parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, InitError::Differs { .. }), "{error:?}");
    fs::write(path.join("config"), "{").unwrap();
    let error = FileStore::init(&path, &vxlan).await.unwrap_err();
    assert!(matches!(error, InitError::Unusable { .. }), "{error:?}");
    assert_eq!(fs::read_to_string(path.join("config")).unwrap(), "{");
}

#[tokio::test]
async fn of_two_that_set_up_different_networks_one_succeeds() {
    for _ in 0..10 {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (NETWORK.parse().unwrap(), TINY.parse().unwrap());
        let (one, two) = tokio::join!(
            FileStore::init(folder.path(), &one),
            FileStore::init(folder.path(), &two)
        );
        assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
    }
}

#[tokio::test]
async fn errors_name_the_path_and_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = FileStore::open(&file, NodeId::new("n1").unwrap(), LeaseOptions::default()).await;
    let error = error.unwrap_err();
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("os error"));

    let store =
        FileStore::open(folder.path(), NodeId::new("n1").unwrap(), LeaseOptions::default()).await;
    let error = store.unwrap().acquire(&at(1)).await.unwrap_err();
    let place = folder.path().join("config").display().to_string();
    assert!(matches!(error, StoreError::ConfigMissing { place: p } if p == place));
}

#[tokio::test]
async fn a_lease_expires_in_the_watch_and_stays_its_nodes_until_somebody_needs_it() {
    let folder = Folder::build(TINY).await;
    let ttl = Duration::from_secs(1);
    let options = LeaseOptions { ttl, ..LeaseOptions::default() };
    let store = folder.open("n1", options).await;
    let mut watch = store.watch();
    item(&mut watch).await.unwrap();
    let start = Instant::now();
    let mut lease = store.acquire(&at(1)).await.unwrap();
    let (subnet, upsert) = (lease.lease().subnet, LeaseEvent::upsert(lease.lease().clone()));
    assert_eq!(item(&mut watch).await.unwrap(), upsert);
    assert_eq!(item(&mut watch).await.unwrap(), LeaseEvent::Remove(subnet));
    let lasted = start.elapsed();
    assert!(lasted >= ttl && lasted < ttl + Duration::from_millis(1500), "{lasted:?}");
    assert_eq!(item(&mut store.watch()).await.unwrap(), LeaseEvent::Reset(vec![]));

    lease.renew().await.unwrap();
    assert_eq!(item(&mut watch).await.unwrap(), upsert);
    assert_eq!(item(&mut watch).await.unwrap(), LeaseEvent::Remove(subnet));
    // It is its node's first choice after a restart, and the last for the others.
    let again = folder.open("n1", options).await;
    assert_eq!(again.previous().await.unwrap().unwrap().subnet, subnet);
    let others = ["n2", "n3", "n4"].map(|name| folder.open(name, LeaseOptions::default()));
    let mut given = Vec::new();
    for (other, last) in others.into_iter().zip(9..) {
        let other = other.await;
        let lease = timeout(Duration::from_secs(20), other.acquire(&at(last))).await;
        given.push(lease.expect("a subnet").unwrap().lease().subnet);
    }
    assert_eq!(given[2], subnet);
    assert!(!given[..2].contains(&subnet));
    let error = lease.renew().await.unwrap_err();
    assert!(
        matches!(error, StoreError::Revoked { owner: Some(owner), .. } if owner.as_str() == "n4")
    );
}

#[tokio::test]
async fn several_networks_of_one_machine_do_not_meet() {
    let parent = tempfile::tempdir().unwrap();
    let mut subnets = Vec::new();
    for name in ["a", "b"] {
        let path = parent.path().join(name);
        FileStore::init(&path, &NETWORK.parse().unwrap()).await.unwrap();
        let store =
            FileStore::open(&path, "n1".parse().unwrap(), LeaseOptions::default()).await.unwrap();
        subnets.push(store.acquire(&at(1)).await.unwrap().lease().subnet);
    }
    assert_eq!(subnets[0], subnets[1], "the same node starts its search at the same place");
}
