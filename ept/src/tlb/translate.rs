//! Translations through what is remembered.

use memory_model::{Gpa, Gva, Hpa};

use crate::access::Access;
use crate::fault::Fault;
use crate::judge::final_access;
use crate::nested::{Behind, NestedFault, NestedLeaf, SecondLevel, Target};
use crate::phys::PhysMemory;
use crate::walk::{Flags, Leaf, Paging, Path};

use super::cache::Space;
use super::dimension::{Dimension, Known, Use};
use super::{LinearSpace, Tlb};

/// A remembered page of both dimensions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Combined {
    pub(super) guest: Known,
    second: Known,
}

impl Tlb {
    /// Translates a linear address without a second level.
    pub fn linear(
        &mut self,
        memory: &impl PhysMemory,
        paging: &Paging,
        space: LinearSpace,
        address: u64,
        access: Access,
        flags: Flags,
    ) -> Result<Leaf, Fault> {
        let of = (space.behind(None), space.global_pages);
        self.linear.translate(&mut Path::default(), memory, paging, of, address, access, flags)
    }

    /// Translates as [`nested_walk`](crate::nested_walk) does. While the guest has paging off (`guest` is `None`), its
    /// addresses are guest-physical, and so are the mappings used.
    #[expect(clippy::too_many_arguments, reason = "a nested walk's arguments, and the space they belong to")]
    #[inline]
    pub fn nested(
        &mut self,
        memory: &impl PhysMemory,
        guest: Option<&Paging>,
        second: &Paging,
        space: LinearSpace,
        gva: Gva,
        access: Access,
        flags: Flags,
    ) -> Result<NestedLeaf, NestedFault> {
        let Some(guest) = guest else {
            let mut behind = Behind::new(memory, second, flags, Remembering(&mut self.physical));
            return behind.nested(None, None, gva, access, &mut Path::default());
        };
        let of = space.behind(Some(second.root));
        match self.combined.page(of, gva.raw()).map(|known| known.judged(guest, second, gva, access, flags)) {
            Some(Ok(Some(leaf))) => Ok(leaf),
            Some(Ok(None)) | None => {
                self.nested_walk(memory, guest, second, (of, space.global_pages), gva, access, flags)
            }
            Some(Err(fault)) => {
                self.forget_faulting(guest, second, of, gva, &fault);
                Err(fault)
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a nested walk's arguments, and the space they belong to")]
    fn nested_walk(
        &mut self,
        memory: &impl PhysMemory,
        guest: &Paging,
        second: &Paging,
        (of, global_pages): (Space, bool),
        gva: Gva,
        access: Access,
        flags: Flags,
    ) -> Result<NestedLeaf, NestedFault> {
        let from = self.combined.table(guest, of, gva.raw());
        let mut behind = Behind::new(memory, second, flags, Remembering(&mut self.physical));
        let mut path = Path::default();
        let outcome = behind.nested(Some(guest), from, gva, access, &mut path);
        let verified = behind.verified || !second.format.has_guest_paging_verification();
        match &outcome {
            Ok(NestedLeaf { guest: Some(leaf), gpa, .. }) if flags == Flags::Set => {
                let known = Known::new(guest, *leaf, from, &path, access);
                // The final translation has just left it there.
                if let Some(second) = self.physical.page(physical(second), gpa.raw()) {
                    let global = global_pages && guest.format.is_global(leaf);
                    self.combined.remember_page(of, gva.raw(), Combined { guest: known, second }, global);
                }
                if verified {
                    self.combined.remember_tables(guest, of, gva.raw(), from, &path);
                }
            }
            Ok(_) => {}
            Err(fault) => self.forget_faulting(guest, second, of, gva, fault),
        }
        outcome
    }

    /// A fault drops what led to it (rule IV2; SDM vol. 3A, 4.10.4.1).
    fn forget_faulting(&mut self, guest: &Paging, second: &Paging, of: Space, gva: Gva, fault: &NestedFault) {
        self.combined.forget_address(guest, of, gva.raw());
        if let NestedFault::Table { gpa, .. } | NestedFault::Final { gpa, .. } = fault {
            self.physical.forget_address(second, physical(second), gpa.raw());
        }
    }
}

/// The address space of guest-physical addresses.
const fn physical(second: &Paging) -> Space {
    Space { second: Some(second.root), vpid: 0, pcid: 0 }
}

/// The second level, through guest-physical mappings.
struct Remembering<'a>(&'a mut Dimension<Known>);

impl SecondLevel for Remembering<'_> {
    #[inline]
    fn translate<M: PhysMemory>(
        &mut self,
        path: &mut Path,
        memory: &M,
        second: &Paging,
        gpa: u64,
        access: Access,
        flags: Flags,
    ) -> Result<Leaf, Fault> {
        self.0.translate(path, memory, second, (physical(second), false), gpa, access, flags)
    }
}

impl Combined {
    /// `None`: D must be set in memory first.
    #[inline]
    fn judged(
        &self,
        guest: &Paging,
        second: &Paging,
        gva: Gva,
        access: Access,
        flags: Flags,
    ) -> Result<Option<NestedLeaf>, NestedFault> {
        let first = self.guest.judged(guest, gva.raw(), access, flags).map_err(NestedFault::Guest)?;
        let Use::Done(leaf) = first else { return Ok(None) };
        let (gpa, rights) = (leaf.address, leaf.rights());
        let access = final_access(&second.format, Some(rights), access);
        match self.second.judged(second, gpa, access, flags) {
            Ok(Use::Done(second)) => {
                let hpa = Hpa(second.address);
                Ok(Some(NestedLeaf { guest: Some(leaf), gpa: Gpa(gpa), second, hpa }))
            }
            Ok(Use::Walk) => Ok(None),
            Err(fault) => Err(Target::Final(Some(rights)).fault(second, gpa, fault)),
        }
    }
}
