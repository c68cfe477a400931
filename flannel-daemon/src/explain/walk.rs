//! Follows the way from link to link until one is broken. Plain functions of the facts.

mod leases;
mod overlay;
mod path_mtu;
mod replies;
mod settings;
mod underlay;
#[cfg(test)]
mod walk_tests;

use std::{borrow::Cow, fmt, net::IpAddr};

use flannel_backend_wireguard::NAMES;
use serde::{Deserialize, Serialize};

use super::facts::{Facts, Running};

/// What a walk found.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Explanation {
    /// Where packets come from.
    pub source: IpAddr,
    /// Where they go.
    pub destination: IpAddr,
    /// The links that hold, in the order of the way.
    pub passed: Vec<Passed>,
    /// The first link that does not; those behind it were not looked at.
    pub broken: Option<Broken>,
}

/// A link that holds.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Passed {
    /// The link's name.
    pub link: Cow<'static, str>,
    /// What was found.
    pub says: String,
}

/// A link that is broken.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
pub struct Broken {
    /// The link's name.
    pub link: Cow<'static, str>,
    /// What was found.
    pub says: String,
    /// What to do.
    pub remedy: String,
}

impl Explanation {
    /// Of a walk that could not begin.
    pub(crate) const fn broken_at_once(
        source: IpAddr,
        destination: IpAddr,
        broken: Broken,
    ) -> Self {
        Self { source, destination, passed: Vec::new(), broken: Some(broken) }
    }
}

impl fmt::Display for Explanation {
    /// A line for each link that holds, and one for the end of the path.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Passed { link, says } in &self.passed {
            writeln!(f, "ok      {link:17} {says}")?;
        }
        match &self.broken {
            Some(Broken { link, says, remedy }) => {
                writeln!(f, "broken  {link:17} {says}\nremedy  {:17} {remedy}", "")
            }
            None => writeln!(
                f,
                "{} and {} reach each other, as far as this host can tell",
                self.source, self.destination
            ),
        }
    }
}

/// Walks from the store to the answer of the other pod.
pub(crate) fn walk(facts: &Facts) -> Explanation {
    let mut passed = Vec::new();
    let mut broken = follow(facts, &mut passed).err();
    if let Some(broken) = broken.as_mut().filter(|broken| broken.remedy == NODE_REPAIRS) {
        broken.remedy = of_the_node(facts.node.as_ref());
    }
    Explanation { source: facts.source, destination: facts.destination, passed, broken }
}

fn follow(facts: &Facts, passed: &mut Vec<Passed>) -> Result<(), Broken> {
    let mut pass = |link, says| passed.push(Passed { link: Cow::Borrowed(link), says });
    pass("network", leases::network(facts)?);
    let ends = leases::ends(facts)?;
    pass("own subnet", ends.says.clone());
    pass("own lease", leases::own(facts, &ends)?);
    let Some(far) = ends.far else {
        pass("pod", underlay::pod(facts, facts.source)?);
        pass("pod", underlay::pod(facts, facts.destination)?);
        return Ok(());
    };
    let peer = leases::peer(facts, &ends, far)?;
    pass("peer's lease", peer.says.clone());
    pass("pod", underlay::pod(facts, ends.near)?);
    let way = underlay::way(facts, &peer)?;
    pass("underlay", way.says.clone());
    let tunnel = overlay::device(facts, &ends, &way)?;
    if let Some((_, says)) = &tunnel {
        pass("device", says.clone());
    }
    let tunnel = tunnel.map(|(device, _)| device);
    let route = match facts.stored.config.backend().kind() {
        "host-gw" | "vxlan" => overlay::route(facts, &peer, &way, tunnel, far)?,
        kind if kind == "udp" || NAMES.contains(&kind) => overlay::route_to_all(facts, far)?,
        _ => overlay::any_route(facts, far)?,
    };
    pass("route", route);
    if let Some(device) = tunnel {
        let mac = overlay::mac(&peer)?;
        pass("neighbour", overlay::neighbour(facts, &peer, device, mac)?);
        pass("forwarding entry", overlay::forwarding_entry(facts, &peer, device, mac)?);
    }
    pass("settings", settings::settings(facts, &ends, &way, tunnel)?);
    pass("firewall", settings::firewall(facts)?);
    if let Some(says) = path_mtu::path(facts, &peer, tunnel, &way)? {
        pass("path", says);
    }
    for (link, says) in replies::replies(facts, &peer, tunnel, far)? {
        pass(link, says);
    }
    Ok(())
}

/// A broken link with words and remedy.
fn broken(link: &'static str, says: impl Into<String>, remedy: impl Into<String>) -> Broken {
    Broken { link: link.into(), says: says.into(), remedy: remedy.into() }
}

/// What to do about what a node keeps true by itself.
fn of_the_node(node: Option<&Running>) -> String {
    match node.map(|node| node.missing.as_slice()) {
        None => "no flannel-node runs here: start it, and it puts this right".into(),
        Some([]) => "flannel-node runs here and puts this right within a second: run this again; if it stays, \
                     flannel-node status and the log say who is against it"
            .into(),
        Some(missing) => format!("flannel-node runs here and lacks something itself: {}", missing.join("; ")),
    }
}

/// Stands for the remedy that depends on whether a node runs.
const NODE_REPAIRS: &str = "node";
