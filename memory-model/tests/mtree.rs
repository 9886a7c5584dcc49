//! `info mtree` texts of our own, both ways (rule R45).

use std::sync::Arc;

use memory_model::mtree::{MAX_LEVEL, MAX_REGIONS, MAX_SEEN, Mtree, MtreeProblem, Space};
use memory_model::{Hva, MemTxAttrs, MemTxError, MmioOps, RamBlock, RegionId, RegionTree};

/// Machines of our own: the text of `info mtree`, and what it comes to.
const MACHINES: [(&str, &str, &str); 5] = [
    ("board", include_str!("data/mtree/board.mtree.txt"), include_str!("data/mtree/board.flat.txt")),
    ("bridges", include_str!("data/mtree/bridges.mtree.txt"), include_str!("data/mtree/bridges.flat.txt")),
    ("left_out", include_str!("data/mtree/left_out.mtree.txt"), include_str!("data/mtree/left_out.flat.txt")),
    ("edges", include_str!("data/mtree/edges.mtree.txt"), include_str!("data/mtree/edges.flat.txt")),
    (
        "printed_twice",
        include_str!("data/mtree/printed_twice.mtree.txt"),
        include_str!("data/mtree/printed_twice.flat.txt"),
    ),
];

fn parse(text: &str) -> Mtree {
    Mtree::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn r45_what_is_read_renders() {
    for (name, text, flat) in MACHINES {
        assert_eq!(parse(text).flat_text().unwrap().to_string(), flat, "{name}");
    }
}

#[test]
fn r45_what_is_read_prints_as_it_was() {
    for (name, text, _) in MACHINES {
        // A tree does not keep owners.
        let lines = text.lines().map(|line| line.split(" owner:").next().unwrap());
        let expected: String =
            lines.map(|line| format!("{}\n", line.split(" parent:").next().unwrap())).collect();
        assert_eq!(parse(text).text(name == "board").to_string(), expected, "{name}");
    }
}

/// Without owners the first bridge printed would be behind every alias, and would hold itself.
#[test]
fn an_alias_never_means_a_region_that_holds_it() {
    let (_, text, _) = MACHINES[1];
    let without = text.replace(" owner:{dev id=inner}", "").replace(" owner:{dev id=outer}", "");
    let flat = parse(&without).flat_text().unwrap().to_string();
    assert!(flat.contains("00000000e0000000-00000000e0000fff (prio 1, i/o): card\n"), "{flat}");
}

#[test]
fn lines_may_end_as_the_monitor_ends_them() {
    for (name, text, flat) in MACHINES {
        let text = text.replace('\n', "\r\n");
        assert_eq!(parse(&text).flat_text().unwrap().to_string(), flat, "{name}");
    }
}

struct Device;

impl MmioOps for Device {
    fn read(&self, _: u64, _: u8, _: MemTxAttrs) -> Result<u64, MemTxError> {
        Ok(0)
    }
    fn write(&self, _: u64, _: u8, _: u64, _: MemTxAttrs) -> Result<(), MemTxError> {
        Ok(())
    }
}

fn block(name: &str, size: u64) -> Arc<RamBlock> {
    RamBlock::foreign(name, Hva(0x7000_0000_0000), size).unwrap()
}

/// One region of each kind.
fn tree_of_all_kinds() -> (RegionTree, RegionId) {
    let mut tree = RegionTree::new("system", 1 << 64).unwrap();
    let root = tree.root();
    let ram = tree.ram("ram", block("ram", 0x4000)).unwrap();
    tree.add(root, 0, ram).unwrap();
    let rom = tree.rom("rom", block("rom", 0x1000)).unwrap();
    tree.add_with_priority(root, 0x1000, rom, 1).unwrap();
    for (offset, romd) in [(0x1_0000, true), (0x1_1000, false)] {
        let flash = tree.rom_device("flash", block("flash", 0x1000), Arc::new(Device)).unwrap();
        tree.set_romd(flash, romd).unwrap();
        tree.add(root, offset, flash).unwrap();
    }
    let passed = tree.ram_device("passed", block("passed", 0x1000)).unwrap();
    tree.add(root, 0x1_2000, passed).unwrap();
    let hole = tree.reservation("hole", 0x800).unwrap();
    tree.add_with_priority(root, 0x1_2800, hole, 5).unwrap();
    let window = tree.container("window", 0x2000).unwrap();
    tree.add_with_priority(root, 0x2_0000, window, -1).unwrap();
    let device = tree.mmio("device", 0x1000, Arc::new(Device)).unwrap();
    tree.add(window, 0x1000, device).unwrap();
    let mirror = tree.alias("mirror", ram, 0x3000, 0x1000).unwrap();
    tree.set_nonvolatile(mirror, true).unwrap();
    tree.add(window, 0, mirror).unwrap();
    let off = tree.alias("off", window, 0, 0x2000).unwrap();
    tree.set_enabled(off, false).unwrap();
    tree.add(root, 0x3_0000, off).unwrap();
    (tree, mirror)
}

#[test]
fn r45_every_kind_prints_as_qemu_prints_it() {
    let (tree, mirror) = tree_of_all_kinds();
    let spaces = [("memory", tree.root()), ("card", mirror), ("cpu", tree.root())];
    let spaces = spaces.map(|(name, root)| Space { name: name.to_owned(), root });
    let mtree = Mtree::new(tree, spaces.to_vec()).unwrap();
    let text = "\
address-space: memory
address-space: cpu
  0000000000000000-ffffffffffffffff (prio 0, i/o): system
    0000000000000000-0000000000003fff (prio 0, ram): ram
    0000000000001000-0000000000001fff (prio 1, rom): rom
    0000000000010000-0000000000010fff (prio 0, romd): flash
    0000000000011000-0000000000011fff (prio 0, i/o): flash
    0000000000012000-0000000000012fff (prio 0, ramd): passed
    0000000000012800-0000000000012fff (prio 5, i/o): hole
    0000000000020000-0000000000021fff (prio -1, i/o): window
      0000000000020000-0000000000020fff (prio 0, nv-ram): alias mirror @ram 0000000000003000-0000000000003fff
      0000000000021000-0000000000021fff (prio 0, i/o): device
    0000000000030000-0000000000031fff (prio 0, i/o): alias off @window 0000000000000000-0000000000001fff [disabled]

address-space: card
  0000000000000000-0000000000000fff (prio 0, nv-ram): alias mirror @ram 0000000000003000-0000000000003fff

memory-region: ram
  0000000000000000-0000000000003fff (prio 0, ram): ram

memory-region: window
  0000000000020000-0000000000021fff (prio -1, i/o): window
    0000000000020000-0000000000020fff (prio 0, nv-ram): alias mirror @ram 0000000000003000-0000000000003fff
    0000000000021000-0000000000021fff (prio 0, i/o): device

";
    assert_eq!(mtree.text(true).to_string(), text);
    let enabled = text.lines().filter(|line| !line.contains("[disabled]")).map(|line| format!("{line}\n"));
    assert_eq!(mtree.text(false).to_string(), enabled.collect::<String>());
    let flat = "\
FlatView #0
 AS \"memory\", root: system
 AS \"cpu\", root: system
 Root memory region: system
  0000000000000000-0000000000000fff (prio 0, ram): ram
  0000000000001000-0000000000001fff (prio 1, rom): rom
  0000000000002000-0000000000003fff (prio 0, ram): ram @0000000000002000
  0000000000010000-0000000000010fff (prio 0, romd): flash
  0000000000011000-0000000000011fff (prio 0, i/o): flash
  0000000000012000-00000000000127ff (prio 0, ramd): passed
  0000000000012800-0000000000012fff (prio 5, i/o): hole
  0000000000020000-0000000000020fff (prio 0, nv-ram): ram @0000000000003000
  0000000000021000-0000000000021fff (prio 0, i/o): device

FlatView #1
 AS \"card\", root: mirror, alias ram
 Root memory region: mirror
  0000000000000000-0000000000000fff (prio 0, nv-ram): ram @0000000000003000

";
    assert_eq!(mtree.flat_text().unwrap().to_string(), flat);
}

#[test]
fn roots_of_another_tree_are_refused() {
    let (tree, mirror) = tree_of_all_kinds();
    drop(tree);
    let other = RegionTree::new("system", 0x1000).unwrap();
    assert!(Mtree::new(other, vec![Space { name: "memory".to_owned(), root: mirror }]).is_err());
}

/// A line of a device, `levels` deep.
fn line(level: usize, rest: &str) -> String {
    format!("{:indent$}0000000000000000-0000000000000fff (prio 0, i/o): {rest}\n", "", indent = 2 * level)
}

#[track_caller]
fn assert_refused(text: impl AsRef<[u8]>, line: usize, says: &str) {
    let error = Mtree::parse(text.as_ref()).map(drop).expect_err(says);
    assert_eq!(error.line, line, "{error}");
    let error = error.to_string();
    assert!(error.starts_with(&format!("line {line}: ")) && error.contains(says), "{error:?}: not {says:?}");
}

#[test]
fn what_is_no_info_mtree_is_refused_with_its_line() {
    const HEADER: &str = "address-space: memory\n";
    assert_refused("", 1, "ends without any `address-space:`");
    assert_refused("\n\n", 3, "ends without any `address-space:`");
    assert_refused("FlatView #0\n", 1, "expected `address-space: NAME`");
    assert_refused(line(1, "x"), 1, "under no `address-space:`");
    assert_refused([HEADER, &line(1, "x"), "\n", &line(1, "y")].concat(), 4, "under no `address-space:`");
    assert_refused([HEADER, &line(1, "x"), &line(1, "y")].concat(), 3, "a second one");
    assert_refused([HEADER, "   ", &line(1, "x")].concat(), 2, "5 spaces are no level");
    assert_refused([HEADER.as_bytes(), b"  \xff\xfe\n"].concat(), 2, "this is not text");
    assert_refused(
        [HEADER, "memory-region: x\n", &line(1, "y")].concat(),
        3,
        "the block of another region holds y",
    );
    assert_refused([HEADER, "  \x1b[2J\n"].concat(), 2, "this is not text");
    assert_refused([HEADER, &line(1, &"x".repeat(4096))].concat(), 2, "longer than 4096 bytes");
    let below = "  0000000000001000-0000000000001fff (prio 0, i/o): x\n";
    assert_refused([HEADER, below, &line(2, "y")].concat(), 3, "starts at 0x0, its container at 0x1000");
}

const ALIAS: &str = "alias a @x 0000000000000000-0000000000000fff";

#[test]
fn aliases_that_mean_nothing_or_themselves_are_refused_with_their_line() {
    let spaces = ["address-space: memory\n", &line(1, ALIAS)].concat();
    assert_refused(&spaces, 2, "no block `memory-region: x`");
    let itself = "alias x @x 0000000000000000-0000000000000fff";
    assert_refused([&spaces, "memory-region: x\n", &line(1, itself)].concat(), 4, "x would show itself");
    let inside = [&spaces, "memory-region: x\n", &line(1, "x"), &line(2, ALIAS)].concat();
    assert_refused(inside, 5, "x would show itself");
    assert_refused(format!("{spaces}{}", line(2, "child")), 3, "an alias, it cannot hold");
}

#[test]
fn ram_of_the_whole_space_is_refused_with_its_line() {
    let text = "address-space: memory\n  0000000000000000-ffffffffffffffff (prio 0, ram): x\n";
    assert_refused(text, 2, "region x");
    // Whole pages are no condition.
    let text = text.replace("0000-ffffffffffffffff", "0001-0000000000000801");
    assert_eq!(parse(&text).text(true).to_string(), text + "\n");
}

#[test]
fn size_and_depth_are_bounded() {
    let header = "address-space: memory\n";
    assert_refused([header, &line(MAX_LEVEL + 1, "x")].concat(), 2, "level 65 is deeper than 64");
    let deep: String = (1..=MAX_LEVEL).map(|level| line(level, "x")).collect();
    assert!(Mtree::parse([header, &deep].concat().as_bytes()).is_ok());
    let many = line(2, "y").repeat(MAX_REGIONS);
    let text = [header, &line(1, "x"), &many].concat();
    assert_refused(text, MAX_REGIONS + 2, "more than 65536 regions");
    // Regions left out count too.
    let text = [header, &line(1, "x"), &[line(MAX_LEVEL, "y"), line(2, "z")].concat().repeat(2000)].concat();
    assert!(Mtree::parse(text.as_bytes()).is_err_and(|error| matches!(error.problem, MtreeProblem::TooMany)));
}

/// Blocks `0` to `count`, each with `aliases` of the next one.
fn ladder(count: usize, aliases: usize) -> String {
    let mut text =
        ["address-space: memory\n", &line(1, "alias a @0 0000000000000000-0000000000000fff")].concat();
    for block in 0..count {
        let alias = format!("alias a @{} 0000000000000000-0000000000000fff", block + 1);
        let aliases = line(2, &alias).repeat(aliases);
        text +=
            &["\nmemory-region: ", &block.to_string(), "\n", &line(1, &block.to_string()), &aliases].concat();
    }
    text + "\nmemory-region: " + &count.to_string() + "\n" + &line(1, &count.to_string())
}

#[test]
fn what_aliases_repeat_is_bounded() {
    assert!(Mtree::parse(ladder(100, 1).as_bytes()).is_ok());
    assert_refused(ladder(200, 1), 293, "nested deeper than 256");
    assert!(Mtree::parse(ladder(15, 2).as_bytes()).unwrap().flat_text().is_ok());
    let text = ladder(60, 2);
    assert_refused(text, 2, &format!("more than {MAX_SEEN} regions"));
}
