//! What taking rights or mappings back comes to.

/// What a zap, a write protection or a change of logging has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Zapped {
    /// Leaves changed or taken away.
    pub leaves: u64,
    /// Tables freed.
    pub tables: u64,
    /// Whether processors may remember what is no more: they must be flushed before the guest goes on, and before
    /// the frames are used for something else. Once for the whole call (rule D1).
    pub flush: bool,
}
