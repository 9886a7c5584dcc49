//! The host as the events' documentation has it: one record a page, nothing shared, nothing fast.

use std::ops::Range;

use ept::mmu::HostFault;
use memory_model::PageSize;
use vcpu::soft::host::Protection;

/// Pages of 2 MiB.
const LARGE: usize = 512;

/// What a page has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Untouched,
    Swapped,
    Poisoned,
    /// A frame of 4 KiB, or a part of one: pages with the same number share it.
    Mapped {
        frame: u32,
        large: bool,
        shared: bool,
    },
}

#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// All its bytes.
    pub byte: u8,
    pub protection: Protection,
    pub state: State,
}

/// Pages from a multiple of 2 MiB on.
pub struct Model {
    pub pages: Vec<Page>,
    frames: u32,
}

impl Model {
    pub fn new(pages: usize) -> Self {
        let page = Page { byte: 0, protection: Protection::ReadWrite, state: State::Untouched };
        Self { pages: vec![page; pages], frames: 0 }
    }

    fn frame(&mut self) -> u32 {
        self.frames += 1;
        self.frames
    }

    /// The answer to an access, if the page has one without a new frame.
    fn answer(&self, page: usize, write: bool) -> Option<Result<(PageSize, bool), HostFault>> {
        let Page { protection, state, .. } = self.pages[page];
        let refused = protection == Protection::None || (write && protection == Protection::ReadOnly);
        Some(match state {
            State::Poisoned => Err(HostFault::Poisoned),
            _ if refused => Err(HostFault::Unmapped),
            State::Mapped { shared: true, .. } if write => Err(HostFault::CopyOnWrite),
            State::Mapped { large, shared, .. } => {
                let size = if large { PageSize::Size2M } else { PageSize::Size4K };
                Ok((size, protection == Protection::ReadWrite && !shared))
            }
            State::Untouched | State::Swapped => return None,
        })
    }

    /// A touch; size of the mapping, and whether a write needs no other one.
    pub fn touch(&mut self, page: usize, write: bool) -> Result<(PageSize, bool), HostFault> {
        if let Some(answer) = self.answer(page, write) {
            return answer;
        }
        let around = around(page);
        let like =
            |other: &Page| other.state == State::Untouched && other.protection == self.pages[page].protection;
        let large = self.pages[around.clone()].iter().all(like);
        for page in if large { around } else { page..page + 1 } {
            self.pages[page].state = State::Mapped { frame: self.frame(), large, shared: false };
        }
        self.answer(page, write).unwrap()
    }

    pub fn swap_out(&mut self, range: Range<usize>) {
        self.split(range.clone());
        for page in &mut self.pages[range] {
            if matches!(page.state, State::Mapped { .. }) {
                page.state = State::Swapped;
            }
        }
    }

    pub fn migrate(&mut self, range: Range<usize>) {
        self.split_edges(range.clone());
        for page in range {
            let State::Mapped { frame: old, large, shared } = self.pages[page].state else { continue };
            let frame = self.frame();
            for page in &mut self.pages {
                if matches!(page.state, State::Mapped { frame, .. } if frame == old) {
                    page.state = State::Mapped { frame, large, shared };
                }
            }
        }
    }

    pub fn split(&mut self, range: Range<usize>) {
        for page in range {
            for page in around(page) {
                if let State::Mapped { large, .. } = &mut self.pages[page].state {
                    *large = false;
                }
            }
        }
    }

    /// Large mappings that the range holds in part.
    fn split_edges(&mut self, range: Range<usize>) {
        for edge in [range.start, range.end - 1] {
            let around = around(edge);
            if around.start < range.start || range.end < around.end {
                self.split(edge..edge + 1);
            }
        }
    }

    pub fn collapse(&mut self, range: Range<usize>) {
        for start in (0..self.pages.len()).step_by(LARGE) {
            let pages = start..start + LARGE;
            let inside = range.start <= pages.start && pages.end <= range.end;
            let rights = self.pages[start].protection;
            let fits = |page: &Page| {
                page.protection == rights
                    && page.state != State::Poisoned
                    && !matches!(page.state, State::Mapped { large: true, .. })
            };
            let mapped = |page: &Page| matches!(page.state, State::Mapped { .. });
            let all = &self.pages[pages.clone()];
            if inside && all.iter().all(fits) && all.iter().any(mapped) {
                for page in pages {
                    self.pages[page].state =
                        State::Mapped { frame: self.frame(), large: true, shared: false };
                }
            }
        }
    }

    pub fn discard(&mut self, range: Range<usize>) {
        self.split(range.clone());
        for page in &mut self.pages[range] {
            page.byte = 0;
            page.state = State::Untouched;
        }
    }

    pub fn protect(&mut self, range: Range<usize>, protection: Protection) {
        for edge in [range.start, range.end - 1] {
            if self.pages[edge].protection != protection {
                let around = around(edge);
                if around.start < range.start || range.end < around.end {
                    self.split(edge..edge + 1);
                }
            }
        }
        self.pages[range].iter_mut().for_each(|page| page.protection = protection);
    }

    pub fn poison(&mut self, page: usize) {
        self.split(page..page + 1);
        let State::Mapped { frame: broken, .. } = self.pages[page].state else { return };
        for page in &mut self.pages {
            if matches!(page.state, State::Mapped { frame, .. } if frame == broken) {
                page.state = State::Poisoned;
            }
        }
    }

    pub fn merge(&mut self, one: usize, other: usize) -> bool {
        if one == other {
            return false;
        }
        self.split(one..one + 1);
        self.split(other..other + 1);
        let [a, b] = [self.pages[one], self.pages[other]];
        let (State::Mapped { frame, shared, .. }, State::Mapped { frame: second, shared: other_shared, .. }) =
            (a.state, b.state)
        else {
            return false;
        };
        if [a, b].iter().any(|page| page.protection == Protection::None) || a.byte != b.byte {
            return false;
        }
        let frame = if other_shared && !shared { second } else { frame };
        for page in [one, other] {
            self.pages[page].state = State::Mapped { frame, large: false, shared: true };
        }
        true
    }

    pub fn break_cow(&mut self, page: usize) -> Result<(), HostFault> {
        match self.answer(page, true) {
            Some(Err(HostFault::CopyOnWrite)) => {
                self.pages[page].state = State::Mapped { frame: self.frame(), large: false, shared: false };
                Ok(())
            }
            Some(Err(fault)) => Err(fault),
            Some(Ok(_)) | None => Ok(()),
        }
    }
}

fn around(page: usize) -> Range<usize> {
    let start = page / LARGE * LARGE;
    start..start + LARGE
}
