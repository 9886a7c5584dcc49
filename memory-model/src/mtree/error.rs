//! What can be wrong with a text, and where.

use alloc::string::String;

use super::{MAX_LEVEL, MAX_LINE, MAX_NESTING, MAX_REGIONS, MAX_SEEN};
use crate::MemoryError;

/// A text that is not `info mtree`, or one that cannot be built.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct MtreeError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    #[source]
    pub problem: MtreeProblem,
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MtreeProblem {
    /// The bytes are not UTF-8, or hold control characters.
    #[error("this is not text")]
    NotText,
    /// A line is longer than any that QEMU prints.
    #[error("the line is longer than {MAX_LINE} bytes")]
    TooLong,
    /// Neither a header, nor a region, nor empty.
    #[error("expected `address-space: NAME`, `memory-region: NAME`, a region or an empty line")]
    NotMtree,
    /// A region is indented by two spaces a level, at least one level.
    #[error("{spaces} spaces are no level: a region has two for each, and at least two")]
    Indent {
        /// How many there are.
        spaces: usize,
    },
    /// The parts of a region are not all there.
    #[error("expected `START-END (prio N, TYPE): NAME`")]
    NotARegion,
    /// Addresses have 16 hex digits.
    #[error("`{found}` is not a range of two addresses with 16 hex digits")]
    Range {
        /// What stands there.
        found: String,
    },
    /// A range that wraps around comes with QEMU's warning, or not at all.
    #[error("the range {first:#x}-{last:#x} ends before it starts")]
    Backwards {
        /// The first address.
        first: u64,
        /// The last address.
        last: u64,
    },
    /// Priorities are 32-bit numbers.
    #[error("`{found}` is not a priority")]
    Priority {
        /// What stands there.
        found: String,
    },
    /// A type QEMU does not have.
    #[error("`{found}` is no type: i/o, ram, rom, romd or ramd, with nv- before it for non-volatile memory")]
    Kind {
        /// What stands there.
        found: String,
    },
    /// The parts of an alias are not all there.
    #[error("expected `alias NAME @TARGET FIRST-LAST`")]
    NotAnAlias,
    /// An alias is as large as what it shows.
    #[error("an alias of {size:#x} bytes shows {shown:#x} bytes")]
    AliasSize {
        /// The bytes of its own range.
        size: u128,
        /// The bytes of the target's range.
        shown: u128,
    },
    /// A region before the first header, or after the end of its block.
    #[error("this region is under no `address-space:` or `memory-region:`")]
    NoHeader,
    /// The root of a `memory-region:` block is the region that the header names.
    #[error("the block of another region holds {region}")]
    OtherName {
        /// The root's name.
        region: String,
    },
    /// A block has one region at the first level.
    #[error("a block has one root, this is a second one")]
    SecondRoot,
    /// An alias shows its target, it has no room for children.
    #[error("the block's root is an alias, it cannot hold this region")]
    ChildOfAlias,
    /// A region starts inside its container.
    #[error("the region starts at {start:#x}, its container at {base:#x}")]
    BelowContainer {
        /// Where the region starts.
        start: u64,
        /// Where its container starts.
        base: u64,
    },
    /// Regions are nested deeper than any machine needs.
    #[error("level {level} is deeper than {MAX_LEVEL}")]
    TooDeep {
        /// How deep.
        level: usize,
    },
    /// There are more regions than any machine needs.
    #[error("more than {MAX_REGIONS} regions")]
    TooMany,
    /// Aliases of aliases lead deeper than any machine needs.
    #[error("what is seen from here is nested deeper than {MAX_NESTING}, counting what aliases show")]
    TooNested,
    /// Aliases repeat too much: such a view could not be rendered in any time.
    #[error("the address spaces show more than {MAX_SEEN} regions, counting what aliases repeat")]
    TooManySeen,
    /// Every region that an alias shows has a block of its own.
    #[error("no block `memory-region: {target}`")]
    UnknownTarget {
        /// The name of the region that is not there.
        target: String,
    },
    /// A region would show itself.
    #[error("{region} would show itself")]
    Cycle {
        /// The region's name.
        region: String,
    },
    /// A text has at least one address space.
    #[error("the text ends without any `address-space:`")]
    NoAddressSpace,
    /// The tree refused the region.
    #[error("{0}")]
    Refused(MemoryError),
}

impl MtreeProblem {
    pub(super) fn at(self, line: usize) -> MtreeError {
        MtreeError { line, problem: self }
    }
}
