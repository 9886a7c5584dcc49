//! What makes a processor forget.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use memory_model::Gpa;
use vcpu::Exit;

use crate::machine::*;

const OTHER: u64 = DATA + 5 * PAGE;

/// What invalidates a translation, with the linear address in RBX.
type Flush = fn(&mut CodeAssembler) -> Result<(), IcedError>;

const FLUSHES: [(&str, Flush); 5] = [
    ("INVLPG", |asm| asm.invlpg(byte_ptr(rbx + 0x123))),
    ("MOV CR3", |asm| {
        asm.mov(rax, cr3)?;
        asm.mov(cr3, rax)
    }),
    ("MOV CR0", |asm| {
        asm.mov(rax, cr0)?;
        asm.btc(rax, 16)?; // WP
        asm.mov(cr0, rax)
    }),
    ("MOV CR4", |asm| {
        asm.mov(rax, cr4)?;
        asm.btc(rax, 7)?; // PGE
        asm.mov(cr4, rax)
    }),
    ("WRMSR EFER", |asm| {
        asm.mov(ecx, 0xc000_0080u32)?;
        asm.rdmsr()?;
        asm.btc(eax, 11)?; // NXE
        asm.wrmsr()
    }),
];

/// A guest with 1 at `DATA` and 2 at `OTHER`, that has read both and now moves `DATA` to where `OTHER` is.
fn remapped(options: &vcpu::soft::SoftOptions) -> Machine {
    let mut machine = Machine::new(options);
    machine.writes(DATA, 1);
    machine.writes(OTHER, 2);
    assert_eq!(machine.reads(DATA), 1);
    let (from, to) = (machine.pte(OTHER), machine.pte(DATA));
    let entry = machine.reads(from);
    machine.writes(to, entry);
    machine
}

#[test]
fn a_changed_entry_is_seen_when_the_guest_invalidates_and_not_before() {
    for options in columns() {
        for (name, flush) in FLUSHES {
            let mut machine = remapped(&options);
            assert_eq!(machine.reads(DATA), 1, "{name}, {options:?}: nothing is remembered");
            machine.assert_clean();
            machine.does(|asm| {
                asm.mov(rbx, DATA)?;
                flush(asm)?;
                asm.mov(rbx, DATA)?;
                asm.mov(rax, qword_ptr(rbx))
            });
            assert_eq!(machine.vcpu.regs().unwrap()[vcpu::Gpr::Rax], 2, "{name}, {options:?}");
            machine.assert_clean();
        }
    }
}

#[test]
fn h2_a_table_that_the_guest_exchanges_for_another_is_seen_when_it_invalidates() {
    for options in columns() {
        let mut machine = Machine::new(&options);
        let far = DATA + 0x20_0000;
        machine.writes(DATA, 1);
        machine.writes(far, 2);
        assert_eq!(machine.reads(DATA), 1);
        let (from, to) = (machine.entry(far, 2), machine.entry(DATA, 2));
        let entry = machine.reads(from);
        machine.writes(to, entry);
        machine.does(|asm| {
            asm.mov(rbx, DATA)?;
            asm.invlpg(byte_ptr(rbx))
        });
        assert_eq!(machine.reads(DATA), 2, "{options:?}");
        machine.assert_clean();
    }
}

#[test]
fn invlpg_of_another_page_or_of_none_may_forget_but_an_absent_entry_is_never_remembered() {
    for options in columns() {
        let mut machine = Machine::new(&options);
        let entry = machine.pte(DATA);
        let present = machine.reads(entry);
        machine.writes(entry, 0);
        machine.does(|asm| {
            asm.mov(rbx, DATA)?;
            asm.invlpg(byte_ptr(rbx))
        });
        machine.load(|asm| {
            asm.mov(rbx, DATA)?;
            asm.mov(rax, qword_ptr(rbx))
        });
        // No handler.
        assert_eq!(machine.run(), Exit::Shutdown, "{options:?}");
        machine.writes(entry, present);
        assert_eq!(machine.reads(DATA), 0, "{options:?}: from absent to present there is nothing to flush");
    }
}

#[test]
fn registers_set_from_outside_flush() {
    for options in columns() {
        let mut machine = remapped(&options);
        assert_eq!(machine.reads(DATA), 1);
        let system = machine.vcpu.system_regs().unwrap();
        machine.vcpu.set_system_regs(&system).unwrap();
        assert_eq!(machine.reads(DATA), 2, "{options:?}");
    }
}

#[test]
fn a_use_allows_no_other_use() {
    for options in columns() {
        let mut machine = Machine::new(&options);
        machine.does(|asm| {
            // CR0.WP, so that ring 0 obeys W.
            asm.mov(rax, cr0)?;
            asm.bts(rax, 16)?;
            asm.mov(cr0, rax)
        });
        let entry = machine.pte(DATA);
        let read_only = machine.reads(entry) & !0x62;
        machine.writes(entry, read_only);
        machine.does(|asm| {
            asm.mov(rbx, DATA)?;
            asm.invlpg(byte_ptr(rbx))
        });
        machine.reads(DATA);
        machine.load(|asm| {
            asm.mov(rbx, DATA)?;
            asm.mov(qword_ptr(rbx), rax)
        });
        assert_eq!(machine.run(), Exit::Shutdown, "{options:?}: it was read, that is no right to write");
        let flags = machine.block.load_u64(entry).unwrap() & 0x60;
        assert_eq!(flags, 0x20, "{options:?}: accessed, not dirty");
        machine.assert_clean();
    }
}

#[test]
fn what_ring_0_may_use_is_not_remembered_for_ring_3() {
    for options in columns() {
        let mut machine = Machine::new(&options);
        let entry = machine.pte(DATA);
        let supervisor = machine.reads(entry) & !4;
        machine.writes(entry, supervisor);
        machine.does(|asm| {
            asm.mov(rbx, DATA)?;
            asm.invlpg(byte_ptr(rbx))?;
            asm.mov(rax, qword_ptr(rbx))
        });
        machine.load(|asm| {
            let mut user = asm.create_label();
            asm.mov(rbx, DATA)?;
            asm.push(0x1b)?;
            asm.push(rsp)?;
            asm.push(0x3002)?;
            asm.push(0x23)?;
            asm.lea(rax, qword_ptr(user))?;
            asm.push(rax)?;
            asm.iretq()?;
            asm.set_label(&mut user)?;
            asm.mov(rax, qword_ptr(rbx))
        });
        assert_eq!(machine.run(), Exit::Shutdown, "{options:?}");
    }
}

#[test]
fn what_ac_allows_is_not_remembered_without_it() {
    for options in columns() {
        let mut machine = Machine::new(&options);
        machine.does(|asm| {
            // SMAP.
            asm.mov(rax, cr4)?;
            asm.bts(rax, 21)?;
            asm.mov(cr4, rax)?;
            asm.mov(rbx, DATA)?;
            asm.stac()?;
            asm.mov(rax, qword_ptr(rbx))?;
            asm.clac()
        });
        machine.load(|asm| {
            asm.mov(rbx, DATA)?;
            asm.mov(rax, qword_ptr(rbx))
        });
        assert_eq!(machine.run(), Exit::Shutdown, "{options:?}");
    }
}

#[test]
fn the_first_write_after_a_read_sets_dirty() {
    for options in columns() {
        let mut machine = Machine::new(&options);
        let entry = machine.pte(DATA);
        machine.reads(DATA);
        assert_eq!(machine.block.load_u64(entry).unwrap() & 0x60, 0x20, "{options:?}");
        machine.writes(DATA, 1);
        assert_eq!(machine.block.load_u64(entry).unwrap() & 0x60, 0x60, "{options:?}");
    }
}

#[test]
fn z3_a_slot_that_goes_is_not_remembered() {
    for options in columns() {
        let mut machine = Machine::new(&options);
        machine.writes(DATA, 1);
        machine.writes(OTHER, 2);
        let cut = |tree: &mut memory_model::RegionTree| {
            tree.remove(machine.ram)?;
            let low = tree.alias("low", machine.ram, 0, OTHER.into())?;
            tree.add(tree.root(), 0, low)
        };
        machine.space.update(cut).unwrap();
        machine.assert_clean();
        assert_eq!(machine.reads(DATA), 1);
        machine.load(|asm| {
            asm.mov(rbx, OTHER)?;
            asm.mov(rax, qword_ptr(rbx))
        });
        let exit = machine.run();
        assert_eq!(exit, Exit::MmioRead { gpa: Gpa(OTHER), size: 8 }, "{options:?}");
    }
}
