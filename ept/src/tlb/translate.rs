//! Translations through what is remembered.

use memory_model::{Gpa, Gva, Hpa, PageSize};

use crate::access::Access;
use crate::fault::Fault;
use crate::judge::{final_access, guest_table_access};
use crate::nested::{Behind, NestedFault, NestedLeaf, SecondLevel, Target};
use crate::paging::{Paging, Start};
use crate::phys::PhysMemory;
use crate::quick::Ask;
use crate::walk::{Flags, Leaf, Path};

use super::cache::Space;
use super::dimension::{Dimension, lowest_table};
use super::known::{Known, Use};
use super::{LinearSpace, Tlb};

const FRAME: u64 = PageSize::Size4K.bytes();

/// A remembered page of both dimensions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Combined {
    pub(super) guest: Known,
    pub(super) second: Known,
}

/// A remembered table of the guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct GuestTable {
    pub(super) start: Start,
    /// Where the second level puts it.
    pub(super) host: u64,
}

/// Where a linear address is translated: by which tables, and in whose name.
struct Place<'a> {
    guest: &'a Paging,
    second: &'a Paging,
    space: Space,
    global_pages: bool,
    gva: Gva,
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
        let ask = Ask::new(paging, access, flags);
        match ask.and_then(|ask| self.linear.quick(memory, &ask, of, address)) {
            Some((leaf, _)) => Ok(leaf),
            None => self.linear.translate(&mut Path::default(), memory, paging, of, address, access, flags),
        }
    }

    /// Translates as [`nested_translate`](crate::nested_translate) does. While the guest has paging off (`guest` is
    /// `None`), its addresses are guest-physical, and so are the mappings used.
    #[expect(clippy::too_many_arguments, reason = "a nested walk's arguments, and the space they belong to")]
    #[inline(always)]
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
            return self.unpaged(memory, second, gva, access, flags);
        };
        let LinearSpace { global_pages, .. } = space;
        let space = space.behind(Some(second.root));
        let known = self.combined.page(space, gva.raw());
        if let Some(leaf) = known.and_then(|known| known.quick(guest, second, gva, access, flags)) {
            return Ok(leaf);
        }
        let place = Place { guest, second, space, global_pages, gva };
        self.walk(known.is_some(), memory, &place, access, flags)
    }

    /// Translates while the guest has paging off.
    #[inline(never)]
    fn unpaged(
        &mut self,
        memory: &impl PhysMemory,
        second: &Paging,
        gva: Gva,
        access: Access,
        flags: Flags,
    ) -> Result<NestedLeaf, NestedFault> {
        let mut behind = Behind::new(memory, second, flags, Remembering(&mut self.physical));
        behind.nested(None, None, gva, access, &mut Path::default())
    }

    /// Translates where a remembered page does not do, or there is none.
    #[inline(never)]
    fn walk(
        &mut self,
        known: bool,
        memory: &impl PhysMemory,
        place: &Place<'_>,
        access: Access,
        flags: Flags,
    ) -> Result<NestedLeaf, NestedFault> {
        if !known && let Some(leaf) = self.quick(memory, place, access, flags) {
            return Ok(leaf);
        }
        self.exact(memory, place, access, flags)
    }

    /// The walk of which nothing is unusual, not even that something is remembered of its page; `None` leaves it to
    /// [`exact`](Self::exact), and has forgotten nothing.
    #[inline(always)]
    fn quick<M: PhysMemory>(
        &mut self,
        memory: &M,
        place: &Place<'_>,
        access: Access,
        flags: Flags,
    ) -> Option<NestedLeaf> {
        let Place { guest, second, space, gva, .. } = *place;
        // Rule X4 is for the exact walk.
        if second.format.has_guest_paging_verification() {
            return None;
        }
        let ask = Ask::new(guest, access, flags)?;
        let (first, start) = match self.combined.lowest_table(guest, space, gva.raw()) {
            Some(GuestTable { start, host }) => {
                let read = |entry| memory.read_entry(host + entry % FRAME).ok();
                (ask.descend_lowest(start, gva.raw(), read)?, start)
            }
            None => self.quick_from(memory, place, &ask)?,
        };
        let ask = Ask::new(second, final_access(&second.format, Some(&first), access), flags)?;
        let (leaf, last) = self.physical.quick(memory, &ask, (physical(second), false), first.address)?;
        if flags == Flags::Set {
            let page = Combined { guest: Known::new(guest, &first, start.tables, access), second: last };
            self.remember_page(place, page);
        }
        Some(nested_leaf(first, leaf))
    }

    /// The guest's walk from the lowest table remembered, or else from the root; and the table that the page is in.
    #[inline(never)]
    fn quick_from<M: PhysMemory>(
        &mut self,
        memory: &M,
        place: &Place<'_>,
        ask: &Ask<'_>,
    ) -> Option<(Leaf, Start)> {
        let Place { guest, second, space, gva, .. } = *place;
        let tables = Ask::new(second, guest_table_access(&second.format), ask.flags)?;
        let from = self.combined.table(guest, space, gva.raw());
        let mut remembered = from.map(|table| table.host);
        let mut host = 0;
        let (leaf, start) = ask.descend_from(from.map(|table| table.start), gva.raw(), |entry| {
            host = match remembered.take() {
                Some(host) => host,
                None => {
                    let of = (physical(second), false);
                    self.physical.quick(memory, &tables, of, entry & !(FRAME - 1))?.0.address
                }
            };
            memory.read_entry(host + entry % FRAME).ok()
        })?;
        if ask.flags == Flags::Set && from.is_none_or(|table| table.start != start) {
            self.combined.remember_table(guest, space, gva.raw(), (start.level, GuestTable { start, host }));
        }
        Some((leaf, start))
    }

    /// The walk for all that is unusual.
    #[cold]
    fn exact(
        &mut self,
        memory: &impl PhysMemory,
        place: &Place<'_>,
        access: Access,
        flags: Flags,
    ) -> Result<NestedLeaf, NestedFault> {
        let Place { guest, second, space, gva, .. } = *place;
        if let Some(known) = self.combined.page(space, gva.raw()) {
            match known.judged(guest, second, gva, access, flags) {
                Ok(None) => {}
                Ok(Some(leaf)) => return Ok(leaf),
                Err(fault) => {
                    self.forget_faulting(place, &fault);
                    return Err(fault);
                }
            }
        }
        let from = self.combined.table(guest, space, gva.raw()).map(|table| table.start);
        let mut behind = Behind::new(memory, second, flags, Remembering(&mut self.physical));
        let mut path = Path::default();
        let outcome = behind.nested(Some(guest), from, gva, access, &mut path);
        let verified = behind.verified || !second.format.has_guest_paging_verification();
        match &outcome {
            // What a look finds is not remembered: its flags are not set.
            Ok(NestedLeaf { guest: Some(leaf), .. }) if verified && flags == Flags::Set => {
                let table = lowest_table(guest, from, &path);
                let known = |gpa| self.physical.page(physical(second), gpa).copied();
                // The final translation has just left its page there.
                if let (Some(start), Some(last)) = (table, known(leaf.address)) {
                    let host = known(start.table).map(|known| known.at(&second.format, start.table).address);
                    let first = Known::new(guest, leaf, start.tables, access);
                    self.remember_page(place, Combined { guest: first, second: last });
                    if let Some(host) = host {
                        let table = (start.level, GuestTable { start, host });
                        self.combined.remember_table(guest, space, gva.raw(), table);
                    }
                }
            }
            Ok(_) => {}
            Err(fault) => self.forget_faulting(place, fault),
        }
        outcome
    }

    /// Remembers a page that a walk has found.
    #[inline]
    fn remember_page(&mut self, place: &Place<'_>, page: Combined) {
        let Place { guest, space, global_pages, gva, .. } = *place;
        let global = global_pages && guest.format.is_global(page.guest.entry());
        self.combined.remember_page(space, gva.raw(), page, global);
    }

    /// A fault drops what led to it (rule IV2; SDM vol. 3A, 4.10.4.1).
    fn forget_faulting(&mut self, place: &Place<'_>, fault: &NestedFault) {
        let Place { guest, second, space, gva, .. } = *place;
        self.combined.forget_address(guest, space, gva.raw());
        if let NestedFault::Table { gpa, .. } | NestedFault::Final { gpa, .. } = fault {
            self.physical.forget_address(second, physical(second), gpa.raw());
        }
    }
}

#[inline(always)]
const fn nested_leaf(guest: Leaf, second: Leaf) -> NestedLeaf {
    NestedLeaf { guest: Some(guest), gpa: Gpa(guest.address), second, hpa: Hpa(second.address) }
}

/// The address space of guest-physical addresses.
#[inline]
const fn physical(second: &Paging) -> Space {
    Space::new(Some(second.root), 0, 0)
}

/// The second level, through guest-physical mappings.
struct Remembering<'a>(&'a mut Dimension<Known, Start>);

impl SecondLevel for Remembering<'_> {
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
    /// Its translation, if nothing about the access is unusual.
    #[inline(always)]
    fn quick(
        &self,
        guest: &Paging,
        second: &Paging,
        gva: Gva,
        access: Access,
        flags: Flags,
    ) -> Option<NestedLeaf> {
        let first = self.guest.quick(&Ask::new(guest, access, flags)?, gva.raw())?;
        let access = final_access(&second.format, Some(&first), access);
        let last = self.second.quick(&Ask::new(second, access, flags)?, first.address)?;
        Some(nested_leaf(first, last))
    }

    /// `None`: D must be set in memory first.
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
        let access = final_access(&second.format, Some(&leaf), access);
        match self.second.judged(second, gpa, access, flags) {
            Ok(Use::Done(second)) => Ok(Some(nested_leaf(leaf, second))),
            Ok(Use::Walk) => Ok(None),
            Err(fault) => Err(Target::Final(Some(rights)).fault(second, gpa, fault)),
        }
    }
}
