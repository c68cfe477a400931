//! Who computes the checksums of what enters a device.

use std::error::Error;

use flannel_netlink::{Features, LogLimit, Namespace, RateLimit};
use tokio::time::Instant;
use tracing::{info, warn};

/// Keeps a device from leaving checksums to the hardware.
#[derive(Debug)]
pub(super) struct Checksums {
    features: Option<Features>,
    /// The device that was made so.
    done: Option<u32>,
    repairs: RateLimit,
    log: LogLimit,
    /// Why it could not be done, so that it is said once.
    refused: Option<String>,
}

/// Whether somebody else's change was undone.
#[derive(Debug)]
pub(super) enum Repaired {
    No,
    /// Somebody keeps changing it, and it has to wait.
    Postponed(Instant),
    Yes(String),
}

impl Default for Checksums {
    fn default() -> Self {
        Self {
            features: None,
            done: None,
            repairs: RateLimit::REPAIRS,
            log: LogLimit::default(),
            refused: None,
        }
    }
}

impl Checksums {
    /// Switches off that the device `link` takes packets without checksums. That it cannot be done keeps nothing else from working.
    ///
    /// # Cancel safety
    ///
    /// Dropping it leaves it done or not.
    pub(super) async fn compute(
        &mut self,
        namespace: &Namespace,
        device: &str,
        link: u32,
    ) -> Repaired {
        match self.attempt(namespace, device, link).await {
            Ok(repaired) => {
                self.refused = None;
                repaired
            }
            Err(error) => {
                self.features = None;
                let error = error.to_string();
                if self.refused.as_ref() != Some(&error) {
                    warn!(
                        device,
                        error,
                        "cannot switch off {0}: run ethtool -K {device} {0} off",
                        Features::TX_CHECKSUM
                    );
                    self.refused = Some(error);
                }
                Repaired::No
            }
        }
    }

    async fn attempt(
        &mut self,
        namespace: &Namespace,
        device: &str,
        link: u32,
    ) -> Result<Repaired, Box<dyn Error + Send + Sync>> {
        if self.features.is_none() {
            self.features = Some(Features::open(namespace)?);
        }
        let Some(features) = &mut self.features else { return Ok(Repaired::No) };
        if features.get(link, Features::TX_CHECKSUM).await? != Some(true) {
            self.done = Some(link);
            return Ok(Repaired::No);
        }
        let now = Instant::now();
        if let Some(due) = self.repairs.due(now) {
            return Ok(Repaired::Postponed(due));
        }
        features.set(link, Features::TX_CHECKSUM, false).await?;
        self.repairs.done(now);
        if self.log.allows(now).is_some() {
            info!(
                device,
                "{} switched off: checksums of what enters it get damaged on the way unless they are computed before",
                Features::TX_CHECKSUM
            );
        }
        let before = self.done.replace(link);
        Ok(match before == Some(link) {
            true => {
                Repaired::Yes(format!("{} of device {device} switched on", Features::TX_CHECKSUM))
            }
            false => Repaired::No,
        })
    }
}
