use proptest::prelude::*;

use super::*;
use crate::{
    inspect::{Direction, Flow},
    names::Name,
    options::{FirewallOptions, Masquerade},
    rules::{Action, Family, Rules, testing::scope},
    tables::DesiredTable,
};

fn path(source: &str, destination: &str) -> PacketPath {
    let [source, destination] =
        [source, destination].map(|block| block.parse::<ipnetwork::IpNetwork>().unwrap());
    PacketPath::new(Direction::Forwarded, source, destination)
        .through(Some("cni0".into()), Some("eth0".into()))
}

fn read_with(sets: &Sets, path: &PacketPath, expressions: &[Expression]) -> Vec<Rule> {
    Reader { path, sets, place: None }.rule(1, expressions)
}

fn fits_on(path: &PacketPath, expressions: &[Expression]) -> Ternary {
    read_with(&Sets::new(), path, expressions)[0].fits
}

#[test]
fn our_own_rules_are_understood() {
    let options =
        FirewallOptions { masquerade: Masquerade::RandomPorts, ..FirewallOptions::default() };
    for (family, own, peer, outside) in [
        (Family::Ipv4, "10.244.7.2", "10.244.8.2", "192.0.2.1"),
        (Family::Ipv6, "fd00:10:244:7::2", "fd00:10:244:8::2", "2001:db8::1"),
    ] {
        let rules = Rules::new(&scope(), family, &options).masquerade;
        let table = DesiredTable::new(family, Rules::default(), &Name::default());
        let first = |from: &str, to: &str| {
            let path = path(from, to);
            let fit = rules.iter().find(|rule| {
                let fits = fits_on(&path, &table.compile(rule));
                assert_ne!(fits, Ternary::Unknown);
                fits == Ternary::True
            });
            fit.map(|rule| matches!(rule.action, Action::Masquerade { .. }))
        };
        assert_eq!(first(own, peer), Some(false));
        assert_eq!(first(own, outside), Some(true));
        assert_eq!(first(outside, own), Some(false));
        assert_eq!(first(outside, peer), Some(true));
        assert_eq!(first(outside, outside), None);
    }
}

#[test]
fn blocks_fit_as_a_whole_in_part_or_not_at_all() {
    let wider = path("10.244.7.0/24", "10.244.0.0/16");
    let fits = |offset, block: &str| {
        fits_on(&wider, &Expression::compare_address(offset, block.parse().unwrap(), false))
    };
    assert_eq!(fits(12, "10.244.0.0/16"), Ternary::True);
    assert_eq!(fits(12, "10.244.7.0/25"), Ternary::Unknown);
    assert_eq!(fits(12, "10.244.8.0/24"), Ternary::False);
    assert_eq!(fits(16, "10.0.0.0/9"), Ternary::False);
    assert_eq!(fits(16, "10.244.7.0/24"), Ternary::Unknown);
}

#[test]
fn devices_marks_and_states_are_those_of_a_new_flow() {
    let path = path("10.244.7.2", "10.244.8.2");
    let fits = |expressions: &[Expression]| fits_on(&path, expressions);
    let is = |value: &[u8]| Expression::compare(false, value.to_vec());
    let meta = |key| Expression::Meta { register: 1, key };
    let (enters, leaves) = (meta(Expression::META_INPUT), meta(Expression::META_OUTPUT));
    assert_eq!(fits(&[enters.clone(), is(b"cni0\0")]), Ternary::True);
    assert_eq!(fits(&[enters.clone(), is(b"cni")]), Ternary::True, "a name that begins so");
    assert_eq!(fits(&[enters, is(b"cni\0")]), Ternary::False);
    assert_eq!(fits(&[leaves, is(b"cni0\0")]), Ternary::False);
    let state = Expression::Connection { register: 1, key: NFT_CT_STATE };
    let established = Expression::and(6_u32.to_ne_bytes().to_vec());
    assert_eq!(fits(&[state, established, Expression::compare(true, vec![0; 4])]), Ternary::False);
    assert_eq!(fits(&[meta(Expression::META_FAMILY), is(&[2])]), Ternary::True);
    assert_eq!(fits(&[meta(NFT_META_MARK), is(&[0, 0x40, 0, 0])]), Ternary::False);
    let protocol = Expression::Payload { register: 1, base: 1, offset: 9, length: 1 };
    assert_eq!(fits(&[protocol.clone(), is(&[6])]), Ternary::Unknown);
    assert_eq!(fits(&[Expression::Other("quota".into())]), Ternary::Unknown);
    assert_eq!(fits(&[Expression::Other("fib".into()), is(&[0; 4])]), Ternary::Unknown);
    let flow = Flow { protocol: 6, source_port: 40_000, destination_port: 15_000 };
    let path = path.clone().carrying(flow);
    assert_eq!(fits_on(&path, &[protocol, is(&[6])]), Ternary::True);
    let port = Expression::Payload { register: 1, base: 2, offset: 2, length: 2 };
    let range = Expression::Range {
        register: 1,
        negated: false,
        from: 10_000_u16.to_be_bytes().to_vec(),
        to: 20_000_u16.to_be_bytes().to_vec(),
    };
    assert_eq!(fits_on(&path, &[port.clone(), range]), Ternary::True);
    assert_eq!(fits_on(&path, &[port, is(&443_u16.to_be_bytes())]), Ternary::False);
}

fn element(key: &[u8], ends_range: bool, verdict: Option<Verdict>) -> SetElement {
    let mut element = SetElement::default();
    (element.key, element.ends_range, element.verdict) = (Some(key.into()), ends_range, verdict);
    element
}

#[test]
fn sets_and_verdict_maps_are_looked_into() {
    let path = path("10.244.7.0/24", "10.244.8.2");
    let sets: Sets = [
        // As the kernel gives 10.244.0.0/16 and 192.0.2.0/24: ends first, and in no order.
        (
            "ranges",
            vec![
                element(&[192, 0, 3, 0], true, None),
                element(&[192, 0, 2, 0], false, None),
                element(&[10, 245, 0, 0], true, None),
                element(&[10, 244, 0, 0], false, None),
                element(&[0, 0, 0, 0], true, None),
            ],
        ),
        ("others", vec![element(&[10, 9, 0, 1], false, None)]),
        ("part", vec![element(&[10, 244, 7, 9], false, None)]),
        (
            "devices",
            vec![
                element(&padded(b"docker0"), false, Some(Verdict::Drop)),
                element(&padded(b"cni0"), false, Some(Verdict::Jump("pods".into()))),
            ],
        ),
    ]
    .into_iter()
    .map(|(name, elements)| (name.to_owned(), elements))
    .collect();
    let source = Expression::Payload { register: 1, base: 1, offset: 12, length: 4 };
    let lookup = |set: &str, negated, is_map| Expression::Lookup {
        register: 1,
        set: set.into(),
        negated,
        is_map,
    };
    let fits = |set: &str, negated| {
        read_with(&sets, &path, &[source.clone(), lookup(set, negated, false)])[0].fits
    };
    assert_eq!((fits("ranges", false), fits("ranges", true)), (Ternary::True, Ternary::False));
    assert_eq!((fits("others", false), fits("others", true)), (Ternary::False, Ternary::True));
    assert_eq!((fits("part", false), fits("part", true)), (Ternary::Unknown, Ternary::Unknown));
    let device = Expression::Meta { register: 1, key: Expression::META_INPUT };
    let rules = read_with(&sets, &path, &[device, lookup("devices", false, true)]);
    let expected = Rule { number: 1, fits: Ternary::True, step: Step::Jump("pods".into()) };
    assert_eq!(rules, [expected]);
}

proptest! {
    #[test]
    fn no_rule_panics(
        offset: u32, length in 0..40u32, register in 0..40u32, value in prop::collection::vec(any::<u8>(), 0..40),
        name in prop::sample::select(vec!["conntrack", "mark", "state", "x"]),
    ) {
        let expressions = [
            Expression::Payload { register, base: 1, offset, length },
            Expression::and(value.clone()),
            Expression::compare(true, value.clone()),
            Expression::Lookup { register, set: "x".into(), negated: false, is_map: false },
            Expression::Match { name: name.into(), info: value },
        ];
        let _ = read_with(&Sets::new(), &path("10.244.7.2", "10.244.8.2"), &expressions);
    }
}
