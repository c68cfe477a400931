//! How much a container may send and receive. What limits it is at the node's end of its pair, and goes with that.

use flannel_netlink::{Connection, state::Link};
use serde::Deserialize;

use crate::{
    kernel::{self, Limit},
    protocol::{Error, or_default},
};

/// The limits of a container.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Bandwidth {
    /// Of what it sends.
    sent: Option<Limit>,
    /// Of what it receives.
    received: Option<Limit>,
}

/// `bandwidth` of `runtimeConfig`, in bits.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BandwidthKeys {
    #[serde(default, deserialize_with = "or_default")]
    ingress_rate: u64,
    #[serde(default, deserialize_with = "or_default")]
    ingress_burst: u64,
    #[serde(default, deserialize_with = "or_default")]
    egress_rate: u64,
    #[serde(default, deserialize_with = "or_default")]
    egress_burst: u64,
}

impl Bandwidth {
    /// Refuses what containernetworking's `bandwidth` would.
    ///
    /// # Errors
    ///
    /// A sentence that says what cannot be.
    pub(super) fn new(keys: BandwidthKeys) -> Result<Self, String> {
        Ok(Self {
            sent: limit(keys.egress_rate, keys.egress_burst)?,
            received: limit(keys.ingress_rate, keys.ingress_burst)?,
        })
    }
}

/// Sets the limits at the node's end of the pair.
pub(super) async fn set(
    host: &mut Connection,
    port: &Link,
    bandwidth: Bandwidth,
) -> Result<(), Error> {
    let mut steps = Vec::new();
    let what = |does| format!("cannot limit what the container {does}, at {:?}", port.name);
    if let Some(limit) = bandwidth.received {
        steps.push((kernel::limit_sent(port.index, limit), what("receives")));
    }
    if let Some(limit) = bandwidth.sent {
        let requests = kernel::limit_received(port.index, limit);
        steps.extend(requests.map(|request| (request, what("sends"))));
    }
    match steps.is_empty() {
        true => Ok(()),
        false => kernel::apply(host, steps).await,
    }
}

fn limit(rate: u64, burst: u64) -> Result<Option<Limit>, String> {
    let what = match (rate, burst) {
        (0, 0) => return Ok(None),
        (_, 0) => "if rate is set, burst must also be set",
        (0, _) => "if burst is set, rate must also be set",
        (1..8, _) => "a rate cannot be less than 8 bits in a second",
        (_, 1..8) => "a burst cannot be less than 8 bits",
        _ => match u32::try_from(burst / 8) {
            Ok(burst_bytes) if burst_bytes < u32::MAX => {
                return Ok(Some(Limit { bytes_per_second: rate / 8, burst_bytes }));
            }
            _ => "burst cannot be more than 4GB",
        },
    };
    Err(format!("bandwidth: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_bits_and_need_a_burst() {
        assert_eq!(limit(0, 0), Ok(None));
        let expected = Limit { bytes_per_second: 125_000, burst_bytes: 1000 };
        assert_eq!(limit(1_000_000, 8000), Ok(Some(expected)));
        for (rate, burst, expected) in [
            (1, 0, "if rate is set"),
            (0, 1, "if burst is set"),
            (7, 8, "a rate cannot be less than 8 bits"),
            (8, 7, "a burst cannot be less than 8 bits"),
            (8, u64::from(u32::MAX) * 8, "more than 4GB"),
            (u64::MAX, u64::MAX, "more than 4GB"),
        ] {
            let error = limit(rate, burst).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
