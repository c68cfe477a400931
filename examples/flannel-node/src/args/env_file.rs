//! Files with variables, as systemd's `EnvironmentFile=` reads them.

use std::{collections::BTreeMap, ffi::OsString, fs, path::Path};

/// The variables in a file. Those of the environment win over them.
#[derive(Debug, Default)]
pub(super) struct EnvFile(BTreeMap<String, String>);

impl EnvFile {
    /// The file that `--env-file` names among these arguments, or else the environment. The option is removed.
    ///
    /// # Errors
    ///
    /// What is wrong with the option or its file.
    pub(super) fn take(
        args: &mut Vec<OsString>,
        from_environment: Option<OsString>,
    ) -> Result<Self, String> {
        let is_option = |arg: &OsString| {
            let text = arg.to_string_lossy();
            let name = text.split('=').next();
            matches!(name, Some("--env-file" | "-env-file"))
        };
        let mut variables = Self::default();
        if let Some(path) = from_environment.filter(|_| !args.iter().any(is_option)) {
            args.extend(["--env-file".into(), path]);
        }
        while let Some(at) = args.iter().position(is_option) {
            let option = args.remove(at).to_string_lossy().into_owned();
            let path = match option.split_once('=') {
                Some((_, path)) => path.to_owned(),
                None if at < args.len() => args.remove(at).to_string_lossy().into_owned(),
                None => return Err("--env-file needs a file".into()),
            };
            let text = fs::read_to_string(Path::new(&path))
                .map_err(|error| format!("--env-file: cannot read {path}: {error}"))?;
            variables.0.extend(parse(&text));
        }
        Ok(variables)
    }

    pub(super) fn get(&self, name: &str) -> Option<OsString> {
        self.0.get(name).map(OsString::from)
    }
}

/// A line for each variable; quotes around a value and a backslash at the end of a line are as in systemd.
fn parse(text: &str) -> Vec<(String, String)> {
    let joined = text.replace("\\\n", "");
    let lines = joined.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
    let variables = lines.filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        Some((name.trim().to_owned(), unquoted(value.trim()).to_owned()))
    });
    variables.collect()
}

fn unquoted(value: &str) -> &str {
    let inside = |quote| value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    inside('\'').or_else(|| inside('"')).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_systemd_reads_it() {
        let text = "# a comment\n; another\n\nFLANNELD_NETWORK={\"Network\":\"10.3.0.0/16\"}\nFLANNELD_IFACE = 'eth0'\n\
                    FLANNELD_STORE=\"file:/a b\"\nFLANNELD_IFACE_REGEX=^eth\\\n[01]$\nno variable\n";
        let expected = [
            ("FLANNELD_NETWORK", r#"{"Network":"10.3.0.0/16"}"#),
            ("FLANNELD_IFACE", "eth0"),
            ("FLANNELD_STORE", "file:/a b"),
            ("FLANNELD_IFACE_REGEX", "^eth[01]$"),
        ];
        assert_eq!(parse(text), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
