//! `/proc/self/pagemap`: which frame is behind a page of this process.
//!
//! Eight bytes a page: bit 63 present, bits 54:0 the frame number, which the kernel shows only to a process
//! with `CAP_SYS_ADMIN` and replaces by zero for all others (Linux, Documentation/admin-guide/mm/pagemap.rst).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use memory_model::{Hpa, Hva, PageSize};

use crate::Witness;

const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;

/// The frame behind the page that holds `hva`, with the offset inside the page.
pub fn frame(hva: Hva) -> Witness<Hpa> {
    // Opened once: the file is this process, whatever page is asked for.
    static PAGEMAP: OnceLock<io::Result<File>> = OnceLock::new();
    let mut entry = [0; 8];
    let read = match PAGEMAP.get_or_init(|| File::open("/proc/self/pagemap")) {
        Ok(file) => file.read_exact_at(&mut entry, hva.page_number() * 8).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = read {
        return Witness::NotShown(format!("/proc/self/pagemap: {error}").into());
    }
    let entry = u64::from_le_bytes(entry);
    match (entry & PRESENT != 0, entry & FRAME) {
        (false, _) => Witness::Absent,
        (true, 0) => Witness::NotShown("/proc/self/pagemap hides frames from all but root".into()),
        (true, frame) => {
            Witness::Seen(Hpa((frame << PageSize::Size4K.shift()) | hva.page_offset(PageSize::Size4K)))
        }
    }
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
