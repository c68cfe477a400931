//! Any history of a folder, against a model.

use std::{collections::BTreeMap, fs};

use proptest::prelude::*;

use super::{
    tests::{open, owner, path, pod_name, set, upstream_add},
    *,
};

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
