//! What keeps a lab from being opened, or ends it before its time.

use std::io;
use std::path::PathBuf;

/// Why a lab could not be run to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// Packages are missing.
    #[error("{0}")]
    Unavailable(String),
    /// A file could not be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// A program could not be run, or failed.
    #[error("`{command}` {how}")]
    Program {
        /// As on a command line.
        command: String,
        /// What came of it.
        how: String,
    },
    /// There is no kernel, or a part of it is missing.
    #[error(
        "{}: no {what} in this folder or below it; a lab needs a vmlinuz and its modules irqbypass, kvm, kvm-amd, kvm-intel \
         (.ko, .ko.xz, .ko.zst, .ko.gz), as in an unpacked package",
        folder.display()
    )]
    NoKernel {
        /// The folder that was to have it.
        folder: PathBuf,
        /// A file name.
        what: String,
    },
    /// Something else that a lab needs of the host: a pseudo-terminal, pipes, a shell, the current folder.
    #[error("{what}: {error}")]
    System {
        /// What failed.
        what: &'static str,
        /// Why.
        error: io::Error,
    },
}

impl LabError {
    pub(super) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::File { path, error }
    }

    /// An error of the host's, from what was tried.
    pub fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::System { what, error: error.into() }
    }
}
