//! The columns of the suite: which machine runs a guest, and whether it can run here.

use std::fmt;
use std::str::FromStr;

use guest_tests::{BootSpec, ColumnSpec, FeatureSpec, Image, VendorSpec};
use vcpu::soft::cpu::Vendor;
use vcpu::soft::{SecondLevel, SoftOptions, SoftVm};
use vcpu::{KvmVm, VcpuError, Vm};

use crate::lab::Lab;

/// A machine to run guests on, named by its MMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mmu {
    /// The software machine: an interpreted CPU over a 4-level EPT of our own. Runs everywhere.
    Ept,
    /// The same over 4-level nested page tables.
    Npt,
    /// The same over shadows of the guest's own tables.
    Shadow,
    /// KVM, with whatever second level the host has.
    Kvm,
    /// The same inside a lab: it can be had there alone.
    Lab(Lab),
}

impl Mmu {
    /// The columns that a host may have by itself.
    pub const ALL: [Self; 4] = [Self::Ept, Self::Npt, Self::Shadow, Self::Kvm];

    /// The name on the command line, in test names and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ept => "ept",
            Self::Npt => "npt",
            Self::Shadow => "shadow",
            Self::Kvm => "kvm",
            Self::Lab(lab) => lab.column(),
        }
    }

    /// Its name in manifests.
    pub const fn column(self) -> ColumnSpec {
        match self {
            Self::Ept => ColumnSpec::Ept,
            Self::Npt => ColumnSpec::Npt,
            Self::Shadow => ColumnSpec::Shadow,
            Self::Kvm => ColumnSpec::Kvm,
            Self::Lab(Lab::Npt) => ColumnSpec::LabNpt,
            Self::Lab(Lab::Ept) => ColumnSpec::LabEpt,
        }
    }

    /// Why this column cannot run here, if it cannot.
    pub fn unavailable(self) -> Option<String> {
        match self {
            Self::Ept | Self::Npt | Self::Shadow => None,
            Self::Kvm | Self::Lab(_) => vcpu::kvm::KvmHost::probe().err().map(|why| why.to_string()),
        }
    }

    /// Why this guest cannot run on it, even where the column can run.
    pub fn unsuited(self, image: &Image) -> Option<String> {
        if let Some(why) = image.manifest().unsuited.get(&self.column()) {
            return Some(why.clone());
        }
        let has = |feature: &FeatureSpec| {
            let (leaf, subleaf, register, bit) = feature.cpuid();
            let registers = match self {
                Self::Kvm | Self::Lab(_) => vcpu::kvm::cpuid_of_this_host(leaf, subleaf).ok().flatten(),
                _ => Some(vcpu::soft::cpu::Cpuid::default().get(leaf, subleaf)),
            };
            registers.is_some_and(|registers| registers[register] >> bit & 1 != 0)
        };
        let missing = image.manifest().machine.needs.iter().find(|feature| !has(feature));
        missing.map(|feature| format!("its processors have no {}", feature.word()))
    }

    /// A new, empty VM for `image`: with the interrupt controllers of a PC, if it boots as on one. The name of its
    /// processor is the host's own on KVM.
    pub fn create_vm(self, image: &Image) -> Result<Box<dyn Vm>, VcpuError> {
        let second_level = match self {
            Self::Ept => SecondLevel::EPT,
            Self::Npt => SecondLevel::NPT,
            Self::Shadow => SecondLevel::Shadow,
            Self::Kvm | Self::Lab(_) => {
                return Ok(Box::new(if has_interrupts(image) {
                    KvmVm::with_irqchip()?
                } else {
                    KvmVm::new()?
                }));
            }
        };
        let vendor = match image.manifest().machine.vendor {
            VendorSpec::Memvirt => Vendor::Memvirt,
            VendorSpec::Intel => Vendor::Intel,
            VendorSpec::Amd => Vendor::Amd,
        };
        let x2apic = image.manifest().machine.x2apic;
        let options =
            SoftOptions { vendor, irqchip: has_interrupts(image), x2apic, ..SoftOptions::of(second_level) };
        Ok(Box::new(SoftVm::with(&options)?))
    }
}

fn has_interrupts(image: &Image) -> bool {
    image.manifest().machine.interrupts.unwrap_or(image.boot() != BootSpec::Long)
}

impl fmt::Display for Mmu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Mmu {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|mmu| mmu.name() == name);
        known.ok_or_else(|| format!("no MMU `{name}`: use {}", Self::ALL.map(Self::name).join(", ")))
    }
}
