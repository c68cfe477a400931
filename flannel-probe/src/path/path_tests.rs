use proptest::prelude::*;

use super::*;

const HEADERS: u32 = 28;
const SMALL: u32 = HEADERS + HEADER as u32;

/// A network that does what a test says.
#[derive(Clone, Copy, Debug)]
struct Way {
    is_up: bool,
    mtu: u32,
    /// The layer on which checksums that are left to others are damaged.
    corrupts: Option<Layer>,
}

const GOOD: Way = Way { is_up: true, mtu: 1500, corrupts: None };

impl Way {
    fn carries(self, probe: &Probe) -> bool {
        let damaged = probe.checksum == Checksum::Offloaded && self.corrupts == Some(probe.layer);
        self.is_up && probe.size <= self.mtu && !damaged
    }
}

/// Runs a full round and says how many probes it took.
fn round(path: &mut Path, carries: impl FnMut(&Probe) -> bool) -> (usize, Step) {
    run(path, RoundKind::Full, carries)
}

fn run(path: &mut Path, kind: RoundKind, mut carries: impl FnMut(&Probe) -> bool) -> (usize, Step) {
    let (mut nonce, mut sent) = (0, 0);
    loop {
        let probes = path.next_probes(kind, || {
            nonce += 1;
            nonce
        });
        sent += probes.len();
        for probe in &probes {
            if carries(probe) {
                assert!(path.answered(probe.nonce, probe.layer, probe.size));
                assert!(!path.answered(probe.nonce, probe.layer, probe.size), "twice");
            }
        }
        match path.conclude() {
            Step::Continue => {}
            step => return (sent, step),
        }
    }
}

fn path(overlay: bool) -> Path {
    Path::new(HEADERS, 1500, overlay)
}

#[test]
fn a_good_way_takes_seven_questions() {
    let mut path = path(true);
    assert_eq!(round(&mut path, |it| GOOD.carries(it)), (7, Step::Done));
    let (mtu, underlay, overlay) = (PathMtu::Enough, Checksums::Intact, Checksums::Intact);
    assert_eq!(path.known(), Known { mtu, underlay, overlay });
}

#[test]
fn a_silent_peer_gets_three_probes_and_its_path_stays_unknown() {
    let mut path = path(true);
    assert_eq!(round(&mut path, |_| false), (6, Step::Done));
    assert_eq!(path.known(), Known { mtu: PathMtu::NoAnswer, ..Known::default() });
    round(&mut path, |it| GOOD.carries(it));
    round(&mut path, |_| false);
    let (mtu, intact) = (PathMtu::NoAnswer, Checksums::Intact);
    assert_eq!(path.known(), Known { mtu, underlay: intact, overlay: intact });
}

#[test]
fn corruption_counts_in_the_second_round_and_only_on_its_layer() {
    let (intact, corrupted) = (Checksums::Intact, Checksums::Corrupted);
    for layer in [Layer::Underlay, Layer::Overlay] {
        let way = Way { corrupts: Some(layer), ..GOOD };
        let mut path = path(true);
        assert_eq!(round(&mut path, |it| way.carries(it)).1, Step::Recheck);
        let known = path.known();
        assert!(known.underlay != corrupted && known.overlay != corrupted);
        assert_eq!(round(&mut path, |it| way.carries(it)).1, Step::Recheck, "it may be repaired");
        assert_eq!(round(&mut path, |it| way.carries(it)).1, Step::Done);
        let expected = match layer {
            Layer::Underlay => (corrupted, intact),
            Layer::Overlay => (intact, corrupted),
        };
        assert_eq!((path.known().underlay, path.known().overlay), expected);
        assert_eq!(path.known().mtu, PathMtu::Enough);
        round(&mut path, |it| GOOD.carries(it));
        assert_eq!((path.known().underlay, path.known().overlay), (intact, intact));
    }
}

#[test]
fn a_way_that_is_cut_while_it_is_looked_at_is_not_accused() {
    for answered in [2, 3] {
        let mut path = path(true);
        for _ in 0..4 {
            let (mut left, mut reached) = (answered, [false; 2]);
            round(&mut path, |probe| {
                // Both baseline probes, and at most one more in all.
                let first = !std::mem::replace(&mut reached[probe.layer as usize], true);
                let passes = left > 0 && (first || probe.checksum == Checksum::Computed);
                left -= i32::from(passes);
                passes
            });
            assert_eq!(path.known(), Known::default(), "{answered}");
        }
    }
}

#[test]
fn a_known_limit_is_looked_at_and_not_searched_again() {
    let (small, mut path) = (Way { mtu: 1400, ..GOOD }, path(false));
    round(&mut path, |it| small.carries(it));
    assert_eq!(path.known().mtu, PathMtu::Less(1400));
    let (sent, _) = round(&mut path, |it| small.carries(it));
    assert!(sent <= 12, "{sent}");
    assert_eq!(path.known().mtu, PathMtu::Less(1400));
    for mtu in [1401, 1300, 1499] {
        let other = Way { mtu, ..GOOD };
        round(&mut path, |it| other.carries(it));
        assert_eq!(path.known().mtu, PathMtu::Less(mtu));
    }
    round(&mut path, |it| GOOD.carries(it));
    assert_eq!(path.known().mtu, PathMtu::Enough);
}

#[test]
fn a_confirmation_takes_one_probe_while_what_is_known_holds() {
    let mut path = path(true);
    round(&mut path, |it| GOOD.carries(it));
    assert_eq!(run(&mut path, RoundKind::Confirm, |it| GOOD.carries(it)), (1, Step::Done));
    for mtu in [1280, 1400, 1399, 1499, 1500] {
        let way = Way { mtu, ..GOOD };
        let expected = if mtu < 1500 { PathMtu::Less(mtu) } else { PathMtu::Enough };
        run(&mut path, RoundKind::Confirm, |it| way.carries(it));
        assert_eq!(path.known().mtu, expected);
        let (sent, step) = run(&mut path, RoundKind::Confirm, |it| way.carries(it));
        assert!(sent <= 3 && step == Step::Done, "{sent} {step:?}");
        assert_eq!(path.known().mtu, expected);
    }
}

#[test]
fn a_confirmation_of_a_path_that_is_down_says_nothing() {
    let mut path = path(true);
    round(&mut path, |it| GOOD.carries(it));
    let known = path.known();
    let (sent, step) = run(&mut path, RoundKind::Confirm, |_| false);
    assert!(sent <= 7 && step == Step::Done, "{sent} {step:?}");
    assert_eq!(path.known(), known);
}

#[test]
fn what_the_kernel_refuses_needs_no_waiting() {
    let mut path = path(false);
    let mut nonce = 0;
    let mut attempts = 0;
    loop {
        attempts += 1;
        for probe in path.next_probes(RoundKind::Full, || {
            nonce += 1;
            nonce
        }) {
            if probe.size <= 1400 {
                path.answered(probe.nonce, probe.layer, probe.size);
            } else {
                path.refused(probe.nonce);
            }
        }
        assert!(path.is_settled());
        if path.conclude() == Step::Done {
            break;
        }
    }
    assert_eq!(path.known().mtu, PathMtu::Less(1400));
    assert!(attempts <= 6, "{attempts}");
}

#[test]
fn answers_to_other_questions_are_nobodys() {
    let mut path = path(true);
    assert!(!path.answered(1, Layer::Underlay, SMALL), "nothing was sent");
    let probes = path.next_probes(RoundKind::Full, || 7);
    assert_eq!(probes.len(), 2);
    assert!(!path.answered(8, Layer::Underlay, SMALL), "another number");
    assert!(!path.answered(7, Layer::Underlay, SMALL + 1), "another size");
    assert!(path.answered(7, Layer::Overlay, SMALL));
}

/// Three lost of three while most baseline probes pass, twice in a row, does not come about.
#[test]
fn loss_alone_accuses_no_way() {
    let (mut path, mut seed, mut suspected) = (path(true), 1_u64, 0);
    for _ in 0..100_000 {
        let (sent, step) = round(&mut path, |_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // A twentieth is lost.
            (seed >> 33) % 20 > 0
        });
        assert!(sent <= 125, "{sent} probes");
        suspected += usize::from(step == Step::Recheck);
        let Known { mtu, underlay, overlay } = path.known();
        assert!(underlay != Checksums::Corrupted && overlay != Checksums::Corrupted);
        assert!(!matches!(mtu, PathMtu::Less(_)), "{mtu:?}");
    }
    assert!(suspected > 10, "{suspected} rounds lost all of one kind");
}

proptest! {
    #[test]
    fn the_limit_of_any_way_is_found_with_few_questions(mtu in SMALL..9100, needed in 576_u32..9001) {
        let mut path = Path::new(HEADERS, needed, false);
        let way = Way { mtu, ..GOOD };
        let (sent, _) = round(&mut path, |it| way.carries(it));
        let expected = if mtu < needed { PathMtu::Less(mtu) } else { PathMtu::Enough };
        prop_assert_eq!(path.known().mtu, expected);
        prop_assert!(sent <= 125, "{} probes", sent);
    }

    #[test]
    fn every_round_ends_whatever_comes_back(
        answers in prop::collection::vec(0_u8..3, 600),
        needed in 60_u32..65_000,
        overlay: bool,
        known in prop_oneof![Just(PathMtu::Unknown), Just(PathMtu::Enough), (52_u32..65_000).prop_map(PathMtu::Less)],
    ) {
        let (mut path, mut answers) = (Path::new(HEADERS, needed, overlay), answers.into_iter());
        path.known.mtu = known;
        let (mut nonce, mut sent) = (0, 0);
        for _ in 0..100 {
            let probes = path.next_probes(RoundKind::Confirm, || { nonce += 1; nonce });
            sent += probes.len();
            for probe in &probes {
                match answers.next() {
                    Some(0) => drop(path.answered(probe.nonce, probe.layer, probe.size)),
                    Some(1) => path.refused(probe.nonce),
                    _ => {}
                }
            }
            if path.conclude() != Step::Continue {
                break;
            }
        }
        prop_assert!(!path.is_probing());
        prop_assert!(sent <= 160, "{} probes", sent);
    }
}
