//! Connecting pods: what each call of a CNI plugin takes, as a runtime makes it.

mod calls;
mod memory;
mod pods;
mod reboots;

use std::{fs, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::task::spawn_blocking;

use self::{
    calls::{Plugins, Site},
    pods::Pod,
};
use crate::{args::Cni, report::Table, session::Session, stats::percentile, unit::Unit};

/// Measures on a thread of its own, so that signals are heard meanwhile. Dropping the future ends it soon.
pub(crate) async fn run(session: Arc<Session>, options: &Cni) -> Result<Vec<Table>> {
    let options = options.clone();
    let end = EndOnDrop(Arc::clone(&session));
    let tables = spawn_blocking(move || measure(&session, &options)).await;
    drop(end);
    tables.context("the measurement panicked")?
}

struct EndOnDrop(Arc<Session>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn measure(session: &Session, options: &Cni) -> Result<Vec<Table>> {
    let sides = calls::sides(options)?;
    let mut tables = Vec::new();
    for taken in [0, options.taken] {
        tables.extend(chain(session, &sides, taken)?);
    }
    for (count, backend) in [(0, "iptables"), (2, "iptables"), (2, "nftables")] {
        tables.extend(ports(session, &sides, count, backend)?);
    }
    tables.push(together(session, options, &sides)?);
    tables.push(memory::programs(session, &sides)?);
    tables.push(reboots::leaks(session, options, &sides)?);
    Ok(tables)
}

/// One pod after the other, with `taken` addresses in use.
fn chain(session: &Session, sides: &[Plugins], taken: u32) -> Result<[Table; 2]> {
    let title = |verb| format!("{verb}, flannel + bridge + host-local, {taken} addresses taken");
    let mut add = Samples::new(title("ADD"));
    let mut del = Samples::new(title("DEL"));
    let sites: Vec<Site<'_>> =
        sides.iter().map(|side| Site::new(session, side, taken)).collect::<Result<_>>()?;
    for run in session.runs() {
        if run % 50 == 1 {
            session.progress(run, format!("ADD and DEL with {taken} addresses taken"));
        }
        for site in &sites {
            let pod = Pod::new(format!("p{run}"))?;
            let config = site.flannel();
            add.note(site, site.call("flannel", "ADD", &pod, &config).map(|(_, took)| took));
            del.note(site, site.call("flannel", "DEL", &pod, &config).map(|(_, took)| took));
        }
        if let Some(site) = sites.first() {
            add.note_floor(site.floor());
        }
    }
    Ok([add.finish(), del.finish()])
}

/// Ports of the node that lead to a pod.
fn ports(session: &Session, sides: &[Plugins], count: u16, backend: &str) -> Result<[Table; 2]> {
    let title = |verb| format!("{verb}, portmap, {count} ports, {backend}");
    let (mut add, mut del) = (Samples::new(title("ADD")), Samples::new(title("DEL")));
    let sites: Vec<Site<'_>> =
        sides.iter().map(|side| Site::new(session, side, 0)).collect::<Result<_>>()?;
    for run in session.runs() {
        if run % 50 == 1 {
            session.progress(run, format!("portmap with {count} ports, {backend}"));
        }
        for site in &sites {
            let pod = Pod::new(format!("p{run}"))?;
            let (result, _) = site.call("flannel", "ADD", &pod, &site.flannel())?;
            let mut config = site.portmap(8000..8000 + count, &result);
            config["backend"] = backend.into();
            add.note(site, site.call("portmap", "ADD", &pod, &config).map(|(_, took)| took));
            del.note(site, site.call("portmap", "DEL", &pod, &config).map(|(_, took)| took));
            site.call("flannel", "DEL", &pod, &site.flannel())?;
        }
    }
    Ok([add.finish(), del.finish()])
}

/// Many pods at once, as after a start of the node.
fn together(session: &Session, options: &Cni, sides: &[Plugins]) -> Result<Table> {
    let title = format!("{} pods at once", options.at_once);
    let mut table = Table::new(title, &[(EACH, Unit::Seconds), (EACH_WITH_PORTS, Unit::Seconds)]);
    for run in session.runs().take(ROUNDS_TOGETHER) {
        for (column, ports) in [(EACH, 0), (EACH_WITH_PORTS, 2)] {
            for side in sides {
                session.progress(run, format!("{} pods at once, {ports} ports", options.at_once));
                let site = Site::new(session, side, 0)?;
                match site.together(options.at_once, ports) {
                    Ok(took) => {
                        table.add(
                            side.name,
                            column,
                            took.as_secs_f64() / f64::from(options.at_once),
                        );
                    }
                    Err(error) => table.trouble(side.name, format!("run {run}: {error:#}")),
                }
            }
        }
    }
    Ok(table)
}

/// A table of one time for each side.
struct Samples {
    table: Table,
    times: Vec<(&'static str, Vec<f64>)>,
}

impl Samples {
    fn new(title: String) -> Self {
        let columns = [(TIME, Unit::Seconds), (P99, Unit::Seconds)];
        Self { table: Table::new(title, &columns), times: Vec::new() }
    }

    fn note(&mut self, site: &Site<'_>, took: Result<Duration>) {
        let name = site.name();
        match took {
            Ok(took) => self.add(name, took),
            Err(error) => self.table.trouble(name, format!("{error:#}")),
        }
    }

    fn note_floor(&mut self, took: Result<Duration>) {
        match took {
            Ok(took) => self.add(FLOOR, took),
            Err(error) => self.table.trouble(FLOOR, format!("{error:#}")),
        }
    }

    fn add(&mut self, name: &'static str, took: Duration) {
        let took = took.as_secs_f64();
        self.table.add(name, TIME, took);
        match self.times.iter_mut().find(|(row, _)| *row == name) {
            Some((_, times)) => times.push(took),
            None => self.times.push((name, vec![took])),
        }
    }

    fn finish(mut self) -> Table {
        for (name, times) in &self.times {
            if let Some(p99) = percentile(times, 99.0) {
                self.table.add(name, P99, p99);
            }
        }
        self.table.compare(AGAINST, TIME, &[calls::THEIRS]);
        self.table
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// What a plugin printed, as JSON.
fn parse(text: &[u8]) -> Result<Value> {
    serde_json::from_slice(text).context("the plugin did not print JSON")
}

const TIME: &str = "time";
const P99: &str = "p99";
const AGAINST: &str = "of containernetworking";
const FLOOR: &str = "a program that does nothing";
const EACH: &str = "wall time per pod";
const EACH_WITH_PORTS: &str = "with 2 ports each";
/// Each is hundreds of calls already.
const ROUNDS_TOGETHER: usize = 5;
