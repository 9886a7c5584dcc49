//! The program as a user meets it: output, exit status, and what it says to bad input.

mod support;

use std::path::PathBuf;
use std::process::{Command, Output};

use guest_tests::Image;
use harness::Mmu;
use support::{CODE, ElfBuilder, Segment};

/// `mov al, 0x10; out 0xf4, al; jmp $`
const PASS: &[u8] = &[0xb0, 0x10, 0xe6, 0xf4, 0xeb, 0xfe];

fn memvirt(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_memvirt")).args(args).output().expect("the program runs")
}

/// Writes an ELF file for this test alone.
fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.elf"));
    std::fs::write(&path, bytes).expect("the folder for temporary files is writable");
    path
}

fn run_file(name: &str, bytes: &[u8], more: &[&str]) -> Output {
    let path = file(name, bytes);
    let mut args = vec!["run", path.to_str().expect("UTF-8")];
    args.extend(more);
    memvirt(&args)
}

/// One clear line on standard error that says what and where, status 2, nothing else.
#[track_caller]
fn assert_refused(output: &Output, says: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.contains(says), "{error:?} does not say {says:?}");
    assert!(output.stdout.is_empty());
}

#[test]
fn first_touch_prints_the_chain_of_each_page() {
    let output = memvirt(&["run", "first_touch"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    let pages = text.lines().filter(|line| line.contains("4K rwx")).count();
    assert_eq!(pages, 64, "{text}");
    assert!(text.starts_with("ept    first_touch          pass"), "{text}");
}

#[test]
fn json_has_one_object_a_line_for_each_guest_and_machine() {
    let output = memvirt(&["run", "rom_write", "huge_page", "--mmu", "all", "--json"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let named: Vec<_> =
        lines.iter().map(|line| (line["guest"].as_str().unwrap(), line["mmu"].as_str().unwrap())).collect();
    let both = ["rom_write", "huge_page"].map(|guest| Mmu::ALL.map(|mmu| (guest, mmu.name())));
    assert_eq!(named, both.concat());
    for line in &lines {
        let kvm = line["mmu"] == "kvm";
        let expected = if kvm && Mmu::Kvm.unavailable().is_some() { "skip" } else { "pass" };
        assert_eq!(line["verdict"], expected, "{line}");
        assert_eq!(line["checks"]["wrong"], 0);
        assert!(line["checks"]["ok"].is_u64() && line["checks"]["unchecked"].is_u64());
        assert!(line["elapsed_us"].is_u64());
        assert_eq!(
            line["violations"].as_u64().is_some_and(|violations| violations > 0),
            expected == "pass",
            "{line}"
        );
    }
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn map_shows_every_step_and_host_what_is_here() {
    let output = memvirt(&["map", "huge_page", "0x40100000", "start"]);
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "GVA 0x40100000",
        "PD   ",
        " -> GPA 0x500000  (2M page of the guest)",
        " -> HVA 0x",
        " -> HPA 0x",
        "second level: leaf",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    assert_eq!(output.status.code(), Some(0));
    let output = memvirt(&["host"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("  ept          yes") && text.contains("  kvm ") && text.contains("  frames "),
        "{text}"
    );
    for part in ["  BPF          ", "  /proc/kcore  ", "  live tables ", "  counts ", "  events "] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn map_says_where_an_address_leads_nowhere_and_finds_nothing_wrong_with_that() {
    let output = memvirt(&["map", "mmio_hole", "0x9999999000", "0x2000000"]);
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [" -> GPA -  (page fault, code 0x4)", " -> GPA 0x2000000  ", " -> HVA -  (no region, slot -)"]
    {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    assert!(!text.contains("WRONG"), "{text}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn verify_counts_what_it_looked_at_and_what_it_could_not_look_at() {
    let output = memvirt(&["verify", "first_touch", "--mmu", "all"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    let shown = Mmu::Kvm.unavailable().is_none() && vcpu::kvm::live_kernel().is_ok();
    for mmu in Mmu::ALL {
        let expected = if mmu == Mmu::Kvm && !shown { "not checked: " } else { "clean" };
        let line = text.lines().find(|line| line.starts_with(mmu.name())).unwrap();
        assert!(line.contains(expected), "{line}");
    }
    assert!(text.contains(" x 4K 0 x 2M 0 x 1G"), "{text}");
    if shown {
        assert!(
            text.contains(" leaves as they say") || text.contains("what KVM tells of its leaves: "),
            "{text}"
        );
    }
    let expected = if shown { 0 } else { 2 };
    assert_eq!(memvirt(&["verify", "first_touch", "--mmu", "kvm"]).status.code(), Some(expected));
}

#[test]
fn files_that_are_no_guests_are_refused_in_one_line() {
    let good = ElfBuilder::new(PASS);
    assert_eq!(run_file("good", &good.build(), &[]).status.code(), Some(0));
    let bytes = good.build();
    let refused = |name: &str, bytes: &[u8], says: &str| assert_refused(&run_file(name, bytes, &[]), says);
    refused("empty", &[], "the file is too short");
    refused("text", b"#!/bin/sh\necho this is no ELF file\n", "it does not begin with 7f 45 4c 46");
    refused("truncated_header", &bytes[..40], "neither an x86 ELF file nor a bzImage");
    refused("truncated_segment", &bytes[..HEADERS + 2], "neither an x86 ELF file nor a bzImage");
    refused("class", &ElfBuilder { class: 3, ..good.clone() }.build(), "neither a 64-bit nor a 32-bit");
    refused("machine", &ElfBuilder { machine: 183, ..good.clone() }.build(), "machine 183");
    refused("relocatable", &ElfBuilder { kind: 1, ..good.clone() }.build(), "type 1, not ET_EXEC");
    refused("shared", &ElfBuilder { kind: 3, ..good.clone() }.build(), "type 3, not ET_EXEC");
    refused("entry", &ElfBuilder { entry: 0x20_0000, ..good.clone() }.build(), "entry point 0x200000");
    let in_data = ElfBuilder { entry: 0x20_0000, ..with_segment(0x20_0000, 0x10, 6, &good) };
    refused("entry_in_data", &in_data.build(), "entry point 0x200000 is in no executable segment");
}

/// A 32-bit guest: the built-in one, with a Multiboot header that the change spoils.
fn multiboot(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let guest = guest_tests::built_in().find(|guest| guest.name == "multiboot").expect("a built-in guest");
    let mut elf = guest.elf.to_vec();
    let magic = 0x1bad_b002u32.to_le_bytes();
    let header = elf.windows(4).position(|bytes| bytes == magic).expect("it has a header");
    change(&mut elf[header..header + 12]);
    elf
}

#[test]
fn a_32_bit_file_boots_by_multiboot_or_is_refused_in_one_line() {
    let output = run_file("multiboot", &multiboot(|_| {}), &["--mmu", "npt", "--console"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("     | 32 bits\n"), "{text}");
    // The program expects 16 MiB.
    let output = run_file("multiboot_memory", &multiboot(|_| {}), &["--memory", "32M"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("the guest reported 0x6, expected 0x10"));

    let refused = |name: &str, change: fn(&mut [u8]), says: &str| {
        assert_refused(&run_file(name, &multiboot(change), &[]), says);
    };
    refused("no_header", |header| header[0] = 0, "no Multiboot header (magic 0x1badb002) in its first 0x");
    refused("checksum", |header| header[8] ^= 1, "add up to 0x1, not 0");
    let video = |header: &mut [u8]| (header[4], header[8]) = (header[4] | 4, header[8] - 4);
    refused("video", video, "its flags 0x6 ask for 0x4, which is not supported");
    let output = run_file("multiboot_small", &multiboot(|_| {}), &["--memory", "4K"]);
    assert_refused(&output, "no RAM or ROM at 0x100000");
    let long = ElfBuilder::new(PASS).manifest("[machine]\nboot = 'multiboot'").build();
    assert_refused(&run_file("boot_of_64", &long, &[]), "`multiboot` needs a 32-bit ELF file");
}

/// A bzImage of protocol 2.15 with one setup sector, which reports the size of its initial RAM disk, less 5, plus the
/// first letter of its command line, less `x`.
fn bz_image() -> Vec<u8> {
    let mut file = vec![0; 2 * 512];
    let fields: [(usize, &[u8]); 9] = [
        (0x1f1, &[1]),
        (0x201, &[0x6a]),
        (0x202, b"HdrS"),
        (0x206, &[0x0f, 0x02]),
        (0x211, &[1]),
        (0x214, &[0, 0, 0x10, 0]),
        (0x22c, &[0xff, 0xff, 0xff, 0x7f]),
        (0x230, &[0, 0, 0x20, 0]),
        (0x238, &[0xff, 0x07]),
    ];
    fields.iter().for_each(|(at, bytes)| file[*at..at + bytes.len()].copy_from_slice(bytes));
    // mov al, [esi + 0x21c]; mov ecx, [esi + 0x228]; add al, [ecx]; sub al, 0x7d; out 0xf4, al
    file.extend([0x8a, 0x86, 0x1c, 2, 0, 0, 0x8b, 0x8e, 0x28, 2, 0, 0, 0x02, 0x01, 0x2c, 0x7d, 0xe6, 0xf4]);
    file
}

#[test]
fn a_bz_image_boots_with_its_command_line_and_initial_ram_disk_or_is_refused_in_one_line() {
    let initrd = file("initrd", &[7; 5]);
    let with = ["--initrd", initrd.to_str().unwrap(), "--append"];
    for mmu in [Mmu::Ept, Mmu::Npt, Mmu::Shadow] {
        let args = [&with[..], &["xyz", "--mmu", mmu.name()]].concat();
        let output = run_file("bz_image", &bz_image(), &args);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    }
    let output = run_file("bz_image", &bz_image(), &[&with[..], &["yz"]].concat());
    assert!(String::from_utf8_lossy(&output.stdout).contains("the guest reported 0x1, expected 0x0"));
    let mut old = bz_image();
    old[0x206] = 0;
    assert_refused(&run_file("bz_image_old", &old, &[]), "boot protocol 0x200 is older than 0x20a");
    let small = run_file("bz_image_small", &bz_image(), &["--memory", "1M"]);
    assert_refused(&small, "the kernel takes 0x100000-0x100011: no RAM at 0x100000");
    assert_refused(
        &memvirt(&[&["run", "first_touch"], &with[..2]].concat()),
        "booted by `long` has no initial RAM disk",
    );
}

/// ELF header and one program header.
const HEADERS: usize = 64 + 56;

fn with_segment(address: u64, memory_size: u64, flags: u32, good: &ElfBuilder) -> ElfBuilder {
    let mut builder = good.clone();
    builder.segments.push(Segment { address, memory_size, flags });
    builder
}

#[test]
fn segments_that_do_not_fit_are_refused_in_one_line() {
    let good = ElfBuilder::new(PASS);
    let refused = |name: &str, address, size, says: &str| {
        assert_refused(&run_file(name, &with_segment(address, size, 6, &good).build(), &[]), says);
    };
    refused("overlapping", CODE + 1, 0x1000, "it overlaps the one at 0x100000-0x100005");
    refused("outside_ram", 0x200_0000, 0x1000, "no RAM or ROM at 0x2000000");
    refused("half_outside_ram", 0xff_f000, 0x2000, "no RAM or ROM at 0x1000000");
    refused("in_boot_memory", 0x8000, 0x1000, "memory at 0x0-0xfffff is the boot's own");
    refused("wrapping", u64::MAX - 0xfff, 0x2000, "past the end of the address space");
    refused("huge", 0x20_0000, 1 << 40, "no RAM or ROM at 0x1000000");
}

#[test]
fn bad_manifests_are_refused_in_one_line() {
    const DEVICE: &str = "[[region]]\nname = 'x'\nkind = 'mmio'\n";
    let cases = [
        ("unknown_key", "[machine]\nmemroy = '1M'", "line 2, column 1: unknown field `memroy`"),
        ("no_toml", "[machine", "manifest line 1"),
        ("ring", "[machine]\nring = 2", "machine.ring"),
        (
            "misaligned",
            &format!("{DEVICE}gpa = 0x2000800\nsize = '4K'"),
            "manifest line 4, column 7: region `x`: gpa 0x2000800 is not 4K aligned",
        ),
        (
            "zero_size",
            &format!("{DEVICE}gpa = 0x2000000\nsize = 0"),
            "region `x`: 0x0 bytes at 0x2000000 are empty",
        ),
        ("too_high", &format!("{DEVICE}gpa = 0x400000000000\nsize = '4K'"), "reach past 0x400000000000"),
        ("memory_zero", "[machine]\nmemory = 0", "region `ram`: 0x0 bytes"),
        ("memory_limit", "[machine]\nmemory = '65G'", "more than 0x1000000000 bytes of memory"),
        (
            "overlap",
            &format!("{DEVICE}gpa = 0xfff000\nsize = '8K'"),
            "overlaps region `ram` at 0x0-0xffffff with the same priority 0",
        ),
        (
            "symbol",
            "[[expect.pages]]\nat = 'nowhere'\naccess = 'w'",
            "line 2, column 6: the ELF file has no symbol `nowhere`",
        ),
        ("rights", "[[expect.pages]]\nat = 0\naccess = 'q'", "line 3, column 10: `q` is no right"),
        (
            "alias",
            "[[region]]\nname = 'a'\nkind = 'alias'\ntarget = 'b'\ngpa = 0x2000000\nsize = '4K'",
            "no region `b` before it",
        ),
        (
            "map_wraps",
            "[[map]]\ngva = '0xfffffffffffff000'\ngpa = 0\nsize = '8K'",
            "map of 0xfffffffffffff000: 0x2000 bytes",
        ),
        (
            "map_not_canonical",
            "[[map]]\ngva = '0x800000000000'\ngpa = 0\nsize = '4K'",
            "0x800000000000 is outside",
        ),
        (
            "no_such_step",
            "summary = 'x'\n[[step]]\non = 1\ndo = 'explode'",
            "line 2, column 1: `explode` is nothing that the host does",
        ),
        (
            "step_key_missing",
            "[[step]]\non = 1\ndo = 'move'\nregion = 'ram'",
            "line 1, column 1: `move` needs the key `gpa`",
        ),
        (
            "step_key_too_many",
            "[[step]]\non = 1\ndo = 'enable'\nregion = 'ram'\ngpa = 0",
            "line 1, column 1: `enable` has no key `gpa`",
        ),
        (
            "step_region",
            "[[step]]\non = 1\ndo = 'enable'\nregion = 'rom'",
            "line 4, column 10: step on bell 1: no region `rom`",
        ),
        ("step_occasion", "[[step]]\non = 'noon'\ndo = 'enable'", "line 2, column 6: `noon` never happens"),
        (
            "step_bell",
            "[[step]]\non = 256\ndo = 'enable'",
            "line 2, column 6: bell 256 is not within 0 to 255",
        ),
        (
            "vcpus",
            "[machine]\nvcpus = 5",
            "line 2, column 9: machine.vcpus: a guest booted by `long` has at most 4",
        ),
        ("handler", "[handlers]\nmachine_check = 1", "`machine_check` is no exception"),
    ];
    for (name, manifest, says) in cases {
        let elf = ElfBuilder::new(PASS).manifest(manifest).build();
        assert_refused(&run_file(&format!("manifest_{name}"), &elf, &[]), says);
    }
}

#[test]
fn a_step_about_memory_that_is_not_there_is_refused_in_one_line() {
    // mov al, 1; out 0xf8, al
    let code = [&[0xb0, 1, 0xe6, 0xf8], PASS].concat();
    let manifest = "[[step]]\non = 1\ndo = 'discard'\nat = 0xfff000\nsize = '8K'";
    let elf = ElfBuilder::new(&code).manifest(manifest).build();
    assert_refused(
        &run_file("step_nowhere", &elf, &[]),
        "no 0x2000 bytes of RAM or ROM in one region at 0xfff000",
    );
    let elf = ElfBuilder::new(&code).manifest("summary = 'x'").build();
    let output = run_file("bell_unknown", &elf, &[]);
    assert_eq!(output.status.code(), Some(1), "nobody answers this bell");
    assert!(String::from_utf8_lossy(&output.stdout).contains("the guest rang bell 1"));
}

#[test]
fn a_new_guest_has_a_name_and_is_never_put_over_a_file() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("new");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir(&folder).unwrap();
    let new = |name| memvirt(&["new", name, "--folder", folder.to_str().expect("UTF-8")]);
    assert_eq!(new("mine").status.code(), Some(0));
    assert_refused(&new("../mine"), "`../mine` is no name for a guest");
    assert_refused(&new("mine"), "mine.S: File exists");
    assert_refused(&memvirt(&["new", "x", "--lang", "cobol"]), "no language `cobol`: use asm, c, rust");
    std::fs::write(folder.join("mine.S"), "nonsense").unwrap();
    let output = memvirt(&["run", folder.join("mine.S").to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("it does not build") && error.contains("nonsense"), "{error}");
}

#[test]
fn an_area_is_all_its_guests() {
    let output = memvirt(&["run", "mmio", "first_touch", "--mmu", "npt"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let run: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("npt    ")).collect();
    let of_area = guest_tests::built_in().filter(|guest| {
        Image::parse(guest.elf).expect("a good ELF file").manifest().area == guest_tests::Area::Mmio
    });
    let mut named: Vec<_> = of_area.map(|guest| guest.name).collect();
    assert!(named.len() > 5, "{named:?}");
    named.push("first_touch");
    assert_eq!(run.len(), named.len(), "a line each, no chains: {text}");
    assert!(run.iter().zip(&named).all(|(line, name)| line.starts_with(name)), "{text}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn nothing_in_a_file_reaches_the_terminal_as_a_command() {
    const NAMES: &str = "[[region]]\nname = \"a\\u001b[2Jb\\nc\\u202e\"\nkind = 'ram'\ngpa = 0x2000000\nsize = '4K'\n\
        [[expect.pages]]\nat = 0x2000000\naccess = 'w'\n";
    const NO_SYMBOL: &str = "[[expect.pages]]\nat = \"x\\u001b[2Jy\"\naccess = 'r'";
    let path = file("name\x1b[31m", &ElfBuilder::new(PASS).manifest(NAMES).build());
    let named = memvirt(&["run", path.to_str().unwrap()]);
    assert_eq!(named.status.code(), Some(1));
    let mapped = memvirt(&["map", path.to_str().unwrap(), "0x2000000"]);
    for output in [
        &named,
        &mapped,
        &memvirt(&["run", "no\x1b[2Jfile"]),
        &run_file("symbol_of_commands", &ElfBuilder::new(PASS).manifest(NO_SYMBOL).build(), &[]),
    ] {
        let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
        assert!(!text.is_empty() && !text.contains(['\x1b', '\u{202e}']), "{text:?}");
    }
    let text = String::from_utf8(named.stdout).unwrap();
    assert!(text.lines().nth(2).unwrap().starts_with("     0x2000000  0x2000000  a[2Jbc  1 "), "{text}");
}

#[test]
fn unknown_guests_and_machines_are_refused() {
    assert_refused(&memvirt(&["run", "no_such_guest"]), "no built-in guest of this name");
    assert_refused(&memvirt(&["map", "frist-touch", "0"]), "and no such file: is it `first_touch`?");
    assert_refused(
        &memvirt(&["verfy"]),
        "unrecognized subcommand 'verfy': a similar subcommand exists: 'verify'",
    );
    assert_refused(
        &memvirt(&["map", "first_touch", "no_such_symbol"]),
        "first_touch on ept: the ELF file has no symbol `no_such_symbol`",
    );
    assert_refused(
        &memvirt(&["run", "first_touch", "--mmu", "sideways"]),
        "no MMU `sideways`: use ept, npt, shadow, kvm or all",
    );
    assert_refused(&memvirt(&["run", "--sideways"]), "unexpected argument '--sideways' found");
    assert_refused(&memvirt(&["map", "first_touch"]), "not provided: <GVA>");
}

#[test]
fn a_guest_that_does_not_end_well_gets_a_verdict_and_its_registers() {
    let cases: [(&str, &[u8], &str, &str); 5] = [
        // mov eax, 0x1234; jmp $
        ("endless", &[0xb8, 0x34, 0x12, 0, 0, 0xeb, 0xfe], "timeout", "rax=0000000000001234"),
        // ud2, and no handler
        ("triple_fault", &[0x0f, 0x0b], "crash", "rip=0000000000100000"),
        // mov eax, 0x40000000; jmp rax
        ("runs_off", &[0xb8, 0, 0, 0, 0x40, 0xff, 0xe0], "crash", "rax=0000000040000000"),
        // hlt
        ("halts", &[0xf4], "no-verdict", "rip=0000000000100001"),
        // mov al, 3; out 0xf4, al
        ("reports_failure", &[0xb0, 3, 0xe6, 0xf4], "fail", "the guest reported 0x3, expected 0x10"),
    ];
    for mmu in Mmu::ALL {
        if let Some(why) = mmu.unavailable() {
            println!("not checked on {mmu}: {why}");
            continue;
        }
        for (name, code, verdict, says) in cases {
            let manifest = "[machine]\nring = 0\n[budget]\nms = 300\n";
            let elf = ElfBuilder::new(code).manifest(manifest).build();
            let output = run_file(&format!("{name}_{mmu}"), &elf, &["--mmu", mmu.name()]);
            let text = String::from_utf8_lossy(&output.stdout);
            assert_eq!(output.status.code(), Some(1), "{name} on {mmu}: {text}");
            let mut words = text.split_whitespace().skip(2);
            assert_eq!(words.next(), Some(verdict), "{name} on {mmu}: {text}");
            assert!(text.contains(says), "{name} on {mmu} does not say {says:?}: {text}");
        }
    }
}

/// What a command shows on a terminal of a kind and of so many columns, 0 where it does not say; `None` where there is no
/// `script` to make one.
fn on_a_terminal(kind: &str, columns: u16, command: &str) -> Option<String> {
    let command = format!("stty cols {columns}; {} {command}", env!("CARGO_BIN_EXE_memvirt"));
    let output = Command::new("script").env("TERM", kind).args(["-qec", &command, "/dev/null"]).output();
    if let Err(why) = &output {
        println!("not checked: script: {why}");
    }
    let output = output.ok()?;
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{shown}");
    Some(shown)
}

#[test]
fn progress_is_a_line_that_changes_on_a_terminal_and_nothing_in_a_pipe() {
    let output = memvirt(&["run", "first_touch", "rom_write", "--mmu", "npt"]);
    assert!(output.stderr.is_empty());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");
    let last = text.lines().last().unwrap();
    assert!(last.starts_with("2 runs in ") && last.ends_with(" s: 2 pass"), "{last}");
    let Some(shown) = on_a_terminal("xterm", 0, "run first_touch rom_write --mmu npt") else { return };
    let first = shown.find("\r\x1b[K[1/2] first_touch on npt").expect("the first step is told");
    let result = shown.find("\r\x1b[Knpt    first_touch ").expect("it makes room for the result");
    let second = shown.find("\r\x1b[K[2/2] rom_write on npt").expect("the second step is told");
    assert!(first < result && result < second, "{shown:?}");
    let verified = on_a_terminal("xterm", 100, "verify first_touch --mmu ept").unwrap();
    assert!(verified.contains("[1/1] first_touch on ept: running and verifying"), "{verified:?}");
    // What does not fit is left out: only one line is erased. The last column stays free.
    let narrow = on_a_terminal("xterm", 16, "verify first_touch --mmu ept").unwrap();
    assert!(narrow.contains("\x1b[K[1/1] first_tou\r\x1b[K"), "{narrow:?}");
    let dumb = on_a_terminal("dumb", 100, "verify first_touch --mmu ept").unwrap();
    assert!(dumb.starts_with("ept    first_touch ") && !dumb.contains('\x1b'), "{dumb:?}");
}

#[test]
fn a_page_for_people_is_written_where_it_is_asked_for() {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("page.html");
    let name = path.to_str().expect("UTF-8");
    let output = memvirt(&["run", "first_touch", "--mmu", "all", "--report", name]);
    assert_eq!(output.status.code(), Some(0));
    let html = std::fs::read_to_string(&path).unwrap();
    for mmu in Mmu::ALL {
        assert!(html.contains(&format!("\"mmu\":\"{mmu}\"")), "{mmu}");
    }
    assert_refused_after_running(&memvirt(&["run", "first_touch", "--report", "/no/such/folder/page.html"]));
}

#[track_caller]
fn assert_refused_after_running(output: &Output) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(
        error.starts_with("memvirt: /no/such/folder/page.html: ") && error.lines().count() == 1,
        "{error}"
    );
}
