//! The header by which a file says that a Multiboot 1 loader may boot it (Multiboot Specification 0.6.96, 3.1).

use crate::GuestError;

/// The whole header lies in this much of the file.
const SEARCHED: usize = 0x2000;
const MAGIC: u32 = 0x1bad_b002;

/// What a file may ask for: modules at page boundaries (it gets none), sizes of memory (it gets them). Another of the
/// low 16 bits is a demand that this loader does not know.
const KNOWN: u32 = 1 << 0 | 1 << 1;
const DEMANDS: u32 = 0xffff;
/// The header tells where to load, not the ELF file.
const ADDRESSES: u32 = 1 << 16;

/// Finds the header: on a boundary of 4 bytes, with a sum of 0. What it asks for has to be what this loader does.
pub(crate) fn check_header(file: &[u8]) -> Result<(), GuestError> {
    let searched = &file[..file.len().min(SEARCHED)];
    let word = |offset: usize| {
        let bytes = searched.get(offset..offset + 4)?;
        bytes.try_into().ok().map(u32::from_le_bytes)
    };
    let offset = (0..searched.len()).step_by(4).find(|&offset| word(offset) == Some(MAGIC));
    let offset = offset.ok_or(GuestError::NoMultibootHeader { searched: searched.len() })?;
    let wrong = |why: String| Err(GuestError::MultibootHeader { offset, why });
    let (Some(flags), Some(checksum)) = (word(offset + 4), word(offset + 8)) else {
        return wrong("it is cut off".to_owned());
    };
    let sum = MAGIC.wrapping_add(flags).wrapping_add(checksum);
    if sum != 0 {
        return wrong(format!(
            "magic, flags {flags:#x} and checksum {checksum:#x} add up to {sum:#x}, not 0"
        ));
    }
    match flags & (DEMANDS & !KNOWN | ADDRESSES) {
        0 => Ok(()),
        unknown => wrong(format!("its flags {flags:#x} ask for {unknown:#x}, which is not supported")),
    }
}
