use std::{fs, os::unix::fs::PermissionsExt, time::SystemTime};

use tempfile::TempDir;

use super::*;
use crate::host_local::{PodName, Range};

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn owner(id: &str) -> Owner {
    Owner { container_id: id.to_owned(), interface: "eth0".to_owned() }
}

pub(super) fn pod_name(number: u8) -> PodName {
    PodName::new(Some("n".into()), Some(format!("db-{number}")), "eth0").unwrap()
}

pub(super) fn set(subnet: &str) -> RangeSet {
    RangeSet::new(vec![Range::new(subnet.parse().unwrap(), None, None, None).unwrap()]).unwrap()
}

pub(super) fn open(folder: &TempDir, boot: &str) -> Store {
    Store::open(folder.path(), "net", boot).unwrap()
}

pub(super) fn add(folder: &TempDir, id: &str) -> Option<IpAddr> {
    let mut store = open(folder, "boot");
    let address = store.reserve_next(&owner(id), &set("10.0.0.0/29"), 0).unwrap();
    store.commit().unwrap();
    address
}

pub(super) fn del(folder: &TempDir, id: &str) {
    let mut store = open(folder, "boot");
    store.release(&owner(id)).unwrap();
    store.commit().unwrap();
}

/// What containernetworking's plugin does to reserve an address.
pub(super) fn upstream_add(folder: &TempDir, address: &str, id: &str) {
    let folder = folder.path().join("net");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(address), format!("{id}\r\neth0")).unwrap();
    fs::write(folder.join("last_reserved_ip.0"), address).unwrap();
}

pub(super) fn path(folder: &TempDir, name: &str) -> PathBuf {
    folder.path().join("net").join(name)
}

#[test]
fn the_files_are_those_of_upstream() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(add(&folder, "c1"), Some(ip("10.0.0.2")));
    assert_eq!(fs::read_to_string(path(&folder, "10.0.0.2")).unwrap(), "c1\r\neth0");
    assert_eq!(fs::read_to_string(path(&folder, "last_reserved_ip.0")).unwrap(), "10.0.0.2");
    let mode = fs::metadata(path(&folder, "10.0.0.2")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut names: Vec<_> = fs::read_dir(path(&folder, ""))
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["10.0.0.2", "last_reserved_ip.0", "lock"]);
}

#[test]
fn addresses_go_round_and_are_not_used_again_at_once() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(add(&folder, "c1"), Some(ip("10.0.0.2")));
    del(&folder, "c1");
    let given: Vec<_> = ["c2", "c3", "c4", "c5", "c6"].map(|id| add(&folder, id).unwrap()).into();
    assert_eq!(given, ["10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.2"].map(ip));
    assert_eq!(add(&folder, "c7"), None, "all are taken");
    del(&folder, "c4");
    assert_eq!(add(&folder, "c7"), Some(ip("10.0.0.5")));
}

#[test]
fn what_upstream_does_in_between_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    upstream_add(&folder, "10.0.0.2", "u1");
    assert_eq!(add(&folder, "c1"), Some(ip("10.0.0.3")));
    upstream_add(&folder, "10.0.0.4", "u2");
    assert_eq!(open(&folder, "boot").addresses(&owner("u2")).unwrap(), [ip("10.0.0.4")]);
    fs::remove_file(path(&folder, "10.0.0.3")).unwrap();
    assert!(open(&folder, "boot").addresses(&owner("c1")).unwrap().is_empty());
    del(&folder, "u1");
    assert!(!path(&folder, "10.0.0.2").exists());
}

#[test]
fn files_of_old_versions_are_released_by_their_container() {
    let folder = tempfile::tempdir().unwrap();
    upstream_add(&folder, "10.0.0.2", "u1");
    fs::write(path(&folder, "10.0.0.2"), "u1").unwrap();
    assert_eq!(open(&folder, "boot").addresses(&owner("u1")).unwrap(), [ip("10.0.0.2")]);
    del(&folder, "u1");
    assert!(!path(&folder, "10.0.0.2").exists());
}

#[test]
fn another_boot_frees_what_was_known_of_the_last_one() {
    let folder = tempfile::tempdir().unwrap();
    add(&folder, "c1");
    upstream_add(&folder, "10.0.0.5", "u1");
    add(&folder, "c2");
    // After the restart upstream was first: its address is of this boot.
    upstream_add(&folder, "10.0.0.4", "u2");
    let store = open(&folder, "another");
    let left: Vec<_> = store.entries().unwrap().into_iter().map(|entry| entry.address).collect();
    assert_eq!(left, [ip("10.0.0.4")]);
    // And stays.
    assert_eq!(store.addresses(&owner("u2")).unwrap(), [ip("10.0.0.4")]);
}

#[test]
fn what_was_there_before_the_first_use_is_not_taken_for_old() {
    let folder = tempfile::tempdir().unwrap();
    upstream_add(&folder, "10.0.0.2", "u1");
    assert_eq!(open(&folder, "boot").entries().unwrap().len(), 1);
    assert_eq!(open(&folder, "boot").entries().unwrap().len(), 1);
}

#[test]
fn an_address_that_another_has_now_is_not_old() {
    let folder = tempfile::tempdir().unwrap();
    add(&folder, "c1");
    // The same address and container, made after the restart.
    fs::remove_file(path(&folder, "10.0.0.2")).unwrap();
    let later = SystemTime::now() + std::time::Duration::from_secs(1);
    upstream_add(&folder, "10.0.0.2", "c1");
    File::options()
        .write(true)
        .open(path(&folder, "10.0.0.2"))
        .unwrap()
        .set_modified(later)
        .unwrap();
    assert_eq!(open(&folder, "another").entries().unwrap().len(), 1);
}

#[test]
fn garbage_costs_itself() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(path(&folder, "10.0.0.2")).unwrap();
    fs::write(path(&folder, "10.0.0.3"), [0xff, 0xfe]).unwrap();
    fs::write(path(&folder, "10.0.0.4"), "").unwrap();
    fs::write(path(&folder, "10.0.0.300"), "x").unwrap();
    fs::write(path(&folder, "last_reserved_ip.0"), "garbage").unwrap();
    assert_eq!(add(&folder, "c1"), Some(ip("10.0.0.4")), "what was never filled is free");
    let mut store = open(&folder, "boot");
    store.retain(&[Attachment { container_id: "c1".into(), interface: "eth0".into() }]).unwrap();
    assert!(path(&folder, "10.0.0.2").exists() && path(&folder, "10.0.0.300").exists());
    assert!(path(&folder, "10.0.0.4").exists() && !path(&folder, "10.0.0.3").exists());
}

#[test]
fn a_folder_that_cannot_be_written_is_an_error_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    add(&folder, "c1");
    // The name of the next address's mark is taken by a folder, as if the disk were full at that moment.
    let taken = folder.path().join(".flannel-cni/net/taken.4");
    fs::remove_file(&taken).unwrap();
    fs::create_dir(&taken).unwrap();
    let mut store = open(&folder, "boot");
    assert!(store.reserve(&owner("c2"), ip("10.0.0.3"), 0).is_err());
    drop(store);
    assert!(!path(&folder, "10.0.0.3").exists());
}

#[test]
fn files_that_cannot_be_read_stay_taken() {
    let folder = tempfile::tempdir().unwrap();
    let (wide, all) = (set("10.0.0.0/16"), 600);
    let mut store = open(&folder, "boot");
    for number in 0..all {
        store.reserve_next(&owner(&format!("c{number}")), &wide, 0).unwrap();
    }
    store.commit().unwrap();
    drop(store);
    for file in fs::read_dir(path(&folder, "")).unwrap() {
        let file = file.unwrap();
        let name = file.file_name().into_string().unwrap();
        if name.parse::<IpAddr>().is_ok() && name != "10.0.0.9" {
            fs::write(file.path(), [0xff]).unwrap();
        }
    }
    fs::remove_file(path(&folder, "last_reserved_ip.0")).unwrap();
    let mut store = open(&folder, "boot");
    assert!(store.addresses(&owner("c3")).unwrap().is_empty());
    assert_eq!(store.next_free(&wide, 0).unwrap(), Some(ip("10.0.2.90")));
    assert_eq!(store.release(&owner("c7")).unwrap(), [ip("10.0.0.9")]);
    store.commit().unwrap();
    assert_eq!(store.next_free(&wide, 0).unwrap(), Some(ip("10.0.0.9")));
}

#[test]
fn an_index_that_is_true_spares_the_files() {
    let folder = tempfile::tempdir().unwrap();
    add(&folder, "c1");
    // In place, which does not change the folder: the index is not asked to notice.
    fs::write(path(&folder, "10.0.0.2"), "somebody else").unwrap();
    let mut store = open(&folder, "boot");
    assert_eq!(store.addresses(&owner("c1")).unwrap(), [ip("10.0.0.2")]);
    // But a file is only removed after a look at whose it is.
    store.release(&owner("c1")).unwrap();
    assert!(path(&folder, "10.0.0.2").exists());
}

#[test]
fn ipv6_addresses_have_an_index_too() {
    let folder = tempfile::tempdir().unwrap();
    let wide = set("fd00:1::/64");
    let mut store = open(&folder, "boot");
    let one = store.reserve_next(&owner("c1"), &wide, 0).unwrap();
    assert_eq!(one, Some(ip("fd00:1::2")));
    // The last address of a file of the index, and the first of the next.
    fs::write(path(&folder, "last_reserved_ip.0"), "fd00:1::ffff:fffe").unwrap();
    let next = |id| ip(&store.reserve_next(&owner(id), &wide, 0).unwrap().unwrap().to_string());
    let given: Vec<_> = ["c2", "c3"].map(next).into();
    assert_eq!(given, [ip("fd00:1::ffff:ffff"), ip("fd00:1::1:0:0")]);
}
