//! Boots without paging: what the guest finds in memory and registers, and what is no guest.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use memory_model::{AddressSpace, FlatView, Gpa, RamBlock, RegionTree};
use proptest::collection::vec;
use proptest::prelude::*;
use slot_manager::SlotManager;
use vcpu::boot::linux::{Linux, is_bz_image};
use vcpu::boot::pvh::Pvh;
use vcpu::boot::{BootError, information_page};
use vcpu::soft::SoftVm;
use vcpu::{Budget, Entry, Exit, Regs, SystemRegs, Vm};

const MIB: u64 = 1 << 20;
const RAM: u64 = 16 * MIB;
/// Where all programs here begin.
const CODE: u64 = MIB;

struct Machine {
    space: AddressSpace,
    vm: SoftVm,
    low: Arc<RamBlock>,
}

impl Machine {
    /// So much RAM at 0, and 1 MiB at 4 GiB.
    fn new(ram: u64) -> Self {
        let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64).unwrap()).unwrap();
        let (low, high) =
            (RamBlock::anonymous("low", ram).unwrap(), RamBlock::anonymous("high", MIB).unwrap());
        let add = |tree: &mut RegionTree| {
            let (low, high) = (tree.ram("low", low.clone())?, tree.ram("high", high)?);
            tree.add(tree.root(), 0, low)?;
            tree.add(tree.root(), 1 << 32, high)
        };
        space.update(add).unwrap();
        let vm = SoftVm::new().unwrap();
        space.register(Arc::new(Mutex::new(SlotManager::new(vm.slots())))).unwrap();
        Self { space, vm, low }
    }

    fn view(&self) -> Arc<FlatView> {
        self.space.view()
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.low.read(at, &mut bytes).unwrap();
        bytes
    }

    fn word(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.bytes(at, 4).try_into().unwrap())
    }

    fn long(&self, at: u64) -> u64 {
        u64::from(self.word(at)) | u64::from(self.word(at + 4)) << 32
    }

    /// Starts the guest; what it writes to port 0xf4.
    fn run(&self, (regs, system): (Regs, SystemRegs)) -> u32 {
        let mut vcpu = self.vm.create_vcpu(0).unwrap();
        vcpu.set_system_regs(&system).unwrap();
        vcpu.set_regs(&regs).unwrap();
        match vcpu.run(Entry::Resume, &Budget::time(Duration::from_secs(20))).unwrap() {
            Exit::IoOut { port: 0xf4, data, .. } => u32::from_le_bytes(data.try_into().unwrap()),
            exit => panic!("{exit:?}"),
        }
    }
}

/// `mov eax, [ebx]; out 0xf4, eax`.
const MAGIC_OF_START_INFO: [u8; 4] = [0x8b, 0x03, 0xe7, 0xf4];
/// `mov eax, ds; shl eax, 16; mov ax, cs; out 0xf4, eax`.
const SELECTORS: [u8; 10] = [0x8c, 0xd8, 0xc1, 0xe0, 16, 0x66, 0x8c, 0xc8, 0xe7, 0xf4];
/// `push ss; pop ss; jmp far 0x10:next; mov eax, [esi + 0x202]; out 0xf4, eax`, with a stack at 0x9000.
const HEADER_MAGIC: [u8; 22] = [
    0xbc, 0, 0x90, 0, 0, 0x16, 0x17, 0xea, 0x0e, 0, 0x10, 0, 0x10, 0, 0x8b, 0x86, 0x02, 0x02, 0, 0, 0xe7,
    0xf4,
];

#[test]
fn pvh_tells_of_memory_the_command_line_and_an_initial_ram_disk() {
    let machine = Machine::new(RAM);
    machine.low.write(CODE, &MAGIC_OF_START_INFO).unwrap();
    let initrd: Vec<u8> = (0..0x1801_u32).map(|at| at as u8).collect();
    let guest = Pvh { entry: CODE as u32, command_line: "one two", initrd: &initrd, last: Gpa(CODE + 0xfff) };
    assert_eq!(machine.run(guest.install(&machine.view()).unwrap()), 0x336e_c578);

    let info = information_page().first().0;
    let place = RAM - 0x2000;
    assert_eq!([4, 8, 12].map(|at| machine.word(info + at)), [1, 0, 1], "version, flags, modules");
    let module = machine.long(info + 16);
    assert_eq!([0, 8, 16, 24].map(|at| machine.long(module + at)), [place, 0x1801, 0, 0]);
    assert_eq!(machine.bytes(place, initrd.len()), initrd);
    assert_eq!(machine.bytes(machine.long(info + 24), 8), b"one two\0");
    assert_eq!(machine.long(info + 32), 0, "no ACPI tables");
    let map = machine.long(info + 40);
    assert_eq!(machine.word(info + 48), 2);
    let entries = [0, 8, 16, 24, 32, 40].map(|at| machine.long(map + at));
    assert_eq!(entries, [0, RAM, 1, 1 << 32, MIB, 1]);
}

#[test]
fn an_initial_ram_disk_lies_behind_the_program_or_nowhere() {
    let machine = Machine::new(RAM);
    let behind = |last: u64, bytes: usize| {
        let initrd = vec![1; bytes];
        let guest = Pvh { entry: 0, command_line: "", initrd: &initrd, last: Gpa(last) };
        guest.install(&machine.view()).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(behind(RAM - 0x1001, 0x1000), Ok(()));
    assert_eq!(
        behind(RAM - 0x1000, 0x1000).unwrap_err(),
        "the initial RAM disk has 0x1000 bytes: no RAM for it at 0xfff001-0xffffffff"
    );
    assert_eq!(
        behind(u64::MAX, 1).unwrap_err(),
        "the initial RAM disk has 0x1 bytes: no RAM for it behind the kernel"
    );
}

/// A bzImage as Documentation/arch/x86/boot.rst has it: one setup sector, a header of protocol 2.15, then the code.
fn bz_image(code: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 2 * 512];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(SETUP_SECTS, &[1]);
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(VERSION, &0x20f_u16.to_le_bytes());
    put(LOAD_FLAGS, &[1]);
    put(CODE32_START, &(CODE as u32).to_le_bytes());
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(ALIGNMENT, &0x20_0000_u32.to_le_bytes());
    put(0x234, &[1]);
    put(0x238, &2047_u32.to_le_bytes());
    put(PREF_ADDRESS, &(4 * MIB).to_le_bytes());
    put(INIT_SIZE, &(2 * MIB as u32).to_le_bytes());
    image.extend_from_slice(code);
    image
}

const SETUP_SECTS: usize = 0x1f1;
const VERSION: usize = 0x206;
const LOAD_FLAGS: usize = 0x211;
const CODE32_START: usize = 0x214;
const ALIGNMENT: usize = 0x230;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;

fn linux(kernel: &[u8]) -> Linux<'_> {
    Linux { kernel, command_line: "console=ttyS0", initrd: &[] }
}

#[test]
fn linux_starts_with_the_selectors_of_its_protocol_and_can_load_them() {
    let machine = Machine::new(RAM);
    let boot = |code: &[u8]| machine.run(linux(&bz_image(code)).install(&machine.view()).unwrap());
    assert_eq!(boot(&SELECTORS), 0x18 << 16 | 0x10);
    assert_eq!(boot(&HEADER_MAGIC), u32::from_le_bytes(*b"HdrS"));
}

#[test]
fn linux_finds_its_header_memory_command_line_and_initial_ram_disk_in_the_zero_page() {
    let machine = Machine::new(RAM);
    let (kernel, initrd) = (bz_image(&SELECTORS), [7; 0x1234]);
    let guest = Linux { initrd: &initrd, ..linux(&kernel) };
    machine.run(guest.install(&machine.view()).unwrap());

    let page = 0x7000;
    assert_eq!(machine.bytes(page + 0x1f1, 0x1f), kernel[0x1f1..0x210], "the header");
    assert_eq!(machine.bytes(page + 0x210, 1), [0xff], "the loader");
    assert_eq!(machine.word(page + 0x214), CODE as u32);
    assert_eq!([0x218, 0x21c].map(|at| machine.word(page + at)), [RAM as u32 - 0x2000, 0x1234]);
    assert_eq!(machine.bytes(RAM - 0x2000, 0x1234), initrd);
    assert_eq!(machine.bytes(machine.word(page + 0x228).into(), 14), b"console=ttyS0\0");
    // What is not the header's is zero.
    assert!(machine.bytes(page, 0x1e8).iter().all(|&byte| byte == 0));
    assert_eq!(machine.bytes(page + 0x1e8, 1), [3]);
    let entry = |index: u64| {
        let at = page + 0x2d0 + 20 * index;
        (machine.long(at), machine.long(at + 8), machine.word(at + 16))
    };
    assert_eq!([0, 1, 2].map(entry), [(0, 0xa_0000, 1), (MIB, RAM - MIB, 1), (1 << 32, MIB, 1)]);
}

#[test]
fn what_is_no_bz_image_or_has_no_room_is_refused() {
    let good = bz_image(&SELECTORS);
    let says = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut kernel = good.clone();
        change(&mut kernel);
        linux(&kernel).install(&Machine::new(RAM).view()).unwrap_err().to_string()
    };
    let set = |at: usize, value: u64, bytes: usize| {
        says(&|kernel| kernel[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]))
    };
    let no = |why: &str| format!("not a bzImage to start: {why}");
    assert_eq!(set(0x202, 0, 4), no("no `HdrS` at 0x202"));
    assert_eq!(says(&|kernel| kernel.truncate(0x20b)), no("its header ends at 0x26c, the file at 0x20b"));
    assert_eq!(set(VERSION, 0x209, 2), no("boot protocol 0x209 is older than 0x20a"));
    assert_eq!(set(LOAD_FLAGS, 0, 1), no("it is a zImage, to be loaded below 1 MiB"));
    assert_eq!(set(SETUP_SECTS, 2, 1), no("its setup has 0x600 bytes, the file 0x40a"));
    assert_eq!(set(CODE32_START, 0x9_0000, 4), no("it is to be loaded at 0x90000, below 0x100000"));
    assert_eq!(set(ALIGNMENT, 0x3000, 4), no("its alignment 0x3000 is no power of two"));
    assert_eq!(
        set(PREF_ADDRESS, u64::MAX - 0xfff, 8),
        no("0x200000 bytes at 0xfffffffffffff000 reach past the end of the address space")
    );
    assert_eq!(set(INIT_SIZE, 16 * MIB, 4), "the kernel takes 0x100000-0x13fffff: no RAM at 0x1000000");
    let long = "x".repeat(0x500);
    let refused = Linux { command_line: &long, ..linux(&good) }.install(&Machine::new(RAM).view());
    assert!(matches!(refused, Err(BootError::CommandLine { size: 0x500, most: 0x4ff })));
}

proptest! {
    #[test]
    fn any_header_is_started_or_refused(
        changes in vec((0x1f1_usize..0x270, any::<u8>()), 0..6),
        length in 0_usize..0x500,
    ) {
        let mut kernel = bz_image(&SELECTORS);
        changes.into_iter().for_each(|(at, value)| kernel[at] = value);
        kernel.truncate(length.max(0x100));
        let machine = Machine::new(RAM);
        if linux(&kernel).install(&machine.view()).is_ok() {
            prop_assert!(is_bz_image(&kernel));
        }
    }
}
