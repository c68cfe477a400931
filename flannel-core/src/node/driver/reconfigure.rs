//! What the node makes of a changed configuration.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::{info, warn};

use super::Driver;
use crate::{
    backend::{BackendError, Network},
    config::{Adopted, NetworkConfig, conflict},
    fault::{Activity, Fault, error_chain},
    node::session::Session,
    store::StoreError,
};

impl Driver {
    /// Takes in what the store says about the configuration.
    pub(super) fn config_changed(
        &self,
        session: &mut Session,
        item: Result<NetworkConfig, StoreError>,
    ) {
        match item {
            Ok(config) => {
                if !std::mem::replace(&mut session.config_known, true) {
                    // Those who were away with it come back now, each at its own moment.
                    session.removals.all_in_bulk(Instant::now());
                    session.keeper.retry_now();
                }
                session.new_config = Some(config);
            }
            Err(error) => {
                if matches!(error, StoreError::ConfigMissing { .. }) {
                    session.config_known = false;
                    session.removals.all_in_bulk(Instant::now());
                }
                self.fail(Activity::Config, &error);
            }
        }
    }

    /// Goes on with what of the store's configuration a running node can adopt, and says what it cannot.
    pub(super) fn adopt(
        &self,
        session: &mut Session,
        network: &mut dyn Network,
        wanted: &NetworkConfig,
    ) {
        self.succeed(Activity::Config);
        let running = session.peers.config();
        let Adopted { mut config, mut conflicts } = running.adopt(wanted);
        if let Err(error) = change_backend(network, running, &config) {
            let fault = if is_migration(running, &config) {
                conflict("Backend.Type", running.backend().kind(), config.backend().kind())
            } else {
                conflict("Backend", running.backend(), config.backend())
            };
            conflicts.push(Fault {
                reason: format!("{}: {}", fault.reason, error_chain(&error)),
                ..fault
            });
            config = config.with_backend_of(running);
        }
        for conflict in &conflicts {
            warn!("{conflict}");
        }
        self.status.send_if_modified(|status| status.set_faults(Activity::Config, conflicts));
        if config == *running {
            return;
        }
        info!(
            config = serde_json::to_string(&config.without_secrets()).unwrap_or_default(),
            "network config changed, adopting it"
        );
        self.status.send_modify(|status| status.config = Some(config.clone()));
        Arc::make_mut(&mut session.peers).set_config(config);
        session.sync_at = Some(Instant::now());
        self.show_peers(session);
    }
}

/// Whether the backend itself is another, not only its options.
fn is_migration(running: &NetworkConfig, wanted: &NetworkConfig) -> bool {
    running.backend().kind() != wanted.backend().kind()
}

/// Lets the network go on with the backend of `wanted`.
fn change_backend(
    network: &mut dyn Network,
    running: &NetworkConfig,
    wanted: &NetworkConfig,
) -> Result<(), BackendError> {
    if is_migration(running, wanted) {
        network.migrate(wanted)
    } else if running.backend() != wanted.backend() {
        network.reconfigure(wanted.backend())
    } else {
        Ok(())
    }
}
