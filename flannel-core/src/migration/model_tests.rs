//! All schedules of a small cluster, at random: nobody ever sends by what the receiver does not accept.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::migration_plan::{Layout, Published, Side, Situation};
use crate::{
    NetworkConfig,
    lease::{Lease, LeaseAttrs, LeaseEvent, SecondBackend},
    peers::Peers,
    subnet::Subnet,
};

const NODES: usize = 3;
/// As they are published: vxlan, and udp without a name.
const TYPES: [&str; 2] = ["vxlan", ""];

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The network's backend is another.
    Configure(usize),
    /// A node learns of the network's backend.
    SeeConfig(usize),
    /// A node learns of the next version of another's lease.
    SeeLease(usize, usize),
    /// A node makes the data path match what it knows.
    Sync(usize),
    /// What a node wants to publish is in the store.
    Publish(usize),
    /// A node takes down what it has published to have left.
    Leave(usize),
    /// A node is killed and started again: it knows what the store has now.
    Restart(usize),
}

#[derive(Clone, Debug)]
struct Node {
    /// The numbers of its backends, base first.
    runs: Vec<usize>,
    target: usize,
    /// Which version of each lease it knows.
    seen: [usize; NODES],
    via: BTreeMap<usize, usize>,
    wants: LeaseAttrs,
}

#[derive(Clone, Debug)]
struct World {
    config: usize,
    nodes: Vec<Node>,
    /// All versions of each lease.
    leases: Vec<Vec<LeaseAttrs>>,
    /// Whether a node takes a backend down only when everybody knows that it has left.
    lingers: bool,
}

fn subnet(node: usize) -> Subnet {
    format!("10.3.{node}.0-24").parse().unwrap()
}

fn only(backend: usize, node: usize) -> LeaseAttrs {
    let public_ip = Some([192, 0, 2, 1 + node as u8].into());
    LeaseAttrs { public_ip, backend_type: TYPES[backend].into(), ..LeaseAttrs::default() }
}

impl World {
    fn new(lingers: bool) -> Self {
        let node = |n| Node {
            runs: vec![0],
            target: 0,
            seen: [0; NODES],
            via: (0..NODES).filter(|peer| *peer != n).map(|peer| (peer, 0)).collect(),
            wants: only(0, n),
        };
        Self {
            config: 0,
            nodes: (0..NODES).map(node).collect(),
            leases: (0..NODES).map(|n| vec![only(0, n)]).collect(),
            lingers,
        }
    }

    fn latest(&self, node: usize) -> &LeaseAttrs {
        self.leases[node].last().unwrap()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Configure(backend) => self.config = backend,
            Step::SeeConfig(n) => {
                let node = &mut self.nodes[n];
                node.target = self.config;
                if !node.runs.contains(&self.config) {
                    node.runs.push(self.config);
                }
            }
            Step::SeeLease(n, peer) => {
                let seen = &mut self.nodes[n].seen[peer];
                *seen = (*seen + 1).min(self.leases[peer].len() - 1);
            }
            Step::Sync(n) => self.sync(n),
            Step::Publish(n) => {
                let wants = self.nodes[n].wants.clone();
                if wants != *self.latest(n) {
                    self.leases[n].push(wants);
                }
            }
            Step::Leave(n) => self.leave(n),
            Step::Restart(n) => {
                for peer in 0..NODES {
                    self.nodes[n].seen[peer] = self.leases[peer].len() - 1;
                }
                self.nodes[n].wants = self.latest(n).clone();
                self.step(Step::SeeConfig(n));
                self.sync(n);
            }
        }
        self.check(step);
    }

    fn sync(&mut self, n: usize) {
        let peers = self.peers(n);
        let node = &self.nodes[n];
        let (via, wants) = match node.runs[..] {
            [_, _] => {
                let plan = self.situation(n).plan(&peers, |_, _| true);
                let side = |side: Side| node.runs[side as usize];
                let via = (0..NODES)
                    .filter_map(|peer| Some((peer, side(*plan.via.get(&subnet(peer))?))))
                    .collect();
                let wants = match plan.layout {
                    Layout::Only(first) => only(side(first), n),
                    Layout::Both { first, role } => {
                        let second = TYPES[side(first.other())].into();
                        let (backend_data, backend_v6_data) = (None, None);
                        let second = SecondBackend {
                            backend_type: second,
                            backend_data,
                            backend_v6_data,
                            role,
                        };
                        LeaseAttrs { second: Some(Box::new(second)), ..only(side(first), n) }
                    }
                };
                (via, wants)
            }
            _ => {
                let runs = node.runs[0];
                let offers = |peer: &Lease| Published::by(&peer.attrs).offers(TYPES[runs]);
                let reached =
                    (0..NODES).filter(|peer| peers.get(&subnet(*peer)).is_some_and(offers));
                (reached.map(|peer| (peer, runs)).collect(), only(runs, n))
            }
        };
        (self.nodes[n].via, self.nodes[n].wants) = (via, wants);
    }

    /// Takes a backend down if it may: the lease says that it is left, and so do all that are known of the others.
    fn leave(&mut self, n: usize) {
        let (node, latest) = (&self.nodes[n], self.latest(n));
        if node.runs.len() < 2 || *latest != only(node.target, n) || node.wants != *latest {
            return;
        }
        let plan = self.situation(n).plan(&self.peers(n), |_, _| true);
        let known = |peer: &Node| peer.seen[n] == self.leases[n].len() - 1;
        let others = || self.nodes.iter().enumerate().filter(|(peer, _)| *peer != n);
        let all_know = others().all(|(_, peer)| known(peer));
        // What they did when they learned of it has been done.
        let all_done =
            others().all(|(_, peer)| peer.via.get(&n).is_none_or(|it| *it == node.target));
        if matches!(plan.layout, Layout::Only(_)) && (!self.lingers || all_know && all_done) {
            let target = node.target;
            self.nodes[n].runs = vec![target];
        }
    }

    fn peers(&self, n: usize) -> Peers {
        let config: NetworkConfig = r#"{"Network":"10.3.0.0/16"}"#.parse().unwrap();
        let lease = |node: usize, attrs: &LeaseAttrs| Lease::new(subnet(node), attrs.clone());
        let mut peers = Peers::new(config, lease(n, self.latest(n)));
        let seen = self.nodes[n].seen;
        let leases = (0..NODES).map(|peer| lease(peer, &self.leases[peer][seen[peer]]));
        peers.fold(LeaseEvent::reset(leases));
        peers
    }

    fn situation(&self, n: usize) -> Situation<'_> {
        let node = &self.nodes[n];
        let side = |at| if node.runs[at] == node.target { Some(Side::ALL[at]) } else { None };
        Situation {
            types: [TYPES[node.runs[0]], TYPES[node.runs[1]]],
            target: side(0).or_else(|| side(1)).unwrap(),
            published: Published::by(self.latest(n)),
        }
    }

    fn check(&self, step: Step) {
        for (n, node) in self.nodes.iter().enumerate() {
            for (peer, via) in &node.via {
                assert!(
                    self.nodes[*peer].runs.contains(via),
                    "{step:?}: {n} sends to {peer} by {:?}: {self:#?}",
                    TYPES[*via]
                );
            }
            assert_eq!(node.via.len(), NODES - 1, "{step:?}: {n} does not reach all: {self:#?}");
        }
    }

    /// Lets everybody do everything until nothing changes.
    fn settle(&mut self) {
        for _ in 0..12 {
            for n in 0..NODES {
                self.step(Step::SeeConfig(n));
                for peer in 0..NODES {
                    for _ in 0..self.leases[peer].len() {
                        self.step(Step::SeeLease(n, peer));
                    }
                }
                for step in [Step::Sync(n), Step::Publish(n), Step::Leave(n)] {
                    self.step(step);
                }
            }
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 0..NODES;
    prop_oneof![
        1 => (0usize..2).prop_map(Step::Configure),
        3 => node().prop_map(Step::SeeConfig),
        8 => (node(), node()).prop_map(|(n, peer)| Step::SeeLease(n, peer)),
        8 => node().prop_map(Step::Sync),
        6 => node().prop_map(Step::Publish),
        4 => node().prop_map(Step::Leave),
        1 => node().prop_map(Step::Restart),
    ]
}

fn run(mut world: World, steps: &[Step]) {
    for step in steps {
        world.step(*step);
    }
    world.settle();
    let config = world.config;
    for (n, node) in world.nodes.iter().enumerate() {
        assert_eq!((&node.runs, world.latest(n)), (&vec![config], &only(config, n)), "{world:#?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// However often the backend changes: if a node that leaves one waits until the others know.
    #[test]
    fn whatever_happens_nobody_sends_by_what_is_not_accepted(steps in prop::collection::vec(step(), 0..120)) {
        run(World::new(true), &steps);
    }

    /// Without such a wait, and however late anybody learns of anything: if the backend changes once.
    #[test]
    fn one_change_needs_no_wait(steps in prop::collection::vec(step(), 0..120)) {
        let others = steps.into_iter().filter(|it| !matches!(it, Step::Configure(_)));
        let steps: Vec<_> = [Step::Configure(1)].into_iter().chain(others).collect();
        run(World::new(false), &steps);
    }
}
