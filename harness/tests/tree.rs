//! `memvirt tree` as a user meets it.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

const TEXT: &str = "\
address-space: memory
  0000000000000000-ffffffffffffffff (prio 0, i/o): system
    0000000000000000-0000000000ffffff (prio 0, ram): alias low @pc.ram 0000000000000000-0000000000ffffff
    00000000000a0000-00000000000bffff (prio 1, i/o): vga
    00000000000c0000-00000000000cffff (prio 1, i/o): card [disabled]

memory-region: pc.ram
  0000000000000000-0000000000ffffff (prio 0, ram): pc.ram

";

const FLAT: &str = "\
FlatView #0
 AS \"memory\", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram
  00000000000a0000-00000000000bffff (prio 1, i/o): vga
  00000000000c0000-0000000000ffffff (prio 0, ram): pc.ram @00000000000c0000

";

fn memvirt() -> Command {
    Command::new(env!("CARGO_BIN_EXE_memvirt"))
}

/// Runs `memvirt tree` on a file with these bytes, for this test alone.
fn tree(name: &str, bytes: &[u8], more: &[&str]) -> Output {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.mtree.txt"));
    std::fs::write(&path, bytes).expect("the folder for temporary files is writable");
    memvirt().arg("tree").arg(path).args(more).output().expect("the program runs")
}

#[track_caller]
fn assert_prints(output: &Output, text: &str) {
    assert_eq!(String::from_utf8_lossy(&output.stdout), text);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

/// One line on standard error that says what and where, status 2, nothing else.
#[track_caller]
fn assert_refused(output: &Output, says: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(says.iter().all(|says| error.contains(says)), "{error:?} does not say {says:?}");
    assert!(output.stdout.is_empty());
}

#[test]
fn a_tree_prints_as_it_was_read_and_flat_as_it_is_seen() {
    assert_prints(&tree("tree", TEXT.as_bytes(), &[]), TEXT);
    assert_prints(&tree("flat", TEXT.as_bytes(), &["--flat"]), FLAT);
}

#[test]
fn a_dash_reads_standard_input() {
    let mut child = memvirt()
        .args(["tree", "-", "--flat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    child.stdin.take().expect("it is piped").write_all(TEXT.as_bytes()).expect("it reads");
    assert_prints(&child.wait_with_output().expect("it ends"), FLAT);
}

#[test]
fn bad_input_is_refused_in_one_line_with_file_and_line() {
    assert_refused(&tree("empty", b"", &[]), &["empty.mtree.txt: line 1: ", "without any `address-space:`"]);
    assert_refused(&tree("elf", b"\x7fELF\xff\n", &[]), &["elf.mtree.txt: line 1: ", "not text"]);
    let text = TEXT.replace("@pc.ram", "@other.ram");
    assert_refused(
        &tree("target", text.as_bytes(), &["--flat"]),
        &["target.mtree.txt: line 3: ", "other.ram"],
    );
    let text = TEXT.replace("(prio 1, i/o): vga", "(prio 1, disk): vga");
    assert_refused(&tree("type", text.as_bytes(), &[]), &["type.mtree.txt: line 4: ", "`disk` is no type"]);
    assert_refused(&memvirt().args(["tree", "/no/such/file"]).output().unwrap(), &["/no/such/file: "]);
    let output = memvirt().args(["tree", "-"]).stdin(Stdio::null()).output().unwrap();
    assert_refused(&output, &["standard input: line 1: "]);
}

#[test]
fn a_file_that_never_ends_is_refused() {
    let output = memvirt().args(["tree", "/dev/zero"]).output().unwrap();
    assert_refused(&output, &["/dev/zero: more than 0x4000000 bytes of text"]);
}
