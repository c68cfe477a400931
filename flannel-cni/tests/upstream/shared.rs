//! One folder of addresses that both sides' plugins serve at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    strace::Traced,
    support::{Node, Reply},
    theirs::{Side, absent},
};

/// Numbers that are the same in every run.
struct Lot(u64);

impl Lot {
    fn draw(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

fn config(node: &Node) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "net1", "type": "host-local",
        "ipam": {
            "type": "host-local", "dataDir": node.folder.path().join("networks"),
            "ranges": [[{"subnet": "10.1.2.0/26"}]],
        },
    })
}

/// The files of addresses, with what is in them.
fn files(node: &Node) -> BTreeMap<String, String> {
    let listing = std::fs::read_dir(node.folder.path().join("networks/net1")).unwrap();
    let files = listing.map(|file| {
        let file = file.unwrap();
        let name = file.file_name().into_string().unwrap();
        let content = if name.starts_with("10.") {
            std::fs::read_to_string(file.path()).unwrap()
        } else {
            String::new()
        };
        (name, content)
    });
    files.filter(|(name, _)| name.starts_with("10.")).collect()
}

fn address(result: &Value) -> String {
    let address = result["ips"][0]["address"].as_str().unwrap();
    address.strip_suffix("/26").unwrap().to_owned()
}

fn call(node: &Node, side: Side, verb: &str, id: &str) -> Reply {
    let pod = absent(id);
    let program = side.program(node, "host-local");
    Reply::of(node.start(&[program.to_str().unwrap()], verb, &pod, &config(node), &[]))
}

/// What one worker does: containers come and go, on either side's plugin; ours is killed now and then.
fn work(node: &Node, worker: u64, held: &Mutex<BTreeSet<String>>) -> BTreeMap<String, String> {
    let mut lot = Lot(0x9e37_79b9_7f4a_7c15 ^ (worker + 1));
    let mut own: BTreeMap<String, String> = BTreeMap::new();
    for round in 0..40 {
        let side = if lot.draw(2) == 0 { Side::Ours } else { Side::Theirs };
        let id = format!("c{worker}-{round}");
        match lot.draw(5) {
            // No worker has more than six, so that there is always one left.
            0 | 1 if own.len() < 6 => {
                let address = address(&call(node, side, "ADD", &id).ok());
                assert!(held.lock().unwrap().insert(address.clone()), "{address} was given twice");
                own.insert(id, address);
            }
            2 if own.len() < 6 => {
                let wait = Duration::from_micros(lot.draw(4000));
                kill(node, "ADD", &id, wait);
                // As a runtime does after an ADD that did not end well.
                call(node, side, "DEL", &id).ok();
            }
            number => {
                let Some((id, address)) = own.pop_first() else { continue };
                assert!(held.lock().unwrap().remove(&address));
                if number == 3 {
                    kill(node, "DEL", &id, Duration::from_micros(lot.draw(4000)));
                }
                call(node, side, "DEL", &id).ok();
            }
        }
    }
    own
}

/// Starts ours and kills it after a while.
fn kill(node: &Node, verb: &str, id: &str, wait: Duration) {
    let pod = absent(id);
    let mut child = node.start(&["host-local"], verb, &pod, &config(node), &[]);
    #[expect(clippy::disallowed_methods, reason = "a moment that nobody chose")]
    thread::sleep(wait);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
#[ignore = "needs containernetworking's plugins: run ./ci.sh cni"]
fn no_address_is_given_twice_and_none_is_lost() {
    let node = Node::new();
    let held = Mutex::new(BTreeSet::new());
    let (shared, all) = (&node, &held);
    node.program("host-local");
    let left: Vec<BTreeMap<String, String>> = thread::scope(|scope| {
        let workers: Vec<_> =
            (0..8).map(|worker| scope.spawn(move || work(shared, worker, all))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let expected: BTreeMap<String, String> = left
        .iter()
        .flatten()
        .map(|(id, address)| (address.clone(), format!("{id}\r\neth0")))
        .collect();
    assert!(!expected.is_empty(), "some are left to be compared");
    assert_eq!(files(&node), expected);
    // What is left can be given, all of it, by both.
    for number in expected.len()..61 {
        let side = if number % 2 == 0 { Side::Ours } else { Side::Theirs };
        call(&node, side, "ADD", &format!("last-{number}")).ok();
    }
    for side in [Side::Ours, Side::Theirs] {
        let (_, message) = call(&node, side, "ADD", "one-more").refused();
        assert!(message.contains("no IP addresses available"), "{message}");
    }
    assert_eq!(files(&node).len(), 61);
}

#[test]
#[ignore = "needs containernetworking's plugins and strace: run ./ci.sh cni"]
fn an_add_that_is_killed_at_any_system_call_leaves_nothing() {
    let node = Node::new();
    // What every further call finds.
    let before = address(&call(&node, Side::Theirs, "ADD", "neighbour").ok());
    let (mut ways, mut killed) = (0, 0);
    let (pod, config) = (absent("c1"), config(&node));
    let traced = Traced { node: &node, plugin: "host-local", pod: &pod, config: &config };
    let calls = traced.system_calls();
    call(&node, Side::Ours, "DEL", "c1").ok();
    for (name, count) in calls {
        for nth in 1..=count {
            ways += 1;
            let status = traced.stop_at(&name, nth);
            let what = format!("killed at {name} number {nth}: {status}");
            killed += u32::from(!status.success());
            let side = if ways % 2 == 0 { Side::Ours } else { Side::Theirs };
            match ways % 3 {
                // The runtime repeats it, or gives up.
                0 => {
                    call(&node, side, "DEL", "c1").ok();
                    call(&node, side, "ADD", "c1").ok();
                    assert_eq!(files(&node).len(), 2, "{what}");
                }
                1 => {
                    // Somebody else comes before.
                    let other = address(&call(&node, side, "ADD", "c2").ok());
                    assert_ne!(other, before, "{what}");
                    call(&node, side, "DEL", "c2").ok();
                }
                // Nobody sends DEL.
                _ => {
                    let mut config = config.clone();
                    config["cni.dev/valid-attachments"] =
                        json!([{"containerID": "neighbour", "ifname": "eth0"}]);
                    let pod = absent("");
                    node.run("host-local", "GC", &pod, &config).ok();
                }
            }
            call(&node, Side::Ours, "DEL", "c1").ok();
            let left = files(&node);
            assert!(left.len() == 1 && left.contains_key(&before), "{what}: {left:?}");
        }
    }
    assert!(killed > 30, "{killed} of {ways} system calls");
}
