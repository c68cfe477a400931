//! Owners that others wrote, and that an index of links cannot hold.

use std::fs;

use tempfile::TempDir;

use super::{
    tests::{add, del, ip, open, owner, path},
    *,
};

fn attachment(id: &str, interface: &str) -> Attachment {
    Attachment { container_id: id.to_owned(), interface: interface.to_owned() }
}

fn write(folder: &TempDir, address: &str, text: &str) {
    fs::create_dir_all(path(folder, "")).unwrap();
    fs::write(path(folder, address), text).unwrap();
}

#[test]
fn an_owner_with_a_long_name_costs_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let long = "a".repeat(300);
    write(&folder, "10.0.0.2", &format!("{long}\r\neth0"));
    assert_eq!(add(&folder, "c1"), Some(ip("10.0.0.3")));
    let mut store = open(&folder, "boot");
    assert_eq!(store.addresses(&owner(&long)).unwrap(), [ip("10.0.0.2")]);
    store.retain(&[attachment(&long, "eth0"), attachment("c1", "eth0")]).unwrap();
    assert_eq!(store.entries().unwrap().len(), 2);
    drop(store);
    del(&folder, &long);
    assert!(!path(&folder, "10.0.0.2").exists() && path(&folder, "10.0.0.3").exists());
}

#[test]
fn an_owner_of_many_addresses_costs_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let many = |last: u16| format!("10.1.{}.{}", last / 250, last % 250 + 2);
    for number in 0..600 {
        write(&folder, &many(number), "u1\r\neth0");
    }
    assert_eq!(add(&folder, "c1"), Some(ip("10.0.0.2")));
    // One more, in a partial index: neither half of them nor the new one alone.
    let mut store = open(&folder, "boot");
    assert!(store.reserve(&owner("u1"), ip("10.0.0.6"), 0).unwrap());
    assert_eq!(store.addresses(&owner("u1")).unwrap().len(), 601);
    assert_eq!(store.release(&owner("u1")).unwrap().len(), 601);
    store.commit().unwrap();
    assert_eq!(store.entries().unwrap().len(), 1);
    assert_eq!(store.addresses(&owner("c1")).unwrap(), [ip("10.0.0.2")]);
    drop(store);
    // With the next look at all files the index is whole again.
    write(&folder, "10.0.0.5", "u2\r\neth0");
    assert!(!open(&folder, "boot").index.is_partial());
}

#[test]
fn gc_takes_no_file_of_an_old_version_for_that_of_another_interface() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, "10.0.0.2", "c1");
    write(&folder, "10.0.0.3", "c1\r\neth1");
    // Two of one attachment that is gone.
    write(&folder, "10.0.0.4", "c1\r\neth2");
    write(&folder, "10.0.0.5", "c1\r\neth2");
    let mut store = open(&folder, "boot");
    store.retain(&[attachment("c1", "eth0"), attachment("c1", "eth1")]).unwrap();
    let left: Vec<IpAddr> = store.entries().unwrap().iter().map(|it| it.address).collect();
    assert_eq!(left, [ip("10.0.0.2"), ip("10.0.0.3")]);
}
