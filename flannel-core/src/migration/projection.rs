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
