use std::collections::BTreeMap;

use tokio::time::Instant;

use super::{Action, Failure, Table, TableError, TableReport};
use crate::{
    KernelError,
    diff::Op,
    state::{Key, Nexthop, Object, Route, Via},
};

impl Table {
    /// Writes about one batch.
    pub(super) async fn write(
        &mut self,
        ops: &[Op],
        report: &mut TableReport,
        failures: &mut BTreeMap<Key, Failure>,
    ) -> Result<(), TableError> {
        let requests: Vec<_> = ops.iter().map(Op::request).collect();
        // Nobody tells us what we did ourselves if this is dropped here.
        let was_stale = self.observed.set_stale(true);
        let mut results = self.connection.apply(&requests).await;
        self.retry_with_gateway_routes(ops, &mut results).await;
        self.observed.set_stale(was_stale);
        for (op, result) in ops.iter().zip(results) {
            self.written(op, result, report, failures);
        }
        let changed_by_others = self.catch_up()?;
        // A long list of changes must not keep the other tasks of a thread waiting.
        tokio::task::yield_now().await;
        if !changed_by_others {
            return Ok(());
        }
        let now = Instant::now();
        for op in ops {
            let key = op.object().key();
            // Still not right though the kernel took it: somebody was faster.
            if matches!(op, Op::Replace(_))
                && !self.observed.fits(&key)
                && !failures.contains_key(&key)
            {
                self.repairs.repaired(key, now);
            }
        }
        Ok(())
    }

    /// Tries again what the kernel refused because a route leads elsewhere: as long as a more specific route leads to the gateway
    /// through the device itself, it takes it.
    async fn retry_with_gateway_routes(
        &mut self,
        ops: &[Op],
        results: &mut [Result<(), KernelError>],
    ) {
        let refused: Vec<_> = (0..ops.len())
            .filter(|index| results[*index].as_ref().is_err_and(KernelError::invalid))
            .collect();
        let gateway_routes: Vec<_> =
            refused.iter().filter_map(|index| gateway_route_for(&ops[*index])).collect();
        if gateway_routes.is_empty() {
            return;
        }
        // Routes through objects that were refused were refused as well.
        let routes = gateway_routes.iter().map(Route::replace);
        let again = refused.iter().map(|index| ops[*index].request());
        let requests: Vec<_> = routes.chain(again).collect();
        self.gateway_routes.extend(&gateway_routes);
        let outcomes = self.connection.apply(&requests).await;
        for (index, outcome) in refused.iter().zip(outcomes.into_iter().skip(gateway_routes.len()))
        {
            results[*index] = outcome;
        }
    }

    pub(super) async fn remove_gateway_routes(&mut self) {
        if self.gateway_routes.is_empty() {
            return;
        }
        let requests: Vec<_> = self.gateway_routes.iter().map(Route::delete).collect();
        let was_stale = self.observed.set_stale(true);
        let results = self.connection.apply(&requests).await;
        // One that stays carries our mark: a listing finds it.
        let is_gone = |result: &Result<(), KernelError>| {
            result.as_ref().err().is_none_or(KernelError::not_found)
        };
        self.observed.set_stale(was_stale || !results.iter().all(is_gone));
        self.gateway_routes.clear();
    }

    fn written(
        &mut self,
        op: &Op,
        result: Result<(), KernelError>,
        report: &mut TableReport,
        failures: &mut BTreeMap<Key, Failure>,
    ) {
        let key = op.object().key();
        let gone_already =
            matches!((op, &result), (Op::Delete(_), Err(error)) if error.not_found());
        match result {
            Err(source) if !gone_already => {
                if source.outcome_unknown() || source.exists() {
                    self.observed.set_stale(true);
                }
                self.observed.failed(key);
                let action = match op {
                    Op::Delete(_) => Action::Delete,
                    Op::Replace(_) => Action::Replace,
                };
                failures.insert(key, Failure { action, object: *op.object(), source });
            }
            _ => {
                if self.observed.take_changed_by_others(&key) {
                    self.repairs.repaired(key, Instant::now());
                }
                match (op, self.observed.done(op)) {
                    (Op::Delete(_), _) if gone_already => {}
                    (Op::Delete(_), _) => report.removed += 1,
                    (Op::Replace(_), false) => report.added += 1,
                    (Op::Replace(_), true) => report.replaced += 1,
                }
            }
        }
    }
}

/// A route through which the kernel takes an IPv6 gateway that is on the link by our word alone, while a route of its block leads
/// through another device: `Nexthop has invalid gateway or device mismatch`.
fn gateway_route_for(op: &Op) -> Option<Route> {
    let (gateway, link, protocol) = match *op {
        Op::Replace(Object::Nexthop(Nexthop { gateway, link, protocol, onlink: true, .. })) => {
            (gateway, link, protocol)
        }
        Op::Replace(Object::Route(Route {
            via: Via::Gateway(gateway),
            link: Some(link),
            protocol,
            onlink: true,
            ..
        })) => (gateway, link, protocol),
        _ => return None,
    };
    gateway.is_ipv6().then(|| Route::new(gateway.into(), protocol).direct(link))
}
