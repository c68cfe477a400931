use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;

use super::{
    super::{
        drift::{ChangedBy, Drift, DriftChange, DriftSubject},
        mark::{blocks_around, encloses},
    },
    ObservedTable,
};
use crate::state::{Key, Object, Route};

/// Routes of others that the kernel may take instead of ours: those with a lower metric to the same destination, and those to a part
/// of it.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    routes: BTreeMap<Key, Route>,
    /// The destinations whose routes have changed since it was last told what is taken, and who did that.
    changed: BTreeMap<IpNetwork, ChangedBy>,
    /// What was told of each destination.
    told: BTreeMap<IpNetwork, Route>,
    /// Those that were known before the listing that goes on.
    before: BTreeMap<Key, Route>,
    /// The blocks of this host's own pods: routes there are not ours to judge.
    pub(super) local: Vec<IpNetwork>,
}

impl Overrides {
    pub(super) fn added(&mut self, route: Route, by: ChangedBy) {
        if self.routes.insert(route_key(&route), route) != Some(route) {
            self.changed.insert(route.destination, by);
        }
    }

    pub(super) fn removed(&mut self, route: &Route, by: ChangedBy) {
        if self.routes.remove(&route_key(route)).is_some() {
            self.changed.insert(route.destination, by);
        }
    }

    pub(super) fn begin_listing(&mut self) {
        self.before = std::mem::take(&mut self.routes);
    }

    pub(super) fn list(&mut self, route: Route) {
        self.routes.insert(route_key(&route), route);
    }

    pub(super) fn end_listing(&mut self) {
        let before = std::mem::take(&mut self.before);
        let differs = |key: &Key| before.get(key) != self.routes.get(key);
        let known = before.iter().chain(&self.routes).filter(|(key, _)| differs(key));
        self.changed.extend(known.map(|(_, route)| (route.destination, ChangedBy::Unknown)));
    }

    /// The route to `destination` with the lowest metric.
    fn first(&self, destination: IpNetwork, table: u32) -> Option<&Route> {
        let metrics = Key::Route(destination, table, 0)..=Key::Route(destination, table, u32::MAX);
        self.routes.range(metrics).next().map(|(_, route)| route)
    }
}

impl ObservedTable {
    /// The routes that are wanted and that the kernel does not take, or not for all of their destinations, with those that it takes
    /// instead.
    pub(crate) fn overridden(&self) -> Vec<(Key, Route)> {
        let destinations: BTreeSet<_> =
            self.overrides.routes.values().map(|route| route.destination).collect();
        destinations.into_iter().filter_map(|it| self.override_at(it)).collect()
    }

    /// The wanted route that leads to all of `block`, if there is one; of several the narrowest.
    pub(crate) fn route_to(&self, block: IpNetwork) -> Option<Key> {
        let mut around = blocks_around(block).take_while(|it| self.mark.contains(*it));
        around.find_map(|it| self.entries.wanted_route(it, self.mark.table))
    }

    /// The route of somebody else that the kernel takes to `destination` instead of a wanted one.
    fn override_at(&self, destination: IpNetwork) -> Option<(Key, Route)> {
        let other = *self.overrides.first(destination, self.mark.table)?;
        let key = self.route_to(destination)?;
        let Key::Route(ours, _, metric) = key else { return None };
        (ours != destination || other.metric < metric).then_some((key, other))
    }

    /// The route of somebody else that could go before one of ours, if `object` is one.
    pub(super) fn as_override(&self, object: &Object) -> Option<Route> {
        let Object::Route(route) = *object else { return None };
        let is_local = || self.overrides.local.iter().any(|own| encloses(own, &route.destination));
        let may_go_before = route.table == self.mark.table
            && self.mark.contains(route.destination)
            && !is_local()
            && self.mark.sibling != Some(route.protocol)
            && !self.mark.owns(object, &self.our_devices);
        may_go_before.then_some(route)
    }

    pub(super) fn has_changed_overrides(&self) -> bool {
        self.overrides
            .changed
            .keys()
            .any(|destination| self.override_change(*destination).is_some())
    }

    pub(super) fn take_changed_overrides(&mut self) -> Vec<Drift> {
        let mut drifts = Vec::new();
        for (destination, by) in std::mem::take(&mut self.overrides.changed) {
            let change = self.override_change(destination);
            match self.override_at(destination) {
                Some((_, other)) => self.overrides.told.insert(destination, other),
                None => self.overrides.told.remove(&destination),
            };
            drifts.extend(change.map(|(key, change)| Drift {
                subject: DriftSubject::Object(key),
                change,
                by,
            }));
        }
        drifts
    }

    /// What there is to tell of a destination: of which wanted route, and what has become of it.
    fn override_change(&self, destination: IpNetwork) -> Option<(Key, DriftChange)> {
        match (self.override_at(destination), self.overrides.told.get(&destination)) {
            (Some((_, other)), Some(told)) if other == *told => None,
            (Some((key, other)), _) => Some((key, DriftChange::Overridden(other.into()))),
            (None, Some(_)) => Some((self.route_to(destination)?, DriftChange::MayWorkNow)),
            (None, None) => None,
        }
    }
}

const fn route_key(route: &Route) -> Key {
    Key::Route(route.destination, route.table, route.metric)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        table::{Mark, observed::Listed},
        watch::{Notice, Subject},
    };

    const OURS: u32 = 1;

    fn route(metric: u32) -> Route {
        let gateway = "2001:db8::9".parse().unwrap();
        let route = Route::new("fd00:1::/64".parse().unwrap(), 3).via_gateway(gateway, 2);
        Route { metric, ..route }
    }

    fn told(table: &mut ObservedTable, subject: Route, is_there: bool) -> Vec<DriftChange> {
        let subject = Subject::Object(subject.into());
        let notice = match is_there {
            true => Notice::Added { subject, replaces: false, port: 7 },
            false => Notice::Removed { subject, port: 7 },
        };
        table.fold(notice, OURS);
        let has = table.has_changes(|_| true);
        let mut changes: Vec<_> =
            table.take_changes(|_| true).into_iter().map(|drift| drift.change).collect();
        assert_eq!(has, !changes.is_empty());
        changes.retain(|it| matches!(it, DriftChange::Overridden(_) | DriftChange::MayWorkNow));
        changes
    }

    fn listed(table: &mut ObservedTable, routes: &[Route]) -> Vec<DriftChange> {
        table.begin_listing(vec![]);
        let mut part = Listed::new(1);
        for route in routes {
            table.list(&mut part, (*route).into());
        }
        table.end_listing(vec![part]);
        table.take_changes(|_| true).into_iter().map(|drift| drift.change).collect()
    }

    #[test]
    fn a_route_of_a_sibling_is_no_override() {
        let mut mark = Mark::new(90, ["fd00::/16".parse().unwrap()]);
        mark.sibling = Some(91);
        let mut table = ObservedTable::new(mark);
        table.want(Route { protocol: 90, ..route(1024) }.into(), 0);
        assert_eq!(told(&mut table, Route { protocol: 91, ..route(512) }, true), []);
        assert_eq!(told(&mut table, Route { protocol: 92, ..route(512) }, true).len(), 1);
    }

    #[test]
    fn a_route_of_lower_metric_goes_before_a_wanted_one_and_no_other_does() {
        let mut table = ObservedTable::new(Mark::new(90, ["fd00::/16".parse().unwrap()]));
        let ours = Route { protocol: 90, ..route(1024) };
        table.want(ours.into(), 0);
        assert_eq!(listed(&mut table, &[ours]), []);
        let over = |route: Route| DriftChange::Overridden(route.into());
        for other in [
            route(1025),
            Route { protocol: 90, ..route(512) },
            Route { table: 100, ..route(512) },
            Route { destination: "fd01:1::/64".parse().unwrap(), ..route(512) },
            Route { destination: "fd00:2::/64".parse().unwrap(), ..route(512) },
        ] {
            assert_eq!(told(&mut table, other, true), [], "{other:?}");
            assert_eq!(table.overridden(), []);
        }
        assert_eq!(told(&mut table, route(512), true), [over(route(512))]);
        assert_eq!(told(&mut table, route(512), true), [], "it is known");
        assert_eq!(told(&mut table, route(256), true), [over(route(256))]);
        assert_eq!(table.overridden(), [(Object::from(ours).key(), route(256))], "the lowest");
        assert_eq!(told(&mut table, route(256), false), [over(route(512))]);
        assert_eq!(told(&mut table, route(512), false), [DriftChange::MayWorkNow]);
        assert_eq!(table.overridden(), []);
    }

    #[test]
    fn a_listing_finds_what_came_and_went_unheard_of() {
        let mut table = ObservedTable::new(Mark::new(90, ["fd00::/16".parse().unwrap()]));
        let ours = Route { protocol: 90, ..route(1024) };
        table.want(ours.into(), 0);
        let over = DriftChange::Overridden(route(512).into());
        assert_eq!(listed(&mut table, &[ours, route(512)]), [over]);
        assert_eq!(listed(&mut table, &[ours, route(512)]), []);
        assert_eq!(listed(&mut table, &[ours]), [DriftChange::MayWorkNow]);
        // Whoever wants the route later is told of what stands before it.
        listed(&mut table, &[route(512)]);
        table.forget(&Object::from(ours).key());
        table.want(ours.into(), 0);
        assert_eq!(table.overridden().len(), 1);
    }
    #[test]
    fn a_route_to_a_part_goes_before_one_to_all_of_it() {
        let block = |text: &str| text.parse::<IpNetwork>().unwrap();
        let to = |text, metric| {
            let route = Route::new(block(text), 3).via_gateway([192, 0, 2, 9].into(), 2);
            Route { metric, ..route }
        };
        let mut table = ObservedTable::new(Mark::new(90, [block("10.3.0.0/16")]));
        table.overrides.local = vec![block("10.3.1.0/24")];
        let network = Route { protocol: 90, ..to("10.3.0.0/16", 100) };
        let narrow = Route { protocol: 90, ..to("10.3.9.0/24", 100) };
        table.want(network.into(), 0);
        table.want(narrow.into(), 0);
        let key = |route: Route| Object::from(route).key();
        assert_eq!(table.route_to(block("10.3.7.0/24")), Some(key(network)));
        assert_eq!(table.route_to(block("10.3.9.0/24")), Some(key(narrow)));
        let over = |route: Route| DriftChange::Overridden(route.into());
        for other in [to("10.3.1.7/32", 0), to("10.3.9.0/24", 200), to("10.4.7.0/24", 0)] {
            assert_eq!(told(&mut table, other, true), [], "{other:?}");
            assert_eq!(table.overridden(), []);
            assert_eq!(told(&mut table, other, false), []);
        }
        for (other, ours) in [
            (to("10.3.0.0/16", 0), network),
            (to("10.3.0.0/20", 0), network),
            (to("10.3.7.0/24", 1024), network),
            (to("10.3.9.0/24", 0), narrow),
            (to("10.3.9.128/26", 1024), narrow),
        ] {
            assert_eq!(told(&mut table, other, true), [over(other)], "{other:?}");
            assert_eq!(table.overridden(), [(key(ours), other)]);
            assert_eq!(told(&mut table, other, false), [DriftChange::MayWorkNow]);
        }
    }
}
