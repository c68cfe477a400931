//! What of a node is kept, and what changes of nodes mean for leases.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    sync::Arc,
};

use flannel_core::{Lease, LeaseAttrs, LeaseEvent, NetworkConfig, NodeId, Subnet};
use flannel_kube::{Merged, NodeSpecView, NodeView, ObjectMeta, Projection, Reflection};
use ipnetwork::IpNetwork;

use super::annotations::AnnotationNames;

/// What is kept of a node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NodeLease {
    uid: Uid,
    /// Its blocks of addresses with what it says about itself, which whoever hears of it shares; `None` until the cluster has given it
    /// blocks.
    lease: Option<Arc<Lease>>,
    /// Whether it says anything, as a node of flannel's does.
    is_published: bool,
    overwrites: (Overwrite, Overwrite),
}

impl NodeLease {
    pub(crate) fn blocks(&self) -> Option<Subnet> {
        self.lease.as_ref().map(|lease| lease.subnet)
    }
}

/// Which Node of a name it is: a hash of the uid, since there are thousands of them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Uid(u64);

impl Uid {
    fn of(uid: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        uid.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// Another address that an operator wants to be published.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Overwrite {
    #[default]
    None,
    Published,
    Pending,
}

/// Keeps the leases of nodes.
#[derive(Clone, Debug)]
pub(crate) struct NodeProjection {
    pub(crate) names: AnnotationNames,
}

impl Projection for NodeProjection {
    type Kept = NodeLease;

    fn project(&self, name: &Arc<str>, object: &str) -> Result<NodeLease, serde_json::Error> {
        let node = NodeView::without_status(object)?;
        Ok(self.node(name, &node.metadata, blocks(&node.spec)))
    }

    fn merge(
        &self,
        name: &Arc<str>,
        metadata: &ObjectMeta<'_>,
        known: Option<&NodeLease>,
    ) -> Merged<NodeLease> {
        // A node's blocks never change once they are there. Another node of the same name is another node.
        let blocks =
            known.filter(|it| it.uid == Uid::of(&metadata.uid)).and_then(NodeLease::blocks);
        match blocks {
            Some(blocks) => Merged::Complete(self.node(name, metadata, Some(blocks))),
            None => Merged::Incomplete,
        }
    }
}

impl NodeProjection {
    fn node(
        &self,
        name: &Arc<str>,
        metadata: &ObjectMeta<'_>,
        blocks: Option<Subnet>,
    ) -> NodeLease {
        let attrs = self.names.read(&metadata.annotations);
        let (ipv4, ipv6) = self.names.overwrites(&metadata.annotations);
        let overwrite = |wanted: Option<IpAddr>, published: Option<IpAddr>| match wanted {
            None => Overwrite::None,
            Some(_) if wanted == published => Overwrite::Published,
            Some(_) => Overwrite::Pending,
        };
        let published = attrs.as_ref();
        let overwrites = (
            overwrite(ipv4.map(Into::into), published.and_then(|it| it.public_ip.map(Into::into))),
            overwrite(
                ipv6.map(Into::into),
                published.and_then(|it| it.public_ipv6.map(Into::into)),
            ),
        );
        let is_published = attrs.is_some();
        let lease = blocks.zip(NodeId::new(Arc::clone(name)).ok()).map(|(blocks, name)| {
            Arc::new(Lease::new(blocks, attrs.unwrap_or_default()).held_by(name))
        });
        NodeLease { uid: Uid::of(&metadata.uid), lease, is_published, overwrites }
    }
}

/// The blocks of a node: the first of each family, as nodeToLease in flannel's kube.go.
pub(crate) fn blocks(spec: &NodeSpecView<'_>) -> Option<Subnet> {
    let all = match spec.pod_cidrs.as_slice() {
        [] => std::slice::from_ref(&spec.pod_cidr),
        all => all,
    };
    let parsed: Vec<IpNetwork> = all.iter().filter_map(|text| text.parse().ok()).collect();
    let ipv4 = parsed.iter().find_map(|block| match block {
        IpNetwork::V4(block) => Some(*block),
        IpNetwork::V6(_) => None,
    });
    let ipv6 = parsed.iter().find_map(|block| match block {
        IpNetwork::V6(block) => Some(*block),
        IpNetwork::V4(_) => None,
    });
    Subnet::new(ipv4, ipv6)
}

/// Which families a network has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Families {
    ipv4: bool,
    ipv6: bool,
}

impl Families {
    pub(crate) fn of(config: &NetworkConfig) -> Self {
        Self { ipv4: config.ipv4().is_some(), ipv6: config.ipv6().is_some() }
    }

    /// The blocks of these families.
    pub(crate) fn of_blocks(self, blocks: Subnet) -> Option<Subnet> {
        Subnet::new(blocks.ipv4().filter(|_| self.ipv4), blocks.ipv6().filter(|_| self.ipv6))
    }
}

/// What nodes mean to the node called `own`, which published `published` last.
pub(crate) struct LeaseView<'a> {
    pub(crate) own: &'a str,
    pub(crate) published: Option<&'a LeaseAttrs>,
    pub(crate) families: Families,
}

impl LeaseView<'_> {
    /// The lease of a node: of the families for which it has both a block and an address.
    pub(crate) fn lease(&self, name: &str, node: &NodeLease) -> Option<Arc<Lease>> {
        let mut lease = node.lease.clone().filter(|_| node.is_published)?;
        let blocks = self.families.of_blocks(lease.subnet)?;
        if name == self.own
            && let Some(published) = self.published
        {
            let Lease { subnet, attrs, .. } = Arc::make_mut(&mut lease);
            *subnet = blocks;
            // What an operator wants to be published instead is as good as what we published, once it is.
            match node.overwrites.0 {
                Overwrite::None => {}
                Overwrite::Published => attrs.public_ip = published.public_ip,
                Overwrite::Pending => attrs.public_ip = None,
            }
            match node.overwrites.1 {
                Overwrite::None => {}
                Overwrite::Published => attrs.public_ipv6 = published.public_ipv6,
                Overwrite::Pending => attrs.public_ipv6 = None,
            }
            // Whatever is missing of ours should be seen.
            if !self.families.ipv6 {
                attrs.public_ipv6 = published.public_ipv6;
                attrs.backend_v6_data.clone_from(&published.backend_v6_data);
            }
            if !self.families.ipv4 {
                attrs.public_ip = published.public_ip;
                attrs.backend_data.clone_from(&published.backend_data);
            }
            return Some(lease);
        }
        // Copied only where anything is left out.
        let says = |lease: &Lease| {
            let attrs = &lease.attrs;
            let ipv4 = attrs.public_ip.is_some() || attrs.backend_data.is_some();
            (ipv4, attrs.public_ipv6.is_some() || attrs.backend_v6_data.is_some())
        };
        if blocks.ipv4().is_none() && says(&lease).0 {
            let attrs = &mut Arc::make_mut(&mut lease).attrs;
            (attrs.public_ip, attrs.backend_data) = (None, None);
        }
        if blocks.ipv6().is_none() && says(&lease).1 {
            let attrs = &mut Arc::make_mut(&mut lease).attrs;
            (attrs.public_ipv6, attrs.backend_v6_data) = (None, None);
        }
        let ipv4 = blocks.ipv4().filter(|_| lease.attrs.public_ip.is_some());
        let ipv6 = blocks.ipv6().filter(|_| lease.attrs.public_ipv6.is_some());
        let subnet = Subnet::new(ipv4, ipv6)?;
        if subnet != lease.subnet {
            Arc::make_mut(&mut lease).subnet = subnet;
        }
        Some(lease)
    }

    /// The leases of all nodes. Of nodes with the same blocks, which a cluster does not make, the first by name counts.
    pub(crate) fn leases(&self, nodes: &BTreeMap<Arc<str>, NodeLease>) -> Vec<Arc<Lease>> {
        let mut taken = BTreeSet::new();
        let leases = nodes.iter().filter_map(|(name, node)| self.lease(name, node));
        leases.filter(|lease| taken.insert(lease.subnet)).collect()
    }

    /// What a change of nodes means. `nodes` is what is the case after it.
    pub(crate) fn events(
        &self,
        change: Reflection<NodeLease>,
        nodes: &BTreeMap<Arc<str>, NodeLease>,
    ) -> Vec<LeaseEvent> {
        let (name, before) = match change {
            Reflection::Reset => return vec![LeaseEvent::Reset(self.leases(nodes))],
            Reflection::Deleted(name, before) => (name, Some(before)),
            Reflection::Upserted(name, before) => (name, before),
        };
        let before = before.and_then(|before| self.lease(&name, &before));
        let now = nodes.get(&name).and_then(|node| self.lease(&name, node));
        if before == now {
            return Vec::new();
        }
        let subnets = [before.as_ref(), now.as_ref()].into_iter().flatten().map(|it| it.subnet);
        let mut subnets: Vec<_> = subnets.collect();
        subnets.dedup();
        let holder = |subnet: Subnet| {
            // Most often nobody else has it, and that takes a look at all.
            let near = nodes
                .iter()
                .filter(|(_, node)| node.blocks().is_some_and(|blocks| blocks.overlaps(&subnet)));
            let mut leases = near.filter_map(|(name, node)| self.lease(name, node));
            leases.find(|lease| lease.subnet == subnet)
        };
        let event = |subnet| holder(subnet).map_or(LeaseEvent::Remove(subnet), LeaseEvent::Upsert);
        subnets.into_iter().map(event).collect()
    }
}

#[cfg(test)]
mod tests {
    use flannel_kube::MetadataOf;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn projection() -> NodeProjection {
        NodeProjection { names: AnnotationNames::new("flannel.alpha.coreos.com").unwrap() }
    }

    fn projected(json: &str) -> NodeLease {
        projection().project(&"n".into(), json).unwrap()
    }

    fn node(uid: &str, blocks: &[&str], annotations: &[(&str, &str)]) -> String {
        let annotations: BTreeMap<String, &str> = annotations
            .iter()
            .map(|(name, value)| (format!("flannel.alpha.coreos.com/{name}"), *value))
            .collect();
        json!({
            "metadata": {"name": "n", "uid": uid, "annotations": annotations},
            "spec": {"podCIDR": blocks.first(), "podCIDRs": blocks},
            "status": {"images": [{"names": ["x"]}]},
        })
        .to_string()
        .replace("\"podCIDR\":null", "\"other\":1")
    }

    const DUAL: &[(&str, &str)] = &[
        ("kube-subnet-manager", "true"),
        ("backend-type", "host-gw"),
        ("backend-data", "null"),
        ("backend-v6-data", "null"),
        ("public-ip", "192.0.2.1"),
        ("public-ipv6", "2001:db8::1"),
    ];

    fn view(families: (bool, bool)) -> LeaseView<'static> {
        let families = Families { ipv4: families.0, ipv6: families.1 };
        LeaseView { own: "own", published: None, families }
    }

    fn subnet_of(view: &LeaseView<'_>, json: &str) -> Option<String> {
        let node = projected(json);
        view.lease("n", &node).map(|lease| lease.subnet.to_string())
    }

    #[test]
    fn a_lease_has_the_families_that_have_both_block_and_address() {
        let both = ["10.244.1.0/24", "fd00:1::/64"];
        let dual = node("u", &both, DUAL);
        for (families, expected) in [
            ((true, true), Some("10.244.1.0-24&fd00:1::-64")),
            ((true, false), Some("10.244.1.0-24")),
            ((false, true), Some("fd00:1::-64")),
        ] {
            assert_eq!(subnet_of(&view(families), &dual).as_deref(), expected);
        }
        let reversed = node("u", &["fd00:1::/64", "10.244.1.0/24"], DUAL);
        assert_eq!(
            subnet_of(&view((true, true)), &reversed),
            subnet_of(&view((true, true)), &dual)
        );
        let only_ipv4 = node("u", &both, &DUAL[..5]);
        assert_eq!(subnet_of(&view((true, true)), &only_ipv4).as_deref(), Some("10.244.1.0-24"));
        for nothing in [
            node("u", &[], DUAL),
            node("u", &both, &DUAL[1..]),
            node("u", &["nonsense"], DUAL),
            node("u", &both, &DUAL[..4]),
        ] {
            assert_eq!(subnet_of(&view((true, true)), &nothing), None, "{nothing}");
        }
        let of_old = json!({"metadata": {"name": "n", "annotations": null}, "spec": {"podCIDR": "10.1.0.0/24"}});
        let of_old: NodeView<'_> = serde_json::from_str(&of_old.to_string().leak()[..]).unwrap();
        assert_eq!(blocks(&of_old.spec).unwrap().to_string(), "10.1.0.0-24");
    }

    #[test]
    fn a_lease_of_which_nothing_is_left_out_is_the_nodes_own() {
        let node = projected(&node("u", &["10.244.1.0/24"], &DUAL[..5]));
        for families in [(true, false), (true, true)] {
            let lease = view(families).lease("n", &node).unwrap();
            assert!(Arc::ptr_eq(&lease, node.lease.as_ref().unwrap()));
        }
    }

    #[test]
    fn a_name_is_kept_once() {
        let name = "n".into();
        let node = projection().project(&name, &node("u", &["10.244.1.0/24"], DUAL)).unwrap();
        let id = node.lease.as_ref().unwrap().node.as_ref().unwrap();
        assert!(std::ptr::eq(id.as_str(), &*name));
    }

    #[test]
    fn metadata_is_enough_for_a_node_that_is_known() {
        let known = projected(&node("u", &["10.244.1.0/24"], &DUAL[..4]));
        let changed = node("u", &[], DUAL);
        let merge = |json: &str, known| {
            projection().merge(&"n".into(), &MetadataOf::read(json).unwrap().metadata, known)
        };
        let Merged::Complete(merged) = merge(&changed, Some(&known)) else {
            panic!("the block is known")
        };
        assert_eq!((merged.blocks(), merged.is_published), (known.blocks(), true));
        let another = node("v", &[], DUAL);
        assert_eq!(merge(&another, Some(&known)), Merged::Incomplete);
        assert_eq!(merge(&changed, None), Merged::Incomplete);
        let without = projected(&node("u", &[], DUAL));
        assert_eq!(merge(&changed, Some(&without)), Merged::Incomplete);
    }

    #[test]
    fn an_operators_address_is_no_difference_once_it_is_published() {
        let published = LeaseAttrs {
            public_ip: Some([192, 0, 2, 1].into()),
            backend_type: "host-gw".into(),
            ..LeaseAttrs::default()
        };
        let own = LeaseView { own: "n", published: Some(&published), ..view((true, false)) };
        let attrs = |address: &str| {
            let annotations = [
                ("kube-subnet-manager", "true"),
                ("backend-type", "host-gw"),
                ("backend-data", "null"),
                ("public-ip", address),
                ("public-ip-overwrite", "198.51.100.7"),
            ];
            let node = projected(&node("u", &["10.244.1.0/24"], &annotations));
            own.lease("n", &node).unwrap().attrs.clone()
        };
        assert_eq!(attrs("198.51.100.7"), published);
        assert_ne!(attrs("192.0.2.1"), published, "it has to be written again");
    }

    proptest! {
        /// Whoever folds the events knows the leases of what the nodes are, whatever happens to them.
        #[test]
        fn events_lead_where_the_nodes_are(
            changes in prop::collection::vec((0..4_u8, 0..4_u8, 0..3_u8, any::<bool>(), any::<bool>()), 1..40),
        ) {
            let view = view((true, true));
            let (mut nodes, mut folded) = (BTreeMap::new(), BTreeMap::new());
            for (name, block, address, is_dual, is_gone) in changes {
                let name: Arc<str> = format!("n{name}").into();
                let ipv4 = format!("10.244.{block}.0/24");
                let ipv6 = format!("fd00:{block}::/64");
                let both = [ipv4.as_str(), ipv6.as_str()];
                let public = format!("192.0.2.{address}");
                let mut annotations = DUAL.to_vec();
                annotations[4].1 = &public;
                let annotations = if is_dual { &annotations[..] } else { &annotations[..5] };
                let json = node("u", &both, annotations);
                let change = if is_gone {
                    let Some(before) = nodes.remove(&name) else { continue };
                    Reflection::Deleted(name, before)
                } else {
                    let before = nodes.insert(name.clone(), projected(&json));
                    Reflection::Upserted(name, before)
                };
                for event in view.events(change, &nodes) {
                    match event {
                        LeaseEvent::Remove(subnet) => drop(folded.remove(&subnet)),
                        LeaseEvent::Upsert(lease) => drop(folded.insert(lease.subnet, lease)),
                        LeaseEvent::Reset(_) => unreachable!("nothing was lost"),
                    }
                }
                let truth: BTreeMap<_, _> =
                    view.leases(&nodes).into_iter().map(|lease| (lease.subnet, lease)).collect();
                prop_assert_eq!(&folded, &truth);
            }
        }
    }
}
