//! When two states of a kernel count as the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use flannel_testbed::Snapshot;

/// What a kernel holds, without the numbers that it gives and that may change: indexes of devices, numbers of nexthop
/// objects.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct State(BTreeSet<String>);

/// An address that somebody changed on purpose.
#[derive(Clone, Debug)]
pub(super) struct Renamed {
    pub(super) from: String,
    pub(super) to: String,
}

impl State {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let lines: Vec<_> = snapshot.lines().collect();
        Self::of_lines(&lines)
    }

    fn of_lines(lines: &[&str]) -> Self {
        // "nexthop 7 via 192.0.2.2 dev eth0 ..." and "route ... via nexthop 7 ..."
        let gateways: BTreeMap<_, _> = lines
            .iter()
            .filter_map(|line| line.strip_prefix("nexthop ")?.split_once(" via "))
            .filter_map(|(id, rest)| Some((id, rest.split(' ').next()?)))
            .collect();
        let parents: BTreeMap<_, _> = lines
            .iter()
            .filter_map(|line| line.strip_prefix("device ")?.split_once(" index "))
            .filter_map(|(name, rest)| Some((rest.split(' ').next()?, name)))
            .collect();
        let clean = |line: &&str| {
            if let Some((id, rest)) = line.strip_prefix("nexthop ").and_then(|l| l.split_once(' '))
            {
                let known = gateways.contains_key(id);
                return if known { format!("nexthop {rest}") } else { (*line).to_owned() };
            }
            if let Some((before, rest)) = line.split_once(" via nexthop ") {
                let (id, after) = rest.split_once(' ').unwrap_or((rest, ""));
                let gateway = gateways.get(id).unwrap_or(&"nothing");
                return format!("{before} via nexthop to {gateway} {after}");
            }
            if let Some((name, rest)) = line.split_once(" index ") {
                let rest = rest.split_once(' ').map_or("", |(_, rest)| rest);
                return format!("{name} {}", named_parent(rest, &parents));
            }
            (*line).to_owned()
        };
        Self(lines.iter().map(clean).collect())
    }

    /// The same with one address in the place of another.
    pub(super) fn renamed(&self, renamed: Option<&Renamed>) -> Self {
        let Some(Renamed { from, to }) = renamed else { return self.clone() };
        Self(self.0.iter().map(|line| replace(line, from, to)).collect())
    }

    /// The same but for what is about an address.
    pub(super) fn without(self, address: Option<IpAddr>) -> Self {
        let Some(address) = address.map(|address| address.to_string()) else { return self };
        let about = |line: &&String| replace(line, &address, "") != **line;
        Self(self.0.iter().filter(|line| !about(line)).cloned().collect())
    }

    /// What is different in `later`: lost lines with a minus sign, new ones with a plus sign.
    pub(super) fn difference(&self, later: &Self) -> Vec<String> {
        let lost = self.0.difference(&later.0).map(|line| format!("- {line}"));
        lost.chain(later.0.difference(&self.0).map(|line| format!("+ {line}"))).collect()
    }
}

/// `parent: Some(3)` with the name of device 3.
fn named_parent(line: &str, names: &BTreeMap<&str, &str>) -> String {
    const PARENT: &str = "parent: Some(";
    let Some((before, rest)) = line.split_once(PARENT) else { return line.into() };
    let Some((index, after)) = rest.split_once(')') else { return line.into() };
    format!("{before}{PARENT}{}){after}", names.get(index).unwrap_or(&"?"))
}

/// Replaces whole addresses: 192.0.2.1 is not a part of 192.0.2.10.
fn replace(line: &str, from: &str, to: &str) -> String {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == ':';
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find(from).filter(|_| !from.is_empty()) {
        let (before, behind) = (&rest[..at], &rest[at + from.len()..]);
        let last = before.chars().next_back().or_else(|| out.chars().next_back());
        let whole = !last.is_some_and(part) && !behind.starts_with(part);
        out += before;
        out += if whole { to } else { from };
        rest = behind;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_of_the_kernel_do_not_count() {
        let before = State::of_lines(&[
            "device eth0 index 2 veth up mtu 1500",
            "device flannel.1 index 3 Vxlan { vni: 1, parent: Some(2) } up mtu 1450",
            "nexthop 7 via 192.0.2.2 dev eth0 proto 241",
            "route 10.1.0.0/24 via nexthop 7 dev eth0 table 254",
        ]);
        let after = [
            "device eth0 index 9 veth up mtu 1500",
            "device flannel.1 index 12 Vxlan { vni: 1, parent: Some(9) } up mtu 1450",
            "nexthop 8 via 192.0.2.2 dev eth0 proto 241",
            "route 10.1.0.0/24 via nexthop 8 dev eth0 table 254",
        ];
        assert_eq!(before.difference(&State::of_lines(&after)), [""; 0]);
        for (line, other) in [
            (0, "device eth0 index 9 veth up mtu 1400"),
            (1, "device flannel.1 index 12 Vxlan { vni: 1, parent: Some(12) } up mtu 1450"),
            (2, "nexthop 8 via 192.0.2.3 dev eth0 proto 241"),
            (3, "route 10.1.0.0/24 via 192.0.2.2 dev eth0 table 254"),
            (3, "route 10.1.0.0/24 via nexthop 7 dev eth0 table 254"),
        ] {
            let mut other_lines = after;
            other_lines[line] = other;
            assert_ne!(before, State::of_lines(&other_lines), "{other}");
        }
    }

    #[test]
    fn a_changed_address_is_replaced_as_a_whole() {
        let replaced = |line| replace(line, "192.0.2.1", "192.0.2.9");
        assert_eq!(replaced("via 192.0.2.1 dev"), "via 192.0.2.9 dev");
        assert_eq!(replaced("192.0.2.1/24 192.0.2.1"), "192.0.2.9/24 192.0.2.9");
        assert_eq!(replaced("Some(192.0.2.1)"), "Some(192.0.2.9)");
        assert_eq!(replaced("192.0.2.10 1192.0.2.1"), "192.0.2.10 1192.0.2.1");
        let lines = ["address 192.0.2.1/32 dev flannel.1", "address 192.0.2.10/32 dev flannel.1"];
        let left = State::of_lines(&lines).without(Some([192, 0, 2, 1].into()));
        assert_eq!(left, State::of_lines(&lines[1..]));
    }

    proptest! {
        #[test]
        fn no_line_panics(lines in prop::collection::vec("(nexthop|device|route|x)( via| index| nexthop|[ -~]{0,9}|\\PC{0,5}){0,6}", 0..5)) {
            let lines: Vec<_> = lines.iter().map(String::as_str).collect();
            let state = State::of_lines(&lines);
            prop_assert_eq!(state.difference(&state.clone()).len(), 0);
            let renamed = Renamed { from: "x".into(), to: String::new() };
            let _ = state.renamed(Some(&renamed));
        }
    }
}
