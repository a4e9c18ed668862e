//! The VM's CPUID table as KVM takes it, less what this host's KVM does not support.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::cpuid::ratio;
use crate::{CpuidLeaf, CpuidTable};

/// Clock of KVM's local APIC timers: 1 ns a tick (Documentation/virt/kvm/api.rst,
/// KVM_CAP_X86_APIC_BUS_CYCLES_NS).
pub const APIC_BUS_HZ: u64 = 1_000_000_000;

/// Bits of 1:ECX that are KVM's local APIC's (x2APIC), or not of the processor (hypervisor).
const OURS_1_ECX: u32 = 1 << 21 | 1 << 31;
/// TSC-deadline timer, which KVM announces as a capability of its own.
const TSC_DEADLINE: u32 = 1 << 24;
/// HTT in 1:EDX belongs to the topology.
const OURS_1_EDX: u32 = 1 << 28;
/// 7:EDX: FSRM, MD_CLEAR, SPEC_CTRL, STIBP, FLUSH_L1D, ARCH_CAPABILITIES, SSBD. The guest must defend
/// itself with what the host's processor has.
const SPECULATION_7_EDX: u32 = 1 << 4 | 1 << 10 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29 | 1 << 31;
/// 80000008:EBX (AMD): IBPB, IBRS, STIBP, the three preferences, SSBD, VIRT_SSBD, SSB_NO, BTC_NO.
const SPECULATION_AMD: u32 =
    1 << 12 | 1 << 14 | 1 << 15 | 1 << 16 | 1 << 17 | 1 << 18 | 1 << 24 | 1 << 25 | 1 << 26 | 1 << 29;

/// What a VM's tables are made of.
pub struct Source<'a> {
    pub table: &'a CpuidTable,
    /// KVM_GET_SUPPORTED_CPUID.
    pub supported: &'a [kvm_cpuid_entry2],
    /// Whether KVM has the TSC-deadline timer.
    pub tsc_deadline: bool,
    pub tsc_hz: u64,
}

impl Source<'_> {
    fn supported(&self, leaf: u32, sub: u32) -> CpuidLeaf {
        let found = self.supported.iter().find(|e| e.function == leaf && e.index == sub);
        found.map_or_else(CpuidLeaf::default, |e| CpuidLeaf {
            eax: e.eax,
            ebx: e.ebx,
            ecx: e.ecx,
            edx: e.edx,
        })
    }

    fn avx(&self) -> bool {
        self.supported(1, 0).ecx & 1 << 28 != 0 && self.supported(0xd, 0).eax & 7 == 7
    }

    /// One answer, filtered, for the vCPU with this APIC id.
    fn answer(&self, leaf: u32, sub: u32, mut a: CpuidLeaf, apic_id: u32) -> CpuidLeaf {
        let kvm = self.supported(leaf, sub);
        match (leaf, sub) {
            (1, _) => {
                let deadline = if self.tsc_deadline { TSC_DEADLINE } else { 0 };
                a.ecx &= kvm.ecx & !TSC_DEADLINE | OURS_1_ECX | deadline;
                a.edx &= kvm.edx | OURS_1_EDX;
                a.ebx = a.ebx & 0x00ff_ffff | apic_id << 24;
            }
            (7, 0) => {
                a.ebx &= kvm.ebx;
                a.ecx &= kvm.ecx;
                a.edx = kvm.edx & SPECULATION_7_EDX;
            }
            (0xb, _) => a.edx = apic_id,
            (0xd, 0) => {
                a.eax &= kvm.eax;
                if !self.avx() {
                    (a.eax, a.ebx, a.ecx) = (a.eax & 3, 576, 576);
                }
            }
            (0xd, 1) => a.eax &= kvm.eax,
            (0xd, 2) if !self.avx() => a = CpuidLeaf::default(),
            (0x15, _) if a.ecx != 0 => {
                // Linux takes the crystal for the APIC timer's clock.
                let (numerator, denominator) = ratio(self.tsc_hz, APIC_BUS_HZ);
                (a.eax, a.ebx, a.ecx) = (denominator, numerator, APIC_BUS_HZ as u32);
            }
            (0x8000_0001, _) => {
                a.ecx &= kvm.ecx;
                a.edx &= kvm.edx;
            }
            (0x8000_0008, _) => a.ebx = kvm.ebx & SPECULATION_AMD,
            (0x8000_001e, _) => a.eax = apic_id,
            _ => {}
        }
        a
    }

    /// The table for KVM_SET_CPUID2.
    pub fn entries(&self, apic_id: u32) -> Vec<kvm_cpuid_entry2> {
        let indexed = |leaf| matches!(leaf, 4 | 7 | 0xb | 0xd | 0x8000_001d);
        let entry = |&(leaf, sub, answer): &(u32, u32, CpuidLeaf)| {
            let CpuidLeaf { eax, ebx, ecx, edx } = self.answer(leaf, sub, answer, apic_id);
            let flags = if indexed(leaf) { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
            kvm_cpuid_entry2 { function: leaf, index: sub, flags, eax, ebx, ecx, edx, padding: [0; 3] }
        };
        self.table.leaves.iter().map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EngineFeatures, Topology};

    #[test]
    fn features_that_kvm_lacks_are_taken_out_and_ids_put_in() {
        let topology = Topology { sockets: 1, cores: 4, threads: 1 };
        let features = EngineFeatures { pcid: true, umip: true, xsave_variants: true, ..Default::default() };
        let table = CpuidTable::new(topology, features);
        let kvm = |function, index, eax, ebx, ecx, edx| kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        };
        let supported = [
            kvm(1, 0, 0, 0, !(1 << 28), u32::MAX),
            kvm(7, 0, 0, 0, 0, 1 << 26 | 1 << 22),
            kvm(0xd, 0, 3, 0, 0, 0),
        ];
        let source =
            Source { table: &table, supported: &supported, tsc_deadline: false, tsc_hz: 2_600_000_000 };
        let entries = source.entries(3);
        let get = |leaf, sub| *entries.iter().find(|e| e.function == leaf && e.index == sub).unwrap();
        assert_eq!(get(1, 0).ecx & (1 << 24 | 1 << 28), 0);
        assert_ne!(get(1, 0).ecx & 1 << 31, 0);
        assert_eq!(get(1, 0).ebx >> 24, 3);
        assert_eq!((get(7, 0).ebx, get(7, 0).edx), (0, 1 << 26));
        assert_eq!((get(0xb, 0).edx, get(0xb, 1).edx), (3, 3));
        assert_eq!((get(0xd, 0).eax, get(0xd, 0).ecx), (3, 576));
        assert_eq!(get(0x4000_0000, 0).ebx, u32::from_le_bytes(*b"bhyv"));
        if let Some(clock) = entries.iter().find(|e| e.function == 0x15) {
            assert_eq!((clock.ecx, clock.ebx / clock.eax), (1_000_000_000, 2));
        }
    }
}
