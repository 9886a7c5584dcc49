//! The VMM's own way to a block's bytes.

use alloc::string::ToString;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::RamBlock;
use super::mapping::Mapping;
use crate::MemoryError;

impl RamBlock {
    /// Reads `buf.len()` bytes at `offset`. The guest may write them meanwhile: any mix of old and new
    /// bytes can come.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.slice(offset, buf.len() as u64)?.copy_to(buf);
        Ok(())
    }

    /// Writes `data` at `offset`. Nobody's dirty bits are set.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.slice(offset, data.len() as u64)?.copy_from(data);
        Ok(())
    }

    /// Reads the aligned 8-byte word at `offset` in one piece.
    pub fn load_u64(&self, offset: u64) -> Result<u64, MemoryError> {
        self.word(offset).map(|(mapping, offset)| mapping.load(offset))
    }

    /// Replaces the aligned 8-byte word at `offset` if it is still `old`; gives what was found there.
    pub fn compare_exchange_u64(&self, offset: u64, old: u64, new: u64) -> Result<u64, MemoryError> {
        self.word(offset).map(|(mapping, offset)| mapping.compare_exchange(offset, old, new))
    }

    /// The bytes as vm-memory sees them.
    pub(crate) fn slice(&self, offset: u64, len: u64) -> Result<VolatileSlice<'_>, MemoryError> {
        let mapping = self.mapped()?;
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.size());
        let slice = if inside { mapping.slice(offset, len as usize, ()) } else { None };
        slice.ok_or_else(|| self.out_of_block(offset, len))
    }

    /// The same, with writes noted in `bitmap`, and for any byte that is mapped: an older view can show what
    /// the block has given up since. `None` outside the mapping, or without one.
    #[inline]
    pub(crate) fn noting_slice<B: BitmapSlice>(
        &self,
        offset: u64,
        len: usize,
        bitmap: B,
    ) -> Option<VolatileSlice<'_, B>> {
        self.host.mapping.as_ref()?.slice(offset, len, bitmap)
    }

    pub(super) fn mapped(&self) -> Result<&Mapping, MemoryError> {
        let mapping = self.host.mapping.as_ref();
        mapping.ok_or_else(|| MemoryError::NotMapped { block: self.name().to_string() })
    }

    fn word(&self, offset: u64) -> Result<(&Mapping, usize), MemoryError> {
        let inside = offset.is_multiple_of(8) && offset < self.size();
        if inside { Ok((self.mapped()?, offset as usize)) } else { Err(self.out_of_block(offset, 8)) }
    }

    pub(super) fn out_of_block(&self, offset: u64, len: u64) -> MemoryError {
        MemoryError::OutOfBlock { block: self.name().to_string(), size: self.size(), offset, len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_words_stay_inside_the_block() {
        let block = RamBlock::anonymous("ram", 0x2000).unwrap();
        block.write(0x1ffc, &[1, 2, 3, 4]).unwrap();
        let mut bytes = [0; 4];
        block.read(0x1ffc, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3, 4]);
        assert_eq!(block.load_u64(0x1ff8).unwrap(), 0x0403_0201_0000_0000);
        for (offset, len) in [(0x1ffd, 4), (0x2000, 1), (u64::MAX, 2)] {
            let error = block.read(offset, &mut vec![0; len]).unwrap_err();
            assert!(matches!(error, MemoryError::OutOfBlock { .. }), "{offset:#x}: {error}");
        }
        assert!(block.load_u64(0x1ffc).is_err() && block.load_u64(0x2000).is_err());
    }

    #[test]
    fn compare_exchange_tells_what_it_found() {
        let block = RamBlock::memfd("ram", 0x1000).unwrap();
        assert!(block.fd().is_some());
        assert_eq!(block.compare_exchange_u64(8, 0, 5).unwrap(), 0);
        assert_eq!(block.compare_exchange_u64(8, 0, 6).unwrap(), 5);
        assert_eq!(block.load_u64(8).unwrap(), 5);
    }
}
