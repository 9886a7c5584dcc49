//! The devices of a machine: the exit port, the other ports, and what answers where no memory is.

pub(crate) mod pc;
mod ports;
mod serial;

use std::sync::Arc;

use guest_tests::MmioSpec;
use memory_model::{Bus, FlatView, Gpa, Unassigned};
use vcpu::{Entry, Exit, MmioData};

use self::ports::Ports;
use crate::Ending;

/// A write to this port ends the run (QEMU's isa-debug-exit): its low byte is the code.
pub const PORT_EXIT: u16 = 0xf4;
/// Bytes to this port are the console's (the first serial port's data register).
pub const PORT_CONSOLE: u16 = serial::FIRST_PORT;

/// A byte to this port rings a bell: the host does the steps of its manifest for that number. Without that, as under QEMU,
/// nothing is there.
pub const PORT_BELL: u16 = 0xf8;

/// So many MMIO accesses are kept: a guest can make them as fast as it can run.
const MAX_MMIO: usize = 1 << 16;

/// What the devices have seen of one run.
pub(crate) struct Devices {
    pub(crate) view: Arc<FlatView>,
    ports: Ports,
    pub(crate) mmio: Vec<MmioSpec>,
    pub(crate) mmio_unkept: u64,
    pub(crate) memory_faults: u64,
    /// How often the guest was interrupted for steps: what a read of the bell's port gives.
    pub(crate) ticks: u8,
}

impl Devices {
    /// For a machine with this view, and so much main RAM and so many processors.
    pub(crate) fn new(view: Arc<FlatView>, ram_size: u64, processors: u32) -> Self {
        let ports = Ports::new(ram_size, processors);
        Self { view, ports, mmio: Vec::new(), mmio_unkept: 0, memory_faults: 0, ticks: 0 }
    }

    /// The interrupt line that an exit sets, and how.
    pub(crate) fn interrupt_line(exit: &Exit) -> Option<(u8, bool)> {
        match exit {
            Exit::IoOut { port, data, .. } => Ports::interrupt_line(*port, data),
            _ => None,
        }
    }

    /// Answers an exit, or says that it was the last one.
    pub(crate) fn serve(&mut self, exit: Exit) -> Result<Entry, Ending> {
        match exit {
            Exit::IoOut { port: PORT_EXIT, data, .. } => {
                Err(Ending::Reported(data.first().copied().unwrap_or(0)))
            }
            Exit::IoOut { port, size, data } => {
                self.ports.write(port, size, &data);
                Ok(Entry::Resume)
            }
            Exit::IoIn { port: PORT_BELL, size, count } => {
                Ok(Entry::Data(vec![self.ticks; usize::from(size) * count as usize]))
            }
            Exit::IoIn { port, size, count } => Ok(Entry::Data(self.ports.read(port, size, count))),
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

    /// What the guest wrote to its console.
    pub(crate) fn into_console(self) -> Vec<u8> {
        self.ports.serial.into_console()
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
