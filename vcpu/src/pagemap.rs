//! `/proc/self/pagemap`: which frame is behind a page of this process.

use std::sync::OnceLock;

use ept::live::Pagemap;
use ept::verify::HostPage;
use memory_model::{Hpa, Hva, PageSize};

use crate::Witness;

/// The frame behind the page that holds `hva`, with the offset inside the page.
pub fn frame(hva: Hva) -> Witness<Hpa> {
    let page = match of_this_process() {
        Ok(pagemap) => pagemap.page(hva).map_err(|error| error.to_string()),
        Err(error) => Err(error.clone()),
    };
    match page {
        Err(error) => Witness::NotShown(error.into()),
        Ok(HostPage::ABSENT) => Witness::Absent,
        Ok(page) => match page.hpa() {
            Some(hpa) => Witness::Seen(Hpa(hpa.raw() | hva.page_offset(PageSize::Size4K))),
            None => Witness::NotShown("/proc/self/pagemap hides frames from all but root".into()),
        },
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
}
