//! Whatever the host does to memory while a guest runs, all second-level tables are right afterwards, and nothing panics.

mod support;

use std::fmt::Write;

use guest_tests::Image;
use harness::{Mmu, Report, run_guest};
use proptest::prelude::*;
use support::ElfBuilder;

/// Touches a word in each page of all regions, rings bell `n`, and so on for n from 0 to 5; then it reports. A page fault
/// would end it, but all is mapped.
///
/// ```text
///     xor ebx, ebx
/// 1:  mov esi, 0x4000000
/// 2:  inc qword ptr [rsi]
///     add esi, 0x1000
///     cmp esi, 0x4030000
///     jb 2b
///     mov eax, ebx
///     out 0xf8, al
///     inc ebx
///     cmp ebx, 6
///     jb 1b
///     mov al, 0x10
///     out 0xf4, al
/// ```
const CODE: &[u8] = &[
    0x31, 0xdb, 0xbe, 0, 0, 0, 4, 0x48, 0xff, 0x06, 0x81, 0xc6, 0, 0x10, 0, 0, 0x81, 0xfe, 0, 0, 3, 4, 0x72,
    0xef, 0x89, 0xd8, 0xe6, 0xf8, 0xff, 0xc3, 0x83, 0xfb, 6, 0x72, 0xdf, 0xb0, 0x10, 0xe6, 0xf4,
];

/// RAM, a window on it, ROM over a part, a device, flash: they overlap as they like, as each has a priority of its own.
const REGIONS: &str = "
    [[region]]
    name = 'ram0'
    kind = 'ram'
    gpa = 0x4000000
    size = '64K'
    [[region]]
    name = 'ram1'
    kind = 'ram'
    gpa = 0x4010000
    size = '64K'
    priority = 1
    [[region]]
    name = 'window'
    kind = 'alias'
    target = 'ram0'
    gpa = 0x4020000
    size = '32K'
    priority = 2
    [[region]]
    name = 'rom'
    kind = 'rom'
    gpa = 0x4028000
    size = '8K'
    priority = 3
    [[region]]
    name = 'flash'
    kind = 'rom-device'
    gpa = 0x402c000
    size = '16K'
    priority = 4
    [[map]]
    gva = 0x4000000
    gpa = 0x4000000
    size = '256K'
    [budget]
    instructions = 100000
";

fn region() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&["ram0", "ram1", "window", "rom", "flash"][..])
}

/// A page among those that the guest touches.
fn page() -> impl Strategy<Value = u64> {
    (0..0x30u64).prop_map(|page| 0x400_0000 + page * 0x1000)
}

/// What the host does, without the occasion.
fn action() -> impl Strategy<Value = String> {
    let change =
        (prop::sample::select(&["enable", "disable", "read-only", "writable", "log", "unlog"][..]), region());
    prop_oneof![
        4 => change.prop_map(|(verb, region)| format!("do = '{verb}'\nregion = '{region}'")),
        2 => (region(), page()).prop_map(|(region, gpa)| format!("do = 'move'\nregion = '{region}'\ngpa = {gpa}")),
        1 => (region(), -9..9).prop_map(|(region, priority)| format!("do = 'prioritize'\nregion = '{region}'\npriority = {priority}")),
        1 => (region(), 1..16u64).prop_map(|(region, pages)| format!("do = 'resize'\nregion = '{region}'\nsize = {}", pages << 12)),
        1 => (0..8u64).prop_map(|page| format!("do = 'shift'\nregion = 'window'\noffset = {}", page << 12)),
        1 => prop::sample::select(&["direct", "trap"][..]).prop_map(|verb| format!("do = '{verb}'\nregion = 'flash'")),
        3 => (prop::sample::select(&["discard", "migrate"][..]), page(), 1..4u64)
            .prop_map(|(verb, at, pages)| format!("do = '{verb}'\nat = {at}\nsize = {}", pages << 12)),
        1 => page().prop_map(|at| format!("do = 'store'\nat = {at}\nvalue = 7")),
        1 => prop::sample::select(&["ram0", "ram1"][..]).prop_map(|region| format!("do = 'dirty'\nregion = '{region}'\npages = []")),
    ]
}

fn guest(steps: &[(u8, String)]) -> Image {
    let mut manifest = REGIONS.to_owned();
    for (bell, action) in steps {
        write!(manifest, "[[step]]\non = {bell}\n{action}\n").unwrap();
    }
    Image::parse(ElfBuilder::new(CODE).manifest(&manifest).build()).unwrap()
}

/// What is wrong with second-level tables, of all that is.
fn wrong_tables(report: &Report) -> Vec<&String> {
    report.reasons.iter().filter(|reason| reason.contains("all second-level tables")).collect()
}

fn check(mmu: Mmu, steps: &[(u8, String)]) -> Result<(), TestCaseError> {
    // A step about memory that is not there any more ends the run: that is an error, and no more.
    if let Ok(report) = run_guest("random", &guest(steps), mmu) {
        prop_assert!(wrong_tables(&report).is_empty(), "{mmu}: {:#?}", wrong_tables(&report));
        prop_assert!(report.run.is_some());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn tables_are_right_on_the_software_machines(steps in prop::collection::vec((0..6u8, action()), 0..16)) {
        for mmu in [Mmu::Ept, Mmu::Npt, Mmu::Shadow] {
            check(mmu, &steps)?;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn tables_are_right_on_kvm(steps in prop::collection::vec((0..6u8, action()), 0..16)) {
        match Mmu::Kvm.unavailable() {
            Some(why) => println!("not checked: {why}"),
            None => check(Mmu::Kvm, &steps)?,
        }
    }
}

#[test]
fn the_guest_itself_runs_to_its_end() {
    let steps: Vec<_> =
        (0..6).map(|bell| (bell, "do = 'store'\nat = 0x4000ff8\nvalue = 7".to_owned())).collect();
    for mmu in Mmu::ALL {
        if let Some(why) = mmu.unavailable() {
            println!("not checked on {mmu}: {why}");
            continue;
        }
        let report = run_guest("random", &guest(&steps), mmu).unwrap();
        assert_eq!(report.reasons, Vec::<String>::new(), "{mmu}");
    }
}
