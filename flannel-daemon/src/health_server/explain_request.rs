//! `/explain?source=IP&destination=IP`: the path between two pods through this host, as JSON. Whoever may ask learns of this host's
//! routes, neighbours and rules, and lets it send some datagrams to a pod: one path at a time, with a pause in between, and between
//! addresses of the network only.

use std::net::IpAddr;

use flannel_core::NetworkConfig;
use hyper::{Response, StatusCode, header};

use super::{text, typed};
use crate::{
    DaemonHandle, Stores,
    error::chain,
    explain::{ExplainOptions, LeaseSource, explain},
};

pub(super) async fn answer(query: &str, daemon: &DaemonHandle) -> Response<String> {
    let Some((source, destination)) = ends(query) else {
        let line = "give source and destination: the addresses of two pods, of one family\n";
        return text(StatusCode::BAD_REQUEST, line.into());
    };
    let Some(config) = daemon.status().and_then(|status| status.config) else {
        let line = "the node does not know its network yet\n";
        return text(StatusCode::SERVICE_UNAVAILABLE, line.into());
    };
    if let Some(stranger) = [source, destination].into_iter().find(|it| !is_inside(&config, *it)) {
        let line = format!("{stranger} is not in the pod network\n");
        return text(StatusCode::BAD_REQUEST, line);
    }
    let Some(_turn) = daemon.turn_to_explain() else {
        let mut busy = text(StatusCode::TOO_MANY_REQUESTS, "one path at a time\n".into());
        busy.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        return busy;
    };
    let options = ExplainOptions {
        source,
        destination,
        subnet_file: daemon.subnet_file().to_owned(),
        leases: LeaseSource::Node(daemon.clone()),
        namespace: daemon.namespace(),
    };
    match explain(&options, &Stores::empty()).await {
        Ok(explanation) => {
            let json = serde_json::to_string(&explanation);
            let json = json.expect("an explanation is valid JSON");
            typed(StatusCode::OK, "application/json", json)
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", chain(&error))),
    }
}

/// The two addresses of a query. IPv6 addresses may have their colons escaped.
fn ends(query: &str) -> Option<(IpAddr, IpAddr)> {
    let value = |wanted: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let (_, value) = pairs.find(|(name, _)| *name == wanted)?;
        value.replace("%3A", ":").replace("%3a", ":").parse::<IpAddr>().ok()
    };
    let ends = value("source").zip(value("destination"));
    ends.filter(|(source, destination)| source.is_ipv4() == destination.is_ipv4())
}

fn is_inside(config: &NetworkConfig, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => config.ipv4().is_some_and(|it| it.network().contains(address)),
        IpAddr::V6(address) => config.ipv6().is_some_and(|it| it.network().contains(address)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn two_addresses_of_one_family_inside_of_the_network_are_taken() {
        let pair = |one: &str, other: &str| Some((one.parse().unwrap(), other.parse().unwrap()));
        let expected = pair("10.3.1.2", "10.3.2.2");
        assert_eq!(ends("source=10.3.1.2&destination=10.3.2.2"), expected);
        assert_eq!(ends("x=1&destination=10.3.2.2&source=10.3.1.2"), expected);
        let expected = pair("fd00::1", "fd00::2");
        assert_eq!(ends("source=fd00%3A%3A1&destination=fd00::2"), expected);
        for query in
            ["", "source=10.3.1.2", "source=10.3.1.2&destination=fd00::2", "source=&destination="]
        {
            assert_eq!(ends(query), None, "{query}");
        }
        let config: NetworkConfig = r#"{"Network":"10.3.0.0/16"}"#.parse().unwrap();
        for (address, expected) in [("10.3.0.1", true), ("10.4.0.1", false), ("fd00::1", false)] {
            assert_eq!(is_inside(&config, address.parse().unwrap()), expected);
        }
    }

    proptest! {
        #[test]
        fn no_query_panics(query in "(source|destination|=|&|%3A|[0-9.:a-f]|\\PC){0,30}") {
            let _ = ends(&query);
        }
    }
}
