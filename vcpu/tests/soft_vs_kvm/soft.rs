//! The image on the software CPU, over flat memory.

use std::time::Duration;

use memory_model::Gva;
use vcpu::soft::cpu::Cpu;
use vcpu::soft::{AccessKind, Bus, BusFault, Paging};
use vcpu::{Budget, DescriptorTable, Entry, Exit, Regs, Segment, SystemRegs};

use super::guest::{self, Image};

/// Flat memory with the rights of the image's page tables.
struct Flat {
    memory: Vec<u8>,
}

impl Flat {
    /// Checks an access page by page: an address that is not canonical counts only once reached.
    fn check(&self, paging: &Paging, gva: Gva, len: usize, kind: AccessKind) -> Result<(), BusFault> {
        let last = gva.raw().wrapping_add(len as u64 - 1);
        let next_page = (gva.raw() | 0xfff).wrapping_add(1);
        let crosses = last >> 12 != gva.raw() >> 12;
        for address in [gva.raw()].into_iter().chain(crosses.then_some(next_page)) {
            if (address as i64) << 16 >> 16 != address as i64 {
                return Err(BusFault::NotCanonical);
            }
            let rights = guest::rights(address >> 12);
            let write = u64::from(kind == AccessKind::Write) << 1;
            let needed = 1 | write | u64::from(paging.user) << 2;
            if rights & needed != needed {
                let fetch = u32::from(kind == AccessKind::Fetch) << 4;
                let error_code = (rights & 1 | needed & 0b110) as u32 | fetch;
                return Err(BusFault::PageFault { error_code, address: Gva(address) });
            }
        }
        Ok(())
    }
}

impl Bus for Flat {
    fn read(&mut self, paging: &Paging, gva: Gva, buf: &mut [u8], kind: AccessKind) -> Result<(), BusFault> {
        self.check(paging, gva, buf.len(), kind)?;
        buf.copy_from_slice(&self.memory[gva.raw() as usize..][..buf.len()]);
        Ok(())
    }

    fn write(&mut self, paging: &Paging, gva: Gva, data: &[u8]) -> Result<(), BusFault> {
        self.check(paging, gva, data.len(), AccessKind::Write)?;
        self.memory[gva.raw() as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }

    fn invalidate_page(&mut self, _: Gva) {}

    fn invalidate_all(&mut self) {}
}

fn segment(selector: u16, kind: u8, long: bool) -> Segment {
    let present = Segment { selector, kind, present: true, limit: u32::MAX, ..Segment::default() };
    Segment { dpl: 3, code_or_data: true, long, db: !long, ..present }
}

/// The memory after the run, or why there is none.
pub fn run(image: &Image) -> Result<Vec<u8>, String> {
    let data = segment(guest::DATA_SELECTOR, 3, false);
    let system = SystemRegs {
        fs: Segment { base: guest::FS_BASE, ..data },
        gs: Segment { base: guest::GS_BASE, ..data },
        tr: Segment {
            selector: guest::TSS_SELECTOR,
            base: guest::TSS,
            limit: 0x67,
            kind: 0xb,
            present: true,
            ..Segment::default()
        },
        gdt: DescriptorTable { base: guest::GDT, limit: 0x37 },
        idt: DescriptorTable { base: guest::IDT, limit: 0xfff },
        cr0: 0x8005_0033 & !(1 << 18),
        cr3: guest::PML4,
        cr4: 0x620,
        efer: 0xd00,
        ..SystemRegs::with_segments(segment(guest::CODE_SELECTOR, 0xb, true), data)
    };
    let regs = Regs { rip: guest::start_of_cases(), rflags: guest::FLAGS, ..Regs::default() };
    let mut cpu = Cpu::new(regs, system);
    let mut flat = Flat { memory: image.memory.clone() };
    let budget = Budget::time(Duration::from_secs(60)).instructions(10_000_000);
    match cpu.run(&mut flat, &Entry::Resume, &budget) {
        Ok(Exit::IoOut { port: guest::EXIT_PORT, .. }) => Ok(flat.memory),
        exit => Err(format!("{exit:x?} at\n{}", cpu.regs)),
    }
}
