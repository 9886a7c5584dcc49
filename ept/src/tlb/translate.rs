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
use super::dimension::{Dimension, Page, lowest_table};
use super::known::{Known, Passed, Use};
use super::{LinearSpace, Tlb};

const FRAME: u64 = PageSize::Size4K.bytes();

/// A remembered page of both dimensions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Combined {
    pub(super) guest: Known,
    pub(super) second: Known,
    passed: Passed,
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
        match self.linear.quick(memory, paging, of, address, access, flags) {
            Some(known) => Ok(known.at(address)),
            None => self.linear.translate(&mut Path::default(), memory, paging, of, address, access, flags),
        }
    }

    /// Translates as [`nested_translate`](crate::nested_translate) does. While the guest has paging off (`guest` is
    /// `None`), its addresses are guest-physical, and so are the mappings used.
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
        let LinearSpace { global_pages, .. } = space;
        let space = space.behind(Some(second.root));
        let place = Place { guest, second, space, global_pages, gva };
        let known = self.combined.page(space, gva.raw());
        if let Some(Combined { guest: first, second, passed }) = known
            && passed.has(guest, access)
        {
            return Ok(nested_leaf(first, second, gva));
        }
        if known.is_none()
            && let Some(leaf) = self.quick(memory, &place, access, flags)
        {
            return Ok(leaf);
        }
        self.exact(memory, &place, access, flags)
    }

    /// The walk of which nothing is unusual, not even that something is remembered of its page; `None` leaves it to
    /// [`exact`](Self::exact), and has forgotten nothing.
    #[inline]
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
        let from = self.combined.table(guest, space, gva.raw());
        let table_access = guest_table_access(&second.format);
        let of = (physical(second), false);
        let physical = &mut self.physical;
        let mut remembered = from.map(|table| table.host);
        let mut host = 0;
        let ask = Ask::new(guest, access, flags)?;
        let (leaf, start) = ask.descend_from(from.map(|table| table.start), gva.raw(), |entry| {
            host = match remembered.take() {
                Some(host) => host,
                None => {
                    physical
                        .quick(memory, second, of, entry, table_access, flags)?
                        .at(entry & !(FRAME - 1))
                        .address
                }
            };
            memory.read_entry(host + entry % FRAME).ok()
        })?;
        let first = Known::marked(leaf, start.tables);
        let final_access = final_access(&second.format, Some(&leaf), access);
        let last = physical.quick(memory, second, of, leaf.address, final_access, flags)?;
        if flags == Flags::Set {
            let known = from.is_some_and(|table| table.start == start);
            let table = (!known).then_some(GuestTable { start, host });
            self.remember(place, first, last, table, access);
        }
        Some(nested_leaf(&first, &last, gva))
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
                Ok(Some(leaf)) => {
                    if flags == Flags::Set {
                        known.passed.add(guest, access);
                    }
                    return Ok(leaf);
                }
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
                let mut known = |gpa| self.physical.page(physical(second), gpa).map(|(known, _)| *known);
                // The final translation has just left its page there.
                if let (Some(start), Some(last)) = (table, known(leaf.address)) {
                    let host = known(start.table).map(|known| known.at(start.table).address);
                    let table = host.map(|host| GuestTable { start, host });
                    let first = Known::new(guest, *leaf, start.tables, access);
                    self.remember(place, first, last, table, access);
                }
            }
            Ok(_) => {}
            Err(fault) => self.forget_faulting(place, fault),
        }
        outcome
    }

    /// Remembers a page that a walk has found, and the guest's table it is in.
    #[inline]
    fn remember(
        &mut self,
        place: &Place<'_>,
        first: Known,
        last: Known,
        table: Option<GuestTable>,
        access: Access,
    ) {
        let Place { guest, space, global_pages, gva, .. } = *place;
        let page = Combined { guest: first, second: last, passed: Passed::new(guest, access) };
        let global = global_pages && guest.format.is_global(first.entry());
        self.combined.remember_page(space, gva.raw(), page, global);
        if let Some(table) = table {
            self.combined.remember_table(guest, space, gva.raw(), (table.start.level, table));
        }
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

/// The translation of an access that is known to pass.
#[inline]
fn nested_leaf(first: &Known, last: &Known, gva: Gva) -> NestedLeaf {
    let guest = first.at(gva.raw());
    let second = last.at(guest.address);
    NestedLeaf { guest: Some(guest), gpa: Gpa(guest.address), second, hpa: Hpa(second.address) }
}

/// The address space of guest-physical addresses.
#[inline]
const fn physical(second: &Paging) -> Space {
    Space::new(Some(second.root), 0, 0)
}

/// The second level, through guest-physical mappings.
struct Remembering<'a>(&'a mut Dimension<Page, Start>);

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
            Ok(Use::Done(_)) => Ok(Some(nested_leaf(&self.guest, &self.second, gva))),
            Ok(Use::Walk) => Ok(None),
            Err(fault) => Err(Target::Final(Some(rights)).fault(second, gpa, fault)),
        }
    }
}
