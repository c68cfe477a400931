//! One rule as the arguments of `iptables -A CHAIN`.

use std::fmt::Write;

use ipnetwork::IpNetwork;

use super::Wanted;
use crate::rules::{Action, KUBE_PROXY_MARK, Match, NotBy, Rule, Side};

/// A rule that was read, as far as our own rules go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Specification {
    pub(crate) rule: Option<Rule>,
    pub(crate) comment: String,
    pub(crate) target: String,
}

impl Wanted {
    /// The text of one of our chain's rules.
    pub(crate) fn text(&self, rule: &Rule) -> String {
        let mut text = String::new();
        let mut address = |option: &str, wanted: Option<Match>| {
            if let Some(Match { block, negated }) = wanted {
                let not = if negated { "! " } else { "" };
                // Writing to a string cannot fail.
                let _ = write!(text, "{not}{option} {block} ");
            }
        };
        address("-s", rule.source);
        address("-d", rule.destination);
        if let Some(NotBy { side, device }) = &rule.device {
            let option = match side {
                Side::Enters => "-i",
                Side::Leaves => "-o",
            };
            let _ = write!(text, "! {option} {device} ");
        }
        if rule.marked {
            let _ = write!(text, "-m mark --mark {KUBE_PROXY_MARK:#x}/{KUBE_PROXY_MARK:#x} ");
        }
        let target = match rule.action {
            Action::Accept => "ACCEPT",
            Action::Drop => "DROP",
            Action::Masquerade { random_ports: false } => "MASQUERADE",
            Action::Masquerade { random_ports: true } => "MASQUERADE --random-fully",
            Action::Return => "RETURN",
        };
        let _ = write!(text, "-m comment --comment \"{}\" -j {target}", self.comment);
        text
    }

    /// The text of the rule that leads from the built-in chain to ours.
    pub(crate) fn jump(&self) -> String {
        format!("-m comment --comment \"{}\" -j {}", self.comment, self.chain)
    }
}

impl Specification {
    /// Reads what `iptables-save` prints after the chain; `None` if it says anything that our rules never say.
    ///
    /// The order of options does not matter, for versions of iptables differ in it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut words = Words(text);
        let (mut source, mut destination, mut device, mut marked) = (None, None, None, false);
        let (mut comment, mut target, mut random_ports) = (String::new(), None, false);
        let mut negated = false;
        while let Some(word) = words.next() {
            let was_negated = std::mem::take(&mut negated);
            match word.as_str() {
                "!" if !was_negated => negated = true,
                "-s" | "--source" if source.is_none() => {
                    source = Some(block(&words.next()?, was_negated)?);
                }
                "-d" | "--destination" if destination.is_none() => {
                    destination = Some(block(&words.next()?, was_negated)?);
                }
                "-i" | "--in-interface" if was_negated && device.is_none() => {
                    device = Some(NotBy { side: Side::Enters, device: words.next()? });
                }
                "-o" | "--out-interface" if was_negated && device.is_none() => {
                    device = Some(NotBy { side: Side::Leaves, device: words.next()? });
                }
                _ if was_negated => return None,
                "-m" | "--match" => {
                    let known = ["comment", "mark"];
                    words.next().filter(|name| known.contains(&name.as_str()))?;
                }
                "--mark" => {
                    let both = words.next()?;
                    let (value, mask) = both.split_once('/')?;
                    marked = (number(value)?, number(mask)?) == (KUBE_PROXY_MARK, KUBE_PROXY_MARK);
                    if !marked {
                        return None;
                    }
                }
                "--comment" => comment = words.next()?,
                "-j" | "--jump" if target.is_none() => target = Some(words.next()?),
                "--random-fully" => random_ports = true,
                _ => return None,
            }
        }
        let target = target?;
        let action = match (target.as_str(), random_ports) {
            ("ACCEPT", false) => Some(Action::Accept),
            ("DROP", false) => Some(Action::Drop),
            ("MASQUERADE", random_ports) => Some(Action::Masquerade { random_ports }),
            ("RETURN", false) => Some(Action::Return),
            (_, true) => return None,
            _ => None,
        };
        let is_plain = !marked && source.is_none() && destination.is_none() && device.is_none();
        let rule = action.map(|action| Rule { marked, source, destination, device, action });
        if rule.is_none() && !is_plain {
            return None;
        }
        Some(Self { rule, comment, target })
    }
}

/// Whether the rule leads to `chain`.
pub(crate) fn leads_to(text: &str, chain: &str) -> bool {
    let mut words = Words(text);
    while let Some(word) = words.next() {
        if matches!(word.as_str(), "-j" | "--jump" | "-g" | "--goto")
            && words.next().as_deref() == Some(chain)
        {
            return true;
        }
    }
    false
}

fn block(text: &str, negated: bool) -> Option<Match> {
    let block: IpNetwork = text.parse().ok()?;
    let block = IpNetwork::new(block.network(), block.prefix()).ok()?;
    Some(Match { block, negated })
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Words between blanks; quotes keep blanks together, and a backslash keeps what follows it.
#[derive(Clone, Copy, Debug)]
pub struct Words<'a>(pub &'a str);

impl Iterator for Words<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        self.0 = self.0.trim_start();
        let mut word = String::new();
        let mut quoted = false;
        let mut letters = self.0.char_indices();
        let mut begun = false;
        while let Some((at, letter)) = letters.next() {
            begun = true;
            match letter {
                '"' => quoted = !quoted,
                '\\' => word.extend(letters.next().map(|(_, letter)| letter)),
                _ if letter.is_whitespace() && !quoted => {
                    self.0 = &self.0[at..];
                    return Some(word);
                }
                _ => word.push(letter),
            }
        }
        self.0 = "";
        begun.then_some(word)
    }
}
