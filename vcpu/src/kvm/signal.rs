//! The signal that brings a thread out of `KVM_RUN`.
//!
//! The handler runs on the thread that runs the guest, and sets the `immediate_exit` byte of that vCPU. In
//! `KVM_RUN` the signal itself ends the call (`EINTR`); just before `KVM_RUN` the byte does. Outside a run
//! the signal does nothing, and `SA_RESTART` keeps it from showing in other system calls (`KVM_RUN` is never restarted).
#![expect(unsafe_code, reason = "sigaction, tgkill and the handler's write to kvm_run")]

use std::marker::PhantomData;
use std::mem;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, Ordering::SeqCst};

use libc::c_int;

use crate::VcpuError;

thread_local! {
    /// The `immediate_exit` byte of the vCPU this thread runs, or null.
    static IMMEDIATE_EXIT: AtomicPtr<u8> = const { AtomicPtr::new(ptr::null_mut()) };
    /// Whether the signal came since [`came`] was last asked.
    static CAME: AtomicBool = const { AtomicBool::new(false) };
}

/// Only atomics that need no initialization: all a signal handler may touch.
extern "C" fn handler(_signal: c_int) {
    CAME.with(|came| came.store(true, SeqCst));
    IMMEDIATE_EXIT.with(|byte| {
        let byte = byte.load(SeqCst);
        if !byte.is_null() {
            // SAFETY: a non-null byte belongs to the run that `Interruptible` surrounds on this thread; its
            // maker promised that it stays mapped, and that all access to it is atomic.
            unsafe { AtomicU8::from_ptr(byte) }.store(1, SeqCst);
        }
    });
}

/// The signal, with its handler in place: the first real-time signal that nobody else handles.
pub(super) fn number() -> Result<c_int, VcpuError> {
    static NUMBER: OnceLock<Option<c_int>> = OnceLock::new();
    NUMBER
        .get_or_init(|| (libc::SIGRTMIN()..=libc::SIGRTMAX()).find(|&signal| install(signal)))
        .ok_or(VcpuError::NoFreeSignal)
}

/// Puts the handler in place, unless the signal has one.
fn install(signal: c_int) -> bool {
    // SAFETY: `sigaction` is plain data, all zeroes is a value of it; both pointers are valid for the calls, and
    // the handler is async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        if libc::sigaction(signal, ptr::null(), &mut action) != 0 || action.sa_sigaction != libc::SIG_DFL {
            return false;
        }
        action.sa_sigaction = handler as extern "C" fn(c_int) as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(signal, &action, ptr::null_mut()) == 0
    }
}

/// Signals a thread of this process. One that has ended since is none of our business.
pub(crate) fn send(thread: i32) {
    if let Ok(signal) = number() {
        // SAFETY: no memory is touched; the handler is in place, so the default action (to end the process)
        // cannot be taken.
        unsafe { libc::tgkill(libc::getpid(), thread, signal) };
    }
}

/// Whether this thread had the signal since the last call.
pub(super) fn came() -> bool {
    CAME.with(|came| came.swap(false, SeqCst))
}

/// As long as it lives, the signal sets a vCPU's `immediate_exit` byte. Bound to its thread.
pub(super) struct Interruptible<'a> {
    _byte: PhantomData<&'a AtomicU8>,
    _thread: PhantomData<*const ()>,
}

impl<'a> Interruptible<'a> {
    pub(super) fn new(immediate_exit: &'a AtomicU8) -> Self {
        IMMEDIATE_EXIT.with(|byte| byte.store(immediate_exit.as_ptr(), SeqCst));
        Self { _byte: PhantomData, _thread: PhantomData }
    }
}

impl Drop for Interruptible<'_> {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.with(|byte| byte.store(ptr::null_mut(), SeqCst));
    }
}
