//! Data accesses of an instruction, and the answers of devices.
//!
//! An access to a device ends the run: the VMM has to answer it. The instruction is then executed again
//! from its start, and [`Transactions`] gives it what its accesses gave the first time, so that no device
//! sees an access twice. KVM's emulator does the same with its read cache.

use memory_model::{Gpa, Gva, PageSize};

use super::CpuError;
use super::alu::Width;
use super::exceptions::Exception;
use super::segments::Logical;
use super::step::{Abort, Step};
use crate::soft::{AccessKind, Bus, BusFault, Paging};
use crate::{Entry, MmioData};

/// A linear address, and which exception an impossible one raises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Linear {
    pub address: u64,
    /// Through SS: #SS rather than #GP.
    pub stack: bool,
}

impl Linear {
    pub(super) fn not_canonical(self) -> Exception {
        if self.stack { Exception::stack(0) } else { Exception::protection(0) }
    }
}

/// What an instruction asks a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Request {
    MmioRead { gpa: Gpa, size: u8 },
    MmioWrite { gpa: Gpa, data: MmioData },
    PortRead { port: u16, size: u8 },
}

/// The longest single access: a vector, or `CMPXCHG16B`.
const MAX_ACCESS: usize = 16;
/// More than any instruction makes: `ENTER` reads thirty words, and each can cross a page.
const MAX_TRANSACTIONS: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Direction {
    Read,
    Write,
    Port,
}

/// One access, or the part of one in one page, that has been done.
#[derive(Clone, Copy, Debug)]
struct Transaction {
    direction: Direction,
    /// Linear, or the port.
    address: u64,
    len: u8,
    /// What was read.
    data: [u8; MAX_ACCESS],
}

const NO_TRANSACTION: Transaction =
    Transaction { direction: Direction::Read, address: 0, len: 0, data: [0; MAX_ACCESS] };

/// The accesses that the current instruction has done, in order.
#[derive(Clone, Debug)]
pub(super) struct Transactions {
    done: [Transaction; MAX_TRANSACTIONS],
    len: usize,
    /// How many of them this execution of the instruction has come past.
    position: usize,
    /// The access that waits for the VMM.
    waiting: Option<Transaction>,
}

impl Transactions {
    pub const fn new() -> Self {
        Self { done: [NO_TRANSACTION; MAX_TRANSACTIONS], len: 0, position: 0, waiting: None }
    }

    /// Whether no instruction is under way.
    pub fn is_empty(&self) -> bool {
        self.len == 0 && self.waiting.is_none()
    }

    /// The instruction is over.
    pub fn clear(&mut self) {
        (self.len, self.position, self.waiting) = (0, 0, None);
    }

    /// The instruction starts, perhaps again.
    pub fn restart(&mut self) {
        self.position = 0;
    }

    /// Takes the VMM's answer to the access that waits.
    pub fn answer(&mut self, entry: &Entry) -> Result<(), CpuError> {
        match (self.waiting, entry) {
            (None, Entry::Resume) => return Ok(()),
            (None, Entry::Data(_)) => return Err(CpuError::UnexpectedData),
            (Some(Transaction { direction: Direction::Write, .. }), Entry::Data(_)) => {
                return Err(CpuError::UnexpectedData);
            }
            (Some(Transaction { direction: Direction::Write, .. }), Entry::Resume) => {}
            (Some(Transaction { len, .. }), Entry::Resume) => {
                return Err(CpuError::WrongLength { expected: len.into(), given: 0 });
            }
            (Some(mut read), Entry::Data(data)) => {
                let expected = usize::from(read.len);
                if data.len() != expected {
                    return Err(CpuError::WrongLength { expected, given: data.len() });
                }
                read.data[..expected].copy_from_slice(data);
                self.waiting = Some(read);
            }
        }
        if let Some(transaction) = self.waiting.take() {
            self.done[self.len] = transaction;
            self.len += 1;
        }
        Ok(())
    }

    /// The next access, if it has been done before. An access that differs from the recorded one, because
    /// the VMM changed registers meanwhile, ends the replay.
    fn replay(&mut self, direction: Direction, address: u64, max_len: usize) -> Option<Transaction> {
        let transaction = *self.done[..self.len].get(self.position)?;
        let same = transaction.direction == direction && transaction.address == address;
        if !same || usize::from(transaction.len) > max_len {
            self.len = self.position;
            return None;
        }
        self.position += 1;
        Some(transaction)
    }

    fn record(&mut self, direction: Direction, address: u64, bytes: &[u8]) -> Result<(), Abort> {
        let slot = self.done.get_mut(self.len).ok_or(Abort::Emulation)?;
        *slot = Transaction { direction, address, len: bytes.len() as u8, data: [0; MAX_ACCESS] };
        slot.data[..bytes.len()].copy_from_slice(bytes);
        self.len += 1;
        self.position = self.len;
        Ok(())
    }

    fn wait(&mut self, direction: Direction, address: u64, len: usize, request: Request) -> Abort {
        if self.len == MAX_TRANSACTIONS {
            return Abort::Emulation;
        }
        self.waiting = Some(Transaction { direction, address, len: len as u8, data: [0; MAX_ACCESS] });
        Abort::Device(request)
    }
}

/// Bytes from `address` to the end of its page.
pub(super) fn bytes_in_page(address: u64) -> usize {
    (PageSize::Size4K.bytes() - Gva(address).page_offset(PageSize::Size4K)) as usize
}

/// Which part of an access reaches a device: its own page's, or the next page's.
fn device_is_in_next_page(at: Linear, gpa: Gpa, len: usize) -> bool {
    len > bytes_in_page(at.address)
        && gpa.page_offset(PageSize::Size4K) != Gva(at.address).page_offset(PageSize::Size4K)
}

impl<B: Bus> Step<'_, B> {
    /// Reads an integer. `kind` is [`AccessKind::Write`] where the instruction will also write it.
    pub(super) fn load(&mut self, at: Logical, width: Width, kind: AccessKind) -> Result<u64, Abort> {
        let mut bytes = [0; 8];
        self.load_bytes(at, &mut bytes[..width.bytes()], kind)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes an integer. It is the last thing of its instruction that can fail.
    pub(super) fn store(&mut self, at: Logical, width: Width, value: u64) -> Result<(), Abort> {
        self.store_bytes(at, &value.to_le_bytes()[..width.bytes()])
    }

    pub(super) fn load_bytes(&mut self, at: Logical, buf: &mut [u8], kind: AccessKind) -> Result<(), Abort> {
        let first = self.linear(at, buf.len(), kind)?;
        self.check_alignment(first, buf.len())?;
        let mut start = 0;
        while start < buf.len() {
            let at = self.behind(first, start);
            let room = self.room(at);
            let rest = &mut buf[start..];
            let len = rest.len().min(room);
            let rest = &mut rest[..len];
            start += match self.cpu.transactions.replay(Direction::Read, at.address, rest.len()) {
                Some(done) => {
                    rest[..done.len.into()].copy_from_slice(&done.data[..done.len.into()]);
                    usize::from(done.len)
                }
                None => {
                    let len = self.load_part(at, rest, kind)?;
                    self.cpu.transactions.record(Direction::Read, at.address, &rest[..len])?;
                    len
                }
            };
        }
        self.watch_data(first, buf.len(), kind);
        Ok(())
    }

    /// The address `bytes` further on: outside 64-bit mode the last one is followed by the first.
    fn behind(&self, at: Linear, bytes: usize) -> Linear {
        let address = at.address.wrapping_add(bytes as u64);
        let wide = self.cpu.in_64_bit_mode();
        Linear { address: if wide { address } else { u64::from(address as u32) }, ..at }
    }

    /// How many bytes follow each other from `at` on.
    fn room(&self, at: Linear) -> usize {
        if self.cpu.in_64_bit_mode() {
            MAX_ACCESS
        } else {
            ((1 << 32) - at.address).min(MAX_ACCESS as u64) as usize
        }
    }

    /// Reads from memory all of `buf`, or what lies before a page of a device.
    fn load_part(&mut self, at: Linear, buf: &mut [u8], kind: AccessKind) -> Result<usize, Abort> {
        let paging = self.cpu.paging();
        match self.bus.read(&paging, Gva(at.address), buf, kind) {
            Ok(()) => Ok(buf.len()),
            Err(BusFault::Mmio { gpa, .. }) if device_is_in_next_page(at, gpa, buf.len()) => {
                let part = &mut buf[..bytes_in_page(at.address)];
                self.bus
                    .read(&paging, Gva(at.address), part, kind)
                    .map_err(|fault| Abort::from_data(fault, at))?;
                Ok(part.len())
            }
            Err(BusFault::Mmio { gpa, len }) => {
                self.check_next_page(at, buf.len(), kind, &paging)?;
                let len = len.min(buf.len()).min(8);
                let part = &mut buf[..len];
                if self.with_interrupts(|interrupts| interrupts.read_memory(gpa, part)).unwrap_or(false) {
                    return Ok(len);
                }
                let request = Request::MmioRead { gpa, size: len as u8 };
                Err(self.cpu.transactions.wait(Direction::Read, at.address, len, request))
            }
            Err(fault) => Err(Abort::from_data(fault, at)),
        }
    }

    pub(super) fn store_bytes(&mut self, at: Logical, data: &[u8]) -> Result<(), Abort> {
        let first = self.linear(at, data.len(), AccessKind::Write)?;
        self.check_alignment(first, data.len())?;
        self.store_linear(first, data, &self.cpu.paging())?;
        self.watch_data(first, data.len(), AccessKind::Write);
        Ok(())
    }

    /// Writes all of `data` as `paging` lets it.
    pub(super) fn store_linear(&mut self, first: Linear, data: &[u8], paging: &Paging) -> Result<(), Abort> {
        let room = self.room(first);
        if room < data.len() {
            let (behind, len) = (self.behind(first, room), data.len() - room);
            self.check_linear(behind, len, AccessKind::Write, paging)?;
        }
        let mut start = 0;
        while start < data.len() {
            let at = self.behind(first, start);
            let rest = &data[start..];
            let rest = &rest[..rest.len().min(self.room(at))];
            start += match self.cpu.transactions.replay(Direction::Write, at.address, rest.len()) {
                Some(done) => usize::from(done.len),
                None => {
                    let len = self.store_part(at, rest, paging)?;
                    self.cpu.transactions.record(Direction::Write, at.address, &rest[..len])?;
                    len
                }
            };
        }
        Ok(())
    }

    /// Writes to memory all of `data`, or what lies before a page of a device.
    fn store_part(&mut self, at: Linear, data: &[u8], paging: &Paging) -> Result<usize, Abort> {
        match self.bus.write(paging, Gva(at.address), data) {
            Ok(()) => Ok(data.len()),
            Err(BusFault::Mmio { gpa, .. }) if device_is_in_next_page(at, gpa, data.len()) => {
                let part = &data[..bytes_in_page(at.address)];
                self.bus.write(paging, Gva(at.address), part).map_err(|fault| Abort::from_data(fault, at))?;
                Ok(part.len())
            }
            Err(BusFault::Mmio { gpa, len }) => {
                self.check_next_page(at, data.len(), AccessKind::Write, paging)?;
                let len = len.min(data.len()).min(8);
                let part = &data[..len];
                if self.with_interrupts(|interrupts| interrupts.write_memory(gpa, part)).unwrap_or(false) {
                    return Ok(len);
                }
                let data = MmioData::new(part).ok_or(Abort::Emulation)?;
                let request = Request::MmioWrite { gpa, data };
                Err(self.cpu.transactions.wait(Direction::Write, at.address, len, request))
            }
            Err(fault) => Err(Abort::from_data(fault, at)),
        }
    }

    /// Before a device is asked for the first part of an access, the second part must be known to be
    /// reachable: what a device did can't be undone.
    fn check_next_page(
        &mut self,
        at: Linear,
        len: usize,
        kind: AccessKind,
        paging: &Paging,
    ) -> Result<(), Abort> {
        let first = bytes_in_page(at.address);
        if len <= first {
            return Ok(());
        }
        self.check_linear(self.behind(at, first), len - first, kind, paging)
    }

    /// Fails as an access would, but reads nothing from a device.
    pub(super) fn check_access(&mut self, at: Logical, len: usize, kind: AccessKind) -> Result<(), Abort> {
        let at = self.linear(at, len, kind)?;
        self.check_alignment(at, len)?;
        self.check_linear(at, len, kind, &self.cpu.paging())
    }

    /// The same of a linear address, and as `paging` lets it.
    fn check_linear(
        &mut self,
        at: Linear,
        len: usize,
        kind: AccessKind,
        paging: &Paging,
    ) -> Result<(), Abort> {
        match self.bus.read(paging, Gva(at.address), &mut [0; MAX_ACCESS][..len], kind) {
            Ok(()) | Err(BusFault::Mmio { .. }) => Ok(()),
            Err(fault) => Err(Abort::from_data(fault, at)),
        }
    }

    /// #AC, where CR0.AM and RFLAGS.AC ask for it in ring 3.
    pub(super) fn check_alignment(&self, at: Linear, len: usize) -> Result<(), Abort> {
        if len.is_power_of_two() && at.address & (len as u64 - 1) != 0 && self.cpu.checks_alignment() {
            return Err(Exception::ALIGNMENT.into());
        }
        Ok(())
    }

    /// Reads an I/O port. Permission is checked elsewhere.
    pub(super) fn read_port(&mut self, port: u16, width: Width) -> Result<u64, Abort> {
        match self.cpu.transactions.replay(Direction::Port, port.into(), width.bytes()) {
            Some(done) => {
                self.watch_port(port, width.bytes());
                Ok(u64::from_le_bytes(std::array::from_fn(|i| done.data[i])))
            }
            None => {
                let mut data = [0; 8];
                let bytes = &mut data[..width.bytes()];
                if self.with_interrupts(|interrupts| interrupts.read_ports(port, bytes)).unwrap_or(false) {
                    self.cpu.transactions.record(Direction::Port, port.into(), bytes)?;
                    self.watch_port(port, width.bytes());
                    return Ok(u64::from_le_bytes(data));
                }
                let request = Request::PortRead { port, size: width.bytes() as u8 };
                Err(self.cpu.transactions.wait(Direction::Port, port.into(), width.bytes(), request))
            }
        }
    }
}
