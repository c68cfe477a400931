//! Where this node answers questions about its health.

use std::net::{IpAddr, SocketAddr};

use clap::Args;

use super::values;

/// Where this node answers questions about its health.
#[derive(Args, Debug)]
pub(crate) struct HealthArgs {
    /// The address to answer /healthz, /readyz and /metrics on.
    #[arg(long, value_name = "IP", default_value = "0.0.0.0", value_parser = values::ip)]
    pub(crate) healthz_ip: IpAddr,

    /// The port to answer them on; 0 for none.
    #[arg(long, value_name = "PORT", default_value_t = 0, value_parser = values::number(0..=u16::MAX))]
    pub(crate) healthz_port: u16,
}

impl HealthArgs {
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        (self.healthz_port != 0).then(|| SocketAddr::new(self.healthz_ip, self.healthz_port))
    }
}
