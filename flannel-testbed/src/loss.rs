use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use crate::{Host, TestbedError, switch::Switch};

/// Packet loss.
impl Host {
    /// Loses packets on the host's uplink from now on, until set to 0.
    ///
    /// Time is cut into slots of 5 to 15 ms. In a slot the host's port of the switch forwards everything or, with the
    /// probability `share` (0 to 1), drops everything in both directions. So `share` is about what gets lost of a question
    /// and its quick answer together, and probes that are further apart than a slot are lost independently. Packets that
    /// are close together live or die together: this is not the loss of single packets that TCP sees on a bad line.
    ///
    /// Everything is lost alike: a lost question for a neighbour's Ethernet address silences that neighbour for a second.
    /// The host's link stays up, and its pods reach each other. `seed` fixes which slots are bad and how long each is. A
    /// busy process makes slots longer, good and bad ones alike.
    ///
    /// # Errors
    ///
    /// [`TestbedError::NoDevice`] or [`TestbedError::Kernel`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave the port dropping everything; another call mends it.
    ///
    /// # Panics
    ///
    /// When `share` is not from 0 to 1.
    pub async fn set_loss(&self, share: f64, seed: u64) -> Result<(), TestbedError> {
        assert!((0.0..=1.0).contains(&share), "{share} is not from 0 to 1");
        let mut before = std::mem::take(&mut self.state().loss);
        before.shutdown().await;
        self.switch().set_forwarding(self.number(), true).await?;
        if share > 0.0 {
            let switch = Arc::clone(self.switch());
            let lossy = lose(switch, self.number(), SplitMix(seed), share);
            self.state().loss.spawn(lossy);
        }
        Ok(())
    }
}

async fn lose(switch: Arc<Switch>, host: u32, mut random: SplitMix, share: f64) {
    let mut forwarding = true;
    loop {
        let bad = random.next() < share;
        if forwarding == bad {
            match switch.set_forwarding(host, !bad).await {
                Ok(()) => forwarding = !bad,
                // The network card is missing at the moment, or the cable is out.
                Err(error) => tracing::trace!(host, %error, "loss has to wait"),
            }
        }
        sleep(SHORTEST_SLOT + SLOT_SPREAD.mul_f64(random.next())).await;
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct SplitMix(u64);

impl SplitMix {
    /// The next number from 0 up to but not including 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // The upper 53 bits are as many as the result can tell apart.
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Short beside the interval of usual probes, long beside a round trip, and what a timer can keep.
const SHORTEST_SLOT: Duration = Duration::from_millis(5);
/// Slots differ in length, so that they do not keep step with the probes.
const SLOT_SPREAD: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_bad_slots_is_as_asked() {
        let mut random = SplitMix(7);
        let numbers: Vec<_> = (0..100_000).map(|_| random.next()).collect();
        for share in [0.0, 0.01, 0.3, 1.0] {
            let bad = numbers.iter().filter(|number| **number < share).count();
            let found = bad as f64 / 100_000.0;
            assert!((found - share).abs() < 0.005, "{found} is not {share}");
        }
    }

    #[test]
    fn the_numbers_are_those_of_the_paper() {
        // The first output of the reference implementation for seed 0 is 0xe220a8397b1dcdaf.
        let expected = (0xe220_a839_7b1d_cdaf_u64 >> 11) as f64 / (1_u64 << 53) as f64;
        assert_eq!(SplitMix(0).next(), expected);
    }
}
