//! Guest programs, one a fact, built to ELF; and the manifest that such a file carries.
//!
//! ```
//! let guest = guest_tests::built_in().find(|guest| guest.name == "first_touch").unwrap();
//! let image = guest_tests::Image::parse(guest.elf)?;
//! assert_eq!(image.entry(), 0x10_0000);
//! assert_eq!(image.manifest().expect.pages[0].count, 64);
//! # Ok::<(), guest_tests::GuestError>(())
//! ```
//!
//! A guest is an ELF file; the section `.memvirt` holds its [`Manifest`] in TOML. What is in the folders of `programs/`,
//! one for each area, is built here; any other ELF put into `elf/` is picked up beside them. An [`Image`] can be a Linux
//! bzImage, too. [`starter`] begins a new one, and [`build`] builds what is not in this crate; `GUIDE.md` leads through it.
//!
//! | of a manifest | where its keys are |
//! |---|---|
//! | `summary`, `area`, `[handlers]`, `[unsuited]` | [`Manifest`], [`Area`] |
//! | `[machine]`, `[budget]` | [`MachineSpec`], [`BudgetSpec`] |
//! | `[[region]]`, `[[map]]` | [`RegionSpec`], [`MapSpec`] |
//! | `[[step]]` | [`StepSpec`] |
//! | `[expect]`, `[[expect.pages]]`, ... | [`Expect`], [`PagesSpec`], [`AbsentSpec`], [`SamePageSpec`], [`MmioSpec`] |

mod compile;
mod error;
mod image;
mod manifest;
mod multiboot;
mod pvh;
mod source;
mod values;

pub use error::{GuestError, Place};
pub use image::{Image, MAX_FILE, Segment};
pub use manifest::{
    AbsentSpec, Action, Area, BackingSpec, BootSpec, BudgetSpec, Change, ColumnSpec, DirtyLogSpec,
    EndingSpec, Expect, FeatureSpec, Holds, KindSpec, MAX_GPA, MAX_MEMORY, MachineSpec, Manifest, MapSpec,
    MemoryEvent, MmioSpec, Occasion, PASS, PagesOf, PagesSpec, RegionSpec, SamePageSpec, StepSpec,
    VendorSpec,
};
pub use source::{Language, build, starter};
pub use values::{Bytes, Location, Page, Rights, Vector};

include!(concat!(env!("OUT_DIR"), "/built_in.rs"));

/// A guest of this crate: its name and its ELF file, not yet checked.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// The file's name without its ending.
    pub name: &'static str,
    /// The ELF file.
    pub elf: &'static [u8],
}

/// All guests of this crate, by name: those built from `programs/` and those found in `elf/`.
pub fn built_in() -> impl Iterator<Item = Guest> {
    BUILT_IN.iter().map(|&(name, elf)| Guest { name, elf })
}

/// The program of `README.md`.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
