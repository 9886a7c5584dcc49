//! Who hears that pages of the process change.

use memory_model::{AddrRange, Hva};

/// Hears of each change of what lies behind addresses of the process (Linux's `mmu_notifier_ops`): an MMU that has
/// copies of the host's page tables takes them back before the frames change hands.
///
/// The host calls it with its own lock held, which an MMU's lock comes after. So whoever holds an MMU, and a notifier, may
/// fault pages in ([`HostFrames::host_frame`](ept::mmu::HostFrames::host_frame)), access memory, allocate and free tables;
/// but must not call what takes a notifier, nor [`Host::map`](super::Host::map), [`Host::owner`](super::Host::owner) and
/// [`Host::check`](super::Host::check).
pub trait MmuNotifier {
    /// `range` is about to change: nothing that leads there may be used from now on, nor be made before the end. Whole
    /// pages; of larger mappings that change in part, the whole.
    fn invalidate_range_start(&mut self, range: AddrRange<Hva>);
    /// `range` has changed, and is what the host says it is again.
    fn invalidate_range_end(&mut self, range: AddrRange<Hva>);
}

/// Nobody hears.
impl MmuNotifier for () {
    fn invalidate_range_start(&mut self, _: AddrRange<Hva>) {}
    fn invalidate_range_end(&mut self, _: AddrRange<Hva>) {}
}
