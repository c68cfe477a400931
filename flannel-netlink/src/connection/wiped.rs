use std::ops::{Deref, DerefMut};

use zeroize::Zeroize;

use super::Connection;

/// A connection that forgets what it sent and received.
pub(crate) struct Wiped<'a>(&'a mut Connection);

impl Deref for Wiped<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.0
    }
}

impl DerefMut for Wiped<'_> {
    fn deref_mut(&mut self) -> &mut Connection {
        self.0
    }
}

impl Drop for Wiped<'_> {
    fn drop(&mut self) {
        self.0.datagram.zeroize();
        self.0.socket.wipe();
    }
}

impl Connection {
    /// For requests and answers with keys: when this is dropped, also by a future that is, what was sent and received last is
    /// overwritten.
    pub(crate) fn wiped(&mut self) -> Wiped<'_> {
        Wiped(self)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::libc;
    use tokio::time::timeout;

    use super::*;
    use crate::{Namespace, Request};

    #[tokio::test]
    async fn what_was_sent_with_keys_is_overwritten_and_nowhere_else() {
        let mut connection = Connection::open_generic(&Namespace::current().unwrap()).unwrap();
        let place = connection.datagram.as_ptr();
        // The kernel does not answer this type, so that the future is dropped while it waits.
        let unanswered = Request::new(libc::NLMSG_NOOP as u16, 0, &[7; 20 << 10]);
        {
            let mut connection = connection.wiped();
            let listing = connection.dump(&unanswered, |_| Some(()));
            assert!(timeout(Duration::ZERO, listing).await.is_err());
            assert!(connection.datagram.contains(&7));
        }
        assert_eq!((connection.datagram.len(), connection.datagram.as_ptr()), (0, place));
        let requests = [16 << 10, 12 << 10].map(|size| Request::new(u16::MAX, 0, &vec![7; size]));
        let answers = connection.wiped().apply(&requests).await;
        assert!(answers.iter().all(Result::is_err), "the kernel has no such family");
        assert_eq!((connection.datagram.len(), connection.datagram.as_ptr()), (0, place));
    }
}
