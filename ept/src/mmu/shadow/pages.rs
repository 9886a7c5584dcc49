//! All shadow pages: by number, by guest page, and oldest first.

use alloc::boxed::Box;
use alloc::collections::btree_map::Entry;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::ops::{Index, IndexMut, RangeInclusive};

use super::page::{PageId, ShadowPage};
use super::role::PageRole;

/// The shadow pages of one VM (`mmu_page_hash`, `active_mmu_pages`).
#[derive(Debug, Default)]
pub(super) struct Pages {
    arena: Vec<Option<Box<ShadowPage>>>,
    free: Vec<PageId>,
    /// Those that shadow a guest table, by its page number.
    shadowing: ByGfn,
    /// Those that translate directly.
    direct: ByGfn,
    /// All that are not invalid, by age.
    active: BTreeMap<u64, PageId>,
    /// How many have been made.
    born: u64,
}

/// Each page is found by its number as long as something refers to it.
const KNOWN: &str = "a number of a shadow page that is gone";

impl Index<PageId> for Pages {
    type Output = ShadowPage;
    fn index(&self, PageId(number): PageId) -> &ShadowPage {
        self.arena[number as usize].as_ref().expect(KNOWN)
    }
}

impl IndexMut<PageId> for Pages {
    fn index_mut(&mut self, PageId(number): PageId) -> &mut ShadowPage {
        self.arena[number as usize].as_mut().expect(KNOWN)
    }
}

impl Pages {
    /// How many there are, invalid ones included.
    pub fn len(&self) -> usize {
        self.arena.len() - self.free.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &ShadowPage> {
        self.arena.iter().flatten().map(|page| &**page)
    }

    /// The numbers of all.
    pub fn ids(&self) -> Vec<PageId> {
        let known = |&number: &u32| self.arena[number as usize].is_some();
        (0..self.arena.len() as u32).filter(known).map(PageId).collect()
    }

    pub fn contains(&self, PageId(number): PageId) -> bool {
        self.arena[number as usize].is_some()
    }

    /// A new page.
    pub fn insert(&mut self, role: PageRole, gfn: u64, table: u64) -> PageId {
        let id = self.free.pop().unwrap_or_else(|| {
            self.arena.push(None);
            PageId(self.arena.len() as u32 - 1)
        });
        self.born += 1;
        self.arena[id.0 as usize] = Some(Box::new(ShadowPage::new(role, gfn, table, self.born)));
        self.active.insert(self.born, id);
        if let Some(known) = self.known(role) {
            known.insert(gfn, id);
        }
        id
    }

    /// It is not found any more, but by its number.
    pub fn forget(&mut self, id: PageId) {
        let ShadowPage { role, gfn, born, .. } = self[id];
        self.active.remove(&born);
        if let Some(known) = self.known(role) {
            known.remove(gfn, id);
        }
    }

    /// Its number may be given out again.
    pub fn remove(&mut self, id: PageId) {
        self.arena[id.0 as usize] = None;
        self.free.push(id);
    }

    /// The page of that role for that guest page.
    pub fn find(&self, role: PageRole, gfn: u64) -> Option<PageId> {
        let known = match role {
            PageRole { pae_root: true, .. } => return None,
            PageRole { direct: true, .. } => &self.direct,
            _ => &self.shadowing,
        };
        known.at(gfn).find(|&id| self[id].role == role)
    }

    /// Those that shadow a guest table in these pages.
    pub fn shadowing(&self, gfns: RangeInclusive<u64>) -> impl Iterator<Item = PageId> + '_ {
        self.shadowing.within(gfns)
    }

    /// Those that shadow the guest table in that page.
    pub fn shadows_of(&self, gfn: u64) -> impl Iterator<Item = PageId> + '_ {
        self.shadowing.at(gfn)
    }

    /// A page for that guest table which is unsync, or one which is not.
    pub fn find_shadowing(&self, gfn: u64, unsync: bool) -> Option<PageId> {
        self.shadows_of(gfn).find(|&id| self[id].unsync == unsync)
    }

    /// The oldest that is not invalid.
    pub fn oldest(&self) -> Option<PageId> {
        self.oldest_first().next()
    }

    /// All that are not invalid, oldest first.
    pub fn oldest_first(&self) -> impl Iterator<Item = PageId> + '_ {
        self.active.values().copied()
    }

    fn known(&mut self, role: PageRole) -> Option<&mut ByGfn> {
        match role {
            PageRole { pae_root: true, .. } => None,
            PageRole { direct: true, .. } => Some(&mut self.direct),
            _ => Some(&mut self.shadowing),
        }
    }
}

/// Pages by the number of their guest page. Those of 2 MiB of guest memory are together: most have none.
#[derive(Debug, Default)]
struct ByGfn(BTreeMap<u64, BTreeSet<(u64, PageId)>>);

impl ByGfn {
    fn insert(&mut self, gfn: u64, id: PageId) {
        self.0.entry(gfn >> 9).or_default().insert((gfn, id));
    }

    fn remove(&mut self, gfn: u64, id: PageId) {
        if let Entry::Occupied(mut stretch) = self.0.entry(gfn >> 9) {
            stretch.get_mut().remove(&(gfn, id));
            if stretch.get().is_empty() {
                stretch.remove();
            }
        }
    }

    fn at(&self, gfn: u64) -> impl Iterator<Item = PageId> + '_ {
        let pages = self.0.get(&(gfn >> 9)).into_iter();
        pages
            .flat_map(move |pages| pages.range((gfn, PageId(0))..=(gfn, PageId(u32::MAX))))
            .map(|&(_, id)| id)
    }

    fn within(&self, gfns: RangeInclusive<u64>) -> impl Iterator<Item = PageId> + '_ {
        let (first, last) = gfns.into_inner();
        let stretches = self.0.range(first >> 9..=last >> 9);
        stretches
            .flat_map(move |(_, pages)| pages.range((first, PageId(0))..=(last, PageId(u32::MAX))))
            .map(|&(_, id)| id)
    }
}
