//! What the host is: the module that drives its VMs, the processor's widths, where it has RAM.

use alloc::string::String;
use core::fmt;
use std::fs;
use std::path::Path;

use memory_model::{AddrRange, Hpa};

use super::LiveError;
use crate::format::{Ept, EptCaps, Format, Ia32e, Levels, MaxPhyAddr};

/// The kernel module behind `/dev/kvm`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KvmModule {
    /// `kvm_intel`: VMX.
    Intel,
    /// `kvm_amd`: SVM.
    Amd,
    /// `kvm_pvm`: no hardware virtualization. Ring 3 runs natively, ring 0 is interpreted.
    Pvm,
}

/// A module, the CPU vendor it is for (a kernel with everything built in shows the others too), and the parameter
/// that says whether it uses two-dimensional paging.
const MODULES: [(&str, KvmModule, &str, Option<&str>); 3] = [
    ("kvm_pvm", KvmModule::Pvm, "", None),
    ("kvm_intel", KvmModule::Intel, "GenuineIntel", Some("ept")),
    ("kvm_amd", KvmModule::Amd, "AuthenticAMD", Some("npt")),
];

impl KvmModule {
    /// The module of this host, and whether it uses two-dimensional paging, as far as `/sys/module` shows it.
    pub fn of_this_host() -> Option<(Self, Option<bool>)> {
        Self::find(Path::new("/sys/module"), &cpuinfo())
    }

    /// The module under `modules` that fits the processor.
    fn find(modules: &Path, cpu: &str) -> Option<(Self, Option<bool>)> {
        let &(name, module, _, parameter) = MODULES
            .iter()
            .find(|(name, _, vendor, _)| cpu.contains(vendor) && modules.join(name).is_dir())?;
        let tdp = match parameter {
            None => Some(false),
            Some(parameter) => fs::read_to_string(modules.join(name).join("parameters").join(parameter))
                .ok()
                .map(|value| matches!(value.trim(), "Y" | "1")),
        };
        Some((module, tdp))
    }
}

/// What KVM's tables translate, and in which entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SecondLevel {
    /// Guest-physical addresses, by Intel's EPT.
    Ept,
    /// Guest-physical addresses, by AMD's nested paging.
    Npt,
    /// Linear addresses, in the host's own format, in place of the guest's tables.
    Shadow,
}

impl fmt::Display for SecondLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ept => "EPT",
            Self::Npt => "NPT",
            Self::Shadow => "shadow paging",
        })
    }
}

/// What of a host decides how its tables are read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Host {
    pub module: KvmModule,
    pub second_level: SecondLevel,
    pub max_phy_addr: MaxPhyAddr,
    pub page_1g: bool,
    pub amd: bool,
    pub ept: EptCaps,
}

impl Host {
    pub fn probe() -> Result<Self, LiveError> {
        Self::of(KvmModule::of_this_host(), &cpuinfo()).ok_or(LiveError::UnknownModule)
    }

    fn of(module: Option<(KvmModule, Option<bool>)>, cpu: &str) -> Option<Self> {
        let (module, tdp) = module?;
        let second_level = match (module, tdp?) {
            (KvmModule::Intel, true) => SecondLevel::Ept,
            (KvmModule::Amd, true) => SecondLevel::Npt,
            (_, _) => SecondLevel::Shadow,
        };
        let line = |name: &str| {
            let value = cpu.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
            value.and_then(|line| line.split_once(':')).map_or("", |(_, value)| value.trim())
        };
        let width = line("address sizes").split(' ').next()?.parse().ok().and_then(MaxPhyAddr::new)?;
        let has = |flags: &str, flag: &str| flags.split(' ').any(|has| has == flag);
        let (flags, vmx) = (line("flags"), line("vmx flags"));
        // What each processor with EPT has, then what Linux names.
        let mut ept = EptCaps::LEVELS_4 | EptCaps::WRITE_BACK | EptCaps::PAGE_2M;
        ept.set(EptCaps::LEVELS_5, has(vmx, "ept_5level"));
        ept.set(EptCaps::PAGE_1G, has(vmx, "ept_1gb"));
        ept.set(EptCaps::EXECUTE_ONLY, has(vmx, "ept_x_only"));
        ept.set(EptCaps::ACCESSED_DIRTY, has(vmx, "ept_ad"));
        Some(Self {
            module,
            second_level,
            max_phy_addr: width,
            page_1g: has(flags, "pdpe1gb"),
            amd: line("vendor_id") == "AuthenticAMD",
            ept,
        })
    }
}

impl Host {
    /// The format of KVM's tables. Linux sets NX wherever the processor has it, which all with KVM have.
    pub fn format(&self, levels: Levels, flags_off: bool) -> Format {
        let Self { second_level, max_phy_addr, page_1g, amd, ept: caps, .. } = *self;
        let ia32e = Ia32e { levels, max_phy_addr, no_execute: true, page_1g, amd };
        match second_level {
            SecondLevel::Ept => {
                Format::ept(Ept { accessed_dirty: !flags_off, ..Ept::new(levels, caps, max_phy_addr) })
            }
            SecondLevel::Npt => Format::npt(ia32e),
            SecondLevel::Shadow => Format::ia32e(ia32e),
        }
    }
}

fn cpuinfo() -> String {
    fs::read_to_string("/proc/cpuinfo").unwrap_or_default()
}

/// From the host's first byte of RAM to its last, as `/proc/iomem` shows it to root.
pub fn host_ram() -> Result<AddrRange<Hpa>, LiveError> {
    const PATH: &str = "/proc/iomem";
    let host = |source| LiveError::Host { path: PATH.into(), source };
    let text = fs::read_to_string(PATH).map_err(host)?;
    let hidden = || host(std::io::Error::other("shows no RAM: run as root"));
    ram_in(&text).ok_or_else(hidden)
}

fn ram_in(iomem: &str) -> Option<AddrRange<Hpa>> {
    let ranges = iomem.lines().filter(|line| line.ends_with(": System RAM")).filter_map(|line| {
        let (first, last) = line.split_once(" : ")?.0.trim().split_once('-')?;
        let number = |digits| u64::from_str_radix(digits, 16).ok();
        number(first).zip(number(last)).filter(|&(_, last)| last != 0)
    });
    let (first, last) = ranges.reduce(|(first, last), (low, high)| (low.min(first), high.max(last)))?;
    AddrRange::inclusive(Hpa(first), Hpa(last))
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use std::{env, process};

    use super::*;
    use crate::format::Kind;

    #[test]
    fn the_module_fits_the_cpu_and_its_parameter_says_tdp() {
        let modules = env::temp_dir().join(format!("ept-live-module-{}", process::id()));
        let parameter = |module: &str, name: &str, value: &str| {
            let folder = modules.join(module).join("parameters");
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(name), value).unwrap();
        };
        let (intel, amd) = ("vendor_id\t: GenuineIntel\n", "vendor_id\t: AuthenticAMD\n");
        assert_eq!(KvmModule::find(&modules, intel), None);
        parameter("kvm_intel", "ept", "Y\n");
        parameter("kvm_amd", "npt", "0\n");
        assert_eq!(KvmModule::find(&modules, intel), Some((KvmModule::Intel, Some(true))));
        assert_eq!(KvmModule::find(&modules, amd), Some((KvmModule::Amd, Some(false))));
        fs::remove_file(modules.join("kvm_amd/parameters/npt")).unwrap();
        assert_eq!(KvmModule::find(&modules, amd), Some((KvmModule::Amd, None)));
        fs::create_dir(modules.join("kvm_pvm")).unwrap();
        assert_eq!(KvmModule::find(&modules, intel), Some((KvmModule::Pvm, Some(false))));
        fs::remove_dir_all(&modules).unwrap();
    }

    const INTEL: &str = "vendor_id\t: GenuineIntel\nflags\t\t: fpu pdpe1gb lm\nvmx flags\t: vnmi ept_ad ept_1gb\n\
        address sizes\t: 46 bits physical, 57 bits virtual\n";
    const AMD: &str =
        "vendor_id\t: AuthenticAMD\nflags\t\t: fpu lm\naddress sizes\t: 48 bits physical, 48 bits virtual\n";

    #[test]
    fn module_and_parameter_decide_about_the_format() {
        for (module, tdp, cpu, second_level, kind) in [
            (KvmModule::Intel, true, INTEL, SecondLevel::Ept, Kind::Ept),
            (KvmModule::Intel, false, INTEL, SecondLevel::Shadow, Kind::Ia32e),
            (KvmModule::Amd, true, AMD, SecondLevel::Npt, Kind::Npt),
            (KvmModule::Amd, false, AMD, SecondLevel::Shadow, Kind::Ia32e),
            (KvmModule::Pvm, false, AMD, SecondLevel::Shadow, Kind::Ia32e),
        ] {
            let host = Host::of(Some((module, Some(tdp))), cpu).unwrap();
            assert_eq!(host.second_level, second_level);
            assert_eq!(host.format(Levels::Four, false).kind(), kind);
            assert_eq!(host.format(Levels::Five, false).levels(), 5);
        }
        assert!(Host::of(Some((KvmModule::Amd, None)), AMD).is_none(), "a parameter that is not shown");
        assert!(Host::of(None, AMD).is_none());
        assert!(Host::of(Some((KvmModule::Amd, Some(true))), "").is_none(), "a width that is not shown");
    }

    #[test]
    fn widths_and_capabilities_are_the_processors() {
        let host = Host::of(Some((KvmModule::Intel, Some(true))), INTEL).unwrap();
        assert_eq!(host.max_phy_addr.bits(), 46);
        assert!(host.format(Levels::Four, false).has_accessed_dirty());
        assert!(!host.format(Levels::Four, true).has_accessed_dirty());
        assert!(host.ept.contains(EptCaps::PAGE_1G) && !host.ept.contains(EptCaps::EXECUTE_ONLY));
        assert!(!Host::of(Some((KvmModule::Amd, Some(true))), AMD).unwrap().page_1g);
    }

    #[test]
    fn ram_is_from_the_first_range_to_the_last() {
        let iomem = "00000000-00000fff : Reserved\n00001000-0009fbff : System RAM\n  00001000-00001fff : Kernel code\n\
            e0000000-efffffff : PCI\n100000000-63fffffff : System RAM\n";
        assert_eq!(ram_in(iomem), AddrRange::inclusive(Hpa(0x1000), Hpa(0x6_3fff_ffff)));
        assert_eq!(ram_in("00000000-00000000 : System RAM\n"), None, "what others than root are shown");
    }
}
