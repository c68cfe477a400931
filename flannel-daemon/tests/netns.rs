//! Whole daemons on a real kernel.

#[path = "netns/embedder.rs"]
mod embedder;

use std::time::Duration;

use tokio::time::{sleep, timeout};

/// Waits until it is so, for a minute: other tests may run meanwhile.
async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(60), wait).await.expect("it becomes so within a minute");
}
