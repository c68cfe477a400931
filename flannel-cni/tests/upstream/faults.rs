//! Folders of addresses that are full, read-only or in disorder.

use std::{fs, os::unix::fs::symlink, path::Path};

use serde_json::{Value, json};

use crate::{
    support::{Node, Reply, program},
    theirs::absent,
};

fn config(node: &Node) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "net1", "type": "host-local",
        "ipam": {
            "type": "host-local", "dataDir": node.folder.path().join("networks"),
            "ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]],
        },
    })
}

fn call(node: &Node, verb: &str, id: &str) -> Reply {
    node.run("host-local", verb, &absent(id), &config(node))
}

fn addresses(folder: &Path) -> Vec<String> {
    let names =
        fs::read_dir(folder).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> =
        names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect();
    names.sort();
    names
}

/// Makes something that no plugin has there.
fn make(kind: &str, path: &Path) {
    match kind {
        "folder" => fs::create_dir(path),
        "link to nowhere" => symlink("/nowhere", path),
        "link to itself" => symlink(path, path),
        "bytes" => fs::write(path, [0xff, 0, 0xfe]),
        _ => fs::write(path, vec![b'x'; 1 << 20]),
    }
    .unwrap();
}

/// The networks' folder as a file system of its own, until this is dropped.
struct Small<'a>(&'a Node);

impl<'a> Small<'a> {
    fn mount(node: &'a Node, options: &str) -> Self {
        let folder = node.folder.path().join("networks");
        fs::create_dir_all(&folder).unwrap();
        let folder = folder.to_str().unwrap();
        let words = ["-t", "tmpfs", "-o", options, "none", folder];
        program(&node.host, Path::new("mount"), &words);
        Self(node)
    }

    fn remount(&self, options: &str) {
        let folder = self.0.folder.path().join("networks");
        let words = ["-o", &format!("remount,{options}"), folder.to_str().unwrap()];
        program(&self.0.host, Path::new("mount"), &words);
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let folder = self.0.folder.path().join("networks");
        program(&self.0.host, Path::new("umount"), &[folder.to_str().unwrap()]);
    }
}

#[test]
#[ignore = "needs CAP_SYS_ADMIN to mount: run ./ci.sh cni"]
fn a_full_disk_refuses_pods_and_loses_no_address() {
    // Files are what runs out, then room.
    for options in ["nr_inodes=14", "nr_inodes=17", "nr_inodes=22", "size=16k", "size=28k"] {
        let node = Node::new();
        let _small = Small::mount(&node, options);
        let mut given = Vec::new();
        let refused = (0..200).find_map(|number| {
            let id = format!("c{number}");
            let reply = call(&node, "ADD", &id);
            if reply.fine {
                given.push(id);
                return None;
            }
            Some(reply)
        });
        let (code, message) = refused.expect("it is full").refused();
        assert_eq!(code, 5, "{message}");
        assert!(message.contains("No space left on device"), "{options}: {message}");
        // Whoever was refused has nothing, in either family.
        let folder = node.folder.path().join("networks/net1");
        if folder.exists() {
            assert_eq!(addresses(&folder).len(), 2 * given.len(), "{options}");
        }
        for id in &given {
            call(&node, "DEL", id).ok();
        }
        if folder.exists() {
            assert_eq!(addresses(&folder), [""; 0], "{options}");
        }
    }
}

#[test]
#[ignore = "needs CAP_SYS_ADMIN to mount: run ./ci.sh cni"]
fn a_read_only_disk_is_named_and_what_it_has_stays() {
    let node = Node::new();
    let small = Small::mount(&node, "size=1m");
    call(&node, "ADD", "c1").ok();
    small.remount("ro");
    for verb in ["ADD", "DEL"] {
        let (code, message) = call(&node, verb, "c1").refused();
        assert_eq!(code, 5, "{message}");
        assert!(message.contains("Read-only file system"), "{message}");
        assert!(message.contains("networks/net1"), "{message}");
    }
    small.remount("rw");
    call(&node, "DEL", "c1").ok();
    assert_eq!(addresses(&node.folder.path().join("networks/net1")), [""; 0]);
}

#[test]
#[ignore = "beside those that need more: run ./ci.sh cni"]
fn garbage_costs_itself() {
    let names = [
        "net1/10.1.2.2",
        "net1/fd00:1::2",
        "net1/fd00:1:0::2",
        "net1/10.1.2.999",
        "net1/x\ny",
        "net1/lost+found",
        "net1/last_reserved_ip.0",
        "net1/last_reserved_ip.1",
        ".flannel-cni/net1/state",
        ".flannel-cni/net1/taken.4",
        ".flannel-cni/net1/owners/c1:eth0",
        ".flannel-cni/net1/owners/x",
        ".flannel-cni/net1/x",
    ];
    for name in names {
        for kind in ["folder", "link to nowhere", "link to itself", "bytes", "large"] {
            let node = Node::new();
            let path = node.folder.path().join("networks").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            make(kind, &path);
            let what = format!("{name} is a {kind}");
            let added = call(&node, "ADD", "c1");
            if !added.fine {
                // Only what has to be written, and cannot be.
                let blocked = name.contains("last_reserved_ip") || name.contains("flannel-cni");
                let (code, message) = added.refused();
                assert!(blocked && code == 5 && message.contains("cannot "), "{what}: {message}");
                fs::remove_dir(&path).or_else(|_| fs::remove_file(&path)).unwrap();
                call(&node, "ADD", "c1").ok();
            }
            let folder = node.folder.path().join("networks/net1");
            let of_c1 = || {
                let files = addresses(&folder).into_iter();
                files
                    .filter(|it| fs::read(folder.join(it)).is_ok_and(|text| text == b"c1\r\neth0"))
                    .count()
            };
            assert_eq!(of_c1(), 2, "{what}");
            call(&node, "ADD", "c2").ok();
            call(&node, "DEL", "c1").ok();
            assert_eq!(of_c1(), 0, "{what}");
        }
    }
}
