//! A cluster on one machine: hosts as network namespaces on a switch, pods behind them, faults.
#![forbid(unsafe_code)]
