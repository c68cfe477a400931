//! Features of devices, such as leaving checksums to the hardware: what `ethtool -k` shows and `ethtool -K` sets.

use crate::{
    Attribute, Connection, KernelError, Message, Namespace, OpenError, Request,
    generic::{self, HEADER, header},
    wire::{NLA_F_NESTED, push_attribute},
};

/// Reads and sets features of the devices of one namespace, by their names in `ethtool`.
///
/// The kernel tells of a changed feature with a notification of the device itself, in which the features are not named.
#[derive(Debug)]
pub struct Features {
    connection: Connection,
    /// The number that the kernel gives to `ethtool` in generic netlink; `None` before it was asked.
    family: Option<u16>,
}

impl Features {
    /// Opens a socket in `namespace`. Needs a tokio runtime with I/O.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when the namespace cannot be entered or the socket cannot be made.
    pub fn open(namespace: &Namespace) -> Result<Self, OpenError> {
        Ok(Self { connection: Connection::open_generic(namespace)?, family: None })
    }

    /// Whether the device of this index has the feature switched on; `None` if it has no such feature.
    ///
    /// # Errors
    ///
    /// What the kernel said; [`KernelError::not_found`] where it is older than Linux 5.8.
    ///
    /// # Cancel safety
    ///
    /// Reads only.
    pub async fn get(&mut self, link: u32, feature: &str) -> Result<Option<bool>, KernelError> {
        let mut body = header(ETHTOOL_MSG_FEATURES_GET, VERSION);
        push_device(&mut body, link, 0);
        let request = Request::new(self.family().await?, 0, &body);
        // A device that has the feature off lists it among those that can be had.
        let read = |message: &Message<'_>| {
            let (_, attributes) = message.split(HEADER)?;
            let (mut known, mut active) = (false, false);
            for attribute in attributes {
                match attribute.kind {
                    ETHTOOL_A_FEATURES_HW => known |= is_set(&attribute, feature),
                    ETHTOOL_A_FEATURES_ACTIVE => active |= is_set(&attribute, feature),
                    _ => {}
                }
            }
            Some((known || active).then_some(active))
        };
        self.connection.get(&request, read).await
    }

    /// Switches the feature of the device of this index on or off.
    ///
    /// # Errors
    ///
    /// What the kernel said. It accepts silently what cannot be changed: [`get`](Self::get) tells.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves it done or not.
    pub async fn set(&mut self, link: u32, feature: &str, on: bool) -> Result<(), KernelError> {
        let name = [feature.as_bytes(), b"\0"].concat();
        let (mut bit, mut bits, mut set) = (Vec::new(), Vec::new(), Vec::new());
        push_attribute(&mut bit, ETHTOOL_A_BITSET_BIT_NAME, &name);
        if on {
            push_attribute(&mut bit, ETHTOOL_A_BITSET_BIT_VALUE, &[]);
        }
        push_attribute(&mut bits, ETHTOOL_A_BITSET_BITS_BIT | NLA_F_NESTED, &bit);
        push_attribute(&mut set, ETHTOOL_A_BITSET_BITS | NLA_F_NESTED, &bits);
        let mut body = header(ETHTOOL_MSG_FEATURES_SET, VERSION);
        push_device(&mut body, link, ETHTOOL_FLAG_OMIT_REPLY);
        push_attribute(&mut body, ETHTOOL_A_FEATURES_WANTED | NLA_F_NESTED, &set);
        let request = Request::new(self.family().await?, 0, &body);
        self.connection.apply_one(request).await
    }

    async fn family(&mut self) -> Result<u16, KernelError> {
        if let Some(family) = self.family {
            return Ok(family);
        }
        let family = generic::family(&mut self.connection, "ethtool").await?;
        self.family = Some(family);
        Ok(family)
    }

    /// A device without it gets packets whose checksums the kernel has computed.
    pub const TX_CHECKSUM: &str = "tx-checksum-ip-generic";
}

/// Whether a bit set, as a list of bits by name, has this one.
fn is_set(set: &Attribute<'_>, name: &str) -> bool {
    let no_mask = set.nested().any(|it| it.kind == ETHTOOL_A_BITSET_NOMASK);
    let bits = set.nested().filter(|it| it.kind == ETHTOOL_A_BITSET_BITS);
    bits.flat_map(|bits| bits.nested()).any(|bit| {
        let named = bit.nested().find(|it| it.kind == ETHTOOL_A_BITSET_BIT_NAME);
        // Without a mask, all that are listed are set.
        let on = no_mask || bit.nested().any(|it| it.kind == ETHTOOL_A_BITSET_BIT_VALUE);
        on && named.and_then(|it| it.text()) == Some(name)
    })
}

fn push_device(body: &mut Vec<u8>, link: u32, flags: u32) {
    let mut device = Vec::new();
    push_attribute(&mut device, ETHTOOL_A_HEADER_DEV_INDEX, &link.to_ne_bytes());
    push_attribute(&mut device, ETHTOOL_A_HEADER_FLAGS, &flags.to_ne_bytes());
    push_attribute(body, ETHTOOL_A_FEATURES_HEADER | NLA_F_NESTED, &device);
}

// linux/ethtool_netlink.h
const VERSION: u8 = 1;
const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_MSG_FEATURES_SET: u8 = 12;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;
const ETHTOOL_A_HEADER_FLAGS: u16 = 3;
const ETHTOOL_FLAG_OMIT_REPLY: u32 = 1 << 1;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_FEATURES_HW: u16 = 2;
const ETHTOOL_A_FEATURES_WANTED: u16 = 3;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_BITSET_NOMASK: u16 = 1;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
const ETHTOOL_A_BITSET_BIT_VALUE: u16 = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_answer_is_read_without_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            for attribute in crate::attributes(&body) {
                let _ = is_set(&attribute, Features::TX_CHECKSUM);
            }
        }
    }
}
