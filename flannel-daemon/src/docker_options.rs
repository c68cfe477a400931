//! Options for Docker's daemon, as flannel's mk-docker-opts.sh makes them.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use flannel_core::SubnetEnv;
use flannel_netlink::{
    Connection, KernelError, Namespace, NamespaceError, OpenError, list_routes,
    state::{IpFamily, Route, Via},
};

use crate::{atomic_file, error::FileError};

/// What Docker's daemon is told, in the terms of flannel's mk-docker-opts.sh.
#[derive(Clone, Debug)]
pub struct DockerOptions {
    /// The file that the node has written.
    pub subnet_file: PathBuf,
    /// The file to write.
    pub docker_file: PathBuf,
    /// Write each option as a variable, such as `DOCKER_OPT_MTU`; if neither this nor [`combined`](Self::combined), both.
    pub individual: bool,
    /// Write all options in one variable.
    pub combined: bool,
    /// Leave out `--ip-masq`, which old versions of Docker do not know.
    pub no_ip_masq: bool,
    /// The name of the variable with all options.
    pub key: String,
}

/// Why Docker's options cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DockerOptionsError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A variable has a value that means nothing.
    #[error("Invalid value of {variable}: {value}, expected {expected}")]
    Invalid {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What would be valid.
        expected: &'static str,
    },
    /// Our network namespace cannot be opened.
    #[error("cannot open our own network namespace")]
    Namespace(#[from] NamespaceError),
    /// The kernel cannot be asked.
    #[error("cannot ask the kernel for its routes")]
    Netlink(#[from] OpenError),
    /// The kernel does not list its routes.
    #[error("cannot list routes")]
    Routes(#[from] KernelError),
    /// The subnet is routed elsewhere.
    #[error("Your routing table already contains the subnet: {route}")]
    Taken {
        /// The route.
        route: Box<Route>,
    },
}

/// Writes Docker's options, and says so if packets of the subnet would be routed elsewhere.
/// `environment` is what the subnet file's variables are added to.
///
/// # Errors
///
/// [`DockerOptionsError`]; [`Taken`](DockerOptionsError::Taken) after the file was written.
pub async fn write(
    environment: impl IntoIterator<Item = (String, String)>,
    docker: &DockerOptions,
) -> Result<(), DockerOptionsError> {
    let mut variables: Variables = environment.into_iter().collect();
    match fs::read_to_string(&docker.subnet_file) {
        Ok(text) => variables.extend(assignments(&text)),
        // The variables may be set without it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => {
            let path = docker.subnet_file.clone();
            return Err(FileError { operation: "read", path, source }.into());
        }
    }
    let text = options(&variables, docker)?;
    write_to(&docker.docker_file, &text)?;
    let subnet = variables.get("FLANNEL_SUBNET").map(|subnet| format!("FLANNEL_SUBNET={subnet}"));
    match subnet.and_then(|text| SubnetEnv::parse(&text).subnet) {
        Some(subnet) => refuse_rival(subnet.into()).await,
        None => Ok(()),
    }
}

/// Names with their values. Their order is that of the file.
type Variables = BTreeMap<String, String>;

/// The text of Docker's file.
fn options(variables: &Variables, docker: &DockerOptions) -> Result<String, DockerOptionsError> {
    let mut options: Variables = variables
        .iter()
        .filter(|(name, _)| name.starts_with("DOCKER_OPT_"))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut set = |name: &str, value: String| options.insert(format!("DOCKER_OPT_{name}"), value);
    let given = |name: &str| variables.get(name).filter(|value| !value.is_empty());
    if let Some(subnet) = given("FLANNEL_SUBNET") {
        set("BIP", format!("--bip={subnet}"));
    }
    if let Some(mtu) = given("FLANNEL_MTU") {
        set("MTU", format!("--mtu={mtu}"));
    }
    if let Some(masquerades) = given("FLANNEL_IPMASQ").filter(|_| !docker.no_ip_masq) {
        // What the node does Docker must not do again.
        match masquerades.as_str() {
            "true" => set("IPMASQ", "--ip-masq=false".into()),
            "false" => set("IPMASQ", "--ip-masq=true".into()),
            other => {
                return Err(DockerOptionsError::Invalid {
                    variable: "FLANNEL_IPMASQ",
                    value: other.into(),
                    expected: "true or false",
                });
            }
        };
    }
    let both = !docker.individual && !docker.combined;
    let mut text = String::new();
    let mut all = given(&docker.key).map_or_else(String::new, |before| format!("{before} "));
    for (name, value) in &options {
        if docker.individual || both {
            text += &format!("{name}=\"{value}\"\n");
        }
        all += &format!(" {value}");
    }
    if docker.combined || both {
        text += &format!("{}=\"{all}\"\n", docker.key);
    }
    Ok(text)
}

/// What a shell would set if it read `text`, as far as the node's file goes: no expansions.
fn assignments(text: &str) -> impl Iterator<Item = (String, String)> {
    text.lines().filter_map(|line| {
        let line = line.trim();
        let (name, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=')?;
        let unquoted = ['"', '\''].into_iter().find_map(|quote| {
            value
                .strip_prefix(quote)
                .and_then(|rest| rest.split_once(quote))
                .map(|(inner, _)| inner)
        });
        let value = unquoted.or_else(|| value.split_whitespace().next()).unwrap_or_default();
        Some((name.trim().to_owned(), value.to_owned()))
    })
}

fn write_to(path: &Path, text: &str) -> Result<(), FileError> {
    // Such as /dev/stdout.
    if path.metadata().is_ok_and(|there| !there.is_file()) {
        let failed = |source| FileError { operation: "write", path: path.to_owned(), source };
        return fs::write(path, text).map_err(failed);
    }
    atomic_file::write(path, text)
}

/// Refuses a route to exactly our subnet through a gateway: the subnet is another node's then.
async fn refuse_rival(subnet: ipnetwork::IpNetwork) -> Result<(), DockerOptionsError> {
    let namespace = Namespace::current()?;
    let mut connection = Connection::open(&namespace)?;
    let family = IpFamily::of(&subnet.ip());
    let routes = list_routes(&mut connection, Route::MAIN, family).await?;
    let rival = |route: &Route| {
        route.destination == subnet && matches!(route.via, Via::Gateway(_) | Via::Nexthop(_))
    };
    match routes.into_iter().find(rival) {
        Some(route) => Err(DockerOptionsError::Taken { route: Box::new(route) }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// dist/sample_subnet.env at cdf76059, as far as it is read.
    const SAMPLE: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n";

    fn made(
        env: &str,
        before: &[(&str, &str)],
        flags: &[&str],
    ) -> Result<String, DockerOptionsError> {
        let has = |flag: char| {
            flags.iter().any(|it| it.starts_with('-') && it.contains(flag) && it.len() < 4)
        };
        let key = flags.iter().find(|it| !it.starts_with('-')).unwrap_or(&"DOCKER_OPTS");
        let docker = DockerOptions {
            subnet_file: PathBuf::new(),
            docker_file: PathBuf::new(),
            individual: has('i'),
            combined: has('c'),
            no_ip_masq: has('m'),
            key: (*key).into(),
        };
        let before = before.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        options(&before.chain(assignments(env)).collect(), &docker)
    }

    #[test]
    fn the_file_is_that_of_flannels_script() {
        // The cases of dist/mk-docker-opts_tests.sh at cdf76059.
        let [bip, masq, mtu] = [
            "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\n",
            "DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n",
            "DOCKER_OPT_MTU=\"--mtu=1472\"\n",
        ];
        let all = "DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n";
        for (flags, expected) in [
            (&[][..], [bip, masq, mtu, all].concat()),
            (&["-i"], [bip, masq, mtu].concat()),
            (&["-c"], all.into()),
            (&["-ic"], [bip, masq, mtu, all].concat()),
            (&["-k", "CUSTOM"], [bip, masq, mtu, &all.replace("DOCKER_OPTS", "CUSTOM")].concat()),
            (&["-m"], [bip, mtu, &all.replace(" --ip-masq=true", "")].concat()),
        ] {
            assert_eq!(made(SAMPLE, &[], flags).unwrap(), expected, "{flags:?}");
        }
        let ours = made(&SAMPLE.replace("=false", "=true"), &[], &["-c"]).unwrap();
        assert!(ours.contains("--ip-masq=false"), "{ours}");
    }

    #[test]
    fn what_the_environment_has_counts_too() {
        let before =
            [("DOCKER_OPTS", "-D"), ("DOCKER_OPT_ZERO", "--zero"), ("FLANNEL_MTU", "1400")];
        assert_eq!(
            made("FLANNEL_SUBNET=10.1.74.1/24", &before, &["-c"]).unwrap(),
            "DOCKER_OPTS=\"-D  --bip=10.1.74.1/24 --mtu=1400 --zero\"\n"
        );
        assert_eq!(made("", &[], &[]).unwrap(), "DOCKER_OPTS=\"\"\n");
    }

    #[test]
    fn a_value_that_is_none_is_an_error() {
        let error = made("FLANNEL_IPMASQ=perhaps", &[], &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Invalid value of FLANNEL_IPMASQ: perhaps, expected true or false"
        );
        assert!(made("FLANNEL_IPMASQ=perhaps", &[], &["-m"]).is_ok());
    }

    #[test]
    fn quotes_comments_and_exports_are_a_shells() {
        let text =
            "# FLANNEL_MTU=1\nexport FLANNEL_SUBNET='10.1.74.1/24'\nFLANNEL_MTU=\"1472\" # bytes\n";
        assert_eq!(
            made(text, &[], &["-c"]).unwrap(),
            "DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n"
        );
    }
}
