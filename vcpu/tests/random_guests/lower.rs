//! From a program to a guest's first memory and registers.
//!
//! The program is assembled with the tables in view that it makes, so that every change of a present entry is followed
//! by what invalidates it, and no store reaches a table or the kernel. A program from which steps were taken away is as
//! well defined as it was before.
//!
//! Registers: R15 is where an instruction that faults goes on, R14 and R13 an entry and the value that the next fault
//! gives it, R12 the stack pointer to go on with, RBP the counter of a loop; the others are the program's.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vcpu::{DescriptorTable, Gpr, Regs, Segment, SystemRegs, cr0, cr4, efer, rflags};

use crate::dice::Dice;
use crate::layout::*;
use crate::program::{Change, Edit, Flush, Op, Program, SHARED, Setting, Touch, TouchKind};
use crate::tables::Tables;

const KERNEL_CODE: u16 = 1 << 3;
const USER_DATA: u16 = 3 << 3 | 3;
const USER_CODE: u16 = 4 << 3 | 3;
const TASK: u16 = 5 << 3;
/// The kernel's way back from ring 3.
const RETURN_VECTOR: u8 = 0x80;
/// Exceptions that push an error code.
const WITH_ERROR_CODE: [u8; 7] = [8, 10, 11, 12, 13, 14, 17];
const PORT: u8 = 0xf4;

/// A guest that can run.
pub struct Guest {
    pub setting: Setting,
    /// Bytes of RAM that are not zero, by offset.
    pub image: Vec<(u64, Vec<u8>)>,
    pub regs: Regs,
    pub system: SystemRegs,
    /// The address of each step's first instruction, and at last of the end.
    pub starts: Vec<u64>,
}

/// Code that can be called anywhere: eight bytes, of which the first few are executed.
pub fn stub(value: u64) -> [u8; 8] {
    let immediate = (value >> 8) as u8;
    match value % 3 {
        // mov al, imm; ret
        0 => [0xb0, immediate, 0xc3, 0x90, 0x90, 0x90, 0x90, 0x90],
        // add ebx, imm; ret
        1 => [0x83, 0xc3, immediate, 0xc3, 0x90, 0x90, 0x90, 0x90],
        // nop; xor rcx, rax; ret
        _ => [0x90, 0x48, 0x31, 0xc1, 0xc3, 0x90, 0x90, 0x90],
    }
}

impl Guest {
    pub fn new(program: &Program) -> Self {
        let setting = program.setting;
        let (code, starts) = Lowering::new(program).program(program).expect("the program assembles");
        assert!(code.len() as u64 <= CODE_BYTES, "the program is too long");
        let mut image = vec![(CODE, code)];
        image.extend(handlers().expect("the handlers assemble"));
        image.push((GDT, words(&GDT_ENTRIES)));
        // RSP0 is at offset 4.
        image.push((TSS + 4, words(&[STACK_TOP])));
        image.push((LOG_NEXT, words(&[FAULT_LOG])));
        image.extend(kernel_tables(&setting).map(|(entry, value)| (entry, words(&[value]))));
        image.extend(program.tables.iter().map(|&(entry, value)| (entry, words(&[value]))));
        image.extend(data(program.seed));
        Self { setting, image, regs: regs(), system: system(&setting), starts }
    }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Null, kernel code and data, user data and code: flat, present, accessed; a task, which takes two.
const GDT_ENTRIES: [u64; 7] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x0000_8900_0000_0067 | TSS << 16,
    0,
];

fn regs() -> Regs {
    let mut regs = Regs { rip: CODE, rflags: rflags::FIXED, ..Regs::default() };
    regs[Gpr::Rsp] = STACK_TOP;
    regs
}

fn system(setting: &Setting) -> SystemRegs {
    let flat = Segment { limit: u32::MAX, code_or_data: true, present: true, ..Segment::default() };
    let code = Segment { selector: KERNEL_CODE, kind: 0xb, long: true, ..flat };
    let data = Segment { selector: 2 << 3, kind: 0x3, db: true, ..flat };
    let tr =
        Segment { selector: TASK, base: TSS, limit: 0x67, kind: 0xb, present: true, ..Segment::default() };
    let choice = |chosen, bit| if chosen { bit } else { 0 };
    SystemRegs {
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr,
        gdt: DescriptorTable { base: GDT, limit: GDT_ENTRIES.len() as u16 * 8 - 1 },
        idt: DescriptorTable { base: IDT, limit: (u16::from(RETURN_VECTOR) + 1) * 16 - 1 },
        cr0: cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::PG,
        cr3: setting.root(0),
        cr4: cr4::PAE
            | cr4::PGE
            | choice(setting.five_levels, cr4::LA57)
            | choice(setting.smep, cr4::SMEP)
            | choice(setting.smap, cr4::SMAP),
        efer: efer::LME | efer::LMA | choice(setting.no_execute, efer::NXE),
        ..SystemRegs::default()
    }
}

/// The kernel's part of the tables: what is the same in all address spaces.
fn kernel_tables(setting: &Setting) -> impl Iterator<Item = (u64, u64)> + use<> {
    const RW: u64 = 0b011;
    const RWU: u64 = 0b111;
    const LARGE_PAGE: u64 = 1 << 7;
    let table = |number: u64| KERNEL_TABLES + number * PAGE;
    let [pdpt, pd, user, ..] = [0, 1, 2].map(table);
    let mut entries = vec![(pdpt, pd | RWU)];
    // Chunks 0 and 1 at their own addresses, for ring 0.
    for chunk in 0..2 {
        let pd_entry = pd + 8 * chunk;
        if setting.large_kernel {
            entries.push((pd_entry, (chunk * CHUNK) | RW | LARGE_PAGE));
        } else {
            let small = table(3 + chunk);
            entries.push((pd_entry, small | RW));
            entries.extend((0..512).map(|page| (small + 8 * page, (chunk * CHUNK + page * PAGE) | RW)));
        }
    }
    // The program and its stack, for ring 3.
    entries.push((pd + 8 * (USER_BASE / CHUNK), user | RWU));
    entries.push((user + 8 * (USER_STACK / PAGE), USER_STACK | RWU));
    entries.extend(
        (CODE / PAGE..(CODE + CODE_BYTES) / PAGE).map(|page| (user + 8 * page, (page * PAGE) | 0b101)),
    );
    // Each root leads there, and to what all spaces share.
    let pool = setting.pool();
    let shared = pool.iter().find(|table| table.shared && table.level == 3).expect("one of the tables");
    for space in 0..setting.spaces {
        let mut top = pool[space].address;
        if setting.five_levels {
            let fourth = pool[setting.spaces + space].address;
            entries.push((top, fourth | RWU));
            top = fourth;
        }
        entries.push((top, pdpt | RWU));
        entries.push((top + 8 * SHARED, shared.address | RWU));
    }
    entries.into_iter()
}

/// What data and stubs hold at first. Chunk 1 holds the same as chunk 0, so that the host can merge pages of them.
fn data(seed: u64) -> impl Iterator<Item = (u64, Vec<u8>)> {
    let rom = SLOTS[2];
    let page = move |offset: u64| {
        let mut dice = Dice::new(!seed ^ offset % CHUNK);
        let code = offset % CHUNK == STUBS || (rom.offset..rom.offset + rom.bytes).contains(&offset);
        let word = |_| if code { stub(dice.roll()) } else { dice.roll().to_le_bytes() };
        (offset, (0..PAGE / 8).flat_map(word).collect())
    };
    let hot = (0..2).flat_map(|chunk| HOT.map(|page| chunk * CHUNK + page * PAGE));
    let small = (0..4).map(|page| 2 * CHUNK + page * PAGE);
    hot.chain(small).map(page)
}

/// Exception handlers, and the interrupt by which ring 3 ends: code and IDT.
fn handlers() -> Result<[(u64, Vec<u8>); 2], IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut common, mut skip) = (a.create_label(), a.create_label());
    let mut entries = Vec::new();
    for vector in 0..32u8 {
        let mut entry = a.create_label();
        a.set_label(&mut entry)?;
        if !WITH_ERROR_CODE.contains(&vector) {
            a.push(0)?;
        }
        a.push(i32::from(vector))?;
        a.jmp(common)?;
        entries.push((u64::from(vector), entry));
    }
    a.set_label(&mut common)?;
    a.push(rax)?;
    a.push(rbx)?;
    // The stack: RBX, RAX, vector, error code, RIP.
    a.mov(rbx, qword_ptr(LOG_NEXT))?;
    for (offset, word) in [(0, 16), (8, 24), (16, 32)] {
        a.mov(rax, qword_ptr(rsp + word))?;
        a.mov(qword_ptr(rbx + offset), rax)?;
    }
    a.mov(rax, cr2)?;
    a.mov(qword_ptr(rbx + 24), rax)?;
    a.add(ebx, 32)?;
    a.and(ebx, FAULT_LOG_BYTES as i32 - 1)?;
    a.or(ebx, FAULT_LOG as i32)?;
    a.mov(qword_ptr(LOG_NEXT), rbx)?;
    a.test(r14, r14)?;
    a.jz(skip)?;
    a.mov(qword_ptr(r14), r13)?;
    a.invlpg(byte_ptr(rax))?;
    a.xor(r14d, r14d)?;
    let mut back = a.create_label();
    a.jmp(back)?;
    a.set_label(&mut skip)?;
    a.mov(qword_ptr(rsp + 32), r15)?;
    a.set_label(&mut back)?;
    a.pop(rbx)?;
    a.pop(rax)?;
    a.add(rsp, 16)?;
    a.iretq()?;
    let mut software = a.create_label();
    a.set_label(&mut software)?;
    a.mov(rsp, STACK_TOP)?;
    a.jmp(qword_ptr(BACK))?;
    entries.push((RETURN_VECTOR.into(), software));

    let code = a.assemble_options(HANDLERS, iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let mut idt = vec![0; 16 * (usize::from(RETURN_VECTOR) + 1)];
    for (vector, label) in entries {
        let handler = code.label_ip(&label)?;
        // Interrupt gates; ring 3 may use the last one itself.
        let kind = if vector == u64::from(RETURN_VECTOR) { 0xee00 } else { 0x8e00 };
        let gate = handler & 0xffff | u64::from(KERNEL_CODE) << 16 | kind << 32 | handler >> 16 << 48;
        idt[16 * vector as usize..][..8].copy_from_slice(&gate.to_le_bytes());
    }
    Ok([(HANDLERS, code.inner.code_buffer), (IDT, idt)])
}

/// The assembler, and what the program has made of its tables so far.
struct Lowering {
    a: CodeAssembler,
    setting: Setting,
    tables: Tables,
    space: usize,
}

impl Lowering {
    fn new(program: &Program) -> Self {
        let mut tables = Tables::new(program.setting);
        let kernel = kernel_tables(&program.setting);
        for (entry, value) in
            kernel.filter(|&(entry, _)| entry >= TABLES).chain(program.tables.iter().copied())
        {
            tables.change(entry, Change::Set(value));
        }
        let a = CodeAssembler::new(64).expect("64 is a bitness");
        Self { a, setting: program.setting, tables, space: 0 }
    }

    /// The code, and where each step starts.
    fn program(mut self, program: &Program) -> Result<(Vec<u8>, Vec<u64>), IcedError> {
        let mut starts = Vec::new();
        for step in &program.steps {
            starts.push(self.here()?);
            self.op(&step.op)?;
        }
        starts.push(self.here()?);
        self.a.hlt()?;
        let code =
            self.a.assemble_options(CODE, iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
        let starts = starts.iter().map(|label| code.label_ip(label)).collect::<Result<_, _>>()?;
        Ok((code.inner.code_buffer, starts))
    }

    /// A label at a `NOP`, so that every step has an instruction.
    fn here(&mut self) -> Result<CodeLabel, IcedError> {
        let mut label = self.a.create_label();
        self.a.set_label(&mut label)?;
        self.a.nop()?;
        Ok(label)
    }

    fn root(&self) -> u64 {
        self.setting.root(self.space)
    }

    fn op(&mut self, op: &Op) -> Result<(), IcedError> {
        match op {
            Op::Touch(touch) => self.touch(touch),
            Op::User(touches) => self.in_ring_3(touches),
            Op::Loop { times, body } => {
                self.a.mov(ebp, *times)?;
                let mut again = self.a.create_label();
                self.a.set_label(&mut again)?;
                self.a.nop()?;
                body.iter().try_for_each(|touch| self.touch(touch))?;
                self.a.dec(ebp)?;
                self.a.jnz(again)
            }
            Op::Edit { edits, flush } => self.edits(edits, *flush),
            Op::Demand { entry, value, touch, user } => self.demand(*entry, *value, touch, *user),
            Op::Switch(space) => {
                self.space = *space;
                self.a.mov(rax, self.root())?;
                self.a.mov(cr3, rax)
            }
            Op::FlipWriteProtect => {
                self.a.mov(rax, cr0)?;
                self.a.btc(rax, 16)?;
                self.a.mov(cr0, rax)
            }
            Op::FlipAccessCheck => {
                self.a.pushfq()?;
                self.a.btc(qword_ptr(rsp), 18)?;
                self.a.popfq()
            }
            Op::Port(value) => {
                self.a.mov(al, u32::from(*value))?;
                self.a.out(u32::from(PORT), al)
            }
        }
    }

    fn in_ring_3(&mut self, touches: &[Touch]) -> Result<(), IcedError> {
        let (mut user, mut back) = (self.a.create_label(), self.a.create_label());
        self.a.lea(rax, ptr(back))?;
        self.a.mov(qword_ptr(BACK), rax)?;
        self.a.push(i32::from(USER_DATA))?;
        self.a.push((USER_BASE + USER_STACK + PAGE) as i32)?;
        self.a.pushfq()?;
        self.a.push(i32::from(USER_CODE))?;
        self.a.lea(rax, ptr(user))?;
        self.a.add(rax, USER_BASE as i32)?;
        self.a.push(rax)?;
        self.a.iretq()?;
        self.a.set_label(&mut user)?;
        self.a.nop()?;
        touches.iter().try_for_each(|touch| self.touch(touch))?;
        self.a.int(i32::from(RETURN_VECTOR))?;
        self.a.set_label(&mut back)?;
        self.a.nop()
    }

    /// The entry faults and is given its value by the handler. Where the touch does not come by the entry, it is a touch.
    fn demand(&mut self, entry: u64, value: u64, touch: &Touch, user: bool) -> Result<(), IcedError> {
        let comes_by = self.tables.leads_through(self.root(), touch.gva, entry);
        let touch = Touch { kind: TouchKind::Load, ..*touch };
        if comes_by {
            let gone = Edit { entry, change: Change::Set(0), way: 0 };
            self.edits(&[gone], Flush { all: false, needless: false })?;
            self.a.mov(r13, value)?;
            self.a.mov(r14, entry)?;
            self.tables.change(entry, Change::Set(value));
        }
        if user { self.in_ring_3(&[touch]) } else { self.touch(&touch) }
    }

    /// Changes entries, and invalidates what the processor may remember of them.
    fn edits(&mut self, edits: &[Edit], flush: Flush) -> Result<(), IcedError> {
        let mut stale = Vec::new();
        let mut must = false;
        for edit in edits {
            if self.tables.is_present(edit.entry) {
                must = true;
                stale.extend(self.tables.pages_through(self.root(), edit.entry));
            }
            self.edit(edit)?;
            self.tables.change(edit.entry, edit.change);
            if flush.needless {
                stale.extend(self.tables.pages_through(self.root(), edit.entry));
            }
        }
        stale.sort_unstable();
        stale.dedup();
        if stale.is_empty() || !must && !flush.needless {
            return Ok(());
        }
        if stale.len() <= 6 && !flush.all {
            for page in stale {
                // Any address of the page will do.
                self.a.mov(rdi, page | page >> 12 & 0xff8)?;
                self.a.invlpg(byte_ptr(rdi))?;
            }
            return Ok(());
        }
        // Only what is shared may have global pages.
        let shared = |page: &u64| (page >> 39 & 511) == SHARED;
        if stale.iter().any(shared) {
            self.a.mov(rax, cr4)?;
            self.a.btc(rax, 7)?;
            self.a.mov(cr4, rax)?;
            self.a.btc(rax, 7)?;
            self.a.mov(cr4, rax)
        } else {
            self.a.mov(rax, cr3)?;
            self.a.mov(cr3, rax)
        }
    }

    /// Writes to one entry, in one of several ways.
    fn edit(&mut self, edit: &Edit) -> Result<(), IcedError> {
        let a = &mut self.a;
        a.mov(rdi, edit.entry)?;
        match (edit.change, edit.way % 4) {
            (Change::Set(value), 0) => {
                a.mov(rax, value)?;
                a.mov(qword_ptr(rdi), rax)
            }
            // Absent between the two halves.
            (Change::Set(value), 1) => {
                a.mov(dword_ptr(rdi), 0u32)?;
                a.mov(dword_ptr(rdi + 4), (value >> 32) as u32)?;
                a.mov(dword_ptr(rdi), value as u32)
            }
            (Change::Set(value), 2) => {
                a.mov(rax, value)?;
                a.xchg(qword_ptr(rdi), rax)
            }
            (Change::Set(value), _) => {
                a.mov(rbx, value)?;
                a.mov(rax, qword_ptr(rdi))?;
                a.lock().cmpxchg(qword_ptr(rdi), rbx)
            }
            (Change::Or(bits), 0) if bits.count_ones() == 1 => {
                a.lock().bts(qword_ptr(rdi), bits.trailing_zeros())
            }
            (Change::And(bits), 0) if bits.count_zeros() == 1 => {
                a.lock().btr(qword_ptr(rdi), bits.trailing_ones())
            }
            (Change::Or(bits), 1) if bits < 0x100 => a.or(byte_ptr(rdi), bits as u32),
            (Change::And(bits), 1) if bits >> 8 == u64::MAX >> 8 => a.and(byte_ptr(rdi), bits as u8 as u32),
            (Change::Or(bits), _) => {
                a.mov(rax, bits)?;
                a.or(qword_ptr(rdi), rax)
            }
            (Change::And(bits), _) => {
                a.mov(rax, bits)?;
                a.and(qword_ptr(rdi), rax)
            }
        }
    }

    /// Whether a store of so many bytes harms nothing, by the tables as they are.
    fn may_store(&self, gva: u64, bytes: u64) -> bool {
        let ends = [gva, gva.wrapping_add(bytes.max(1) - 1)];
        ends.iter().all(|&end| self.tables.translate(self.root(), end).is_none_or(may_be_stored_to))
    }

    /// The touch, or a load where it would do harm.
    fn harmless(&self, touch: &Touch) -> Touch {
        let size = u64::from(touch.size);
        let target = self.tables.translate(self.root(), touch.gva);
        let good = match touch.kind {
            TouchKind::Load => true,
            TouchKind::Call | TouchKind::Patch => target.is_none_or(is_code),
            TouchKind::Store | TouchKind::Add | TouchKind::Exchange | TouchKind::CompareExchange => {
                self.may_store(touch.gva, size)
            }
            TouchKind::CompareExchange16 => self.may_store(touch.gva, 16),
            TouchKind::Fill(count) => self.may_store(touch.gva, size * u64::from(count)),
            TouchKind::Copy(count, _) => self.may_store(touch.gva, count.into()),
        };
        if good { *touch } else { Touch { kind: TouchKind::Load, ..*touch } }
    }

    fn touch(&mut self, touch: &Touch) -> Result<(), IcedError> {
        let Touch { kind, gva, size, value } = self.harmless(touch);
        let a = &mut self.a;
        let mut resume = a.create_label();
        a.lea(r15, ptr(resume))?;
        a.mov(rdi, gva)?;
        match kind {
            TouchKind::Load => match size {
                1 => a.add(bl, byte_ptr(rdi))?,
                2 => a.mov(bx, word_ptr(rdi))?,
                4 => a.xor(ebx, dword_ptr(rdi))?,
                _ => a.mov(rax, qword_ptr(rdi))?,
            },
            TouchKind::Store => {
                a.mov(rax, value)?;
                match size {
                    1 => a.mov(byte_ptr(rdi), al)?,
                    2 => a.mov(word_ptr(rdi), ax)?,
                    4 => a.mov(dword_ptr(rdi), eax)?,
                    _ => a.mov(qword_ptr(rdi), rax)?,
                }
            }
            TouchKind::Add => match size {
                1 => a.inc(byte_ptr(rdi))?,
                2 => a.add(word_ptr(rdi), bx)?,
                4 => a.lock().xadd(dword_ptr(rdi), ebx)?,
                _ => a.lock().add(qword_ptr(rdi), rbx)?,
            },
            TouchKind::Exchange => match size {
                1 => a.xchg(byte_ptr(rdi), bl)?,
                2 => a.xchg(word_ptr(rdi), bx)?,
                4 => a.xchg(dword_ptr(rdi), ebx)?,
                _ => a.xchg(qword_ptr(rdi), rbx)?,
            },
            TouchKind::CompareExchange => match size {
                1 => a.lock().cmpxchg(byte_ptr(rdi), bl)?,
                2 => a.lock().cmpxchg(word_ptr(rdi), bx)?,
                4 => a.lock().cmpxchg(dword_ptr(rdi), ebx)?,
                _ => a.lock().cmpxchg(qword_ptr(rdi), rbx)?,
            },
            TouchKind::CompareExchange16 => a.lock().cmpxchg16b(xmmword_ptr(rdi))?,
            TouchKind::Fill(count) => {
                a.mov(rax, value)?;
                a.mov(ecx, u32::from(count))?;
                match size {
                    1 => a.rep().stosb()?,
                    2 => a.rep().stosw()?,
                    4 => a.rep().stosd()?,
                    _ => a.rep().stosq()?,
                }
            }
            TouchKind::Copy(count, from) => {
                a.mov(rsi, from)?;
                a.mov(ecx, u32::from(count))?;
                a.rep().movsb()?;
            }
            TouchKind::Call => {
                a.mov(r12, rsp)?;
                a.call(rdi)?;
            }
            TouchKind::Patch => {
                a.mov(rax, u64::from_le_bytes(stub(value)))?;
                a.mov(qword_ptr(rdi), rax)?;
            }
        }
        a.set_label(&mut resume)?;
        if kind == TouchKind::Call { a.mov(rsp, r12) } else { a.nop() }
    }
}
