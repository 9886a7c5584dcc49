//! `kvm_regs` and `kvm_sregs`, from and to our plain values.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

use crate::{DescriptorTable, Regs, Segment, SystemRegs};

pub(super) fn from_kvm(regs: &kvm_regs) -> Regs {
    Regs {
        gpr: [
            regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r9,
            regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ],
        rip: regs.rip,
        rflags: regs.rflags,
    }
}

pub(super) fn to_kvm(regs: &Regs) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = regs.gpr;
    let Regs { gpr: _, rip, rflags } = *regs;
    kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

pub(super) fn system_from_kvm(sregs: &kvm_sregs) -> SystemRegs {
    SystemRegs {
        cs: segment_from_kvm(&sregs.cs),
        ds: segment_from_kvm(&sregs.ds),
        es: segment_from_kvm(&sregs.es),
        fs: segment_from_kvm(&sregs.fs),
        gs: segment_from_kvm(&sregs.gs),
        ss: segment_from_kvm(&sregs.ss),
        tr: segment_from_kvm(&sregs.tr),
        ldt: segment_from_kvm(&sregs.ldt),
        gdt: DescriptorTable { base: sregs.gdt.base, limit: sregs.gdt.limit },
        idt: DescriptorTable { base: sregs.idt.base, limit: sregs.idt.limit },
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        cr8: sregs.cr8,
        efer: sregs.efer,
    }
}

/// `system` in place of what `before` held; the APIC base and pending interrupts stay.
pub(super) fn system_to_kvm(system: &SystemRegs, before: kvm_sregs) -> kvm_sregs {
    kvm_sregs {
        cs: segment_to_kvm(&system.cs),
        ds: segment_to_kvm(&system.ds),
        es: segment_to_kvm(&system.es),
        fs: segment_to_kvm(&system.fs),
        gs: segment_to_kvm(&system.gs),
        ss: segment_to_kvm(&system.ss),
        tr: segment_to_kvm(&system.tr),
        ldt: segment_to_kvm(&system.ldt),
        gdt: kvm_dtable { base: system.gdt.base, limit: system.gdt.limit, ..Default::default() },
        idt: kvm_dtable { base: system.idt.base, limit: system.idt.limit, ..Default::default() },
        cr0: system.cr0,
        cr2: system.cr2,
        cr3: system.cr3,
        cr4: system.cr4,
        cr8: system.cr8,
        efer: system.efer,
        ..before
    }
}

fn segment_from_kvm(segment: &kvm_segment) -> Segment {
    Segment {
        selector: segment.selector,
        base: segment.base,
        limit: segment.limit,
        kind: segment.type_,
        dpl: segment.dpl,
        code_or_data: segment.s != 0,
        long: segment.l != 0,
        db: segment.db != 0,
        present: segment.present != 0 && segment.unusable == 0,
    }
}

fn segment_to_kvm(segment: &Segment) -> kvm_segment {
    kvm_segment {
        selector: segment.selector,
        base: segment.base,
        limit: segment.limit,
        type_: segment.kind,
        dpl: segment.dpl,
        s: segment.code_or_data.into(),
        l: segment.long.into(),
        db: segment.db.into(),
        present: segment.present.into(),
        unusable: (!segment.present).into(),
        // KVM's limit counts bytes, and the entry checks want G set just where 20 bits do not hold it
        // (SDM vol. 3C, 28.3.1.2).
        g: (segment.limit > 0xf_ffff).into(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Different in every field for every `n`, or for some.
    fn segment(n: u16) -> Segment {
        Segment {
            selector: n * 8 + 3,
            base: u64::from(n) << 32,
            limit: if n > 4 { 0xffff_ffff } else { 0x67 },
            kind: n as u8 & 0xf,
            dpl: n as u8 & 3,
            code_or_data: n & 1 != 0,
            long: n & 2 != 0,
            db: n & 4 != 0,
            present: n != 6,
        }
    }

    #[test]
    fn registers_go_there_and_back() {
        let regs = Regs { gpr: std::array::from_fn(|n| 0x100 + n as u64), rip: 0x200, rflags: 0x202 };
        assert_eq!(from_kvm(&to_kvm(&regs)), regs);
        let kvm = to_kvm(&regs);
        assert_eq!((kvm.rax, kvm.rbx, kvm.rsp, kvm.rdi, kvm.r15), (0x100, 0x103, 0x104, 0x107, 0x10f));
    }

    #[test]
    fn system_registers_go_there_and_back_and_keep_the_rest() {
        let system = SystemRegs {
            cs: segment(1),
            ds: segment(2),
            es: segment(3),
            fs: segment(4),
            gs: segment(5),
            ss: segment(6),
            tr: segment(7),
            ldt: segment(8),
            gdt: DescriptorTable { base: 0x1000, limit: 0x37 },
            idt: DescriptorTable { base: 0x2000, limit: 0xfff },
            cr0: 1,
            cr2: 2,
            cr3: 3,
            cr4: 4,
            cr8: 6,
            efer: 5,
        };
        let before = kvm_sregs { apic_base: 0xfee0_0000, ..Default::default() };
        let kvm = system_to_kvm(&system, before);
        assert_eq!(system_from_kvm(&kvm), system);
        assert_eq!(kvm.apic_base, 0xfee0_0000);
    }

    #[test]
    fn granularity_follows_the_limit_and_unusable_follows_present() {
        let kvm = |limit, present| segment_to_kvm(&Segment { limit, present, ..Default::default() });
        assert_eq!(kvm(0xf_ffff, true).g, 0);
        assert_eq!(kvm(0x10_0fff, true).g, 1);
        assert_eq!((kvm(0, true).unusable, kvm(0, false).unusable), (0, 1));
        assert!(!segment_from_kvm(&kvm_segment { present: 1, unusable: 1, ..Default::default() }).present);
    }
}
