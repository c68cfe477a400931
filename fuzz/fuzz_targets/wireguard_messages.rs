#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| flannel_fuzz::wireguard_messages(bytes));
