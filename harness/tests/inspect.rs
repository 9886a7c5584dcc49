//! `memvirt inspect` on other processes: a `memvirt` that runs a guest, and a QEMU. Where the kernel's memory cannot be
//! read, or there is no such process, a test says so and checks nothing.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use harness::Mmu;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde_json::Value;
use support::ElfBuilder;

const MEMVIRT: &str = env!("CARGO_BIN_EXE_memvirt");

/// Sixteen pages from here on hold their own addresses once the guest has been there.
const DATA: u64 = 0x18_0000;
const PAGES: u64 = 16;

/// Touches the pages, then goes round.
#[rustfmt::skip]
const TOUCH: &[u8] = &[
    0xbe, 0, 0, 0x18, 0,        // mov esi, 0x180000
    0x48, 0x89, 0x36,           // next: mov [rsi], rsi
    0x81, 0xc6, 0, 0x10, 0, 0,  // add esi, 0x1000
    0x81, 0xfe, 0, 0, 0x19, 0,  // cmp esi, 0x190000
    0x72, 0xef,                 // jb next
    0xeb, 0xfe,                 // jmp $
];

/// A process that ends with the test.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> std::io::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map(Self)
    }

    fn inspect(&self, more: &[&str]) -> Output {
        let pid = self.0.id().to_string();
        Command::new(MEMVIRT).args(["inspect", &pid]).args(more).output().expect("the program runs")
    }

    /// Looks at its one VM until it is as it should be.
    fn until(&mut self, more: &[&str], is_there: impl Fn(&Value) -> bool) -> Value {
        loop {
            let output = self.inspect(&[more, &["--json"]].concat());
            let found = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
            if is_there(&found) {
                assert_eq!(output.status.code(), Some(0), "{found}");
                return found;
            }
            let ended = self.0.try_wait().expect("a child can be asked");
            assert!(ended.is_none(), "{ended:?}, {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Why nothing can be checked here.
fn missing() -> Option<String> {
    let why = Mmu::Kvm.unavailable().or(vcpu::kvm::live_kernel().err().map(str::to_owned));
    why.inspect(|why| println!("not checked: {why}"))
}

/// Another `memvirt` that runs the guest for a minute, unless it is ended before.
fn running_guest(name: &str) -> Process {
    let manifest = "[machine]\nmemory = \"4M\"\n[budget]\nms = 60000\n";
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("inspect-{name}.elf"));
    std::fs::write(&path, ElfBuilder::new(TOUCH).manifest(manifest).build()).unwrap();
    Process::start(Command::new(MEMVIRT).arg("run").arg(path).args(["--mmu", "kvm"])).unwrap()
}

fn leaves(vm: &Value) -> u64 {
    vm["leaves"][0].as_u64().unwrap_or(0)
}

#[test]
fn a_running_guest_of_another_process_has_its_slots_and_leaves() {
    if missing().is_some() {
        return;
    }
    let mut process = running_guest("leaves");
    let last = format!("{:#x}", DATA + (PAGES - 1) * 0x1000 + 0x123);
    let mapped = |vm: &Value| vm["gpa"]["leaves"].as_array().is_some_and(|leaves| !leaves.is_empty());
    let vm = process.until(&["--gpa", &last], mapped);
    assert_eq!(vm["pid"], process.0.id());
    assert_eq!(vm["vcpus"], serde_json::json!([0]));
    let slots = vm["slots"].as_array().unwrap();
    assert_eq!(slots.iter().map(|slot| slot["bytes"].as_u64().unwrap()).sum::<u64>(), 0x40_0000);
    assert!(leaves(&vm) > PAGES, "the pages and the code: {vm}");
    assert_eq!(vm["leaves"], vm["counted"]);
    assert!(vm["counts"]["pf_fixed"].as_u64().is_some_and(|fixed| fixed >= PAGES), "{vm}");
    assert_eq!(vm["frames"], leaves(&vm));
    let limits = slots[0]["limits"][0].as_object().unwrap();
    assert_eq!(
        limits.values().filter_map(Value::as_u64).sum::<u64>(),
        leaves(&vm),
        "each has its reason: {vm}"
    );
    let view = &vm["gpa"];
    assert_eq!((view["gpa"].as_str(), &view["slot"]), (Some(&last[..]), &slots[0]["id"]));
    assert_eq!(view["hpa"], view["leaves"][0]["hpa"]);
    assert!(view["hpa"].as_str().unwrap().ends_with("123"));
    assert_eq!(view["leaves"][0]["rights"], "rwx");
}

#[test]
fn text_shows_the_same() {
    if missing().is_some() {
        return;
    }
    let mut process = running_guest("text");
    process.until(&[], |vm| leaves(vm) > PAGES);
    let output = process.inspect(&["--vm", "0", "--gpa", "0x180000"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    for part in [
        "VM 0 of process ",
        "0x0-0x3fffff",
        "pf_fixed 17,",
        "4K and no larger: guest's own page size (17)",
        "GPA 0x180000",
        " 4K page, rwx, ",
        ", 0 findings",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert!(!text.contains("WRONG"), "{text}");
    let none = process.inspect(&["--vm", "1"]);
    assert_eq!(none.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&none.stderr).contains("has no VM number 1"));
}

#[test]
fn qemus_slots_are_its_memory() {
    if missing().is_some() {
        return;
    }
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "kvm", "-m", "64", "-display", "none", "-nodefaults", "-monitor", "none"]);
    let mut qemu = match Process::start(&mut command) {
        Ok(qemu) => qemu,
        Err(error) => return println!("not checked: qemu-system-x86_64: {error}"),
    };
    // Its memory below 1 MiB comes in several slots, which the firmware changes; that of the firmware may come last.
    let all_there = |vm: &Value| {
        let ends_at_64m = |slot: &Value| {
            let first = slot["gpa"].as_str().and_then(|gpa| u64::from_str_radix(&gpa[2..], 16).ok());
            first.zip(slot["bytes"].as_u64()).is_some_and(|(first, bytes)| first + bytes == 64 << 20)
        };
        vm["slots"].as_array().is_some_and(|slots| slots.iter().any(ends_at_64m))
            && vm["gpa"]["slot"].is_u64()
    };
    let vm = qemu.until(&["--gpa", "0xfffffff0"], all_there);
    // The reset vector is in the firmware's own slot, just below 4 GiB.
    let rom = vm["slots"].as_array().unwrap().iter().find(|slot| slot["id"] == vm["gpa"]["slot"]).unwrap();
    assert_eq!(rom["readonly"], true, "{vm}");
    assert!(vm["gpa"]["hva"].is_string(), "{vm}");
    assert_eq!(vm["findings"], serde_json::json!([]));
}

/// What a slot is made of: its first address, its last, and whether it is read-only.
type Piece = (u64, u64, bool);

/// The RAM and ROM that QEMU says the guest sees, by what its monitor prints for `info mtree -f`.
fn memory_of(monitor: impl std::io::Read) -> Vec<Piece> {
    let lines = BufReader::new(monitor).lines().map_while(Result::ok);
    let view =
        lines.skip_while(|line| !line.starts_with(" AS \"memory\"")).take_while(|line| !line.is_empty());
    let piece = |line: String| {
        let (range, rest) = line.trim().split_once(' ')?;
        let (first, last) = range.split_once('-')?;
        let kind = rest.strip_prefix("(prio ")?.split_once(", ")?.1.split(')').next()?.to_owned();
        let number = |digits| u64::from_str_radix(digits, 16).ok();
        Some((number(first)?, number(last)?, kind))
    };
    let pieces = view.filter_map(piece).filter(|(_, _, kind)| kind != "i/o");
    pieces.map(|(first, last, kind)| (first, last, kind.starts_with("rom"))).collect()
}

#[test]
fn qemus_slots_are_its_flat_view() {
    if missing().is_some() {
        return;
    }
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "kvm", "-m", "64", "-display", "none", "-nodefaults", "-monitor", "stdio"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut qemu = match command.spawn() {
        Ok(qemu) => Process(qemu),
        Err(error) => return println!("not checked: qemu-system-x86_64: {error}"),
    };
    // Its firmware runs, and then stands still, in the middle of whatever it does.
    qemu.until(&[], |vm| vm["slots"].as_array().is_some_and(|slots| slots.len() > 1));
    qemu.0.stdin.as_mut().unwrap().write_all(b"stop\ninfo mtree -f\n").unwrap();
    let expected = memory_of(qemu.0.stdout.take().unwrap());
    assert!(expected.iter().any(|piece| piece.2) && expected.iter().any(|piece| !piece.2), "{expected:x?}");
    let vm = qemu.until(&[], |vm| vm["slots"].is_array());
    let hex = |value: &Value| u64::from_str_radix(&value.as_str().unwrap()[2..], 16).unwrap();
    let slots = vm["slots"].as_array().unwrap().iter().filter(|slot| slot["space"] == 0).map(|slot| {
        let first = hex(&slot["gpa"]);
        (first, first + slot["bytes"].as_u64().unwrap() - 1, slot["readonly"].as_bool().unwrap())
    });
    assert_eq!(slots.collect::<Vec<_>>(), expected);
    assert_eq!(vm["findings"], serde_json::json!([]));
}

/// Another process that has the VM's file and none of its memory: as one that has got it from a VMM, to look at it or to save it.
fn stranger_with_the_file_of(vmm: &Process) -> Process {
    let pid = vmm.0.id();
    let is_vm = |fd: &i32| {
        let link = std::fs::read_link(format!("/proc/{pid}/fd/{fd}"));
        link.is_ok_and(|target| target.as_os_str() == "anon_inode:kvm-vm")
    };
    let names = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| entry.unwrap().file_name());
    let fd = names.filter_map(|name| name.to_str()?.parse().ok()).find(is_vm).expect("it has a VM");
    let handle = pidfd_open(Pid::from_child(&vmm.0), PidfdFlags::empty()).unwrap();
    let file = pidfd_getfd(handle, fd, PidfdGetfdFlags::empty()).unwrap();
    Process(Command::new("sleep").arg("60").stdin(file).spawn().unwrap())
}

/// The frames of its leaves are not those that this process has, which is so, and is what must be told.
#[test]
fn a_process_without_the_memory_of_its_vm_has_findings() {
    if missing().is_some() {
        return;
    }
    let mut vmm = running_guest("stranger");
    let whole = vmm.until(&[], |vm| leaves(vm) > PAGES);
    let stranger = stranger_with_the_file_of(&vmm);
    let output = stranger.inspect(&["--json"]);
    let vm: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{vm}");
    assert_eq!((&vm["slots"][0]["hva"], &vm["leaves"]), (&whole["slots"][0]["hva"], &whole["leaves"]));
    let findings: Vec<&str> =
        vm["findings"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    let wrong = findings.iter().filter(|line| line.contains(", the process has nothing there"));
    assert_eq!(wrong.count() as u64, leaves(&vm), "one for each leaf: {findings:#?}");
    let output = stranger.inspect(&[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.matches("\n    WRONG ").count(), findings.len(), "{text}");
    assert_eq!(vmm.inspect(&[]).status.code(), Some(0), "the VMM itself");
}

#[test]
fn what_is_no_vm_is_refused_in_one_line() {
    let refused = |args: &[&str], says: &str| {
        let output = Command::new(MEMVIRT).arg("inspect").args(args).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), error.lines().count()), (Some(2), 1), "{error}");
        assert!(error.contains(says), "{error:?} does not say {says:?}");
    };
    refused(&["none"], "none");
    refused(&["1", "--gpa", "0xg"], "0xg");
    if missing().is_none() {
        let other = Process::start(Command::new("sleep").arg("60")).unwrap();
        refused(&[&other.0.id().to_string()], "has no VM");
        refused(&[&i32::MAX.to_string()], "No such process");
    }
}
