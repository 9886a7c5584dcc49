//! From a page fault to a shadow leaf (`FNAME(page_fault)`, `FNAME(fetch)`).
//!
//! A pointer that the shadow has is the guest's own: the guest's table is tracked (rule L2), and A was set before the
//! pointer was made. A processor would go down it and ask no one. So does a fault: it goes down the shadow as far as
//! that leads, and walks the guest's tables from there.

use memory_model::{AddrRange, Gpa, PageSize};

use super::Shadow;
use super::context::ShadowContext;
use super::entries::NewLeaf;
use super::memory::GuestMemory;
use super::page::{Held, PageId, ShadowPage, SpteRef};
use super::role::{Mode, PageRole};
use crate::access::{Access, Rights};
use crate::error::Error;
use crate::fault::Fault;
use crate::format::{Format, Kind};
use crate::mmu::level::mapping_size;
use crate::mmu::{FaultOutcome, Faultin, HostFrames, Memslots, PageFault};
use crate::paging::Start;
use crate::phys::PhysMemory;
use crate::quick::Ask;
use crate::walk::{Flags, Path, walk_from};

/// What the guest's tables say of the address (`guest_walker`).
struct Guest<'a> {
    gva: u64,
    gpa: Gpa,
    mode: Mode,
    /// With paging on, the format of the guest's tables, the entries read, and the AND of the pointers above them.
    walk: Option<(&'a Format, &'a Path, u64)>,
    /// The level of the table that holds the guest's leaf; with paging off, that of the root.
    level: u8,
    /// The largest shadow page that the guest's page can have (rule L4).
    size: PageSize,
    /// What the leaf may grant.
    access: Rights,
    key: u64,
    /// The guest allows the write, but no leaf can: it must be emulated.
    emulate: bool,
}

impl Shadow {
    /// A page fault of a processor on its shadow tables. Whatever comes of it, [`ShadowContext::paging`] is to be read
    /// again, and TLBs are to be flushed if [`flushes`](Self::flushes) has changed.
    ///
    /// An address that no table translates (not canonical) is an error: the guest's exception for it is none of paging.
    pub fn fault<S: Memslots, H: HostFrames>(
        &mut self,
        context: &mut ShadowContext,
        gva: u64,
        access: Access,
        slots: &S,
        host: &H,
    ) -> Result<FaultOutcome, Error> {
        self.counts.pf_taken += 1;
        let outcome = self.handle(context, gva, access, slots, host)?;
        match outcome {
            FaultOutcome::Fixed { .. } => self.counts.pf_fixed += 1,
            FaultOutcome::Spurious => self.counts.pf_spurious += 1,
            FaultOutcome::Mmio { .. }
            | FaultOutcome::MmioReadonlyWrite { .. }
            | FaultOutcome::WriteProtected { .. } => self.counts.pf_emulate += 1,
            FaultOutcome::HostFault { .. } | FaultOutcome::Retry | FaultOutcome::Guest(_) => {}
        }
        Ok(outcome)
    }

    fn handle<S: Memslots, H: HostFrames>(
        &mut self,
        context: &mut ShadowContext,
        gva: u64,
        access: Access,
        slots: &S,
        host: &H,
    ) -> Result<FaultOutcome, Error> {
        self.renew(context, slots, host)?;
        if !context.paging.format.translates(gva) {
            return Err(Error::InputRange { address: gva, levels: context.paging.format.levels() });
        }
        self.make_room(usize::from(PATH_TABLES), host)?;
        let seq = self.invalidations.seq();
        let memory = GuestMemory::new(slots, host);
        let mut path = Path::default();
        let page = self.descend(context.root(), gva);
        let shadow = &self.pages[page];
        // Its line is as far away as that of the guest's entry: both are awaited at once.
        _ = host.read_entry(shadow.entry_address(self.sptes.format.index(shadow.role.level, gva)));
        let guest = match self.walk_guest(context, page, gva, access, &memory, &mut path) {
            Ok(guest) => guest,
            Err(fault) => {
                let fault = match (fault, &context.guest) {
                    (Fault::Memory(_), Some(guest)) => guest.not_present(access),
                    (fault, _) => fault,
                };
                return match (memory.refusal(), fault) {
                    (Some(outcome), _) => Ok(outcome),
                    (None, Fault::PageFault { code }) => Ok(FaultOutcome::Guest(code)),
                    _ => Err(Error::InputRange { address: gva, levels: context.paging.format.levels() }),
                };
            }
        };
        let fault = PageFault { gpa: guest.gpa, access, max_size: guest.size };
        let faultin = match fault.resolve(seq, slots, host) {
            Ok(faultin) => faultin,
            Err(outcome) => return Ok(outcome),
        };
        if guest.emulate {
            return Ok(FaultOutcome::WriteProtected { gpa: guest.gpa });
        }
        let outcome = self.fetch(page, &guest, &fault, &faultin, &memory)?;
        if faultin.slot.log_dirty && access.writes() && matches!(outcome, FaultOutcome::Fixed { .. }) {
            slots.mark_page_dirty(guest.gpa);
        }
        Ok(outcome)
    }

    /// The last page on the way to `gva` that shadows a table, or else the root.
    fn descend(&mut self, root: PageId, gva: u64) -> PageId {
        let mut id = root;
        loop {
            let page = &mut self.pages[id];
            page.write_flooding_count = 0;
            match page.held(self.sptes.format.index(page.role.level, gva)) {
                Held::Table(child) if !self.pages[child].role.direct => id = child,
                _ => return id,
            }
        }
    }

    /// The guest's table that a page shadows.
    fn start(&self, page: &ShadowPage, format: &Format) -> Option<Start> {
        let table = page.guest_table()?.raw();
        Some(Start {
            level: page.role.level,
            table,
            tables: format.tables_without(PageRole::ALL - page.role.access),
        })
    }

    /// Walks the guest's tables from that page's on; sets their flags as hardware would (`FNAME(walk_addr)`).
    fn walk_guest<'a, S: Memslots, H: HostFrames>(
        &self,
        context: &'a ShadowContext,
        page: PageId,
        gva: u64,
        access: Access,
        memory: &GuestMemory<'_, S, H>,
        path: &'a mut Path,
    ) -> Result<Guest<'a>, Fault> {
        let mode = context.current.key.mode;
        let (Some(paging), Some(rules)) = (&context.guest, self.modes.get(mode)) else {
            return Ok(Guest {
                gva,
                gpa: Gpa(gva),
                mode,
                walk: None,
                level: self.sptes.format.levels(),
                size: PageSize::Size1G,
                access: PageRole::ALL,
                key: 0,
                emulate: false,
            });
        };
        let format = &paging.format;
        let start = self.start(&self.pages[page], format);
        let quick = start.filter(|start| start.level == 1).and_then(|start| {
            let ask = Ask::new(paging, access, Flags::Set)?;
            ask.descend_lowest(start, gva, |entry| memory.read_entry(entry).ok())
        });
        let leaf = match quick {
            Some(leaf) => leaf,
            None => walk_from(start, path, memory, paging, gva, access, Flags::Set)?,
        };
        let granted = leaf.rights();
        let mut rights = granted & PageRole::ALL;
        let mut emulate = false;
        if access.writes() {
            let supervisor = !access.user && !access.does.contains(Rights::SHADOW_STACK);
            if !granted.contains(Rights::WRITE) && supervisor && rules.flips_read_only_pages() {
                // Rule H3.
                rights = rules.flipped(rights);
            } else {
                emulate = !rules.hardware_agrees(access, granted);
            }
        } else if !format.is_dirty(leaf.entry) {
            // The first write is to set D.
            rights -= Rights::WRITE;
        }
        let (level, size) = match leaf.size {
            PageSize::Size4M => (2, PageSize::Size2M),
            size => (size.level(), size),
        };
        Ok(Guest {
            gva,
            gpa: Gpa(leaf.address),
            mode,
            walk: Some((format, path, start.map_or(u64::MAX, |start| start.tables))),
            level,
            size,
            access: rights,
            key: rules.key_of(leaf.entry),
            emulate,
        })
    }

    /// Goes on down the shadow, linking what is missing: first the shadows of the guest's tables, then direct pages for the
    /// pieces of a large guest page; then sets the leaf.
    fn fetch<S: Memslots, H: HostFrames>(
        &mut self,
        mut page: PageId,
        guest: &Guest<'_>,
        fault: &PageFault,
        faultin: &Faultin,
        memory: &GuestMemory<'_, S, H>,
    ) -> Result<FaultOutcome, Error> {
        let host = memory.host();
        let mut linked = false;
        if let Some((format, path, mut tables)) = guest.walk {
            for level in (guest.level..self.pages[page].role.level).rev() {
                let (role, gfn) = self.shadowed_child(guest, (format, path), level, &mut tables);
                linked |= self.link_child(&mut page, guest.gva, role, gfn, memory)?;
                self.pages[page].write_flooding_count = 0;
            }
        }
        // Only now all tables on the way are tracked (rule L2).
        let size =
            mapping_size(&self.sptes.format, fault, faultin, |size| !self.shadows_any(guest.gpa, size));
        if self.invalidations.retry(faultin.seq, AddrRange::page_of(guest.gpa, size)) {
            return Ok(FaultOutcome::Retry);
        }
        for level in (size.level()..self.pages[page].role.level).rev() {
            let span = (1 << (9 * u64::from(level))) - 1;
            let role = PageRole {
                level,
                direct: true,
                pae_root: false,
                quadrant: 0,
                access: guest.access,
                mode: guest.mode,
            };
            let gfn = guest.gpa.page_number() & !span;
            linked |= self.link_child(&mut page, guest.gva, role, gfn, memory)?;
        }
        let at = SpteRef { page, index: self.sptes.format.index(size.level(), guest.gva) };
        let gfn = guest.gpa.align_down(size).page_number();
        let mmu_writable = guest.access.contains(Rights::WRITE)
            && faultin.host.writable
            && !faultin.slot.readonly
            && (size > PageSize::Size4K || self.try_to_unsync(gfn, fault.access.writes()));
        if fault.access.writes() && !mmu_writable {
            return Ok(FaultOutcome::WriteProtected { gpa: guest.gpa });
        }
        if size > PageSize::Size4K
            && let Held::Table(_) = self.pages[page].held(at.index)
        {
            self.zap_entry(at, host)?;
        }
        let leaf = NewLeaf {
            gfn,
            hpa: faultin.host.hpa.align_down(size),
            size,
            access: guest.access,
            key: guest.key,
            host_writable: faultin.host.writable,
            mmu_writable,
            writable: mmu_writable && (!faultin.slot.log_dirty || fault.access.writes()),
            used: true,
        };
        let changed = self.set_leaf(at, &leaf, host)?;
        if changed && size == PageSize::Size4K {
            self.prefetch(at, faultin.hva, guest.key, memory)?;
        }
        Ok(if changed || linked { FaultOutcome::Fixed { size } } else { FaultOutcome::Spurious })
    }

    /// The shadow of the guest's table of that level on the walk. `tables` is the AND of the pointers above the last one,
    /// and takes in one more.
    fn shadowed_child(
        &self,
        guest: &Guest<'_>,
        (format, path): (&Format, &Path),
        level: u8,
        tables: &mut u64,
    ) -> (PageRole, u64) {
        let mut role = PageRole {
            level,
            direct: false,
            pae_root: false,
            quadrant: 0,
            access: PageRole::ALL,
            mode: guest.mode,
        };
        let Some(nth) = path[0].level.checked_sub(level).map(usize::from) else {
            return (PageRole { pae_root: true, ..role }, 0);
        };
        if let Some(above) = nth.checked_sub(1) {
            *tables &= format.mergeable(path[above].entry);
            role.access = format.merged_rights(*tables, 0) & PageRole::ALL;
        }
        if format.kind() == Kind::Legacy32 {
            // Each shadow table takes 512 of the guest's 1024 entries, or a quarter of its directory.
            let (shift, mask) = if level == 2 { (30, 3) } else { (21, 1) };
            role.quadrant = (guest.gva >> shift) as u8 & mask;
        }
        (role, path[nth].table >> 12)
    }

    /// Goes to the page below, for `gva`, and links it if another one or none is (`kvm_mmu_get_child_sp`,
    /// `validate_direct_spte`); whether it did.
    fn link_child<S: Memslots, H: HostFrames>(
        &mut self,
        page: &mut PageId,
        gva: u64,
        role: PageRole,
        gfn: u64,
        memory: &GuestMemory<'_, S, H>,
    ) -> Result<bool, Error> {
        let at = SpteRef { page: *page, index: self.sptes.format.index(role.level + 1, gva) };
        if let Held::Table(child) = self.pages[at.page].held(at.index)
            && self.pages[child].role == role
            && self.pages[child].gfn == gfn
        {
            *page = child;
            return Ok(false);
        }
        let host = memory.host();
        self.zap_entry(at, host)?;
        *page = self.get_page(role, gfn, memory)?;
        self.link(at, *page, host)?;
        Ok(true)
    }
}

/// How many tables a fault may need.
pub(super) const PATH_TABLES: u8 = 5;
