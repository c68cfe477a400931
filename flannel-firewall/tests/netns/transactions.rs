//! What a client of nf_tables does to the kernel, and what it leaves.

use std::{fs, time::Duration};

use flannel_firewall::nftables::{Batch, Client, Expression, Family};
use flannel_netlink::Namespace;
use flannel_testbed::soon;
use tokio::time::sleep;

fn table(name: &str) -> Batch {
    let mut batch = Batch::default();
    batch.add_table(Family::IPV4, name, 0, None);
    batch
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_change_that_was_made_for_other_rules_is_refused() {
    let namespace = Namespace::create().unwrap();
    let mut client = Client::open(&namespace).unwrap();
    let mut other = Client::open(&namespace).unwrap();
    let generation = client.generation().await.unwrap();
    other.apply(&table("theirs")).await.unwrap();
    let error = client.apply_at(generation, &table("ours")).await.unwrap_err();
    assert!(error.outdated(), "{error}");
    assert_eq!(client.table(Family::IPV4, "ours").await.unwrap(), None);
    let generation = client.generation().await.unwrap();
    client.apply_at(generation, &table("ours")).await.unwrap();
    assert!(client.table(Family::IPV4, "ours").await.unwrap().is_some());
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_rules_of_one_chain_are_listed() {
    let mut client = Client::open(&Namespace::create().unwrap()).unwrap();
    let mut batch = table("t");
    for chain in ["one", "two"] {
        batch.add_chain(Family::IPV4, "t", chain, None, None);
        let comment = Some(chain);
        batch.add_commented_rule(Family::IPV4, "t", chain, &[Expression::ACCEPT], comment);
    }
    client.apply(&batch).await.unwrap();
    let rules = client.chain_rules(Family::IPV4, "t", "two").await.unwrap();
    let comments: Vec<_> = rules.iter().map(|rule| rule.comment.as_deref()).collect();
    assert_eq!(comments, [Some("two")]);
    assert_eq!(client.chain_rules(Family::IPV4, "t", "three").await.unwrap(), []);
    assert_eq!(client.chain_rules(Family::IPV4, "u", "two").await.unwrap(), []);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_kernel_closes_a_socket_that_something_was_deleted_with() {
    let namespace = Namespace::create().unwrap();
    let mut outlived = 0;
    for _ in 0..20 {
        let mut client = Client::open(&namespace).unwrap();
        let port = client.port();
        client.apply(&table("t")).await.unwrap();
        let mut batch = Batch::default();
        batch.delete_table(Family::IPV4, "t");
        client.apply(&batch).await.unwrap();
        assert!(is_open(&namespace, port));
        drop(client);
        outlived += u32::from(is_open(&namespace, port));
        let closed = async {
            while is_open(&namespace, port) {
                sleep(Duration::from_millis(1)).await;
            }
        };
        soon(closed).await;
    }
    // Before Linux 6.9, the kernel closes it at once.
    assert!(outlived > 0 || release() < (6, 9), "closing was waited for");
}

/// Whether the namespace has a netfilter socket of this number.
fn is_open(namespace: &Namespace, port: u32) -> bool {
    let read = || fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
    let sockets = namespace.run(read).unwrap();
    let mut lines = sockets.lines().map(|line| line.split_whitespace().skip(1).take(2));
    lines.any(|line| line.eq([NETLINK_NETFILTER, &port.to_string()]))
}

fn release() -> (u32, u32) {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = text.split('.').map_while(|number| number.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

const NETLINK_NETFILTER: &str = "12";
