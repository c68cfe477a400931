//! Files and folders that people and faults damage.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::symlink},
    time::Duration,
};

use flannel_core::{LeaseEvent, MAX_LEASE_BYTES, NodeId, Store, StoreError, testing::StoreFixture};
use flannel_store::{FileStore, LeaseOptions};
use futures::StreamExt;
use tokio::time::{Instant, timeout};

use crate::{Folder, LIMIT, NETWORK, TINY, at, item};

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
    assert_eq!(item(&mut watch).await.unwrap(), LeaseEvent::reset(vec![one.lease().clone()]));

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
        assert_eq!(item(&mut watch).await.unwrap(), LeaseEvent::upsert(other.lease().clone()));
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
    let reset = LeaseEvent::reset(vec![lease.lease().clone()]);
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
async fn a_folder_that_another_process_made_anew_is_used_without_a_restart() {
    let folder = Folder::build(NETWORK).await;
    let store = folder.open("n1", LeaseOptions::default()).await;
    let mut lease = store.acquire(&at(1)).await.unwrap();
    let mut watch = store.watch();
    let reset = LeaseEvent::reset(vec![lease.lease().clone()]);
    assert_eq!(item(&mut watch).await.unwrap(), reset);
    let mut configs = store.watch_config();
    assert_eq!(configs.next().await.unwrap().unwrap(), NETWORK.parse().unwrap());
    fs::remove_dir_all(folder.path()).unwrap();
    item(&mut watch).await.unwrap_err();
    lease.renew().await.unwrap_err();
    timeout(LIMIT, configs.next()).await.unwrap().unwrap().unwrap_err();

    FileStore::init(folder.path(), &NETWORK.parse().unwrap()).await.unwrap();
    let other = folder.open("n2", LeaseOptions::default()).await.acquire(&at(2)).await.unwrap();
    assert!(matches!(lease.renew().await, Err(StoreError::Revoked { owner: None, .. })));
    let again = store.acquire(&at(1)).await.unwrap();
    assert_eq!(again.lease().subnet, lease.lease().subnet);
    let mut known = BTreeMap::new();
    while known.len() < 2 {
        match item(&mut watch).await {
            Ok(LeaseEvent::Reset(leases)) => {
                known = leases.into_iter().map(|lease| (lease.subnet, lease)).collect();
            }
            Ok(LeaseEvent::Upsert(lease)) => drop(known.insert(lease.subnet, lease)),
            Ok(LeaseEvent::Remove(subnet)) => drop(known.remove(&subnet)),
            Err(_) => {}
        }
    }
    assert!([again, other].iter().all(|lease| *known[&lease.lease().subnet] == *lease.lease()));
    let mut configs = configs.filter(|config| std::future::ready(config.is_ok()));
    timeout(LIMIT, configs.next()).await.expect("the config is back");
}

#[tokio::test]
async fn a_disk_that_is_full_for_longer_than_a_lease_lasts_ends_no_lease() {
    let folder = Folder::build(TINY).await;
    let options = LeaseOptions { ttl: Duration::from_secs(1), ..LeaseOptions::default() };
    let store = folder.open("n1", options).await;
    let mut lease = store.acquire(&at(1)).await.unwrap();
    let mut watch = folder.open("n2", LeaseOptions::default()).await.watch();
    let known = item(&mut watch).await.unwrap();
    assert_eq!(known, LeaseEvent::reset(vec![lease.lease().clone()]));
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
