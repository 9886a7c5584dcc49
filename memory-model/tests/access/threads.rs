//! Many threads at one device, and at one word.

use std::sync::{Arc, Barrier};
use std::thread;

use memory_model::{AccessRules, Gpa, MemTxAttrs, MemTxError, MmioOps};

use crate::device::{add_page, space_of, space_with};

/// A device that answers only when two threads are inside it.
struct Meeting(Barrier);

impl MmioOps for Meeting {
    fn read(&self, offset: u64, _: u8, _: MemTxAttrs) -> Result<u64, MemTxError> {
        self.0.wait();
        Ok(offset)
    }
    fn write(&self, _: u64, _: u8, _: u64, _: MemTxAttrs) -> Result<(), MemTxError> {
        self.0.wait();
        Ok(())
    }
    fn rules(&self) -> AccessRules {
        AccessRules::DEFAULT
    }
}

#[test]
fn r37_two_threads_in_one_device_are_no_re_entry() {
    let space = space_with(Arc::new(Meeting(Barrier::new(2))));
    thread::scope(|scope| {
        for offset in [4, 8] {
            let space = &space;
            scope.spawn(move || {
                let view = space.view();
                for _ in 0..1000 {
                    let mut word = [0; 4];
                    view.bus().read(Gpa(offset), &mut word).unwrap();
                    assert_eq!(u64::from(u32::from_le_bytes(word)), offset);
                    view.bus().write(Gpa(offset), &word).unwrap();
                }
            });
        }
    });
}

#[test]
fn an_aligned_word_of_memory_is_read_and_written_whole() {
    let space = space_of(|tree| add_page(tree, 0, 0).map(|_| ()));
    // The buffers are not aligned, and need not be.
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let view = space.view();
            for round in 0..4_000_000_u32 {
                view.bus().write(Gpa(8), &[round as u8; 9][1..]).unwrap();
            }
        });
        let view = space.view();
        while !writer.is_finished() {
            let mut buf = [0; 9];
            view.bus().read(Gpa(8), &mut buf[1..]).unwrap();
            assert!(buf[1..].iter().all(|&byte| byte == buf[1]), "{buf:?}");
        }
    });
}
