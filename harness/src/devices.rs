//! The devices of a machine: the exit port, the console, and what answers where no memory is.

use std::sync::Arc;

use guest_tests::MmioSpec;
use memory_model::{Bus, FlatView, Gpa, Unassigned};
use vcpu::{Entry, Exit, MmioData};

use crate::Ending;

/// One byte to this port ends the run (QEMU's isa-debug-exit).
pub const PORT_EXIT: u16 = 0xf4;
/// Bytes to this port are the console's (the first serial port's data register).
pub const PORT_CONSOLE: u16 = 0x3f8;

/// So many bytes of console output are kept ...
const MAX_CONSOLE: usize = 1 << 16;
/// ... and so many MMIO accesses: a guest can make them as fast as it can run.
const MAX_MMIO: usize = 1 << 16;

/// What the devices have seen of one run.
pub(crate) struct Devices {
    view: Arc<FlatView>,
    pub(crate) console: Vec<u8>,
    pub(crate) mmio: Vec<MmioSpec>,
    pub(crate) mmio_unkept: u64,
}

impl Devices {
    pub(crate) fn new(view: Arc<FlatView>) -> Self {
        Self { view, console: Vec::new(), mmio: Vec::new(), mmio_unkept: 0 }
    }

    /// Answers an exit, or says that it was the last one.
    pub(crate) fn serve(&mut self, exit: Exit) -> Result<Entry, Ending> {
        match exit {
            Exit::IoOut { port: PORT_EXIT, data, .. } => {
                Err(Ending::Reported(data.first().copied().unwrap_or(0)))
            }
            Exit::IoOut { port: PORT_CONSOLE, data, .. } => {
                let room = MAX_CONSOLE - self.console.len();
                self.console.extend(data.iter().take(room));
                Ok(Entry::Resume)
            }
            Exit::IoOut { .. } => Ok(Entry::Resume),
            // No device on this port: the bus floats high.
            Exit::IoIn { size, count, .. } => Ok(Entry::Data(vec![0xff; usize::from(size) * count as usize])),
            Exit::MmioRead { gpa, size } => {
                self.note(MmioSpec { at: gpa.0, size, write: None });
                Ok(Entry::Data(self.read(gpa, size)))
            }
            Exit::MmioWrite { gpa, data } => {
                self.note(MmioSpec {
                    at: gpa.0,
                    size: data.as_slice().len() as u8,
                    write: Some(data.value()),
                });
                self.write(gpa, data);
                Ok(Entry::Resume)
            }
            Exit::Halt => Err(Ending::Halted),
            Exit::BudgetExceeded(limit) => Err(Ending::Timeout(limit)),
            other => Err(Ending::Crashed(other)),
        }
    }

    /// What the machine answers: a guest is not told of an access that fails, it reads 0.
    fn read(&self, gpa: Gpa, size: u8) -> Vec<u8> {
        let mut data = vec![0; size.into()];
        let _ = self.bus().read(gpa, &mut data);
        data
    }

    /// A write that fails, to ROM say, is dropped, and the guest is not told either.
    fn write(&self, gpa: Gpa, data: MmioData) {
        let _ = self.bus().write(gpa, data.as_slice());
    }

    /// All ones where no device is: what a PC's bus gives.
    fn bus(&self) -> Bus<'_> {
        self.view.bus().unassigned(Unassigned::AllOnes)
    }

    fn note(&mut self, access: MmioSpec) {
        if self.mmio.len() < MAX_MMIO { self.mmio.push(access) } else { self.mmio_unkept += 1 }
    }
}
