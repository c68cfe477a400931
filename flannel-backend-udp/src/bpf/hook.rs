//! The place of a program on a device: a filter of ours, attached, checked and removed.

use std::os::fd::RawFd;

use flannel_backend::filter::{self, Direction, Filter, Label};
use flannel_netlink::Connection;
use ipnetwork::IpNetwork;

use super::{
    error::BpfError,
    programs::{self, Changes},
};

/// Whose a filter is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Owner {
    /// The network's number.
    network: u32,
    /// The tunnel device.
    device: String,
    /// The UDP port of the network, the handle of its filters.
    handle: u32,
}

/// A filter of ours for one direction of one device.
#[derive(Debug)]
pub(super) struct Hook {
    pub(super) link: u32,
    direction: Direction,
    owner: Owner,
    made_qdisc: bool,
    /// This process has attached it.
    is_attached: bool,
}

impl Owner {
    /// The network that listens on `port`, with this tunnel device.
    pub(crate) fn new(networks: &[IpNetwork], port: u16, device: &str) -> Self {
        let network = flannel_backend::network_number(networks);
        Self { network, device: device.to_owned(), handle: port.into() }
    }
}

impl Hook {
    pub(super) fn new(link: u32, direction: Direction, owner: &Owner) -> Self {
        Self { link, direction, owner: owner.clone(), made_qdisc: false, is_attached: false }
    }

    /// Makes the filter run this program, given as descriptor and number, if it does not already.
    ///
    /// # Errors
    ///
    /// [`BpfError::FilterTaken`] if another program's filter is there; [`BpfError::Filter`] if the kernel refuses.
    pub(super) async fn ensure(
        &mut self,
        connection: &mut Connection,
        (descriptor, number): (RawFd, u32),
        changes: &mut Changes,
    ) -> Result<(), BpfError> {
        let link = self.link;
        match self.find(connection).await? {
            Some(there) => {
                let Some(label) = label(&there) else {
                    let priority = filter::PRIORITY;
                    return Err(BpfError::FilterTaken {
                        link,
                        priority,
                        handle: self.owner.handle,
                    });
                };
                self.made_qdisc = label.made_qdisc;
                if there.program == Some(number) && label == self.label() {
                    return Ok(());
                }
                // An earlier process left it for this one.
                changes.replaced += u64::from(self.is_attached);
            }
            None => {
                match connection.apply_one(filter::create_clsact(link)).await {
                    Ok(()) => self.made_qdisc = true,
                    // Another one's, perhaps.
                    Err(error) if error.exists() => self.made_qdisc = false,
                    Err(error) => return Err(BpfError::filter("create clsact", link, error)),
                }
                changes.added += 1;
            }
        }
        let label = self.label().to_string();
        let request = filter::replace(link, self.direction, self.owner.handle, descriptor, &label);
        let attached = connection.apply_one(request).await;
        attached.map_err(|source| BpfError::filter("attach the BPF program", link, source))?;
        self.is_attached = true;
        Ok(())
    }

    /// Removes the filter if it is ours, of any version, and returns whether it was there.
    pub(super) async fn remove(&self, connection: &mut Connection) -> Result<bool, BpfError> {
        let Some(label) = self.find(connection).await?.as_ref().and_then(label) else {
            return Ok(false);
        };
        let (link, handle) = (self.link, self.owner.handle);
        filter::remove_filter(connection, link, self.direction, handle, label.made_qdisc)
            .await
            .map_err(|source| BpfError::filter("remove the BPF filter", link, source))?;
        Ok(true)
    }

    async fn find(&self, connection: &mut Connection) -> Result<Option<Filter>, BpfError> {
        let filters = filter::list_filters(connection, self.link, self.direction)
            .await
            .map_err(|source| BpfError::filter("list filters", self.link, source))?;
        let is_here =
            |it: &Filter| it.priority == filter::PRIORITY && it.handle == self.owner.handle;
        Ok(filters.into_iter().find(is_here))
    }

    fn label(&self) -> Label {
        Label {
            version: programs::version(),
            network: self.owner.network,
            device: self.owner.device.clone(),
            made_qdisc: self.made_qdisc,
        }
    }
}

/// `None` if the filter is not ours.
fn label(filter: &Filter) -> Option<Label> {
    filter.label.as_ref().and_then(|label| label.parse().ok())
}
