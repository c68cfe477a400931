use ipnetwork::IpNetwork;
use proptest::prelude::*;

mod kernel_model;

use self::kernel_model::Kernel;
use super::*;
use crate::{
    diff::Stage,
    state::{Neighbour, Nexthop, Route},
    table::DriftChange,
};

const OURS: u32 = 1;
const THEIRS: u32 = 2;
const PROTOCOL: u8 = 90;
const DEVICE: u32 = 7;

fn mark() -> Mark {
    let mut mark = Mark::new(PROTOCOL, ["10.244.0.0/16".parse::<IpNetwork>().unwrap()]);
    mark.nexthops = 100..=199;
    mark.devices.insert("flannel.1".to_owned());
    mark
}

fn link(index: u32, name: &str, up: bool) -> Link {
    Link { mtu: 1450, up, running: up, ..crate::state::testing::link(index, name) }
}

fn route(number: u8, gateway: u8, protocol: u8) -> Object {
    let route = Route::new(format!("10.244.{number}.0/24").parse().unwrap(), protocol);
    route.via_gateway(format!("192.0.2.{gateway}").parse().unwrap(), 2).into()
}

fn neighbour(number: u8, mac: u8) -> Object {
    let address = format!("10.244.{number}.0").parse().unwrap();
    Neighbour::new(DEVICE, address, crate::state::MacAddress::new([2, 0, 0, 0, 0, mac])).into()
}

fn nexthop(number: u8, gateway: u8) -> Object {
    let gateway = format!("192.0.2.{gateway}").parse().unwrap();
    Nexthop::new(u32::from(number) + 100, 2, gateway, PROTOCOL).into()
}

#[derive(Clone, Debug)]
enum Step {
    Appended(Object),
    Deleted(Object),
    Forget(Key),
    Listed,
    Replaced(Object),
    Synced,
    Want(Object),
}

fn object() -> impl Strategy<Value = Object> {
    prop_oneof![
        (0_u8..3, 0_u8..3, prop::sample::select(&[PROTOCOL, 4]))
            .prop_map(|(n, g, p)| route(n, g, p)),
        (0_u8..3, 0_u8..3).prop_map(|(n, mac)| neighbour(n, mac)),
        (0_u8..3, 0_u8..3).prop_map(|(n, g)| nexthop(n, g)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        object().prop_map(Step::Appended),
        object().prop_map(Step::Deleted),
        object().prop_map(|object| Step::Forget(object.key())),
        Just(Step::Listed),
        object().prop_map(Step::Replaced),
        Just(Step::Synced),
        object().prop_map(Step::Want),
    ]
}

fn catch_up(observed: &mut ObservedTable, kernel: &mut Kernel) {
    for notice in kernel.told.drain(..) {
        observed.fold(notice, OURS);
    }
}

/// Lists the whole kernel.
fn list(observed: &mut ObservedTable, kernel: &Kernel) {
    let links = observed.links.values().cloned().collect();
    observed.begin_listing(links);
    let mut listed = Listed::new(1);
    for object in kernel.listing() {
        observed.list(&mut listed, object);
    }
    observed.end_listing(vec![listed]);
}

/// What `Table::sync` does, with this kernel.
fn sync(observed: &mut ObservedTable, kernel: &mut Kernel) -> usize {
    let mut written = 0;
    for _ in 0..3 {
        catch_up(observed, kernel);
        if observed.stale() {
            list(observed, kernel);
        }
        observed.begin_stages();
        for stage in Stage::ALL {
            let mut cursor = Cursor::new(stage);
            loop {
                // As few at once as there can be, so that each cursor is broken off often.
                let ops = observed.next_steps(&mut cursor, 1, |_| true);
                if ops.is_empty() {
                    break;
                }
                written += ops.len();
                for op in &ops {
                    match op {
                        Op::Delete(object) => kernel.delete(object, OURS),
                        Op::Replace(object) => kernel.replace(*object, OURS),
                    }
                    observed.done(op);
                }
            }
        }
    }
    catch_up(observed, kernel);
    written
}

proptest! {
    /// Whatever others do and whenever we look, after a sync the kernel holds what we want, our
    /// strays are gone, and a second sync writes nothing.
    #[test]
    fn a_sync_reaches_the_goal_whatever_happened_before(
        steps in prop::collection::vec(step(), 0..40),
    ) {
        let (mut observed, mut kernel) = (ObservedTable::new(mark()), Kernel::default());
        let mut wanted: BTreeMap<Key, Object> = BTreeMap::new();
        observed.begin_listing(vec![link(2, "eth0", true), link(DEVICE, "flannel.1", true)]);
        for step in steps {
            match step {
                Step::Appended(object) => kernel.append(object, THEIRS),
                Step::Deleted(object) => kernel.delete(&object, THEIRS),
                Step::Forget(key) => {
                    prop_assert_eq!(observed.forget(&key), wanted.remove(&key));
                }
                Step::Listed => list(&mut observed, &kernel),
                Step::Replaced(object) => kernel.replace(object, THEIRS),
                Step::Synced => {
                    sync(&mut observed, &mut kernel);
                }
                Step::Want(object) => {
                    wanted.insert(object.key(), object);
                    observed.want(object, 0);
                }
            }
        }
        sync(&mut observed, &mut kernel);
        observed.set_stale(true);
        sync(&mut observed, &mut kernel);
        for (key, want) in &wanted {
            prop_assert_eq!(kernel.objects.get(key), Some(&vec![*want]), "{}", key);
        }
        for (key, found) in kernel.objects.iter().filter(|(key, _)| !wanted.contains_key(key)) {
            let ours = |it: &&Object| observed.mark().owns(it, observed.our_devices());
            let strays = found.iter().filter(ours).count();
            prop_assert_eq!(strays, 0, "{}", key);
        }
        prop_assert_eq!(sync(&mut observed, &mut kernel), 0);
        prop_assert!(observed.take_changes(|_| true).is_empty());
    }

    /// Notifications alone keep the observed true, also after a listing.
    #[test]
    fn notifications_keep_the_picture_true(
        wants in prop::collection::vec(object(), 0..6),
        changes in prop::collection::vec((object(), 0_u8..3), 0..30),
        listed_after in 0_usize..30,
    ) {
        let (mut observed, mut kernel) = (ObservedTable::new(mark()), Kernel::default());
        observed.begin_listing(vec![link(DEVICE, "flannel.1", true)]);
        for want in wants {
            observed.want(want, 0);
        }
        list(&mut observed, &Kernel::default());
        for (index, (object, change)) in changes.into_iter().enumerate() {
            match change {
                0 => kernel.append(object, THEIRS),
                1 => kernel.delete(&object, THEIRS),
                _ => kernel.replace(object, THEIRS),
            }
            if index == listed_after {
                catch_up(&mut observed, &mut kernel);
                list(&mut observed, &kernel);
            }
        }
        catch_up(&mut observed, &mut kernel);
        if !observed.stale() {
            for key in observed.wanted_keys() {
                let held = kernel.objects.get(&key).map_or(&[][..], Vec::as_slice);
                let (mut seen, mut held) = (observed.both(&key).1, held.to_vec());
                seen.sort_by_key(ToString::to_string);
                held.sort_by_key(ToString::to_string);
                prop_assert_eq!(seen, held, "{}", key);
            }
        }
    }
}

fn synced() -> (ObservedTable, Kernel) {
    let (mut observed, mut kernel) = (ObservedTable::new(mark()), Kernel::default());
    observed.begin_listing(vec![link(2, "eth0", true), link(DEVICE, "flannel.1", true)]);
    for object in [route(1, 1, PROTOCOL), neighbour(1, 1), nexthop(1, 1)] {
        observed.want(object, 0);
    }
    sync(&mut observed, &mut kernel);
    assert!(!observed.stale());
    (observed, kernel)
}

#[test]
fn our_own_writes_are_no_drift() {
    let (mut observed, mut kernel) = synced();
    observed.want(route(1, 2, PROTOCOL), 0);
    sync(&mut observed, &mut kernel);
    assert_eq!(observed.take_changes(|_| true), []);
}

#[test]
fn what_another_puts_in_the_place_of_what_is_not_wanted_any_more_stays() {
    let (mut observed, mut kernel) = synced();
    let theirs = route(1, 2, 4);
    observed.forget(&theirs.key());
    kernel.replace(theirs, THEIRS);
    catch_up(&mut observed, &mut kernel);
    assert_eq!(sync(&mut observed, &mut kernel), 0);
    assert_eq!(kernel.objects[&theirs.key()], [theirs]);
    assert_eq!(observed.take_changes(|_| true), []);
}

#[test]
fn what_the_owner_breaks_itself_is_put_right_after_the_next_listing() {
    let (mut observed, mut kernel) = synced();
    kernel.delete(&route(1, 1, PROTOCOL), OURS);
    catch_up(&mut observed, &mut kernel);
    assert_eq!(observed.take_changes(|_| true), []);
    assert_eq!(sync(&mut observed, &mut kernel), 0);
    list(&mut observed, &kernel);
    assert_eq!(sync(&mut observed, &mut kernel), 1);
}

#[test]
fn a_drift_says_what_and_by_whom() {
    let (mut observed, mut kernel) = synced();
    kernel.delete(&route(1, 1, PROTOCOL), THEIRS);
    kernel.replace(neighbour(1, 9), 0);
    catch_up(&mut observed, &mut kernel);
    let shown: Vec<_> = observed.take_changes(|_| true).iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "neighbour 10.244.1.0 on device 7 replaced by neighbour 10.244.1.0 on device 7 \
             at 02:00:00:00:00:09, by the kernel or an unnamed process",
            "route 10.244.1.0/24 removed by another process (netlink port 2)",
        ]
    );
}

#[test]
fn what_was_put_right_by_its_breaker_is_no_news() {
    let (mut observed, mut kernel) = synced();
    kernel.delete(&route(1, 1, PROTOCOL), THEIRS);
    kernel.replace(route(1, 1, PROTOCOL), THEIRS);
    catch_up(&mut observed, &mut kernel);
    assert_eq!(observed.take_changes(|_| true), []);
}

#[test]
fn what_the_kernel_drops_silently_asks_for_a_listing() {
    for fault in 0..5 {
        let (mut observed, _) = synced();
        let address = crate::state::Address::new(2, "192.0.2.7/24".parse().unwrap());
        let subject = match fault {
            0 => Notice::Removed { subject: Subject::Link(link(2, "eth0", false)), port: 0 },
            1 => Notice::Added {
                subject: Subject::Link(link(2, "eth0", false)),
                replaces: false,
                port: THEIRS,
            },
            2 => Notice::Removed { subject: Subject::Object(address.into()), port: THEIRS },
            3 => Notice::Removed { subject: Subject::Object(nexthop(1, 1)), port: THEIRS },
            _ => Notice::Lost,
        };
        observed.fold(subject, OURS);
        assert!(observed.stale(), "fault {fault}");
    }
}

#[test]
fn devices_that_nothing_of_ours_needs_cost_no_listing() {
    let (mut observed, _) = synced();
    let pod = || Subject::Link(link(50, "veth50", true));
    observed.fold(Notice::Added { subject: pod(), replaces: false, port: THEIRS }, OURS);
    observed.fold(Notice::Removed { subject: pod(), port: THEIRS }, OURS);
    let address = crate::state::Address::new(50, "10.244.7.1/24".parse().unwrap());
    observed.fold(Notice::Removed { subject: Subject::Object(address.into()), port: THEIRS }, OURS);
    assert!(!observed.stale());
}

#[test]
fn a_device_is_needed_until_the_last_object_that_names_it_is_forgotten() {
    let gone = || Notice::Removed { subject: Subject::Link(link(2, "eth0", true)), port: 0 };
    for (forgotten, is_needed) in [(0, true), (1, true), (2, false)] {
        let (mut observed, _) = synced();
        // It names the same device as what it takes the place of.
        observed.want(route(1, 2, PROTOCOL), 0);
        for object in &[route(1, 2, PROTOCOL), nexthop(1, 1)][..forgotten] {
            observed.forget(&object.key());
        }
        observed.fold(gone(), OURS);
        assert_eq!(observed.stale(), is_needed, "{forgotten}");
    }
}

#[test]
fn a_nexthop_object_that_we_delete_takes_nothing_along() {
    let (mut observed, _) = synced();
    let subject = Subject::Object(nexthop(1, 1));
    observed.fold(Notice::Removed { subject, port: OURS }, OURS);
    assert!(!observed.stale());
}

#[test]
fn a_watched_device_that_changes_is_news_once_per_state() {
    let (mut observed, _) = synced();
    observed.watch_link(link(DEVICE, "flannel.1", true));
    assert_eq!(observed.take_changes(|_| true), []);
    let altered = |mtu| {
        let mut link = link(DEVICE, "flannel.1", true);
        link.mtu = mtu;
        Notice::Added { subject: Subject::Link(link), replaces: false, port: THEIRS }
    };
    observed.fold(altered(1300), OURS);
    assert_eq!(observed.take_changes(|_| true).len(), 1);
    assert_eq!(observed.take_changes(|_| true).len(), 0);
    observed.fold(altered(1450), OURS);
    assert_eq!(observed.take_changes(|_| true).len(), 0);
    observed.fold(altered(1300), OURS);
    assert_eq!(observed.take_changes(|_| true).len(), 1);
    observed.fold(
        Notice::Removed { subject: Subject::Link(link(DEVICE, "flannel.1", true)), port: 0 },
        OURS,
    );
    assert!(matches!(observed.take_changes(|_| true)[0].change, DriftChange::Removed));
}

#[test]
fn a_shorter_queue_of_a_watched_device_is_news_and_a_longer_one_is_not() {
    let (mut observed, _) = synced();
    let queue = |queue| Link { queue, ..link(DEVICE, "flannel0", true) };
    observed.watch_link(queue(1000));
    let mut told = |to| {
        let subject = Subject::Link(queue(to));
        observed.fold(Notice::Added { subject, replaces: false, port: THEIRS }, OURS);
        observed.take_changes(|_| true).len()
    };
    assert_eq!([1000, 1001, 999, 999, 500, 2000, 999].map(&mut told), [0, 0, 1, 0, 1, 0, 1]);
}

#[test]
fn what_failed_is_news_when_its_device_comes_up() {
    let (mut observed, _) = synced();
    observed.want(route(2, 2, PROTOCOL), 0);
    observed.failed(route(2, 2, PROTOCOL).key());
    assert_eq!(observed.take_changes(|_| true), []);
    let down =
        Notice::Added { subject: Subject::Link(link(2, "eth0", false)), replaces: false, port: 0 };
    let up =
        Notice::Added { subject: Subject::Link(link(2, "eth0", true)), replaces: false, port: 0 };
    observed.fold(down, OURS);
    observed.fold(up, OURS);
    assert_eq!(observed.take_changes(|_| true)[0].change, DriftChange::MayWorkNow);
    assert_eq!(observed.take_changes(|_| true), []);
}

#[test]
fn what_failed_is_news_when_its_device_gets_an_address() {
    let address = |link| {
        let address = crate::state::Address::new(link, "192.0.2.7/24".parse().unwrap());
        let subject = Subject::Object(address.into());
        Notice::Added { subject, replaces: false, port: THEIRS }
    };
    let (mut observed, _) = synced();
    observed.fold(address(2), OURS);
    observed.failed(route(1, 1, PROTOCOL).key());
    assert_eq!(observed.take_changes(|_| true), [], "it was there before");
    observed.fold(address(50), OURS);
    assert_eq!(observed.take_changes(|_| true), [], "on another device");
    observed.fold(address(2), OURS);
    assert_eq!(observed.take_changes(|_| true)[0].change, DriftChange::MayWorkNow);
}

#[test]
fn a_foreign_route_under_a_forgotten_key_is_left_alone() {
    let (mut observed, mut kernel) = synced();
    kernel.replace(route(1, 9, 4), THEIRS);
    catch_up(&mut observed, &mut kernel);
    observed.forget(&route(1, 1, PROTOCOL).key());
    sync(&mut observed, &mut kernel);
    assert_eq!(kernel.objects[&route(1, 9, 4).key()], [route(1, 9, 4)]);
}
