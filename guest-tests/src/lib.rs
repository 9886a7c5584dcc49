//! Guest programs in assembly, built to ELF, and the manifest they carry.
