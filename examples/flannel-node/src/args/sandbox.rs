//! How much a node gives up.

use clap::{Args, ValueEnum};

/// How much a node gives up.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct SandboxArgs {
    /// Whether to give up capabilities, new privileges and files that a node does not need, as far as the kernel can.
    #[arg(long, value_name = "MODE", value_enum, default_value_t)]
    pub(crate) sandbox: Sandbox,
}

/// Whether to give up what is not needed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum Sandbox {
    /// As far as this kernel and our rights allow; a log line says what is in force.
    #[default]
    Auto,
    /// Keep everything.
    Off,
}
