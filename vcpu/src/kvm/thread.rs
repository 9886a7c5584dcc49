//! A thread that runs vCPUs: its id, and the timer that ends its runs.
//!
//! The timer belongs to the thread and not to a vCPU, so vCPUs move between threads freely. It is set once per
//! deadline, not per run. One that goes off when no run is on costs one signal, which does nothing.
#![expect(unsafe_code, reason = "POSIX timers and the signal mask")]

use std::cell::{Cell, OnceCell};
use std::io;
use std::mem;
use std::ptr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::signal;
use crate::VcpuError;

pub(super) struct VcpuThread {
    id: i32,
    timer: libc::timer_t,
    armed: Cell<Option<Instant>>,
}

impl VcpuThread {
    /// This thread. The first time, its timer is made and the signal let through.
    pub(super) fn current() -> Result<Rc<Self>, VcpuError> {
        thread_local! {
            static CURRENT: OnceCell<Rc<VcpuThread>> = const { OnceCell::new() };
        }
        CURRENT.with(|current| match current.get() {
            Some(thread) => Ok(thread.clone()),
            None => {
                let thread = Rc::new(Self::new()?);
                Ok(current.get_or_init(|| thread).clone())
            }
        })
    }

    fn new() -> Result<Self, VcpuError> {
        let signal = signal::number()?;
        // SAFETY: takes no arguments, touches no memory.
        let id = unsafe { libc::gettid() };
        // SAFETY: a signal set is plain data, and valid for the three calls.
        let unblocked = unsafe {
            let mut set: libc::sigset_t = mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, signal);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, ptr::null_mut())
        };
        if unblocked != 0 {
            return Err(VcpuError::host("pthread_sigmask")(io::Error::from_raw_os_error(unblocked)));
        }
        let mut timer: libc::timer_t = ptr::null_mut();
        // SAFETY: `sigevent` is plain data, all zeroes is a value of it; both pointers are valid for the call.
        let made = unsafe {
            let mut event: libc::sigevent = mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal;
            event.sigev_notify_thread_id = id;
            libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer)
        };
        if made != 0 {
            return Err(VcpuError::host("timer_create")(io::Error::last_os_error()));
        }
        Ok(Self { id, timer, armed: Cell::new(None) })
    }

    /// The id that `tgkill` takes.
    pub(super) fn id(&self) -> i32 {
        self.id
    }

    /// Has the signal come at `deadline`, `now` being before it.
    pub(super) fn arm(&self, deadline: Instant, now: Instant) -> Result<(), VcpuError> {
        // A signal may have been the timer's: should it come a moment before this clock reads the
        // deadline, there must be another.
        if !signal::came() && self.armed.get() == Some(deadline) {
            return Ok(());
        }
        // Zero would disarm it.
        let left = deadline.saturating_duration_since(now).max(Duration::from_nanos(1));
        let time = libc::itimerspec {
            it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: libc::timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(libc::time_t::MAX),
                tv_nsec: left.subsec_nanos().into(),
            },
        };
        // SAFETY: the timer is ours until `drop`, and `time` valid for the call.
        if unsafe { libc::timer_settime(self.timer, 0, &time, ptr::null_mut()) } != 0 {
            return Err(VcpuError::host("timer_settime")(io::Error::last_os_error()));
        }
        self.armed.set(Some(deadline));
        Ok(())
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        // SAFETY: made in `new`, deleted only here.
        unsafe { libc::timer_delete(self.timer) };
    }
}
