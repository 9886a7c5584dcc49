//! The guest image: for each case, code that loads registers and flags, runs the instruction and stores
//! what came of it. An exception goes through a small handler in ring 0 back to ring 3, which stores the
//! same.

use std::fmt;
use std::ops::Range;

use super::cases::{Case, Random};

pub const MEMORY: usize = 5 << 20;
pub const ENTRY: u64 = 0x10_0000;
pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const TSS: u64 = 0x3000;
pub const PML4: u64 = 0x1_0000;
pub const CODE_SELECTOR: u16 = 0x23;
pub const DATA_SELECTOR: u16 = 0x1b;
pub const TSS_SELECTOR: u16 = 0x28;
pub const FS_BASE: u64 = 0x5000;
pub const GS_BASE: u64 = 0xffff_ffff_ffff_b000;
/// Ends the run.
pub const EXIT_PORT: u16 = 0xf4;
pub const FLAGS: u64 = 0x3202;

const STACK: u64 = 0x5000;
const HANDLERS: u64 = 0x6000;
/// Ring 3's variables: which case runs and what the handler saw.
const VARIABLES: u64 = 0x2_0000;
const CURRENT: u64 = VARIABLES;
const RESUME: u64 = VARIABLES + 8;
const SAVED_RAX: u64 = VARIABLES + 16;
const VECTOR: u64 = VARIABLES + 24;
const ERROR: u64 = VARIABLES + 32;
const RIP: u64 = VARIABLES + 40;
const CR2: u64 = VARIABLES + 48;
const INPUT: u64 = 0x30_0000;
const OUTPUT: u64 = 0x38_0000;
/// Two pages to read and write, one to read, one of ring 0; around them nothing.
pub const DATA: u64 = 0x40_0000;
pub const READ_ONLY: u64 = 0x40_2000;
pub const SUPERVISOR: u64 = 0x40_3000;
pub const ABSENT: u64 = 0x40_4000;
pub const DATA_RANGE: Range<usize> = DATA as usize..ABSENT as usize;

/// In an output slot: sixteen registers, flags, vector, error code, RIP, CR2.
const SLOT: u64 = 256;
const WORDS: usize = 21;
const NO_EXCEPTION: u64 = u64::MAX;

pub const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
const RAX: u8 = 0;
const RCX: u8 = 1;
const RSP: u8 = 4;

/// Rights of a page, as bits of its entry: present, writable, user.
pub fn rights(page: u64) -> u64 {
    match page << 12 {
        0..VARIABLES => 0b011,
        VARIABLES..0x2_1000 => 0b111,
        ENTRY..INPUT => 0b101,
        INPUT..0x3f_f000 => 0b111,
        DATA..READ_ONLY => 0b111,
        READ_ONLY..SUPERVISOR => 0b101,
        SUPERVISOR..ABSENT => 0b011,
        _ => 0,
    }
}

/// The initial memory of a guest.
#[derive(Clone)]
pub struct Image {
    pub memory: Vec<u8>,
}

impl Image {
    pub fn new(cases: &[Case], random: &mut Random) -> Self {
        let mut image = Self { memory: vec![0; MEMORY] };
        image.write_tables();
        image.write_handlers();
        for byte in &mut image.memory[DATA_RANGE] {
            *byte = random.interesting() as u8;
        }
        image.write_cases(cases);
        image
    }

    /// The same data with other cases.
    pub fn with_cases(&self, cases: &[Case]) -> Self {
        let mut image = self.clone();
        image.write_cases(cases);
        image
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.memory[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn put_words(&mut self, at: u64, words: &[u64]) {
        for (i, word) in words.iter().enumerate() {
            self.put(at + 8 * i as u64, &word.to_le_bytes());
        }
    }

    fn write_tables(&mut self) {
        let (pdpt, pd, pt) = (PML4 + 0x1000, PML4 + 0x2000, PML4 + 0x3000);
        self.put_words(PML4, &[pdpt | 7]);
        self.put_words(pdpt, &[pd | 7]);
        for page in 0..MEMORY as u64 >> 12 {
            self.put_words(pd + 8 * (page >> 9), &[(pt + (page >> 9 << 12)) | 7]);
            self.put_words(pt + 8 * page, &[page << 12 | rights(page)]);
        }
        // Null, ring 0 code and data, ring 3 data and code, TSS.
        let gdt =
            [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff];
        self.put_words(GDT, &gdt);
        self.put_words(GDT + u64::from(TSS_SELECTOR), &[0x0000_8b00_0000_0067 | TSS << 16, 0]);
        self.put(TSS + 4, &STACK.to_le_bytes());
    }

    fn write_handlers(&mut self) {
        const WITH_ERROR_CODE: [u8; 7] = [8, 10, 11, 12, 13, 14, 17];
        let mut code = Code::at(HANDLERS);
        for vector in 0..32 {
            let handler = code.here();
            if !WITH_ERROR_CODE.contains(&vector) {
                code.push_imm(0);
            }
            if vector == 14 {
                // push rax; mov rax, cr2
                code.bytes(&[0x50, 0x0f, 0x20, 0xd0]);
                code.store(CR2, RAX);
                code.bytes(&[0x58]);
            }
            // The saved RIP is replaced by the way back to ring 3.
            code.pop_memory(ERROR);
            code.pop_memory(RIP);
            code.store_imm(VECTOR, u32::from(vector));
            code.push_imm(ENTRY as u32);
            code.bytes(&[0x48, 0xcf]); // iretq
            // INT3 may be used in ring 3.
            let dpl = if vector == 3 { 3 } else { 0 };
            let low = handler & 0xffff | 8 << 16 | (0x8e00 | dpl << 13) << 32 | handler >> 16 << 48;
            self.put_words(IDT + 16 * u64::from(vector), &[low, 0]);
        }
        self.put(HANDLERS, &code.bytes);
    }

    fn write_cases(&mut self, cases: &[Case]) {
        let mut code = Code::at(ENTRY);
        code.exception_epilogue();
        assert!(code.here() <= start_of_cases());
        code.bytes.resize((start_of_cases() - ENTRY) as usize, 0x90);
        for (index, case) in cases.iter().enumerate() {
            let (input, output) = (INPUT + SLOT * index as u64, OUTPUT + SLOT * index as u64);
            let others =
                (0..16).filter(|&register| register != RSP).map(|register| case.regs[usize::from(register)]);
            let words: Vec<_> =
                [case.flags | FLAGS].into_iter().chain(others).chain([case.regs[usize::from(RSP)]]).collect();
            self.put_words(input, &words);
            self.put_words(output, &[0; WORDS]);
            self.put_words(output + 17 * 8, &[NO_EXCEPTION]);
            code.case(case, input, output);
        }
        // mov al, 0x10; out 0xf4, al
        code.bytes(&[0xb0, 0x10, 0xe6, EXIT_PORT as u8]);
        assert!(code.here() < INPUT);
        self.put(ENTRY, &code.bytes);
    }
}

/// Where execution starts: behind the code that exceptions come back to.
pub fn start_of_cases() -> u64 {
    ENTRY + 0x200
}

struct Code {
    base: u64,
    bytes: Vec<u8>,
}

impl Code {
    fn at(base: u64) -> Self {
        Self { base, bytes: Vec::new() }
    }

    fn here(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// REX.W, opcode, and a ModR/M byte for `register` and an absolute address.
    fn absolute(&mut self, opcode: u8, register: u8, address: u64) {
        self.bytes(&[0x48 | register >> 3 << 2, opcode, (register & 7) << 3 | 0b100, 0x25]);
        self.bytes(&(address as u32).to_le_bytes());
    }

    fn store(&mut self, address: u64, register: u8) {
        self.absolute(0x89, register, address);
    }

    fn load(&mut self, register: u8, address: u64) {
        self.absolute(0x8b, register, address);
    }

    fn store_imm(&mut self, address: u64, value: u32) {
        self.absolute(0xc7, 0, address);
        self.bytes(&value.to_le_bytes());
    }

    fn pop_memory(&mut self, address: u64) {
        self.absolute(0x8f, 0, address);
    }

    fn push_imm(&mut self, value: u32) {
        self.bytes(&[0x68]);
        self.bytes(&value.to_le_bytes());
    }

    fn set_rsp(&mut self, value: u64) {
        self.bytes(&[0x48, 0xc7, 0xc4]);
        self.bytes(&(value as u32).to_le_bytes());
    }

    /// mov [rax + 8 * word], register
    fn store_at_rax(&mut self, word: usize, register: u8) {
        self.bytes(&[0x48 | register >> 3 << 2, 0x89, 0x80 | (register & 7) << 3]);
        self.bytes(&(8 * word as u32).to_le_bytes());
    }

    fn case(&mut self, case: &Case, input: u64, output: u64) {
        self.store_imm(CURRENT, output as u32);
        let resume_at = self.bytes.len() + 8;
        self.store_imm(RESUME, 0);
        self.set_rsp(input);
        self.bytes(&[0x9d]); // popfq
        for register in (0..16).filter(|&register| register != RSP) {
            if register >= 8 {
                self.bytes(&[0x41]);
            }
            self.bytes(&[0x58 | register & 7]);
        }
        self.bytes(&[0x5c]); // pop rsp
        self.bytes(&case.bytes);
        for register in 0..16 {
            self.store(output + 8 * u64::from(register), register);
        }
        self.set_rsp(output + 17 * 8);
        self.bytes(&[0x9c]); // pushfq
        let next = (self.here() as u32).to_le_bytes();
        self.bytes[resume_at..resume_at + 4].copy_from_slice(&next);
    }

    /// Entered from the handlers with the registers of the exception.
    fn exception_epilogue(&mut self) {
        self.store(SAVED_RAX, RAX);
        self.load(RAX, CURRENT);
        for register in 1..16 {
            self.store_at_rax(register.into(), register);
        }
        // lea rsp, [rax + 17 * 8]; pushfq
        self.bytes(&[0x48, 0x8d, 0xa0]);
        self.bytes(&(17u32 * 8).to_le_bytes());
        self.bytes(&[0x9c]);
        for (word, variable) in [(0, SAVED_RAX), (17, VECTOR), (18, ERROR), (19, RIP), (20, CR2)] {
            self.load(RCX, variable);
            self.store_at_rax(word, RCX);
        }
        self.store_imm(CR2, 0);
        self.load(RCX, RESUME);
        self.bytes(&[0xff, 0xe1]); // jmp rcx
    }
}

/// An exception as its handler saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    vector: u64,
    error_code: u64,
    rip: u64,
    cr2: u64,
}

/// What a case left behind.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    regs: [u64; 16],
    flags: u64,
    pub exception: Option<Exception>,
}

impl Outcome {
    pub fn of(memory: &[u8], index: usize) -> Self {
        let at = OUTPUT as usize + SLOT as usize * index;
        let word = |i: usize| u64::from_le_bytes(memory[at + 8 * i..][..8].try_into().unwrap());
        let exception = (word(17) != NO_EXCEPTION).then(|| Exception {
            vector: word(17),
            error_code: word(18),
            rip: word(19),
            cr2: word(20),
        });
        Self { regs: std::array::from_fn(word), flags: word(16), exception }
    }

    /// Without what may differ: undefined flags; IOPL, where ring 3 may show the host's own; and why a page
    /// of the upper half is not there, where the host may have its own tables.
    pub fn masked(self, undefined: u64) -> Self {
        const IOPL: u64 = 3 << 12;
        const PRESENT_OR_RESERVED: u64 = 0b1001;
        let exception = self.exception.map(|exception| match exception.cr2 >> 63 {
            0 => exception,
            _ => Exception { error_code: exception.error_code & !PRESENT_OR_RESERVED, ..exception },
        });
        Self { flags: self.flags & !(undefined | IOPL), exception, ..self }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in NAMES.iter().zip(self.regs) {
            write!(f, "{name}={value:x} ")?;
        }
        write!(f, "flags={:x} ", self.flags)?;
        match self.exception {
            Some(Exception { vector, error_code, rip, cr2 }) => {
                write!(f, "exception {vector} error {error_code:#x} rip {rip:#x} cr2 {cr2:#x}")
            }
            None => write!(f, "no exception"),
        }
    }
}
