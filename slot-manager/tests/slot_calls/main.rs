//! The in-process kernel against the real one: the same calls, the same answers, the same state.

mod pair;
mod random;
mod raw;

use std::collections::BTreeMap;

use kvm_bindings::{KVM_CAP_DIRTY_LOG_RING, kvm_memory_attributes, kvm_userspace_memory_region2 as Region2};
use slot_manager::{Errno, SlotRecord, USER_END};

use pair::{Call, Host, LAST_PROBED, PAGE, Pair, region};
use random::{ARENA, IDS, Random};

/// Calls of one VM.
const CALLS: usize = 100;

/// How many calls are made: `MEMVIRT_SLOT_CALLS`, or a few thousand.
fn wanted() -> usize {
    let text = std::env::var("MEMVIRT_SLOT_CALLS").unwrap_or_else(|_| "4000".into());
    text.parse().expect("MEMVIRT_SLOT_CALLS is a number of calls")
}

#[test]
fn random_calls_get_the_kernels_answers_and_leave_the_kernels_state() {
    let Some(host) = Host::open() else { return };
    if !host.region2 {
        println!("not checked: KVM_SET_USER_MEMORY_REGION2: this kernel does not have it");
    }
    if host.caps.guest_memfd.is_none() {
        println!("not checked: guest_memfd: this kernel does not have it");
    }
    let (mut made, mut answers, wanted) = (0, BTreeMap::new(), wanted());
    for seed in 0.. {
        if made >= wanted {
            break;
        }
        let (mut pair, mut random, mut calls) = (host.pair(), Random(seed), Vec::new());
        for _ in 0..CALLS.min(wanted - made) {
            let call = random.call(&host, &pair);
            calls.push(call.clone());
            let compared = pair.call(&call).and_then(|answer| {
                *answers.entry(name(&call, answer)).or_insert(0) += 1;
                pair.compare_slot(slot_of(&call))?;
                // This takes far longer than the call it follows.
                if random.below(4) == 0 { pair.compare_page(random.below(ARENA + 200)) } else { Ok(()) }
            });
            made += 1;
            compared.unwrap_or_else(|error| panic!("seed {seed}: {error} after\n{}", history(&calls)));
        }
        let state = compare_all(&mut pair);
        state.unwrap_or_else(|error| panic!("seed {seed}: {error} at the end of\n{}", history(&calls)));
    }
    println!("{made} calls compared: {answers:?}");
    assert!(answers["done"] * 3 > made, "too many calls fail to say much about the others: {answers:?}");
}

/// An answer in one word, for the count.
fn name(call: &Call, answer: Result<u32, Errno>) -> String {
    match (answer, call) {
        (Ok(_), Call::Region2 { region: Region2 { flags: 4, memory_size: 1.., .. }, .. }) => "private".into(),
        (Ok(_), _) => "done".into(),
        (Err(errno), _) => errno.to_string(),
    }
}

fn slot_of(call: &Call) -> u32 {
    let slot = match call {
        Call::Region(region) => region.slot,
        Call::Region2 { region, .. } => region.slot,
        Call::GetLog { slot, .. } | Call::ClearLog { slot, .. } => *slot,
        _ => 0,
    };
    if IDS.contains(&slot) { slot } else { 0 }
}

fn history(calls: &[Call]) -> String {
    let lines: Vec<_> = calls.iter().map(|call| format!("  {call:x?}")).collect();
    lines.join("\n")
}

/// All there is to see from outside.
fn compare_all(pair: &mut Pair) -> Result<(), String> {
    for id in IDS {
        pair.compare_slot(id)?;
        pair.call(&Call::GetLog { slot: id, readable: true }).map(drop)?;
    }
    let edges: Vec<_> = pair.model.slots().iter().map(|slot| slot.gpa()).collect();
    for range in edges {
        let (first, last) = (range.first().page_number(), range.last().page_number());
        for page in [first.saturating_sub(1), first, last, last + 1] {
            if page <= LAST_PROBED {
                pair.compare_page(page)?;
            }
        }
    }
    Ok(())
}

#[test]
fn user_space_ends_where_the_kernel_ends_it() {
    let Some(host) = Host::open() else { return };
    let mut pair = host.pair();
    let create = |slot, size, hva| Call::Region(region(slot, 0, u64::from(slot) * 16 * PAGE, size, hva));
    if raw::set_region(&pair.vm, &region(0, 0, 0, PAGE, USER_END.0)).is_ok() {
        println!("not checked: the end of user space: this kernel's lies elsewhere");
        return;
    }
    for (hva, size, answer) in [
        (USER_END.0 - PAGE, PAGE, Ok(0)),
        (USER_END.0 - PAGE, 2 * PAGE, Err(Errno::EINVAL)),
        (USER_END.0, PAGE, Err(Errno::EINVAL)),
        (1 << 62, PAGE, Err(Errno::EINVAL)),
    ] {
        assert_eq!(pair.call(&create(2, size, hva)), Ok(answer), "{hva:#x} {size:#x}");
    }
    // Size 0 deletes, and has its host address checked all the same.
    for (hva, answer) in [(USER_END.0 + PAGE, Err(Errno::EINVAL)), (USER_END.0, Ok(0))] {
        assert_eq!(pair.call(&create(2, 0, hva)), Ok(answer), "{hva:#x}");
    }
}

#[test]
fn an_unreadable_argument_is_a_fault() {
    let Some(host) = Host::open() else { return };
    assert_eq!(raw::set_region_unreadable(&host.pair().vm), Err(Errno::EFAULT));
}

#[test]
fn without_its_flag_the_guest_memfd_counts_for_nothing() {
    let Some(host) = Host::open().filter(|host| host.region2) else { return };
    let mut pair = host.pair();
    let region = Region2 { memory_size: PAGE, guest_memfd_offset: 1, ..Default::default() };
    assert_eq!(pair.call(&Call::Region2 { region, file: None }), Ok(Ok(0)));
}

#[test]
fn rings_are_enabled_once_and_before_the_first_vcpu() {
    let Some(host) = Host::open() else { return };
    if host.pair().vm.check_extension_raw(KVM_CAP_DIRTY_LOG_RING.into()) <= 0 {
        println!("not checked: dirty rings: this kernel does not have them");
        return;
    }
    let mut pair = host.pair();
    let logged = |slot, gpa| Call::Region(region(slot, 1, gpa, PAGE, 0));
    assert_eq!(pair.call(&logged(0, 0)), Ok(Ok(0)));
    for (bytes, answer) in [
        (0, Err(Errno::EINVAL)),
        (2048, Err(Errno::EINVAL)),
        (1 << 21, Err(Errno::E2BIG)),
        (3 << 20, Err(Errno::EINVAL)),
        (4096, Ok(0)),
        (4096, Err(Errno::EINVAL)),
        (1 << 21, Err(Errno::E2BIG)),
    ] {
        assert_eq!(pair.call(&Call::Ring(bytes)), Ok(answer), "{bytes:#x}");
    }
    // No bitmap from now on, not even where there was one: ENXIO comes before all else.
    for slot in [0, 9, 0x7fff, 0x7_0000] {
        let get = Call::GetLog { slot, readable: false };
        assert_eq!(pair.call(&get), Ok(Err(Errno::ENXIO)));
        let clear = Call::ClearLog { slot, first_page: 1, num_pages: 3, mask: 0, readable: false };
        assert_eq!(pair.call(&clear), Ok(Err(Errno::ENXIO)));
    }
    assert_eq!(pair.call(&logged(1, PAGE)), Ok(Ok(0)));
    assert_eq!(pair.call(&Call::ResetRings), Ok(Ok(0)));

    let mut late = host.pair();
    late.vm.create_vcpu(0).expect("a vCPU");
    late.model.create_vcpu();
    for (bytes, errno) in [(4096, Errno::EINVAL), (1 << 21, Errno::E2BIG)] {
        assert_eq!(late.call(&Call::Ring(bytes)), Ok(Err(errno)));
    }
    assert_eq!(late.call(&Call::ResetRings), Ok(Err(Errno::EINVAL)));
}

#[test]
fn r10_attributes_are_refused_for_the_kernels_reasons() {
    let Some(host) = Host::open() else { return };
    match host.caps.memory_attributes {
        None => println!("not checked but for ENOTTY: memory attributes: this kernel does not have them"),
        Some(0) => println!("not checked: private pages: a VM of the usual type has none"),
        Some(_) => {}
    }
    let mut pair = host.pair();
    for flags in [0, 1] {
        for attributes in [0, 8, 1 << 4] {
            for address in [0, 0x800, PAGE, 1 << 60, u64::MAX << 12] {
                for size in [0, 0x10, PAGE, 2 * PAGE] {
                    let call = Call::Attributes(kvm_memory_attributes { address, size, attributes, flags });
                    let compared = pair.call(&call);
                    assert!(compared.is_ok(), "{compared:?}: {call:x?}");
                }
            }
        }
    }
}
