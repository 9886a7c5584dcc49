//! Memory operands of every shape, and the registers that make them reach their target.

use iced_x86::{Code, Instruction, Mnemonic, Register};
use vcpu::Gpr;

use crate::draw::Draw;
use crate::layout::{ARENA, GS_BASE, HIGH, LOW, PAGE};

/// How an effective address is made up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Base,
    BaseAndIndex,
    Index,
    /// A displacement and nothing else.
    Absolute,
    /// Relative to RIP, or EIP.
    Relative,
}

const SEGMENTS: [Register; 16] = {
    use Register::{CS, DS, ES, FS, GS, None, SS};
    [FS, FS, GS, GS, CS, DS, ES, SS, None, None, None, None, None, None, None, None]
};

/// Bytes that an access may go beyond its address, either way: pushes, displacements from RSP, repetitions.
const MARGIN: u64 = 320;

/// An address in an arena and the way to it.
pub struct Route {
    /// Linear.
    pub target: u64,
    /// The override, or none.
    pub segment: Register,
    base_of_segment: u64,
    /// 32-bit addresses.
    pub narrow: bool,
}

impl Route {
    fn mask(&self) -> u64 {
        if self.narrow { u32::MAX.into() } else { u64::MAX }
    }

    /// The address within the segment.
    pub fn offset(&self) -> u64 {
        self.target.wrapping_sub(self.base_of_segment) & self.mask()
    }
}

impl Draw<'_> {
    /// Any address well inside an arena.
    fn target(&mut self, arena: u64) -> u64 {
        let boundary = arena.next_multiple_of(PAGE);
        let target = match self.random.below(4) {
            0 => boundary - self.random.below(17),
            _ => arena + MARGIN + self.random.below(ARENA as u64 - 2 * MARGIN),
        };
        if self.random.one_in(2) { target & !15 } else { target }
    }

    /// A place in an arena for a pointer of 64 bits that no segment moves.
    pub fn plain_target(&mut self) -> u64 {
        let arena = self.random.pick(&[LOW, HIGH]);
        self.target(arena)
    }

    pub fn route(&mut self) -> Route {
        let segment = self.random.pick(&SEGMENTS);
        // The FS base is the thread's own, and too far for 32 bits.
        let narrow = segment != Register::FS && self.random.one_in(4);
        let arena = match segment {
            Register::GS if narrow => HIGH,
            _ if narrow => LOW,
            _ => self.random.pick(&[LOW, HIGH]),
        };
        let base_of_segment = match segment {
            Register::FS => self.fs_base,
            Register::GS => GS_BASE,
            _ => 0,
        };
        Route { target: self.target(arena), segment, base_of_segment, narrow }
    }

    /// A pointer register: its upper half is anything where addresses have 32 bits.
    pub fn point(&mut self, register: Gpr, narrow: bool, offset: u64) {
        let upper = if narrow { self.random.next() << 32 } else { 0 };
        self.pin(register as usize, upper | offset);
    }

    /// Gives `instruction` the operand that leads to the target. The instruction itself adds `extra` to the
    /// address; the registers in `kept` (a mask) can't be chosen for it.
    pub fn reach(&mut self, instruction: &mut Instruction, route: &mut Route, extra: u64, kept: u32) {
        instruction.set_segment_prefix(route.segment);
        let offset = route.offset().wrapping_sub(extra) & route.mask();
        match self.shape(instruction.code(), route, offset) {
            Shape::Absolute => {
                instruction.set_memory_displ_size(if route.narrow { 4 } else { 8 });
                instruction.set_memory_displacement64(offset);
            }
            Shape::Relative => {
                instruction.set_memory_base(if route.narrow { Register::EIP } else { Register::RIP });
                instruction.set_memory_displ_size(if route.narrow { 4 } else { 8 });
                instruction.set_memory_displacement64(offset);
            }
            shape => self.reach_by_registers(instruction, shape, route, offset, kept),
        }
    }

    fn shape(&mut self, code: Code, route: &Route, offset: u64) -> Shape {
        use iced_x86::OpCodeOperandKind::mem_offs;
        if code.op_code().op_kinds().contains(&mem_offs) {
            return Shape::Absolute;
        }
        let near = |distance: u64| route.narrow || i32::try_from(distance as i64).is_ok();
        let slack = 0x100;
        match self.random.below(8) {
            0 if near(offset) => Shape::Absolute,
            1 if near(offset.wrapping_sub(self.regs.rip + slack)) => Shape::Relative,
            2 => Shape::Index,
            3 | 4 => Shape::Base,
            _ => Shape::BaseAndIndex,
        }
    }

    fn reach_by_registers(
        &mut self,
        instruction: &mut Instruction,
        shape: Shape,
        route: &mut Route,
        offset: u64,
        kept: u32,
    ) {
        // RSP of a stack instruction has its place already.
        let stack = instruction.code().is_stack_instruction();
        let rsp = Gpr::Rsp as usize;
        let base = self.register(kept | if stack { 1 << rsp } else { 0 });
        let index = self.register(kept | 1 << rsp);
        let scale = self.random.pick(&[1, 2, 4, 8]);
        let displacement = self.displacement(instruction, shape == Shape::Index, route.narrow);
        let rest = offset.wrapping_sub(displacement) & route.mask();

        let first = if route.narrow { Register::EAX } else { Register::RAX };
        if shape != Shape::Index {
            instruction.set_memory_base(first + base as u32);
        }
        if shape != Shape::Base {
            instruction.set_memory_index(first + index as u32);
            instruction.set_memory_index_scale(scale as u32);
        }
        let (register, value) = match shape {
            Shape::Base => (base, rest),
            Shape::BaseAndIndex if base != index => {
                (base, rest.wrapping_sub(self.regs.gpr[index].wrapping_mul(scale)) & route.mask())
            }
            _ => {
                // One register counts several times: the target moves to what can be reached.
                let times = if shape == Shape::Index { scale } else { scale + 1 };
                route.target = route.target.wrapping_sub(rest % times);
                (index, rest / times)
            }
        };
        let upper = if route.narrow { self.random.next() << 32 } else { 0 };
        self.pin(register, upper | value);
        if shape == Shape::BaseAndIndex {
            self.pin(index, self.regs.gpr[index]);
        }
    }

    /// None, of 8 bits or of 32: sets it and gives its value.
    fn displacement(&mut self, instruction: &mut Instruction, alone: bool, narrow: bool) -> u64 {
        let (size, value) = match self.random.below(3) {
            0 if !alone => (0, 0),
            1 if !alone => (1, self.random.next() as i8 as i64 as u64),
            _ => (if narrow { 4 } else { 8 }, self.random.value() as i32 as i64 as u64),
        };
        instruction.set_memory_displ_size(size);
        instruction.set_memory_displacement64(if narrow { value & 0xffff_ffff } else { value });
        value
    }

    /// For `LEA`, which reaches nothing: any address.
    pub fn aim_anywhere(&mut self, instruction: &mut Instruction) {
        let mut route = self.route();
        route.target = if route.narrow { self.random.value() as u32 as u64 } else { self.random.value() };
        self.reach(instruction, &mut route, 0, 0);
    }

    /// Whether the operand is only an address.
    pub fn only_an_address(code: Code) -> bool {
        code.mnemonic() == Mnemonic::Lea
    }

    /// A register outside the mask.
    fn register(&mut self, kept: u32) -> usize {
        loop {
            let register = self.random.below(16) as usize;
            if kept >> register & 1 == 0 {
                return register;
            }
        }
    }
}
