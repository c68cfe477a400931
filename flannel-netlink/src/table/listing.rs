use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use super::{Table, TableError, observed::Listed};
use crate::{
    KernelError, Message, Request, list_links,
    state::{
        Address, AddressFilter, ForwardingEntry, IpFamily, Key, Neighbour, Nexthop, Object, Route,
    },
};

/// When the kernel was listed, and how long that took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listing {
    pub(super) at: Instant,
    pub(super) took: Duration,
}

/// What was read of a listing so far. It has few parts, and each is tried ten times at most.
#[derive(Debug, Default)]
struct Parts {
    attempts: u16,
    listed: Vec<Listed>,
}

impl Table {
    /// Reads everything that concerns this owner and corrects the observed; returns how many objects
    /// were read.
    pub(super) async fn list(&mut self) -> Result<usize, TableError> {
        let started = Instant::now();
        self.catch_up()?;
        let links = list_links(&mut self.connection).await.map_err(failed("links"))?;
        let mut networks: BTreeSet<u32> = links
            .iter()
            .filter(|link| self.observed.mark().devices.contains(&link.name))
            .map(|link| link.index)
            .collect();
        let mut tables = BTreeSet::from([self.observed.mark().table]);
        for key in self.observed.wanted_keys() {
            match key {
                Key::ForwardingEntry(link, _) | Key::Neighbour(link, _) => networks.insert(link),
                Key::Route(_, table, _) => tables.insert(table),
                Key::Address(..) | Key::Nexthop(_) => false,
            };
        }

        let read_links = links.len();
        self.observed.begin_listing(links);
        let mut parts = Parts::default();
        let addresses = (Address::list(AddressFilter::default()), "addresses");
        self.list_part(&mut parts, addresses, Address::parse).await?;
        if self.nexthops_supported {
            let nexthops = (Nexthop::list(), "nexthop objects");
            self.list_part(&mut parts, nexthops, Nexthop::parse).await?;
        }
        for link in networks {
            let entries = (ForwardingEntry::list(link), "forwarding entries");
            self.list_part(&mut parts, entries, ForwardingEntry::parse).await?;
            let neighbours = (Neighbour::list(link), "neighbours");
            self.list_part(&mut parts, neighbours, Neighbour::parse).await?;
        }
        for table in tables {
            for family in IpFamily::ALL {
                let routes = (Route::list(table, family), "routes");
                let parse = |message: &Message<'_>| {
                    Route::parse(message).filter(|route| route.table == table)
                };
                self.list_part(&mut parts, routes, parse).await?;
            }
        }

        let (read, foreign) = self.observed.end_listing(parts.listed);
        self.left_alone = foreign;
        self.last_listing = Some(Listing { at: Instant::now(), took: started.elapsed() });
        Ok(read_links + read)
    }

    /// Reads the answer to one request into the observed as it comes, so that a large one takes no
    /// memory. What the kernel says about a missing set is read as an empty one.
    async fn list_part<T: Into<Object>>(
        &mut self,
        parts: &mut Parts,
        (request, what): (Request, &'static str),
        parse: impl Fn(&Message<'_>) -> Option<T>,
    ) -> Result<(), TableError> {
        let observed = &mut self.observed;
        let begin = || {
            parts.attempts += 1;
            Listed::new(parts.attempts)
        };
        let dumped = self.connection.dump_into(&request, begin, |listed, message| {
            if let Some(object) = parse(message) {
                observed.list(listed, object.into());
            }
        });
        match dumped.await {
            Ok(listed) => parts.listed.push(listed),
            Err(error) if error.not_found() || error.unsupported() => {}
            Err(error) => return Err(failed(what)(error)),
        }
        Ok(())
    }

    /// Learns which nexthop numbers are taken, and which of them are ours from before.
    pub(super) async fn read_nexthops(&mut self) -> Result<(), TableError> {
        match self.connection.dump(&Nexthop::list(), Nexthop::parse).await {
            Ok(nexthops) => {
                for nexthop in nexthops {
                    let ours =
                        self.observed.mark().owns(&nexthop.into(), self.observed.our_devices());
                    self.nexthop_ids.note(&nexthop, ours);
                }
            }
            Err(error) if error.unsupported() => self.nexthops_supported = false,
            Err(error) => return Err(failed("nexthop objects")(error)),
        }
        Ok(())
    }
}

fn failed(what: &'static str) -> impl Fn(KernelError) -> TableError {
    move |source| TableError::List { what, source }
}
