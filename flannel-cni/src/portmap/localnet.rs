use std::net::IpAddr;

use flannel_netlink::{Message, link_by_index, state::Route};

use crate::{
    kernel::{self, sysctl},
    plugin::Call,
    protocol::{Code, Error},
};

/// Lets packets from 127.0.0.1 leave by the interface that leads to the container.
pub(super) async fn allow(call: &Call, address: IpAddr) -> Result<(), Error> {
    if !address.is_ipv4() {
        return Ok(());
    }
    let mut connection = kernel::connect(&call.host)?;
    let interface = |message: &Message<'_>| {
        let (_, mut attributes) = message.split(ROUTE_HEADER)?;
        attributes.find(|attribute| attribute.kind == RTA_OIF)?.u32()
    };
    // As upstream: where there is no way to the container, there is nothing to allow.
    let Ok(index) = connection.get(&Route::lookup(address), interface).await else {
        return Ok(());
    };
    let Ok(Some(link)) = link_by_index(&mut connection, index).await else { return Ok(()) };
    let setting = format!("ipv4/conf/{}/route_localnet", link.name);
    let set = call.host.run(|| sysctl::ensure(&setting, "1"));
    let set = set.map_err(|error| Error::new(Code::Io, crate::sandbox::chain(&error)))?;
    set.map_err(|error| {
        Error::new(Code::Io, format!("unable to enable route_localnet: net/{setting}: {error}"))
    })
}

// linux/rtnetlink.h
const RTA_OIF: u16 = 4;
/// The size of `struct rtmsg`.
const ROUTE_HEADER: usize = 12;
