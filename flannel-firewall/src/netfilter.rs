//! Requests to the kernel's nf_tables, without waiting: it answers before the request's system call returns.

use std::io;

use flannel_netlink::{KernelError, Namespace, OpenError, attributes};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt::RcvBufForce},
};

use crate::wire::{FAMILY_HEADER, MESSAGE_HEADER, Message, Writer, messages};

/// A socket for requests in one namespace.
#[derive(Debug)]
pub(crate) struct Netfilter {
    socket: Socket,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

/// A message of a batch: what is done, to which family, and its attributes.
pub(crate) struct Step<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) family: u8,
    pub(crate) body: Box<dyn Fn(&mut Writer) + 'a>,
}

impl Netfilter {
    /// Opens the socket inside of `namespace`.
    pub(crate) fn open(namespace: &Namespace) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Socket { source };
        let socket = namespace.run(|| -> io::Result<_> {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            let port = socket.bind_auto()?.port_number();
            socket.set_non_blocking(true)?;
            // Not all may have so much, and it is enough for most.
            let _ = setsockopt(&socket, RcvBufForce, &ANSWER_BYTES);
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            Ok((socket, port))
        });
        let (socket, port) =
            socket.map_err(|source| OpenError::Namespace { source })?.map_err(failed)?;
        Ok(Self { socket, port, sequence: 0, buffer: Vec::with_capacity(DATAGRAM_BYTES) })
    }

    /// This socket's address on netlink, which no other socket of the namespace has.
    pub(crate) const fn port(&self) -> u32 {
        self.port
    }

    /// Has the kernel do all of `steps` or none.
    pub(crate) fn transact(&mut self, steps: &[Step<'_>]) -> Result<(), KernelError> {
        let mut datagram = Writer::default();
        let first = self.next_sequence();
        let batch = (0, NFNL_SUBSYS_NFTABLES);
        datagram.message(NFNL_MSG_BATCH_BEGIN, REQUEST, first, batch, |_| {});
        for (at, step) in steps.iter().enumerate() {
            let sequence = self.next_sequence();
            let ack = if at + 1 == steps.len() { libc::NLM_F_ACK as u16 } else { 0 };
            let flags = REQUEST | step.flags | ack;
            datagram.message(kind(step.kind), flags, sequence, (step.family, 0), &*step.body);
        }
        let last = self.sequence;
        let end = self.next_sequence();
        datagram.message(NFNL_MSG_BATCH_END, REQUEST, end, batch, |_| {});
        self.send(datagram.bytes())?;
        let mut outcome = None;
        while self.receive()? {
            for message in messages(&self.buffer) {
                // Sequence numbers wrap, and answers of earlier requests may still be there.
                if message.sequence.wrapping_sub(first) > last.wrapping_sub(first) {
                    continue;
                }
                match refusal(&message) {
                    Some(Err(error)) => {
                        outcome = outcome.and_then(Result::err).or(Some(error)).map(Err)
                    }
                    Some(Ok(())) => outcome = outcome.or(Some(Ok(()))),
                    None => {}
                }
            }
        }
        outcome.unwrap_or_else(|| Err(unanswered()))
    }

    /// Asks for one object, or lists all of a kind, and gives each answer to `each`.
    pub(crate) fn ask(
        &mut self,
        step: &Step<'_>,
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<(), KernelError> {
        let sequence = self.next_sequence();
        let mut datagram = Writer::default();
        let ack = if step.flags & DUMP == DUMP { 0 } else { libc::NLM_F_ACK as u16 };
        let flags = REQUEST | step.flags | ack;
        datagram.message(kind(step.kind), flags, sequence, (step.family, 0), &*step.body);
        self.send(datagram.bytes())?;
        let mut disturbed = false;
        loop {
            if !self.receive()? {
                return Err(unanswered());
            }
            for message in messages(&self.buffer).filter(|m| m.sequence == sequence) {
                disturbed |= message.flags & libc::NLM_F_DUMP_INTR as u16 != 0;
                if i32::from(message.kind) == libc::NLMSG_DONE {
                    return if disturbed { Err(KernelError::new(libc::EINTR)) } else { Ok(()) };
                }
                match refusal(&message) {
                    Some(outcome) => return outcome,
                    None => each(&message),
                }
            }
        }
    }

    fn send(&self, datagram: &[u8]) -> Result<(), KernelError> {
        loop {
            match self.socket.send_to(datagram, &SocketAddr::new(0, 0), 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(drop).map_err(|error| failed(&error)),
            }
        }
    }

    /// Reads the next datagram that is there; false if there is none.
    fn receive(&mut self) -> Result<bool, KernelError> {
        read(&self.socket, &mut self.buffer).map_err(|error| failed(&error))
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }
}

/// Reads one datagram of the kernel into `buffer`; false when there is none. Those of other processes are dropped.
pub(crate) fn read(socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<bool> {
    if buffer.capacity() < DATAGRAM_BYTES {
        buffer.reserve(DATAGRAM_BYTES);
    }
    loop {
        buffer.clear();
        match socket.recv_from(buffer, libc::MSG_TRUNC) {
            Ok((length, _)) if length > buffer.len() => {
                return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
            }
            Ok((_, sender)) if sender.port_number() == 0 => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

/// What an acknowledgement says; `None` if the message is none.
fn refusal(message: &Message<'_>) -> Option<Result<(), KernelError>> {
    if i32::from(message.kind) != libc::NLMSG_ERROR {
        return None;
    }
    let code = message.body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    if code == 0 {
        return Some(Ok(()));
    }
    let mut error = KernelError::new(code.saturating_abs());
    // The kernel sends the refused message's header back, and then its words.
    if message.flags & NLM_F_ACK_TLVS != 0 {
        let words = message.body.get(4 + MESSAGE_HEADER..).unwrap_or_default();
        let text = attributes(words).find(|attribute| attribute.kind == NLMSGERR_ATTR_MSG);
        error.message = text.and_then(|text| text.text().map(str::to_owned));
    }
    Some(Err(error))
}

fn failed(error: &io::Error) -> KernelError {
    KernelError::new(error.raw_os_error().unwrap_or(libc::EIO))
}

fn unanswered() -> KernelError {
    let mut error = KernelError::new(libc::ETIMEDOUT);
    error.message = Some("no answer came, the outcome is unknown".into());
    error
}

/// The message type of an operation of nf_tables.
pub(crate) const fn kind(operation: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | operation
}

/// The fixed part of every message.
pub(crate) const HEADER: usize = FAMILY_HEADER;
/// All objects that the request describes.
pub(crate) const DUMP: u16 = libc::NLM_F_DUMP as u16;
const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
/// The largest datagram the kernel sends: a listing fills at most 32 KiB.
const DATAGRAM_BYTES: usize = 64 << 10;
/// Room for the answers of one batch.
const ANSWER_BYTES: usize = 1 << 20;

// linux/netlink.h, linux/netfilter/nfnetlink.h
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
pub(crate) const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
