//! `nft` as a program, for rules that a configuration has in its language.

use std::{io::Write, path::PathBuf, process::Stdio};

use flannel_firewall::iptables::find_program;
use flannel_netlink::Namespace;

use crate::{
    protocol::{Code, Error},
    sandbox::chain,
};

/// Where it is.
pub(crate) fn find() -> Result<PathBuf, Error> {
    find_program("nft").ok_or_else(|| {
        failed("failed to locate nft")
            .with_details("install it: it reads conditions of the configuration")
    })
}

/// Does all that `script` says or nothing.
pub(crate) async fn run(host: &Namespace, script: String) -> Result<(), Error> {
    let (host, program) = (host.clone(), find()?);
    let work = move || {
        let started = host.run(|| {
            #[expect(clippy::disallowed_methods, reason = "its language is what nft alone knows")]
            let mut command = std::process::Command::new(program);
            command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null());
            command.stderr(Stdio::piped()).spawn()
        });
        let mut child = started
            .map_err(|error| failed(&chain(&error)))?
            .map_err(|error| failed(&format!("cannot run nft: {error}")))?;
        if let Some(mut input) = child.stdin.take() {
            // Who does not read to the end says why on standard error.
            let _ = input.write_all(script.as_bytes());
        }
        let output = child.wait_with_output();
        let output = output.map_err(|error| failed(&format!("cannot run nft: {error}")))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(failed(&format!("nft says: {}", said.trim().replace('\n', "; "))))
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| failed(&format!("cannot run nft: {error}")))?
}

fn failed(why: &str) -> Error {
    Error::new(Code::Kernel, format!("unable to set up nftables rules: {why}"))
}
