use std::net::Ipv4Addr;

use super::*;
use crate::targets::End;

/// A network of so many peers, and what is sent to them.
struct World {
    schedule: Schedule,
    targets: Targets,
    now: Instant,
    nonce: u64,
    sent: Vec<(Instant, Key, Probe)>,
}

impl World {
    fn new(peers: u32, options: Options) -> Self {
        let now = Instant::now();
        let schedule = Schedule::new(options, now);
        let targets = targets(peers);
        let mut world = Self { schedule, targets, now, nonce: 0, sent: Vec::new() };
        world.follow();
        world
    }

    fn follow(&mut self) {
        let mut n = 0;
        self.schedule.follow(&self.targets, self.now, || {
            n += 1;
            f64::from(n % 100) / 100.0
        });
    }

    /// Lets time pass, with answers to what passes.
    fn run(&mut self, time: Duration, passes: impl Fn(&Key, &Probe) -> bool) {
        let end = self.now + time;
        while let Some(next) = self.schedule.next().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            // All that may be sent at once, as a prober does.
            while let Some(send) = self.poll() {
                let Some(send) = send else { continue };
                for probe in &send.probes {
                    self.ask(&send, probe, &passes);
                }
            }
        }
        self.now = end;
    }

    fn poll(&mut self) -> Option<Option<Batch>> {
        let nonce = &mut self.nonce;
        let count = || {
            *nonce += 1;
            *nonce
        };
        self.schedule.poll(self.now, count, || 0.5).map(|(send, _)| send)
    }

    fn ask(&mut self, send: &Batch, probe: &Probe, passes: impl Fn(&Key, &Probe) -> bool) {
        let Probe { layer, nonce, size, .. } = *probe;
        self.sent.push((self.now, send.key, *probe));
        if passes(&send.key, probe) {
            let from = match layer {
                Layer::Underlay => send.target.address,
                Layer::Overlay => send.target.overlay.unwrap(),
            };
            assert!(self.schedule.answered(from, layer, nonce, size, self.now));
        }
    }

    fn mtu(&self, n: u32) -> PathMtu {
        self.schedule.findings()[&key(n)].mtu
    }
}

fn key(n: u32) -> Key {
    (target(n).peer, IpFamily::V4)
}

fn target(n: u32) -> Target {
    let block = Ipv4Addr::from(0x0a00_0000 + (n << 8));
    Target {
        peer: format!("{block}-24").parse().unwrap(),
        address: Ipv4Addr::from(0xc600_0000 + n).into(),
        overlay: Some(block.into()),
    }
}

fn targets(peers: u32) -> Targets {
    let (local, overlay) = ([192, 0, 2, 1].into(), Some([10, 255, 255, 0].into()));
    let end = End { local, overlay, needed: 1500 };
    Targets::new(vec![end], (0..peers).map(target).collect())
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(start_paused = true)]
async fn ten_thousand_peers_are_all_looked_at_within_the_budget() {
    // Half of them answer to nothing, and a tenth loses what is large.
    let mut world = World::new(10_000, Options::default());
    let block = |key: &Key| u32::from(key.0.ipv4().unwrap().network()) >> 8 & 0xffff;
    let passes = |key: &Key, probe: &Probe| match block(key) % 20 {
        0 | 2 => probe.size <= 1400,
        n => n % 2 == 0,
    };
    world.run(2 * HOUR, passes);
    let seconds = 2.0 * HOUR.as_secs_f64();
    let rate = world.sent.len() as f64 / seconds;
    assert!(rate <= 101.0, "{rate} each second");
    let mut most: HashMap<u64, u32> = HashMap::new();
    let start = world.sent[0].0;
    for (at, _, _) in &world.sent {
        *most.entry((*at - start).as_secs()).or_default() += 1;
    }
    assert!(most.values().all(|count| *count <= BURST + 120), "{:?}", most.values().max());
    let findings = world.schedule.findings();
    for n in 0..10_000 {
        let expected = match n % 20 {
            0 | 2 => PathMtu::Less(1400),
            n if n % 2 == 0 => PathMtu::Enough,
            _ => PathMtu::NoAnswer,
        };
        assert_eq!(findings[&key(n)].mtu, expected, "{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_good_way_costs_seven_questions_a_minute_and_one_a_second() {
    let mut world = World::new(1, Options::default());
    world.run(HOUR, |_, _| true);
    let large = world.sent.iter().filter(|(_, _, it)| it.size == 1500).count();
    let small = world.sent.len() - large;
    assert!((6 * 55..=6 * 65).contains(&small), "{small}");
    assert!((3300..=3700).contains(&large), "{large}");
    assert_eq!(world.mtu(0), PathMtu::Enough);
}

#[tokio::test(start_paused = true)]
async fn a_way_that_gets_worse_or_better_is_known_in_four_seconds() {
    let mut world = World::new(50, Options::default());
    world.run(Duration::from_secs(10), |_, _| true);
    for (limit, expected) in [
        (1280, PathMtu::Less(1280)),
        (600, PathMtu::Less(600)),
        (1400, PathMtu::Less(1400)),
        (1500, PathMtu::Enough),
    ] {
        world.run(Duration::from_secs(4), |at, it| *at != key(1) || it.size <= limit);
        let mtus = [0, 1, 2].map(|n| world.mtu(n));
        assert_eq!(mtus, [PathMtu::Enough, expected, PathMtu::Enough]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_that_asks_is_looked_at_soon() {
    let mut world = World::new(1, Options { interval: HOUR, ..Options::default() });
    world.run(Duration::from_secs(10), |_, _| false);
    assert_eq!(world.mtu(0), PathMtu::NoAnswer);
    let from = target(0).address;
    assert!(world.schedule.may_reply(from, Layer::Underlay, world.now, || 0.9));
    world.run(Duration::from_secs(3), |_, _| true);
    assert_eq!(world.mtu(0), PathMtu::Enough);
}

#[tokio::test(start_paused = true)]
async fn strangers_are_not_answered_and_peers_not_without_end() {
    let mut world = World::new(1, Options::default());
    let now = world.now;
    let stranger: IpAddr = [203, 0, 113, 1].into();
    assert!(!world.schedule.may_reply(stranger, Layer::Underlay, now, || 0.5));
    let target = target(0);
    assert!(!world.schedule.may_reply(target.address, Layer::Overlay, now, || 0.5), "crossed");
    let mut answers = 0;
    for n in 0..100_000 {
        let now = now + Duration::from_micros(100 * n);
        answers +=
            u32::from(world.schedule.may_reply(target.address, Layer::Underlay, now, || 0.5));
    }
    let most = MOST_ANSWERS + 10 * ANSWERS_PER_SECOND;
    assert!((most - 2..=most + 2).contains(&answers), "{answers} in ten seconds");
}

#[tokio::test(start_paused = true)]
async fn what_is_known_outlives_changes_of_other_peers() {
    let mut world = World::new(3, Options::default());
    world.run(Duration::from_secs(20), |_, it| it.size <= 1400);
    let asked = world.sent.len();
    world.targets.peers.remove(2);
    world.targets.peers[1].address = [203, 0, 113, 9].into();
    world.follow();
    assert_eq!(world.mtu(0), PathMtu::Less(1400));
    assert_eq!(world.mtu(1), PathMtu::Unknown, "another address is another way");
    assert!(!world.schedule.findings().contains_key(&key(2)));
    let old = target(1).address;
    assert!(!world.schedule.may_reply(old, Layer::Underlay, world.now, || 0.5));
    world.run(Duration::from_secs(10), |_, _| true);
    assert!(world.sent[asked..].iter().all(|(_, at, _)| *at != key(2)));
    world.targets.ends[0].needed = 1400;
    world.follow();
    world.run(Duration::from_secs(10), |_, it| it.size <= 1400);
    assert_eq!(world.mtu(0), PathMtu::Enough);
}
