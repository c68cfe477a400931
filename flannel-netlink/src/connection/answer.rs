use nix::libc;

use crate::{
    KernelError, Message,
    wire::{MESSAGE_HEADER, align, attributes, u32_at},
};

/// What a message from the kernel means for the request it answers.
pub(super) enum Answer {
    Data,
    Nothing,
    Outcome(Result<(), KernelError>),
}

impl Answer {
    pub(super) fn of(message: &Message<'_>) -> Self {
        // A dump that ends says its error, if any, in the same place as an error message.
        match i32::from(message.kind) {
            libc::NLMSG_NOOP | libc::NLMSG_OVERRUN => Self::Nothing,
            libc::NLMSG_ERROR => Self::Outcome(outcome(message, refused_length(message))),
            libc::NLMSG_DONE => Self::Outcome(outcome(message, 0)),
            _ => Self::Data,
        }
    }
}

fn outcome(message: &Message<'_>, skip: usize) -> Result<(), KernelError> {
    let code = u32_at(message.body, 0).map_or(0, |code| code as i32);
    if code == 0 {
        return Ok(());
    }
    let explained = message.flags & NLM_F_ACK_TLVS != 0;
    let text = message
        .body
        .get(4 + skip..)
        .filter(|_| explained)
        .and_then(|rest| attributes(rest).find(|attribute| attribute.kind == NLMSGERR_ATTR_MSG))
        .and_then(|attribute| attribute.text().map(str::to_owned));
    Err(KernelError { errno: code.saturating_abs(), message: text })
}

/// How much of the refused request the kernel sent back in front of its explanation.
fn refused_length(message: &Message<'_>) -> usize {
    if message.flags & NLM_F_CAPPED != 0 {
        return MESSAGE_HEADER;
    }
    u32_at(message.body, 4).map_or(MESSAGE_HEADER, |length| align(length as usize))
}

// linux/netlink.h
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Request;

    proptest::proptest! {
        #[test]
        fn any_answer_is_read_without_panic(
            kind in proptest::sample::select(&[1_u16, 2, 3, 4, 24]),
            flags: u16,
            body in proptest::collection::vec(proptest::num::u8::ANY, 0..120),
        ) {
            let request = Request::new(kind, flags, &body);
            let _ = Answer::of(&request.message().expect("it was just built"));
        }
    }
}
