//! Where things are in etcd.

use std::sync::atomic::{AtomicBool, Ordering};

/// The keys of one network.
///
/// | key | what it holds |
/// | --- | --- |
/// | `PREFIX/config` | the network configuration |
/// | `PREFIX/subnet-owners/KEY` | the id of the node that wrote the lease at `KEY` |
/// | `PREFIX/subnets/KEY` | a lease |
///
/// flannel takes everything that begins with `PREFIX/subnets` for a lease, so that what is not one has to be elsewhere. The
/// owners sort right before the leases: one range has both, and hardly anything else.
#[derive(Debug)]
pub(super) struct Keys {
    config: String,
    leases: String,
    owners: String,
    /// Whether we have no right to the owners, and do without.
    ownerless: AtomicBool,
}

/// What a key of the range is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Place<'a> {
    /// The lease with this subnet key.
    Lease(&'a [u8]),
    /// Somebody else's business.
    Other,
    /// Who owns the lease with this subnet key.
    Owner(&'a [u8]),
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            config: join(prefix, "config"),
            leases: join(prefix, "subnets") + "/",
            owners: join(prefix, "subnet-owners") + "/",
            ownerless: AtomicBool::new(false),
        }
    }

    pub(super) fn is_ownerless(&self) -> bool {
        self.ownerless.load(Ordering::Relaxed)
    }

    pub(super) fn set_ownerless(&self, ownerless: bool) {
        self.ownerless.store(ownerless, Ordering::Relaxed);
    }

    pub(super) fn config(&self) -> &str {
        &self.config
    }

    /// What the keys of all owners begin with.
    pub(super) fn owners(&self) -> &str {
        &self.owners
    }

    pub(super) fn lease(&self, key: &str) -> Vec<u8> {
        [&self.leases, key].concat().into()
    }

    pub(super) fn owner(&self, key: &str) -> Vec<u8> {
        [&self.owners, key].concat().into()
    }

    /// The first key of the range that has all owners and then all leases.
    pub(super) fn begin(&self) -> Vec<u8> {
        let first = if self.is_ownerless() { &self.leases } else { &self.owners };
        first.clone().into()
    }

    /// The first key behind that range.
    pub(super) fn end(&self) -> Vec<u8> {
        let mut end = self.leases.clone().into_bytes();
        // The character behind the slash.
        *end.last_mut().expect("it ends in a slash") = b'/' + 1;
        end
    }

    pub(super) fn place<'a>(&self, key: &'a [u8]) -> Place<'a> {
        let lease = key.strip_prefix(self.leases.as_bytes()).map(Place::Lease);
        let owner = || key.strip_prefix(self.owners.as_bytes()).map(Place::Owner);
        lease.or_else(owner).unwrap_or(Place::Other)
    }
}

/// `prefix` and `name` as one path in its shortest form.
///
/// Mirrors path.Join of Go, which flannel's pkg/subnet/etcd/registry.go at cdf76059 makes all its keys with.
fn join(prefix: &str, name: &str) -> String {
    let root = if prefix.starts_with('/') { "/" } else { "" };
    let mut parts: Vec<&str> = Vec::new();
    for part in prefix.split('/').chain([name]) {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(last) if *last != ".." => drop(parts.pop()),
                None if !root.is_empty() => {}
                _ => parts.push(part),
            },
            part => parts.push(part),
        }
    }
    format!("{root}{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_those_of_flannel() {
        let keys = Keys::new("/coreos.com/network");
        assert_eq!(keys.config(), "/coreos.com/network/config");
        assert_eq!(keys.lease("10.5.1.0-24"), b"/coreos.com/network/subnets/10.5.1.0-24");
        let dual = keys.lease("10.5.1.0-24&fd00:5:1::-64");
        assert_eq!(dual, b"/coreos.com/network/subnets/10.5.1.0-24&fd00:5:1::-64");
    }

    #[test]
    fn prefixes_are_joined_as_go_joins_them() {
        // What path.Join(prefix, "config") of Go 1.22 returns.
        for (prefix, config) in [
            ("", "config"),
            (".", "config"),
            ("/", "/config"),
            ("//", "/config"),
            ("a", "a/config"),
            ("a/", "a/config"),
            ("/a//b/", "/a/b/config"),
            ("/a/./b", "/a/b/config"),
            ("/a/../b", "/b/config"),
            ("/..", "/config"),
            ("..", "../config"),
            ("a/../..", "../config"),
            ("../../a", "../../a/config"),
            (" a ", " a /config"),
        ] {
            assert_eq!(Keys::new(prefix).config(), config, "{prefix:?}");
        }
    }

    #[test]
    fn owners_are_outside_of_what_flannel_reads() {
        let keys = Keys::new("/coreos.com/network");
        let flannels = b"/coreos.com/network/subnets";
        assert!(!keys.owner("10.5.1.0-24").starts_with(flannels));
    }

    proptest! {
        #[test]
        fn every_key_is_found_again_and_in_the_range(
            prefix in "[a./]{0,12}",
            key in "(\\PC{0,20}|10\\.5\\.[0-9]{1,3}\\.0-24)",
            other in proptest::collection::vec(any::<u8>(), 0..30),
        ) {
            let keys = Keys::new(&prefix);
            let (lease, owner) = (keys.lease(&key), keys.owner(&key));
            prop_assert_eq!(keys.place(&lease), Place::Lease(key.as_bytes()));
            prop_assert_eq!(keys.place(&owner), Place::Owner(key.as_bytes()));
            prop_assert!(keys.begin() <= owner && owner < lease && lease < keys.end());
            prop_assert_eq!(keys.place(keys.config().as_bytes()), Place::Other);
            if keys.place(&other) != Place::Other {
                prop_assert!(keys.begin() <= other && other < keys.end());
            }
        }

        #[test]
        fn joining_is_done_once_and_keeps_the_root(prefix in "[ab./]{0,16}") {
            let joined = join(&prefix, "x");
            let again = joined.strip_suffix('x').unwrap();
            prop_assert_eq!(join(again, "x"), joined.clone());
            prop_assert_eq!(joined.starts_with('/'), prefix.starts_with('/'));
            prop_assert!(!joined.contains("//") && !joined.contains("/./"));
            let rest = joined.trim_start_matches("../");
            prop_assert!(!rest.split('/').any(|part| part == ".."));
        }
    }
}
