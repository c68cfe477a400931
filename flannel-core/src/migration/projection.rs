//! A lease as one of two backends sees it.

use std::{borrow::Cow, sync::Arc};

use super::migration_plan::{Layout, Published, Side};
use crate::lease::{Lease, LeaseAttrs, SecondBackend};

/// `attrs` with what they say about the backend that is published as `backend_type`, and nothing about another one; `None` if they say
/// nothing about it.
pub(super) fn attrs_of(attrs: &LeaseAttrs, backend_type: &str) -> Option<LeaseAttrs> {
    if attrs.backend_type == backend_type {
        return Some(LeaseAttrs { second: None, ..attrs.clone() });
    }
    let second = attrs.second.as_deref().filter(|second| second.backend_type == backend_type)?;
    let SecondBackend { backend_type, backend_data, backend_v6_data, .. } = second.clone();
    let LeaseAttrs { public_ip, public_ipv6, .. } = *attrs;
    Some(LeaseAttrs {
        public_ip,
        public_ipv6,
        backend_type,
        backend_data,
        backend_v6_data,
        second: None,
    })
}

/// The lease with other attributes.
pub(super) fn with_attrs(lease: &Lease, attrs: LeaseAttrs) -> Arc<Lease> {
    Arc::new(Lease { attrs, ..lease.clone() })
}

/// What a node publishes whose sides publish these.
pub(super) fn compose(layout: Layout, attrs: [Option<LeaseAttrs>; 2]) -> Option<LeaseAttrs> {
    let of = |side: Side| attrs[side as usize].clone();
    match layout {
        Layout::Only(side) => of(side),
        Layout::Both { first, role } => {
            let second = of(first.other()).map(|it| {
                let LeaseAttrs { backend_type, backend_data, backend_v6_data, .. } = it;
                Box::new(SecondBackend { backend_type, backend_data, backend_v6_data, role })
            });
            Some(LeaseAttrs { second, ..of(first)? })
        }
    }
}

/// How a node that runs these types publishes them, going by what it has published.
pub(super) fn layout_of(published: Published<'_>, types: [&Cow<'static, str>; 2]) -> Layout {
    let side = |name: &str| Side::ALL.into_iter().find(|side| types[*side as usize] == name);
    match (side(published.first), published.second) {
        (None, _) => Layout::Only(Side::Base),
        (Some(first), Some((second, role))) if side(second) == Some(first.other()) => {
            Layout::Both { first, role }
        }
        (Some(first), _) => Layout::Only(first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::SecondRole;

    #[test]
    fn a_layout_is_found_again_in_what_is_published() {
        let attrs = |name: &'static str| {
            let public_ip = Some([192, 0, 2, 1].into());
            Some(LeaseAttrs { public_ip, backend_type: name.into(), ..LeaseAttrs::default() })
        };
        let (types, sides) = ([&"one".into(), &"two".into()], || [attrs("one"), attrs("two")]);
        let published = |layout| compose(layout, sides()).unwrap();
        let roles = [SecondRole::Next, SecondRole::InUse, SecondRole::Unused];
        for first in Side::ALL {
            let both = roles.map(|role| Layout::Both { first, role });
            for layout in both.into_iter().chain([Layout::Only(first)]) {
                let attrs = published(layout);
                assert_eq!(layout_of(Published::by(&attrs), types), layout);
                // Each side finds in it what it has published.
                for side in Side::ALL.into_iter().filter(|it| layout != Layout::Only(it.other())) {
                    assert_eq!(attrs_of(&attrs, types[side as usize]), sides()[side as usize]);
                }
            }
        }
        // A third backend is none of ours.
        let both = Layout::Both { first: Side::Base, role: SecondRole::Next };
        let attrs = published(both);
        for (types, side) in [
            (["one", "three"], Side::Base),
            (["three", "one"], Side::Beside),
            (["three", "four"], Side::Base),
        ] {
            let types = types.map(Cow::Borrowed);
            let layout = layout_of(Published::by(&attrs), types.each_ref());
            assert_eq!(layout, Layout::Only(side), "{types:?}");
        }
        assert_eq!(attrs_of(&attrs, "three"), None);
        // A second backend that cannot say what it publishes is left out.
        let [one, _] = sides();
        assert_eq!(compose(both, [one.clone(), None]), one);
    }
}
