//! What is printed of a guest that does not pass.

mod support;

use guest_tests::Image;
use harness::{Mmu, run_guest};
use support::ElfBuilder;

fn built_in(name: &str) -> Image {
    let guest = guest_tests::built_in().find(|guest| guest.name == name).expect("a built-in guest");
    Image::parse(guest.elf).expect("a good ELF file")
}

/// `mov edi, 0x2000000; mov [rdi], rdi; ud2`.
const CRASH: &[u8] = &[0xbf, 0, 0, 0, 2, 0x48, 0x89, 0x3f, 0x0f, 0x0b];

#[test]
fn an_explanation_has_the_verdicts_reason_first_then_the_guests_last_moments() {
    for mmu in [Mmu::Ept, Mmu::Npt, Mmu::Shadow] {
        let manifest = "[[region]]\nname = \"dev\\u0007ice\"\nkind = 'mmio'\ngpa = 0x2000000\nsize = '4K'\n";
        let image = Image::parse(ElfBuilder::new(CRASH).manifest(manifest).build()).unwrap();
        let report = run_guest("crash", &image, mmu).unwrap();
        let text = report.explanation();
        let places: Vec<_> = [
            "ending: the guest cannot go on: Shutdown\n",
            "last exits:\n    MMIO write of 0x2000000, 8 bytes, at 0x2000000\n    Shutdown\n",
            "registers of vCPU 0:\n    rip=0000000000100008",
            "       0x100005                    48 89 3f                        mov [rdi],rdi\n    => 0x100008                    0f 0b                           ud2\n",
            "memory:\n    0x0-0xffffff             ram   ram           slot 0    HVA 0x",
            "    0x2000000-0x2000fff      mmio  device",
        ]
        .map(|part| text.find(part).unwrap_or_else(|| panic!("{mmu}: {part:?} is missing in\n{text}")))
        .to_vec();
        assert!(places.is_sorted(), "{text}");
        assert!(text.starts_with("ending: "), "{text}");
    }
}

#[test]
fn an_explanation_shows_the_broken_chain_with_what_was_expected_and_found() {
    let image = built_in("first_touch");
    let mut manifest = image.manifest().clone();
    manifest.expect.pages[0].holds = Some(guest_tests::Holds::Value(7));
    let report = run_guest("lying", &image.with_manifest(manifest).unwrap(), Mmu::Ept).unwrap();
    let text = report.explanation();
    let mut lines = text.lines();
    assert!(
        lines
            .next()
            .unwrap()
            .starts_with("page 0x101000, GPA -> HVA, content: expected 0x7, found 0x101000 at 0x")
    );
    assert!(
        text.contains(
            "... and 56 more\nthe first page that is wrong:\n    GVA 0x101000\n        PML4 0x8000"
        ),
        "{text}"
    );
    assert!(
        text.contains(
            " -> GPA 0x101000  (4K page of the guest)\n        WRONG GPA -> HVA, content: expected 0x7"
        ),
        "{text}"
    );
    // The symbols of the file say where it was.
    assert!(text.contains("start+0x"), "{text}");
    let passed = run_guest("first_touch", &built_in("first_touch"), Mmu::Ept).unwrap();
    assert_eq!((passed.explanation(), passed.scene), (String::new(), None));
}
