//! The packets that rules are asked about.

use ipnetwork::IpNetwork;

use super::ternary::Ternary;
use crate::{nftables::Hook, rules::Family};

/// Packets that a host forwards, receives or sends: the first of a flow, from one block to another.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct PacketPath {
    /// Where they come from.
    pub source: IpNetwork,
    /// Where they go, of the same family.
    pub destination: IpNetwork,
    /// What the host does with them.
    pub direction: Direction,
    /// The device that they come in on; `None` if that is not known.
    pub input: Option<String>,
    /// The device that they leave on; `None` if that is not known.
    pub output: Option<String>,
    /// What they carry; `None` for anything.
    pub flow: Option<Flow>,
}

/// What a host does with packets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// They pass through.
    Forwarded,
    /// They are for the host itself.
    Received,
    /// They are the host's own.
    Sent,
}

/// What packets carry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Flow {
    /// `IPPROTO_*`, such as 6 for TCP and 17 for UDP.
    pub protocol: u8,
    /// The sender's port.
    pub source_port: u16,
    /// The receiver's port.
    pub destination_port: u16,
}

impl PacketPath {
    /// Packets from `source` to `destination`, addresses or blocks, of which nothing else is known.
    pub fn new(
        direction: Direction,
        source: impl Into<IpNetwork>,
        destination: impl Into<IpNetwork>,
    ) -> Self {
        let (source, destination) = (source.into(), destination.into());
        Self { source, destination, direction, input: None, output: None, flow: None }
    }

    /// The same with the devices that they come in and leave on, where that is known.
    #[must_use]
    pub fn through(mut self, input: Option<String>, output: Option<String>) -> Self {
        (self.input, self.output) = (input, output);
        self
    }

    /// The same with what they carry.
    #[must_use]
    pub fn carrying(mut self, flow: Flow) -> Self {
        self.flow = Some(flow);
        self
    }

    /// The packets' family.
    pub(crate) fn family(&self) -> Family {
        if self.source.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
    }

    /// The hooks that the packets pass, in their order.
    pub(crate) const fn hooks(&self) -> &'static [u32] {
        match self.direction {
            Direction::Forwarded => &[Hook::PREROUTING, Hook::FORWARD, Hook::POSTROUTING],
            Direction::Received => &[Hook::PREROUTING, Hook::INPUT],
            Direction::Sent => &[Hook::OUTPUT, Hook::POSTROUTING],
        }
    }

    /// The device on this side at `hook`: before it is routed, no packet has one that it leaves on.
    pub(crate) fn device(&self, leaves: bool, hook: Option<u32>) -> Device<'_> {
        let (device, there) = match leaves {
            true => (
                &self.output,
                self.direction != Direction::Received && hook != Some(Hook::PREROUTING),
            ),
            false => {
                (&self.input, self.direction != Direction::Sent && hook != Some(Hook::POSTROUTING))
            }
        };
        match device {
            _ if !there => Device::None,
            Some(name) => Device::Named(name),
            None => Device::Unknown,
        }
    }

    /// Whether the device on this side has the name, or one that begins with it.
    pub(crate) fn is_on(
        &self,
        leaves: bool,
        hook: Option<u32>,
        name: &str,
        is_prefix: bool,
    ) -> Ternary {
        match self.device(leaves, hook) {
            Device::None => Ternary::from(is_prefix && name.is_empty()),
            Device::Named(device) if is_prefix => Ternary::from(device.starts_with(name)),
            Device::Named(device) => Ternary::from(device == name),
            Device::Unknown => Ternary::Unknown,
        }
    }
}

/// A packet's device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Device<'a> {
    Named(&'a str),
    None,
    Unknown,
}
