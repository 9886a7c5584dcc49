//! memflow, over memory that copies bytes out of [`Ram`].

use memflow::architecture::x86::{X86VirtualTranslate, x64};
use memflow::cglue::{CTup2, CTup3};
use memflow::mem::mem_data::{MemOps, PhysicalReadMemOps, PhysicalWriteMemOps, opt_call};
use memflow::mem::{DirectTranslate, PhysicalMemory, PhysicalMemoryMetadata, VirtualTranslate2};
use memflow::types::{PhysicalAddress, umem};

use ept::PhysMemory;

use crate::ram::Ram;

/// A translator, and the memory it reads.
pub struct Memflow<'a> {
    memory: Bytes<'a>,
    translator: X86VirtualTranslate,
    direct: DirectTranslate,
}

impl<'a> Memflow<'a> {
    pub fn new(ram: &'a Ram, root: u64) -> Self {
        Self {
            memory: Bytes(ram),
            translator: x64::new_translator(root.into()),
            direct: DirectTranslate::new(),
        }
    }

    pub fn translate(&mut self, address: u64) -> u64 {
        let page = self.direct.virt_to_phys(&mut self.memory, &self.translator, address.into());
        page.expect("the address is mapped").address().to_umem()
    }

    /// The sum of what the addresses translate to.
    pub fn translate_all(&mut self, addresses: &[u64]) -> u64 {
        let mut sum = 0;
        let ranges = addresses.iter().map(|&address| CTup3(address.into(), address.into(), 1 as umem));
        let mut mapped = |CTup3(page, _, _): CTup3<PhysicalAddress, _, umem>| {
            sum += page.address().to_umem();
            true
        };
        let mut failed = |_| panic!("the addresses are mapped");
        self.direct.virt_to_phys_iter(
            &mut self.memory,
            &self.translator,
            ranges,
            &mut (&mut mapped).into(),
            &mut (&mut failed).into(),
        );
        sum
    }
}

struct Bytes<'a>(&'a Ram);

impl PhysicalMemory for Bytes<'_> {
    fn phys_read_raw_iter(
        &mut self,
        MemOps { inp, mut out, .. }: PhysicalReadMemOps,
    ) -> memflow::error::Result<()> {
        for CTup3(address, meta, mut data) in inp {
            for (entry, at) in data.chunks_exact_mut(8).zip((address.to_umem()..).step_by(8)) {
                entry.copy_from_slice(&self.0.read_entry(at).expect("tables lie in memory").to_ne_bytes());
            }
            opt_call(out.as_deref_mut(), CTup2(meta, data));
        }
        Ok(())
    }

    fn phys_write_raw_iter(&mut self, _: PhysicalWriteMemOps) -> memflow::error::Result<()> {
        unreachable!("a translation writes nothing")
    }

    fn metadata(&self) -> PhysicalMemoryMetadata {
        PhysicalMemoryMetadata {
            max_address: (self.0.bytes - 1).into(),
            real_size: self.0.bytes,
            readonly: true,
            ideal_batch_size: u32::MAX,
        }
    }
}
