//! Generic netlink, whose families have names, and numbers that the kernel assigns.

use crate::{Connection, KernelError, Message, Request, wire::push_text};

/// The number that the kernel gives to the family of this name.
///
/// # Errors
///
/// What the kernel said; [`KernelError::not_found`] if it has no such family.
pub(crate) async fn family(connection: &mut Connection, name: &str) -> Result<u16, KernelError> {
    let mut body = header(CTRL_CMD_GETFAMILY, 1);
    push_text(&mut body, CTRL_ATTR_FAMILY_NAME, name);
    connection.get(&Request::new(GENL_ID_CTRL, 0, &body), family_id).await
}

/// A `struct genlmsghdr`.
pub(crate) fn header(command: u8, version: u8) -> Vec<u8> {
    vec![command, version, 0, 0]
}

/// Reads the answer of the controller.
fn family_id(message: &Message<'_>) -> Option<u16> {
    let (_, mut attributes) = message.split(HEADER)?;
    attributes.find(|attribute| attribute.kind == CTRL_ATTR_FAMILY_ID)?.u16()
}

/// The size of `struct genlmsghdr`.
pub(crate) const HEADER: usize = 4;

// linux/genetlink.h
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_answer_is_read_without_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let request = Request::new(GENL_ID_CTRL, 0, &body);
            let _ = family_id(&request.message().expect("it was just built"));
        }
    }
}
