//! Nodes of this program alone, with the kernel's engine: what is tested on this kernel with the other one.

use std::fs;

use crate::capture;

#[path = "../netns/migrating.rs"]
#[expect(dead_code, reason = "the tests on this kernel use all of it")]
mod migrating;
#[path = "../netns/outer_rules.rs"]
mod outer_rules;
#[path = "../netns/required_encryption.rs"]
mod required_encryption;
#[path = "../netns/support.rs"]
#[expect(dead_code, reason = "the tests on this kernel use all of it")]
mod support;

use support::Cluster;

const EBPF: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"udp","Engine":"ebpf"}}"#;

#[tokio::test]
#[ignore = "needs another kernel: run ./ci.sh vm"]
async fn what_the_sandbox_leaves_is_enough_for_programs_in_the_kernel() {
    let cluster = Cluster::new(2, EBPF).await;
    let (nodes, _pods) = cluster.start_all().await;
    for (n, node) in nodes.iter().enumerate() {
        let status = fs::read_to_string(format!("/proc/{}/status", node.pid().unwrap())).unwrap();
        // CAP_NET_ADMIN and CAP_BPF.
        assert!(status.contains("CapPrm:\t0000008000001000"), "{status}");
        assert_eq!(cluster.status(n).await["backend_report"]["properties"]["engine"], "ebpf");
    }
}

mod once {
    use super::{
        migrating::{Trouble, loses_nothing},
        outer_rules, required_encryption,
        support::VXLAN,
    };

    const WIREGUARD: &str =
        r#"{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard","Engine":"kernel"}}"#;

    #[tokio::test]
    #[ignore = "needs another kernel: run ./ci.sh vm"]
    async fn a_node_that_is_killed_in_each_phase_of_a_migration_loses_no_packet() {
        loses_nothing(&[VXLAN, WIREGUARD, VXLAN], Trouble::Killed).await;
    }

    #[tokio::test]
    #[ignore = "needs another kernel: run ./ci.sh vm"]
    async fn a_node_that_lags_in_a_migration_is_waited_for_and_named() {
        loses_nothing(&[VXLAN, WIREGUARD, VXLAN], Trouble::Lags).await;
    }

    #[tokio::test]
    #[ignore = "needs another kernel: run ./ci.sh vm"]
    async fn where_encryption_is_required_nothing_is_in_the_clear_in_any_phase() {
        required_encryption::holds_in_every_phase(
            r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"wireguard","Engine":"kernel"}}"#,
        )
        .await;
    }

    #[tokio::test]
    #[ignore = "needs another kernel: run ./ci.sh vm"]
    async fn rules_of_the_host_drop_what_is_documented() {
        outer_rules::are_obeyed_as_documented(&[("`wireguard`, `kernel`", WIREGUARD)]).await;
    }
}
