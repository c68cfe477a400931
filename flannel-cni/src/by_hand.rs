//! Connects a namespace to the node's network as a runtime would, for whoever tries it by hand.

use std::{
    fmt::Write,
    fs, io,
    path::{Path, PathBuf},
};

use flannel_cni::{
    Call, Plugin, execute,
    protocol::{AddResult, Config, Environment, Verb, Version},
};
use serde_json::{Map, Value};

/// Does `ADD` or `DEL`, as the options say, and returns what people want to know of it.
pub(crate) fn run(verb: Verb, options: &[&str]) -> Result<String, String> {
    let mut environment = Environment { verb, interface: "eth0".into(), ..Environment::default() };
    let mut file = None;
    for option in options.chunks(2) {
        match *option {
            // The names are those of `ip netns`.
            ["--netns", name] if !name.contains('/') => {
                environment.netns = Some(format!("/run/netns/{name}"));
            }
            ["--netns", path] => environment.netns = Some(path.to_owned()),
            ["--name", id] => environment.container_id = id.to_owned(),
            ["--interface", name] => environment.interface = name.to_owned(),
            ["--config", path] => file = Some(PathBuf::from(path)),
            _ => return Err(format!("{option:?} is no option with its value")),
        }
    }
    if environment.netns.is_none() || environment.container_id.is_empty() {
        return Err("--netns and --name are needed".to_owned());
    }
    let file = match file {
        Some(file) => file,
        None => first_configuration(Path::new(CONFIGURATIONS))
            .map_err(|error| format!("cannot list {CONFIGURATIONS}: {error}"))?
            .ok_or_else(|| format!("there is no configuration in {CONFIGURATIONS}"))?,
    };
    let text =
        fs::read(&file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let chain = chain(&text).map_err(|error| format!("{}: {error}", file.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start the event loop: {error}"))?;
    runtime.block_on(async {
        if verb == Verb::Del {
            return remove(&environment, chain).await.map(|()| String::new());
        }
        // A runtime would end what is left of it. Here it may be that there was one of this name before.
        let connected = connect(&environment, &chain).await;
        let result = connected.map_err(|error| format!("{error} (del removes what is left)"))?;
        Ok(described(&environment, &result))
    })
}

/// One plugin of a chain, with what it is given.
struct Step {
    plugin: Plugin,
    config: Map<String, Value>,
}

/// The configuration that runtimes take: the first by name.
fn first_configuration(folder: &Path) -> io::Result<Option<PathBuf>> {
    let files =
        fs::read_dir(folder)?.map(|file| Ok(file?.path())).collect::<io::Result<Vec<_>>>()?;
    let is_configuration = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|it| matches!(it, "conf" | "conflist" | "json"))
    };
    Ok(files.into_iter().filter(is_configuration).min())
}

/// The plugins of a configuration.
fn chain(text: &[u8]) -> Result<Vec<Step>, String> {
    let list: Map<String, Value> = serde_json::from_slice(text).map_err(|it| it.to_string())?;
    let plugins = match list.get("plugins") {
        Some(Value::Array(plugins)) => plugins.clone(),
        _ => vec![Value::Object(list.clone())],
    };
    let given = |plugin: Value| {
        let Value::Object(mut plugin) = plugin else {
            return Err("a plugin is no object".to_owned());
        };
        for key in ["name", "cniVersion"] {
            plugin.extend(list.get(key).map(|value| (key.to_owned(), value.clone())));
        }
        let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
        let named = Plugin::named(kind);
        let named = named.ok_or_else(|| format!("{kind:?} is a plugin of others: use cnitool"))?;
        Ok(Step { plugin: named, config: plugin })
    };
    plugins.into_iter().map(given).collect()
}

async fn connect(environment: &Environment, chain: &[Step]) -> Result<AddResult, String> {
    let mut result: Option<AddResult> = None;
    for Step { plugin, config } in chain {
        let mut config = config.clone();
        if let Some(before) = &result {
            let version = config.get("cniVersion").and_then(Value::as_str).unwrap_or_default();
            let before = Version::parse(version).and_then(|version| before.to_json(version));
            let before = before.map_err(|error| error.to_string())?;
            let before = serde_json::from_str(&before).map_err(|error| error.to_string())?;
            config.insert("prevResult".to_owned(), before);
        }
        result = call(environment, *plugin, config).await?;
    }
    Ok(result.unwrap_or_default())
}

/// From the last plugin to the first, whatever fails.
async fn remove(environment: &Environment, chain: Vec<Step>) -> Result<(), String> {
    let mut outcome = Ok(());
    for Step { plugin, config } in chain.into_iter().rev() {
        let removed = call(environment, plugin, config).await.map(drop);
        outcome = outcome.and(removed);
    }
    outcome
}

async fn call(
    environment: &Environment,
    plugin: Plugin,
    config: Map<String, Value>,
) -> Result<Option<AddResult>, String> {
    let called = async {
        execute(plugin, &Call::new(environment.clone(), Config::from_object(config)?)?).await
    };
    called.await.map_err(|error| format!("{}: {error}", plugin.name()))
}

fn described(environment: &Environment, result: &AddResult) -> String {
    let netns = environment.netns.as_deref().unwrap_or_default();
    let mut text = format!("{} in {netns}\n", environment.interface);
    for ip in &result.ips {
        let gateway = ip.gateway.map(|gateway| format!(", gateway {gateway}")).unwrap_or_default();
        let _ = writeln!(text, "  address {}{gateway}", ip.address);
    }
    for route in &result.routes {
        let _ = writeln!(text, "  route to {}", route.dst);
    }
    let of_node = result.interfaces.iter().filter(|interface| interface.sandbox.is_empty());
    let names: Vec<&str> = of_node.map(|interface| &*interface.name).collect();
    let _ = writeln!(text, "on the node: {}", names.join(", "));
    text
}

const CONFIGURATIONS: &str = "/etc/cni/net.d";
