//! The texts of real QEMU machines: what we read from `info mtree` and render must be what the same QEMU
//! prints for `info mtree -f`, line for line.
//!
//! The texts are no part of this repository; without them the tests say so, and check nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use memory_model::mtree::Mtree;

/// The folder of the texts, if it is here.
fn folder() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/qemu");
    if !folder.is_dir() {
        println!("not checked: the texts of QEMU are not at {}", folder.display());
        return None;
    }
    Some(folder)
}

/// The machines: `NAME`, `NAME.start` or `NAME.stepNN` of all files `….flat.txt`.
fn machines(folder: &Path) -> BTreeSet<String> {
    let files = fs::read_dir(folder).expect("the folder can be read");
    let names = files.map(|file| file.expect("a file").file_name().into_string().expect("UTF-8"));
    names.filter_map(|name| Some(name.strip_suffix(".flat.txt")?.to_owned())).collect()
}

/// One text of a machine, if QEMU was asked for it.
fn read(folder: &Path, machine: &str, kind: &str) -> Option<String> {
    fs::read_to_string(folder.join(format!("{machine}.{kind}.txt"))).ok()
}

/// One `FlatView` block: the spaces that share it, and its lines.
#[derive(PartialEq, Eq, PartialOrd, Ord, Debug)]
struct View {
    spaces: Vec<String>,
    lines: Vec<String>,
}

/// The blocks without what varies: their numbers and order, and where KVM has slots.
fn views(flat: &str) -> Vec<View> {
    let mut views = Vec::new();
    for block in flat.split("\n\n").filter(|block| !block.trim().is_empty()) {
        let lines = block.lines().skip(1).map(|line| line.strip_suffix(" KVM").unwrap_or(line).to_owned());
        let (mut spaces, lines): (Vec<_>, Vec<_>) = lines.partition(|line| line.starts_with(" AS "));
        spaces.sort();
        views.push(View { spaces, lines });
    }
    views.sort();
    views
}

fn parse(machine: &str, kind: &str, text: &str) -> Mtree {
    Mtree::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{machine}.{kind}: {error}"))
}

/// Renders a text of every machine that has one, but for those in `but`; gives the number of views compared.
fn assert_views(folder: &Path, kind: &str, but: &[&str]) -> usize {
    let mut compared = 0;
    for machine in machines(folder).iter().filter(|machine| !but.contains(&machine.as_str())) {
        let Some(text) = read(folder, machine, kind) else { continue };
        let expected = views(&read(folder, machine, "flat").expect("every machine has one"));
        let rendered = views(&parse(machine, kind, &text).flat_text().unwrap().to_string());
        assert_eq!(rendered, expected, "{machine}.{kind}");
        compared += expected.len();
    }
    println!("{compared} flat views of {kind} texts are QEMU's own");
    compared
}

#[test]
fn views_from_texts_with_owners_are_qemus() {
    let Some(folder) = folder() else { return };
    assert!(assert_views(&folder, "mtree-oD", &[]) >= 8 * 3);
}

/// In `q35-bridges-fw` only the owners tell which bridge is behind an alias; see below for `q35-overlap-a`.
const NOT_FROM_NAMES: [&str; 2] = ["q35-bridges-fw", "q35-overlap-a"];

#[test]
fn views_from_texts_with_disabled_regions_are_qemus() {
    let Some(folder) = folder() else { return };
    assert!(assert_views(&folder, "mtree-D", &NOT_FROM_NAMES) >= 60 * 3);
}

#[test]
fn views_from_plain_texts_are_qemus() {
    let Some(folder) = folder() else { return };
    assert!(assert_views(&folder, "mtree", &NOT_FROM_NAMES) >= 40 * 3);
}

/// The text does not tell who was added last. These two machines print the same tree of `memory`, and show
/// different things: what we render is right for one of them, and for the other wherever the two agree.
#[test]
fn overlap_a_is_the_one_machine_whose_text_cannot_tell() {
    let Some(folder) = folder() else { return };
    let text = |machine| read(&folder, machine, "mtree-D").expect("it is in the folder");
    let memory = |machine| {
        let text = text(machine);
        let block = text.split("\n\n").find(|block| block.contains("address-space: memory\n"));
        block.expect("every machine has a memory").to_owned()
    };
    assert_eq!(memory("q35-overlap-a"), memory("q35-overlap-b"));
    let rendered =
        views(&parse("q35-overlap-a", "mtree-D", &text("q35-overlap-a")).flat_text().unwrap().to_string());
    let expected = views(&read(&folder, "q35-overlap-a", "flat").expect("every machine has one"));
    let different: Vec<_> = rendered.iter().zip(&expected).filter(|(ours, qemus)| ours != qemus).collect();
    for (ours, qemus) in &different {
        assert_eq!(ours.spaces, qemus.spaces);
        let vram = |view: &View| view.lines.iter().filter(|line| line.contains("bochs-display-vram")).count();
        assert_eq!((vram(ours), vram(qemus)), (1, 2), "the two cards' memories overlap");
        let rest = |view: &View| {
            let mut lines = view.lines.clone();
            lines.retain(|line| !line.contains("bochs-display-vram"));
            lines
        };
        assert_eq!(rest(ours), rest(qemus));
    }
    let spaces: Vec<_> = different.iter().flat_map(|(ours, _)| &ours.spaces).map(String::as_str).collect();
    let known = [
        " AS \"cpu-memory-0\", root: system",
        " AS \"memory\", root: system",
        " AS \"cpu-smm-0\", root: memory",
    ];
    assert_eq!(spaces, known);
}

/// The text without owners, which a tree does not keep.
fn without_owners(text: &str) -> String {
    let owner = |line: &str| [" owner:{", " parent:{"].iter().filter_map(|word| line.find(word)).min();
    text.lines().map(|line| format!("{}\n", &line[..owner(line).unwrap_or(line.len())])).collect()
}

#[test]
fn what_is_read_prints_as_it_was() {
    let Some(folder) = folder() else { return };
    let mut printed = 0;
    for machine in machines(&folder) {
        for (kind, disabled) in [("mtree", false), ("mtree-D", true), ("mtree-oD", true)] {
            let Some(text) = read(&folder, &machine, kind) else { continue };
            let ours = parse(&machine, kind, &text).text(disabled).to_string();
            similar(&ours, &without_owners(&text), &format!("{machine}.{kind}"));
            printed += 1;
        }
    }
    assert!(printed > 100, "{printed}");
}

/// Which region each alias means decides the order of the blocks: it comes out as QEMU's, found anew. Not so
/// in `q35-amd-iommu`: its many `amdvi_root` are alike even in their owners, and any of them will do.
#[test]
fn blocks_are_in_the_order_in_which_aliases_are_met() {
    let Some(folder) = folder() else { return };
    for machine in machines(&folder).into_iter().filter(|machine| machine != "q35-amd-iommu") {
        let kind = if read(&folder, &machine, "mtree-oD").is_some() { "mtree-oD" } else { "mtree-D" };
        let Some(text) = read(&folder, &machine, kind) else { continue };
        let parsed = parse(&machine, kind, &text);
        let anew = Mtree::new(parsed.tree().clone(), parsed.spaces().to_vec()).unwrap();
        similar(&anew.text(true).to_string(), &parsed.text(true).to_string(), &format!("{machine}.{kind}"));
    }
}

/// Fails at the first line that differs.
#[track_caller]
fn similar(ours: &str, qemus: &str, name: &str) {
    for (number, (ours, qemus)) in ours.lines().zip(qemus.lines()).enumerate() {
        assert_eq!(ours, qemus, "{name}, line {}", number + 1);
    }
    assert_eq!(ours.lines().count(), qemus.lines().count(), "{name}");
}
