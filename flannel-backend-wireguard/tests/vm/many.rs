//! What thousands of peers cost, in messages.
#![expect(clippy::disallowed_methods, reason = "the device that counts is made with ip")]

use std::{fs, process::Command};

use crate::support::World;

/// How many datagrams went between the kernel of host 0 and whoever talks netlink to it, in both directions.
struct Counter<'a>(&'a World);

impl<'a> Counter<'a> {
    async fn new(world: &'a World) -> Self {
        for line in ["link add nlmon0 type nlmon", "link set nlmon0 up"] {
            let mut command = Command::new("ip");
            command.args(line.split(' '));
            world.host(0).run(command).await.unwrap();
        }
        Self(world)
    }

    fn count(&self) -> u64 {
        let read = || fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let devices = self.0.host(0).namespace().run(read).unwrap();
        let line = devices.lines().find_map(|line| line.trim().strip_prefix("nlmon0:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

mod once {
    use flannel_core::testing::network::Nodes;

    use super::Counter;
    use crate::{
        support::{IPV4, world},
        thousands::leases,
    };

    #[tokio::test]
    #[ignore = "needs another kernel: run ./ci.sh vm"]
    async fn of_5000_peers_one_change_is_one_message() {
        let world = world(IPV4).await;
        let mut nodes = Nodes::start(&world).await;
        let attrs = nodes.lease(1).attrs.clone();
        let all = nodes.peers(0, leases(&attrs, 51820));
        let one_changed = nodes.peers(0, leases(&attrs, 999));
        let counter = Counter::new(&world).await;
        let report = nodes.network(0).sync(&all).await.unwrap();
        let first = counter.count();
        assert_eq!((report.added, report.removed, report.problems.len()), (5000, 3, 0));
        let peers = world.peers(0, "flannel-wg").await;
        assert_eq!(peers.len(), 5000);
        assert!(peers.iter().all(|peer| peer.allowed_ips.len() == 1));

        let mut counts = Vec::new();
        // The kernel's answers grow to the size that the first reads have shown to be of use.
        for peers in [&all, &all, &all, &one_changed, &all, &all] {
            let before = counter.count();
            let report = nodes.network(0).sync(peers).await.unwrap();
            counts.push((report.writes(), counter.count() - before));
        }
        let [_, _, (nothing, reads), changed, changed_back, (nothing_again, reads_again)] =
            counts[..]
        else {
            panic!("{counts:?}")
        };
        println!("datagrams: {first} to add all, {counts:?}");
        // Some 100 bytes for each that is added, in messages of 16 KiB with their acknowledgements.
        assert!(first <= reads + 2 * 35, "{first}");
        assert_eq!((nothing, nothing_again, reads), (0, 0, reads_again));
        // A request and its acknowledgement.
        assert_eq!((changed, changed_back), ((1, reads + 2), (1, reads + 2)));
        let before = counter.count();
        assert_eq!(nodes.sync(0).await.writes(), 5003);
        let removal = counter.count() - before - reads;
        // 48 bytes for each that is removed.
        println!("datagrams to remove them: {removal}");
        assert!(removal < 2 * 20, "{removal}");
    }
}
