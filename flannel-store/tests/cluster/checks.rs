//! What holds at every moment, and what holds at the end.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use flannel_core::{NodeId, Status, Subnet};

use crate::{
    TTL,
    world::{Machine, World},
};

impl World {
    /// What holds at every moment.
    pub(crate) fn check_always(&self) {
        let leases = self.leases();
        let taken: Vec<_> =
            leases.keys().filter(|subnet| !self.flannels.contains_key(subnet)).collect();
        for (n, one) in taken.iter().enumerate() {
            let mut others = taken[..n].iter();
            let other = others.find(|other| other.overlaps(one));
            assert_eq!(other, None, "this and {one} are both leased");
        }
        let mut trusted = BTreeMap::<Subnet, &NodeId>::new();
        for Machine { id, running, .. } in &self.machines {
            let Some((task, handle)) = running else { continue };
            assert!(!task.is_finished(), "{id} ended");
            let status = handle.status();
            let Some(lease) = status.lease.as_ref().filter(|_| status.trusts_lease()) else {
                continue;
            };
            let meddled = self.meddled.get(&lease.subnet.to_string());
            if meddled.is_some_and(|when| when.elapsed() < TTL) {
                continue;
            }
            let other = trusted.iter().find(|(other, _)| other.overlaps(&lease.subnet));
            assert_eq!(other, None, "{id} and another trust their lease of {}", lease.subnet);
            trusted.insert(lease.subnet, id);
            let owner = leases.get(&lease.subnet).and_then(Option::as_ref);
            assert_eq!(owner, Some(id), "{id} trusts its lease of {}", lease.subnet);
        }
    }

    /// Writes down what everybody knows.
    pub(crate) fn note(&mut self) {
        let mut line = String::new();
        for record in self.cluster.records() {
            let owner = record.owner.as_ref().map_or("-", NodeId::as_str);
            line += &format!("{} {owner} {}; ", record.key, record.revision);
        }
        for machine in &self.machines {
            let Some((_, handle)) = &machine.running else { continue };
            let status = handle.status();
            let subnet = status.lease.as_ref().map(|lease| lease.subnet);
            let Status { peers, syncs, writes, in_sync, faults, .. } = status;
            // Without their times, which differ between two runs.
            let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
            line += &format!(
                "{}: {subnet:?} {peers:?} {syncs} {writes} {in_sync} {faults:?}; ",
                machine.id
            );
        }
        self.history.lines.push(line);
    }

    /// What holds once everybody had time without faults.
    pub(crate) fn check_settled(&self) {
        let room = self.room();
        let mut held = BTreeMap::<Subnet, &Machine>::new();
        for machine in &self.machines {
            let (_, handle) = machine.running.as_ref().expect("healed");
            let status = handle.status();
            if status.lease.is_none() && room < self.machines.len() {
                continue;
            }
            assert!(status.is_ready(), "{} is not ready: {status:?}", machine.id);
            let lease = status.lease.expect("ready");
            assert_eq!(lease.attrs.public_ip, Some(machine.address), "{}", machine.id);
            if let Some(other) = held.insert(lease.subnet, machine) {
                panic!("{} and {} both hold {}", machine.id, other.id, lease.subnet);
            }
        }
        assert_eq!(held.len(), room.min(self.machines.len()), "not all subnets are in use");

        let owner = |machine: &Machine| Some(machine.id.clone());
        let mut believed: BTreeMap<_, _> = held.iter().map(|(s, m)| (*s, owner(m))).collect();
        believed.extend(self.flannels.keys().map(|subnet| (*subnet, None)));
        for flannels in self.flannels.keys() {
            let moved = held.keys().all(|subnet| !subnet.overlaps(flannels));
            assert!(moved, "a node stays beside flannel's {flannels}");
        }
        assert_eq!(self.leases(), believed, "store and nodes disagree");

        let mut all = self.flannels.clone();
        all.extend(held.iter().map(|(subnet, peer)| (*subnet, IpAddr::from(peer.address))));
        for (own, machine) in &held {
            let mut routes = machine.host.routes();
            assert_eq!(routes.insert(*own, machine.address.into()), None, "a route to itself");
            assert_eq!(routes, all, "routes of {}", machine.id);
        }
    }

    /// How many subnets there are for our nodes.
    fn room(&self) -> usize {
        let is_free = |key: String| {
            let subnet: Subnet = key.parse().unwrap();
            !self.flannels.keys().any(|other| other.overlaps(&subnet))
        };
        let blocks = 1..=self.config.ipv4().unwrap().count() as u32;
        let v4 = |n: &u32| is_free(format!("{}-30", Ipv4Addr::from(0x0a03_0000 + 4 * n)));
        let v6 = |n: &u32| {
            is_free(format!("{}-126", Ipv6Addr::from((0xfd00 << 112) + 4 * u128::from(*n))))
        };
        let free = blocks.clone().filter(v4).count();
        match self.config.ipv6() {
            Some(_) => free.min(blocks.filter(v6).count()),
            None => free,
        }
    }
}
