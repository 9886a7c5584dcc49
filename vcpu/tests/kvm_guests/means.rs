//! The kernel's memory read by each means: what they show of one VM that stands still must be the same.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use ept::PhysMemory;
use ept::live::{Kernel, LiveError, LivePage, LiveRoot, LiveTables, LiveVm, Means};
use memory_model::{Gpa, Hpa, Pages};
use slot_manager::{Slot, SlotFlags, SlotOp};
use vcpu::{Entry, Exit, KvmVm};

use crate::guest::{CODE, Guest, slot};
use crate::live::{PAGES, frame, pagemap, ram, touch};
use crate::need::{Need, Tests};

/// The tests, and what they need.
pub const TESTS: Tests = tests!(
    &[Need::Kvm, Need::Means(Means::Bpf), Need::Means(Means::Kcore)];
    both_means_read_the_same_tables,
    both_means_read_the_same_slots,
    both_means_read_the_guests_memory,
    a_table_that_goes_is_gone_by_both_means,
    each_thread_has_its_own_files_by_both_means,
    without_a_right_to_bpf_the_core_file_is_taken;
    &[Need::Kvm, Need::Means(Means::Kcore)];
    a_check_by_the_core_file_finds_nothing;
    &[Need::Kvm, Need::Means(Means::Bpf)];
    without_any_right_each_means_is_missing;
);

/// The kernel, read by that means.
pub fn kernel(means: Means) -> Result<&'static Arc<Kernel>, &'static str> {
    static KERNELS: [OnceLock<Result<Arc<Kernel>, String>>; Means::ALL.len()] =
        [const { OnceLock::new() }; Means::ALL.len()];
    let place = Means::ALL.iter().position(|&other| other == means).expect("all of them are in it");
    let kernel = KERNELS[place].get_or_init(|| Kernel::open_by(means).map_err(|error| error.to_string()));
    kernel.as_ref().map_err(String::as_str)
}

fn live(vm: &KvmVm, means: Means) -> LiveVm {
    let kernel = kernel(means).expect("the test needs it");
    assert_eq!(kernel.means(), means);
    LiveVm::of_fd(kernel, vm).unwrap().expect("the VM's own file")
}

/// A guest that has touched its pages, and stands still.
fn touched() -> Guest {
    let mut guest = Guest::ring3_on(ram(Pages::Small), touch);
    assert_eq!(guest.run(Entry::Resume), Exit::IoOut { port: 0xf4, size: 1, data: vec![0] });
    guest
}

fn by_both<T>(vm: &KvmVm, read: impl Fn(&LiveVm) -> T) -> [T; 2] {
    Means::ALL.map(|means| read(&live(vm, means)))
}

/// All entries of all tables, by the tables' addresses.
fn entries(tables: &LiveTables) -> BTreeMap<Hpa, Vec<u64>> {
    let table = |hpa: Hpa| {
        let mut entries = [0; 512];
        tables.read_table(hpa.raw(), &mut entries).expect("a table of KVM's");
        (hpa, entries.to_vec())
    };
    tables.frames().map(table).collect()
}

/// What counts of a root.
fn root(root: &LiveRoot) -> (u64, LivePage, Vec<u32>, Option<u64>) {
    (root.paging.root, root.page, root.vcpus.clone(), root.guest.map(|guest| guest.root))
}

fn both_means_read_the_same_tables() {
    let guest = touched();
    let [bpf, kcore] = by_both(&guest.vm, |vm| vm.tables().unwrap());
    assert!(bpf.leaves().count() as u64 >= PAGES);
    assert!(entries(&bpf) == entries(&kcore), "tables differ");
    assert!(bpf.leaves().eq(kcore.leaves()), "leaves differ");
    assert!(bpf.roots().iter().map(root).eq(kcore.roots().iter().map(root)), "roots differ");
    assert_eq!(bpf.pages(), kcore.pages());
    assert_eq!(bpf.switcher(), kcore.switcher());
    assert_eq!(bpf.counted(), kcore.counted());
    assert!(bpf.counts().eq(kcore.counts()), "counts differ");
    let [bpf, kcore] = [bpf, kcore].map(|tables| tables.check(&pagemap()).unwrap().to_string());
    assert_eq!(bpf, kcore);
}

fn both_means_read_the_same_slots() {
    let mut guest = touched();
    let rom = memory_model::RamBlock::anonymous("rom", 0x3000).unwrap();
    let rom = Slot { flags: SlotFlags::READONLY, ..slot(7, 0x80_0000, &rom) };
    guest.slots.execute(&SlotOp::Create(rom)).unwrap();
    let [bpf, kcore] = by_both(&guest.vm, |vm| vm.slots().unwrap());
    assert_eq!(bpf.len(), 2);
    assert_eq!(bpf, kcore);
}

fn both_means_read_the_guests_memory() {
    let guest = touched();
    let code = frame(&guest.ram, CODE).expect("the guest's code is there");
    let mut expected = [0; 8];
    guest.ram.read(CODE, &mut expected).unwrap();
    let read = by_both(&guest.vm, |vm| vm.tables().unwrap().read_entry(code).unwrap());
    assert_eq!(read, [u64::from_le_bytes(expected); 2]);
}

fn a_table_that_goes_is_gone_by_both_means() {
    let mut guest = touched();
    let ram = slot(0, 0, &guest.ram);
    guest.slots.execute(&SlotOp::Delete(ram)).unwrap();
    let read = by_both(&guest.vm, |vm| {
        let tables = vm.tables().unwrap();
        (tables.leaves().map(|leaf| leaf.gpa).collect::<Vec<Gpa>>(), tables.slots().len())
    });
    assert_eq!(read, [const { (Vec::new(), 0) }; 2]);
}

/// From here on the calling thread's files are its own.
#[expect(unsafe_code, reason = "no crate here has unshare(2)")]
fn take_own_files() {
    // SAFETY: a number; each file that the thread has by now it keeps.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0, "{}", std::io::Error::last_os_error());
}

/// A thread may have files of its own. It is the thread that reads whose files count: the process's others do not have them.
fn each_thread_has_its_own_files_by_both_means() {
    let guest = touched();
    let vm = &guest.vm;
    let slots = live(vm, Means::Bpf).slots().unwrap();
    let alone = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            take_own_files();
            by_both(vm, |vm| vm.slots().unwrap())
        });
        thread.join().unwrap()
    });
    assert_eq!(alone, [slots.clone(), slots]);
}

fn a_check_by_the_core_file_finds_nothing() {
    let guest = touched();
    let tables = live(&guest.vm, Means::Kcore).tables().unwrap();
    let report = tables.check(&pagemap()).unwrap();
    assert!(report.is_clean(), "{report}");
    assert!(report.leaves[0] >= PAGES && report.leaves == tables.counted(), "{report}");
    assert_eq!((report.frames, report.unknown), (report.leaves[0], 0), "{report}");
}

/// Leaves the calling thread those of the process's capabilities (capabilities(7)).
#[expect(unsafe_code, reason = "no crate here has capset(2)")]
fn keep_only(capabilities: u32) {
    const VERSION_3: u32 = 0x2008_0522;
    const THIS_THREAD: u32 = 0;
    let header = [VERSION_3, THIS_THREAD];
    // Effective, permitted, inheritable: of the first 32, then of those behind.
    let data = [capabilities, capabilities, 0, 0, 0, 0];
    // SAFETY: the kernel reads both, which are as long as version 3 has them.
    let done = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// What a thread with those capabilities alone makes of it.
fn with_only<T: Send>(capabilities: u32, act: impl FnOnce() -> T + Send) -> T {
    let act = || {
        keep_only(capabilities);
        act()
    };
    std::thread::scope(|scope| scope.spawn(act).join().unwrap())
}

fn without_a_right_to_bpf_the_core_file_is_taken() {
    const CAP_SYS_RAWIO: u32 = 1 << 17;
    let guest = touched();
    let vm = &guest.vm;
    let entries_by_kcore = with_only(CAP_SYS_RAWIO, || {
        let kernel = Kernel::open().unwrap();
        assert_eq!(kernel.means(), Means::Kcore);
        let vm = LiveVm::of_fd(&kernel, vm).unwrap().expect("the VM's own file");
        entries(&vm.tables().unwrap())
    });
    assert!(entries(&live(vm, Means::Bpf).tables().unwrap()) == entries_by_kcore, "tables differ");
    assert_eq!(Kernel::open().unwrap().means(), Means::Bpf, "the first choice");
}

fn without_any_right_each_means_is_missing() {
    let (error, missing) = with_only(0, || (Kernel::open().unwrap_err(), Kernel::missing()));
    let LiveError::NoMeans { bpf, kcore } = &error else { panic!("{error}") };
    assert!(matches!(**bpf, LiveError::NotPermitted { .. }), "{bpf}");
    assert!(matches!(**kcore, LiveError::NoKcore { .. }), "{kcore}");
    let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
    assert!(missing.contains(&bpf.to_string()) && missing.contains(&kcore.to_string()), "{missing:?}");
    assert_eq!(error.to_string(), format!("{bpf}; nor is there another way: {kcore}"));
}
