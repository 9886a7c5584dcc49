//! Files and manifests from anywhere: each is read or refused, never a panic; and what was read is sound.

use std::sync::LazyLock;

use guest_tests::{BootSpec, Image, MAX_GPA, Manifest, built_in};
use proptest::collection::vec;
use proptest::prelude::*;

/// How an ELF file is started.
const BOOTS: [BootSpec; 3] = [BootSpec::Long, BootSpec::Multiboot, BootSpec::Pvh];

/// The smallest of the built-in guests that is started so: most of its bytes mean something.
fn small_elf(boot: BootSpec) -> Vec<u8> {
    static SMALLEST: LazyLock<[&[u8]; 3]> = LazyLock::new(|| BOOTS.map(smallest));
    let index = BOOTS.iter().position(|&known| known == boot).expect("one of them");
    SMALLEST[index].to_vec()
}

fn smallest(boot: BootSpec) -> &'static [u8] {
    let starts_so = |elf: &&'static [u8]| Image::parse(*elf).is_ok_and(|image| image.boot() == boot);
    let elfs = built_in().map(|guest| guest.elf).filter(starts_so);
    elfs.min_by_key(|elf| elf.len()).expect("there are guests of all")
}

/// What an image promises to those who load it.
fn check(image: &Image) {
    let segments = image.segments();
    for pair in segments.windows(2) {
        assert!(pair[0].memory.last() < pair[1].memory.first());
    }
    for segment in segments {
        assert!(u128::from(segment.file_bytes) <= segment.memory.bytes());
        assert_eq!(image.bytes_of(segment).len() as u64, segment.file_bytes);
    }
    let holds_entry =
        |segment: &&guest_tests::Segment| segment.memory.contains(memory_model::Gpa(image.entry()));
    assert!(segments.iter().find(holds_entry).is_some_and(|segment| segment.executable));
    check_manifest(image.manifest());
}

fn check_manifest(manifest: &Manifest) {
    for region in &manifest.regions {
        assert!(
            region.size.0 > 0 && region.size.0.is_multiple_of(0x1000) && region.gpa.0.is_multiple_of(0x1000)
        );
        assert!(region.gpa.0.checked_add(region.size.0).is_some_and(|end| end <= MAX_GPA));
    }
    for pages in &manifest.expect.pages {
        assert!(pages.count > 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn a_guest_with_changed_bytes_is_read_or_refused(boot in prop::sample::select(&BOOTS), changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut elf = small_elf(boot);
        // Mostly the headers: the code means nothing to the reader, but for a note behind it.
        let note = elf.windows(4).position(|bytes| bytes == b"Xen\0").map_or(0..0, |name| name - 12..name + 8);
        let headers: Vec<usize> = (0..64 + 4 * 56).chain(note).chain(elf.len().saturating_sub(12 * 64)..elf.len()).collect();
        for (at, value) in changes {
            let at = *at.get(&headers);
            elf[at] = value;
        }
        if let Ok(image) = Image::parse(elf) {
            check(&image);
        }
    }

    #[test]
    fn a_truncated_guest_is_read_or_refused(boot in prop::sample::select(&BOOTS), length in any::<prop::sample::Index>()) {
        let elf = small_elf(boot);
        let length = length.index(elf.len());
        if let Ok(image) = Image::parse(elf[..length].to_vec()) {
            check(&image);
        }
    }

    #[test]
    fn a_region_of_any_place_and_size_is_read_or_refused(gpa in any::<u64>(), size in any::<u64>(), shift in 0u32..52) {
        let (gpa, size) = (gpa >> shift & !0xfff, size >> shift & !0xfff);
        let text = format!("[[region]]\nname = 'r'\nkind = 'mmio'\npriority = 1\ngpa = '{gpa:#x}'\nsize = '{size:#x}'");
        if let Ok(manifest) = Manifest::parse(&text) {
            check_manifest(&manifest);
            prop_assert_eq!((manifest.regions[0].gpa.0, manifest.regions[0].size.0), (gpa, size));
        }
    }

    #[test]
    fn any_text_is_a_manifest_or_refused(text in "[\\[\\]a-z_=0-9'\"{}., \n]{0,120}") {
        if let Ok(manifest) = Manifest::parse(&text) {
            check_manifest(&manifest);
        }
    }
}

/// A note of another value than an address, and one for nobody.
#[test]
fn a_pvh_note_names_the_entry_or_is_none() {
    let elf = small_elf(BootSpec::Pvh);
    let name = elf.windows(4).position(|bytes| bytes == b"Xen\0").unwrap();
    let parse = |at: usize, bytes: &[u8]| {
        let mut changed = elf.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        Image::parse(changed).map(|image| image.entry()).map_err(|error| error.to_string())
    };
    assert_eq!(parse(0, &[]), Ok(Image::parse(elf.clone()).unwrap().entry()));
    assert_eq!(
        parse(name + 4, &0x20_0000_u32.to_le_bytes()).unwrap_err(),
        "the ELF entry point 0x200000 is in no executable segment"
    );
    assert_eq!(
        parse(name - 8, &[3]).unwrap_err(),
        "the ELF note XEN_ELFNOTE_PHYS32_ENTRY has 0x3 bytes that are no 32-bit address"
    );
    let asks = "manifest line 5, column 8: machine.boot: `pvh` needs an ELF file with the note XEN_ELFNOTE_PHYS32_ENTRY";
    assert_eq!(parse(name - 4, &[17]).unwrap_err(), asks);
    assert_eq!(parse(name, b"xen").unwrap_err(), asks);
}

#[test]
fn every_built_in_guest_is_sound_and_says_what_it_shows() {
    let mut count = 0;
    for guest in built_in() {
        let image = Image::parse(guest.elf).unwrap_or_else(|error| panic!("{}: {error}", guest.name));
        check(&image);
        assert!(!image.manifest().summary.is_empty(), "{} has no summary", guest.name);
        count += 1;
    }
    assert!(count >= 110);
}
