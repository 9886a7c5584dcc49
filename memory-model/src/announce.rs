//! Telling listeners how one view became the next.

use alloc::vec::Vec;

use crate::flat::{Diff, News};
use crate::{AddrRange, FlatRange, FlatView, Gpa, MemoryListener, Refusal};

/// In which order listeners are told (rule R24).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Lowest priority first: something comes.
    Forward,
    /// Lowest priority last: something goes.
    Reverse,
}

/// The listeners of one address space.
pub(crate) trait Audience {
    fn each(&mut self, order: Order, call: &mut dyn FnMut(&mut dyn MemoryListener));
}

/// A single listener.
struct Alone<'a>(&'a mut dyn MemoryListener);

impl Audience for Alone<'_> {
    fn each(&mut self, _: Order, call: &mut dyn FnMut(&mut dyn MemoryListener)) {
        call(self.0);
    }
}

/// What changes in one address space, ready to be told.
pub(crate) struct Announcement<'a> {
    pub(crate) diff: Diff<'a>,
    /// The new view, for those who ask for nops.
    pub(crate) view: &'a FlatView,
    /// Coalesced parts that are gone and that are new, both ascending.
    pub(crate) coalesced_gone: Vec<AddrRange<Gpa>>,
    pub(crate) coalesced_new: Vec<AddrRange<Gpa>>,
}

impl<'a> Announcement<'a> {
    /// From `old` to `new`.
    pub(crate) fn between(old: &'a FlatView, new: &'a FlatView) -> Self {
        let diff = Diff::between(old, new);
        Self { diff, view: new, coalesced_gone: Vec::new(), coalesced_new: Vec::new() }
    }

    /// Everything but begin and commit (rule R23). Without a difference of the views, that is coalesced parts.
    pub(crate) fn tell(&self, audience: &mut dyn Audience) {
        self.tell_gone(audience);
        self.tell_new(audience);
    }

    fn tell_gone(&self, audience: &mut dyn Audience) {
        let mut coalesced = self.coalesced_gone.iter().peekable();
        let part_gone = |audience: &mut dyn Audience, range| {
            audience.each(Order::Reverse, &mut |listener| listener.coalesced_del(range));
        };
        for range in &self.diff.gone {
            while let Some(part) = coalesced.next_if(|part| part.first() <= range.range.last()) {
                part_gone(audience, *part);
            }
            audience.each(Order::Reverse, &mut |listener| listener.region_del(range));
        }
        coalesced.for_each(|part| part_gone(audience, *part));
    }

    fn tell_new(&self, audience: &mut dyn Audience) {
        let mut wanted = false;
        if !self.diff.is_empty() {
            audience.each(Order::Forward, &mut |listener| wanted |= listener.wants_nops());
        }
        let mut nops = wanted.then(|| self.view.ranges()).into_iter().flatten().peekable();
        let mut coalesced = self.coalesced_new.iter().peekable();
        for news in &self.diff.news {
            let range = news.range();
            while let Some(part) = coalesced.next_if(|part| part.last() < range.range.first()) {
                audience.each(Order::Forward, &mut |listener| listener.coalesced_add(*part));
            }
            while let Some(same) = nops.next_if(|same| same.range.first() < range.range.first()) {
                nop(audience, same);
            }
            nops.next_if(|same| same.range == range.range);
            tell_news(audience, *news);
        }
        nops.for_each(|same| nop(audience, same));
        for part in coalesced {
            audience.each(Order::Forward, &mut |listener| listener.coalesced_add(*part));
        }
    }
}

fn nop(audience: &mut dyn Audience, range: &FlatRange) {
    audience.each(Order::Forward, &mut |listener| {
        if listener.wants_nops() {
            listener.region_nop(range);
        }
    });
}

fn tell_news(audience: &mut dyn Audience, news: News<'_>) {
    match news {
        News::Added(new) => audience.each(Order::Forward, &mut |listener| listener.region_add(new)),
        News::Relogged { old, new } => {
            nop(audience, new);
            let (before, after) = (old.dirty_mask, new.dirty_mask);
            if !before.contains(after) {
                audience.each(Order::Forward, &mut |listener| listener.log_start(new, before, after));
            }
            if !after.contains(before) {
                audience.each(Order::Reverse, &mut |listener| listener.log_stop(new, before, after));
            }
        }
    }
}

impl FlatView {
    /// Tells `listener` in one transaction how `self` becomes `new`; silent if they are equal. For those who
    /// keep views without an [`AddressSpace`](crate::AddressSpace).
    pub fn announce_change(&self, new: &Self, listener: &mut dyn MemoryListener) -> Result<(), Refusal> {
        let announcement = Announcement::between(self, new);
        if announcement.diff.is_empty() {
            return Ok(());
        }
        listener.begin();
        announcement.tell(&mut Alone(listener));
        listener.commit()
    }
}
