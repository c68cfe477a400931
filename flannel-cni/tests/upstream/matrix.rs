//! A table of calls, each played by either side alone and by both in turns.

use std::{fs, path::Path, ptr, thread};

use serde_json::{Value, json};

use crate::{
    explained::{self, Explained},
    observed::Observed,
    support::{Node, Pod, Reply, program},
    theirs::{Side, absent},
};

/// One row: what a runtime does on a node.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) config: Value,
    pub(crate) steps: Vec<Step>,
}

/// One thing that is done, or found to have been done.
#[derive(Clone)]
pub(crate) enum Step {
    /// A call for the container of this name.
    Call(&'static str, &'static str),
    /// The same with `CNI_ARGS`.
    CallWith(&'static str, &'static str, &'static str),
    /// `ip` with these arguments, on the node or in the container of this name.
    Ip(&'static str, &'static str),
    /// Another program with its arguments, on the node.
    Run(&'static str),
    /// A file below the networks' folder.
    Write(&'static str, &'static str),
    /// The container's namespace is not there any more.
    Gone(&'static str),
}

/// Who does what.
#[derive(Clone, Copy, Debug)]
enum Cast {
    Theirs,
    Ours,
    OursThenTheirs,
    TheirsThenOurs,
}

impl Cast {
    fn of(self, verb: &str) -> Side {
        match (self, verb) {
            (Self::Theirs, _) | (Self::OursThenTheirs, "CHECK" | "DEL" | "GC" | "STATUS") => {
                Side::Theirs
            }
            (Self::TheirsThenOurs, "ADD") => Side::Theirs,
            (Self::Ours | Self::OursThenTheirs | Self::TheirsThenOurs, _) => Side::Ours,
        }
    }
}

/// Plays all cases. Whatever differs has to be explained, and every explanation of `group` alone has to be needed.
#[track_caller]
pub(crate) fn compare(group: &str, cases: &[Case]) {
    // Most of the time is the kernel's, for namespaces that come and go.
    let work = |worker| {
        let own = cases.iter().skip(worker).step_by(WORKERS);
        own.flat_map(|case| differences(group, case)).collect()
    };
    let work = &work;
    let found: Vec<Vec<Option<&Explained>>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|it| scope.spawn(move || work(it))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let found = found.concat();
    let unexplained = found.iter().filter(|it| it.is_none()).count();
    assert_eq!(unexplained, 0, "differences that are not explained; they are above");
    let is_used = |row: &&Explained| found.iter().flatten().any(|it| ptr::eq(*it, *row));
    let of_group = explained::of_group(group).filter(|row| !row.is_of_all_groups());
    let unused: Vec<&Explained> = of_group.filter(|row| !is_used(row)).collect();
    assert!(unused.is_empty(), "these differences are gone: {unused:#?}");
}

/// What explains each difference of a case. Those that nothing explains are printed.
fn differences(group: &str, case: &Case) -> Vec<Option<&'static Explained>> {
    let theirs = play(case, Cast::Theirs);
    let mut found = Vec::new();
    let mut printed = 0;
    for cast in [Cast::Ours, Cast::OursThenTheirs, Cast::TheirsThenOurs] {
        for ((step, ours), (_, theirs)) in play(case, cast).iter().zip(&theirs) {
            for difference in theirs.differences(ours) {
                let explained = explained::find(group, &case.name, step, &difference);
                if explained.is_none() && printed < MOST_PRINTED {
                    printed += 1;
                    eprintln!("{} | {cast:?} | {step} | {difference}", case.name);
                }
                found.push(explained);
            }
        }
    }
    found
}

/// What is seen after each call.
fn play(case: &Case, cast: Cast) -> Vec<(String, Observed)> {
    let node = Node::new();
    let plugin = case.config["type"].as_str().unwrap();
    let with_kernel = plugin != "host-local";
    let mut pods = ["c1", "c2"].map(|id| match with_kernel {
        true => Pod::new(id),
        false => absent(id),
    });
    let mut results: [Option<Value>; 2] = [None, None];
    let mut seen = Vec::new();
    for (number, step) in case.steps.iter().enumerate() {
        let position = |name: &str| usize::from(name == "c2");
        let (verb, name, arguments) = match step {
            Step::Call(verb, name) => (*verb, *name, ""),
            Step::CallWith(verb, name, arguments) => (*verb, *name, *arguments),
            Step::Ip(side, arguments) => {
                let namespace = match *side {
                    "host" => &node.host,
                    name => &pods[position(name)].namespace,
                };
                let words: Vec<&str> = arguments.split(' ').collect();
                program(namespace, Path::new("ip"), &words);
                continue;
            }
            Step::Run(words) => {
                let words: Vec<&str> = words.split(' ').collect();
                program(&node.host, Path::new(words[0]), &words[1..]);
                continue;
            }
            Step::Write(path, content) => {
                let path = node.folder.path().join("networks").join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
                continue;
            }
            Step::Gone(name) => {
                pods[position(name)].netns = Some("/run/netns/is-not-there".to_owned());
                continue;
            }
        };
        let pod = position(name);
        let mut config = in_folder(&case.config, &node);
        if verb != "ADD"
            && verb != "GC"
            && let Some(result) = &results[pod]
        {
            config["prevResult"] = result.clone();
        }
        if verb == "GC" {
            config["cni.dev/valid-attachments"] = json!([{"containerID": name, "ifname": "eth0"}]);
        }
        let program = cast.of(verb).program(&node, plugin);
        let variables = [("CNI_ARGS", arguments)];
        let variables = if arguments.is_empty() { &[][..] } else { &variables };
        let words = [program.to_str().unwrap()];
        let reply = Reply::of(node.start(&words, verb, &pods[pod], &config, variables));
        if verb == "ADD" && reply.fine {
            results[pod] = Some(reply.json.clone());
        }
        let observed = Observed::of(&node, &pods[pod], &reply, with_kernel);
        seen.push((format!("{number} {verb} {name}"), observed));
    }
    seen
}

/// Has the configuration keep its files in the node's folder.
fn in_folder(config: &Value, node: &Node) -> Value {
    let folder = node.folder.path().to_str().unwrap();
    serde_json::from_str(&config.to_string().replace("FOLDER", folder)).unwrap()
}

const WORKERS: usize = 4;
/// Of the differences of one case: what follows from them is not of interest.
const MOST_PRINTED: usize = 5;
