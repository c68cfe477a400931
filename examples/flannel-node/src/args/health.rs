//! Where this node answers questions about its health.

use std::net::{IpAddr, SocketAddr};

use clap::{ArgAction, Args};

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

    /// Answer /explain there too, which kubectl flannel explain needs: whoever reaches the port learns of this host's routes and rules.
    #[arg(long, value_name = "BOOL", value_parser = values::switch, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(crate) healthz_explain: bool,
}

impl HealthArgs {
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        let port = u16::try_from(self.healthz_port).ok().filter(|port| *port != 0)?;
        Some(SocketAddr::new(self.healthz_ip, port))
    }
}
