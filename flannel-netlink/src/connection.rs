mod answer;
mod request;
mod wiped;

use std::{io, time::Duration};

use nix::libc;
use tokio::time::{Instant, timeout_at};

pub use self::request::Request;
use self::{
    answer::Answer,
    request::{DATAGRAM_BYTES, pack},
};
use crate::{
    KernelError, Message, Namespace, NamespaceError,
    socket::{KernelSocket, Protocol},
    wire::{messages, netfilter_header, push_u32_be},
};

/// One request socket to the kernel's routing netlink in one namespace.
///
/// Requests go out in large datagrams with the acknowledgement asked on the last message only: the
/// kernel works on all messages of a datagram before the send returns, always answers those that
/// fail, and says which by sequence number.
#[derive(Debug)]
pub struct Connection {
    socket: KernelSocket,
    sequence: u32,
    datagram: Vec<u8>,
}

impl Connection {
    /// Opens a socket in `namespace`. Needs a tokio runtime with I/O.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when the namespace cannot be entered or the socket cannot be made.
    pub fn open(namespace: &Namespace) -> Result<Self, OpenError> {
        let socket = KernelSocket::open(namespace, Protocol::Route, ANSWER_BYTES)?;
        // The kernel then applies the filter of a listing instead of ignoring it. Since Linux 4.20.
        socket
            .options()
            .set_netlink_get_strict_chk(true)
            .map_err(|source| OpenError::Socket { source })?;
        Ok(Self::over(socket))
    }

    /// Opens a socket to netfilter's netlink in `namespace`, for [`get`](Self::get), [`dump`](Self::dump) and
    /// [`transact`](Self::transact). Needs a tokio runtime with I/O.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_netfilter(namespace: &Namespace) -> Result<Self, OpenError> {
        Ok(Self::over(KernelSocket::open(namespace, Protocol::Netfilter, ANSWER_BYTES)?))
    }

    /// Opens a socket to generic netlink in `namespace`. Needs a tokio runtime with I/O.
    pub(crate) fn open_generic(namespace: &Namespace) -> Result<Self, OpenError> {
        let socket = KernelSocket::open(namespace, Protocol::Generic, GENERIC_ANSWER_BYTES)?;
        // Keys may be in it: growing would leave them behind in a smaller buffer.
        Ok(Self { datagram: Vec::with_capacity(DATAGRAM_BYTES), ..Self::over(socket) })
    }

    fn over(socket: KernelSocket) -> Self {
        Self { socket, sequence: 0, datagram: Vec::new() }
    }

    /// This socket's address on netlink. A notification of a change made through this connection
    /// carries it.
    pub const fn port(&self) -> u32 {
        self.socket.port()
    }

    /// How many requests fit into one datagram such that the answers, were all to fail, fit into
    /// our receive buffer.
    pub fn batch(&self) -> usize {
        (self.socket.receive_bytes() / ANSWER_TRUESIZE).max(1)
    }

    /// Sends all `requests` and says for each whether the kernel did it. The order is kept; a
    /// failure does not stop those behind it.
    ///
    /// It takes at most 5 s per datagram of up to 32 KiB. A request whose answer did not come is
    /// [`KernelError::outcome_unknown`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves a part of the requests done. The connection stays usable.
    pub async fn apply(&mut self, requests: &[Request]) -> Vec<Result<(), KernelError>> {
        let mut results = Vec::with_capacity(requests.len());
        while results.len() < requests.len() {
            let first_sequence = self.sequence.wrapping_add(1);
            let from = results.len();
            let most = self.batch();
            let count = pack(&requests[from..], most, &mut self.sequence, &mut self.datagram);
            results.resize(from + count, Ok(()));
            if let Err(error) = self.exchange(first_sequence, &mut results[from..]).await {
                tracing::debug!(%error, count, "a batch of requests was not answered");
            }
        }
        results
    }

    /// Sends one request.
    ///
    /// # Errors
    ///
    /// What the kernel said, or [`KernelError::outcome_unknown`].
    ///
    /// # Cancel safety
    ///
    /// As [`apply`](Self::apply).
    pub async fn apply_one(&mut self, request: Request) -> Result<(), KernelError> {
        self.apply(&[request]).await.pop().unwrap_or(Ok(()))
    }

    /// Sends `requests` as one netfilter batch to `subsystem` (`NFNL_SUBSYS_*`): the kernel does all of them or none. With a
    /// `generation` it does none if another is the current one.
    ///
    /// # Errors
    ///
    /// The kernel's first refusal, or [`KernelError::outcome_unknown`].
    ///
    /// # Cancel safety
    ///
    /// The batch is sent in one piece: it is done as a whole or not at all.
    pub async fn transact(
        &mut self,
        subsystem: u16,
        generation: Option<u32>,
        requests: &[Request],
    ) -> Result<(), KernelError> {
        let Some((last, others)) = requests.split_last() else { return Ok(()) };
        let mut body = netfilter_header(0, subsystem).to_vec();
        let end = Request::new(NFNL_MSG_BATCH_END, 0, &body);
        if let Some(generation) = generation {
            push_u32_be(&mut body, NFNL_BATCH_GENID, generation);
        }
        let begin = Request::new(NFNL_MSG_BATCH_BEGIN, 0, &body);
        self.datagram.clear();
        let first = self.sequence.wrapping_add(1);
        for request in [&begin].into_iter().chain(others) {
            let sequence = self.next_sequence();
            request.write(&mut self.datagram, 0, sequence);
        }
        let acknowledged = self.next_sequence();
        last.write(&mut self.datagram, libc::NLM_F_ACK as u16, acknowledged);
        let sequence = self.next_sequence();
        end.write(&mut self.datagram, 0, sequence);
        self.send().await?;
        // All answers are there when the send returns: one for each refused request, then that of the last one.
        let mut outcome = None;
        while let Some(datagram) =
            self.socket.receive_waiting().map_err(|error| KernelError::from_io(&error))?
        {
            for message in messages(datagram) {
                // Sequence numbers wrap, and answers to earlier requests may still be there.
                if message.sequence.wrapping_sub(first) > acknowledged.wrapping_sub(first) {
                    continue;
                }
                if let Answer::Outcome(answer) = Answer::of(&message)
                    && outcome.as_ref().is_none_or(Result::is_ok)
                {
                    outcome = Some(answer);
                }
            }
        }
        outcome.unwrap_or_else(|| {
            Err(KernelError::with_message(
                libc::ETIMEDOUT,
                "no answer came, the outcome is unknown",
            ))
        })
    }

    /// Lists objects: sends `request` as a dump and collects what `parse` makes of each message.
    ///
    /// When the kernel says that the objects changed during the listing, it starts again, up to ten
    /// times.
    ///
    /// # Errors
    ///
    /// What the kernel said; `EAGAIN` when every attempt was disturbed; `ETIMEDOUT` when nothing
    /// came for 5 s.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses the listing only.
    pub async fn dump<T>(
        &mut self,
        request: &Request,
        mut parse: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, KernelError> {
        self.dump_into(request, Vec::new, |found, message| found.extend(parse(message))).await
    }

    /// As [`dump`](Self::dump), with the messages folded into what `begin` makes anew for each
    /// attempt.
    pub(crate) async fn dump_into<T>(
        &mut self,
        request: &Request,
        mut begin: impl FnMut() -> T,
        mut fold: impl FnMut(&mut T, &Message<'_>),
    ) -> Result<T, KernelError> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut found = begin();
            if self.dump_once(request, &mut |message| fold(&mut found, message)).await? {
                return Ok(found);
            }
        }
        Err(KernelError::with_message(
            libc::EAGAIN,
            "the objects kept changing while they were listed",
        ))
    }

    /// Sends one request that is answered by one message, such as a route lookup.
    ///
    /// # Errors
    ///
    /// What the kernel said; `ENODATA` when it answered with something that `parse` does not take.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses the answer only.
    pub async fn get<T>(
        &mut self,
        request: &Request,
        mut parse: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> Result<T, KernelError> {
        let mut found = None;
        pack(std::slice::from_ref(request), 1, &mut self.sequence, &mut self.datagram);
        let sequence = self.sequence;
        self.send().await?;
        let deadline = Instant::now() + ANSWER_DEADLINE;
        loop {
            for message in messages(self.receive(deadline).await?) {
                match Answer::of(&message) {
                    _ if message.sequence != sequence => {}
                    Answer::Data => found = found.or_else(|| parse(&message)),
                    Answer::Outcome(outcome) => {
                        outcome?;
                        return found.ok_or_else(|| {
                            KernelError::with_message(
                                libc::ENODATA,
                                "the answer was not understood",
                            )
                        });
                    }
                    Answer::Nothing => {}
                }
            }
        }
    }

    /// Returns whether all was read without anything being changed meanwhile.
    async fn dump_once(
        &mut self,
        request: &Request,
        each: &mut impl FnMut(&Message<'_>),
    ) -> Result<bool, KernelError> {
        let mut disturbed = false;
        let sequence = self.next_sequence();
        self.datagram.clear();
        request.write(&mut self.datagram, libc::NLM_F_DUMP as u16, sequence);
        self.send().await?;
        loop {
            let deadline = Instant::now() + ANSWER_DEADLINE;
            for message in messages(self.receive(deadline).await?) {
                if message.sequence != sequence {
                    continue;
                }
                disturbed |= message.flags & libc::NLM_F_DUMP_INTR as u16 != 0;
                match Answer::of(&message) {
                    Answer::Data => each(&message),
                    Answer::Outcome(outcome) => {
                        outcome?;
                        return Ok(!disturbed);
                    }
                    Answer::Nothing => {}
                }
            }
        }
    }

    /// Sends the datagram and stores the answers of the requests numbered from `first_sequence`.
    async fn exchange(
        &mut self,
        first_sequence: u32,
        results: &mut [Result<(), KernelError>],
    ) -> Result<(), KernelError> {
        if let Err(error) = self.send().await {
            results.fill(Err(error.clone()));
            return Err(error);
        }
        let deadline = Instant::now() + ANSWER_DEADLINE;
        loop {
            let datagram = match self.receive(deadline).await {
                Ok(datagram) => datagram,
                Err(error) => {
                    for result in results.iter_mut().filter(|result| result.is_ok()) {
                        *result = Err(error.clone());
                    }
                    return Err(error);
                }
            };
            for message in messages(datagram) {
                let index = message.sequence.wrapping_sub(first_sequence) as usize;
                if index >= results.len() {
                    continue;
                }
                if let Answer::Outcome(outcome) = Answer::of(&message) {
                    results[index] = outcome;
                    if index + 1 == results.len() {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn send(&mut self) -> Result<(), KernelError> {
        self.socket.send(&self.datagram).await.map_err(|error| KernelError::from_io(&error))
    }

    async fn receive(&mut self, deadline: Instant) -> Result<&[u8], KernelError> {
        match timeout_at(deadline, self.socket.receive()).await {
            Ok(Ok(datagram)) => Ok(datagram),
            Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                Err(KernelError::with_message(
                    libc::ENOBUFS,
                    "answers were lost, the outcome is unknown",
                ))
            }
            Ok(Err(error)) => Err(KernelError::from_io(&error)),
            Err(_) => Err(KernelError::with_message(
                libc::ETIMEDOUT,
                "no answer came, the outcome is unknown",
            )),
        }
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }
}

/// Why a netlink socket could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The namespace could not be entered.
    #[error("cannot open a netlink socket in another namespace")]
    Namespace {
        /// Why.
        source: NamespaceError,
    },
    /// The socket could not be made or configured.
    #[error("cannot open a netlink socket")]
    Socket {
        /// The kernel's reason.
        source: io::Error,
    },
}

impl OpenError {
    /// The kernel was built without this part of netlink.
    pub fn unsupported(&self) -> bool {
        let Self::Socket { source } = self else { return false };
        KernelError::from_io(source).unsupported()
    }
}

/// What we ask as receive buffer: room for a datagram of failures.
const ANSWER_BYTES: usize = 1 << 20;
/// The same where one answer is waited for at a time: the largest datagram that the kernel sends.
const GENERIC_ANSWER_BYTES: usize = 64 << 10;
/// What one error answer costs of the receive buffer, rounded up: the kernel counts its own
/// bookkeeping in.
const ANSWER_TRUESIZE: usize = 1536;
/// The kernel answers before the send returns; this is only the end of hope.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// How often a listing is tried while somebody keeps changing what it lists.
const DUMP_ATTEMPTS: usize = 10;

// linux/netfilter/nfnetlink.h
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_BATCH_GENID: u16 = 1;
