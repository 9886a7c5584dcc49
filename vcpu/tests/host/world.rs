//! A process with one block, and a notifier that writes down what it hears.

use std::sync::Arc;

use ept::mmu::{HostFault, HostFrame, HostFrames};
use memory_model::{AddrRange, Hva, PageSize, Pages, RamBlock};
use vcpu::soft::host::{Host, MmuNotifier};

pub const M2: u64 = 2 << 20;

/// A host with one block, which begins at a multiple of 2 MiB.
pub struct World {
    pub host: Host,
    pub block: Arc<RamBlock>,
}

impl World {
    pub fn new(bytes: u64, pages: Pages) -> Self {
        Self::on(Host::default(), bytes, pages)
    }

    pub fn on(host: Host, bytes: u64, pages: Pages) -> Self {
        let block = RamBlock::anonymous("ram", bytes).unwrap();
        host.map_pages(&block, pages);
        Self { host, block }
    }

    pub fn hva(&self, offset: u64) -> Hva {
        Hva(self.block.hva().0 + offset)
    }

    pub fn range(&self, offset: u64, bytes: u64) -> AddrRange<Hva> {
        AddrRange::new(self.hva(offset), bytes.into()).unwrap()
    }

    pub fn touch(&self, offset: u64) -> HostFrame {
        self.host.host_frame(self.hva(offset), true).unwrap()
    }

    pub fn read_only_touch(&self, offset: u64) -> Result<HostFrame, HostFault> {
        self.host.host_frame(self.hva(offset), false)
    }

    /// Touches a page and fills it with a byte.
    pub fn fill(&self, offset: u64, byte: u8) -> HostFrame {
        self.block.write(offset, &[byte; 0x1000]).unwrap();
        self.touch(offset)
    }

    pub fn is_aligned(&self, size: PageSize) -> bool {
        self.block.hva().is_aligned(size)
    }

    /// What the host says now, and that it does not contradict itself.
    pub fn settled(&self) -> &Host {
        self.host.check().unwrap();
        &self.host
    }
}

/// What a notifier heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heard {
    Start(AddrRange<Hva>),
    End(AddrRange<Hva>),
}

/// Writes down what it hears. At each start and end it may look at the host too.
#[derive(Default)]
pub struct Ear<'a> {
    pub heard: Vec<Heard>,
    pub look: Option<Box<dyn FnMut(Heard) + 'a>>,
}

impl<'a> Ear<'a> {
    pub fn looking(look: impl FnMut(Heard) + 'a) -> Self {
        Self { heard: Vec::new(), look: Some(Box::new(look)) }
    }

    fn hear(&mut self, heard: Heard) {
        self.heard.push(heard);
        if let Some(look) = &mut self.look {
            look(heard);
        }
    }
}

impl MmuNotifier for Ear<'_> {
    fn invalidate_range_start(&mut self, range: AddrRange<Hva>) {
        self.hear(Heard::Start(range));
    }

    fn invalidate_range_end(&mut self, range: AddrRange<Hva>) {
        self.hear(Heard::End(range));
    }
}
