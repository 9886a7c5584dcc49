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
use vcpu::{Regs, SystemRegs};

use crate::kernel::{self, RETURN_VECTOR, USER_CODE, USER_DATA, stub};
use crate::layout::*;
use crate::program::{Change, Edit, Flush, Op, Program, SHARED, Setting, Touch, TouchKind};
use crate::tables::Tables;

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

impl Guest {
    pub fn new(program: &Program) -> Self {
        let setting = program.setting;
        let (code, starts) = Lowering::new(program).program(program).expect("the program assembles");
        assert!(code.len() as u64 <= CODE_BYTES, "the program is too long");
        let mut image = vec![(CODE, code)];
        image.extend(kernel::handlers().expect("the handlers assemble"));
        image.push((GDT, kernel::words(&kernel::GDT_ENTRIES)));
        // RSP0 is at offset 4.
        image.push((TSS + 4, kernel::words(&[STACK_TOP])));
        image.push((LOG_NEXT, kernel::words(&[FAULT_LOG])));
        image.extend(kernel::kernel_tables(&setting).map(|(entry, value)| (entry, kernel::words(&[value]))));
        image.extend(program.tables.iter().map(|&(entry, value)| (entry, kernel::words(&[value]))));
        image.extend(kernel::data(program.seed));
        Self { setting, image, regs: kernel::regs(), system: kernel::system(&setting), starts }
    }
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
        let kernel = kernel::upper_tables(&program.setting);
        for (entry, value) in kernel.chain(program.tables.iter().copied()) {
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
        let comes_by = self.tables.path(self.root(), touch.gva).contains(&entry);
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
            if self.makes_data_a_table(edit) {
                continue;
            }
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

    /// Whether memory that is stored to would become a table: a bit that is set may make a pointer of an entry that was
    /// none.
    fn makes_data_a_table(&self, edit: &Edit) -> bool {
        let pool = self.setting.pool();
        let table =
            pool.iter().find(|table| table.address == edit.entry & !(PAGE - 1)).expect("one of the tables");
        let link = self.tables.link(table.level, edit.change.apply(self.tables.get(edit.entry)));
        link.is_some_and(|to| to < 3 * CHUNK && pool.iter().all(|table| table.address != to))
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
