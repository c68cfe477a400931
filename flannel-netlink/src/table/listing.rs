use tokio::time::Instant;

use super::{Listing, Table, TableError};
use crate::{
    KernelError, list_addresses, list_forwarding, list_links, list_neighbours, list_nexthops,
    list_routes,
    state::{AddressFilter, IpFamily, Key, Nexthop, Object},
};

impl Table {
    /// Reads everything that concerns this owner and corrects the picture; returns how many objects
    /// were read.
    pub(super) async fn list(&mut self) -> Result<usize, TableError> {
        let started = Instant::now();
        self.catch_up()?;
        let connection = &mut self.connection;
        let links = list_links(connection).await.map_err(failed("links"))?;
        let mut objects: Vec<Object> = Vec::new();
        let (mut networks, mut tables) = (Vec::new(), [self.picture.mark().table].to_vec());
        for key in self.picture.wanted_keys() {
            match key {
                Key::ForwardingEntry(link, _) | Key::Neighbour(link, _) => networks.push(*link),
                Key::Route(_, table, _) => tables.push(*table),
                Key::Address(..) | Key::Nexthop(_) => {}
            }
        }
        let ours = links.iter().filter(|link| self.picture.mark().devices.contains(&link.name));
        networks.extend(ours.map(|link| link.index));
        for list in [&mut networks, &mut tables] {
            list.sort_unstable();
            list.dedup();
        }

        let addresses = list_addresses(connection, AddressFilter::default()).await;
        objects.extend(addresses.map_err(failed("addresses"))?.into_iter().map(Object::from));
        if self.nexthops_supported {
            let nexthops = list_nexthops(connection).await.map_err(failed("nexthop objects"))?;
            objects.extend(nexthops.into_iter().map(Object::from));
        }
        for link in networks {
            let entries = list_forwarding(connection, link).await;
            objects.extend(
                entries.map_err(failed("forwarding entries"))?.into_iter().map(Object::from),
            );
            let neighbours = list_neighbours(connection, link).await;
            objects.extend(neighbours.map_err(failed("neighbours"))?.into_iter().map(Object::from));
        }
        for table in tables {
            for family in IpFamily::ALL {
                let routes = list_routes(connection, table, family).await;
                objects.extend(routes.map_err(failed("routes"))?.into_iter().map(Object::from));
            }
        }

        let read = links.len() + objects.len();
        self.picture.listed_links(links);
        self.left_alone = self.picture.listed(objects);
        self.last_listing = Some(Listing { at: Instant::now(), took: started.elapsed() });
        Ok(read)
    }

    /// Learns which nexthop numbers are taken, and which of them are ours from before.
    pub(super) async fn read_nexthops(&mut self) -> Result<(), TableError> {
        match self.connection.dump(&Nexthop::list(), Nexthop::parse).await {
            Ok(nexthops) => {
                for nexthop in nexthops {
                    let ours =
                        self.picture.mark().owns(&nexthop.into(), self.picture.our_devices());
                    self.numbers.note(&nexthop, ours);
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
