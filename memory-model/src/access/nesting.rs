//! The guard against devices that access themselves (rule R37).
//!
//! A thread notes the devices it is inside of. What matters is the thread's own way in: a device may be in
//! use by many threads at once, and that is no re-entry. Without feature `host` there are no threads to tell
//! apart, and nothing is guarded.

#[cfg(feature = "host")]
pub(super) use with_threads::{Inside, enter, enter_iommu};
#[cfg(not(feature = "host"))]
pub(super) use without_threads::{Inside, enter, enter_iommu};

#[cfg(feature = "host")]
mod with_threads {
    use core::cell::Cell;
    use core::marker::PhantomData;

    use crate::{IommuOps, MAX_NESTING, MemTxError, MmioOps, Reentry};

    std::thread_local! {
        static THREAD: Nesting = const { Nesting { depth: Cell::new(0), devices: [const { Cell::new(0) }; MAX_NESTING] } };
    }

    /// The devices this thread is inside of, outermost first; 0 for one that may be entered again.
    struct Nesting {
        depth: Cell<usize>,
        devices: [Cell<usize>; MAX_NESTING],
    }

    /// Being inside a device, until this is dropped: by a panic too. Belongs to the thread that went in.
    pub(in crate::access) struct Inside(PhantomData<*const ()>);

    impl Drop for Inside {
        fn drop(&mut self) {
            THREAD.with(|thread| thread.depth.set(thread.depth.get() - 1));
        }
    }

    /// Goes into a device, if this thread may.
    pub(in crate::access) fn enter(ops: &dyn MmioOps, reentry: Reentry) -> Result<Inside, MemTxError> {
        enter_device(match reentry {
            Reentry::Refused => address(ops),
            Reentry::RefusedWithin(device) => device,
            Reentry::Allowed => 0,
        })
    }

    /// Goes into an IOMMU's translation, which must not need itself.
    pub(in crate::access) fn enter_iommu(ops: &dyn IommuOps) -> Result<Inside, MemTxError> {
        enter_device(address(ops))
    }

    /// Two live objects never share it, not even those without any data: each lies in an `Arc` of its own.
    fn address<T: ?Sized>(ops: &T) -> usize {
        core::ptr::from_ref(ops).addr()
    }

    fn enter_device(device: usize) -> Result<Inside, MemTxError> {
        THREAD.with(|thread| {
            let depth = thread.depth.get();
            let entered = device != 0 && thread.devices[..depth].iter().any(|busy| busy.get() == device);
            if entered || depth == MAX_NESTING {
                return Err(MemTxError::Access);
            }
            thread.devices[depth].set(device);
            thread.depth.set(depth + 1);
            Ok(Inside(PhantomData))
        })
    }
}

#[cfg(not(feature = "host"))]
mod without_threads {
    use crate::{IommuOps, MemTxError, MmioOps, Reentry};

    pub(in crate::access) struct Inside;

    pub(in crate::access) fn enter(_: &dyn MmioOps, _: Reentry) -> Result<Inside, MemTxError> {
        Ok(Inside)
    }

    pub(in crate::access) fn enter_iommu(_: &dyn IommuOps) -> Result<Inside, MemTxError> {
        Ok(Inside)
    }
}
