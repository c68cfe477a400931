//! Notices a flanneld that runs on this host too: both would take the same lease from each other, again and again.

use std::{fs, path::Path, time::Duration};

use tokio::time::sleep;
use tracing::{info, warn};

/// Says once when a flanneld is seen in the network namespace where a socket has this abstract name, and when it is gone.
pub(crate) async fn watch(socket: String) {
    let mut seen = None;
    loop {
        let found = find(Path::new("/proc"), &socket);
        match (seen, found) {
            (None, Some(process)) => warn!(
                process,
                "flanneld runs on this host too, and both take the lease from each other: stop one of them"
            ),
            (Some(_), None) => info!("no flanneld runs on this host any more"),
            _ => {}
        }
        seen = found;
        sleep(LOOK).await;
    }
}

/// The process number of a flanneld in that namespace. Which one a process is in tells the list of sockets that it sees: the link
/// in `ns` takes rights that a node gives up.
fn find(proc: &Path, socket: &str) -> Option<u32> {
    let processes = fs::read_dir(proc).ok()?.flatten();
    let mut numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.find(|process: &u32| {
        let read = |name| fs::read_to_string(proc.join(process.to_string()).join(name));
        read("comm").is_ok_and(|comm| comm.trim_end() == FLANNELD)
            && read("net/unix").is_ok_and(|sockets| {
                let names = sockets.lines().filter_map(|line| line.split_once('@'));
                names.into_iter().any(|(_, name)| name == socket)
            })
    })
}

const FLANNELD: &str = "flanneld";
/// How often processes are looked at.
const LOOK: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flanneld_counts_that_sees_our_socket() {
        let folder = tempfile::tempdir().unwrap();
        let process = |number: u32, comm: &str, socket: &str| {
            let path = folder.path().join(number.to_string());
            fs::create_dir_all(path.join("net")).unwrap();
            fs::write(path.join("comm"), format!("{comm}\n")).unwrap();
            let line = format!("0000: 00000002 00000000 00010000 0001 01 4711 {socket}\n");
            fs::write(path.join("net/unix"), line).unwrap();
        };
        let find = || find(folder.path(), "flannel-node/1");
        process(7, "flannel-node", "@flannel-node/1");
        process(8, "flanneld", "@flannel-node/12");
        fs::write(folder.path().join("version"), "x").unwrap();
        assert_eq!(find(), None, "that one is in another namespace");
        process(9, "flanneld", "@flannel-node/1");
        assert_eq!(find(), Some(9));
    }
}
