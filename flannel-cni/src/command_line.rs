//! The command line, for calls without a runtime's environment.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
    time::SystemTime,
};

use flannel_cni::{
    Installed, Plugin, install, list,
    protocol::{Verb, Version},
    uninstall,
};

use crate::by_hand;

/// Does what the arguments say.
pub(crate) fn run(arguments: &[String]) -> ExitCode {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["add", ref options @ ..] => by_hand::run(Verb::Add, options),
        ["del", ref options @ ..] => by_hand::run(Verb::Del, options),
        ["install", folder] => install_into(Path::new(folder), &[]),
        ["install", "--replace", folder] => install_into(Path::new(folder), &Plugin::ALL),
        ["install", option, folder] if option.starts_with("--replace=") => {
            plugins(&option["--replace=".len()..])
                .and_then(|these| install_into(Path::new(folder), &these))
        }
        ["list"] => list(Path::new(NETWORKS), Path::new(RESULTS), SystemTime::now())
            .map_err(|error| chain(&error)),
        ["list", folder] => list(Path::new(folder), Path::new(RESULTS), SystemTime::now())
            .map_err(|error| chain(&error)),
        ["uninstall", folder] => {
            uninstall(Path::new(folder)).map(|done| report(&done)).map_err(|error| chain(&error))
        }
        [] => {
            eprintln!("{}", usage());
            return ExitCode::SUCCESS;
        }
        ["--version" | "-V"] => Ok(format!("flannel-cni {}\n", env!("CARGO_PKG_VERSION"))),
        ["--help" | "-h"] => Ok(usage() + "\n"),
        _ => {
            eprintln!("{}", usage());
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(text) => {
            // Whoever does not read any more has seen enough.
            let _ = io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("flannel-cni: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Plugins by their names, which commas separate.
fn plugins(names: &str) -> Result<Vec<Plugin>, String> {
    let plugin = |name: &str| {
        let known = Plugin::ALL.map(Plugin::name).join(", ");
        Plugin::named(name)
            .ok_or_else(|| format!("{name:?} is no plugin of this program: it has {known}"))
    };
    names.split(',').map(plugin).collect()
}

fn install_into(folder: &Path, replace: &[Plugin]) -> Result<String, String> {
    let program = std::env::current_exe().map_err(|error| chain(&error))?;
    install(&program, folder, replace).map(|done| report(&done)).map_err(|error| chain(&error))
}

fn report(outcomes: &[(&str, Installed)]) -> String {
    let line = |(name, outcome): &(&str, Installed)| match outcome {
        Installed::LeftAlone => {
            format!(
                "{name}: left alone, it is another program (install --replace={name} takes its place)\n"
            )
        }
        Installed::Removed => format!("{name}: removed\n"),
        _ => format!("{name}: installed\n"),
    };
    outcomes.iter().map(line).collect()
}

fn chain(error: &dyn std::error::Error) -> String {
    let reasons = std::iter::successors(Some(error), |error| error.source());
    reasons.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn usage() -> String {
    format!(
        "flannel-cni {}, CNI plugins: {}\nCNI protocol versions supported: {}\n\n\
         A container runtime calls it under the name of a plugin. By hand:\n  \
         flannel-cni add --netns NAME|PATH --name CONTAINER [--interface eth0] [--config FILE]\n  \
             connect a network namespace, as a runtime would with the first configuration in /etc/cni/net.d\n  \
         flannel-cni del OPTIONS                  take it off again, with the same options\n  \
         flannel-cni install [--replace[=NAME,...]] FOLDER\n  \
             put the plugins into FOLDER, such as /opt/cni/bin, in place of other programs with these names\n  \
         flannel-cni uninstall FOLDER             remove them\n  \
         flannel-cni list [FOLDER]                show who has which addresses",
        env!("CARGO_PKG_VERSION"),
        Plugin::ALL.map(Plugin::name).join(", "),
        Version::ALL.map(Version::text).join(", "),
    )
}

/// Where addresses are kept.
const NETWORKS: &str = "/var/lib/cni/networks";
/// Where runtimes keep what plugins answered.
const RESULTS: &str = "/var/lib/cni/results";
