//! What the documents say that a command prints, it prints.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::Mmu;

/// The commands of a text, each with what it prints: blocks fenced as `console`, `$ ` before each command.
fn commands(text: &str) -> Vec<(String, Vec<String>)> {
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match (inside, line) {
            (false, "```console") => inside = true,
            (true, "```") => inside = false,
            (true, line) => match (line.strip_prefix("$ "), found.last_mut()) {
                (Some(command), _) => found.push((command.to_owned(), Vec::new())),
                (None, Some((_, printed))) => printed.push(line.to_owned()),
                (None, None) => panic!("a block begins with {line:?}, not with a command"),
            },
            (false, _) => {}
        }
    }
    found
}

/// Whether a line is as it is said to be: `[..]` stands for anything.
fn line_matches(said: &str, line: &str) -> bool {
    let mut parts = said.split("[..]");
    let Some(mut rest) = parts.next().and_then(|first| line.strip_prefix(first)) else { return false };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Whether lines are as they are said to be: `...` stands for any.
fn matches(said: &[String], lines: &[&str]) -> bool {
    match (said, lines) {
        ([], lines) => lines.is_empty(),
        ([any, rest @ ..], lines) if any == "..." => {
            (0..=lines.len()).any(|skip| matches(rest, &lines[skip..]))
        }
        ([said, rest @ ..], [line, lines @ ..]) => line_matches(said, line) && matches(rest, lines),
        (_, []) => false,
    }
}

/// A document, by its path from the root of the workspace.
fn document(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn every_command_prints_what_the_documents_say() {
    let (tour, contributing) =
        (commands(&document("docs/tour.md")), commands(&document("docs/contributing.md")));
    assert!(tour.len() > 10 && !contributing.is_empty());
    for (command, said) in tour.into_iter().chain(contributing) {
        let arguments = command.strip_prefix("memvirt ").expect("all commands are memvirt's").split(' ');
        let output = Command::new(env!("CARGO_BIN_EXE_memvirt")).args(arguments).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines: Vec<_> = printed.lines().collect();
        assert!(
            matches(&said, &lines),
            "$ {command}\nis said to print\n{}\nand prints\n{printed}",
            said.join("\n")
        );
        assert!(output.stderr.is_empty(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The documents, by their paths from the root of the workspace.
fn documents() -> Vec<PathBuf> {
    let root = root();
    let folders = [".", "docs", "memory-model", "slot-manager", "ept", "vcpu", "guest-tests", "harness"];
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(root.join(folder)).expect("a folder"));
    let paths = files.map(|file| file.expect("an entry").path());
    paths.filter(|path| path.extension().is_some_and(|ending| ending == "md")).collect()
}

#[test]
fn every_link_of_the_documents_leads_to_a_file() {
    let mut links = 0;
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap();
            if !path.contains("://") && !path.is_empty() {
                let file = document.parent().unwrap().join(path);
                assert!(file.exists(), "{}: {target}", document.display());
                links += 1;
            }
        }
    }
    assert!(links > 20, "only {links} links");
}

#[test]
fn every_path_that_contributors_are_shown_is_there() {
    let text = document("docs/contributing.md");
    let quoted = text.split('`').skip(1).step_by(2);
    let is_path = |word: &&str| word.contains('/') && !word.contains([' ', '"']);
    let paths: Vec<_> = quoted.filter(is_path).collect();
    assert!(paths.len() > 40, "{paths:?}");
    for path in paths {
        assert!(root().join(path).exists(), "{path}");
    }
}

/// What a command of cargo's names that is not there: a package's test, bench or example.
fn missing_targets(command: &str) -> Vec<String> {
    let words: Vec<_> = command.split_whitespace().collect();
    let named =
        |option: &'static str| words.windows(2).filter(move |pair| pair[0] == option).map(|pair| pair[1]);
    let Some(package) = named("-p").next().map(|package| root().join(package)) else { return Vec::new() };
    let targets = [("--test", "tests"), ("--bench", "benches"), ("--example", "examples")];
    let targets = targets.iter().flat_map(|(option, folder)| named(option).map(move |name| (*folder, name)));
    let is_there = |(folder, name): &(&str, &str)| {
        let path = package.join(folder).join(name);
        path.with_extension("rs").exists() || path.join("main.rs").exists()
    };
    targets.filter(|target| !is_there(target)).map(|(folder, name)| format!("{folder}/{name}")).collect()
}

#[test]
fn every_target_that_a_command_of_cargo_names_is_there() {
    let mut commands = 0;
    for document in documents().into_iter().chain([root().join(".ci/run")]) {
        let text = std::fs::read_to_string(&document).unwrap().replace("\\\n", " ");
        for line in text.lines() {
            for command in line.split("cargo ").skip(1).filter_map(|rest| rest.split('`').next()) {
                assert_eq!(missing_targets(command), [""; 0], "{}: {line}", document.display());
                commands += 1;
            }
        }
    }
    assert!(commands > 30, "only {commands} commands");
    let command = "cargo test -p ept --test walk --test rules --bench walk --example nothing";
    assert_eq!(missing_targets(command), ["tests/walk", "examples/nothing"]);
}

#[test]
fn the_readme_knows_every_command_and_how_many_guests_there_are() {
    let readme = document("README.md");
    let help = Command::new(env!("CARGO_BIN_EXE_memvirt")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let commands: Vec<_> = commands
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    assert!(commands.len() > 5, "{help}");
    for command in commands {
        assert!(readme.lines().any(|line| line.starts_with(&format!("    memvirt {command} "))), "{command}");
    }
    let guests = guest_tests::built_in().count();
    let runs = guests * Mmu::ALL.len();
    assert!(readme.contains(&format!("All {guests} guests on all four machines")), "{guests} guests");
    assert!(readme.contains(&format!(": {runs} runs, ")), "{runs} runs");
}

#[test]
fn the_readme_knows_how_many_guests_differ_from_their_models() {
    let (readme, labs) = (document("README.md"), document("docs/labs.md"));
    let count = |section: &str| {
        let (_, text) = labs.split_once(section).unwrap();
        let (text, _) = text.split_once("\n#").unwrap();
        let rows = text.lines().filter(|line| line.starts_with('|'));
        // Names are what is between every other pair of backticks.
        let names: BTreeSet<&str> = rows.flat_map(|row| row.split('`').skip(1).step_by(2)).collect();
        names.into_iter().filter(|name| guest_tests::built_in().any(|guest| guest.name == *name)).count()
    };
    let (leaves, violations) = (count("### Leaves"), count("### Violations"));
    assert!(leaves > 0 && violations > 0);
    let said = format!("but for\n  {leaves} guests; as many violations, but for {violations}.");
    assert!(readme.contains(&said), "{said}");
}

#[test]
fn a_line_that_differs_is_found() {
    let lines = |text: &str| -> Vec<String> { text.lines().map(str::to_owned).collect() };
    let printed = ["one 1 ms", "two", "three"];
    for said in
        ["one [..] ms\ntwo\nthree", "...\nthree", "one 1 ms\n...", "one[..]\n...\nthree", "...\ntwo\n..."]
    {
        assert!(matches(&lines(said), &printed), "{said}");
    }
    for said in [
        "one [..] s\ntwo\nthree",
        "two\nthree",
        "one 1 ms\ntwo",
        "...\nfour",
        "one 1 ms\ntwo\nthree\nfour",
        "...\none[..]x",
    ] {
        assert!(!matches(&lines(said), &printed), "{said}");
    }
}
