use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::host_local::{PodName, Range};

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn owner(id: &str) -> Owner {
    Owner { container_id: id.to_owned(), interface: "eth0".to_owned() }
}

fn pod_name(number: u8) -> PodName {
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
fn upstream_add(folder: &TempDir, address: &str, id: &str) {
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

#[derive(Clone, Debug)]
enum Op {
    Add(u8),
    /// An `ADD` of a container that is a pod which gets its address back.
    AddPod(u8, u8),
    Del(u8),
    /// An `ADD` that is killed before its end: with an address, or with an empty file.
    Killed(u8, bool),
    Gc(Vec<u8>),
    Reboot,
    Request(u8, u8),
    UpstreamAdd(u8, u8),
    UpstreamDel(u8),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0_u8..8).prop_map(Op::Add),
        4 => (0_u8..8, 0_u8..3).prop_map(|(id, pod)| Op::AddPod(id, pod)),
        3 => (0_u8..8).prop_map(Op::Del),
        1 => (0_u8..8, any::<bool>()).prop_map(|(id, empty)| Op::Killed(id, empty)),
        1 => prop::collection::vec(0_u8..8, 0..5).prop_map(Op::Gc),
        1 => Just(Op::Reboot),
        1 => (0_u8..8, 2_u8..7).prop_map(|(id, last)| Op::Request(id, last)),
        2 => (0_u8..8, 2_u8..7).prop_map(|(id, last)| Op::UpstreamAdd(id, last)),
        1 => (0_u8..8).prop_map(Op::UpstreamDel),
    ]
}

/// Who has which address, which pod gets which back, and where the search goes on.
#[derive(Debug, Default)]
struct Model {
    owners: BTreeMap<u8, u8>,
    kept: BTreeMap<u8, u8>,
    last: Option<u8>,
}

impl Model {
    fn next(&self) -> Option<u8> {
        let first = self.last.map_or(2, |last| if last >= 6 { 2 } else { last + 1 });
        let free = (first..7).chain(2..first).filter(|it| !self.owners.contains_key(it));
        let unkept = free.clone().find(|address| self.kept.values().all(|it| it != address));
        unkept.or_else(|| free.into_iter().next())
    }

    /// Somebody has an address now, who gets it back or not.
    fn give(&mut self, address: u8, owner: u8, pod: Option<u8>) {
        self.owners.insert(address, owner);
        self.kept.retain(|_, it| *it != address);
        self.kept.extend(pod.map(|pod| (pod, address)));
        self.last = Some(address);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_history_ends_as_in_the_model(ops in prop::collection::vec(op(), 1..40)) {
        let folder = tempfile::tempdir().unwrap();
        let (mut model, mut boots) = (Model::default(), 0);
        // Ours is the first: what is there before that is nobody's boot.
        drop(open(&folder, "0"));
        let id = |number: u8| format!("c{number}");
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        let last_of = |address: IpAddr| match address { IpAddr::V4(v4) => v4.octets()[3], IpAddr::V6(_) => 0 };
        for op in ops {
            let boot = boots.to_string();
            match op {
                Op::Add(number) | Op::Killed(number, false) => {
                    let mut store = open(&folder, &boot);
                    let given = store.reserve_next(&owner(&id(number)), &set("10.0.0.0/29"), 0).unwrap();
                    prop_assert_eq!(given.map(last_of), model.next());
                    let Some(given) = given else { continue };
                    if matches!(op, Op::Killed(..)) {
                        model.owners.insert(last_of(given), number);
                        model.last = Some(last_of(given));
                    } else {
                        store.keep(None, &[given]).unwrap();
                        model.give(last_of(given), number, None);
                        store.commit().unwrap();
                    }
                }
                Op::AddPod(number, pod) => {
                    let mut store = open(&folder, &boot);
                    let wide = set("10.0.0.0/29");
                    let again = store.reserve_again(&owner(&id(number)), &pod_name(pod), &wide, 0).unwrap();
                    let before = model.kept.get(&pod).filter(|it| !model.owners.contains_key(it));
                    prop_assert_eq!(again.map(last_of), before.copied());
                    let next = || store.reserve_next(&owner(&id(number)), &wide, 0).unwrap();
                    let given = again.or_else(next);
                    prop_assert_eq!(given.map(last_of), before.copied().or_else(|| model.next()));
                    let Some(given) = given else { continue };
                    store.keep(Some(&pod_name(pod)), &[given]).unwrap();
                    model.give(last_of(given), number, Some(pod));
                    store.commit().unwrap();
                }
                Op::Killed(..) => {
                    if let Some(next) = model.next() {
                        fs::write(path(&folder, &address(next).to_string()), "").unwrap();
                    }
                }
                Op::Del(number) => {
                    let mut store = open(&folder, &boot);
                    store.release(&owner(&id(number))).unwrap();
                    store.commit().unwrap();
                    model.owners.retain(|_, owner| *owner != number);
                }
                Op::Gc(valid) => {
                    let attachment = |number: &u8| Attachment { container_id: id(*number), interface: "eth0".into() };
                    let list: Vec<_> = valid.iter().map(attachment).collect();
                    open(&folder, &boot).retain(&list).unwrap();
                    model.owners.retain(|_, owner| valid.contains(owner));
                }
                Op::Reboot => {
                    // All that happened before a restart is known to the index: somebody called a plugin of ours last.
                    drop(open(&folder, &boot));
                    boots += 1;
                    model.owners.clear();
                }
                Op::Request(number, last) => {
                    let mut store = open(&folder, &boot);
                    let given = store.reserve(&owner(&id(number)), address(last), 0).unwrap();
                    prop_assert_eq!(given, !model.owners.contains_key(&last));
                    if given {
                        store.keep(None, &[address(last)]).unwrap();
                        model.give(last, number, None);
                    }
                    store.commit().unwrap();
                }
                Op::UpstreamAdd(number, last) => {
                    let path = path(&folder, &address(last).to_string());
                    // It takes no empty file.
                    if !path.exists() && !model.owners.contains_key(&last) {
                        upstream_add(&folder, &address(last).to_string(), &id(number));
                        model.owners.insert(last, number);
                        model.last = Some(last);
                    }
                }
                Op::UpstreamDel(number) => {
                    for last in 2..7 {
                        let path = path(&folder, &address(last).to_string());
                        if fs::read_to_string(&path).is_ok_and(|text| text == format!("{}\r\neth0", id(number))) {
                            fs::remove_file(path).unwrap();
                        }
                    }
                    model.owners.retain(|_, owner| *owner != number);
                }
            }
            let store = open(&folder, &boots.to_string());
            let entries = store.entries().unwrap();
            let found: BTreeMap<u8, String> = entries
                .into_iter()
                .map(|entry| (last_of(entry.address), entry.owner.unwrap().container_id))
                .collect();
            let expected: BTreeMap<u8, String> =
                model.owners.iter().map(|(last, number)| (*last, id(*number))).collect();
            prop_assert_eq!(&found, &expected);
            let kept = store.kept().unwrap();
            let kept: BTreeMap<_, _> =
                kept.into_iter().map(|(address, pod)| (pod.name, last_of(address))).collect();
            let expected_kept: BTreeMap<_, _> =
                model.kept.iter().map(|(pod, last)| (pod_name(*pod).name, *last)).collect();
            prop_assert_eq!(kept, expected_kept);
            for number in 0..8 {
                let mut known = store.addresses(&owner(&id(number))).unwrap();
                known.sort();
                let expected: Vec<_> = expected
                    .iter()
                    .filter(|(_, owner)| **owner == id(number))
                    .map(|(last, _)| address(*last))
                    .collect();
                prop_assert_eq!(known, expected);
            }
        }
    }
}
