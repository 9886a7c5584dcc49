//! The registers of the local APIC (SDM vol. 3A, tables 12-1 and 12-6): one table for the page and for the MSRs.

/// A register by its number: its offset in the page divided by 16, and its MSR above 0x800.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Register {
    Id,
    Version,
    TaskPriority,
    ArbitrationPriority,
    ProcessorPriority,
    EndOfInterrupt,
    LogicalDestination,
    DestinationFormat,
    Spurious,
    /// Eight words each.
    InService(usize),
    TriggerMode(usize),
    Request(usize),
    ErrorStatus,
    Command,
    CommandHigh,
    /// An entry of the local vector table.
    Lvt(usize),
    InitialCount,
    CurrentCount,
    Divide,
    SelfIpi,
}

/// What a program may do with a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Access {
    /// The mode does not have it.
    None,
    Read,
    Write,
    Both,
}

struct Row {
    number: u32,
    register: Register,
    /// In the page.
    xapic: Access,
    /// As an MSR.
    x2apic: Access,
    /// The bits that a write may set: others are ignored in the page, and #GP as an MSR.
    writable: u32,
}

const fn row(number: u32, register: Register, xapic: Access, x2apic: Access, writable: u32) -> Row {
    Row { number, register, xapic, x2apic, writable }
}

/// Entries of the local vector table, as their registers follow each other.
pub(super) const LVT_TIMER: usize = 0;
pub(super) const LVT_LINT0: usize = 3;
pub(super) const LVT_ERROR: usize = 5;
pub(super) const LVT_ENTRIES: usize = 6;

#[rustfmt::skip]
const TABLE: [Row; 25] = {
    use Access::{Both, None, Read, Write};
    use Register::*;
    [
        row(0x02, Id, Both, Read, 0xff00_0000),
        row(0x03, Version, Read, Read, 0),
        row(0x08, TaskPriority, Both, Both, 0xff),
        row(0x09, ArbitrationPriority, Read, None, 0),
        row(0x0a, ProcessorPriority, Read, Read, 0),
        row(0x0b, EndOfInterrupt, Write, Write, 0),
        row(0x0d, LogicalDestination, Both, Read, 0xff00_0000),
        row(0x0e, DestinationFormat, Both, None, 0xf000_0000),
        row(0x0f, Spurious, Both, Both, 0x3ff),
        row(0x10, InService(0), Read, Read, 0),
        row(0x18, TriggerMode(0), Read, Read, 0),
        row(0x20, Request(0), Read, Read, 0),
        row(0x28, ErrorStatus, Both, Both, 0),
        row(0x30, Command, Both, Both, 0x000c_dfff),
        row(0x31, CommandHigh, Both, None, 0xff00_0000),
        row(0x32, Lvt(LVT_TIMER), Both, Both, 0x0007_00ff),
        row(0x33, Lvt(1), Both, Both, 0x0001_07ff),
        row(0x34, Lvt(2), Both, Both, 0x0001_07ff),
        row(0x35, Lvt(LVT_LINT0), Both, Both, 0x0001_a7ff),
        row(0x36, Lvt(4), Both, Both, 0x0001_a7ff),
        row(0x37, Lvt(LVT_ERROR), Both, Both, 0x0001_00ff),
        row(0x38, InitialCount, Both, Both, u32::MAX),
        row(0x39, CurrentCount, Read, Read, 0),
        row(0x3e, Divide, Both, Both, 0b1011),
        row(0x3f, SelfIpi, None, Write, 0xff),
    ]
};

/// The register with that number, and what may be done with it.
fn find(number: u32) -> Option<(Register, &'static Row)> {
    let row = TABLE.iter().rev().find(|row| row.number <= number)?;
    let word = (number - row.number) as usize;
    let register = match row.register {
        Register::InService(_) if word < 8 => Register::InService(word),
        Register::TriggerMode(_) if word < 8 => Register::TriggerMode(word),
        Register::Request(_) if word < 8 => Register::Request(word),
        register if word == 0 => register,
        _ => return None,
    };
    Some((register, row))
}

/// A register to be read, in the page or as an MSR; `None` if it cannot be.
pub(super) fn readable(number: u32, x2apic: bool) -> Option<Register> {
    let (register, row) = find(number)?;
    let access = if x2apic { row.x2apic } else { row.xapic };
    matches!(access, Access::Read | Access::Both).then_some(register)
}

/// The same for a write, with the bits that it may set.
pub(super) fn writable(number: u32, x2apic: bool) -> Option<(Register, u32)> {
    let (register, row) = find(number)?;
    let access = if x2apic { row.x2apic } else { row.xapic };
    matches!(access, Access::Write | Access::Both).then_some((register, row.writable))
}
