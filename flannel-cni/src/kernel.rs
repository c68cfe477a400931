//! What plugins ask the kernel for, on the sockets of `flannel-netlink`: messages that are sent together, and settings under
//! `/proc/sys/net`.

mod link_requests;
mod pod_requests;
pub(crate) mod sysctl;
mod traffic_requests;

use std::hash::{BuildHasher, RandomState};

use flannel_netlink::{Connection, KernelError, Namespace, Request, state::MacAddress};

pub(crate) use self::{
    link_requests::{
        BridgeSpec, Port, VethSpec, VlanRange, bridge, join_vlans, leave_vlans, pin_mac, set_flags,
        veth,
    },
    pod_requests::{add_address, add_route},
    traffic_requests::{Limit, limit_received, limit_sent},
};
use crate::{
    protocol::{Code, Error},
    sandbox::chain,
};

/// A socket in the node's namespace.
pub(crate) fn connect(host: &Namespace) -> Result<Connection, Error> {
    Connection::open(host).map_err(|error| Error::new(Code::Io, chain(&error)))
}

/// Sends all requests together. The first failure is an error that begins with its text.
pub(crate) async fn apply(
    connection: &mut Connection,
    steps: Vec<(Request, String)>,
) -> Result<(), Error> {
    let (requests, texts): (Vec<_>, Vec<_>) = steps.into_iter().unzip();
    let results = connection.apply(&requests).await;
    for (result, text) in results.into_iter().zip(texts) {
        result.map_err(|error| refused(text, &error))?;
    }
    Ok(())
}

/// An error that says what the kernel did not do.
pub(crate) fn refused(what: impl AsRef<str>, error: &KernelError) -> Error {
    let details = match error.not_permitted() {
        true => "it needs CAP_NET_ADMIN in both namespaces",
        false => "",
    };
    Error::new(Code::Kernel, format!("{}: {error}", what.as_ref())).with_details(details)
}

/// A number that nobody can guess.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// An Ethernet address as the kernel makes them: for one station, and not any manufacturer's.
pub(crate) fn random_mac() -> MacAddress {
    let [_, _, mut octets @ ..] = random().to_ne_bytes();
    octets[0] = octets[0] & 0xfe | 0x02;
    MacAddress::new(octets)
}

// linux/rtnetlink.h
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
