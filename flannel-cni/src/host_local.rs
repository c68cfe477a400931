//! Gives containers addresses of this node, with the files of containernetworking's `host-local`.
//!
//! Both can serve one folder at once, under its lock: see [`store`]. Unlike that plugin this one does not read all files for each
//! container, frees what a restart of the machine left behind, and gives what all ranges have or nothing.

mod entries;
mod host_local_keys;
mod index;
mod kept;
mod range;
mod resolv_conf;
mod store;

use std::{io, net::IpAddr, path::Path};

use self::host_local_keys::HostLocal;
pub use self::{
    entries::{Entry, Owner, entries_in},
    kept::{PodName, kept_in},
    range::{Range, RangeSet},
    store::{Store, StoreError},
};
use crate::{
    plugin::Call,
    protocol::{AddResult, Arguments, Code, Config, Error, Ip, Verb},
};

pub(crate) fn execute(call: &Call) -> Result<Option<AddResult>, Error> {
    let read = || HostLocal::read(&call.config, &call.environment.arguments()?);
    match call.environment.verb {
        Verb::Add => add(call, &read()?).map(Some),
        Verb::Check => check(call, &read()?).map(|()| None),
        Verb::Del => del(call).map(|()| None),
        Verb::Gc => gc(call).map(|()| None),
        Verb::Status => status(call, &read()?).map(|()| None),
        Verb::Version => Ok(None),
    }
}

fn add(call: &Call, config: &HostLocal) -> Result<AddResult, Error> {
    let mut result = AddResult { routes: config.routes.clone(), ..AddResult::default() };
    if let Some(path) = &config.resolv_conf {
        result.dns = resolv_conf::read(path).map_err(|error| {
            Error::new(Code::Io, format!("cannot read {}: {error}", path.display()))
        })?;
    }
    let owner = owner(call);
    let mut store = open(call, &config.data_dir)?;
    for address in store.addresses(&owner).map_err(failed)? {
        if config.ranges.iter().any(|set| set.range_of(address).is_some()) {
            let message = format!(
                "{address} has been allocated to {}, duplicate allocation is not allowed",
                owner.container_id
            );
            return Err(Error::new(Code::NoAddress, message)
                .with_details("the runtime calls DEL before it calls ADD again"));
        }
    }
    match reserve(&mut store, &owner, config, pod(call, config)?.as_ref()) {
        Ok(ips) => result.ips = ips,
        Err(error) => {
            // All or nothing; what cannot be taken back now goes with DEL. After a file that could not be written, the index may not
            // know everything.
            if store.release(&owner).is_ok() && error.code != Code::Io {
                let _ = store.commit();
            }
            return Err(error);
        }
    }
    store.commit().map_err(failed)?;
    Ok(result)
}

/// One address of each set: what is asked for, or else what the pod had before.
fn reserve(
    store: &mut Store,
    owner: &Owner,
    config: &HostLocal,
    pod: Option<&PodName>,
) -> Result<Vec<Ip>, Error> {
    let mut requested = config.requested.clone();
    let mut ips = Vec::new();
    for (number, set) in config.ranges.iter().enumerate() {
        let wanted = requested.iter().position(|address| set.range_of(*address).is_some());
        let address = match wanted.map(|position| requested.swap_remove(position)) {
            Some(address) => {
                if set.range_of(address).is_some_and(|range| range.gateway == address) {
                    let message = format!("requested ip {address} is subnet's gateway");
                    return Err(Error::new(Code::InvalidConfig, message));
                }
                if !store.reserve(owner, address, number).map_err(failed)? {
                    let message = format!(
                        "requested IP address {address} is not available in range set {set}"
                    );
                    return Err(Error::new(Code::NoAddress, message));
                }
                address
            }
            None => next(store, owner, set, number, pod)?,
        };
        let Some(range) = set.range_of(address) else { continue };
        ips.push(Ip {
            interface: None,
            address: range.with_prefix(address),
            gateway: Some(range.gateway),
        });
    }
    if !requested.is_empty() {
        let list: Vec<String> = requested.iter().map(ToString::to_string).collect();
        let message = format!("failed to allocate all requested IPs: {}", list.join(" "));
        return Err(Error::new(Code::NoAddress, message)
            .with_details("they are in no range of this network"));
    }
    let addresses: Vec<IpAddr> = ips.iter().map(|ip| ip.address.ip()).collect();
    store.keep(pod, &addresses).map_err(failed)?;
    Ok(ips)
}

/// The address of `set` that the pod had before, or else the next free one.
fn next(
    store: &mut Store,
    owner: &Owner,
    set: &RangeSet,
    number: usize,
    pod: Option<&PodName>,
) -> Result<IpAddr, Error> {
    if let Some(pod) = pod
        && let Some(address) = store.reserve_again(owner, pod, set, number).map_err(failed)?
    {
        return Ok(address);
    }
    store.reserve_next(owner, set, number).map_err(failed)?.ok_or_else(|| {
        let message = format!("no IP addresses available in range set: {set}");
        Error::new(Code::NoAddress, message).with_details(
            "pods of this node hold them all, or pods that are gone: flannel-cni list shows which",
        )
    })
}

/// The pod, if it gets its addresses back.
fn pod(call: &Call, config: &HostLocal) -> Result<Option<PodName>, Error> {
    let arguments = call.environment.arguments()?;
    let interface = &call.environment.interface;
    let pod = PodName::new(arguments.pod_namespace, arguments.pod_name, interface);
    Ok(pod.filter(|pod| config.keep_for.match_pod(pod)))
}

fn check(call: &Call, config: &HostLocal) -> Result<(), Error> {
    let owner = owner(call);
    if open(call, &config.data_dir)?.addresses(&owner).map_err(failed)?.is_empty() {
        let message =
            format!("host-local: Failed to find address added by container {}", owner.container_id);
        return Err(Error::new(Code::NotAsExpected, message));
    }
    Ok(())
}

fn del(call: &Call) -> Result<(), Error> {
    let mut store = open(call, &host_local_keys::data_dir_for_removal(&call.config))?;
    store.release(&owner(call)).map_err(failed)?;
    store.commit().map_err(failed)
}

/// Takes back what belongs to nobody, and lets the addresses go of pods that are not to get theirs back any more.
fn gc(call: &Call) -> Result<(), Error> {
    let valid = call.config.valid_attachments()?;
    let mut store = open(call, &host_local_keys::data_dir_for_removal(&call.config))?;
    store.retain(&valid).map_err(failed)?;
    // Which pods those are is not known from a configuration that cannot be right.
    let Ok(config) = HostLocal::read(&call.config, &Arguments::default()) else { return Ok(()) };
    for (address, pod) in store.kept().map_err(failed)? {
        if !config.keep_for.match_pod(&pod) {
            store.keep(None, &[address]).map_err(failed)?;
        }
    }
    Ok(())
}

/// Whether there is an address left in each set.
fn status(call: &Call, config: &HostLocal) -> Result<(), Error> {
    let store = open(call, &config.data_dir)
        .map_err(|error| Error { code: Code::NotAvailable, ..error })?;
    for (number, set) in config.ranges.iter().enumerate() {
        if store.next_free(set, number).map_err(failed)?.is_none() {
            let message = format!("no IP addresses available in range set: {set}");
            return Err(Error::new(Code::NotAvailable, message));
        }
    }
    Ok(())
}

fn owner(call: &Call) -> Owner {
    Owner {
        container_id: call.environment.container_id.clone(),
        interface: call.environment.interface.clone(),
    }
}

fn open(call: &Call, data_dir: &Path) -> Result<Store, Error> {
    let boot_id = boot_id()
        .map_err(|error| Error::new(Code::Io, format!("cannot read {BOOT_ID}: {error}")))?;
    Store::open(data_dir, &call.config.name, &boot_id).map_err(failed)
}

/// A number that the kernel chose when the machine started.
fn boot_id() -> io::Result<String> {
    std::fs::read_to_string(Path::new(BOOT_ID)).map(|text| text.trim().to_owned())
}

fn failed(error: StoreError) -> Error {
    Error::new(Code::Io, crate::sandbox::chain(&error))
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// For [`fuzzing`](crate::fuzzing).
pub(crate) fn read(config: &Config, arguments: &Arguments) {
    let _ = host_local_keys::data_dir_for_removal(config);
    let Ok(read) = HostLocal::read(config, arguments) else { return };
    for set in &read.ranges {
        let stretches = set.stretches(read.requested.first().copied());
        assert!(stretches.iter().all(|(from, to)| from <= to));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::protocol::Environment;

    #[test]
    fn an_add_that_fails_leaves_no_owner() {
        let folder = tempfile::tempdir().unwrap();
        let ask = |verb| {
            let ipam = json!({"dataDir": folder.path(), "subnet": "10.0.0.0/24"});
            let config = json!({"cniVersion": "1.0.0", "name": "net", "ipam": ipam}).to_string();
            let environment = Environment {
                verb,
                container_id: "c1".into(),
                interface: "eth0".into(),
                arguments_text: "IP=10.0.0.9".into(),
                ..Environment::default()
            };
            let config = Config::parse(config.as_bytes()).unwrap();
            execute(&Call::new(environment, config).unwrap())
        };
        ask(Verb::Status).unwrap();
        // The index cannot be written, as if the disk were full at that moment.
        let taken = folder.path().join(".flannel-cni/net/taken.4");
        fs::create_dir(&taken).unwrap();
        assert_eq!(ask(Verb::Add).unwrap_err().code, Code::Io);
        fs::remove_dir(&taken).unwrap();
        assert_eq!(ask(Verb::Check).unwrap_err().code, Code::NotAsExpected);
        ask(Verb::Add).unwrap();
        ask(Verb::Check).unwrap();
    }
}
