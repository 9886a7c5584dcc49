//! A small VM for KVM tests: one piece of RAM, flat 64-bit mode at ring 3 or 0, one vCPU.

use std::sync::Arc;
use std::time::Duration;

use ept::live::LiveVm;
use iced_x86::code_asm::CodeAssembler;
use memory_model::{AddrRange, Gpa, Hva, RamBlock};
use slot_manager::{DirtyMethod, Slot, SlotExecutor, SlotFlags, SlotId, SlotOp};
use vcpu::kvm::live_kernel;
use vcpu::{
    Budget, DescriptorTable, Entry, Exit, KvmVm, Regs, Segment, SystemRegs, Vcpu, Vm, cr0, cr4, efer, rflags,
};

const GDT: u64 = 0x1000;
const TSS: u64 = 0x3000;
/// Offset of the I/O permission bitmap, and of the TSS's last byte: one bit per port and eight more (SDM vol. 1, 19.5.2).
const TSS_BITMAP: u16 = 0x68;
const TSS_LAST: u16 = TSS_BITMAP + 0x2000;
const STACK_END: u64 = 0xa000;
const PML4: u64 = 0x1_0000;
const PDPT: u64 = 0x1_1000;
const PD: u64 = 0x1_2000;
/// Where the guest's code starts.
pub const CODE: u64 = 0x10_0000;
/// Free for the guest's data.
pub const DATA: u64 = 0x20_0000;
const RAM_BYTES: u64 = 0x40_0000;

/// The guest's first GiB is identity mapped, for ring 3 too. RAM ends far below, so this is no slot's.
pub const NO_SLOT: u64 = 0x1000_0000;

/// Longer than any test takes, far shorter than for ever.
pub const PLENTY: Duration = Duration::from_secs(20);

pub struct Guest {
    pub ram: Arc<RamBlock>,
    pub vcpu: Box<dyn Vcpu>,
    pub slots: Box<dyn SlotExecutor>,
    pub vm: KvmVm,
}

impl Guest {
    /// A guest about to run `code` at ring 3, with the right to do port I/O: by IOPL, and by the TSS's bitmap
    /// too, for KVM's PVM flavour runs ring 3 with IOPL 0. Its IDT is empty, so any exception is a triple fault.
    pub fn ring3(code: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Self {
        Self::ring3_on(RamBlock::anonymous("ram", RAM_BYTES).unwrap(), code)
    }

    /// The same in that memory, as large as usual.
    pub fn ring3_on(
        ram: Arc<RamBlock>,
        code: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
    ) -> Self {
        Self::boot(3, ram, DirtyMethod::Bitmap, code)
    }

    /// The same at ring 0.
    pub fn ring0(code: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Self {
        Self::boot(0, RamBlock::anonymous("ram", RAM_BYTES).unwrap(), DirtyMethod::Bitmap, code)
    }

    /// The same at ring 3, whose writes are logged that way.
    pub fn ring3_logged(
        method: DirtyMethod,
        code: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
    ) -> Self {
        Self::boot(3, RamBlock::anonymous("ram", RAM_BYTES).unwrap(), method, code)
    }

    fn boot(
        ring: u8,
        ram: Arc<RamBlock>,
        method: DirtyMethod,
        code: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
    ) -> Self {
        let mut asm = CodeAssembler::new(64).unwrap();
        code(&mut asm).unwrap();
        ram.write(CODE, &asm.assemble(CODE).unwrap()).unwrap();
        write_tables(&ram);

        let vm = KvmVm::new().unwrap();
        let mut slots = vm.slots();
        slots.with_log(&mut |log| log.set_dirty_method(method).unwrap());
        slots.execute(&SlotOp::Create(slot(0, 0, &ram))).unwrap();
        let mut vcpu = vm.create_vcpu(0).unwrap();
        vcpu.set_system_regs(&long_mode(ring)).unwrap();
        vcpu.set_regs(&start()).unwrap();
        Self { ram, vcpu, slots, vm }
    }

    /// Runs with plenty of time.
    pub fn run(&mut self, entry: Entry) -> Exit {
        self.vcpu.run(entry, &Budget::time(PLENTY)).unwrap()
    }

    /// The same VM as the kernel has it.
    pub fn live(&self) -> LiveVm {
        let vm = LiveVm::of_fd(live_kernel().expect("the test needs it"), &self.vm);
        vm.unwrap().expect("the VM's own file")
    }

    pub fn regs(&mut self) -> Regs {
        self.vcpu.regs().unwrap()
    }
}

/// All of `block` as a slot at `gpa`.
pub fn slot(id: u32, gpa: u64, block: &Arc<RamBlock>) -> Slot {
    Slot {
        id: SlotId(id),
        gpa: AddrRange::new(Gpa(gpa), block.size().into()).unwrap(),
        hva: Hva(block.hva().0),
        flags: SlotFlags::empty(),
        name: block.name().clone(),
        block: block.clone(),
    }
}

/// The registers every guest starts with. Interrupts are on: Bochs 2.7 keeps those of the host back while its guest has them off,
/// and there a guest without an exit would never be brought out.
pub fn start() -> Regs {
    let rflags = rflags::FIXED | rflags::IOPL | rflags::IF;
    let mut regs = Regs { rip: CODE, rflags, ..Default::default() };
    regs[vcpu::Gpr::Rsp] = STACK_END;
    regs
}

/// One PML4, one PDPT, one PD of 2 MiB pages; the GDT and the TSS that `long_mode` names.
fn write_tables(ram: &RamBlock) {
    const TABLE: u64 = 0x7;
    const PAGE: u64 = 0x87;
    let put = |at: u64, value: u64| ram.write(at, &value.to_le_bytes()).unwrap();
    put(PML4, PDPT | TABLE);
    put(PDPT, PD | TABLE);
    for page in 0..512 {
        put(PD + page * 8, page << 21 | PAGE);
    }
    let gdt = [
        0,
        0x00af_9b00_0000_ffff, // 0x08 code, ring 0
        0x00cf_9300_0000_ffff, // 0x10 data, ring 0
        0x00cf_f300_0000_ffff, // 0x18 data, ring 3
        0x00af_fb00_0000_ffff, // 0x20 code, ring 3
        0x0000_8b00_3000_2068, // 0x28 TSS
        0,
    ];
    for (index, descriptor) in gdt.into_iter().enumerate() {
        put(GDT + index as u64 * 8, descriptor);
    }
    // All zeroes permit all ports; the byte behind them must be ones.
    ram.write(TSS + 0x66, &TSS_BITMAP.to_le_bytes()).unwrap();
    ram.write(TSS + u64::from(TSS_LAST), &[0xff]).unwrap();
}

pub fn long_mode(ring: u8) -> SystemRegs {
    let flat =
        Segment { limit: u32::MAX, dpl: ring, code_or_data: true, present: true, ..Default::default() };
    let (code, data) = if ring == 3 { (0x23, 0x1b) } else { (0x08, 0x10) };
    let code = Segment { selector: code, kind: 0xb, long: true, ..flat };
    let data = Segment { selector: data, kind: 0x3, db: true, ..flat };
    SystemRegs {
        tr: Segment {
            selector: 0x28,
            base: TSS,
            limit: TSS_LAST.into(),
            kind: 0xb,
            present: true,
            ..Default::default()
        },
        gdt: DescriptorTable { base: GDT, limit: 7 * 8 - 1 },
        idt: DescriptorTable { base: 0, limit: 0 },
        cr0: cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::PG,
        cr3: PML4,
        cr4: cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT,
        efer: efer::SCE | efer::LME | efer::LMA | efer::NXE,
        ..SystemRegs::with_segments(code, data)
    }
}
