use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures::future::join_all;
use tokio::{
    net::UdpSocket,
    time::{Instant, timeout_at},
};

use super::{
    packet::{PACKET_BYTES, Packet},
    socket::{ECHO_PORT, new_id, open},
};
use crate::Endpoint;

/// Probes every endpoint from every endpoint, itself counted in, in every address family that both have.
///
/// All probes go out at the same time, and an unanswered one once more after a quarter of a second. What is not
/// answered within a second is unreachable.
///
/// # Cancel safety
///
/// Dropping the future loses the answers only.
pub async fn reachability<E: Into<Endpoint>>(
    endpoints: impl IntoIterator<Item = E>,
) -> Reachability {
    let endpoints: Vec<Endpoint> = endpoints.into_iter().map(Into::into).collect();
    let probes = endpoints.iter().enumerate().flat_map(|(from, endpoint)| {
        [Family::Ipv4, Family::Ipv6].map(|family| row(from, endpoint, family, &endpoints))
    });
    let answers = join_all(probes).await.into_iter().flatten().collect();
    Reachability { names: endpoints.iter().map(|e| e.name().to_owned()).collect(), answers }
}

/// Who reaches whom. Made by [`reachability`]; prints as a table per address family.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reachability {
    names: Vec<String>,
    answers: BTreeMap<(Family, usize, usize), Option<Duration>>,
}

impl Reachability {
    /// How many ordered pairs were probed, per address family, each endpoint with itself counted in.
    pub fn probed(&self) -> usize {
        self.answers.len()
    }

    /// How many of them got an answer.
    pub fn reached(&self) -> usize {
        self.answers.values().flatten().count()
    }

    /// Whether everybody reaches everybody. False when nothing was probed.
    pub fn complete(&self) -> bool {
        self.reached() == self.probed() && self.probed() > 0
    }

    /// The pairs that got no answer.
    pub fn unreachable(&self) -> impl Iterator<Item = Unreachable<'_>> {
        self.answers.iter().filter(|(_, answer)| answer.is_none()).map(|((family, from, to), _)| {
            Unreachable { family: family.name(), from: &self.names[*from], to: &self.names[*to] }
        })
    }
}

/// A pair of [`Reachability`] that got no answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Unreachable<'a> {
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// Who asked.
    pub from: &'a str,
    /// Whom.
    pub to: &'a str,
}

impl fmt::Display for Unreachable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} does not reach {} over {}", self.from, self.to, self.family)
    }
}

impl fmt::Display for Reachability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for family in [Family::Ipv4, Family::Ipv6] {
            if self.answers.keys().any(|(probed, ..)| *probed == family) {
                self.table(family, f)?;
            }
        }
        write!(f, "{} of {} pairs reach each other", self.reached(), self.probed())
    }
}

impl Reachability {
    /// A small table has names above and round trips in ms inside, a large one numbers above and a mark inside.
    fn table(&self, family: Family, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let small = self.names.len() <= SMALL_TABLE;
        let label = |index: usize| match small {
            true => self.names[index].clone(),
            false => format!("{} {}", index + 1, self.names[index]),
        };
        let head = |index: usize| match small {
            true => self.names[index].clone(),
            false => (index + 1).to_string(),
        };
        let indexes = 0..self.names.len();
        let left = indexes.clone().map(|i| label(i).len()).max().unwrap_or(0);
        let left = left.max("IPv4 from \\ to".len());
        let width = |index: usize| head(index).len().max(if small { 7 } else { 2 });
        write!(f, "{:left$}", format!("{} from \\ to", family.name()))?;
        for to in indexes.clone() {
            write!(f, " {:>1$}", head(to), width(to))?;
        }
        writeln!(f)?;
        for from in indexes.clone() {
            write!(f, "{:left$}", label(from))?;
            for to in indexes.clone() {
                let cell = match self.answers.get(&(family, from, to)) {
                    None => String::new(),
                    Some(None) if small => "lost".to_owned(),
                    Some(None) => "X".to_owned(),
                    Some(Some(time)) if small => format!("{:.2} ms", time.as_secs_f64() * 1e3),
                    Some(Some(_)) => ".".to_owned(),
                };
                write!(f, " {cell:>0$}", width(to))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    const fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        }
    }

    fn of(self, endpoint: &Endpoint) -> Option<IpAddr> {
        match self {
            Self::Ipv4 => endpoint.ipv4().map(IpAddr::V4),
            Self::Ipv6 => endpoint.ipv6().map(IpAddr::V6),
        }
    }
}

/// What one endpoint gets back from all others over one family.
async fn row(
    from: usize,
    endpoint: &Endpoint,
    family: Family,
    all: &[Endpoint],
) -> BTreeMap<(Family, usize, usize), Option<Duration>> {
    let Some(own) = family.of(endpoint) else {
        return BTreeMap::new();
    };
    let targets: BTreeMap<usize, IpAddr> =
        all.iter().enumerate().filter_map(|(to, target)| Some((to, family.of(target)?))).collect();
    let mut answers = targets.keys().map(|to| ((family, from, *to), None)).collect();
    match open(endpoint.namespace(), own) {
        Ok(socket) => {
            ask(&socket, &targets, |to, time| {
                if let Some(answer @ None) = BTreeMap::get_mut(&mut answers, &(family, from, to)) {
                    *answer = Some(time);
                }
            })
            .await
        }
        Err(error) => tracing::warn!(from = endpoint.name(), %error, "cannot open a probe socket"),
    }
    answers
}

/// Sends a probe to each target, and again to those that were silent, and reports the answers that come in time.
async fn ask(
    socket: &UdpSocket,
    targets: &BTreeMap<usize, IpAddr>,
    mut answered: impl FnMut(usize, Duration),
) {
    let id = new_id();
    let mut silent = targets.clone();
    for wait in ATTEMPTS {
        let started = Instant::now();
        for (to, ip) in &silent {
            let mut datagram = [0; PACKET_BYTES];
            let question = Packet { id, sequence: *to as u64, seen: None };
            question.write(&mut datagram);
            if let Err(error) = socket.send_to(&datagram, SocketAddr::new(*ip, ECHO_PORT)).await {
                tracing::trace!(to = %ip, %error, "a probe was not sent");
            }
        }
        let mut buffer = [0; PACKET_BYTES];
        while !silent.is_empty() {
            let Ok(received) = timeout_at(started + wait, socket.recv_from(&mut buffer)).await
            else {
                break;
            };
            let Ok((length, _)) = received else { continue };
            if let Some(Packet { id: of, sequence, seen: Some(_) }) =
                Packet::read(&buffer[..length])
                && of == id
                && let Ok(to) = usize::try_from(sequence)
                && silent.remove(&to).is_some()
            {
                answered(to, started.elapsed());
            }
        }
    }
}

/// Once more, because the first packet to a new neighbour may be dropped when many are resolved at the same time.
const ATTEMPTS: [Duration; 2] = [Duration::from_millis(250), Duration::from_millis(750)];
/// Up to this many endpoints the table has names and times in its columns.
const SMALL_TABLE: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    fn two_of_four() -> Reachability {
        let time = Some(Duration::from_micros(54));
        let answers = [
            ((Family::Ipv4, 0, 0), time),
            ((Family::Ipv4, 0, 1), None),
            ((Family::Ipv4, 1, 0), None),
            ((Family::Ipv4, 1, 1), time),
        ];
        Reachability {
            names: vec!["host1/pod1".to_owned(), "host2/pod1".to_owned()],
            answers: answers.into(),
        }
    }

    #[test]
    fn the_table_shows_who_is_lost() {
        let expected = "\
IPv4 from \\ to host1/pod1 host2/pod1
host1/pod1        0.05 ms       lost
host2/pod1           lost    0.05 ms
2 of 4 pairs reach each other";
        assert_eq!(two_of_four().to_string(), expected);
    }

    #[test]
    fn the_unreachable_are_named() {
        let table = two_of_four();
        let lines: Vec<_> = table.unreachable().map(|pair| pair.to_string()).collect();
        assert_eq!(
            lines,
            [
                "host1/pod1 does not reach host2/pod1 over IPv4",
                "host2/pod1 does not reach host1/pod1 over IPv4"
            ]
        );
        assert!(!table.complete());
    }

    #[test]
    fn nothing_probed_is_not_complete() {
        let nothing = Reachability { names: Vec::new(), answers: BTreeMap::new() };
        assert!(!nothing.complete());
    }

    #[test]
    fn a_large_table_has_numbers_and_marks() {
        let names: Vec<_> = (1..=12).map(|n| format!("host{n}")).collect();
        let answers = (0..144).map(|i| {
            let answer = (i % 5 != 1).then_some(Duration::ZERO);
            ((Family::Ipv6, i / 12, i % 12), answer)
        });
        let table = Reachability { names, answers: answers.collect() }.to_string();
        assert!(table.starts_with("IPv6 from \\ to  1  2"), "{table}");
        assert!(table.contains("\n12 host12       .  .  .  .  X"), "{table}");
    }
}
