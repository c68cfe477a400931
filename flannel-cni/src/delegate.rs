//! Other plugins: those of this crate in process, those of others as programs in `CNI_PATH`.

use std::{
    io::Write,
    path::PathBuf,
    process::{Output, Stdio},
};

use serde_json::{Map, Value};

use crate::{
    plugin::{Call, Plugin, execute},
    protocol::{AddResult, Code, Config, Error, Verb},
};

/// What a plugin does for another one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Role {
    /// It gives addresses.
    Ipam,
    /// It makes the interface.
    Main,
}

impl Role {
    /// Whether one of ours has it. Others would call each other without end.
    fn fits(self, plugin: Plugin) -> bool {
        match self {
            Self::Ipam => plugin == Plugin::HostLocal,
            Self::Main => plugin == Plugin::Bridge,
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Ipam => "gives no addresses",
            Self::Main => "makes no interfaces for others",
        }
    }
}

/// Has `plugin` do `verb` for the container of `call`, with `config`.
pub(crate) async fn run(
    call: &Call,
    verb: Verb,
    role: Role,
    plugin: &str,
    config: Map<String, Value>,
) -> Result<Option<AddResult>, Error> {
    if let Some(plugin) = Plugin::named(plugin) {
        match verb {
            _ if role.fits(plugin) => {}
            // There never was anything to remove.
            Verb::Del | Verb::Gc => return Ok(None),
            _ => {
                let message = format!("plugin {:?} {}", plugin.name(), role.text());
                return Err(Error::new(Code::InvalidConfig, message));
            }
        }
        let mut call = Call { config: Config::from_object(config)?, ..call.clone() };
        call.environment.verb = verb;
        return Box::pin(execute(plugin, &call)).await;
    }
    run_program(call, verb, plugin, config).await
}

/// As [`run`], for `ADD`.
pub(crate) async fn add(
    call: &Call,
    role: Role,
    plugin: &str,
    config: Map<String, Value>,
) -> Result<AddResult, Error> {
    run(call, Verb::Add, role, plugin, config).await?.ok_or_else(|| {
        Error::new(Code::Delegate, format!("plugin {plugin:?} answered nothing to ADD"))
    })
}

async fn run_program(
    call: &Call,
    verb: Verb,
    plugin: &str,
    config: Map<String, Value>,
) -> Result<Option<AddResult>, Error> {
    let version = call.config.version;
    let program = find(call, plugin)?;
    let (host, environment) = (call.host.clone(), call.environment.clone());
    let text = Value::Object(config).to_string();
    let name = plugin.to_owned();
    let work = move || -> Result<Output, Error> {
        let failed = |error: &dyn std::error::Error| {
            let message =
                format!("cannot run {}: {}", program.display(), crate::sandbox::chain(error));
            Error::new(Code::Delegate, message)
        };
        let started = host.run(|| {
            #[expect(clippy::disallowed_methods, reason = "a plugin of others is a program")]
            let mut command = std::process::Command::new(&program);
            command.env("CNI_COMMAND", verb.text());
            command.env("CNI_CONTAINERID", &environment.container_id);
            command.env("CNI_NETNS", environment.netns.as_deref().unwrap_or_default());
            command.env("CNI_IFNAME", &environment.interface);
            command.env("CNI_ARGS", &environment.arguments_text);
            if let Ok(path) = std::env::join_paths(&environment.path) {
                command.env("CNI_PATH", path);
            }
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
        });
        let mut child = started.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
        if let Some(mut input) = child.stdin.take() {
            // One that needs nothing of it may end without reading it.
            let _ = input.write_all(text.as_bytes());
        }
        child.wait_with_output().map_err(|error| failed(&error))
    };
    let output = tokio::task::spawn_blocking(work).await.map_err(|error| {
        Error::new(Code::Delegate, format!("cannot run plugin {name:?}: {error}"))
    })??;
    let answer: Option<Value> = serde_json::from_slice(&output.stdout).ok();
    if !output.status.success() {
        return Err(read_error(plugin, answer, &output));
    }
    match answer {
        Some(answer) if verb == Verb::Add => AddResult::from_json(&answer, version).map(Some),
        _ => Ok(None),
    }
}

/// The program of this name in `CNI_PATH`.
fn find(call: &Call, plugin: &str) -> Result<PathBuf, Error> {
    let plain = !plugin.is_empty() && !plugin.contains('/') && plugin != "..";
    let mut folders = call.environment.path.iter().filter(|_| plain);
    folders.by_ref().map(|folder| folder.join(plugin)).find(|path| path.is_file()).ok_or_else(
        || {
            let folders: Vec<String> =
                call.environment.path.iter().map(|folder| folder.display().to_string()).collect();
            let message =
                format!("failed to find plugin {plugin:?} in path [{}]", folders.join(" "));
            Error::new(Code::Delegate, message)
        },
    )
}

fn read_error(plugin: &str, answer: Option<Value>, output: &Output) -> Error {
    let text = |key| answer.as_ref()?.get(key)?.as_str().map(str::to_owned);
    match (answer.as_ref().and_then(|answer| answer.get("code")?.as_u64()), text("msg")) {
        (Some(code), Some(message)) => {
            let code = Code::Other(u32::try_from(code).unwrap_or(u32::MAX));
            Error::new(code, message).with_details(text("details").unwrap_or_default())
        }
        _ => {
            let message = format!("plugin {plugin:?} failed without a reason: {}", output.status);
            Error::new(Code::Delegate, message)
        }
    }
}
