//! What the text does not say of a region, guessed from its name. The rules are in the module's docs.

use super::line::Line;

/// `i/o` regions with children that are devices, not pure containers: they take the gaps.
const DEVICES_WITH_CHILDREN: [&str; 5] = ["io", "rtc", "vga.mmio", "bochs-display-mmio", "gpex_mmio_window"];

/// `i/o` regions without children that are pure containers, not devices: they show nothing.
const EMPTY_CONTAINERS: [&str; 10] = [
    "bus master container",
    "cxl_host_reg",
    "device-memory",
    "e1000e-flash",
    "gpex_mmio",
    "pci-testdev-membar",
    "pci_bridge_io",
    "pci_bridge_pci",
    "smram",
    "system",
];

/// Aliases that make their target read-only, though the text prints the target's type.
const READONLY_ALIASES: [&str; 1] = ["pam-rom"];

/// Whether an `i/o` region is a pure container.
pub(super) fn is_container(line: &Line<'_>, has_children: bool) -> bool {
    if has_children {
        !DEVICES_WITH_CHILDREN.contains(&line.name)
    } else {
        EMPTY_CONTAINERS.contains(&line.name)
    }
}

/// Whether an alias is read-only.
pub(super) fn is_readonly_alias(line: &Line<'_>) -> bool {
    READONLY_ALIASES.contains(&line.name)
}
