//! Which sizes KVM's leaves have, exactly: the least of what the guest's tables, the slot, the host's page and the log
//! allow.

use std::sync::Arc;

use ept::live::{Limit, LiveLeaf, LiveVm, Trace};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use memory_model::{AddrRange, Gpa, Hva, PageSize, Pages, RamBlock, RamOptions};
use slot_manager::{Slot, SlotFlags, SlotOp};
use vcpu::{Entry, Exit, Gpr, HostView};

use crate::guest::{Guest, slot, start};
use crate::live::pagemap;
use crate::need::{Need, Tests};

/// The tests, and what they need.
pub const TESTS: Tests = tests!(
    &[Need::Live, Need::HugePages, Need::Events];
    a_leaf_is_as_large_as_all_sides_allow,
    leaves_keep_their_size_when_pages_come_anew,
    a_log_has_small_leaves_from_the_next_write_on,
    leaves_of_a_log_that_has_ended_make_room_for_large_ones,
    a_slot_that_is_made_again_has_large_leaves_again,
);

const PAGE: u64 = PageSize::Size4K.bytes();
const LARGE: u64 = PageSize::Size2M.bytes();
/// Where the slot is, and what it has of a block of 12 MiB.
const HERE: u64 = 0x80_0000;
const BYTES: u64 = 4 * LARGE;
/// The guest's tables of 4K pages for it, a page for each 2 MiB.
const SMALL_TABLES: u64 = 0x2_0000;
/// Where the guest's table of 2M pages has the first of them.
const LARGE_TABLE: u64 = 0x1_2000 + HERE / LARGE * 8;

/// How a slot lies, and what leaves it gets once the guest has written to each of its pages.
#[derive(Clone, Copy, Debug)]
struct Row {
    name: &'static str,
    /// The slot begins that far behind [`HERE`], and behind a multiple of 2 MiB in the process.
    gpa: u64,
    hva: u64,
    bytes: u64,
    pages: Pages,
    /// The guest maps it by 4K pages.
    small_guest: bool,
    flags: SlotFlags,
    /// Leaves of 4K and 2M.
    leaves: [usize; 2],
    /// Why those of 4K are no larger.
    limit: Limit,
}

const ALIGNED: Row = Row {
    name: "all aligned",
    gpa: 0,
    hva: 0,
    bytes: BYTES,
    pages: Pages::Thp,
    small_guest: false,
    flags: SlotFlags::empty(),
    leaves: [0, 4],
    limit: Limit::Other,
};

const ROWS: [Row; 7] = [
    ALIGNED,
    Row {
        name: "the guest maps 4K",
        small_guest: true,
        limit: Limit::GuestPage,
        leaves: [2048, 0],
        ..ALIGNED
    },
    Row { name: "no huge pages", pages: Pages::Small, limit: Limit::HostPage, leaves: [2048, 0], ..ALIGNED },
    Row { name: "HVA 4K off from GPA", hva: PAGE, limit: Limit::Alignment, leaves: [2048, 0], ..ALIGNED },
    Row {
        name: "both 4K into a page",
        gpa: PAGE,
        hva: PAGE,
        limit: Limit::SlotEdge,
        leaves: [512, 3],
        ..ALIGNED
    },
    Row {
        name: "4K short at its end",
        bytes: BYTES - PAGE,
        limit: Limit::SlotEdge,
        leaves: [511, 3],
        ..ALIGNED
    },
    Row {
        name: "logged from the start",
        flags: SlotFlags::LOG_DIRTY_PAGES,
        limit: Limit::DirtyLog,
        leaves: [2048, 0],
        ..ALIGNED
    },
];

/// Writes to each page from RSI to RDI, and comes out. It does not read before: QEMU's TCG would fault for that, and Linux answers
/// with its page of zeros, which it splits when it is written.
fn write(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut next = a.create_label();
    a.set_label(&mut next)?;
    a.mov(qword_ptr(rsi), rsi)?;
    a.add(rsi, PAGE as i32)?;
    a.cmp(rsi, rdi)?;
    a.jb(next)?;
    a.out(0xf4, al)
}

struct Running {
    guest: Guest,
    vm: LiveVm,
    trace: Trace,
    block: Arc<RamBlock>,
    slot: Slot,
}

impl Running {
    fn new(row: &Row) -> Self {
        let trace = Trace::start().unwrap();
        let mut guest = Guest::ring3(write);
        if row.small_guest {
            for table in 0..BYTES / LARGE {
                let at = SMALL_TABLES + table * PAGE;
                let put = |at: u64, value: u64| guest.ram.write(at, &value.to_le_bytes()).unwrap();
                (0..512).for_each(|page| put(at + page * 8, (HERE + table * LARGE + page * PAGE) | 7));
                put(LARGE_TABLE + table * 8, at | 7);
            }
        }
        let options = RamOptions { pages: row.pages, ..RamOptions::default() };
        let block = RamBlock::create("block", BYTES + LARGE, options).unwrap();
        assert!(
            Hva(block.hva().0).is_aligned(PageSize::Size2M),
            "memory that asks for huge pages is aligned"
        );
        let slot = Slot {
            gpa: AddrRange::new(Gpa(HERE + row.gpa), row.bytes.into()).unwrap(),
            hva: Hva(block.hva().0 + row.hva),
            flags: row.flags,
            ..slot(1, HERE, &block)
        };
        guest.slots.execute(&SlotOp::Create(slot.clone())).unwrap();
        let mut running = Self { vm: guest.live(), guest, trace, block, slot };
        running.run();
        running
    }

    fn run(&mut self) {
        let mut regs = start();
        regs[Gpr::Rsi] = self.slot.gpa.first().raw();
        regs[Gpr::Rdi] = self.slot.gpa.last().raw();
        self.guest.vcpu.set_regs(&regs).unwrap();
        assert!(matches!(self.guest.run(Entry::Resume), Exit::IoOut { port: 0xf4, .. }));
    }

    /// The slot's leaves of 4K and 2M, which are as they should be and as KVM has told.
    fn leaves(&mut self) -> [usize; 2] {
        let tables = self.vm.tables().unwrap();
        let report = tables.check(&pagemap()).unwrap();
        assert!(report.is_clean(), "{report}");
        let replay = tables.replay(self.trace.events(), 0);
        assert!(replay.is_clean(), "{replay}");
        let of_slot = |leaf: &LiveLeaf| self.slot.gpa.contains(leaf.gpa);
        let sizes = [PageSize::Size4K, PageSize::Size2M];
        sizes.map(|size| tables.leaves().filter(of_slot).filter(|leaf| leaf.size == size).count())
    }
}

fn a_leaf_is_as_large_as_all_sides_allow() {
    for row in ROWS {
        let mut running = Running::new(&row);
        // The guest's pages are a limit of shadow tables alone (rule L4).
        let is_limited = !row.small_guest || running.guest.vm.is_shadow();
        let leaves = if is_limited { row.leaves } else { ALIGNED.leaves };
        assert_eq!(running.leaves(), leaves, "{}", row.name);
        // The guest's own slot is the first.
        let [small, large] = running.vm.tables().unwrap().limits(&pagemap()).remove(1);
        let [of_small, of_large] = leaves.map(|leaves| leaves as u64);
        assert_eq!(small.get(&row.limit).copied().unwrap_or(0), of_small, "{}: {small:?}", row.name);
        assert_eq!(large.get(&Limit::SlotEdge).copied().unwrap_or(0), of_large, "{}: {large:?}", row.name);
    }
}

fn leaves_keep_their_size_when_pages_come_anew() {
    for row in [ALIGNED, ROWS[4]] {
        let mut running = Running::new(&row);
        running.block.discard(0..BYTES + LARGE).unwrap();
        assert_eq!(running.leaves(), [0, 0], "{}", row.name);
        running.run();
        assert_eq!(running.leaves(), row.leaves, "{}", row.name);
    }
}

fn a_log_has_small_leaves_from_the_next_write_on() {
    let mut running = Running::new(&ALIGNED);
    let (slot, flags) = (running.slot.clone(), SlotFlags::LOG_DIRTY_PAGES);
    running.guest.slots.execute(&SlotOp::SetFlags { slot, flags }).unwrap();
    running.run();
    assert_eq!(running.leaves(), [2048, 0]);
}

fn leaves_of_a_log_that_has_ended_make_room_for_large_ones() {
    let mut running = Running::new(&ROWS[6]);
    assert_eq!(running.leaves(), ROWS[6].leaves);
    let (slot, flags) = (running.slot.clone(), SlotFlags::empty());
    running.guest.slots.execute(&SlotOp::SetFlags { slot, flags }).unwrap();
    // So that large ones can come.
    assert_eq!(running.leaves(), [0, 0]);
    let replay = running.vm.tables().unwrap().replay(running.trace.events(), 0);
    // The TDP MMU takes whole tables, and tells of each; the shadow MMU takes entries, and tells of none.
    assert!(replay.unexplained == 0 || running.guest.vm.is_shadow(), "{replay}");
    assert!(replay.gone + replay.unexplained >= 2048, "{replay}");
    running.run();
    assert_eq!(running.leaves(), ALIGNED.leaves);
}

fn a_slot_that_is_made_again_has_large_leaves_again() {
    let mut running = Running::new(&ALIGNED);
    running.guest.slots.execute(&SlotOp::Delete(running.slot.clone())).unwrap();
    assert_eq!(running.leaves(), [0, 0]);
    running.guest.slots.execute(&SlotOp::Create(running.slot.clone())).unwrap();
    running.run();
    assert_eq!(running.leaves(), [0, 4]);
}
