//! What operators are told when something else is found than before.

use flannel_core::NetworkConfig;
use flannel_netlink::{Features, LogLimit, state::IpFamily};
use flannel_probe::{Checksums, Findings, PathFinding, PathMtu};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::explain::Tunnel;

/// Writes news into the log.
#[derive(Debug)]
pub(super) struct Reporter {
    /// The names of the devices that encapsulate, IPv4 and IPv6.
    devices: [Option<String>; 2],
    limit: LogLimit,
}

/// One thing to tell.
#[derive(Clone, Debug, Eq, PartialEq)]
enum News {
    Bad(String),
    Good(String),
}

impl Reporter {
    pub(super) fn new(config: &NetworkConfig) -> Self {
        let mut reporter = Self { devices: [None, None], limit: LogLimit::default() };
        reporter.follow(config);
        reporter
    }

    /// Names the devices of the network's backend, which may be another by now.
    pub(super) fn follow(&mut self, config: &NetworkConfig) {
        let device = |is_ipv4| Tunnel::of(config, is_ipv4).map(|tunnel| tunnel.device);
        self.devices = [true, false].map(device);
    }

    /// Tells what is in `after` and was not in `before`. `uplink` is the name of the network card.
    pub(super) fn report(&mut self, before: &Findings, after: &Findings, uplink: &str) {
        for fault in after.faults.iter().filter(|fault| !before.faults.contains(fault)) {
            warn!("peers are not asked: {fault}");
        }
        let mut all = Vec::new();
        for ((peer, family), now) in &after.paths {
            let was = before.paths.get(&(*peer, *family)).filter(|it| it.address == now.address);
            for news in self.compare(*family, was, now, uplink) {
                all.push((peer, now.address, news));
            }
        }
        // One broken link may be on the way to thousands, and it may break again and again.
        for ((peer, address, news), left_out) in self.limit.choose(&all, Instant::now()) {
            let left_out = Some(left_out).filter(|left_out| *left_out > 0);
            match news {
                News::Bad(text) => warn!(%peer, %address, left_out, "{text}"),
                News::Good(text) => info!(%peer, %address, left_out, "{text}"),
            }
        }
    }

    fn compare(
        &self,
        family: IpFamily,
        was: Option<&PathFinding>,
        now: &PathFinding,
        uplink: &str,
    ) -> Vec<News> {
        let mut news = Vec::new();
        let device = match family {
            IpFamily::V4 => self.devices[0].as_deref(),
            IpFamily::V6 => self.devices[1].as_deref(),
        };
        let before = was.map(|was| was.mtu).unwrap_or_default();
        match (before, now.mtu) {
            (before, after) if before == after => {}
            (_, PathMtu::Less(size)) => {
                let remedy = remedy(device.is_some(), uplink, size.into());
                news.push(News::Bad(format!(
                    "the path MTU is {size}, and {} are needed: larger packets get lost without a word; {remedy}",
                    now.needed
                )));
            }
            (PathMtu::Less(_), PathMtu::Enough) => {
                news.push(News::Good(format!("packets of {} bytes arrive again", now.needed)));
            }
            _ => {}
        }
        let layers = [
            (device, was.map(|was| was.overlay), now.overlay),
            (Some(uplink), was.map(|was| was.underlay), now.underlay),
        ];
        for (at, (device, before, after)) in layers.into_iter().enumerate() {
            let Some(device) = device.filter(|_| before.unwrap_or_default() != after) else {
                continue;
            };
            match after {
                Checksums::Corrupted => {
                    let does = if at == 0 {
                        // Its own device: the network does it.
                        format!("{} of {device} is switched off", Features::TX_CHECKSUM)
                    } else {
                        format!("run ethtool -K {device} {} off", Features::TX_CHECKSUM)
                    };
                    news.push(News::Bad(format!(
                        "packets through {device} whose checksums are left to the hardware get lost, others arrive: {does}"
                    )));
                }
                Checksums::Intact if before == Some(Checksums::Corrupted) => {
                    news.push(News::Good(format!("packets through {device} arrive again")));
                }
                _ => {}
            }
        }
        news
    }
}

/// What to do about a way that takes only packets of `size` bytes.
pub(crate) fn remedy(encapsulates: bool, uplink: &str, size: u64) -> String {
    match encapsulates {
        true => {
            format!("set MTU in the backend's configuration to {size}, and start the nodes again")
        }
        false => format!("set the MTU of {uplink} to {size}, or find the link that takes less"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told when a way becomes `now` after `was`.
    fn told(backend: &str, was: Option<[u32; 3]>, now: [u32; 3]) -> Vec<String> {
        let config = format!(r#"{{"Network":"10.3.0.0/16","Backend":{{"Type":"{backend}"}}}}"#);
        let reporter = Reporter::new(&config.parse().unwrap());
        let checksums = |it| match it {
            0 => Checksums::Unknown,
            1 => Checksums::Intact,
            _ => Checksums::Corrupted,
        };
        let finding = |[mtu, underlay, overlay]: [u32; 3]| {
            let address = [192, 0, 2, 2].into();
            let mtu = match mtu {
                0 => PathMtu::NoAnswer,
                1500 => PathMtu::Enough,
                less => PathMtu::Less(less),
            };
            PathFinding::new(address, 1500, mtu)
                .with_checksums(checksums(underlay), checksums(overlay))
        };
        let (was, now) = (was.map(finding), finding(now));
        let news = reporter.compare(IpFamily::V4, was.as_ref(), &now, "eth0");
        let text = |news| match news {
            News::Bad(text) => format!("bad: {text}"),
            News::Good(text) => format!("good: {text}"),
        };
        news.into_iter().map(text).collect()
    }

    #[test]
    fn what_changes_is_told_once_with_what_to_do() {
        assert_eq!(told("vxlan", None, [0, 0, 0]), [""; 0]);
        assert_eq!(told("vxlan", None, [1500, 1, 1]), [""; 0]);
        assert_eq!(told("vxlan", Some([1400, 1, 2]), [1400, 1, 2]), [""; 0]);
        assert_eq!(told("vxlan", Some([1500, 1, 1]), [0, 1, 1]), [""; 0]);
        assert_eq!(
            told("vxlan", Some([1500, 1, 1]), [1400, 1, 1]),
            [
                "bad: the path MTU is 1400, and 1500 are needed: larger packets get lost without a word; \
                 set MTU in the backend's configuration to 1400, and start the nodes again"
            ]
        );
        assert_eq!(
            told("host-gw", None, [1400, 1, 0]),
            [
                "bad: the path MTU is 1400, and 1500 are needed: larger packets get lost without a word; \
                 set the MTU of eth0 to 1400, or find the link that takes less"
            ]
        );
        assert_eq!(
            told("vxlan", Some([1400, 1, 2]), [1500, 1, 1]),
            [
                "good: packets of 1500 bytes arrive again",
                "good: packets through flannel.1 arrive again"
            ]
        );
        assert_eq!(
            told("vxlan", None, [1500, 2, 2]),
            [
                "bad: packets through flannel.1 whose checksums are left to the hardware get lost, others arrive: \
                 tx-checksum-ip-generic of flannel.1 is switched off",
                "bad: packets through eth0 whose checksums are left to the hardware get lost, others arrive: \
                 run ethtool -K eth0 tx-checksum-ip-generic off",
            ]
        );
    }
}
