//! Programs of others that `./ci.sh` built into the target folder of this program.

use std::{env, path::PathBuf};

/// The folder of containernetworking's plugins that `./ci.sh cni` built into the target folder of this program, if it did.
pub fn cni_plugins() -> Option<PathBuf> {
    Some(built("cni/bridge")?.with_file_name(""))
}

/// wireguard-go, which `./ci.sh wireguard_go` built into the target folder of this program, if it did.
pub fn wireguard_go() -> Option<PathBuf> {
    built("wireguard-go/wireguard-go")
}

fn built(name: &str) -> Option<PathBuf> {
    let own = env::current_exe().ok()?;
    own.ancestors().map(|folder| folder.join(name)).find(|path| path.is_file())
}
