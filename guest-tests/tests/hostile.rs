//! Files and manifests from anywhere: each is read or refused, never a panic; and what was read is sound.

use guest_tests::{Image, MAX_GPA, Manifest, built_in};
use proptest::collection::vec;
use proptest::prelude::*;

/// The smallest of the built-in guests of that class, 32 or 64 bits: most of its bytes mean something.
fn small_elf(has_64_bits: bool) -> Vec<u8> {
    let of_class = built_in().map(|guest| guest.elf).filter(|elf| elf[4] == 1 + u8::from(has_64_bits));
    of_class.min_by_key(|elf| elf.len()).expect("there are guests of both").to_vec()
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
    fn a_guest_with_changed_bytes_is_read_or_refused(has_64_bits: bool, changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut elf = small_elf(has_64_bits);
        // Mostly the headers: the code means nothing to the reader.
        let headers: Vec<usize> = (0..64 + 4 * 56).chain(elf.len().saturating_sub(12 * 64)..elf.len()).collect();
        for (at, value) in changes {
            let at = *at.get(&headers);
            elf[at] = value;
        }
        if let Ok(image) = Image::parse(elf) {
            check(&image);
        }
    }

    #[test]
    fn a_truncated_guest_is_read_or_refused(has_64_bits: bool, length in any::<prop::sample::Index>()) {
        let elf = small_elf(has_64_bits);
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

#[test]
fn every_built_in_guest_is_sound_and_says_what_it_shows() {
    let mut count = 0;
    for guest in built_in() {
        let image = Image::parse(guest.elf).unwrap_or_else(|error| panic!("{}: {error}", guest.name));
        check(&image);
        assert!(!image.manifest().summary.is_empty(), "{} has no summary", guest.name);
        count += 1;
    }
    assert!(count >= 10);
}
