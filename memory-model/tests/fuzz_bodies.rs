//! The bodies of the fuzz targets, driven by random bytes on a stable compiler.

#[path = "../fuzz/bodies/mtree.rs"]
mod mtree;
#[path = "../fuzz/bodies/updates.rs"]
mod updates;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// What a text is made of: put together at random it is a machine now and then.
const PIECES: [&str; 34] = [
    "address-space: a\n",
    "address-space: a\naddress-space: b\n",
    "memory-region: x\n",
    "memory-region: y\n",
    "\naddress-space: a\n  0000000000000000-ffffffffffffffff (prio 0, i/o): x\n",
    "\nmemory-region: x\n  0000000000000000-00000000000fffff (prio 0, i/o): x\n",
    "\nmemory-region: y\n  0000000000001000-0000000000001fff (prio 0, ram): y\n",
    "\nmemory-region: pc.ram\n  0000000000000000-0000000000001fff (prio 0, ram): pc.ram\n",
    "    0000000000000000-0000000000000fff (prio 1, i/o): alias x @y 0000000000000000-0000000000000fff\n",
    "    0000000000001000-0000000000001fff (prio 0, i/o): alias y @x 0000000000000000-0000000000000fff\n",
    "    0000000000002000-0000000000003fff (prio -1, ram): alias pam-rom @pc.ram 0000000000000800-00000000000027ff\n",
    "    0000000000001000-0000000000001fff (prio 0, ram): y\n",
    "    0000000000000400-00000000ffffffff (prio 0, i/o): io\n",
    "      0000000000000800-0000000000000fff (prio 0, romd): flash [disabled]\n",
    "      0000000000000800-0000000000000fff (prio 0, nv-ram): nv owner:{dev id=a}\n",
    "[DETECTED OVERFLOW!]     ffffffffffffff00-00000000000000ff (prio 0, i/o): wraps\n",
    "\n",
    "\r\n",
    "  ",
    "    ",
    "      ",
    "0000000000000000-0000000000000fff",
    "ffffffffffffffff-0000000000000000",
    " (prio 0, i/o): ",
    " (prio -2147483648, rom): ",
    "x",
    "pc.ram",
    "alias ",
    " @x",
    " [disabled]",
    " owner:{dev id=a}",
    " parent:{obj path=/a}",
    " orphan",
    "\u{e9}",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..200)) {
        mtree::run(&bytes);
    }

    #[test]
    fn any_text_of_the_right_pieces_is_read_or_refused(pieces in vec(select(&PIECES[..]), 0..40)) {
        mtree::run(pieces.concat().as_bytes());
    }

    /// Blocks that fit together: most of these are machines.
    #[test]
    fn any_blocks_are_read_or_refused(pieces in vec(select(&PIECES[4..15]), 0..20)) {
        mtree::run(["address-space: a\n", &pieces.concat()].concat().as_bytes());
    }

    #[test]
    fn any_updates_keep_the_rules(bytes in vec(any::<u8>(), 0..1000)) {
        updates::run(&bytes);
    }
}
