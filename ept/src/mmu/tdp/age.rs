//! Access tracking (rule D3): which pages were accessed since they were last asked about.
//!
//! With A, that is cleared. Without, a leaf loses all rights that hardware sees; R and X stay in bits 54 and 56, and the
//! next access, a fast page fault, puts them back. Processors are not flushed (`clear_young`): one that remembers the page
//! may go on for a while, and the page looks older than it is.

use memory_model::{AddrRange, Gpa};

use super::Tdp;
use crate::error::Error;
use crate::phys::PhysMemory;

impl Tdp {
    /// Whether a page of `range` was accessed; from now on, none was (`kvm_age_gfn`).
    pub fn age(&self, range: AddrRange<Gpa>, memory: &impl PhysMemory) -> Result<bool, Error> {
        let mut young = false;
        self.each_leaf(self.root(), range, memory, &mut |spot| {
            let old = self.change(spot, memory, |spte| match self.sptes.bits.is_present(spte) {
                true => self.sptes.aged(spte),
                false => spte,
            })?;
            young |= old.is_some();
            Ok(())
        })?;
        Ok(young)
    }

    /// Whether a page of `range` was accessed since it was last aged (`kvm_test_age_gfn`).
    pub fn test_age(&self, range: AddrRange<Gpa>, memory: &impl PhysMemory) -> Result<bool, Error> {
        let mut young = false;
        self.each_leaf(self.root(), range, memory, &mut |spot| {
            young |= self.sptes.is_young(spot.spte);
            Ok(())
        })?;
        Ok(young)
    }
}
