//! Reading the kernel's memory by BPF: two programs of a few instructions, which bpf(2) loads and runs.
//!
//! No program file, no compiler, no probe: `BPF_PROG_TYPE_SYSCALL` programs run when they are asked to. They write
//! nothing but their own context and map.

mod insn;

use alloc::vec::Vec;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use super::LiveError;
use super::memory::is_locked_down;
use super::sys::bpf::{self as sys, MapValue};

/// What one reading gives at most.
pub(super) const MOST: usize = insn::MOST as usize;

/// The two programs, loaded; any thread may run them.
#[derive(Debug)]
pub(super) struct Programs {
    current_task: OwnedFd,
    read: Mutex<Reader>,
}

/// The reading program, and where it puts what it reads.
#[derive(Debug)]
struct Reader {
    program: OwnedFd,
    value: MapValue,
}

impl Programs {
    pub fn load() -> Result<Self, LiveError> {
        let map = sys::create_map().map_err(|error| refused("BPF_MAP_CREATE", error))?;
        let value = MapValue::of(&map).map_err(|error| refused("mmap of a BPF map", error))?;
        let load =
            |insns: Vec<u64>| sys::load_program(&insns).map_err(|error| refused("BPF_PROG_LOAD", error));
        let program = load(insn::read_kernel(map.as_raw_fd()))?;
        Ok(Self { current_task: load(insn::current_task())?, read: Mutex::new(Reader { program, value }) })
    }

    /// The kernel's address of the calling thread's `task_struct`.
    pub fn current_task(&self) -> Result<u64, LiveError> {
        let mut context = [0; insn::TASK_CONTEXT / 8];
        run(&self.current_task, &mut context)?;
        Ok(context[insn::TASK as usize / 8])
    }

    /// Reads as many bytes of the kernel's memory.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), LiveError> {
        for (number, part) in (0..).zip(bytes.chunks_mut(MOST)) {
            self.read_part(address.wrapping_add(number * MOST as u64), part)?;
        }
        Ok(())
    }

    /// Reads `bytes`, at most [`MOST`] of them.
    fn read_part(&self, address: u64, bytes: &mut [u8]) -> Result<(), LiveError> {
        // A panic leaves nothing half done here: the next reading begins anew.
        let reader = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let mut context = [0; insn::READ_CONTEXT / 8];
        context[insn::ADDRESS as usize / 8] = address;
        context[insn::BYTES as usize / 8] = bytes.len() as u64;
        context[insn::RESULT as usize / 8] = u64::MAX;
        run(&reader.program, &mut context)?;
        if context[insn::RESULT as usize / 8] != 0 {
            return Err(LiveError::Unreadable { address });
        }
        reader.value.read(bytes);
        Ok(())
    }
}

fn run(program: &OwnedFd, context: &mut [u64]) -> Result<(), LiveError> {
    loop {
        match sys::run_program(program, context) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(refused("BPF_PROG_TEST_RUN", error)),
        }
    }
}

/// Why the kernel refuses. A kernel that is locked down has no helper that reads its memory: then a program with a
/// call of it is invalid.
fn refused(call: &'static str, error: io::Error) -> LiveError {
    match error.raw_os_error() {
        _ if is_locked_down() => LiveError::Lockdown,
        Some(libc::EPERM | libc::EACCES) => LiveError::NotPermitted { call },
        Some(libc::ENOSYS) => LiveError::NoBpf,
        _ => LiveError::Bpf { call, source: error },
    }
}
