//! CNI plugins in one program: it is the plugin whose name it was started under, or else the one that the configuration names.
#![forbid(unsafe_code)]

mod by_hand;
mod command_line;

use std::{
    env,
    io::{self, Read, Write},
    path::Path,
    process::ExitCode,
};

use flannel_cni::{
    Call, Plugin, execute,
    protocol::{Code, Config, Environment, Error, Verb, Version},
};

fn main() -> ExitCode {
    if env::var_os("CNI_COMMAND").is_none() {
        let arguments = env::args_os().skip(1).map(|it| it.to_string_lossy().into_owned());
        return command_line::run(&arguments.collect::<Vec<_>>());
    }
    let (output, code) = match answer() {
        Ok(output) => (output, ExitCode::SUCCESS),
        Err((error, version)) => (error.to_json(version), ExitCode::FAILURE),
    };
    // A runtime that does not read any more has no use for a complaint about it.
    let written = io::stdout().write_all(output.as_bytes());
    if written.is_err() { ExitCode::FAILURE } else { code }
}

/// What is printed, and the version that an error has to be printed in.
fn answer() -> Result<String, (Error, Version)> {
    let plain = |error| (error, Version::LATEST);
    let environment = Environment::read(|name| env::var(name).ok()).map_err(plain)?;
    if environment.verb == Verb::Version {
        return Ok(Version::report());
    }
    let config = read_config().and_then(|text| Config::parse(&text)).map_err(plain)?;
    let version = config.version;
    answer_to(environment, config).map_err(|error| (error, version))
}

fn answer_to(environment: Environment, config: Config) -> Result<String, Error> {
    let started_as = env::args_os().next().unwrap_or_default();
    let started_as = Path::new(&started_as).file_name().and_then(|name| name.to_str());
    let plugin = started_as.and_then(Plugin::named).or_else(|| Plugin::named(&config.kind));
    let Some(plugin) = plugin else {
        let message = format!("there is no plugin of type {:?} in this program", config.kind);
        let known = Plugin::ALL.map(Plugin::name).join(", ");
        return Err(
            Error::new(Code::InvalidConfig, message).with_details(format!("it is one of {known}"))
        );
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime
        .map_err(|error| Error::new(Code::Io, format!("cannot start the event loop: {error}")))?;
    let (verb, version) = (environment.verb, config.version);
    let call = Call::new(environment, config)?;
    match runtime.block_on(execute(plugin, &call))? {
        Some(result) if verb == Verb::Add => result.to_json(version),
        _ => Ok(String::new()),
    }
}

fn read_config() -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    let read = io::stdin().lock().take(MOST_CONFIG_BYTES + 1).read_to_end(&mut text);
    read.map_err(|error| Error::new(Code::Io, format!("error reading from stdin: {error}")))?;
    if text.len() as u64 > MOST_CONFIG_BYTES {
        let message = format!("the network configuration is larger than {MOST_CONFIG_BYTES} bytes");
        return Err(Error::new(Code::InvalidConfig, message));
    }
    Ok(text)
}

/// 16 MiB: a hundred thousand attachments in the configuration for `GC`.
const MOST_CONFIG_BYTES: u64 = 16 << 20;
