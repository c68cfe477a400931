use std::collections::{BTreeMap, BTreeSet};

use super::{
    super::drift::{ChangedBy, Drift, DriftChange, DriftSubject},
    ObservedTable,
};
use crate::state::{Key, Object, Route};

/// Routes of others that the kernel takes instead of routes that may be wanted: to the same destination, with a lower metric.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    routes: BTreeMap<Key, Route>,
    /// Those that were known before the listing that goes on.
    before: BTreeMap<Key, Route>,
    /// The keys of the other routes, for which that has changed since it was last told.
    changed: BTreeMap<Key, ChangedBy>,
}

impl Overrides {
    pub(super) fn added(&mut self, route: Route, by: ChangedBy) {
        if self.routes.insert(route_key(&route), route) != Some(route) {
            self.changed.insert(usual_key(&route), by);
        }
    }

    pub(super) fn removed(&mut self, route: &Route, by: ChangedBy) {
        if self.routes.remove(&route_key(route)).is_some() {
            self.changed.insert(usual_key(route), by);
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
        let keys: BTreeSet<_> = before.keys().chain(self.routes.keys()).collect();
        for key in keys.into_iter().filter(|key| before.get(key) != self.routes.get(key)) {
            let route = before.get(key).or_else(|| self.routes.get(key));
            self.changed.extend(route.map(|route| (usual_key(route), ChangedBy::Unknown)));
        }
    }

    /// The route that is taken instead of the one at `key`: of several the one with the lowest metric.
    fn of(&self, key: &Key) -> Option<&Route> {
        let Key::Route(destination, table, metric) = *key else { return None };
        let lower = Key::Route(destination, table, 0)..Key::Route(destination, table, metric);
        self.routes.range(lower).next().map(|(_, route)| route)
    }
}

impl ObservedTable {
    /// The routes that are wanted and that the kernel does not take, with those that it takes instead.
    pub(crate) fn overridden(&self) -> Vec<(Key, Route)> {
        let keys: BTreeSet<_> = self.overrides.routes.values().map(usual_key).collect();
        let keys = keys.into_iter().filter(|key| self.wanted(key).is_some());
        keys.filter_map(|key| Some((key, *self.overrides.of(&key)?))).collect()
    }

    /// The route of somebody else that could go before one of ours, if `object` is one.
    pub(super) fn as_override(&self, object: &Object) -> Option<Route> {
        let Object::Route(route) = *object else { return None };
        let goes_before = route.table == self.mark.table
            && route.metric < Route::new(route.destination, 0).metric
            && self.mark.contains(route.destination);
        goes_before.then_some(route).filter(|_| !self.mark.owns(object, &self.our_devices))
    }

    pub(super) fn has_changed_overrides(&self) -> bool {
        self.overrides.changed.keys().any(|key| self.wanted(key).is_some())
    }

    pub(super) fn take_changed_overrides(&mut self) -> Vec<Drift> {
        let changed = std::mem::take(&mut self.overrides.changed);
        let wanted = changed.into_iter().filter(|(key, _)| self.wanted(key).is_some());
        let drift = |(key, by): (Key, ChangedBy)| Drift {
            subject: DriftSubject::Object(key),
            change: match self.overrides.of(&key) {
                Some(route) => DriftChange::Overridden((*route).into()),
                None => DriftChange::MayWorkNow,
            },
            by,
        };
        wanted.map(drift).collect()
    }
}

/// The key of a route of ours to the same destination: it has the kernel's usual metric.
fn usual_key(route: &Route) -> Key {
    route_key(&Route { table: route.table, ..Route::new(route.destination, 0) })
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
}
