use std::{collections::BTreeMap, fs, mem::MaybeUninit, path::PathBuf};

use flannel_core::NodeId;
use futures::StreamExt;
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

const VALUE: &str = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#;

async fn folder(count: u8) -> (TempDir, FileRegistry) {
    let folder = tempfile::tempdir().unwrap();
    let registry = FileRegistry::open(folder.path()).await.unwrap();
    for number in 0..count {
        fs::write(path(&folder, number), VALUE).unwrap();
    }
    (folder, registry)
}

fn path(folder: &TempDir, number: u8) -> PathBuf {
    folder.path().join("subnets").join(key(number))
}

fn key(number: u8) -> String {
    format!("10.3.{number}.0-24")
}

fn keys(snapshot: &Snapshot) -> Vec<&str> {
    let mut keys: Vec<_> = snapshot.records.iter().map(|record| &*record.key).collect();
    keys.sort_unstable();
    keys
}

async fn next(changes: &mut BoxStream<'static, Result<Change, RegistryError>>) -> Change {
    let next = timeout(Duration::from_secs(10), changes.next()).await;
    next.expect("a change").expect("a watch never ends").unwrap()
}

#[tokio::test]
async fn a_start_reads_every_file_once() {
    let (folder, registry) = folder(20).await;
    let opened = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&opened, folder.path().join("subnets"), WatchFlags::OPEN).unwrap();

    let since = registry.list().await.unwrap();
    assert_eq!(since.records.len(), 20);
    let mut changes = registry.watch(since);
    fs::write(path(&folder, 20), VALUE).unwrap();
    let change = next(&mut changes).await;
    assert!(matches!(change, Change::Put(record) if record.key == key(20)));

    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(&opened, &mut buffer);
    let mut opens: BTreeMap<String, u32> = BTreeMap::new();
    while let Ok(notice) = reader.next() {
        let name = notice.file_name().map(|name| name.to_string_lossy().into_owned());
        *opens.entry(name.unwrap_or_default()).or_default() += 1;
    }
    // The one that was changed was opened by us as well.
    assert_eq!(opens.remove(&key(20)), Some(2));
    // The folder itself.
    opens.remove("");
    let once = (0..20).map(|number| (key(number), 1)).collect();
    assert_eq!(opens, once);
}

#[tokio::test]
async fn a_large_folder_is_listed_completely() {
    let (folder, registry) = folder(0).await;
    let mut written: Vec<_> =
        (0..2049).map(|number| format!("10.{}.{}.0-24", number / 256, number % 256)).collect();
    for key in &written {
        fs::write(folder.path().join("subnets").join(key), VALUE).unwrap();
    }
    written.sort_unstable();
    assert_eq!(keys(&registry.list().await.unwrap()), written);
}

#[tokio::test]
async fn a_list_shows_all_that_happened_before_it() {
    let (folder, registry) = folder(3).await;
    assert_eq!(keys(&registry.list().await.unwrap()), [key(0), key(1), key(2)]);
    fs::write(path(&folder, 0), format!("{VALUE}\n{{\"Revision\":7}}\n")).unwrap();
    fs::remove_file(path(&folder, 1)).unwrap();
    fs::rename(path(&folder, 2), path(&folder, 3)).unwrap();
    let write = NewRecord { value: VALUE.into(), owner: NodeId::new("n1").ok(), ttl: None };
    registry.create(&key(4), &write).await.unwrap();
    let snapshot = registry.list().await.unwrap();
    assert_eq!(keys(&snapshot), [key(0), key(3), key(4)]);
    let changed = snapshot.records.iter().find(|record| record.key == key(0)).unwrap();
    assert_eq!(changed.revision, 7);
    assert_eq!(snapshot.revision, 8);
}

#[tokio::test]
async fn a_watch_tells_what_happened_after_the_list_it_starts_from() {
    let (folder, registry) = folder(3).await;
    let since = registry.list().await.unwrap();
    fs::remove_file(path(&folder, 1)).unwrap();
    // Takes in the change, which the one who watches has not seen.
    registry.list().await.unwrap();
    fs::write(path(&folder, 3), VALUE).unwrap();
    let mut changes = registry.watch(since);
    fs::remove_file(path(&folder, 2)).unwrap();
    let mut told = Vec::new();
    for _ in 0..3 {
        told.push(match next(&mut changes).await {
            Change::Delete(key) => format!("delete {key}"),
            Change::Put(record) => format!("put {}", record.key),
        });
    }
    told.sort_unstable();
    let expected = [format!("delete {}", key(1)), format!("delete {}", key(2))];
    assert_eq!(told[..2], expected);
    assert_eq!(told[2], format!("put {}", key(3)));
}

#[tokio::test]
async fn a_folder_that_was_replaced_is_read_anew() {
    let (folder, registry) = folder(1).await;
    registry.list().await.unwrap();
    fs::rename(folder.path().join("subnets"), folder.path().join("old")).unwrap();
    fs::create_dir(folder.path().join("subnets")).unwrap();
    assert_eq!(registry.list().await.unwrap().records, []);
    fs::write(path(&folder, 5), VALUE).unwrap();
    assert_eq!(keys(&registry.list().await.unwrap()), [key(5)]);
}

#[tokio::test]
async fn a_config_is_followed_however_it_is_changed() {
    let (folder, registry) = folder(0).await;
    let path = folder.path().join("config");
    let beside = folder.path().join("config.new");
    let mut seen = registry.config().await.unwrap();
    let changes: [(&dyn Fn(), Option<&str>); 5] = [
        (&|| fs::write(&path, "one").unwrap(), Some("one")),
        (&|| fs::write(&path, "two").unwrap(), Some("two")),
        (&|| fs::rename(&beside, &path).unwrap(), Some("three")),
        (&|| fs::remove_file(&path).unwrap(), None),
        (&|| fs::write(&path, "four").unwrap(), Some("four")),
    ];
    fs::write(&beside, "three").unwrap();
    for (change, text) in changes {
        let changed = async {
            // A look may come in the middle of a write.
            while seen.text.as_deref() != text {
                seen = registry.config_changed_polling(&seen, Duration::MAX).await.unwrap();
            }
        };
        let (told, ()) = tokio::join!(timeout(Duration::from_secs(60), changed), async {
            sleep(Duration::from_millis(20)).await;
            change();
        });
        told.unwrap_or_else(|_| panic!("not told of {text:?}"));
    }
}
