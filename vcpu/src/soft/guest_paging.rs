//! The guest's tables, as its control registers select them.

use ept::{Processor, Registers};

use super::options::MAX_PHY_ADDR;
use super::{BusFault, Paging};

/// How many sets of registers are known at a time, a power of two.
const KEPT: usize = 32;

/// What the sets of registers that a processor has had lately select: masks of a format take longer to make than a walk,
/// and guests go to and fro between few sets.
pub(super) struct GuestPagings {
    kept: Box<[Kept; KEPT]>,
    /// Where the last set is.
    last: usize,
}

/// Registers, and what they select; none with paging off.
type Kept = Option<(Registers, Option<ept::Paging>)>;

impl Default for GuestPagings {
    fn default() -> Self {
        Self { kept: Box::new([None; KEPT]), last: 0 }
    }
}

impl GuestPagings {
    /// The guest's tables; `None` with paging off.
    pub(super) fn select(&mut self, paging: &Paging) -> Result<Option<&ept::Paging>, BusFault> {
        let Paging { cr0, cr3, cr4, efer, keys, pdptes, .. } = *paging;
        // A register may hold what MOV to CR3 would have refused: those bits never reach the tables.
        let cr3 = cr3 & MAX_PHY_ADDR.last();
        let registers = Registers { cr0, cr3, cr4, efer, keys, pdptes };
        let holds = |kept: &Kept| kept.as_ref().is_some_and(|(known, _)| *known == registers);
        if !holds(&self.kept[self.last]) {
            self.last = place(&registers);
            let kept = &mut self.kept[self.last];
            if !holds(kept) {
                // No instruction leads to registers that select no paging mode.
                let selected = ept::Paging::from_registers(&registers, Processor::new(MAX_PHY_ADDR))
                    .map_err(|_| BusFault::NotCanonical)?;
                *kept = Some((registers, selected));
            }
        }
        Ok(self.kept[self.last].as_ref().and_then(|(_, selected)| selected.as_ref()))
    }
}

/// Any place would do; those of sets that differ in a bit or a root differ mostly.
fn place(registers: &Registers) -> usize {
    let Registers { cr0, cr3, cr4, efer, keys, .. } = *registers;
    let keys = u64::from(keys.pkru ^ keys.pkrs.rotate_left(16));
    let mixed = [cr0, cr3, cr4, efer, keys].into_iter().fold(0_u64, |mixed, register| {
        (mixed ^ register).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31)
    });
    mixed as usize % KEPT
}
