//! A future that is dropped midway.

use std::{future::Future, pin::pin, task::Poll};

/// The output of `future` if it is ready after being polled `times` times, and then it is dropped.
pub async fn polled<F: Future>(future: F, times: usize) -> Option<F::Output> {
    let (mut future, mut left) = (pin!(future), times);
    let bounded = std::future::poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(cx).map(Some)
    });
    bounded.await
}
