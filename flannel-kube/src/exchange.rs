//! HTTP over one connection, driven by whoever waits for the answer: there is no task behind it.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
};

use http_body_util::Full;
use hyper::{
    Request, Response,
    body::{Body, Bytes, Frame, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;

use crate::{dial::Io, socket::Socket};

/// A connection over which one request at a time goes. Dropping it closes it.
pub(crate) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    /// What reads and writes; `None` once it has ended.
    driver: Option<Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>>,
    gate: Arc<Gate>,
    socket: Socket,
}

/// Passes on what wakes the driver, except while a body is looked at: whoever takes something from it wakes the driver, which is
/// driven next anyway, and everything around it would be polled twice.
#[derive(Default)]
struct Gate(Mutex<GateState>);

#[derive(Default)]
struct GateState {
    task: Option<Waker>,
    is_shut: bool,
    /// Whether something was not passed on.
    missed: bool,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, GateState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Gate {
    fn wake(self: Arc<Self>) {
        let mut state = self.state();
        if state.is_shut {
            state.missed = true;
        } else if let Some(task) = state.task.take() {
            task.wake();
        }
    }
}

impl Connection {
    pub(crate) async fn new((io, socket): (Box<dyn Io>, Socket)) -> Result<Self, hyper::Error> {
        let mut builder = http1::Builder::new();
        // Enough for what the kernel gives at once.
        builder.max_buf_size(BUFFER);
        let (sender, driver) = builder.handshake(TokioIo::new(io)).await?;
        Ok(Self { sender, driver: Some(Box::pin(driver)), gate: Arc::default(), socket })
    }

    pub(crate) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, hyper::Error> {
        self.driven(|sender, cx| sender.poll_ready(cx)).await?;
        let mut answer = pin!(self.sender.send_request(request));
        let driver = &mut self.driver;
        poll_fn(|cx| {
            // What is there is taken even if the connection has ended meanwhile.
            if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                return Poll::Ready(answer);
            }
            drive(driver, cx);
            answer.as_mut().poll(cx)
        })
        .await
    }

    /// The next bytes of an answer.
    pub(crate) async fn chunk(
        &mut self,
        body: &mut Incoming,
    ) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            let frame = poll_fn(|cx| {
                if let Poll::Ready(frame) = look(body, &self.gate) {
                    return Poll::Ready(frame);
                }
                *self.gate.state() =
                    GateState { task: Some(cx.waker().clone()), ..GateState::default() };
                let waker = Waker::from(Arc::clone(&self.gate));
                drive(&mut self.driver, &mut Context::from_waker(&waker));
                let frame = look(body, &self.gate);
                let mut gate = self.gate.state();
                if frame.is_ready() {
                    // Whoever has not asked for more yet is not woken for it.
                    gate.task = None;
                } else if gate.missed {
                    // It was another thread that had something for the driver.
                    cx.waker().wake_by_ref();
                }
                drop(gate);
                frame
            });
            match frame.await? {
                Ok(frame) => match frame.into_data() {
                    Ok(bytes) => return Some(Ok(bytes)),
                    // Trailers.
                    Err(_) => continue,
                },
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Until something is asked of it again, nothing that comes wakes anybody.
    pub(crate) fn rest(&self) {
        self.socket.rest();
    }

    /// Whether another request may go over it.
    pub(crate) fn is_open(&self) -> bool {
        self.driver.is_some() && !self.sender.is_closed()
    }

    async fn driven<T>(
        &mut self,
        mut poll: impl FnMut(&mut http1::SendRequest<Full<Bytes>>, &mut Context<'_>) -> Poll<T>,
    ) -> T {
        poll_fn(|cx| {
            drive(&mut self.driver, cx);
            poll(&mut self.sender, cx)
        })
        .await
    }
}

/// What a body has, without being woken for it: it comes by the driver alone.
fn look(body: &mut Incoming, gate: &Gate) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
    gate.state().is_shut = true;
    let frame = Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()));
    gate.state().is_shut = false;
    frame
}

/// Reads and writes what can be.
fn drive(
    driver: &mut Option<Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>>,
    cx: &mut Context<'_>,
) {
    if let Some(running) = driver
        // Its error is the answer's too.
        && running.as_mut().poll(cx).is_ready()
    {
        *driver = None;
    }
}

const BUFFER: usize = 64 * 1024;
