//! What is logged, and how.

use clap::{Args, ValueEnum};

use super::{values, verbosity::ModuleLevels};

/// What is logged, and how.
#[derive(Args, Debug)]
pub(crate) struct LogArgs {
    /// How logs are written to standard error.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) log_format: LogFormat,

    /// How much is logged: 0 for changes and faults, 1 for each step, 2 and more for everything.
    #[arg(short, long, value_name = "LEVEL", default_value_t = 0, value_parser = values::number(0..=u8::MAX))]
    pub(crate) v: u8,

    /// The same for single modules: patterns such as node=2,flannel_netlink*=1, matched against parts of a module's path.
    #[arg(long, value_name = "PATTERN=LEVEL,...")]
    pub(crate) vmodule: Option<ModuleLevels>,

    /// Taken for flanneld's sake; errors name what failed without a backtrace.
    #[arg(long = "log_backtrace_at", value_name = "FILE:LINE")]
    pub(crate) log_backtrace_at: Option<String>,
}

/// How logs look.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    #[default]
    Text,
}
