//! The crate's walker, asked and answering in the [oracle](crate::oracle)'s words.

use ept::{
    Access, Caching, Controls, Ept, EptCaps, Fault, Format, Ia32e, Leaf, Legacy32, Levels, MaxPhyAddr,
    MemoryError, Misconfiguration, Pae, Paging, ProtectionKeys, Rights,
};

use crate::oracle::{self, Ask, End, Granted, Memory, Reason, Walked};

/// A processor of one of the formats.
#[derive(Clone, Copy, Debug)]
pub enum Machine {
    Ept(oracle::ept::Machine),
    Ia32e(oracle::ia32e::Machine),
    Npt(oracle::npt::Machine),
    Pae(oracle::pae::Machine),
    Legacy32(oracle::legacy32::Machine),
}

impl Machine {
    pub fn slow_walk(&self, address: u64, ask: Ask, read: impl Fn(u64) -> Option<u64>) -> Walked {
        match self {
            Self::Ept(machine) => oracle::ept::walk(machine, address, ask, read),
            Self::Ia32e(machine) => oracle::ia32e::walk(machine, address, ask, read),
            Self::Npt(machine) => oracle::npt::walk(machine, address, ask, read),
            Self::Pae(machine) => oracle::pae::walk(machine, address, ask, read),
            Self::Legacy32(machine) => oracle::legacy32::walk(machine, address, ask, read),
        }
    }

    pub fn paging(&self) -> Paging {
        match *self {
            Self::Ept(machine) => ept(machine),
            Self::Ia32e(machine) => {
                let format = Format::ia32e(Ia32e {
                    levels: levels(machine.levels),
                    max_phy_addr: width(machine.width),
                    no_execute: machine.nxe,
                    page_1g: machine.page_1g,
                    amd: machine.amd,
                });
                let mut paging = Paging::new(format, machine.root);
                paging.controls = controls(machine.wp, machine.smep, machine.smap);
                paging.controls.set(Controls::PKE, machine.pke);
                paging.controls.set(Controls::PKS, machine.pks);
                paging.controls.set(Controls::CET, machine.cet);
                paging.keys = ProtectionKeys { pkru: machine.pkru, pkrs: machine.pkrs };
                paging
            }
            Self::Npt(machine) => {
                let format = Format::npt(Ia32e {
                    levels: levels(machine.levels),
                    max_phy_addr: width(machine.width),
                    no_execute: machine.nxe,
                    page_1g: machine.page_1g,
                    amd: machine.amd,
                });
                Paging { controls: controls(false, machine.smep, false), ..Paging::new(format, machine.root) }
            }
            Self::Pae(machine) => {
                let format = Format::pae(Pae { max_phy_addr: width(machine.width), no_execute: machine.nxe });
                let controls = controls(machine.wp, machine.smep, machine.smap);
                Paging { controls, pdptes: machine.pdptes, ..Paging::new(format, 0) }
            }
            Self::Legacy32(machine) => {
                let pse_36 = machine.pse_36.map(width);
                let format = Format::legacy32(Legacy32 { page_4m: machine.pse, pse_36 });
                let controls = controls(machine.wp, machine.smep, machine.smap);
                Paging { controls, ..Paging::new(format, machine.root) }
            }
        }
    }
}

fn ept(machine: oracle::ept::Machine) -> Paging {
    let mut caps = EptCaps::all();
    caps.set(EptCaps::PAGE_1G, machine.page_1g);
    caps.set(EptCaps::PAGE_2M, machine.page_2m);
    caps.set(EptCaps::EXECUTE_ONLY, machine.execute_only);
    let ept = Ept {
        accessed_dirty: machine.accessed_dirty,
        mode_based_execute: machine.mode_based_execute,
        supervisor_shadow_stack: machine.shadow_stack,
        paging_write: machine.paging_write,
        guest_paging_verification: machine.guest_paging_verification,
        ..Ept::new(levels(machine.levels), caps, width(machine.width))
    };
    Paging::new(Format::ept(ept), machine.root)
}

fn levels(levels: u32) -> Levels {
    if levels == 5 { Levels::Five } else { Levels::Four }
}

fn width(bits: u32) -> MaxPhyAddr {
    MaxPhyAddr::new(bits as u8).unwrap()
}

fn controls(wp: bool, smep: bool, smap: bool) -> Controls {
    let mut controls = Controls::empty();
    controls.set(Controls::WP, wp);
    controls.set(Controls::SMEP, smep);
    controls.set(Controls::SMAP, smap);
    controls
}

pub fn access(ask: Ask) -> Access {
    let mut does = Rights::empty();
    does.set(Rights::READ, ask.read);
    does.set(Rights::WRITE, ask.write);
    does.set(Rights::EXEC, ask.fetch);
    does.set(Rights::SHADOW_STACK, ask.shadow_stack);
    does.set(Rights::PAGING_WRITE, ask.guest_flag);
    Access { does, user: ask.user, ac: ask.ac }
}

/// What the crate says is wrong, and nothing else.
pub fn reason(reason: Misconfiguration) -> Reason {
    match reason {
        Misconfiguration::WriteWithoutRead => Reason::M1,
        Misconfiguration::ExecuteOnly => Reason::M2,
        Misconfiguration::ReservedBits(bits) => Reason::M3(bits),
        Misconfiguration::MemoryType(memory_type) => Reason::M4(memory_type.into()),
        Misconfiguration::PagingWriteWithoutRead => Reason::M5,
    }
}

/// Of several things that are wrong with an entry the crate tells one: `Misconfigured` holds that alone.
pub fn end(outcome: Result<Leaf, Fault>) -> End {
    match outcome {
        Ok(leaf) => {
            assert_eq!(leaf.frame(), leaf.address & !(leaf.size.bytes() - 1));
            let memory = match leaf.caching() {
                Caching::Ept { memory_type, ignore_pat } => Memory::Type(memory_type as u64, ignore_pat),
                Caching::Pat(index) => Memory::Pat(index.into()),
            };
            let has = |right| leaf.rights().contains(right);
            let granted = Granted {
                r: has(Rights::READ),
                w: has(Rights::WRITE),
                x: has(Rights::EXEC),
                u: has(Rights::USER),
                xu: has(Rights::USER_EXEC),
                shadow_stack: has(Rights::SHADOW_STACK),
                paging_write: has(Rights::PAGING_WRITE),
            };
            End::Page { address: leaf.address, bytes: leaf.size.bytes(), granted, memory }
        }
        Err(Fault::PageFault { code }) => End::PageFault(code.bits()),
        Err(Fault::EptViolation { qualification }) => End::Violation(qualification.bits()),
        Err(Fault::EptMisconfiguration { reason: why }) => End::Misconfigured(vec![reason(why)]),
        Err(Fault::NonCanonical { .. }) => End::NotCanonical,
        Err(Fault::TooWide { .. }) => End::TooWide,
        Err(Fault::Memory(MemoryError::Absent { address })) => End::NoMemory(address),
        Err(other) => panic!("{other}"),
    }
}
