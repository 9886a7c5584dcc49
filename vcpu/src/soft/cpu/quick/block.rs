//! Straight stretches of code, decoded once.

use iced_x86::{Decoder, DecoderError, DecoderOptions};
use memory_model::RamPage;

use super::Then;
use super::op::Op;
use super::translate::{Translated, translate};

/// Instructions that follow each other in one page, up to a branch or to one for the exact interpreter.
pub(super) struct Block {
    /// Where it starts.
    pub rip: u64,
    pub ops: Vec<Op>,
    /// The code it was decoded from, to compare with what is there now.
    code: Vec<u8>,
    /// The bytes after its last whole word.
    part: Option<Part>,
    /// What follows them.
    pub then: Then,
}

#[derive(Clone, Copy)]
struct Part {
    bytes: u64,
    mask: u64,
}

impl Part {
    fn new(rest: &[u8]) -> Option<Self> {
        let mut bytes = [0; 8];
        bytes.get_mut(..rest.len()).filter(|part| !part.is_empty())?.copy_from_slice(rest);
        Some(Self { bytes: u64::from_le_bytes(bytes), mask: (1 << (rest.len() * 8)) - 1 })
    }
}

/// More would not make a loop faster; the end of an instruction fits a byte.
const MAX_OPS: usize = 16;

impl Block {
    /// Decodes the code at `rip`, which lies in `page`. It has no instruction if the first ends outside the page or is
    /// none.
    pub fn decode(rip: u64, page: &RamPage) -> Self {
        let first = rip as usize & 0xfff;
        let bytes: Vec<u8> = (first..0x1000.min(first + MAX_OPS * 15)).map(|at| page.load(at)).collect();
        let mut decoder = Decoder::with_ip(64, &bytes, rip, DecoderOptions::NONE);
        let mut block = Self { rip, ops: Vec::new(), code: Vec::new(), part: None, then: Then::Nothing };
        let mut length = 0;
        while block.ops.len() < MAX_OPS && decoder.can_decode() {
            let instruction = decoder.decode();
            if decoder.last_error() != DecoderError::None {
                block.then = Then::Exact(None);
                break;
            }
            let end = decoder.position();
            length = end;
            match translate(&instruction, end as u8) {
                Translated::Next(op) => block.ops.push(op),
                Translated::Last(op) => {
                    block.ops.push(op);
                    break;
                }
                Translated::Exact => {
                    block.then = Then::Exact(Some(instruction));
                    break;
                }
            }
        }
        block.code = bytes[..length].to_vec();
        block.part = Part::new(block.code.as_chunks::<8>().1);
        block
    }

    /// Whether `page`, which holds the block's address, has the same code there still.
    #[inline(always)]
    pub fn is_current(&self, page: &RamPage) -> bool {
        let mut at = self.rip as usize & 0xfff;
        let (words, rest) = self.code.as_chunks::<8>();
        for word in words {
            if page.load::<u64>(at) != u64::from_le_bytes(*word) {
                return false;
            }
            at += 8;
        }
        // A word that goes beyond the block, if the page does too.
        if let Some(part) = self.part.filter(|_| at <= 0x1000 - 8) {
            return (page.load::<u64>(at) ^ part.bytes) & part.mask == 0;
        }
        rest.iter().zip(at..).all(|(&byte, at)| page.load::<u8>(at) == byte)
    }
}

const BLOCKS: usize = 4096;

/// The blocks at hand, direct-mapped by address.
pub(super) struct Blocks(Vec<Option<Box<Block>>>);

impl Default for Blocks {
    fn default() -> Self {
        Self((0..BLOCKS).map(|_| None).collect())
    }
}

impl Blocks {
    /// The block at `rip`, decoded again if `page` has other code there than it was made from.
    #[inline(always)]
    pub fn get(&mut self, rip: u64, page: &RamPage) -> &Block {
        let place = &mut self.0[(rip ^ rip >> 12) as usize % BLOCKS];
        let known = place.as_ref().is_some_and(|block| block.rip == rip && block.is_current(page));
        if !known {
            *place = None;
        }
        place.get_or_insert_with(|| Box::new(Block::decode(rip, page)))
    }
}
