//! What an access of a guest costs on each second level of the software machine, interpreter and all.
//! `cargo bench -p vcpu --bench warm_access`.

#[path = "../../memory-model/benches/paired/mod.rs"]
mod paired;

use std::cell::RefCell;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use memory_model::{AddrRange, AddressSpace, Gva, RamBlock, RegionTree};
use slot_manager::SlotManager;
use vcpu::boot::{GuestMap, LongMode, Ring};
use vcpu::soft::{SecondLevel, SoftOptions, SoftVm};
use vcpu::{Budget, Entry, Exit, Vcpu, Vm};

const BYTES: u64 = 0x40_0000;
const CODE: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;
/// Accesses of one round.
const ACCESSES: u32 = 20_000;

/// A loop that ends with a write to port 0xf4 and goes on from its start.
type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// A round with `act` in it, which accesses memory at RBX once.
fn looped(
    asm: &mut CodeAssembler,
    act: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let (mut start, mut next) = (asm.create_label(), asm.create_label());
    asm.set_label(&mut start)?;
    asm.mov(rbx, DATA)?;
    asm.mov(ecx, ACCESSES)?;
    asm.set_label(&mut next)?;
    act(asm)?;
    asm.dec(ecx)?;
    asm.jnz(next)?;
    asm.out(0xf4, al)?;
    asm.jmp(start)
}

const ROWS: [(&str, Option<f64>, Program); 4] = [
    ("warm read", Some(1.05), |asm| looped(asm, |asm| asm.mov(rax, qword_ptr(rbx)))),
    ("warm write", Some(1.05), |asm| looped(asm, |asm| asm.mov(qword_ptr(rbx), rax))),
    ("warm read, 64 pages in turn", Some(1.05), |asm| {
        looped(asm, |asm| {
            asm.mov(rax, qword_ptr(rbx))?;
            asm.add(rbx, 0x1000)?;
            asm.and(ebx, 0x23_ffff)
        })
    }),
    // The processor walks: two dimensions, or a shadow.
    ("read after INVLPG", None, |asm| {
        looped(asm, |asm| {
            asm.invlpg(byte_ptr(rbx))?;
            asm.mov(rax, qword_ptr(rbx))
        })
    }),
];

fn main() {
    paired::head("an access of a guest, the loop around it included: against ept");
    let columns = [("npt", SecondLevel::NPT), ("shadow", SecondLevel::Shadow)];
    for (row, target, program) in ROWS {
        let ept = RefCell::new(boot(SecondLevel::EPT, program));
        for (name, second_level) in columns {
            let ours = RefCell::new(boot(second_level, program));
            let name = format!("{row}, {name}");
            paired::compare(&name, target, 31, ACCESSES, || round(&ours), || round(&ept));
        }
    }
}

fn round(vcpu: &RefCell<Box<dyn Vcpu>>) {
    let exit = vcpu.borrow_mut().run(Entry::Resume, &Budget::time(Duration::from_secs(20)));
    assert!(matches!(exit, Ok(Exit::IoOut { .. })), "{exit:?}");
}

fn boot(second_level: SecondLevel, program: Program) -> Box<dyn Vcpu> {
    let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64).unwrap()).unwrap();
    let block = RamBlock::anonymous("ram", BYTES).unwrap();
    let add = |tree: &mut RegionTree| {
        let ram = tree.ram("ram", block.clone())?;
        tree.add(tree.root(), 0, ram)
    };
    space.update(add).unwrap();
    let vm = SoftVm::with(&SoftOptions::of(second_level)).unwrap();
    space.register(Arc::new(Mutex::new(SlotManager::new(vm.slots())))).unwrap();
    let mut asm = CodeAssembler::new(64).unwrap();
    program(&mut asm).unwrap();
    block.write(CODE, &asm.assemble(CODE).unwrap()).unwrap();
    let all = GuestMap::identity(AddrRange::new(Gva(CODE), (BYTES - CODE).into()).unwrap());
    let guest = LongMode { entry: CODE, ring: Ring::Kernel, handlers: vec![], maps: vec![all] };
    let (regs, system) = guest.install(&space.view()).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_system_regs(&system).unwrap();
    vcpu.set_regs(&regs).unwrap();
    vcpu
}
