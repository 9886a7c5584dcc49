//! Devices that do nothing.

use memory_model::{Access, IommuEntry, IommuOps, MemTxAttrs, MemTxError, MmioOps};

pub struct NoDevice;

impl MmioOps for NoDevice {
    fn read(&self, _offset: u64, _size: u8, _attrs: MemTxAttrs) -> Result<u64, MemTxError> {
        Ok(0)
    }
    fn write(&self, _offset: u64, _size: u8, _value: u64, _attrs: MemTxAttrs) -> Result<(), MemTxError> {
        Ok(())
    }
}

pub struct NoTranslation;

impl IommuOps for NoTranslation {
    fn translate(&self, _iova: u64, _access: Access, _attrs: MemTxAttrs) -> Option<IommuEntry> {
        None
    }
}
