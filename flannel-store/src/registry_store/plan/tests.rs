use proptest::prelude::*;

use super::*;

const CONFIG: &str = r#"{"Network":"10.3.0.0/28"}"#;

fn config(json: &str) -> NetworkConfig {
    json.parse().unwrap()
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn at(address: &str) -> LeaseAttrs {
    LeaseAttrs { public_ip: Some(address.parse().unwrap()), ..LeaseAttrs::default() }
}

fn record(key: &str, address: &str, owner: Option<&str>, lifetime: Lifetime) -> Record {
    Record {
        key: key.into(),
        value: Ok(at(address).to_string()),
        owner: owner.map(node),
        revision: 1,
        created: 1,
        lifetime,
        token: 0,
    }
}

fn decide_for_n1<'a>(
    records: &'a [Record],
    address: &str,
    hint: Option<&str>,
) -> Result<Decision<'a>, NetworkFull> {
    let hint = hint.map(|key| key.parse().unwrap());
    decide(&config(CONFIG), records, &node("n1"), &at(address), hint.as_ref(), &[])
}

use Lifetime::{Bounded, Lapsed, Unbounded};

#[test]
fn an_own_lease_is_kept_also_after_the_address_changed() {
    let records = [
        record("10.3.0.4-30", "192.0.2.9", None, Bounded),
        record("10.3.0.8-30", "192.0.2.1", Some("n1"), Bounded),
    ];
    assert_eq!(decide_for_n1(&records, "192.0.2.9", None), Ok(Decision::Take(&records[1])));
}

#[test]
fn a_lease_without_owner_at_our_address_is_adopted() {
    let records = [
        record("10.3.0.4-30", "192.0.2.2", None, Unbounded),
        record("10.3.0.8-30", "192.0.2.1", None, Bounded),
        record("10.3.0.12-30", "192.0.2.1", None, Unbounded),
    ];
    let taken = decide_for_n1(&records, "192.0.2.1", None);
    assert_eq!(taken, Ok(Decision::Take(&records[2])), "a reservation before a lease");
    let taken = decide_for_n1(&records, "192.0.2.1", Some("10.3.0.8-30"));
    assert_eq!(taken, Ok(Decision::Take(&records[1])), "the one we had before all");
}

#[test]
fn what_another_node_owns_is_taken_at_our_address_alone_and_not_if_it_answers() {
    let records = [
        record("10.3.0.4-30", "192.0.2.1", Some("n2"), Bounded),
        record("10.3.0.8-30", "192.0.2.2", Some("n3"), Unbounded),
    ];
    let (config, n1, attrs) = (config(CONFIG), node("n1"), at("192.0.2.1"));
    let decide = |in_use: &[String]| decide(&config, &records, &n1, &attrs, None, in_use);
    assert_eq!(decide(&[]), Ok(Decision::Take(&records[0])));
    let free = "10.3.0.12-30".parse().unwrap();
    assert_eq!(decide(&["10.3.0.4-30".into()]), Ok(Decision::Create(free)));
}

#[test]
fn nothing_is_taken_from_a_node_that_has_another_lease_for_the_same_addresses() {
    let records = [
        record("10.3.0.4-30", "192.0.2.1", Some("n2"), Lapsed),
        record("10.3.0.4-31", "192.0.2.2", Some("n2"), Bounded),
    ];
    let free = "10.3.0.8-30".parse().unwrap();
    assert_eq!(decide_for_n1(&records, "192.0.2.1", None), Ok(Decision::Create(free)));
    let by_itself = decide(&config(CONFIG), &records, &node("n2"), &at("192.0.2.1"), None, &[]);
    assert_eq!(by_itself, Ok(Decision::Delete(&records[1])));
}

#[test]
fn of_two_that_overlap_one_stays() {
    let lease = |key: &str, owner: Option<&str>, created, lifetime| Record {
        created,
        ..record(key, "192.0.2.9", owner, lifetime)
    };
    let stays = |one: &Record, other: &Record| {
        assert_eq!(winner(other, std::slice::from_ref(one)), Some(one));
        assert_eq!(winner(one, std::slice::from_ref(other)), None);
    };
    let v4 = lease("10.3.0.4-30", Some("n1"), 5, Bounded);
    let dual = lease("10.3.0.4-30&fd00::4-126", Some("n2"), 7, Bounded);
    stays(&v4, &dual);
    stays(&lease("10.3.0.0-29", None, 9, Bounded), &v4);
    stays(&lease("10.3.0.0-29", Some("n3"), 9, Unbounded), &v4);
    stays(&lease("10.3.0.0-29", Some("n3"), 4, Bounded), &v4);
    stays(&lease("fd00::-64", Some("n3"), 6, Bounded), &dual);
    assert_eq!(winner(&v4, &[lease("10.3.0.0-29", None, 1, Lapsed)]), None);
    assert_eq!(winner(&v4, &[lease("10.3.0.0-29", Some("n1"), 1, Bounded)]), None, "its own");
    let garbage = Record { value: Err("garbage".into()), ..lease("10.3.0.0-29", None, 1, Bounded) };
    assert_eq!(winner(&v4, std::slice::from_ref(&garbage)), None);
    let lapsed = Record { lifetime: Lapsed, ..v4 };
    assert_eq!(winner(&lapsed, std::slice::from_ref(&garbage)), Some(&garbage));
}

#[test]
fn what_somebody_wrote_with_host_bits_is_not_handed_out() {
    let free = Ok(Decision::Create("10.3.0.12-30".parse().unwrap()));
    for lifetime in [Bounded, Unbounded] {
        let records = [
            record("10.3.0.5-30", "192.0.2.2", None, lifetime),
            record("10.3.0.9-29", "192.0.2.3", None, lifetime),
        ];
        assert_eq!(
            decide_for_n1(&records[..1], "192.0.2.1", Some("10.3.0.4-30")),
            decide_for_n1(
                &[record("10.3.0.4-30", "192.0.2.2", None, lifetime)],
                "192.0.2.1",
                Some("10.3.0.4-30"),
            )
        );
        assert!(matches!(decide_for_n1(&records, "192.0.2.1", None), Err(NetworkFull { .. })));
    }
    let records = [
        record("10.3.0.5-30", "192.0.2.1", Some("n1"), Bounded),
        record("10.3.0.8-30", "192.0.2.3", None, Bounded),
    ];
    assert_eq!(decide_for_n1(&records, "192.0.2.1", None), free, "it is nobody's lease");
    let lapsed = [
        record("10.3.0.5-29", "192.0.2.2", None, Lapsed),
        record("10.3.0.9-29", "192.0.2.2", None, Bounded),
    ];
    let last = Ok(Decision::Create("10.3.0.4-30".parse().unwrap()));
    assert_eq!(
        decide_for_n1(&lapsed, "192.0.2.1", None),
        last,
        "what has lapsed is the last that is taken"
    );
}

#[test]
fn a_node_named_by_its_address_is_found_by_the_address_that_it_has() {
    // 192.0.2.1 has moved to 192.0.2.5 and said so.
    let moved = [record("10.3.7.0-24", "192.0.2.5", Some("192.0.2.1"), Bounded)];
    assert!(takes(&moved, "192.0.2.1", "192.0.2.5"), "it takes its lease anew");
    assert!(takes(&moved, "192.0.2.5", "192.0.2.5"), "it was started again");
    assert!(takes(&moved, "n1", "192.0.2.5"), "it was started again with a name");
    assert!(!takes(&moved, "192.0.2.1", "192.0.2.1"), "another node got its old address");
    assert_eq!(previous(&moved, &node("192.0.2.1"), None), None);
    assert!(previous(&moved, &node("192.0.2.5"), None).is_some());
    let moving = [record("10.3.7.0-24", "192.0.2.1", Some("192.0.2.1"), Bounded)];
    assert!(takes(&moving, "192.0.2.1", "192.0.2.5"), "it has not said so yet");
    assert!(!takes(&moving, "192.0.2.5", "192.0.2.5"), "somebody else has");
}

fn takes(records: &[Record], name: &str, address: &str) -> bool {
    let config = config(r#"{"Network":"10.3.0.0/16"}"#);
    let decided = decide(&config, records, &node(name), &at(address), None, &[]).unwrap();
    matches!(decided, Decision::Take(_))
}

#[test]
fn nodes_without_an_address_adopt_nothing() {
    let records = [record("10.3.0.4-30", "0.0.0.0", None, Bounded)];
    let decision = decide_for_n1(&records, "0.0.0.0", None);
    assert!(matches!(decision, Ok(Decision::Create(_))), "{decision:?}");
}

#[test]
fn a_key_with_garbage_is_taken_all_the_same() {
    let mut records = ["10.3.0.4-30", "10.3.0.8-30", "10.3.0.12-30"]
        .map(|key| record(key, "192.0.2.9", None, Bounded));
    records[0].value = Ok("garbage".into());
    records[1].value = Err("it is a directory".into());
    assert!(decide_for_n1(&records, "192.0.2.1", None).is_err());
}

#[test]
fn an_own_lease_that_does_not_fit_is_removed_and_a_reservation_is_not() {
    let records = [record("10.3.0.0-24", "192.0.2.1", Some("n1"), Bounded)];
    assert_eq!(decide_for_n1(&records, "192.0.2.1", None), Ok(Decision::Delete(&records[0])));
    let records = [record("10.4.0.0-24", "192.0.2.1", Some("n1"), Unbounded)];
    let decision = decide_for_n1(&records, "192.0.2.1", None);
    assert!(matches!(decision, Ok(Decision::Create(_))), "{decision:?}");
}

#[test]
fn lapsed_subnets_are_given_out_last() {
    let records = [
        record("10.3.0.4-30", "192.0.2.4", Some("n4"), Lapsed),
        record("10.3.0.8-30", "192.0.2.5", Some("n5"), Bounded),
    ];
    let hint = Some("10.3.0.4-30");
    let create = |key: &str| Ok(Decision::Create(key.parse().unwrap()));
    assert_eq!(decide_for_n1(&records, "192.0.2.1", hint), create("10.3.0.12-30"));
    let more = [record("10.3.0.12-30", "192.0.2.6", Some("n6"), Bounded)];
    let records = [&records[..], &more].concat();
    assert_eq!(decide_for_n1(&records, "192.0.2.1", hint), create("10.3.0.4-30"));
}

#[test]
fn an_own_lapsed_lease_is_taken_up_again_unless_somebody_has_its_addresses() {
    let own = record("10.3.0.4-30", "192.0.2.1", Some("n1"), Lapsed);
    let records = [own.clone()];
    assert_eq!(decide_for_n1(&records, "192.0.2.1", None), Ok(Decision::Take(&records[0])));
    assert!(previous(&records, &node("n1"), None).is_some());
    let records = [own, record("10.3.0.4-31", "192.0.2.2", Some("n2"), Bounded)];
    assert_eq!(decide_for_n1(&records, "192.0.2.1", None), Ok(Decision::Delete(&records[0])));
    assert!(previous(&records, &node("n1"), None).is_none());
}

#[test]
fn the_previous_lease_is_ours_by_name_or_as_flannels_by_address() {
    let records = [
        record("10.3.0.4-30", "192.0.2.1", None, Bounded),
        record("10.3.0.8-30", "192.0.2.1", Some("n1"), Bounded),
        record("10.3.0.12-30", "192.0.2.1", Some("n2"), Bounded),
    ];
    let key = |name| previous(&records, &node(name), None).map(|lease| lease.subnet.to_string());
    assert_eq!(key("n1").as_deref(), Some("10.3.0.8-30"));
    assert_eq!(key("192.0.2.1").as_deref(), Some("10.3.0.4-30"));
    assert_eq!(key("n9"), None);
}

prop_compose! {
    fn any_record()(
        slot in 0u8..8,
        prefix in 29u8..=31,
        stray in any::<bool>(),
        garbage in any::<bool>(),
        last in 1u8..4,
        owner in proptest::option::of(1u8..4),
        lifetime in prop_oneof![Just(Bounded), Just(Lapsed), Just(Unbounded)],
        revision in 1u64..9,
    ) -> Record {
        let key = if stray && garbage { "config".into() } else { format!("10.3.0.{}-{prefix}", slot * 8) };
        let owner = owner.map(|n| format!("n{n}"));
        let mut record = record(&key, &format!("192.0.2.{last}"), owner.as_deref(), lifetime);
        if garbage {
            record.value = Err("garbage".into());
        }
        record.revision = revision;
        record
    }
}

proptest! {
    /// Follows the decisions to the end on a model of a registry.
    #[test]
    fn decisions_end_in_one_fitting_lease_and_touch_nobody_elses(
        records in proptest::collection::vec(any_record(), 0..8),
        hint in proptest::option::of(0u8..4),
        subnet_len in 29u8..=30,
    ) {
        let json = format!(r#"{{"Network":"10.3.0.0/27","SubnetLen":{subnet_len}}}"#);
        let (config, n1, attrs) = (config(&json), node("n1"), at("192.0.2.1"));
        let hint = hint.map(|n| format!("10.3.0.{}-{subnet_len}", n * 8).parse().unwrap());
        let mut records: Vec<Record> = records;
        records.sort_by(|a, b| a.key.cmp(&b.key));
        records.dedup_by(|a, b| a.key == b.key);
        let foreign = |record: &Record| record.owner.is_some() && record.owner != Some(node("n1"));
        let before = records.clone();
        for step in 0.. {
            prop_assert!(step <= before.len() + 1, "it does not end");
            let Ok(decision) = decide(&config, &records, &n1, &attrs, hint.as_ref(), &[]) else {
                // Full: then no subnet of the range is free of live leases.
                let live: Vec<Subnet> = records.iter()
                    .filter(|r| r.lifetime != Lapsed).filter_map(Record::subnet).collect();
                let size = 1 << (32 - u32::from(subnet_len));
                let free = (0x0a03_0000u32 + size..0x0a03_0020).step_by(size as usize).any(|base| {
                    let block = ipnetwork::Ipv4Network::new(base.into(), subnet_len).unwrap();
                    let subnet = Subnet::new(Some(block), None).unwrap();
                    !live.iter().any(|other| other.overlaps(&subnet))
                });
                prop_assert!(!free);
                break;
            };
            match decision {
                Decision::Delete(record) => {
                    prop_assert_eq!(record.owner.as_ref(), Some(&n1));
                    prop_assert!(record.lifetime != Unbounded, "a person's reservation");
                    let key = record.key.clone();
                    records.retain(|record| record.key != key);
                }
                Decision::Take(record) => {
                    // Its holder is asked first.
                    prop_assert!(!foreign(record) || record.lease().unwrap().attrs == attrs);
                    prop_assert!(config.admits(&record.subnet().unwrap()));
                    if record.owner != Some(n1.clone()) {
                        prop_assert_eq!(record.lease().unwrap().attrs, attrs.clone());
                        let own = before.iter().any(|r| r.owner == Some(n1.clone())
                            && winner(r, &before).is_none()
                            && r.lifetime != Lapsed && r.subnet().is_some_and(|s| config.admits(&s)));
                        prop_assert!(!own, "an own lease comes first");
                    }
                    if record.lifetime == Lapsed {
                        let subnet = record.subnet().unwrap();
                        prop_assert!(!records.iter().filter(|r| r.lifetime != Lapsed)
                            .filter_map(Record::subnet).any(|other| other.overlaps(&subnet)));
                    }
                    let ours = records.iter().filter(|r| r.owner == Some(n1.clone()) && r.subnet().is_some());
                    prop_assert!(ours.filter(|r| r.lifetime != Unbounded).count() <= 1);
                    break;
                }
                Decision::Create(subnet) => {
                    prop_assert!(config.admits(&subnet));
                    prop_assert!(!records.iter().filter(|r| r.lifetime != Lapsed)
                        .filter_map(Record::subnet).any(|other| other.overlaps(&subnet)));
                    break;
                }
            }
        }
        let others = |records: &[Record]| records.iter().filter(|r| foreign(r)).cloned().collect::<Vec<_>>();
        prop_assert_eq!(others(&before), others(&records));
    }
}
