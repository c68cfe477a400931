//! Answers that prove that the loop turns.

use tokio::sync::{mpsc, oneshot};

/// Questions that the loop answers wherever it waits.
#[derive(Debug)]
pub(super) struct Pings(mpsc::Receiver<oneshot::Sender<()>>);

impl Pings {
    pub(super) fn new() -> (mpsc::Sender<oneshot::Sender<()>>, Self) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (sender, Self(receiver))
    }

    /// Answers the next question; never resolves if nobody can ask any more.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing.
    pub(super) async fn answer(&mut self) {
        match self.0.recv().await {
            // Whoever asked may have gone meanwhile.
            Some(reply) => drop(reply.send(())),
            None => std::future::pending().await,
        }
    }
}

/// How many questions may wait for the node's next turn: more than anybody asks at once.
const WAITING: usize = 16;
