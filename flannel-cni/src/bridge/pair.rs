//! Pairs of interfaces, of which one end is a port of the bridge.

use flannel_netlink::{
    Connection, Namespace, delete_link, link_by_name,
    state::{Link, MacAddress},
};

use crate::{
    kernel::{self, Port, VethSpec, refused},
    protocol::{Code, Error},
};

/// A pair, but for the name of its port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair<'a> {
    /// The other end.
    pub(super) peer: &'a str,
    pub(super) peer_namespace: &'a Namespace,
    pub(super) peer_mac: Option<MacAddress>,
    /// 0 leaves it to the kernel.
    pub(super) mtu: u32,
    pub(super) port: Port,
}

/// Makes the pair, and returns the name of the port.
pub(super) async fn make(
    host: &mut Connection,
    master: &Link,
    pair: &Pair<'_>,
) -> Result<String, Error> {
    for _ in 0..NAME_ATTEMPTS {
        let name = format!("veth{:08x}", kernel::random() as u32);
        let spec = VethSpec {
            name: &name,
            bridge: master.index,
            peer: pair.peer,
            peer_namespace: pair.peer_namespace,
            peer_mac: pair.peer_mac,
            mtu: pair.mtu,
        };
        let results = host.apply(&[kernel::veth(&spec), pair.port.request(&name)]).await;
        match &results[..] {
            [Ok(()), Ok(())] => return Ok(name),
            [Ok(()), Err(error)] => {
                if let Ok(Some(link)) = link_by_name(host, &name).await {
                    let _ = delete_link(host, link.index).await;
                }
                let what = format!("cannot set up port {name} of {}", master.name);
                return Err(refused(what, error));
            }
            [Err(error), ..] if !error.exists() => {
                return Err(refused("failed to make veth pair", error));
            }
            // Of the two names, is it the one that was drawn?
            [Err(_), ..] if matches!(link_by_name(host, &name).await, Ok(Some(_))) => {}
            _ => {
                let message = format!(
                    "container veth name ({:?}) peer provided ({name:?}) already exists",
                    pair.peer
                );
                return Err(Error::new(Code::Kernel, message)
                    .with_details("the container has such an interface"));
            }
        }
    }
    Err(Error::new(Code::Kernel, "failed to find a unique veth name"))
}

/// As containernetworking's plugin.
const NAME_ATTEMPTS: usize = 10;
