//! `/proc/self/pagemap`: which frame is behind a page of this process.

use std::sync::OnceLock;

use ept::live::Pagemap;
use ept::verify::{HostMap, HostPage};
use memory_model::{Hpa, Hva, PageSize};

use crate::Witness;

/// The frame behind the page that holds `hva`, with the offset inside the page.
pub fn frame(hva: Hva) -> Witness<Hpa> {
    match of_this_process() {
        Ok(pagemap) => match pagemap.page(hva) {
            Ok(page) => witness(hva, page),
            Err(error) => Witness::NotShown(error.to_string().into()),
        },
        Err(error) => Witness::NotShown(error.clone().into()),
    }
}

fn witness(hva: Hva, page: HostPage) -> Witness<Hpa> {
    match page {
        HostPage::ABSENT => Witness::Absent,
        page => match page.hpa() {
            Some(hpa) => Witness::Seen(Hpa(hpa.raw() | hva.page_offset(PageSize::Size4K))),
            None => Witness::NotShown("/proc/self/pagemap hides frames from all but root".into()),
        },
    }
}

const WINDOW: u64 = 64;

/// Pages as they were at one moment, a stretch of them at a time: a call of the kernel costs more than its neighbours do.
#[derive(Default)]
pub(crate) struct PageWindow {
    /// The number of the first page, in windows.
    number: Option<u64>,
    pages: Vec<HostPage>,
}

impl PageWindow {
    /// As [`frame`] does.
    pub fn frame(&mut self, hva: Hva) -> Witness<Hpa> {
        let Ok(pagemap) = of_this_process() else { return frame(hva) };
        let (number, at) = (hva.page_number() / WINDOW, hva.page_number() % WINDOW);
        if self.number != Some(number) {
            self.number = Some(number);
            self.pages.resize(WINDOW as usize, HostPage::UNKNOWN);
            pagemap.pages(Hva((number * WINDOW) << PageSize::Size4K.shift()), &mut self.pages);
        }
        match self.pages[at as usize] {
            // Why, it says alone.
            HostPage::UNKNOWN => frame(hva),
            page => witness(hva, page),
        }
    }
}

/// Opened once: the file is this process, whatever page is asked for.
pub(crate) fn of_this_process() -> &'static Result<Pagemap, String> {
    static PAGEMAP: OnceLock<Result<Pagemap, String>> = OnceLock::new();
    PAGEMAP.get_or_init(|| Pagemap::of_this_process().map_err(|error| error.to_string()))
}

#[cfg(test)]
mod tests {
    use memory_model::RamBlock;

    use super::*;

    #[test]
    fn an_untouched_page_is_absent_and_a_touched_one_is_not() {
        let block = RamBlock::anonymous("probe", 0x2000).unwrap();
        assert_eq!(frame(block.hva()), Witness::Absent);
        block.write(0x1000, &[1]).unwrap();
        assert_eq!(frame(block.hva()), Witness::Absent);
        match frame(Hva(block.hva().0 + 0x1234)) {
            Witness::Seen(hpa) => assert_eq!(hpa.page_offset(PageSize::Size4K), 0x234),
            Witness::NotShown(why) => println!("not checked: {why}"),
            Witness::Absent => panic!("the page was just written"),
        }
    }

    #[test]
    fn a_window_shows_what_each_page_shows_alone() {
        let block = RamBlock::anonymous("probe", 200 << 12).unwrap();
        for page in [0, 3, 63, 64, 65, 130, 199] {
            block.write(page << 12, &[1]).unwrap();
        }
        let mut window = PageWindow::default();
        // From end to end, and back.
        for page in (0..200u64).chain((0..200).rev()) {
            let hva = Hva(block.hva().0 + (page << 12) + 8);
            assert_eq!(window.frame(hva), frame(hva), "page {page}");
        }
    }
}
