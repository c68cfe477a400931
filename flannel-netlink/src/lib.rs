//! Kernel network state as data: what we want, what is there, the difference, and a batched applier.
#![forbid(unsafe_code)]
