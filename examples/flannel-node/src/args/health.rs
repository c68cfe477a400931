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
    #[arg(long, value_name = "PORT", default_value_t = 0, allow_negative_numbers = true,
        value_parser = values::number_or_less(0..=i32::from(u16::MAX)))]
    pub(crate) healthz_port: i32,
}

impl HealthArgs {
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        let port = u16::try_from(self.healthz_port).ok().filter(|port| *port != 0)?;
        Some(SocketAddr::new(self.healthz_ip, port))
    }
}
