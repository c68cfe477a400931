//! When it is time to look at something again.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// Rings once when a time is over.
///
/// The runtime's timers wake the process twice or three times for each that is further away than some milliseconds, and a process
/// that was asleep pays for each waking with cold caches, which is most of what a look costs.
#[derive(Debug)]
pub(super) struct Alarm(AsyncFd<OwnedFd>);

impl Alarm {
    /// One that rings when this time is over. Needs a tokio runtime with I/O.
    pub(super) fn new(after: Duration) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        #[expect(
            deprecated,
            reason = "the replacement is unsafe; an OwnedFd owns its one descriptor"
        )]
        let alarm = Self(AsyncFd::new(timer)?);
        alarm.set(after)?;
        Ok(alarm)
    }

    /// Has it ring when this time is over, and not when it would have.
    pub(super) fn set(&self, after: Duration) -> io::Result<()> {
        // No time at all would mean never.
        let after = after.max(Duration::from_nanos(1));
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let once = Itimerspec {
            it_interval: zero,
            it_value: Timespec {
                tv_sec: after.as_secs() as i64,
                tv_nsec: after.subsec_nanos().into(),
            },
        };
        timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }

    /// Resolves when it rings, once for each time that it was set.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub(super) async fn rings(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let rung = ready.try_io(|timer| Ok(rustix::io::read(timer, &mut [0; 8])?));
            // It was set anew meanwhile.
            let Ok(rung) = rung else { continue };
            return rung.map(drop);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    #[tokio::test]
    async fn it_rings_once_and_at_the_time_that_was_set_last() {
        let began = Instant::now();
        let alarm = Alarm::new(Duration::from_secs(600)).unwrap();
        alarm.set(Duration::from_millis(30)).unwrap();
        alarm.rings().await.unwrap();
        assert!(began.elapsed() >= Duration::from_millis(30));
        let soon = Duration::from_millis(30);
        assert!(timeout(soon, alarm.rings()).await.is_err(), "it rang twice");

        // Set anew when it has rung and nobody has heard it.
        alarm.set(Duration::ZERO).unwrap();
        tokio::time::sleep(soon).await;
        alarm.set(Duration::from_secs(600)).unwrap();
        assert!(timeout(soon, alarm.rings()).await.is_err(), "it rang for the time before");
    }
}
