//! Who has the addresses of this node, as a table.

use std::{collections::BTreeMap, fmt::Write, io, net::IpAddr, path::Path, time::SystemTime};

use crate::{Entry, PodName, StoreError, entries_in, kept_in};

/// The addresses in use, of all networks in `data_dir`, as a table. `results` is where the runtime's library keeps what plugins
/// answered: an attachment that it does not know may be leaked.
///
/// # Errors
///
/// When the folders cannot be read.
pub fn list(data_dir: &Path, results: &Path, now: SystemTime) -> Result<String, StoreError> {
    let failed = |operation, path: &Path, source: io::Error| StoreError {
        operation,
        path: path.to_owned(),
        source,
    };
    let mut table = String::from("NETWORK  ADDRESS  AGE  INTERFACE  CONTAINER  STATE\n");
    let networks = std::fs::read_dir(data_dir).map_err(|error| failed("list", data_dir, error))?;
    let mut networks: Vec<_> = networks
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|folder| folder.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect();
    networks.sort();
    for network in networks {
        let mut kept: BTreeMap<IpAddr, PodName> =
            kept_in(data_dir, &network)?.into_iter().collect();
        for entry in entries_in(&data_dir.join(&network))? {
            let line = line(&network, &entry, results, now);
            let _ = match kept.remove(&entry.address) {
                Some(pod) => writeln!(table, "{line}, kept for {}/{}", pod.namespace, pod.name),
                None => writeln!(table, "{line}"),
            };
        }
        for (address, PodName { namespace, name, interface, .. }) in kept {
            let _ = writeln!(
                table,
                "{network}  {address}  -  {interface}  -  kept for {namespace}/{name}"
            );
        }
    }
    Ok(table)
}

fn line(network: &str, entry: &Entry, results: &Path, now: SystemTime) -> String {
    let age = entry.since.and_then(|since| now.duration_since(since).ok());
    let age = age.map(|age| rounded(age.as_secs())).unwrap_or_else(|| "?".to_owned());
    let Some(owner) = &entry.owner else {
        return format!("{network}  {}  {age}  -  -  unreadable", entry.address);
    };
    let (id, interface) = (&owner.container_id, &owner.interface);
    // As libcni names it.
    let known = results.join(format!("{network}-{id}-{interface}")).exists();
    let state = if known { "in use" } else { "unknown to the runtime" };
    format!("{network}  {}  {age}  {interface}  {id}  {state}", entry.address)
}

/// The two largest units of an age.
fn rounded(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, _, _) => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;
    use crate::Store;

    #[test]
    fn addresses_are_listed_with_who_has_them() {
        let folder = tempfile::tempdir().unwrap();
        let (data, results) = (folder.path().join("networks"), folder.path().join("results"));
        fs::create_dir_all(data.join("cbr0")).unwrap();
        fs::create_dir_all(&results).unwrap();
        for (address, text) in
            [("10.1.2.2", &b"c1\r\neth0"[..]), ("10.1.2.3", b"c2\r\neth0"), ("10.1.2.4", &[0xff])]
        {
            fs::write(data.join("cbr0").join(address), text).unwrap();
        }
        fs::write(results.join("cbr0-c1-eth0"), "{}").unwrap();
        let mut store = Store::open(&data, "cbr0", "boot").unwrap();
        let pod = PodName::new(Some("prod".into()), Some("db-0".into()), "eth0").unwrap();
        store.keep(Some(&pod), &["10.1.2.2", "10.1.2.9"].map(|it| it.parse().unwrap())).unwrap();
        drop(store);
        fs::write(data.join("cbr0/10.1.2.5"), "").unwrap();
        fs::write(data.join("stray"), "").unwrap();
        let later = SystemTime::now() + Duration::from_secs(3 * 3600 + 125);
        let table = list(&data, &results, later).unwrap();
        let lines: Vec<&str> = table.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                "cbr0  10.1.2.2  3h2m  eth0  c1  in use, kept for prod/db-0",
                "cbr0  10.1.2.3  3h2m  eth0  c2  unknown to the runtime",
                "cbr0  10.1.2.4  3h2m  -  -  unreadable",
                "cbr0  10.1.2.5  3h2m  -  -  unreadable",
                "cbr0  10.1.2.9  -  eth0  -  kept for prod/db-0",
            ]
        );
        // It was only looked at.
        assert_eq!(fs::read_dir(data.join("cbr0")).unwrap().count(), 5, "with the lock");
        assert_eq!(fs::read_dir(&data).unwrap().count(), 3, "with the index");
    }

    #[test]
    fn ages_have_their_two_largest_units() {
        let ages = [7, 67, 3_700, 90_000].map(rounded);
        assert_eq!(ages, ["7s", "1m7s", "1h1m", "1d1h"]);
    }
}
