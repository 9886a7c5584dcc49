//! No guest hangs its VMM: deadlines and kicks on KVM.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vcpu::{Budget, Entry, Exit, Gpr, Limit};

use crate::guest::{CODE, DATA, Guest, PLENTY};

use crate::need::{Need, Tests};

/// The tests, and what they need.
pub const TESTS: Tests = tests!(
    &[Need::Kvm];
    an_endless_loop_ends_with_its_budget,
    an_interpreted_loop_ends_too,
    a_deadline_in_the_past_does_not_enter_the_guest,
    a_thread_that_blocks_all_signals_keeps_its_deadlines,
    deadlines_hold_over_exits_and_between_vcpus,
    a_vcpu_moves_between_threads,
    a_kick_before_the_run_does_not_enter_the_guest,
    a_kick_finishes_the_exit_before,
    no_kick_is_lost,
    a_storm_of_kicks_loses_no_exit,
);

const OVER: Exit = Exit::BudgetExceeded(Limit::WallClock);

/// Counts in RCX for ever.
fn endless(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.inc(rcx)?;
    a.jmp(again)
}

fn run_for(guest: &mut Guest, time: Duration) -> Exit {
    guest.vcpu.run(Entry::Resume, &Budget::time(time)).unwrap()
}

fn an_endless_loop_ends_with_its_budget() {
    let mut guest = Guest::ring3(endless);
    let time = Duration::from_millis(5);
    let mut count = 0;
    let mut rounds_with_progress = 0;
    for _ in 0..20 {
        let begin = Instant::now();
        assert_eq!(run_for(&mut guest, time), OVER);
        let took = begin.elapsed();
        assert!(took >= time, "{took:?}");
        assert!(took < time + Duration::from_secs(1), "{took:?}");
        let now = guest.regs()[Gpr::Rcx];
        rounds_with_progress += u32::from(now > count);
        count = now;
    }
    assert!(rounds_with_progress > 1, "the guest goes on with the next budget");
}

fn an_interpreted_loop_ends_too() {
    let mut guest = Guest::ring0(endless);
    assert_eq!(run_for(&mut guest, Duration::from_millis(20)), OVER);
}

fn a_deadline_in_the_past_does_not_enter_the_guest() {
    let mut guest = Guest::ring3(endless);
    assert_eq!(run_for(&mut guest, Duration::ZERO), OVER);
    assert_eq!(guest.regs()[Gpr::Rcx], 0);
}

/// One deadline for many runs, and vCPUs that take turns with deadlines of their own.
fn deadlines_hold_over_exits_and_between_vcpus() {
    let port_loop = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.out(0x80, al)?;
        a.jmp(again)
    };
    let (mut talker, mut other) = (Guest::ring3(port_loop), Guest::ring3(endless));
    let budget = Budget::time(Duration::from_millis(60));
    let mut exits = 0;
    loop {
        match talker.vcpu.run(Entry::Resume, &budget).unwrap() {
            Exit::IoOut { .. } => exits += 1,
            exit => break assert_eq!(exit, OVER),
        }
        if exits % 16 == 0 {
            assert_eq!(run_for(&mut other, Duration::from_millis(2)), OVER);
        }
    }
    assert!(exits > 16 && Instant::now() >= budget.deadline);
}

fn a_vcpu_moves_between_threads() {
    let mut guest = Guest::ring3(endless);
    for _ in 0..5 {
        guest = thread::spawn(move || {
            assert_eq!(run_for(&mut guest, Duration::from_millis(2)), OVER);
            guest
        })
        .join()
        .unwrap();
        assert_eq!(run_for(&mut guest, Duration::from_millis(2)), OVER);
    }
}

#[expect(unsafe_code, reason = "the signal mask is the thread's, and has no safe interface")]
fn a_thread_that_blocks_all_signals_keeps_its_deadlines() {
    let mut guest = Guest::ring3(endless);
    thread::spawn(move || {
        // SAFETY: a signal set is plain data, and valid for both calls.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
        }
        assert_eq!(run_for(&mut guest, Duration::from_millis(5)), OVER);
    })
    .join()
    .unwrap();
}

fn a_kick_before_the_run_does_not_enter_the_guest() {
    let mut guest = Guest::ring3(endless);
    let kick = guest.vcpu.kick();
    kick.kick();
    kick.kick();
    assert_eq!(run_for(&mut guest, PLENTY), Exit::Kicked);
    assert_eq!(guest.regs()[Gpr::Rcx], 0);
    // Two kicks, one exit.
    assert_eq!(run_for(&mut guest, Duration::from_millis(200)), OVER);
    assert!(guest.regs()[Gpr::Rcx] > 0);
}

fn a_kick_finishes_the_exit_before() {
    let mut guest = Guest::ring3(|a| {
        a.in_(al, 0x60)?;
        a.out(0xf4, al)
    });
    assert_eq!(guest.run(Entry::Resume), Exit::IoIn { port: 0x60, size: 1, count: 1 });
    guest.vcpu.kick().kick();
    assert_eq!(guest.run(Entry::Data(vec![9])), Exit::Kicked);
    assert_eq!((guest.regs().rip, guest.regs()[Gpr::Rax]), (CODE + 2, 9));
    assert_eq!(guest.run(Entry::Resume), Exit::IoOut { port: 0xf4, size: 1, data: vec![9] });
}

/// Each kick is sent when the one before has been answered: every second one at whatever moment of the next run that is,
/// most often before the guest is entered, the others once the guest is seen to count. A lost one would be found when the
/// budget runs out, no sooner.
fn no_kick_is_lost() {
    const KICKS: u32 = 1000;
    let counting = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.inc(rcx)?;
        a.mov(qword_ptr(DATA), rcx)?;
        a.jmp(again)
    };
    let mut guest = Guest::ring3(counting);
    let kick = guest.vcpu.kick();
    let ram = guest.ram.clone();
    let count = || ram.load_u64(DATA).unwrap();
    let answered = AtomicU32::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..KICKS {
                while answered.load(SeqCst) < n {
                    thread::yield_now();
                }
                let before = count();
                while n % 2 == 1 && count() == before && answered.load(SeqCst) < KICKS {
                    thread::yield_now();
                }
                kick.kick();
            }
        });
        let lost = (1..=KICKS).find(|&n| {
            let budget = Budget::time(PLENTY);
            let exit = guest.vcpu.run(Entry::Resume, &budget);
            let in_time = matches!(exit, Ok(Exit::Kicked)) && Instant::now() < budget.deadline;
            answered.store(if in_time { n } else { KICKS }, SeqCst);
            !in_time
        });
        assert_eq!(lost, None);
    });
    assert!(guest.regs()[Gpr::Rcx] > 0);
}

/// Two threads kick as fast as they can, and the guest's reads and writes are neither lost nor doubled.
fn a_storm_of_kicks_loses_no_exit() {
    const ECHOES: u32 = 2000;
    let mut guest = Guest::ring3(|a| {
        let mut again = a.create_label();
        a.mov(edx, 0x60)?;
        a.set_label(&mut again)?;
        a.in_(eax, dx)?;
        a.inc(rcx)?;
        a.out(dx, eax)?;
        a.jmp(again)
    });
    let kick = guest.vcpu.kick();
    let storm = AtomicBool::new(true);
    let mut kicked = 0;
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while storm.load(SeqCst) {
                    kick.kick();
                }
            });
        }
        let _calm = Calm(&storm);
        let mut next = |entry| {
            let mut exit = guest.run(entry);
            while exit == Exit::Kicked {
                kicked += 1;
                exit = guest.run(Entry::Resume);
            }
            exit
        };
        for n in 0..ECHOES {
            let bytes = n.to_le_bytes().to_vec();
            assert_eq!(next(Entry::Resume), Exit::IoIn { port: 0x60, size: 4, count: 1 }, "echo {n}");
            let echo = next(Entry::Data(bytes.clone()));
            assert_eq!(echo, Exit::IoOut { port: 0x60, size: 4, data: bytes }, "echo {n}");
        }
    });
    assert!(kicked > 0);
    assert_eq!(guest.regs()[Gpr::Rcx], u64::from(ECHOES));
}

/// Ends the storm, whether the test passes or panics.
struct Calm<'a>(&'a AtomicBool);

impl Drop for Calm<'_> {
    fn drop(&mut self) {
        self.0.store(false, SeqCst);
    }
}
