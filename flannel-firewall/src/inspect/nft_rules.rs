//! The rules of nf_tables, as they are for some packets.

use std::collections::{BTreeMap, btree_map::Entry};

use flannel_netlink::KernelError;

use super::{
    bits::{Bits, Registers},
    nft_sets::{contains, ranges, within},
    packet::{Device, PacketPath},
    ternary::Ternary,
    walk::{Chain, Place, Rule, Step, Table},
    xt_matches,
};
use crate::nftables::{
    ChainInfo, Client, Comparison, Expression, Family as TableFamily, Hook, RuleInfo, SetElement,
    Verdict,
};

/// The elements of sets by name.
type Sets = BTreeMap<String, Vec<SetElement>>;

/// All tables that packets on each of `paths`, which are of one family, meet; those that only translate addresses if they are asked
/// for.
pub(super) async fn tables(
    client: &mut Client,
    paths: &[PacketPath],
    translations: bool,
) -> Result<Vec<Vec<Table>>, KernelError> {
    let mut found = vec![Vec::new(); paths.len()];
    let Some(family) = paths.first().map(|path| TableFamily::from(path.family())) else {
        return Ok(found);
    };
    let mut by_table: BTreeMap<_, Vec<ChainInfo>> = BTreeMap::new();
    let passed = |chain: &ChainInfo| [family, TableFamily::INET].contains(&chain.family);
    for chain in client.chains().await?.into_iter().filter(passed) {
        by_table.entry((chain.family, chain.table.clone())).or_default().push(chain);
    }
    for ((family, table), chains) in by_table {
        // Rules are read only where packets come by.
        let hooks = || chains.iter().filter_map(|chain| chain.hook.as_ref());
        let is_passed = |hook: &Hook| {
            (translations || hook.kind != "nat")
                && paths.iter().any(|path| path.hooks().contains(&hook.number))
        };
        if !hooks().any(is_passed) {
            continue;
        }
        let rules = client.rules(family, &table).await?;
        let mut sets = Sets::new();
        for expression in rules.iter().flat_map(|rule| &rule.expressions) {
            if let Expression::Lookup { set, .. } = expression
                && let Entry::Vacant(entry) = sets.entry(set.clone())
            {
                entry.insert(client.set_elements(family, &table, set).await?);
            }
        }
        for (path, found) in paths.iter().zip(&mut found) {
            let name = format!("{family} {table}");
            found.push(Table { name, chains: read_chains(&chains, &rules, &sets, path) });
        }
    }
    Ok(found)
}

fn read_chains(
    chains: &[ChainInfo],
    rules: &[RuleInfo],
    sets: &Sets,
    path: &PacketPath,
) -> BTreeMap<String, Chain> {
    let mut read: BTreeMap<_, _> = chains
        .iter()
        .map(|chain| {
            let place = chain.hook.as_ref().map(|hook| Place {
                hook: hook.number,
                priority: hook.priority,
                translates: hook.kind == "nat",
            });
            (chain.name.clone(), Chain { place, drops: chain.drops, rules: Vec::new() })
        })
        .collect();
    let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
    for rule in rules {
        let number = numbers.entry(&rule.chain).or_default();
        *number += 1;
        let chain = read.entry(rule.chain.clone()).or_default();
        let reader = Reader { path, sets, place: chain.place };
        chain.rules.extend(reader.rule(*number, &rule.expressions));
    }
    read
}

/// Reads the rules of one chain.
struct Reader<'a> {
    path: &'a PacketPath,
    sets: &'a Sets,
    place: Option<Place>,
}

impl Reader<'_> {
    /// What a rule is to the packets.
    fn rule(&self, number: usize, expressions: &[Expression]) -> Vec<Rule> {
        let mut fits = Ternary::True;
        let mut registers = Registers::default();
        for expression in expressions {
            let (condition, step) = match expression {
                Expression::Bitwise { source, destination, mask, xor } => {
                    let held = registers.get(*source).masked(mask, xor);
                    registers.set(*destination, held);
                    continue;
                }
                Expression::Compare { register, comparison, value } => {
                    (registers.get(*register).compare(*comparison, value), None)
                }
                Expression::Connection { register, key } => {
                    registers.set(*register, self.connection(*key));
                    continue;
                }
                Expression::Lookup { register, set, negated, is_map } => {
                    let elements = self.sets.get(set).map_or(&[][..], Vec::as_slice);
                    let held = registers.get(*register);
                    if *is_map {
                        return map_rules(number, fits, &held, elements);
                    }
                    (contains(&held, elements).not_if(*negated), None)
                }
                Expression::Masquerade { .. } | Expression::Nat { source: true } => {
                    (Ternary::True, Some(Step::Masquerade))
                }
                Expression::Match { name, info } => {
                    (xt_matches::holds(name, info, self.path), None)
                }
                Expression::Meta { register, key } => {
                    registers.set(*register, self.meta(*key));
                    continue;
                }
                Expression::Payload { register, base, offset, length } => {
                    registers.set(*register, self.payload(*base, *offset, *length));
                    continue;
                }
                Expression::Range { register, negated, from, to } => {
                    let held = registers.get(*register);
                    let inside = held
                        .compare(Comparison::GreaterOrEqual, from)
                        .and(held.compare(Comparison::LessOrEqual, to));
                    (inside.not_if(*negated), None)
                }
                Expression::Target(name) => (Ternary::True, Some(xt_matches::target(name))),
                Expression::Verdict(verdict) => (Ternary::True, Some(step(verdict))),
                Expression::Comment(_)
                | Expression::DestinationNat { .. }
                | Expression::Nat { source: false } => continue,
                Expression::Fib { .. } | Expression::Immediate { .. } => {
                    registers = Registers::default();
                    continue;
                }
                Expression::Other(name) => match name.as_str() {
                    "reject" => (Ternary::True, Some(Step::Drop)),
                    // What changes or counts packets, and what loads something that another expression compares.
                    _ if NO_CONDITIONS.contains(&name.as_str()) => {
                        registers = Registers::default();
                        continue;
                    }
                    _ => {
                        registers = Registers::default();
                        (Ternary::Unknown, None)
                    }
                },
            };
            fits = fits.and(condition);
            if let Some(step) = step {
                return vec![Rule { number, fits, step }];
            }
        }
        vec![Rule { number, fits, step: Step::Continue }]
    }

    fn connection(&self, key: u32) -> Bits {
        match key {
            NFT_CT_STATE => {
                // Connections are tracked at priority -200.
                let early = self.place.is_some_and(|place| place.priority <= -200);
                let state: u32 = if early { INVALID } else { NEW };
                Bits::known(state.to_ne_bytes())
            }
            NFT_CT_DIRECTION => Bits::known([0]),
            // It is not translated, and nobody has marked it.
            NFT_CT_STATUS | NFT_CT_MARK => Bits::known([0; 4]),
            _ => Bits::unknown(16),
        }
    }

    fn meta(&self, key: u32) -> Bits {
        let hook = self.place.map(|place| place.hook);
        let name = |leaves| match self.path.device(leaves, hook) {
            Device::Named(name) => Bits::known(padded(name.as_bytes())),
            Device::None => Bits::known(padded(b"")),
            Device::Unknown => Bits::unknown(DEVICE_NAME),
        };
        let index = |leaves| match self.path.device(leaves, hook) {
            Device::Named("lo") => Bits::known(1_u32.to_ne_bytes()),
            Device::None => Bits::known([0; 4]),
            _ => Bits::unknown(4),
        };
        let is_ipv4 = self.path.source.is_ipv4();
        match key {
            NFT_META_PROTOCOL => {
                Bits::known(if is_ipv4 { ETH_P_IP } else { ETH_P_IPV6 }.to_be_bytes())
            }
            NFT_META_MARK => Bits::known([0; 4]),
            NFT_META_IIF => index(false),
            NFT_META_OIF => index(true),
            Expression::META_INPUT => name(false),
            Expression::META_OUTPUT => name(true),
            Expression::META_FAMILY => Bits::known([TableFamily::from(self.path.family()).0]),
            Expression::META_PROTOCOL => self.protocol(),
            _ => Bits::unknown(16),
        }
    }

    fn protocol(&self) -> Bits {
        self.path.flow.map_or_else(|| Bits::unknown(1), |flow| Bits::known([flow.protocol]))
    }

    fn payload(&self, base: u32, offset: u32, length: u32) -> Bits {
        let header = match base {
            Expression::NETWORK_HEADER => self.network_header(),
            Expression::TRANSPORT_HEADER => self.transport_header(),
            _ => Bits::default(),
        };
        let bytes = header.slice(offset as usize, length as usize);
        bytes.unwrap_or_else(|| Bits::unknown(length.min(16) as usize))
    }

    fn network_header(&self) -> Bits {
        // Everything before the addresses but the protocol.
        let (before, at, source) = if self.path.source.is_ipv4() { (9, 10, 12) } else { (6, 7, 8) };
        let mut header = Bits::unknown(before);
        header.append(self.protocol());
        header.append(Bits::unknown(source - at));
        header.append(Bits::of_block(self.path.source));
        header.append(Bits::of_block(self.path.destination));
        header
    }

    fn transport_header(&self) -> Bits {
        let Some(flow) = self.path.flow else { return Bits::default() };
        let [source, destination] = [flow.source_port, flow.destination_port];
        let mut header = Bits::known([source.to_be_bytes(), destination.to_be_bytes()].concat());
        if flow.protocol == TCP {
            header.append(Bits::unknown(9));
            header.append(Bits::known([SYN]));
        }
        header
    }
}

/// What a rule with a verdict map does: what the element says that fits, or nothing.
fn map_rules(number: usize, fits: Ternary, held: &Bits, elements: &[SetElement]) -> Vec<Rule> {
    let mut rules = Vec::new();
    let (mut others, mut catch_all) = (Ternary::True, None);
    for (range, verdict) in ranges(elements) {
        let Some(verdict) = verdict else { continue };
        let Some(range) = range else {
            catch_all = Some(verdict);
            continue;
        };
        let within = within(held, &range);
        others = others.and(within.not_if(true));
        rules.push(Rule { number, fits: fits.and(within), step: step(verdict) });
    }
    let last =
        catch_all.map(|verdict| Rule { number, fits: fits.and(others), step: step(verdict) });
    rules.into_iter().chain(last).filter(|rule| rule.fits != Ternary::False).collect()
}

fn step(verdict: &Verdict) -> Step {
    match verdict {
        Verdict::Accept => Step::Accept,
        Verdict::Drop => Step::Drop,
        Verdict::Goto(chain) => Step::Goto(chain.clone()),
        Verdict::Jump(chain) => Step::Jump(chain.clone()),
        Verdict::Return => Step::Return,
        // A program decides; it would be there to let packets pass.
        Verdict::Other(_) => Step::Accept,
        Verdict::Continue => Step::Continue,
    }
}

fn padded(name: &[u8]) -> Vec<u8> {
    let mut padded = name.to_vec();
    padded.resize(DEVICE_NAME, 0);
    padded
}

/// Expressions that hold for every packet: they change or count something, or load what nobody here knows.
const NO_CONDITIONS: [&str; 24] = [
    "byteorder",
    "counter",
    "ct set",
    "dup",
    "dynset",
    "exthdr",
    "fib",
    "flow_offload",
    "hash",
    "immediate",
    "last",
    "log",
    "map",
    "meta set",
    "notrack",
    "numgen",
    "objref",
    "payload",
    "payload set",
    "rt",
    "socket",
    "tproxy",
    "tunnel",
    "xfrm",
];

/// `IFNAMSIZ` of linux/if.h.
const DEVICE_NAME: usize = 16;
const TCP: u8 = 6;
/// The flag of a segment that begins a connection.
const SYN: u8 = 2;

// linux/if_ether.h
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

// linux/netfilter/nf_conntrack_common.h
/// `NF_CT_STATE_INVALID_BIT`
const INVALID: u32 = 1;
/// `NF_CT_STATE_BIT(IP_CT_NEW)`
const NEW: u32 = 1 << 3;

// linux/netfilter/nf_tables.h
const NFT_CT_STATE: u32 = 0;
const NFT_CT_DIRECTION: u32 = 1;
const NFT_CT_STATUS: u32 = 2;
const NFT_CT_MARK: u32 = 3;
const NFT_META_PROTOCOL: u32 = 1;
const NFT_META_MARK: u32 = 3;
const NFT_META_IIF: u32 = 4;
const NFT_META_OIF: u32 = 5;

#[cfg(test)]
#[path = "nft_rules_tests.rs"]
mod tests;
