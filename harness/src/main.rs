//! smoke
fn main() {
    for mmu in harness::Mmu::ALL {
        for guest in guest_tests::built_in() {
            let image = match guest_tests::Image::parse(guest.elf) { Ok(i) => i, Err(e) => { println!("{}: {e}", guest.name); continue } };
            match harness::run_guest(guest.name, &image, mmu) {
                Ok(r) => println!("{mmu} {} {:?} {:?} {:?} {:?} {:?} {:?}", r.guest, r.verdict, r.checks, r.violations, r.elapsed, r.reasons.iter().take(3).collect::<Vec<_>>(), r.unchecked),
                Err(e) => println!("{mmu} {}: {e}", guest.name),
            }
        }
    }
}
