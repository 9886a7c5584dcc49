//! The processor itself: a case is executed in this process, by a routine written at run time.
//!
//! The routine loads the flags and all registers, RSP too, and jumps to the instruction. Around it
//! lie breakpoints only: wherever it leads, to the next instruction or along a jump, a signal comes, and the
//! signal's frame holds every register. The handler saves them and has the kernel resume at the way out. An
//! exception of the instruction takes the same road, with its vector in the frame. Signals have a stack of
//! their own, since RSP may be anything.
//!
//! All of it is at fixed addresses, so only one [`Processor`] can be at a time.

#![expect(unsafe_code, reason = "runs made-up machine code with made-up registers")]

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::{io, mem, ptr};

use iced_x86::code_asm::{self as reg, AsmRegister64, AsmRegisterXmm, CodeAssembler, qword_ptr, xmmword_ptr};
use vcpu::Regs;

use crate::case::{Case, End, Memory, Outcome};
use crate::layout::{
    ARENA, BREAKPOINT, CODE, CODE_SIZE, CONTROL, GS_BASE, HIGH, HIGH_PAGES, LOW, LOW_PAGES, PAGE, ROUTINE,
};

/// What the routine and the signal handler share, at [`CONTROL`].
#[repr(C)]
struct Control {
    /// Before the case, then after it: in the order of encodings.
    gpr: [u64; 16],
    xmm: [u128; 16],
    rip: u64,
    rflags: u64,
    /// The stack of the Rust code that called the routine.
    rsp: u64,
    /// The way out of the routine.
    way_out: u64,
    /// The exception that ended the case.
    vector: u64,
    /// Whether a signal is a case's own.
    running: bool,
}

const GPR: u64 = CONTROL + mem::offset_of!(Control, gpr) as u64;
const XMM: u64 = CONTROL + mem::offset_of!(Control, xmm) as u64;
const RIP: u64 = CONTROL + mem::offset_of!(Control, rip) as u64;
const RFLAGS: u64 = CONTROL + mem::offset_of!(Control, rflags) as u64;
const RSP: u64 = CONTROL + mem::offset_of!(Control, rsp) as u64;

/// Vector of #BP.
const BREAKPOINT_VECTOR: u64 = 3;
/// What the processor's exceptions become.
const SIGNALS: [i32; 5] = [libc::SIGTRAP, libc::SIGSEGV, libc::SIGFPE, libc::SIGBUS, libc::SIGILL];
const SIGNAL_STACK: usize = 1 << 16;

/// Where the registers are in a signal's frame, in the order of encodings.
const FRAME: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Of the thread's state what the soft CPU must be given too.
#[derive(Clone, Copy, Debug)]
pub struct Selectors {
    pub es: u16,
    pub cs: u16,
    pub ss: u16,
    pub ds: u16,
    pub fs: u16,
    pub gs: u16,
}

/// EAX, EBX, ECX and EDX of a leaf's first subleaf.
pub fn cpuid(leaf: u32) -> [u32; 4] {
    #[allow(unused_unsafe, reason = "it is safe since Rust 1.94")]
    // SAFETY: every 64-bit processor has CPUID.
    let result = unsafe { __cpuid_count(leaf, 0) };
    [result.eax, result.ebx, result.ecx, result.edx]
}

/// This thread, made ready to run cases.
pub struct Processor {
    routine: extern "sysv64" fn(),
    pub selectors: Selectors,
    pub fs_base: u64,
}

impl Processor {
    pub fn new() -> io::Result<Self> {
        let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        map(ROUTINE, PAGE as usize, all)?;
        map(CODE, CODE_SIZE, all)?;
        let data = libc::PROT_READ | libc::PROT_WRITE;
        map(CONTROL, PAGE as usize, data)?;
        map(LOW_PAGES, 2 * PAGE as usize, data)?;
        map(HIGH_PAGES, 2 * PAGE as usize, data)?;

        let (code, way_out) = routine();
        // SAFETY: the pages were just mapped, are as long as this, and nobody else knows them. What is
        // turned into a function is one of that calling convention.
        let routine = unsafe {
            ptr::write_bytes(CODE as *mut u8, BREAKPOINT, CODE_SIZE);
            ptr::copy_nonoverlapping(code.as_ptr(), ROUTINE as *mut u8, code.len());
            (*(CONTROL as *mut Control)).way_out = way_out;
            mem::transmute::<*const u8, extern "sysv64" fn()>(ROUTINE as *const u8)
        };
        catch_signals()?;
        set_gs_base()?;
        Ok(Self { routine, selectors: selectors(), fs_base: fs_base()? })
    }

    pub fn run(&mut self, case: &Case) -> Outcome {
        let control = CONTROL as *mut Control;
        let code = case.regs.rip as *mut u8;
        assert!((CODE..CODE + CODE_SIZE as u64 - 15).contains(&case.regs.rip));
        // SAFETY: all addresses lie in pages that `new` mapped and no reference points to. The instruction
        // may write the arenas, as cases are drawn; if it goes elsewhere, the test is at fault.
        unsafe {
            ptr::copy_nonoverlapping(case.memory.low.as_ptr(), LOW as *mut u8, ARENA);
            ptr::copy_nonoverlapping(case.memory.high.as_ptr(), HIGH as *mut u8, ARENA);
            ptr::copy_nonoverlapping(case.bytes.as_ptr(), code, case.bytes.len());
            (*control).gpr = case.regs.gpr;
            (*control).xmm = case.xmm;
            (*control).rip = case.regs.rip;
            (*control).rflags = case.regs.rflags;
            ptr::write_volatile(&raw mut (*control).running, true);
        }
        (self.routine)();
        // SAFETY: as above; the routine is done with them.
        unsafe {
            ptr::write_bytes(code, BREAKPOINT, case.bytes.len());
            let Control { gpr, xmm, rip, rflags, vector, .. } = ptr::read_volatile(control);
            let arena = |base| ptr::read_volatile(base as *const [u8; ARENA]);
            let memory = Memory { low: arena(LOW), high: arena(HIGH) };
            let (end, rip) = match vector {
                BREAKPOINT_VECTOR => (End::Retired, rip - 1),
                vector => (End::Exception(vector as u8), rip),
            };
            Outcome { end, regs: Regs { gpr, rip, rflags }, xmm, memory }
        }
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        for signal in SIGNALS {
            // SAFETY: gives back to the kernel what `new` took.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
}

/// Memory at a fixed address; fails if something is there.
fn map(address: u64, len: usize, access: i32) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: it replaces no mapping.
    let base = unsafe { libc::mmap(address as *mut _, len, access, flags, -1, 0) };
    if base == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The way into a case and the way out, and the address of the latter.
fn routine() -> (Vec<u8>, u64) {
    use reg::{r8, r9, r10, r11, r12, r13, r14, r15, rax, rbp, rbx, rcx, rdi, rdx, rsi, rsp};
    use reg::{xmm0, xmm1, xmm2, xmm3, xmm4, xmm5, xmm6, xmm7};
    use reg::{xmm8, xmm9, xmm10, xmm11, xmm12, xmm13, xmm14, xmm15};
    const REGISTERS: [AsmRegister64; 16] =
        [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
    #[rustfmt::skip]
    const VECTORS: [AsmRegisterXmm; 16] = [
        xmm0, xmm1, xmm2, xmm3, xmm4, xmm5, xmm6, xmm7, xmm8, xmm9, xmm10, xmm11, xmm12, xmm13, xmm14, xmm15,
    ];
    const CALLEE_SAVED: [AsmRegister64; 6] = [rbx, rbp, r12, r13, r14, r15];
    let assemble = || {
        let mut code = CodeAssembler::new(64)?;
        for register in CALLEE_SAVED {
            code.push(register)?;
        }
        code.mov(qword_ptr(RSP), rsp)?;
        code.push(qword_ptr(RFLAGS))?;
        code.popfq()?;
        for (index, register) in (0..).zip(VECTORS) {
            code.movups(register, xmmword_ptr(XMM + 16 * index))?;
        }
        for (index, register) in (0..).zip(REGISTERS) {
            code.mov(register, qword_ptr(GPR + 8 * index))?;
        }
        code.jmp(qword_ptr(RIP))?;
        let way_out = ROUTINE + code.assemble(ROUTINE)?.len() as u64;
        for register in CALLEE_SAVED.into_iter().rev() {
            code.pop(register)?;
        }
        code.ret()?;
        Ok((code.assemble(ROUTINE)?, way_out))
    };
    assemble().unwrap_or_else(|error: iced_x86::IcedError| panic!("the routine: {error}"))
}

fn catch_signals() -> io::Result<()> {
    let stack = Box::leak(vec![0_u8; SIGNAL_STACK].into_boxed_slice());
    let stack = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: SIGNAL_STACK };
    // SAFETY: the stack lives for ever, and the handler has the type that SA_SIGINFO asks for.
    let failed = unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaltstack(&stack, ptr::null_mut()) != 0
            || SIGNALS.iter().any(|&signal| libc::sigaction(signal, &action, ptr::null_mut()) != 0)
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Ends a case: its registers go to [`Control`], and the thread goes on at the way out.
extern "C" fn on_signal(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the case's AC and NT are still in the flags; neither this nor its callers want them. The
    // frame is the kernel's and nobody else's, the control block is mapped before the handler is set.
    unsafe {
        asm!("push 2", "popfq");
        let control = CONTROL as *mut Control;
        let context = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
        let frame = &mut context.gregs;
        if !ptr::read_volatile(&raw const (*control).running) {
            // Not a case's: once more, and this time it kills.
            libc::signal(signal, libc::SIG_DFL);
            return;
        }
        for (slot, index) in (*control).gpr.iter_mut().zip(FRAME) {
            *slot = frame[index as usize] as u64;
        }
        for (slot, register) in (*control).xmm.iter_mut().zip((*context.fpregs)._xmm) {
            let [a, b, c, d] = register.element.map(u128::from);
            *slot = a | b << 32 | c << 64 | d << 96;
        }
        (*control).rip = frame[libc::REG_RIP as usize] as u64;
        (*control).rflags = frame[libc::REG_EFL as usize] as u64;
        (*control).vector = frame[libc::REG_TRAPNO as usize] as u64;
        (*control).running = false;
        frame[libc::REG_RIP as usize] = (*control).way_out as i64;
        frame[libc::REG_RSP as usize] = (*control).rsp as i64;
        frame[libc::REG_EFL as usize] = 2;
    }
}

fn selectors() -> Selectors {
    macro_rules! selector {
        ($name:literal) => {{
            let value: u16;
            // SAFETY: reads a segment register.
            unsafe { asm!(concat!("mov {:x}, ", $name), out(reg) value, options(nomem, nostack)) };
            value
        }};
    }
    Selectors {
        es: selector!("es"),
        cs: selector!("cs"),
        ss: selector!("ss"),
        ds: selector!("ds"),
        fs: selector!("fs"),
        gs: selector!("gs"),
    }
}

/// `ARCH_SET_GS`, `ARCH_GET_FS`: no constants in the libc crate.
const ARCH_SET_GS: i32 = 0x1001;
const ARCH_GET_FS: i32 = 0x1003;

/// Nothing in a 64-bit Linux program uses GS.
fn set_gs_base() -> io::Result<()> {
    // SAFETY: see above.
    let result = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, GS_BASE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn fs_base() -> io::Result<u64> {
    let mut base = 0_u64;
    // SAFETY: the kernel writes one u64 there.
    let result = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_FS, &raw mut base) };
    if result == 0 { Ok(base) } else { Err(io::Error::last_os_error()) }
}
