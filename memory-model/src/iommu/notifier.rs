//! Telling those who keep translations when they end.

use core::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError, Weak};

type OnUnmap = dyn Fn(RangeInclusive<u64>) + Send + Sync;

/// Those who keep translations of one IOMMU (QEMU's list of `IOMMUNotifier`s).
#[derive(Default)]
pub struct IommuNotifiers {
    registered: Mutex<Vec<Weak<IommuNotifier>>>,
}

/// One registration. It ends when this is dropped.
pub struct IommuNotifier {
    range: RangeInclusive<u64>,
    on_unmap: Box<OnUnmap>,
}

impl IommuNotifiers {
    /// Calls `on_unmap` with each part of `range` whose translations end.
    pub fn register(
        &self,
        range: RangeInclusive<u64>,
        on_unmap: impl Fn(RangeInclusive<u64>) + Send + Sync + 'static,
    ) -> Arc<IommuNotifier> {
        let notifier = Arc::new(IommuNotifier { range, on_unmap: Box::new(on_unmap) });
        let mut registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        registered.retain(|known| known.strong_count() > 0);
        registered.push(Arc::downgrade(&notifier));
        notifier
    }

    /// The IOMMU's part: tells that nothing in `range` is translated as before.
    pub fn unmapped(&self, range: RangeInclusive<u64>) {
        // Called without the lock: what is told may register or drop.
        let registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for notifier in registered.iter().filter_map(Weak::upgrade) {
            let first = *range.start().max(notifier.range.start());
            let last = *range.end().min(notifier.range.end());
            if first <= last {
                (notifier.on_unmap)(first..=last);
            }
        }
    }
}
