//! Copies to and from RAM blocks. Without feature `host` no block is mapped.

#[cfg(feature = "host")]
pub(super) use mapped::{read, write};
#[cfg(not(feature = "host"))]
pub(super) use unmapped::{read, write};

#[cfg(feature = "host")]
mod mapped {
    use vm_memory::{ByteValued, VolatileMemory, VolatileSlice};

    use crate::{DirtyClients, MemTxError, RamBlock};

    /// Reads from `offset` on: 1, 2, 4 or 8 bytes by one load of that width (rule R8), others as it comes.
    #[inline]
    pub(in crate::access) fn read(block: &RamBlock, offset: u64, buf: &mut [u8]) -> Result<(), MemTxError> {
        let Some(slice) = block.noting_slice(offset, buf.len(), ()) else {
            buf.fill(0);
            return Err(MemTxError::NotMapped);
        };
        match buf.len() {
            1 => load::<u8>(&slice, buf),
            2 => load::<u16>(&slice, buf),
            4 => load::<u32>(&slice, buf),
            8 => load::<u64>(&slice, buf),
            _ => _ = slice.copy_to(buf),
        }
        Ok(())
    }

    /// Writes at `offset` in the same way, and notes it for `clients`.
    #[inline]
    pub(in crate::access) fn write(
        block: &RamBlock,
        offset: u64,
        data: &[u8],
        clients: DirtyClients,
    ) -> Result<(), MemTxError> {
        let slice = block.noting_slice(offset, data.len(), ()).ok_or(MemTxError::NotMapped)?;
        match data.len() {
            1 => store::<u8>(&slice, data),
            2 => store::<u16>(&slice, data),
            4 => store::<u32>(&slice, data),
            8 => store::<u64>(&slice, data),
            _ => slice.copy_from(data),
        }
        block.mark_dirty(offset, data.len() as u64, clients);
        Ok(())
    }

    #[inline]
    fn load<T: ByteValued>(slice: &VolatileSlice<'_>, buf: &mut [u8]) {
        let word = slice.get_ref::<T>(0).expect("as long as the word").load();
        buf.copy_from_slice(word.as_slice());
    }

    #[inline]
    fn store<T: ByteValued>(slice: &VolatileSlice<'_>, data: &[u8]) {
        let mut word = T::zeroed();
        word.as_mut_slice().copy_from_slice(data);
        slice.get_ref::<T>(0).expect("as long as the word").store(word);
    }
}

#[cfg(not(feature = "host"))]
mod unmapped {
    use crate::{DirtyClients, MemTxError, RamBlock};

    pub(in crate::access) fn read(_: &RamBlock, _: u64, buf: &mut [u8]) -> Result<(), MemTxError> {
        buf.fill(0);
        Err(MemTxError::NotMapped)
    }

    pub(in crate::access) fn write(
        _: &RamBlock,
        _: u64,
        _: &[u8],
        _: DirtyClients,
    ) -> Result<(), MemTxError> {
        Err(MemTxError::NotMapped)
    }
}
