//! Roots: CR3 switches, and what control registers change (rule K5).

use super::Shadow;
use super::context::{PREVIOUS_ROOTS, Root, RootKey, ShadowContext};
use super::memory::GuestMemory;
use super::page::PageId;
use super::role::{Mode, PageRole};
use crate::access::Controls;
use crate::error::Error;
use crate::format::Kind;
use crate::mmu::{HostFrames, Memslots};
use crate::paging::Paging;

impl Shadow {
    /// A processor after reset, with paging off.
    pub fn context(&mut self, host: &impl HostFrames) -> Result<ShadowContext, Error> {
        let key = RootKey { mode: Mode::PAGING_OFF, table: 0, pdptes: [0; 4] };
        let page = self.hold(PageRole::root(key.mode, None), 0, host)?;
        let paging = self.paging_of(page, None);
        Ok(ShadowContext {
            guest: None,
            current: Root { key, page },
            previous: [None; PREVIOUS_ROOTS],
            paging,
        })
    }

    /// The processor has loaded CR3, or its paging has changed: MOV to CR0, CR3 or CR4, EFER, PKRU. `None` is paging off.
    /// A root it had before is taken up again, and what is unsync below catches up (`kvm_mmu_new_pgd`, rule H1).
    pub fn load<S: Memslots, H: HostFrames>(
        &mut self,
        context: &mut ShadowContext,
        guest: Option<&Paging>,
        slots: &S,
        host: &H,
    ) -> Result<(), Error> {
        let mode = self.modes.number(guest);
        let key = match guest {
            Some(&Paging { root, pdptes, format, .. }) => {
                let pdptes = if format.kind() == Kind::Pae { pdptes } else { [0; 4] };
                RootKey { mode, table: root, pdptes }
            }
            None => RootKey { mode, table: 0, pdptes: [0; 4] },
        };
        context.guest = guest.copied();
        if context.current.key != key || self.pages[context.root()].invalid {
            let page = match self.take_previous(context, key) {
                Some(page) => page,
                None => self.hold(PageRole::root(mode, guest), key.table >> 12, host)?,
            };
            self.put_by(context, host)?;
            context.current = Root { key, page };
        }
        context.paging = self.paging_of(context.root(), guest);
        self.sync_children(context.root(), &GuestMemory::new(slots, host))
    }

    /// Whether its root was zapped: it is empty, shadows nothing, and is replaced on the next fault.
    pub fn is_obsolete(&self, context: &ShadowContext) -> bool {
        self.pages[context.root()].invalid
    }

    /// The processor is gone: its roots are let go.
    pub fn unload(&mut self, context: ShadowContext, host: &impl HostFrames) -> Result<(), Error> {
        context.roots().try_for_each(|root| self.release(root.page, host))
    }

    /// A root that was zapped is replaced (`kvm_mmu_free_obsolete_roots`).
    pub(super) fn renew<S: Memslots, H: HostFrames>(
        &mut self,
        context: &mut ShadowContext,
        slots: &S,
        host: &H,
    ) -> Result<(), Error> {
        if self.is_obsolete(context) {
            let guest = context.guest;
            self.load(context, guest.as_ref(), slots, host)?;
        }
        Ok(())
    }

    /// The root that the context had for these registers before; it is none of the previous ones any more
    /// (`cached_root_find_and_keep_current`).
    fn take_previous(&self, context: &mut ShadowContext, key: RootKey) -> Option<PageId> {
        let pages = &self.pages;
        let fits = |root: &mut Root| root.key == key && !pages[root.page].invalid;
        context.previous.iter_mut().find_map(|slot| slot.take_if(fits)).map(|root| root.page)
    }

    /// The root in use becomes the latest of the previous ones.
    fn put_by(&mut self, context: &mut ShadowContext, host: &impl HostFrames) -> Result<(), Error> {
        let current = context.current;
        if self.pages[current.page].invalid {
            return self.release(current.page, host);
        }
        let free = context.previous.iter().position(Option::is_none);
        let last = free.unwrap_or(PREVIOUS_ROOTS - 1);
        let oldest = context.previous[last];
        context.previous.copy_within(..last, 1);
        context.previous[0] = Some(current);
        oldest.map_or(Ok(()), |root| self.release(root.page, host))
    }

    /// One more holds the root of that role.
    fn hold(&mut self, role: PageRole, gfn: u64, host: &impl HostFrames) -> Result<PageId, Error> {
        let id = match self.pages.find(role, gfn) {
            Some(found) => found,
            None => {
                self.make_room(1, host)?;
                self.new_page(role, gfn, host)?
            }
        };
        self.pages[id].root_count += 1;
        Ok(id)
    }

    fn release(&mut self, id: PageId, host: &impl HostFrames) -> Result<(), Error> {
        let page = &mut self.pages[id];
        page.root_count -= 1;
        if page.root_count > 0 {
            return Ok(());
        }
        if page.invalid {
            self.free_page(id, host);
        } else if page.role.pae_root {
            self.zap_page(id, host)?;
        }
        Ok(())
    }

    /// How hardware walks below that root. W counts for the supervisor too, whatever the guest's CR0.WP says (rule H3).
    fn paging_of(&self, root: PageId, guest: Option<&Paging>) -> Paging {
        let page = &self.pages[root];
        let format = if page.role.level == 5 { self.format_5 } else { self.sptes.format };
        let paging = Paging::new(format, page.table);
        match guest {
            Some(guest) => Paging { controls: guest.controls | Controls::WP, keys: guest.keys, ..paging },
            None => Paging { controls: Controls::WP, ..paging },
        }
    }
}
