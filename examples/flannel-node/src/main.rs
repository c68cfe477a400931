//! The daemon: a flannel node made of the crates of this project.
#![forbid(unsafe_code)]

mod args;

fn main() {
    let _ = args::Cli::read(std::env::args_os(), |name| std::env::var_os(name));
}
