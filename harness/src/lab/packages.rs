//! The Debian packages that a lab needs.

use std::path::Path;

use super::Lab;
use super::bochs::{BIOS, ISOLINUX, LDLINUX, VGA_BIOS};

/// Packages, and the file of each that is used.
const NPT: &[(&str, &str)] = &[("qemu-system-x86", "/usr/bin/qemu-system-x86_64")];
const EPT: &[(&str, &str)] = &[
    ("bochs", "/usr/bin/bochs-bin"),
    ("bochsbios", BIOS),
    ("bochs-term", "/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so"),
    ("vgabios", VGA_BIOS),
    ("isolinux", ISOLINUX),
    ("syslinux-common", LDLINUX),
    ("xorriso", "/usr/bin/xorriso"),
];

/// One line for a shell that installs what labs lack here; `None` if they lack nothing.
pub fn setup_line() -> Option<String> {
    let names = absent(NPT).chain(absent(EPT)).collect::<Vec<_>>();
    (!names.is_empty())
        .then(|| format!("apt-get update && apt-get install -y --no-install-recommends {}", names.join(" ")))
}

fn absent(packages: &'static [(&str, &str)]) -> impl Iterator<Item = &'static str> {
    packages.iter().filter(|(_, file)| !Path::new(file).exists()).map(|(name, _)| *name)
}

/// What a lab lacks here, if anything.
pub(super) fn missing(lab: Lab) -> Option<String> {
    let needed = match lab {
        Lab::Npt => NPT,
        Lab::Ept => EPT,
    };
    let names: Vec<_> = absent(needed).collect();
    let packages = if names.len() == 1 { "package" } else { "packages" };
    (!names.is_empty()).then(|| {
        format!(
            "lab {lab} needs the {packages} {}: `memvirt lab --setup | sh` installs what is missing",
            names.join(", ")
        )
    })
}
