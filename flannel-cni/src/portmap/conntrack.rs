//! Tracked UDP flows to the node's ports: they would keep going where they went before the rules changed.

use flannel_netlink::{
    Attribute, Connection, KernelError, Message, Namespace, Request, netfilter_header,
    push_attribute,
};

use super::config::UDP;
use crate::sandbox::chain;

/// Has the kernel forget flows to these UDP ports. It is a help for flows that exist; what fails is only said.
pub(super) async fn forget(host: &Namespace, ports: &[u16]) {
    if ports.is_empty() {
        return;
    }
    let mut connection = match Connection::open_netfilter(host) {
        Ok(connection) => connection,
        Err(error) => return eprintln!("{FAILED}: {}", chain(&error)),
    };
    for family in [AF_INET, AF_INET6] {
        if let Err(error) = forget_family(&mut connection, family, ports).await {
            eprintln!("{FAILED}: {error}");
        }
    }
}

async fn forget_family(
    connection: &mut Connection,
    family: u8,
    ports: &[u16],
) -> Result<(), KernelError> {
    let list = Request::new(kind(IPCTNL_MSG_CT_GET), 0, &netfilter_header(family, 0));
    let flows = connection.dump(&list, |message| flow_to(message, ports)).await;
    let deletions: Vec<Request> = flows?
        .into_iter()
        .map(|flow| {
            let body = [&netfilter_header(family, 0)[..], &flow].concat();
            Request::new(kind(IPCTNL_MSG_CT_DELETE), 0, &body)
        })
        .collect();
    let results = connection.apply(&deletions).await;
    // A flow that ended by itself is fine.
    let failed = |result: Result<(), KernelError>| result.err().filter(|error| !error.not_found());
    results.into_iter().find_map(failed).map_or(Ok(()), Err)
}

/// What identifies a flow, as attributes, if it is UDP and goes to one of these ports.
fn flow_to(message: &Message<'_>, ports: &[u16]) -> Option<Vec<u8>> {
    let (_, attributes) = message.split(HEADER)?;
    let attributes: Vec<Attribute<'_>> = attributes.collect();
    let find = |kind| attributes.iter().find(|attribute| attribute.kind == kind);
    let original = find(CTA_TUPLE_ORIG)?;
    let protocol = original.nested().find(|it| it.kind == CTA_TUPLE_PROTO)?;
    let inner = |kind| protocol.nested().find(|it| it.kind == kind);
    let port = inner(CTA_PROTO_DST_PORT)?.u16_be()?;
    if inner(CTA_PROTO_NUM)?.u8()? != UDP || !ports.contains(&port) {
        return None;
    }
    let mut flow = Vec::new();
    push_attribute(&mut flow, CTA_TUPLE_ORIG | NLA_F_NESTED, original.value);
    for kind in [CTA_ID, CTA_ZONE] {
        if let Some(attribute) = find(kind) {
            push_attribute(&mut flow, kind, attribute.value);
        }
    }
    Some(flow)
}

const fn kind(operation: u16) -> u16 {
    NFNL_SUBSYS_CTNETLINK << 8 | operation
}

// linux/netfilter/nfnetlink.h, linux/netfilter/nfnetlink_conntrack.h
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const NLA_F_NESTED: u16 = 0x8000;
const FAILED: &str = "failed to delete stale UDP conntrack entries";
/// The size of `struct nfgenmsg`.
const HEADER: usize = 4;
