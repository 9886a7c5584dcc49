//! Bytes as updates of an address space.
#![no_main]

#[path = "../bodies/updates.rs"]
mod updates;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| updates::run(bytes));
