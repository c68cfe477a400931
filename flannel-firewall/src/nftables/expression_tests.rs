use flannel_netlink::attributes;
use proptest::prelude::*;

use super::*;

/// Writes expressions and reads them back.
fn round_trip(expressions: &[Expression]) -> Vec<Expression> {
    let mut out = Vec::new();
    expressions.iter().for_each(|expression| expression.write(&mut out));
    attributes(&out).map(Expression::read).collect()
}

#[test]
fn what_others_write_is_read_as_well() {
    let set = "__set0".to_owned();
    let expressions = [
        Expression::Connection { register: 1, key: 0 },
        Expression::Fib { register: 1, result: 3, flags: 2 },
        Expression::Lookup { register: 9, set: set.clone(), negated: true, is_map: false },
        Expression::Lookup { register: 1, set, negated: false, is_map: true },
        Expression::Match { name: "mark".into(), info: vec![1, 2, 3, 4] },
        Expression::Meta { register: 1, key: 6 },
        Expression::Nat { source: true },
        Expression::Nat { source: false },
        Expression::Other("rt".into()),
        Expression::Range { register: 1, negated: true, from: vec![1], to: vec![2] },
        Expression::Target("REJECT".into()),
        Expression::Verdict(Verdict::Other(3)),
    ];
    assert_eq!(round_trip(&expressions), expressions);
}

proptest! {
    #[test]
    fn what_was_written_is_read(
        bits: u128, length in 0u8..=128, negated: bool, comparison in 0..6u32, which in 0..6usize,
    ) {
        let block = if length > 32 || bits % 2 == 0 {
            ipnetwork::Ipv6Network::new(bits.into(), length).unwrap().into()
        } else {
            ipnetwork::Ipv4Network::new((bits as u32).into(), length).unwrap().into()
        };
        let verdict = [
            Verdict::Accept,
            Verdict::Continue,
            Verdict::Drop,
            Verdict::Goto("a".into()),
            Verdict::Jump("b".into()),
            Verdict::Return,
        ];
        let mut expressions = Expression::compare_address(12, block, negated);
        let comparison = Comparison::of(comparison).unwrap();
        let value = bits.to_ne_bytes().to_vec();
        expressions.push(Expression::Compare { register: 2, comparison, value });
        expressions.push(Expression::Masquerade { flags: bits as u32 });
        expressions.push(Expression::Verdict(verdict[which].clone()));
        prop_assert_eq!(round_trip(&expressions), expressions);
    }

    #[test]
    fn any_bytes_are_read_without_panic(
        name in prop::sample::select(vec![
            "bitwise", "cmp", "ct", "fib", "immediate", "lookup", "masq", "match", "meta", "nat", "payload", "range", "target", "x",
        ]),
        bytes in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut out = Vec::new();
        push_nested(&mut out, NFTA_LIST_ELEM, |out| {
            push_text(out, NFTA_EXPR_NAME, name);
            push_attribute(out, NFTA_EXPR_DATA, &bytes);
        });
        let _ = attributes(&out).map(Expression::read).count();
    }
}
