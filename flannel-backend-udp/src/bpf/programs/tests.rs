//! The programs judge packets as the userspace engine does, and do the same to them.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
};

use aya::{TestRun, TestRunOptions};
use flannel_testbed::Testbed;
use flannel_tunnel::{
    socket::overhead,
    testing::{arbitrary, input, packets},
    wire::{self, Ip},
};
use proptest::prelude::*;

use super::*;
use crate::{
    config::SourceCheck,
    plan::ForwardingPlan,
    table::Table,
    verdict::{self, DropReason},
};

/// What a program says.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Answer {
    Drop,
    /// The userspace engine gets it.
    Pass,
    Redirect,
}

/// The programs with the maps of a plan.
struct Judge {
    programs: Programs,
    maps: RefCell<Maps>,
    plan: ForwardingPlan,
    answers: RefCell<BTreeMap<(&'static str, Answer), usize>>,
}

impl Judge {
    fn new() -> Self {
        let (programs, mut maps) = load().unwrap();
        let endpoints = [
            ("10.3.1.0/24", "192.0.2.1:8285"),
            ("10.3.2.0/24", "192.0.2.1:8285"),
            ("10.244.1.0/24", "192.0.2.1:9000"),
            ("10.244.2.0/24", "192.0.2.2:8285"),
            ("fd00:1::/32", "[2001:db8::1]:8285"),
            ("fd00:2::/64", "[2001:db8::1]:8285"),
            ("fd00:10:244:1::/64", "[2001:db8::1]:9000"),
            ("fd00:10:244:2::/64", "[2001:db8::2]:8285"),
        ];
        let plan = ForwardingPlan {
            // Sources that packets have: see `encap`.
            local: ["8.0.1.2", "fd00:1:86dd::2"].map(|ip| ip.parse().unwrap()).into(),
            port: 5000,
            in_kernel: ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap()).into(),
            ..ForwardingPlan::to(&endpoints)
        };
        maps.fill(&plan.endpoints, &plan.in_kernel, &mut Changes::default()).unwrap();
        let judge = Self { programs, maps: maps.into(), plan, answers: RefCell::default() };
        judge.configure(SourceCheck::None);
        judge
    }

    /// Sets how sources are checked, and returns the own addresses.
    fn configure(&self, source_check: SourceCheck) -> (Ipv4Addr, Ipv6Addr) {
        let [IpAddr::V4(v4), IpAddr::V6(v6)] = self.plan.local[..] else { unreachable!() };
        let config = Config {
            tunnel: 1,
            source_check,
            has_link_header: true,
            path_mtu_discovery: true,
            ipv4: Some(v4),
            ipv6: Some(v6),
            port: self.plan.port,
        };
        self.maps.borrow_mut().configure(config, &mut Changes::default()).unwrap();
        (v4, v6)
    }

    fn run(&self, name: &'static str, packet: &[u8]) -> (Answer, Vec<u8>) {
        let mut out = vec![0; 8192];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        };
        let program = self.programs._object.program(name).unwrap();
        let program: &SchedClassifier = program.try_into().unwrap();
        let ran = program.test_run(options).unwrap();
        out.truncate(ran.data_size_out as usize);
        let answer = match ran.return_value {
            u32::MAX => Answer::Pass,
            2 => Answer::Drop,
            7 => Answer::Redirect,
            other => panic!("{name} says {other} of {packet:x?}"),
        };
        *self.answers.borrow_mut().entry((name, answer)).or_default() += 1;
        (answer, out)
    }

    /// A packet to pods comes in a datagram of this peer; one byte of the outer headers, if any, is another than programs take.
    fn decap(&self, check: SourceCheck, peer: u8, packet: &[u8], altered: Option<usize>) {
        let plan = ForwardingPlan { source_check: check, ..self.plan.clone() };
        let (local4, local6) = self.configure(check);
        let udp_len = packet.len() as u16 + 8;
        let mut frame = vec![0; 14];
        let (from, fields): (IpAddr, &[(usize, u8)]) = if packet
            .first()
            .is_some_and(|byte| byte >> 4 == 6)
        {
            frame[12..].copy_from_slice(&[0x86, 0xdd]);
            let from = format!("2001:db8::{peer}").parse::<Ipv6Addr>().unwrap();
            frame.extend([0x60, 0, 0, 0]);
            frame.extend(udp_len.to_be_bytes());
            frame.extend([wire::UDP, 64]);
            frame.extend([from.octets(), local6.octets()].concat());
            // Length, protocol, destination, port, length, checksum.
            (from.into(), &[(5, 1), (6, 1), (39, 1), (43, 1), (45, 1), (47, 1)])
        } else {
            frame[12..].copy_from_slice(&[8, 0]);
            let from = Ipv4Addr::new(192, 0, 2, peer);
            frame.extend([0x45, 0]);
            frame.extend((udp_len + 20).to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, wire::UDP, 0, 0]);
            frame.extend([from.octets(), local4.octets()].concat());
            // Options, length, more fragments, offset, protocol, destination, port, length, checksum.
            (
                from.into(),
                &[(0, 3), (3, 1), (6, 0x20), (7, 1), (9, 1), (19, 1), (23, 1), (25, 1), (27, 1)],
            )
        };
        frame.extend([0xd0, 0, (plan.port >> 8) as u8, plan.port as u8]);
        frame.extend(udp_len.to_be_bytes());
        frame.extend([0, 0]);
        let headers = frame.len();
        frame.extend(packet);
        let altered = altered.map(|n| fields[n % fields.len()]);
        if let Some((at, bits)) = altered {
            frame[14 + at] ^= bits;
        }

        let table = Table::new(&plan);
        let judged = verdict::Inbound::new(&table).judge(packet, from).map(|_| ());
        let expected = match judged {
            _ if altered.is_some() || !is_plain(packet) => Answer::Pass,
            Ok(()) => Answer::Redirect,
            Err(DropReason::SpoofedSource | DropReason::UnknownPeer) => Answer::Drop,
            Err(reason) => panic!("{reason:?} for a plain packet: {packet:x?}"),
        };
        let (answer, out) = self.run(DECAP, &frame);
        assert_eq!(answer, expected, "{judged:?}, {altered:?}, from {from}: {packet:x?}");
        if answer == Answer::Redirect {
            let mut packet = packet.to_vec();
            wire::decrement_ttl(&mut packet);
            assert_eq!(out[14..], packet, "of {headers} bytes of headers");
        }
    }

    /// A packet of a pod. The kernel takes its start for a link header, with the type where a part of the source is, and wants an IP
    /// header behind it.
    fn encap(&self, packet: &[u8]) {
        let mut packet = packet.to_vec();
        let is_ipv6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
        if packet.len() < 14 + if is_ipv6 { wire::IPV6_HEADER } else { wire::IPV4_HEADER } {
            return;
        }
        packet[12..14].copy_from_slice(if is_ipv6 { &[0x86, 0xdd] } else { &[8, 0] });
        let table = Table::new(&self.plan);
        let judged =
            verdict::outbound(&packet, &table).map(|(ip, to)| (is_own(&ip, &self.plan), to));
        let expected = match judged {
            Ok((false, to))
                if is_plain(&packet)
                    && self.plan.in_kernel.contains(&to.ip())
                    && packet.len() + overhead(to.ip()) <= 1500 =>
            {
                Answer::Redirect
            }
            _ => Answer::Pass,
        };
        let (answer, out) = self.run(ENCAP, &packet);
        assert_eq!(answer, expected, "{judged:?}: {packet:x?}");
        let (Answer::Redirect, Ok((_, to))) = (answer, judged) else { return };
        let outer = Ip::new_checked(&out[14..]).unwrap();
        assert_eq!((outer.destination(), outer.protocol(), outer.ttl()), (to.ip(), wire::UDP, 64));
        assert!(self.plan.local.contains(&outer.source()));
        let udp = outer.payload();
        assert_eq!(
            (wire::u16_at(udp, 2), usize::from(wire::u16_at(udp, 4)), wire::u16_at(udp, 6)),
            (to.port(), udp.len(), 0)
        );
        if let Ip::V4(v4) = outer {
            assert!(v4.has_right_checksum());
        }
        wire::decrement_ttl(&mut packet);
        // Without a link header, room for the outer headers would be in front of the packet, and not behind these 14 bytes, of which the
        // program writes what a hop alters.
        let altered = if to.is_ipv4() { 8..12 } else { 7..8 };
        assert_eq!(udp[8..][altered.clone()], packet[altered]);
        assert_eq!(udp[8 + 14..], packet[14..]);
    }
}

/// Whether it is a whole packet without options that may pass another router.
fn is_plain(packet: &[u8]) -> bool {
    let ip = Ip::new_checked(packet);
    ip.is_ok_and(|ip| ip.ttl() > 1 && (matches!(ip, Ip::V6(_)) || ip.header_len() == 20))
}

/// Whether it may be a datagram of ours; programs do not look at what is a fragment.
fn is_own(ip: &Ip<'_>, plan: &ForwardingPlan) -> bool {
    let is_own = |payload: &[u8]| payload.len() < 8 || wire::u16_at(payload, 0) == plan.port;
    plan.local.contains(&ip.source()) && ip.protocol() == wire::UDP && is_own(ip.payload())
}

const CHECKS: [SourceCheck; 3] = [SourceCheck::None, SourceCheck::Peer, SourceCheck::Subnet];

#[tokio::test]
#[ignore = "needs root for bpf(2): run ./ci.sh bpf as root"]
async fn programs_and_threads_judge_alike() {
    let testbed = Testbed::new(3).await.unwrap();
    let all = || {
        let judge = Judge::new();
        let seeds = |folder| {
            let folder =
                Path::new(env!("CARGO_MANIFEST_DIR")).join("../flannel-fuzz/seeds").join(folder);
            fs::read_dir(folder).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap())
        };
        let is_small = |packet: &Vec<u8>| packet.len() < MOST;
        let mut packets = packets::captured();
        packets.extend(seeds("from_device").filter_map(|bytes| Some(input::device(&bytes)?.0)));
        packets.extend(
            seeds("from_peers").flat_map(|bytes| input::datagrams(&bytes)).map(|it| it.packet),
        );
        for packet in packets.into_iter().filter(is_small) {
            for check in CHECKS {
                (1..4).for_each(|peer| judge.decap(check, peer, &packet, None));
            }
            (0..9).for_each(|n| judge.decap(SourceCheck::Peer, 1, &packet, Some(n)));
            for at in 0..packet.len().min(48) {
                for value in
                    [0, 1, packet[at].wrapping_add(1), packet[at].wrapping_sub(1), !packet[at]]
                {
                    let mut packet = packet.clone();
                    packet[at] = value;
                    judge.encap(&packet);
                    judge.decap(SourceCheck::Peer, 1, &packet, None);
                    judge.decap(SourceCheck::Subnet, 2, &packet, None);
                }
            }
        }
        let check = proptest::sample::select(&CHECKS[..]);
        let altered = proptest::option::weighted(0.2, 0usize..9);
        proptest!(|(packet in arbitrary::packet(), check in check, peer in 1u8..4, altered in altered)| {
            judge.encap(&packet);
            judge.decap(check, peer, &packet, altered);
        });
        judge.answers.into_inner()
    };
    let answers = testbed.host(2).namespace().run(all).unwrap();
    println!("{answers:?}");
    // All that each may say, often.
    assert_eq!(answers.len(), 5, "{answers:?}");
    assert!(answers.values().all(|count| *count > 20), "{answers:?}");
}

/// What the kernel takes for a trial, bytes.
const MOST: usize = 3500;
