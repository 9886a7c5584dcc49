//! Walks against memflow: builds and runs `memflow_peer`, whose dependencies the workspace does not want.
//!
//! `cargo bench -p ept --bench memflow`.

use std::process::Command;

fn main() {
    let peer = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/memflow_peer/Cargo.toml");
    let target = concat!(env!("CARGO_TARGET_TMPDIR"), "/memflow_peer");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--quiet", "--release", "--manifest-path", peer, "--target-dir", target]);
    assert!(cargo.status().expect("cargo starts").success(), "{cargo:?}");
}
