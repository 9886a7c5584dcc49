//! The note by which an ELF file says that a PVH loader may boot it (Xen's `public/elfnote.h`).

use goblin::elf::Elf;

use crate::GuestError;

/// `XEN_ELFNOTE_PHYS32_ENTRY`: the physical address of the 32-bit entry.
const PHYS32_ENTRY: u32 = 18;

/// The entry that the note names, if there is one.
pub(crate) fn entry(elf: &Elf<'_>, file: &[u8]) -> Result<Option<u32>, GuestError> {
    let mut notes = elf.iter_note_headers(file).into_iter().flatten().map_while(Result::ok);
    let Some(note) = notes.find(|note| note.n_type == PHYS32_ENTRY && note.name == "Xen") else {
        return Ok(None);
    };
    // It has the size of the file's addresses.
    let value = match *note.desc {
        [a, b, c, d] | [a, b, c, d, 0, 0, 0, 0] => u32::from_le_bytes([a, b, c, d]),
        _ => return Err(GuestError::PvhNote { bytes: note.desc.len() }),
    };
    Ok(Some(value))
}
