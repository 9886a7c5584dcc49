//! What a device is asked, in which order, and when it is left alone.

use std::sync::{Arc, Mutex, OnceLock};

use memory_model::{
    AccessError, AccessRules, AccessSizes, AddressSpace, Gpa, MAX_NESTING, MemTxAttrs, MemTxError, MmioOps,
    Reentry,
};

use crate::device::{Call, Device, space_of, space_with};

const DECODE: MemTxError = MemTxError::Decode;

#[test]
fn r33_the_hook_is_asked_first_and_what_it_refuses_reads_0() {
    let mut device =
        Device::new(AccessRules { implemented_unaligned: true, ..AccessRules::DEFAULT }, vec![0xff; 16]);
    for accepts in [true, false] {
        device.accepts = Some(accepts);
        let ops = Arc::new(device);
        let view = space_with(ops.clone()).view();
        // Off its alignment, too: the hook is asked all the same, and then nobody is.
        let mut word = [0xaa; 4];
        let error = view.bus().read(Gpa(1), &mut word).unwrap_err();
        assert_eq!((error.source, word), (DECODE, [0; 4]));
        assert_eq!(ops.calls(), [Call::Asked { offset: 1, size: 4, write: false }]);
        // On it, the hook's word is the last one.
        assert_eq!(view.bus().write(Gpa(4), &[1, 2]).is_ok(), accepts);
        let asked = Call::Asked { offset: 4, size: 2, write: true };
        let written = Call::Write { offset: 4, size: 2, value: 0x201 };
        assert_eq!(ops.calls(), if accepts { vec![asked, written] } else { vec![asked] });
        drop(view);
        device = Arc::into_inner(ops).expect("the space and its views are gone");
    }
}

#[test]
fn r33_sizes_out_of_bounds_are_a_decode_error() {
    let rules = AccessRules { valid: Some(AccessSizes::new(2, 4)), ..AccessRules::DEFAULT };
    let device = Device::counting(rules);
    let view = space_with(device.clone()).view();
    let mut byte = [0xaa];
    assert_eq!(view.bus().read(Gpa(4), &mut byte), Err(AccessError { gpa: Gpa(4), source: DECODE }));
    assert_eq!(byte, [0]);
    assert_eq!(view.bus().write(Gpa(4), &[1]), Err(AccessError { gpa: Gpa(4), source: DECODE }));
    assert_eq!(device.calls(), []);
    // Part of an access can fail: the first byte here, while the rest goes through.
    let mut bytes = [0xaa; 3];
    assert_eq!(view.bus().read(Gpa(5), &mut bytes), Err(AccessError { gpa: Gpa(5), source: DECODE }));
    assert_eq!(bytes, [0, 6, 7]);
}

#[test]
fn r33_without_bounds_every_size_is_valid() {
    let device =
        Device::counting(AccessRules { implemented: AccessSizes::new(1, 8), ..AccessRules::DEFAULT });
    let view = space_with(device.clone()).view();
    for size in [1, 2, 4] {
        view.bus().write(Gpa(8), &vec![1; size]).unwrap();
    }
    // 8 too, in two steps: without bounds a step has 4 bytes at most.
    view.bus().write(Gpa(8), &[1; 8]).unwrap();
    assert_eq!(device.calls().len(), 5);
}

/// A device that fails.
struct Failing(MemTxError);

impl MmioOps for Failing {
    fn read(&self, offset: u64, _: u8, _: MemTxAttrs) -> Result<u64, MemTxError> {
        if offset == 0 { Err(self.0) } else { Ok(0x1111) }
    }
    fn write(&self, _: u64, _: u8, _: u64, _: MemTxAttrs) -> Result<(), MemTxError> {
        Err(self.0)
    }
    fn rules(&self) -> AccessRules {
        AccessRules { implemented: AccessSizes::new(1, 2), ..AccessRules::DEFAULT }
    }
}

#[test]
fn a_device_that_fails_is_heard_and_the_rest_of_the_access_goes_on() {
    let view = space_with(Arc::new(Failing(MemTxError::Device))).view();
    let failed = Err(AccessError { gpa: Gpa(0), source: MemTxError::Device });
    let mut bytes = [0xaa; 8];
    assert_eq!(view.bus().read(Gpa(0), &mut bytes), failed);
    assert_eq!(bytes, [0, 0, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11]);
    assert_eq!(view.bus().write(Gpa(0), &[0; 2]), failed);
}

/// A device whose attributes matter.
#[derive(Default)]
struct Secret(Mutex<Vec<MemTxAttrs>>);

impl MmioOps for Secret {
    fn read(&self, _: u64, _: u8, attrs: MemTxAttrs) -> Result<u64, MemTxError> {
        self.0.lock().unwrap().push(attrs);
        Ok(0)
    }
    fn write(&self, _: u64, _: u8, _: u64, attrs: MemTxAttrs) -> Result<(), MemTxError> {
        self.0.lock().unwrap().push(attrs);
        Ok(())
    }
    fn accepts(&self, _: u64, _: u8, _: bool, attrs: MemTxAttrs) -> bool {
        attrs.secure
    }
}

#[test]
fn a_device_hears_who_accesses() {
    let device = Arc::new(Secret::default());
    let view = space_with(device.clone()).view();
    assert_eq!(view.bus().write(Gpa(0), &[0]).unwrap_err().source, DECODE);
    let attrs = MemTxAttrs { requester: 0x18, secure: true };
    view.bus().attrs(attrs).write(Gpa(0), &[0]).unwrap();
    view.bus().attrs(attrs).read(Gpa(0), &mut [0]).unwrap();
    assert_eq!(*device.0.lock().unwrap(), [attrs, attrs]);
}

/// A device that writes a byte to `to` whenever it is written itself.
struct Dma {
    space: OnceLock<Arc<AddressSpace>>,
    to: Gpa,
    reentry: Reentry,
    results: Mutex<Vec<Result<(), AccessError>>>,
}

impl Dma {
    fn new(to: u64, reentry: Reentry) -> Arc<Self> {
        Arc::new(Self { space: OnceLock::new(), to: Gpa(to), reentry, results: Mutex::default() })
    }
}

impl MmioOps for Dma {
    fn read(&self, _: u64, _: u8, _: MemTxAttrs) -> Result<u64, MemTxError> {
        Ok(0)
    }
    fn write(&self, _: u64, _: u8, _: u64, _: MemTxAttrs) -> Result<(), MemTxError> {
        let result = self.space.get().unwrap().view().bus().write(self.to, &[1]);
        self.results.lock().unwrap().push(result);
        Ok(())
    }
    fn rules(&self) -> AccessRules {
        AccessRules { reentry: self.reentry, ..AccessRules::DEFAULT }
    }
}

/// A space with these devices, one a page, which they access.
fn space_of_dmas(devices: &[&Arc<Dma>]) -> Arc<AddressSpace> {
    let space = Arc::new(space_of(|tree| {
        for (index, &device) in devices.iter().enumerate() {
            let region = tree.mmio("dma", 0x1000, device.clone())?;
            tree.add(tree.root(), 0x1000 * index as u64, region)?;
        }
        Ok(())
    }));
    devices.iter().for_each(|device| assert!(device.space.set(space.clone()).is_ok()));
    space
}

fn refused(at: u64) -> Result<(), AccessError> {
    Err(AccessError { gpa: Gpa(at), source: MemTxError::Access })
}

#[test]
fn r37_a_device_that_accesses_itself_gets_an_access_error() {
    let device = Dma::new(0x10, Reentry::Refused);
    let space = space_of_dmas(&[&device]);
    for _ in 0..2 {
        space.view().bus().write(Gpa(0), &[1]).unwrap();
    }
    assert_eq!(*device.results.lock().unwrap(), [refused(0x10), refused(0x10)]);
}

#[test]
fn r37_a_detour_through_another_device_is_re_entry_too() {
    let (one, two) = (Dma::new(0x1000, Reentry::Refused), Dma::new(0x10, Reentry::Refused));
    let space = space_of_dmas(&[&one, &two]);
    space.view().bus().write(Gpa(0), &[1]).unwrap();
    assert_eq!(*one.results.lock().unwrap(), [Ok(())]);
    assert_eq!(*two.results.lock().unwrap(), [refused(0x10)]);
}

#[test]
fn r37_regions_of_one_device_are_guarded_together() {
    let device = |to| Dma::new(to, Reentry::RefusedWithin(7));
    let (one, two) = (device(0x1000), device(0));
    let space = space_of_dmas(&[&one, &two]);
    space.view().bus().write(Gpa(0), &[1]).unwrap();
    assert_eq!(*one.results.lock().unwrap(), [refused(0x1000)]);
    assert_eq!(*two.results.lock().unwrap(), []);
}

#[test]
fn r37_a_region_can_opt_out_and_is_called_again_to_a_bounded_depth() {
    let device = Dma::new(0, Reentry::Allowed);
    let space = space_of_dmas(&[&device]);
    space.view().bus().write(Gpa(0), &[1]).unwrap();
    let results = device.results.lock().unwrap();
    assert_eq!(results.len(), MAX_NESTING);
    assert_eq!((results[0], results[1]), (refused(0), Ok(())), "only the innermost is refused");
}

/// A device that panics when it is read, and counts its writes.
struct Panicking;

impl MmioOps for Panicking {
    fn read(&self, _: u64, _: u8, _: MemTxAttrs) -> Result<u64, MemTxError> {
        panic!("a bug of the device")
    }
    fn write(&self, _: u64, _: u8, _: u64, _: MemTxAttrs) -> Result<(), MemTxError> {
        Ok(())
    }
}

#[test]
fn r37_a_panic_in_a_device_does_not_leave_it_locked() {
    let view = space_with(Arc::new(Panicking)).view();
    let read = std::panic::AssertUnwindSafe(|| view.bus().read(Gpa(0), &mut [0]));
    assert!(std::panic::catch_unwind(read).is_err());
    view.bus().write(Gpa(0), &[1]).unwrap();
}
