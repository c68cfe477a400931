//! The machines, their store, and what happens to them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use flannel_core::{
    LeaseAttrs, NetworkConfig, Node, NodeHandle, NodeId, NodeOptions, SplitMix64, Subnet,
    testing::FakeBackend,
};
use flannel_store::{
    LeaseOptions, Lifetime, NewRecord,
    testing::{Cut, FaultyCluster},
};
use tokio::{task::JoinHandle, time::Instant};

use crate::{History, SETTLE, STRANGER, TTL};

/// One machine with its node. The host outlives the node.
pub(crate) struct Machine {
    pub(crate) id: NodeId,
    pub(crate) host: FakeBackend,
    pub(crate) address: Ipv4Addr,
    pub(crate) running: Option<(JoinHandle<()>, NodeHandle)>,
}

pub(crate) struct World {
    pub(crate) cluster: FaultyCluster,
    pub(crate) machines: Vec<Machine>,
    pub(crate) random: SplitMix64,
    pub(crate) history: History,
    /// When somebody last took or wrote the lease at a key past the protocol.
    pub(crate) meddled: BTreeMap<String, Instant>,
    /// Leases of nodes of flannel, which look at no lease but their own when they write.
    pub(crate) flannels: BTreeMap<Subnet, IpAddr>,
    pub(crate) config: NetworkConfig,
    /// How many addresses machines have had.
    pub(crate) addresses: u16,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = SplitMix64::new(seed);
        let most = pick(&mut random, &[10, 10, 10, 10, 10, 10, 40, 40, 40, 100]);
        let count = 1 + random.below(most) as u8;
        // From too few subnets to plenty, and sometimes hardly any memory of changes.
        let len = pick(&mut random, &[25, 24, 23, 20]);
        let dual = pick(&mut random, &[true, false]);
        // As many blocks of IPv6 as of IPv4.
        let config: NetworkConfig = format!(
            r#"{{"Network":"10.3.0.0/{len}","SubnetLen":30,
                 "EnableIPv6":{dual},"IPv6Network":"fd00::/{}","IPv6SubnetLen":126}}"#,
            96 + len
        )
        .parse()
        .unwrap();
        let memory = pick(&mut random, &[2, 16, 1024]);
        let machine = |n| {
            let address = Ipv4Addr::new(192, 0, 2, 1 + n);
            let id = format!("n{n}").parse().unwrap();
            Machine { id, host: FakeBackend::new(address), address, running: None }
        };
        Self {
            cluster: FaultyCluster::with_history(&config, memory),
            machines: (0..count).map(machine).collect(),
            random,
            history: History {
                lines: vec![format!(
                    "{count} nodes, /{len}, dual: {dual}, {memory} changes remembered"
                )],
                nodes: count.into(),
            },
            meddled: BTreeMap::new(),
            flannels: BTreeMap::new(),
            config,
            addresses: 0,
        }
    }

    pub(crate) fn start(&mut self, n: usize) {
        let seed = self.random.next_u64();
        let machine = &mut self.machines[n];
        if machine.running.is_some() {
            return;
        }
        let options = LeaseOptions { ttl: TTL, ..LeaseOptions::default() };
        let store = self.cluster.store_with(machine.id.clone(), options);
        let bulk_removal_grace = Duration::from_secs(60);
        let options = NodeOptions { seed, bulk_removal_grace, ..NodeOptions::default() };
        let node = Node::from_parts(Arc::new(store), Arc::new(machine.host.clone()), options);
        let handle = node.handle();
        let task = tokio::spawn(async move {
            let error = node.run().await.expect_err("a node only ends with an error");
            panic!("a node ended: {error}");
        });
        machine.running = Some((task, handle));
    }

    /// None, half or all of the nodes start at once.
    pub(crate) fn start_some(&mut self) {
        let share = pick(&mut self.random, &[0, 1, 2]);
        self.history.lines.push(format!("{share} of 2 nodes start"));
        for n in 0..self.machines.len() {
            if self.random.below(2) < share {
                self.start(n);
            }
        }
    }

    /// One random thing happens.
    pub(crate) fn step(&mut self) {
        let n = self.random.below(self.machines.len() as u64) as usize;
        let key = self.some_key();
        let id = self.machines[n].id.clone();
        let what = self.random.below(19);
        self.history.lines.push(format!("{what} at {id}, {key:?}"));
        match what {
            0..4 => self.start(n),
            4 => {
                if let Some((task, _)) = self.machines[n].running.take() {
                    task.abort();
                }
            }
            5 => self.cluster.cut(&id, Cut::Fail),
            6 => self.cluster.cut(&id, Cut::Hang),
            7 | 8 => self.cluster.heal(&id),
            9 => self.cluster.delay(&id, Duration::from_millis(self.random.below(3000))),
            10 => self.machines[n].host.fail_syncs(self.random.below(4) as u32),
            11 => {
                let time = Duration::from_millis(self.random.below(300));
                self.machines[n].host.slow_syncs(time);
            }
            12 => self.machines[n].host.meddle(|routes| {
                routes.pop_first();
            }),
            13 => {
                // An address that was given to nobody before: whoever had it may be cut off, and live.
                self.addresses += 1;
                let [high, low] = self.addresses.to_be_bytes();
                self.move_to(n, Ipv4Addr::new(10, 200, high, low));
            }
            14 | 15 => {
                if let Some(key) = key {
                    let gone = if what == 14 {
                        self.cluster.expire(&key)
                    } else {
                        self.cluster.remove(&key)
                    };
                    self.meddled.insert(key, Instant::now());
                    self.history.lines.push(format!("gone: {gone}"));
                }
            }
            16 => self.cluster.compact(),
            17 => self.overlap(key),
            _ => self.intrude(key),
        }
    }

    fn move_to(&mut self, n: usize, address: Ipv4Addr) {
        self.machines[n].address = address;
        self.machines[n].host.set_address(address);
    }

    /// A node of flannel with another configuration takes addresses of `key`, and does not see that they are taken.
    fn overlap(&mut self, key: Option<String>) {
        let Some(subnet) = key.and_then(|key| key.parse::<Subnet>().ok()) else { return };
        let (v4, v6) = (subnet.ipv4(), subnet.ipv6());
        let longer = v4.map(|v4| format!("{}-31", v4.network()));
        let alone = v6.and(v4).map(|v4| format!("{}-30", v4.network()));
        let other = v4.zip(v6).map(|(v4, v6)| format!("{}-31&{}-126", v4.network(), v6.network()));
        let keys: Vec<String> = [longer, alone, other].into_iter().flatten().collect();
        if keys.is_empty() || self.flannels.len() == 3 {
            return;
        }
        let key = &keys[self.random.below(keys.len() as u64) as usize];
        let taken: Subnet = key.parse().unwrap();
        if self.flannels.keys().any(|other| other.overlaps(&taken)) {
            return;
        }
        let address = Ipv4Addr::new(198, 51, 100, 10 + self.flannels.len() as u8);
        let attrs = LeaseAttrs {
            public_ip: Some(address),
            backend_type: "fake".into(),
            ..LeaseAttrs::default()
        };
        let write = NewRecord { value: attrs.to_string(), owner: None, ttl: Some(100 * SETTLE) };
        self.cluster.put(key, &write);
        self.history.lines.push(format!("flannel takes {key}"));
        for overlapped in self.leases().into_keys().filter(|other| other.overlaps(&taken)) {
            self.meddled.insert(overlapped.to_string(), Instant::now());
        }
        self.flannels.insert(taken, address.into());
    }

    /// A stranger takes a subnet for a while, in use or not, or writes what is no lease.
    fn intrude(&mut self, key: Option<String>) {
        let attrs = LeaseAttrs {
            public_ip: Some(Ipv4Addr::new(198, 51, 100, 1)),
            backend_type: "fake".into(),
            ..LeaseAttrs::default()
        };
        let (key, value) = match key {
            Some(key) => (key, attrs.to_string()),
            None => ("stray".into(), "no lease".into()),
        };
        let owner = Some(STRANGER.parse().unwrap());
        self.cluster.put(&key, &NewRecord { value, owner, ttl: Some(TTL) });
        self.meddled.insert(key, Instant::now());
    }

    fn some_key(&mut self) -> Option<String> {
        let mut records = self.cluster.records();
        records.retain(|it| it.subnet().is_none_or(|key| !self.flannels.contains_key(&key)));
        let n = self.random.below(records.len() as u64 + 1) as usize;
        records.into_iter().nth(n).map(|record| record.key)
    }

    /// Removes all faults, and starts everybody.
    pub(crate) fn heal(&mut self) {
        self.history.lines.push("healed".into());
        for n in 0..self.machines.len() {
            let machine = &self.machines[n];
            self.cluster.heal(&machine.id);
            machine.host.fail_syncs(0);
            machine.host.slow_syncs(Duration::ZERO);
            self.start(n);
        }
    }

    /// The leases that count now, with their owners.
    pub(crate) fn leases(&self) -> BTreeMap<Subnet, Option<NodeId>> {
        let records = self.cluster.records().into_iter();
        records
            .filter(|record| record.lifetime != Lifetime::Lapsed)
            .filter_map(|record| Some((record.key.parse().ok()?, record.owner)))
            .collect()
    }
}

fn pick<T: Copy>(random: &mut SplitMix64, values: &[T]) -> T {
    values[random.below(values.len() as u64) as usize]
}
