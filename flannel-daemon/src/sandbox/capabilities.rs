//! Capabilities.

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

/// Whether this process may configure the network.
pub(super) fn may_configure() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN))
}

/// Keeps what is [`needed`], and what a backend with BPF programs needs until [`give_up`], and gives up all other capabilities and the ways
/// to get new ones. Says what is left.
pub(super) fn reduce() -> String {
    let Ok(before) = capabilities(None) else { return "unknown".into() };
    let needed = needed();
    let kept = before.permitted & needed;
    let with_bpf = kept | before.permitted & CapabilitySet::BPF;
    // Not in force: whoever needs it has to raise it.
    let permitted = with_bpf | before.permitted & CapabilitySet::SYS_ADMIN;
    // What cannot be given up shows in what is left.
    if before.effective.contains(CapabilitySet::SETPCAP) {
        for bit in 0..u64::BITS {
            let capability = CapabilitySet::from_bits_retain(1 << bit);
            if !needed.contains(capability) {
                let _ = remove_capability_from_bounding_set(capability);
            }
        }
    }
    let _ = clear_ambient_capability_set();
    let sets = CapabilitySets { effective: with_bpf, permitted, inheritable: kept };
    let _ = set_capabilities(None, sets);
    // So that programs which we run may configure the network too when we are not root.
    for capability in kept.iter() {
        let _ = configure_capability_in_ambient_set(capability, true);
    }
    let _ = set_no_new_privs(true);
    let Ok(after) = capabilities(None) else { return "unknown".into() };
    let for_bpf = CapabilitySet::BPF | CapabilitySet::SYS_ADMIN;
    let for_now = match after.permitted & for_bpf {
        it if it.is_empty() => String::new(),
        it => format!(" (and {} until the backend is known)", names(it)),
    };
    names(after.permitted & !for_bpf) + &for_now
}

/// What a backend with BPF programs needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum BpfRights {
    /// Loading programs, and trying them.
    Load,
    /// Making namespaces to try them in, which is over once the backend is made.
    Try,
}

/// Gives up what `rights` name, before the node does anything with the network: the store says whether its backend loads BPF programs.
pub(crate) fn give_up(rights: BpfRights) {
    let Ok(mut sets) = capabilities(None) else { return };
    let given_up = match rights {
        BpfRights::Load => CapabilitySet::BPF | CapabilitySet::SYS_ADMIN,
        BpfRights::Try => CapabilitySet::SYS_ADMIN,
    };
    sets.effective.remove(given_up);
    sets.permitted.remove(given_up);
    // Giving up needs no right.
    let _ = set_capabilities(None, sets);
}

fn names(set: CapabilitySet) -> String {
    let mut names: Vec<_> = set.iter_names().map(|(name, _)| name.to_lowercase()).collect();
    let unknown = set & CapabilitySet::from_bits_retain(u64::MAX << (names_end() + 1));
    if !unknown.is_empty() {
        names.push(format!("{:#x}", unknown.bits()));
    }
    if names.is_empty() { "none".into() } else { names.join(",") }
}

/// The last capability that has a name here.
const fn names_end() -> u32 {
    CapabilitySet::CHECKPOINT_RESTORE.bits().trailing_zeros()
}

/// What a node on this host needs: for devices, addresses, routes, rules and the settings under `/proc/sys/net` one capability, and
/// another where legacy iptables is installed, which talks to the kernel through a raw socket: somebody may have rules there, or
/// have had.
fn needed() -> CapabilitySet {
    match flannel_firewall::needs_net_raw() {
        true => CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW,
        false => CapabilitySet::NET_ADMIN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_has_names() {
        assert_eq!(names(CapabilitySet::empty()), "none");
        assert_eq!(names(CapabilitySet::NET_ADMIN | CapabilitySet::CHOWN), "chown,net_admin");
        let unknown = CapabilitySet::from_bits_retain(1 << 63);
        assert_eq!(names(CapabilitySet::NET_ADMIN | unknown), "net_admin,0x8000000000000000");
    }

    #[test]
    fn nothing_but_what_is_needed_is_left() {
        // Capabilities belong to a thread, so only this test's own loses them.
        let left = reduce();
        let left = left.split(" (and ").next().unwrap();
        assert!(matches!(left, "net_admin" | "net_admin,net_raw" | "none"), "{left}");
        let sets = capabilities(None).unwrap();
        assert!(!sets.effective.contains(CapabilitySet::SYS_ADMIN), "{:?}", sets.effective);
        give_up(BpfRights::Try);
        let permitted = capabilities(None).unwrap().permitted;
        assert_eq!(permitted, sets.permitted & !CapabilitySet::SYS_ADMIN);
        give_up(BpfRights::Load);
        let sets = capabilities(None).unwrap();
        for set in [sets.effective, sets.permitted, sets.inheritable] {
            assert!(needed().contains(set), "{set:?}");
        }
        assert!(rustix::thread::no_new_privs().unwrap());
    }
}
