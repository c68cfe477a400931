use std::{env, path::PathBuf};

/// The folder of containernetworking's plugins that `./ci.sh cni` built into the target folder of this program, if it did.
pub fn cni_plugins() -> Option<PathBuf> {
    let own = env::current_exe().ok()?;
    own.ancestors().map(|folder| folder.join("cni")).find(|folder| folder.join("bridge").is_file())
}
