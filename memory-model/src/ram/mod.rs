//! RAM blocks: the host memory behind RAM regions (QEMU's `RAMBlock`).

#[cfg(feature = "host")]
mod mapping;

use alloc::string::ToString;
use alloc::sync::Arc;
use core::fmt;

use crate::{Hva, MemoryError, PageSize};

/// A stretch of host memory with a name. The mapping goes when the last `Arc` goes: whoever hands its
/// address to somebody else (a memory slot, say) holds one as long as the address is in use.
pub struct RamBlock {
    name: Arc<str>,
    hva: Hva,
    size: u64,
    #[cfg(feature = "host")]
    mapping: Option<mapping::Mapping>,
}

impl RamBlock {
    /// Describes memory that somebody else mapped (a hypervisor, another process). It can be placed,
    /// looked up and translated; its bytes cannot be read or written through this block.
    pub fn foreign(name: &str, hva: Hva, size: u64) -> Result<Arc<Self>, MemoryError> {
        check_size(name, size)?;
        Ok(Arc::new(Self {
            name: name.into(),
            hva,
            size,
            #[cfg(feature = "host")]
            mapping: None,
        }))
    }

    /// The name given at creation.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Where it starts in this process.
    pub fn hva(&self) -> Hva {
        self.hva
    }

    /// Its size in bytes: whole pages.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes from the block's start to `hva`, if `hva` lies inside.
    pub fn offset_of(&self, hva: Hva) -> Option<u64> {
        hva.checked_sub(self.hva).filter(|&offset| offset < self.size)
    }
}

#[cfg(feature = "host")]
impl RamBlock {
    /// Private anonymous memory, zero until touched.
    pub fn anonymous(name: &str, size: u64) -> Result<Arc<Self>, MemoryError> {
        Self::map(name, size, None)
    }

    /// Shared memory behind a memfd, so that other processes can map it too.
    pub fn memfd(name: &str, size: u64) -> Result<Arc<Self>, MemoryError> {
        check_size(name, size)?;
        let refused =
            |action| move |source| MemoryError::Host { block: name.to_string(), size, action, source };
        let fd = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(refused("creating a memfd"))?;
        rustix::fs::ftruncate(&fd, size).map_err(refused("sizing the memfd"))?;
        Self::map(name, size, Some(fd))
    }

    fn map(name: &str, size: u64, fd: Option<rustix::fd::OwnedFd>) -> Result<Arc<Self>, MemoryError> {
        check_size(name, size)?;
        let refused = |source| MemoryError::Host { block: name.to_string(), size, action: "mapping", source };
        let length = usize::try_from(size).map_err(|_| refused(rustix::io::Errno::NOMEM))?;
        let mapping = mapping::Mapping::new(length, fd).map_err(refused)?;
        Ok(Arc::new(Self { name: name.into(), hva: mapping.hva(), size, mapping: Some(mapping) }))
    }

    /// The memfd behind a shared block.
    pub fn fd(&self) -> Option<rustix::fd::BorrowedFd<'_>> {
        self.mapping.as_ref()?.fd()
    }

    /// Reads `buf.len()` bytes at `offset`. The guest may write them meanwhile: any mix of old and new
    /// bytes can come.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.slice(offset, buf.len() as u64)?.copy_to(buf);
        Ok(())
    }

    /// Writes `data` at `offset`.
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
    pub(crate) fn slice(&self, offset: u64, len: u64) -> Result<vm_memory::VolatileSlice<'_>, MemoryError> {
        let mapping = self.mapped()?;
        let end = offset.checked_add(len).filter(|&end| end <= self.size);
        end.ok_or_else(|| self.out_of_block(offset, len))?;
        Ok(mapping.slice(offset as usize, len as usize))
    }

    fn word(&self, offset: u64) -> Result<(&mapping::Mapping, usize), MemoryError> {
        let inside = offset.is_multiple_of(8) && offset < self.size;
        if inside { Ok((self.mapped()?, offset as usize)) } else { Err(self.out_of_block(offset, 8)) }
    }

    fn mapped(&self) -> Result<&mapping::Mapping, MemoryError> {
        self.mapping.as_ref().ok_or_else(|| MemoryError::NotMapped { block: self.name.to_string() })
    }

    fn out_of_block(&self, offset: u64, len: u64) -> MemoryError {
        MemoryError::OutOfBlock { block: self.name.to_string(), size: self.size, offset, len }
    }
}

fn check_size(name: &str, size: u64) -> Result<(), MemoryError> {
    let page = PageSize::Size4K.bytes();
    if size == 0 || !size.is_multiple_of(page) {
        return Err(MemoryError::BlockSize { block: name.to_string(), size, page });
    }
    Ok(())
}

impl fmt::Debug for RamBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RamBlock({} {:#x} bytes at {})", self.name, self.size, self.hva)
    }
}

#[cfg(all(test, feature = "host"))]
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

    #[test]
    fn sizes_that_are_not_whole_pages_and_memory_that_is_not_ours_are_refused() {
        for size in [0, 1, 0xfff, 0x1001] {
            assert!(matches!(RamBlock::anonymous("ram", size), Err(MemoryError::BlockSize { .. })));
        }
        let error = RamBlock::anonymous("huge", 1 << 62).unwrap_err();
        assert_eq!(error.to_string(), "RAM block huge of 0x4000000000000000 bytes: mapping failed");
        let foreign = RamBlock::foreign("theirs", Hva(0x1000), 0x1000).unwrap();
        assert!(matches!(foreign.read(0, &mut [0]), Err(MemoryError::NotMapped { .. })));
    }

    #[test]
    fn large_blocks_start_at_a_huge_page() {
        let block = RamBlock::anonymous("ram", 0x40_0000).unwrap();
        assert!(block.hva().is_aligned(PageSize::Size2M));
    }
}
