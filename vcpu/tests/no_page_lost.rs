//! A guest that writes without end while its slots are split, merged and moved and its dirty log is taken: whoever
//! copies what the log tells has the guest's memory in the end, byte for byte (rules D4, D7, R9).

mod gate;

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use iced_x86::code_asm::*;
use memory_model::{
    AddrRange, AddressSpace, DirtyClients, Gva, MemoryError, PageSize, RamBlock, RegionId, RegionTree,
};
use slot_manager::{DirtyMethod, DirtyPages, SlotError, SlotExecutor, SlotManager, SlotRecord};
use vcpu::boot::{GuestMap, LongMode, Ring};
use vcpu::soft::{SecondLevel, SoftOptions, SoftVm};
use vcpu::{Entry, Exit, Gpr, KvmVm, Vcpu, Vm};

use gate::Gate;

const PAGE: u64 = PageSize::Size4K.bytes();
const BYTES: u64 = 0x40_0000;
const CODE: u64 = 0x10_0000;
/// Every other page from here on is written.
const DATA: u64 = 0x20_0000;
/// Where the guest counts how often it has written all.
const COUNT: u64 = BYTES - 2 * PAGE;
/// A window of memory of its own is at one of these places. The guest writes to both; where the window is not, the
/// write leaves the guest.
const WINDOWS: [u64; 2] = [0x80_0000, 0xa0_0000];
const WINDOW_BYTES: u64 = 0x1_0000;
const ROUNDS: u64 = 60;

type Slots = Arc<Mutex<SlotManager<Box<dyn SlotExecutor>>>>;

struct Machine {
    space: AddressSpace,
    slots: Slots,
    blocks: [Arc<RamBlock>; 2],
    window: RegionId,
    vcpu: Box<dyn Vcpu>,
}

impl Machine {
    fn new(vm: &dyn Vm, method: DirtyMethod) -> Result<Self, SlotError> {
        let slots: Slots = Arc::new(Mutex::new(SlotManager::new(vm.slots())));
        slots.lock().unwrap().set_dirty_method(method)?;
        let mut tree = RegionTree::new("system", 1 << 64).unwrap();
        let [ram, window] = [("ram", BYTES), ("window", WINDOW_BYTES)]
            .map(|(name, bytes)| (name, RamBlock::anonymous(name, bytes).unwrap()))
            .map(|(name, block)| (tree.ram(name, block.clone()).unwrap(), block));
        for ((region, _), at) in [(&ram, 0), (&window, WINDOWS[0])] {
            tree.set_dirty_log(*region, DirtyClients::MIGRATION).unwrap();
            tree.add(tree.root(), at, *region).unwrap();
        }
        let space = AddressSpace::new("memory", tree).unwrap();
        space.register(slots.clone()).unwrap();
        ram.1.write(CODE, &program()).unwrap();
        let (blocks, window) = ([ram.1, window.1], window.0);
        let map = |at, bytes: u64| GuestMap::identity(AddrRange::new(Gva(at), bytes.into()).unwrap());
        let maps =
            vec![map(CODE, BYTES - CODE), map(WINDOWS[0], WINDOW_BYTES), map(WINDOWS[1], WINDOW_BYTES)];
        let guest = LongMode { entry: CODE, ring: Ring::User, handlers: vec![], maps };
        let (mut regs, system) = guest.install(&space.view()).unwrap();
        (regs[Gpr::Rbx], regs[Gpr::Rdi]) = (DATA, COUNT);
        (regs[Gpr::R8], regs[Gpr::R9]) = (WINDOWS[0] + 3 * PAGE, WINDOWS[1] + 5 * PAGE);
        let mut vcpu = vm.create_vcpu(0).unwrap();
        vcpu.set_system_regs(&system).unwrap();
        vcpu.set_regs(&regs).unwrap();
        Ok(Self { space, slots, blocks, window, vcpu })
    }
}

/// Counts in RCX, and writes that to every page.
fn program() -> Vec<u8> {
    let mut asm = CodeAssembler::new(64).unwrap();
    let (mut again, mut next) = (asm.create_label(), asm.create_label());
    let mut assemble = || {
        asm.set_label(&mut again)?;
        asm.inc(rcx)?;
        asm.mov(rsi, rbx)?;
        asm.set_label(&mut next)?;
        asm.mov(qword_ptr(rsi), rcx)?;
        asm.add(rsi, 0x2000)?;
        asm.cmp(rsi, rdi)?;
        asm.jb(next)?;
        asm.mov(qword_ptr(r8), rcx)?;
        asm.mov(qword_ptr(r9), rcx)?;
        asm.mov(qword_ptr(rdi), rcx)?;
        asm.jmp(again)
    };
    assemble().unwrap();
    asm.assemble(CODE).unwrap()
}

/// What a migration has sent: pages are copied after the log has told of them.
struct Copy {
    blocks: [(Arc<RamBlock>, Vec<u8>); 2],
}

impl Copy {
    fn of(blocks: &[Arc<RamBlock>; 2]) -> Self {
        Self { blocks: blocks.clone().map(|block| (block.clone(), bytes(&block))) }
    }

    fn take(&mut self, dirty: &DirtyPages) {
        for slot in dirty.slots() {
            let block = self.blocks.iter_mut().find(|(block, _)| Arc::ptr_eq(block, &slot.slot().block));
            let (block, copy) = block.expect("a block of this machine");
            for page in slot.pages() {
                let offset = block.offset_of(slot.slot().hva_of(page).unwrap()).unwrap();
                block.read(offset, &mut copy[offset as usize..][..PAGE as usize]).unwrap();
            }
        }
    }

    /// The pages that differ from memory.
    fn stale(&self) -> Vec<String> {
        let pages = |bytes: &[u8]| bytes.chunks(PAGE as usize).map(<[u8]>::to_vec).collect::<Vec<_>>();
        let stale = self.blocks.iter().flat_map(|(block, copy)| {
            let both = pages(copy).into_iter().zip(pages(&bytes(block)));
            let differ = both.enumerate().filter(|(_, (copied, now))| copied != now);
            differ.map(|(page, _)| format!("{} page {page:#x}", block.name())).collect::<Vec<_>>()
        });
        stale.collect()
    }
}

fn bytes(block: &RamBlock) -> Vec<u8> {
    let mut bytes = vec![0; block.size() as usize];
    block.read(0, &mut bytes).unwrap();
    bytes
}

/// How often the vCPU came out with a full ring; `None` if the machine does not log by `method`.
fn no_page_is_lost(vm: &dyn Vm, method: DirtyMethod) -> Option<u64> {
    let machine = Machine::new(vm, method);
    let Machine { space, slots, blocks, window, mut vcpu } = match machine {
        Err(error @ SlotError::Missing { .. }) => {
            println!("not checked: {method:?}: {error}");
            return None;
        }
        machine => machine.unwrap(),
    };
    let (gate, kick) = (Arc::new(Gate::default()), vcpu.kick());
    let (to_pause, to_kick) = (gate.clone(), kick.clone());
    slots.lock().unwrap().pause_by(move || to_pause.pause(&to_kick));
    let mut copy = Copy::of(&blocks);
    let mut full = 0;
    let serve = |exit| match exit {
        Exit::DirtyRingFull => {
            full += 1;
            slots.lock().unwrap().reap().unwrap();
            ControlFlow::Continue(Entry::Resume)
        }
        Exit::MmioWrite { gpa, .. } if gpa.0 >= WINDOWS[0] => ControlFlow::Continue(Entry::Resume),
        other => ControlFlow::Break(other),
    };
    let exit = std::thread::scope(|scope| {
        let running = scope.spawn(|| gate.run(&mut *vcpu, serve));
        for round in 0..ROUNDS {
            // A page that the guest leaves alone goes and comes back: one slot becomes two becomes one.
            let page = DATA + PAGE + round % 64 * 2 * PAGE;
            let hide = |tree: &mut RegionTree| {
                let hole = tree.reservation("hole", PAGE.into())?;
                tree.add_with_priority(tree.root(), page, hole, 1)?;
                Ok::<_, MemoryError>(hole)
            };
            let hole = space.update(hide).unwrap();
            copy.take(&slots.lock().unwrap().collect_all_dirty().unwrap());
            space.update(|tree| tree.remove(hole)).unwrap();
            space.update(|tree| tree.set_offset(window, WINDOWS[(round as usize + 1) % 2])).unwrap();
            copy.take(&slots.lock().unwrap().collect_all_dirty().unwrap());
            // The guest writes to all of its pages before the next round.
            let before = blocks[0].load_u64(COUNT).unwrap();
            while blocks[0].load_u64(COUNT).unwrap() == before && !gate.is_done() {
                std::thread::yield_now();
            }
        }
        gate.end(&kick);
        running.join().unwrap()
    });
    assert_eq!(exit, None, "{method:?}: the guest came out for another reason than to be stopped");
    assert!(!copy.stale().is_empty(), "{method:?}: the guest has written nothing since");
    copy.take(&slots.lock().unwrap().collect_all_dirty().unwrap());
    assert_eq!(copy.stale(), [""; 0], "{method:?}: lost");
    assert!(gate.pauses() >= 2 * ROUNDS, "{method:?}");
    Some(full)
}

const BITMAPS: [DirtyMethod; 3] = [
    DirtyMethod::Bitmap,
    DirtyMethod::ManualProtect { initially_set: false },
    DirtyMethod::ManualProtect { initially_set: true },
];
/// Never full: a KVM that emulates a guest makes many steps before it looks, and writes past the end of a small ring.
const LARGE_RING: DirtyMethod = DirtyMethod::Ring { bytes: 1 << 20 };
const SMALL_RING: DirtyMethod = DirtyMethod::Ring { bytes: 4096 };

#[test]
fn the_software_machine() {
    for second_level in [SecondLevel::EPT, SecondLevel::NPT, SecondLevel::Shadow] {
        for method in BITMAPS.into_iter().chain([LARGE_RING]) {
            let vm = SoftVm::with(&SoftOptions::of(second_level)).unwrap();
            assert_eq!(no_page_is_lost(&vm, method), Some(0), "{second_level:?}");
        }
    }
    let full = no_page_is_lost(&SoftVm::new().unwrap(), SMALL_RING);
    // How often depends on when the log is taken.
    assert!(full > Some(0), "the guest writes more pages in a round than the ring has entries");
}

#[test]
fn kvm() {
    for method in BITMAPS.into_iter().chain([LARGE_RING]) {
        match KvmVm::new() {
            Ok(vm) => drop(no_page_is_lost(&vm, method)),
            Err(error) => return println!("not checked: a guest on KVM whose pages are logged: {error}"),
        }
    }
}
