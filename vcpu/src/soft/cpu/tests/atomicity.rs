//! An instruction that faults leaves everything as it was.

use proptest::prelude::*;

use super::*;

/// One- and two-byte opcodes with random operands; memory operands are mostly `[rax + disp8]`.
fn encoding() -> impl Strategy<Value = Vec<u8>> {
    let prefixes = prop::sample::subsequence(vec![0x66, 0xf3, 0x48], 0..=3);
    let opcode = prop_oneof![
        any::<u8>().prop_map(|opcode| vec![opcode]),
        any::<u8>().prop_map(|opcode| vec![0x0f, opcode])
    ];
    let modrm = prop_oneof![3 => (0u8..8).prop_map(|reg| 0x40 | reg << 3), 1 => any::<u8>()];
    (prefixes, opcode, modrm, any::<[u8; 9]>())
        .prop_map(|(prefixes, opcode, modrm, rest)| [prefixes, opcode, vec![modrm], rest.to_vec()].concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, max_global_rejects: 100_000, ..ProptestConfig::default() })]

    /// The fault comes at access `k`; delivering it fails too, so that nothing else changes the state.
    #[test]
    fn a_fault_at_any_access_changes_nothing(
        code in encoding(),
        ring in prop::sample::select(vec![0, 3]),
        k in 0u32..4,
        values in any::<[u64; 16]>(),
        flags in any::<u64>(),
    ) {
        let mut machine = Machine::new(ring, &code);
        machine.cpu.regs.gpr = values;
        for register in [Gpr::Rax, Gpr::Rsi, Gpr::Rdi, Gpr::Rsp, Gpr::Rbp] {
            machine.cpu.regs[register] = DATA + 0x200 + (values[register as usize] & 0xff0);
        }
        machine.cpu.regs.rflags = rflags::FIXED | flags & (0xcd5 & !rflags::TF);
        let before = machine.clone();
        machine.flat.accesses_left = Some(k);
        let budget = Budget::time(Duration::from_secs(60)).instructions(1);
        let exit = machine.cpu.run(&mut machine.flat, &Entry::Resume, &budget);
        // The fault, then those of its delivery: the guest is shut down.
        prop_assume!(exit == Ok(Exit::Shutdown));
        prop_assert_eq!(machine.cpu.regs, before.cpu.regs);
        let system = SystemRegs { cr2: before.cpu.system.cr2, ..machine.cpu.system };
        prop_assert_eq!(system, before.cpu.system);
        prop_assert!(machine.flat.memory == before.flat.memory);
        prop_assert_eq!(machine.cpu.retired(), 0);
    }
}
