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

/// One line for a shell that installs what all labs need.
pub fn setup_line() -> String {
    let names: Vec<_> = NPT.iter().chain(EPT).map(|(name, _)| *name).collect();
    format!("apt-get update && apt-get install -y --no-install-recommends {}", names.join(" "))
}

/// What a lab lacks here, if anything.
pub(super) fn missing(lab: Lab) -> Option<String> {
    let needed = match lab {
        Lab::Npt => NPT,
        Lab::Ept => EPT,
    };
    let absent = |(_, file): &&(&str, &str)| !Path::new(file).exists();
    let names: Vec<_> = needed.iter().filter(absent).map(|(name, _)| *name).collect();
    let packages = if names.len() == 1 { "package" } else { "packages" };
    (!names.is_empty()).then(|| {
        format!(
            "lab {lab} needs the {packages} {}: `memvirt lab --setup | sh` installs all",
            names.join(", ")
        )
    })
}
