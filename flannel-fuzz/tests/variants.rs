//! All targets over their seeds and over variants of those: without libFuzzer, on every machine.
//!
//! `PROPTEST_CASES=n` says how many variants of each seed there are.

use std::{fs, path::Path, thread};

use flannel_fuzz::{TARGETS, Target};
use proptest::{prelude::*, sample::Index};

/// One change of a text.
#[derive(Clone, Debug)]
enum Edit {
    /// A byte becomes another.
    Byte(Index, u8),
    /// Another case of a letter.
    Case(Index),
    /// A part is there twice.
    Double(Index, u8),
    /// The rest is missing.
    Cut(Index),
    /// A word of the language is put in.
    Insert(Index, Index),
    /// A part is missing.
    Remove(Index, u8),
    /// A number, a name or an address becomes a word of the language.
    Replace(Index, Index),
    /// The end of another seed follows.
    Splice(Index, Index),
}

/// What these texts are made of, and what is close to a limit.
const WORDS: [&[u8]; 44] = [
    b"null",
    b"true",
    b"false",
    b"{",
    b"}",
    b"[",
    b"]",
    b"{}",
    b"\"",
    b"\"\"",
    b",",
    b":",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"\0",
    b"\xff",
    b"\n",
    b" ",
    b"#",
    b"=",
    b"export ",
    b"-",
    b"&",
    b"/",
    b"0",
    b"-1",
    b"1.5",
    b"1e400",
    b"31",
    b"32",
    b"33",
    b"127",
    b"128",
    b"255",
    b"4294967296",
    b"18446744073709551616",
    b"0.0.0.0",
    b"255.255.255.255",
    b"::",
    b"::ffff:10.0.0.0",
    b"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    b"Network",
    b"9999-12-31T23:59:60Z",
];

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<Index>;
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Edit::Byte(at, byte)),
        at().prop_map(Edit::Case),
        (at(), any::<u8>()).prop_map(|(at, len)| Edit::Double(at, len)),
        at().prop_map(Edit::Cut),
        (at(), at()).prop_map(|(at, word)| Edit::Insert(at, word)),
        (at(), 0u8..16).prop_map(|(at, len)| Edit::Remove(at, len)),
        (at(), at()).prop_map(|(at, word)| Edit::Replace(at, word)),
        (at(), at()).prop_map(|(at, word)| Edit::Replace(at, word)),
        (at(), at()).prop_map(|(from, at)| Edit::Splice(from, at)),
    ]
}

fn apply(text: &mut Vec<u8>, edit: &Edit, seeds: &[Vec<u8>]) {
    let end = text.len();
    let place = |at: &Index| at.index(end + 1);
    let span = |at: &Index, len: u8| place(at)..(place(at) + usize::from(len)).min(end);
    match edit {
        Edit::Byte(at, _) | Edit::Case(at) if place(at) == end => {}
        Edit::Byte(at, byte) => text[place(at)] = *byte,
        Edit::Case(at) => text[place(at)] ^= 0x20,
        Edit::Double(at, len) => {
            let part = text[span(at, *len)].to_vec();
            text.splice(place(at)..place(at), part);
        }
        Edit::Cut(at) => text.truncate(place(at)),
        Edit::Insert(at, word) => {
            text.splice(place(at)..place(at), word.get(&WORDS).iter().copied());
        }
        Edit::Remove(at, len) => drop(text.drain(span(at, *len))),
        Edit::Replace(at, word) => {
            let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || b".:".contains(byte);
            let from =
                text[..place(at)].iter().rposition(|byte| !is_word(byte)).map_or(0, |n| n + 1);
            let len = text[from..].iter().take_while(|byte| is_word(byte)).count();
            text.splice(from..from + len, word.get(&WORDS).iter().copied());
        }
        Edit::Splice(seed, at) => {
            let other = seed.get(seeds);
            text.extend_from_slice(&other[at.index(other.len() + 1)..]);
        }
    }
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn every_target_has_seeds() {
    for Target { name, check } in TARGETS {
        let seeds = seeds(name);
        assert!(seeds.len() >= 4, "{name}");
        seeds.iter().for_each(|seed| check(seed));
    }
}

#[test]
fn whatever_becomes_of_a_text_its_parser_copes_with_it() {
    let try_variants = |Target { name, check }: Target| {
        let seeds = seeds(name);
        for seed in &seeds {
            let edits = proptest::collection::vec(edit(), 1..8);
            proptest!(|(edits in edits)| {
                let mut text = seed.clone();
                edits.iter().for_each(|edit| apply(&mut text, edit, &seeds));
                check(&text);
            });
        }
    };
    thread::scope(|scope| {
        for target in TARGETS {
            scope.spawn(move || try_variants(target));
        }
    });
}
