//! The contract of a store, kept in a folder; and what becomes of a folder that people and faults damage.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt, fs::PermissionsExt, fs::symlink},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use flannel_core::{
    LeaseAttrs, LeaseEvent, MAX_LEASE_BYTES, NodeId, Store, StoreError,
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
const TINY: &str = r#"{"Network":"10.3.0.0/28"}"#;

fn at(last: u8) -> LeaseAttrs {
    LeaseAttrs { public_ip: Some([192, 0, 2, last].into()), ..LeaseAttrs::default() }
}

async fn item(
    watch: &mut (impl Stream<Item = Result<LeaseEvent, StoreError>> + Unpin),
) -> Result<LeaseEvent, StoreError> {
    timeout(Duration::from_secs(20), watch.next()).await.expect("an event").unwrap()
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
async fn damaged_files_cost_only_themselves() {
    let folder = Folder::build(TINY).await;
    let store = folder.open("n1", LeaseOptions::default()).await;
    let one = store.acquire(&at(1)).await.unwrap();
    let key = |n: u8| format!("10.3.0.{}-30", n * 4);
    let held = one.lease().subnet.to_string();
    let broken: Vec<_> = (1..=3).map(key).filter(|key| *key != held).collect();
    let (path, stray) =
        (folder.lease(&broken[0]), folder.lease(OsStr::from_bytes(b"10.3.0.\xff-30")));
    fs::write(&stray, "{}").unwrap();
    let value = at(2).to_string();
    // That nobody has the damaged subnet may be told, and is nothing new.
    let nobodys = LeaseEvent::Remove(broken[0].parse().unwrap());
    let mut watch = store.watch().filter(|item| {
        let is_news = !matches!(item, Ok(event) if *event == nobodys);
        std::future::ready(is_news)
    });
    assert_eq!(item(&mut watch).await.unwrap(), LeaseEvent::Reset(vec![one.lease().clone()]));

    let damages: [(&str, &dyn Fn()); 9] = [
        ("directory", &|| fs::create_dir(&path).unwrap()),
        ("pipe", &|| {
            rustix::fs::mknodat(
                rustix::fs::CWD,
                &path,
                rustix::fs::FileType::Fifo,
                0o600.into(),
                0,
            )
            .unwrap();
        }),
        ("link to itself", &|| symlink(&path, &path).unwrap()),
        ("link to a device", &|| symlink("/dev/zero", &path).unwrap()),
        ("empty", &|| fs::write(&path, "").unwrap()),
        ("not UTF-8", &|| fs::write(&path, b"{\"PublicIP\":\"\xff\"}").unwrap()),
        ("oversized", &|| fs::write(&path, " ".repeat(MAX_LEASE_BYTES + 5000) + &value).unwrap()),
        ("torn", &|| fs::write(&path, format!("{value}\n{{\"Node\":\"n2\",\"Rev")).unwrap()),
        ("bad time", &|| fs::write(&path, format!("{value}{{\"Expires\":\"soon\"}}")).unwrap()),
    ];
    for (damage, make) in damages {
        let skipped = store.stats().skipped;
        make();
        // The damaged subnet is not handed out, and the other one is.
        let (two, three) = (
            folder.open("n2", LeaseOptions::default()).await,
            folder.open("n3", LeaseOptions::default()).await,
        );
        let (at_two, at_three) = (at(2), at(3));
        let other = timeout(Duration::from_secs(20), two.acquire(&at_two)).await.expect(damage);
        let other = other.unwrap_or_else(|error| panic!("{damage}: {error:?}"));
        assert_eq!(other.lease().subnet.to_string(), broken[1], "{damage}");
        let full = timeout(Duration::from_secs(20), three.acquire(&at_three)).await.expect(damage);
        assert!(matches!(full, Err(StoreError::Full { .. })), "{damage}");
        assert_eq!(item(&mut watch).await.unwrap(), LeaseEvent::Upsert(other.lease().clone()));
        let LeaseEvent::Reset(leases) = item(&mut store.watch()).await.unwrap() else {
            panic!("{damage}: no reset");
        };
        assert_eq!(leases.len(), 2, "{damage}");
        assert!(store.stats().skipped >= skipped + 2, "{damage}");
        // Nothing of ours ever replaces it.
        assert!(fs::symlink_metadata(&path).is_ok(), "{damage}");
        match damage {
            "directory" => fs::remove_dir(&path).unwrap(),
            _ => fs::remove_file(&path).unwrap(),
        }
        let subnet = other.lease().subnet;
        other.release().await.unwrap();
        assert_eq!(item(&mut watch).await.unwrap(), LeaseEvent::Remove(subnet), "{damage}");
    }
}

#[tokio::test]
async fn a_reservation_may_be_written_by_hand_in_any_layout() {
    let folder = Folder::build(NETWORK).await;
    let text = "{\n  \"publicIP\": \"192.0.2.7\",\n  \"BackendType\": \"vxlan\"\n}\n";
    fs::write(folder.lease("10.3.77.0-24"), text).unwrap();
    let store = folder.open("n7", LeaseOptions::default()).await;
    let lease = store.acquire(&at(7)).await.unwrap();
    assert_eq!(lease.lease().subnet.to_string(), "10.3.77.0-24");
    let text = fs::read_to_string(folder.lease("10.3.77.0-24")).unwrap();
    assert_eq!(text, format!("{}\n{{\"Node\":\"n7\",\"Revision\":1}}\n", at(7)));
}

#[tokio::test]
async fn an_edit_by_hand_is_noticed_also_if_it_leaves_the_revision() {
    let folder = Folder::build(NETWORK).await;
    let store = folder.open("n1", LeaseOptions::default()).await;
    let mut watch = store.watch();
    item(&mut watch).await.unwrap();
    let mut lease = store.acquire(&at(1)).await.unwrap();
    item(&mut watch).await.unwrap();
    let path = folder.lease(lease.lease().subnet.to_string());
    let text = fs::read_to_string(&path).unwrap();
    for (before, after) in [("192.0.2.1", "192.0.2.9"), ("\"n1\"", "\"n9\"")] {
        let edited = text.replace(before, after);
        fs::write(&path, &edited).unwrap();
        // A write by hand may be seen half done, as a file that is no lease.
        let seen = loop {
            if let LeaseEvent::Upsert(seen) = item(&mut watch).await.unwrap() {
                break seen;
            }
        };
        assert!(seen.attrs == at(9) || seen.node == NodeId::new("n9").ok());
        assert!(matches!(lease.renew().await, Err(StoreError::Revoked { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), edited);
    }
}

#[tokio::test]
async fn a_lost_counter_is_made_up_for_and_leftovers_are_removed() {
    let folder = Folder::build(NETWORK).await;
    let store = folder.open("n1", LeaseOptions::default()).await;
    let mut lease = store.acquire(&at(1)).await.unwrap();
    for (n, damage) in ["", "garbage", "-1"].into_iter().enumerate() {
        fs::write(folder.path().join("revision"), damage).unwrap();
        lease.publish(&at(10 + n as u8)).await.unwrap();
        let text = fs::read_to_string(folder.lease(lease.lease().subnet.to_string())).unwrap();
        assert!(text.contains(&format!("\"Revision\":{}", n + 2)), "{text}");
    }
    fs::remove_file(folder.path().join("revision")).unwrap();
    fs::remove_file(folder.path().join("lock")).unwrap();
    fs::write(folder.path().join(".write"), "half a lea").unwrap();
    fs::write(folder.lease(".10.3.7.0-24.swp"), "an editor's").unwrap();
    folder.open("n2", LeaseOptions::default()).await;
    assert!(!folder.path().join(".write").exists());
    lease.publish(&at(1)).await.unwrap();
    assert_eq!(fs::read_to_string(folder.path().join("revision")).unwrap(), "5\n");
    let LeaseEvent::Reset(leases) = item(&mut store.watch()).await.unwrap() else {
        panic!("no reset");
    };
    assert_eq!((leases.len(), store.stats().skipped), (1, 0));
}

#[tokio::test]
async fn a_folder_that_is_away_is_an_outage_and_comes_back() {
    let folder = Folder::build(NETWORK).await;
    let store = folder.open("n1", LeaseOptions::default()).await;
    let mut watch = store.watch();
    item(&mut watch).await.unwrap();
    let mut lease = store.acquire(&at(1)).await.unwrap();
    let reset = LeaseEvent::Reset(vec![lease.lease().clone()]);
    for inner in ["subnets", ""] {
        let path = folder.path().join(inner);
        let away = path.with_extension("away");
        // One change that it sees, so that it is at work when the folder goes.
        item(&mut watch).await.unwrap();
        fs::rename(&path, &away).unwrap();
        item(&mut watch).await.unwrap_err();
        assert!(!folder.path().join("subnets").exists(), "nobody makes an empty one");
        assert!(store.acquire(&at(1)).await.is_err());
        fs::rename(&away, &path).unwrap();
        let back = async {
            loop {
                if let Ok(event) = item(&mut watch).await {
                    return event;
                }
            }
        };
        assert_eq!(back.await, reset);
        lease.renew().await.unwrap();
        // The same change again, for the next round.
        let key = lease.lease().subnet.to_string();
        let text = fs::read_to_string(folder.lease(&key)).unwrap();
        fs::remove_file(folder.lease(&key)).unwrap();
        assert_eq!(item(&mut watch).await.unwrap(), LeaseEvent::Remove(lease.lease().subnet));
        fs::write(folder.lease(&key), text).unwrap();
    }
}

#[tokio::test]
async fn a_disk_that_is_full_for_longer_than_a_lease_lasts_ends_no_lease() {
    let folder = Folder::build(TINY).await;
    let options = LeaseOptions { ttl: Duration::from_secs(1), ..LeaseOptions::default() };
    let store = folder.open("n1", options).await;
    let mut lease = store.acquire(&at(1)).await.unwrap();
    let mut watch = folder.open("n2", LeaseOptions::default()).await.watch();
    let known = item(&mut watch).await.unwrap();
    assert_eq!(known, LeaseEvent::Reset(vec![lease.lease().clone()]));
    // Whatever is written goes here first.
    let temporary = folder.path().join(".write");
    symlink("/dev/full", &temporary).unwrap();
    let full = lease.renew().await.unwrap_err();
    assert!(matches!(full, StoreError::Unavailable { .. }), "{full:?}");
    let event = timeout(Duration::from_secs(3), watch.next()).await;
    assert!(event.is_err(), "{event:?}");
    fs::remove_file(&temporary).unwrap();
    lease.renew().await.unwrap();
    let event = timeout(Duration::from_secs(1), watch.next()).await;
    assert!(event.is_err(), "{event:?}");
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
    let (subnet, upsert) = (lease.lease().subnet, LeaseEvent::Upsert(lease.lease().clone()));
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

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_never_released_is_an_outage_that_names_it() {
    let folder = Folder::build(NETWORK).await;
    let store = folder.open("n1", LeaseOptions::default()).await;
    let lock = fs::File::open(folder.path().join("lock")).unwrap();
    lock.lock().unwrap();
    let start = Instant::now();
    let error = store.acquire(&at(1)).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    assert_eq!(error.to_string(), "cannot list the leases");
    let place = folder.path().join("lock").display().to_string();
    let reason = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(reason, format!("another process holds {place}; fuser tells which"));
    assert!(start.elapsed() < Duration::from_secs(11), "{:?}", start.elapsed());
    drop(lock);
    store.acquire(&at(1)).await.unwrap();
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

#[tokio::test]
#[ignore = "a measurement: run with --release --nocapture"]
async fn measure_sixty_thousand_leases() {
    let folder = Folder::build(r#"{"Network":"10.0.0.0/8"}"#).await;
    for n in 256u32..60_256 {
        let [_, _, high, low] = n.to_be_bytes();
        let text = format!(
            "{}\n{{\"Node\":\"n{n}\",\"Revision\":{n},\"Expires\":\"2099-01-01T00:00:00Z\"}}\n",
            at(1)
        );
        fs::write(folder.lease(format!("10.{high}.{low}.0-24")), text).unwrap();
    }
    fs::write(folder.path().join("revision"), "60256\n").unwrap();
    let store = folder.open("me", LeaseOptions::default()).await;
    let start = Instant::now();
    let mut lease = store.acquire(&at(1)).await.unwrap();
    println!("acquire among 60,000: {:?}", start.elapsed());
    let start = Instant::now();
    lease.renew().await.unwrap();
    println!("renew: {:?}", start.elapsed());
    let mut watch = store.watch();
    let start = Instant::now();
    let LeaseEvent::Reset(leases) = item(&mut watch).await.unwrap() else {
        panic!("no reset");
    };
    println!("first item of a watch: {:?}", start.elapsed());
    assert_eq!(leases.len(), 60_001);
    let start = Instant::now();
    lease.publish(&at(2)).await.unwrap();
    println!("publish: {:?}", start.elapsed());
    let start = Instant::now();
    item(&mut watch).await.unwrap();
    println!("seen, with the rescan after the first item: {:?}", start.elapsed());
    let start = Instant::now();
    lease.publish(&at(3)).await.unwrap();
    item(&mut watch).await.unwrap();
    println!("publish and seen: {:?}", start.elapsed());
}
