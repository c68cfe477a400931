//! The documents say what the program does: command lines are read, options listed, and keys compared.

use std::{collections::BTreeSet, env, ffi::OsString, fs, path::PathBuf};

use clap::{Arg, Command, CommandFactory};
use flannel_core::NetworkConfig;
use regex_lite::Regex;

use crate::args::Cli;

/// The root of the tree.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All documents that may have command lines.
fn documents() -> Vec<(String, String)> {
    let names = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| format!("docs/{}", name.to_string_lossy())).collect();
    names.extend(["README.md", "CONTRIBUTING.md", "Containerfile"].map(String::from));
    names.sort();
    names.into_iter().map(|name| (name.clone(), read(&name))).collect()
}

/// Splits a command line as a shell does: quotes, and nothing else.
fn words(line: &str) -> Vec<OsString> {
    let word = Regex::new(r#"(?:'[^']*'|"[^"]*"|[^\s'"])+"#).unwrap();
    let unquoted = |text: &str| text.replace(['\'', '"'], "");
    // Quotes inside of JSON in single quotes belong to it.
    let plain = |text: &str| {
        text.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')).map(String::from)
    };
    let found = word.find_iter(line).map(|it| it.as_str());
    found.map(|text| plain(text).unwrap_or_else(|| unquoted(text)).into()).collect()
}

#[test]
fn every_command_line_in_the_documents_is_read() {
    // A line of a console, or of a shell's comment, up to a comment of its own.
    let line =
        Regex::new(r"(?m)^\s*[#$] flannel-node( [^#\n]*)?$|`flannel-node( [a-z][^`]*)`").unwrap();
    let mut count = 0;
    // That page is made of the definition itself.
    for (name, text) in documents().into_iter().filter(|(name, _)| name != FLAGS) {
        for found in line.captures_iter(&text) {
            let arguments = found.get(1).or_else(|| found.get(2)).map_or("", |it| it.as_str());
            // A mention of a command, as in "`flannel-node leases` looks at a network".
            let whole = found[0].trim_start().starts_with(['#', '$']);
            let mut args = words(arguments);
            if !whole && args.len() == 1 || args.iter().any(|arg| arg == "...") {
                args.push("--help".into());
            }
            let args = ["flannel-node".into()].into_iter().chain(args);
            match Cli::read(args, |_| None) {
                Ok(_) => {}
                Err(error) if error.exit_code() == 0 => {}
                // Named in a sentence without all that it takes.
                Err(error)
                    if !whole
                        && error.kind() == clap::error::ErrorKind::MissingRequiredArgument => {}
                Err(error) => panic!("{name}: {}\n{error}", &found[0]),
            }
            count += 1;
        }
    }
    assert!(count > 10, "only {count} command lines were found");
}

#[test]
fn every_network_in_the_documents_can_be_used() {
    let json = Regex::new(r#"'(\{[^']*\})'"#).unwrap();
    let mut count = 0;
    for (name, text) in documents() {
        for found in json.captures_iter(&text) {
            if let Err(error) = found[1].parse::<NetworkConfig>() {
                panic!("{name}: {}: {error}", &found[1]);
            }
            count += 1;
        }
    }
    assert!(count > 2, "only {count} configurations were found");
}

#[test]
fn every_option_is_in_the_list_of_options() {
    let mut command = Cli::command();
    command.build();
    let expected = options(&command);
    let path = root().join(FLAGS);
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &expected).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "docs/flags.md is not what the options are: UPDATE_GOLDEN=1 cargo test -p flannel-node documents"
    );
}

/// All options of all commands, as Markdown.
fn options(root: &Command) -> String {
    let mut text = String::from(
        "# Options of flannel-node\n\n\
         Made of the definition of the command line: `UPDATE_GOLDEN=1 cargo test -p flannel-node documents`.\n\n\
         An option is given as `-name value`, `--name value` or `-name=value`, or by the variable in the environment. The command\n\
         line wins over the environment, which counts for the commands too. A BOOL needs the equals sign: `--ip-masq` or `--ip-masq=false`.\n\n\
         ## A node\n\n",
    );
    text += &table(root.get_arguments().filter(is_option));
    for command in root.get_subcommands() {
        list(root, command, &mut text);
    }
    text
}

/// The options of a command and of those below it, but for those that a node has as well.
fn list(root: &Command, command: &Command, text: &mut String) {
    if command.is_hide_set() || command.get_name() == "help" {
        return;
    }
    let mut usage = command.clone().render_usage().to_string();
    usage = usage.trim_start_matches("Usage: ").lines().next().unwrap_or_default().to_owned();
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    *text += &format!("\n## `{usage}`\n\n{about}.\n");
    let of_a_node = |arg: &&Arg| {
        let same = root.get_arguments().find(|other| other.get_long() == arg.get_long());
        same.is_some_and(|other| {
            other.get_help().map(ToString::to_string) == arg.get_help().map(ToString::to_string)
        })
    };
    let options = || command.get_arguments().filter(is_option);
    if options().any(|arg| !of_a_node(&arg)) {
        *text += "\n";
        *text += &table(options().filter(|arg| !of_a_node(arg)));
    }
    let same: Vec<_> =
        options().filter(of_a_node).map(|arg| format!("`{}`", spelled(arg))).collect();
    if !same.is_empty() {
        *text += &format!("\nAnd as for a node: {}.\n", same.join(", "));
    }
    for inner in command.get_subcommands() {
        list(root, inner, text);
    }
}

fn table<'a>(args: impl Iterator<Item = &'a Arg>) -> String {
    let mut text =
        String::from("| option | variable | default | meaning |\n| --- | --- | --- | --- |\n");
    for arg in args.filter(|arg| !arg.is_hide_set()) {
        let takes_value = arg.get_action().takes_values();
        let value = arg.get_value_names().filter(|_| takes_value);
        let value = value.map(|names| format!(" {}", names[0])).unwrap_or_default();
        let name = spelled(arg);
        // A switch is not given by the environment.
        let variable = arg.get_long().filter(|_| takes_value);
        let variable = variable
            .map(|name| format!("`FLANNELD_{}`", name.to_uppercase().replace('-', "_")))
            .unwrap_or_default();
        let defaults = arg.get_default_values().iter().filter(|_| takes_value);
        let defaults: Vec<_> = defaults.map(|it| format!("`{}`", it.to_string_lossy())).collect();
        let default = defaults.join(",");
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let row = [format!("`{name}{value}`"), variable, default, help];
        text += &format!("| {} |\n", row.map(|cell| cell.replace('|', "\\|")).join(" | "));
    }
    text
}

/// Whether it is not told by its place, and not on every command.
fn is_option(arg: &&Arg) -> bool {
    !arg.is_positional() && !["help", "version"].contains(&arg.get_id().as_str())
}

/// The option's name with its dashes, the long one if it has one.
fn spelled(arg: &Arg) -> String {
    let short = || arg.get_short().map(|short| format!("-{short}"));
    let long = arg.get_long().map(|long| format!("--{long}"));
    long.or_else(short).unwrap_or_default()
}

#[test]
fn every_key_that_is_read_is_documented_and_no_other() {
    let text = read("docs/configuration.md");
    let section = |title: &str| {
        let (_, rest) =
            text.split_once(&format!("\n{title}\n")).unwrap_or_else(|| panic!("no {title}"));
        rest.split("\n## ").next().unwrap().split("\n### ").next().unwrap().to_owned()
    };
    let key = Regex::new(r"(?m)^\| `([A-Za-z0-9]+)` \|").unwrap();
    let documented = |title: &str| -> BTreeSet<String> {
        key.captures_iter(&section(title)).map(|found| found[1].to_owned()).collect()
    };
    let mut network = documented("## Network");
    for key in &network {
        let config = format!(
            r#"{{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","{key}":[]}}"#
        );
        let error = config.parse::<NetworkConfig>().expect_err("a list is no value of any key");
        assert!(error.to_string().contains(&format!("{key} is an array")), "{key}: {error}");
    }
    network.extend(documented("## Backend"));
    let mut keys = keys_in("flannel-core/src/config.rs");
    keys.extend(keys_in("flannel-core/src/config/backend_config.rs"));
    assert_eq!(network, keys);

    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Some(backend) = name.strip_prefix("flannel-backend-") else { continue };
        let files = ["backend", "config"].map(|file| format!("{name}/src/{file}.rs"));
        let files: Vec<_> = files.into_iter().filter(|file| root().join(file).exists()).collect();
        let mut keys: BTreeSet<_> = files.iter().flat_map(|file| keys_in(file)).collect();
        if files.iter().any(|file| read(file).contains("read_mtu(")) {
            keys.extend(keys_in("flannel-backend/src/table_options.rs"));
        }
        // It is documented for all of them.
        keys.remove("Type");
        let backend = if backend == "hostgw" { "host-gw" } else { backend };
        let mut documented = documented(&format!("### `{backend}`"));
        // Known to the backend, and used on other systems only.
        documented.retain(|key| !["Name", "MacPrefix"].contains(&key.as_str()));
        assert_eq!(documented, keys, "{backend}");
    }
}

/// The keys that the code in a file reads.
fn keys_in(path: &str) -> BTreeSet<String> {
    let text = read(path);
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let calls =
        Regex::new(r#"\b(?:boolean|command|integer|parsed|present|raw|text)\(\s*"([A-Za-z0-9]+)""#)
            .unwrap();
    let names =
        Regex::new(r#"(?m)^\s*(?:network|subnet_len|subnet_max|subnet_min): "([A-Za-z0-9]+)""#)
            .unwrap();
    let all = calls.captures_iter(code).chain(names.captures_iter(code));
    all.map(|found| found[1].to_owned()).collect()
}

const FLAGS: &str = "docs/flags.md";
