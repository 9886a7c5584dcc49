//! The guide is true: its files are written, its commands are run, and what comes is what it shows.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A block of the guide: what its first line says, and the lines in it.
struct Block<'a> {
    info: &'a str,
    lines: Vec<&'a str>,
}

fn blocks(text: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(info) = line.strip_prefix("```") {
            let lines = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push(Block { info, lines });
        }
    }
    blocks
}

fn run(command: &str, folder: &Path) -> String {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_memvirt"));
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let output = Command::new("sh")
        .args(["-c", &format!("exec 2>&1; {command}")])
        .env("PATH", path)
        .current_dir(folder)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether the lines that are shown are those that came, from their beginning on, `...` being any number of lines.
fn shows(shown: &[&str], came: &[&str]) -> bool {
    match shown.split_first() {
        None => came.is_empty(),
        Some((&"...", rest)) => (0..=came.len()).any(|skipped| shows(rest, &came[skipped..])),
        Some((line, rest)) => {
            came.split_first().is_some_and(|(first, others)| first.starts_with(line) && shows(rest, others))
        }
    }
}

#[test]
fn the_guide_does_what_it_says() {
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../guest-tests/GUIDE.md");
    let guide = fs::read_to_string(guide).unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guide");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).unwrap();
    let mut commands = 0;
    for block in blocks(&guide) {
        if let Some((_, file)) = block.info.split_once(' ') {
            fs::write(folder.join(file), block.lines.join("\n") + "\n").unwrap();
        }
        if block.info != "console" {
            continue;
        }
        let mut lines = block.lines.iter().peekable();
        while let Some(line) = lines.next() {
            let command = line.strip_prefix("$ ").unwrap_or_else(|| panic!("{line} follows no command"));
            let mut shown = Vec::new();
            while let Some(line) = lines.next_if(|line| !line.starts_with("$ ")) {
                shown.push(*line);
            }
            let came = run(command, &folder);
            let came: Vec<&str> = came.lines().collect();
            assert!(
                shows(&shown, &came),
                "$ {command}\n{}\nis not as shown:\n{}",
                came.join("\n"),
                shown.join("\n")
            );
            commands += 1;
        }
    }
    assert!(commands >= 15, "only {commands} commands");
}

#[test]
fn lines_match_by_their_beginning_and_three_dots_by_any_lines() {
    assert!(shows(&["a", "...", "d"], &["a 1", "b", "c", "d 4"]));
    assert!(shows(&["..."], &[]));
    assert!(!shows(&["a"], &["a", "b"]));
    assert!(!shows(&["a", "b"], &["a"]));
    assert!(!shows(&["...", "d"], &["a", "c"]));
}
