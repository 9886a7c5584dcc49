//! The two programs, as instructions (Linux, Documentation/bpf/standardization/instruction-set.rst).

use alloc::vec::Vec;

/// How much one reading gives.
pub const MOST: u64 = 4096;

/// What the reading program is told, and answers: in its context, eight bytes each.
pub const ADDRESS: i16 = 0;
pub const BYTES: i16 = 8;
pub const RESULT: i16 = 16;
pub const READ_CONTEXT: usize = 24;

/// Where the other program leaves the task.
pub const TASK: i16 = 0;
pub const TASK_CONTEXT: usize = 8;

const GET_CURRENT_TASK: i32 = 35;
const PROBE_READ_KERNEL: i32 = 113;

const LOAD_64: u8 = 0x79;
const STORE_64: u8 = 0x7b;
const LOAD_IMMEDIATE_64: u8 = 0x18;
const MOVE: u8 = 0xbf;
const MOVE_IMMEDIATE: u8 = 0xb7;
const JUMP_IF_GREATER: u8 = 0x25;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// In place of a source register: the immediate is a map's file descriptor, and its first value's address is meant.
const MAP_VALUE: u8 = 2;

/// `opcode, source << 4 | destination, offset, immediate`.
const fn insn(opcode: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    (opcode as u64)
        | (destination as u64) << 8
        | (source as u64) << 12
        | (offset as u16 as u64) << 16
        | (immediate as u32 as u64) << 32
}

/// `context.task = bpf_get_current_task()`.
pub fn current_task() -> Vec<u64> {
    [
        insn(MOVE, 6, 1, 0, 0),
        insn(CALL, 0, 0, 0, GET_CURRENT_TASK),
        insn(STORE_64, 6, 0, TASK, 0),
        insn(MOVE_IMMEDIATE, 0, 0, 0, 0),
        insn(EXIT, 0, 0, 0, 0),
    ]
    .into()
}

/// `context.result = bpf_probe_read_kernel(value of map, context.bytes, context.address)`.
pub fn read_kernel(map: i32) -> Vec<u64> {
    [
        insn(MOVE, 6, 1, 0, 0),
        insn(LOAD_64, 3, 6, ADDRESS, 0),
        insn(LOAD_64, 2, 6, BYTES, 0),
        // The kernel's verifier wants to see that the value has room: else straight to the end.
        insn(JUMP_IF_GREATER, 2, 0, 4, MOST as i32),
        insn(LOAD_IMMEDIATE_64, 1, MAP_VALUE, 0, map),
        0,
        insn(CALL, 0, 0, 0, PROBE_READ_KERNEL),
        insn(STORE_64, 6, 0, RESULT, 0),
        insn(MOVE_IMMEDIATE, 0, 0, 0, 0),
        insn(EXIT, 0, 0, 0, 0),
    ]
    .into()
}
