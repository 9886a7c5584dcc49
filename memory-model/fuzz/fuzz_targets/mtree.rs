//! Any bytes as the text of `info mtree`.
#![no_main]

#[path = "../bodies/mtree.rs"]
mod mtree;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mtree::run(bytes));
