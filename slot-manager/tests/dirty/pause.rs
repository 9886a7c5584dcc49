//! When vCPUs are stopped, and for how long (rules R8, R9).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use slot_manager::{DirtyMethod, Errno};

use crate::machine::{Machine, PAGE};

struct Running(Arc<AtomicBool>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn r8_vcpus_are_stopped_iff_the_plan_says_so_and_go_on_when_it_is_done() {
    let machine = Machine::new(DirtyMethod::Bitmap);
    let (running, pauses) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let (stop, count) = (running.clone(), pauses.clone());
    machine.manager().pause_by(move || {
        assert!(stop.swap(false, Ordering::SeqCst), "stopped twice");
        count.fetch_add(1, Ordering::SeqCst);
        Running(stop.clone())
    });
    let expect = |what: &str, expected: usize, update: &dyn Fn(&mut memory_model::RegionTree)| {
        let before = pauses.load(Ordering::SeqCst);
        let _ = machine.space.update(|tree| {
            update(tree);
            Ok::<_, memory_model::MemoryError>(())
        });
        assert_eq!(pauses.load(Ordering::SeqCst) - before, expected, "{what}");
        assert!(running.load(Ordering::SeqCst), "{what}: still stopped");
    };
    expect("a window moves away", 0, &|tree| tree.set_offset(machine.window, 0x9000 * PAGE).unwrap());
    expect("a slot splits", 1, &|tree| tree.set_enabled(machine.device, true).unwrap());
    machine.kernel.take();
    machine.kernel.refuse(1, Errno::ENOMEM);
    expect("a merge that fails", 1, &|tree| tree.set_enabled(machine.device, false).unwrap());
    machine.kernel.take();
    expect("a slot moves onto its own place", 1, &|tree| tree.set_offset(machine.ram, PAGE).unwrap());
    // Nothing takes its place, but its last writes must be in the log (R9).
    expect("a logged slot goes", 1, &|tree| tree.set_enabled(machine.window, false).unwrap());
    machine.kernel.take();
}
