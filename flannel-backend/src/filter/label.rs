//! What our filters are called, where whoever comes later reads it.

use std::{fmt, str::FromStr};

/// The label of a filter of ours.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Label {
    /// Tells programs of one build from those of another.
    pub version: u64,
    /// The number of the network, by [`network_number`](crate::network_number).
    pub network: u32,
    /// The tunnel device.
    pub device: String,
    /// The clsact qdisc is of our making, so that it goes when we do.
    pub made_qdisc: bool,
}

/// It is no label of ours.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct NotOurs;

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = if self.made_qdisc { OWN_QDISC } else { "" };
        write!(f, "{NAME}{:016x} {:08x} {}{own}", self.version, self.network, self.device)
    }
}

impl FromStr for Label {
    type Err = NotOurs;

    fn from_str(text: &str) -> Result<Self, NotOurs> {
        let rest = text.strip_prefix(NAME).ok_or(NotOurs)?;
        let (rest, made_qdisc) =
            rest.strip_suffix(OWN_QDISC).map_or((rest, false), |rest| (rest, true));
        let mut words = rest.splitn(3, ' ');
        let mut next = || words.next().ok_or(NotOurs);
        Ok(Self {
            version: u64::from_str_radix(next()?, 16).map_err(|_| NotOurs)?,
            network: u32::from_str_radix(next()?, 16).map_err(|_| NotOurs)?,
            device: next()?.to_owned(),
            made_qdisc,
        })
    }
}

const NAME: &str = "flannel-udp ";
const OWN_QDISC: &str = " own clsact";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_label_says_what_it_belongs_to() {
        let label =
            Label { version: 1, network: 0x8a3f_0001, device: "flannel0".into(), made_qdisc: true };
        let text = "flannel-udp 0000000000000001 8a3f0001 flannel0 own clsact";
        assert_eq!(label.to_string(), text);
        assert_eq!(text.parse(), Ok(label));
        for theirs in ["", "bpf_redir", "flannel-udp ", "flannel-udp 1 2", "flannel-udp x y z"] {
            assert_eq!(theirs.parse::<Label>(), Err(NotOurs), "{theirs}");
        }
    }

    proptest! {
        #[test]
        fn a_label_is_read_as_it_was_written(version: u64, network: u32, device in "[a-z0-9.-]{1,15}", made_qdisc: bool) {
            let label = Label { version, network, device, made_qdisc };
            prop_assert_eq!(label.to_string().parse(), Ok(label));
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = text.parse::<Label>();
            let _ = format!("flannel-udp {text}").parse::<Label>();
        }
    }
}
