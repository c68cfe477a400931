//! Any of the targets under libFuzzer: the one that `FLANNEL_FUZZ_TARGET` names.
#![no_main]

use std::{env, sync::LazyLock};

use flannel_fuzz::TARGETS;

static CHECK: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = env::var("FLANNEL_FUZZ_TARGET").unwrap_or_default();
    let target = TARGETS.iter().find(|target| target.name == name);
    let names = || TARGETS.map(|target| target.name).join(", ");
    target
        .unwrap_or_else(|| panic!("FLANNEL_FUZZ_TARGET is {name:?}, expected one of {}", names()))
        .check
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| CHECK(bytes));
