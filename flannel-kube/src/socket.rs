//! A TCP connection that can be left alone for a while: what comes meanwhile wakes nobody.

use std::{
    io, net,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// One of the handles of a connection, which is closed with the last of them. Reading and writing end its rest.
#[derive(Clone)]
pub(crate) struct Socket(Arc<Mutex<State>>);

enum State {
    Awake(TcpStream),
    Resting(net::TcpStream),
    /// It could not be put to rest or woken.
    Broken,
}

impl Socket {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        Self(Arc::new(Mutex::new(State::Awake(tcp))))
    }

    /// Lets nothing that comes wake anybody, until somebody reads.
    pub(crate) fn rest(&self) {
        let mut state = self.state();
        *state = match std::mem::replace(&mut *state, State::Broken) {
            State::Awake(tcp) => tcp.into_std().map_or(State::Broken, State::Resting),
            other => other,
        };
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poll<T>(
        &self,
        work: impl FnOnce(Pin<&mut TcpStream>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let mut state = self.state();
        *state = match std::mem::replace(&mut *state, State::Broken) {
            State::Resting(tcp) => State::Awake(TcpStream::from_std(tcp)?),
            other => other,
        };
        match &mut *state {
            State::Awake(tcp) => work(Pin::new(tcp)),
            _ => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll(|tcp| tcp.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll(|tcp| tcp.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|tcp| tcp.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|tcp| tcp.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        task::{Wake, Waker},
        time::Duration,
    };

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        time::sleep,
    };

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn what_comes_while_it_rests_wakes_nobody_and_is_read_later() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut other = listener.accept().await.unwrap().0;
        let mut socket = Socket::new(tcp);
        for rests in [false, true] {
            let woken = Arc::new(Woken::default());
            let waker = Waker::from(Arc::clone(&woken));
            let (mut space, mut cx) = ([0; 4], Context::from_waker(&waker));
            let mut buffer = ReadBuf::new(&mut space);
            assert!(Pin::new(&mut socket).poll_read(&mut cx, &mut buffer).is_pending());
            if rests {
                socket.rest();
            }
            other.write_all(b"news").await.unwrap();
            sleep(Duration::from_millis(50)).await;
            assert_eq!(woken.0.load(Ordering::SeqCst), !rests);
            let mut read = [0; 4];
            socket.read_exact(&mut read).await.unwrap();
            assert_eq!(&read, b"news");
        }
        other.write_all(b"more").await.unwrap();
        socket.rest();
        socket.write_all(b"this").await.unwrap();
        other.read_exact(&mut [0; 4]).await.unwrap();
        socket.read_exact(&mut [0; 4]).await.unwrap();
        drop(other);
        socket.rest();
        assert_eq!(socket.read(&mut [0; 4]).await.unwrap(), 0, "the end is seen");
    }
}
