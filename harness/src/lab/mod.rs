//! The suite on real second-level tables, on a machine that has none: an emulator boots Linux, whose KVM has them.
//!
//! | lab | emulator | KVM inside | second level |
//! |---|---|---|---|
//! | [`Lab::Npt`] | QEMU's TCG | `kvm_amd` | 5-level NPT |
//! | [`Lab::Ept`] | Bochs | `kvm_intel` | 4-level EPT |
//!
//! ```text
//! here                                                          in the lab
//! kernel.rs     Debian's cloud kernel, kept in a cache
//! initramfs.rs  /init is this very program               ->   init.rs   mounts, modules, then the guests
//! qemu.rs, bochs.rs  the emulator's command line                   |
//! session.rs    console and messages, the budget         <-   message.rs   a line each to the second serial port
//! compare.rs    the same guest on the model of it
//! ```
//!
//! What a lab takes of time says nothing; what it finds does, as far as the emulator is right.

mod bochs;
mod compare;
mod error;
pub mod init;
mod initramfs;
mod kernel;
mod message;
mod packages;
mod qemu;
mod session;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Mmu;

pub use self::compare::{Comparison, LeafMap, Seen};
pub use self::error::LabError;
pub use self::kernel::Kernel;
pub use self::message::{GuestReport, Message};
pub use self::packages::setup_line;
pub use self::session::{Ended, Session};

/// An emulated machine with hardware virtualization.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lab {
    /// QEMU's TCG emulates SVM with nested paging.
    Npt,
    /// Bochs emulates VT-x with EPT.
    Ept,
}

impl Lab {
    /// All labs, the fast one first.
    pub const ALL: [Self; 2] = [Self::Npt, Self::Ept];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Npt => "npt",
            Self::Ept => "ept",
        }
    }

    /// The name of its column, in reports and tests.
    pub const fn column(self) -> &'static str {
        match self {
            Self::Npt => "lab-npt",
            Self::Ept => "lab-ept",
        }
    }

    /// The machine here that is a model of it.
    pub const fn model(self) -> Mmu {
        match self {
            Self::Npt => Mmu::Npt,
            Self::Ept => Mmu::Ept,
        }
    }

    /// KVM's modules, in the order in which they are inserted.
    const fn modules(self) -> [&'static str; 3] {
        match self {
            Self::Npt => ["irqbypass", "kvm", "kvm-amd"],
            Self::Ept => ["irqbypass", "kvm", "kvm-intel"],
        }
    }

    /// The emulator on its way: `folder` has the files of [`session`].
    fn emulator(self, folder: &Path, kernel: &Path) -> Result<Command, LabError> {
        match self {
            Self::Npt => Ok(qemu::command(folder, kernel)),
            Self::Ept => bochs::command(folder, kernel),
        }
    }

    /// Why it cannot run here, in one line, if it cannot.
    pub fn unavailable(self) -> Option<String> {
        packages::missing(self)
    }
}

impl fmt::Display for Lab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Lab {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|lab| lab.name() == name);
        known.ok_or_else(|| format!("no lab `{name}`: use {}", Self::ALL.map(Self::name).join(" or ")))
    }
}

/// What is to be done inside.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Orders {
    /// Where.
    pub lab: Lab,
    /// The command line of the program, its own name first.
    pub arguments: Vec<String>,
    /// The folder that names of files are relative to.
    pub folder: PathBuf,
    /// Files that are needed there.
    pub files: Vec<PathBuf>,
    /// Programs that are run there. They come with the libraries of this one.
    pub programs: Vec<PathBuf>,
}
