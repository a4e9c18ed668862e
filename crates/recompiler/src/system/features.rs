//! What the guest's CPUID promises, for the checks of system instructions.

use engine::CpuidLeaf;

use crate::cpu::Cpu;

/// A register of a CPUID answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reg {
    /// EAX.
    A,
    /// EBX.
    B,
    /// ECX.
    C,
    /// EDX.
    D,
}

/// One feature bit: leaf, sub-leaf, register, bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature(pub u32, pub u32, pub Reg, pub u32);

/// Feature bits (Intel SDM vol. 2, CPUID; AMD APM vol. 3, appendix E).
pub mod feature {
    #![allow(missing_docs)]
    use super::Feature;
    use super::Reg::{A, B, C, D};
    pub const VME: Feature = Feature(1, 0, D, 1);
    pub const DE: Feature = Feature(1, 0, D, 2);
    pub const PSE: Feature = Feature(1, 0, D, 3);
    pub const TSC: Feature = Feature(1, 0, D, 4);
    pub const PAE: Feature = Feature(1, 0, D, 6);
    pub const MCE: Feature = Feature(1, 0, D, 7);
    pub const MTRR: Feature = Feature(1, 0, D, 12);
    pub const PGE: Feature = Feature(1, 0, D, 13);
    pub const PAT: Feature = Feature(1, 0, D, 16);
    pub const FXSR: Feature = Feature(1, 0, D, 24);
    pub const SSE: Feature = Feature(1, 0, D, 25);
    pub const MONITOR: Feature = Feature(1, 0, C, 3);
    pub const PCID: Feature = Feature(1, 0, C, 17);
    pub const TSC_DEADLINE: Feature = Feature(1, 0, C, 24);
    pub const XSAVE: Feature = Feature(1, 0, C, 26);
    pub const FSGSBASE: Feature = Feature(7, 0, B, 0);
    pub const TSC_ADJUST: Feature = Feature(7, 0, B, 1);
    pub const SMEP: Feature = Feature(7, 0, B, 7);
    pub const INVPCID: Feature = Feature(7, 0, B, 10);
    pub const SMAP: Feature = Feature(7, 0, B, 20);
    pub const UMIP: Feature = Feature(7, 0, C, 2);
    pub const RDPID: Feature = Feature(7, 0, C, 22);
    pub const SPEC_CTRL: Feature = Feature(7, 0, D, 26);
    pub const STIBP: Feature = Feature(7, 0, D, 27);
    pub const FLUSH_L1D: Feature = Feature(7, 0, D, 28);
    pub const ARCH_CAPABILITIES: Feature = Feature(7, 0, D, 29);
    pub const SSBD: Feature = Feature(7, 0, D, 31);
    pub const XSAVEOPT: Feature = Feature(0xd, 1, A, 0);
    pub const XSAVEC: Feature = Feature(0xd, 1, A, 1);
    pub const XGETBV1: Feature = Feature(0xd, 1, A, 2);
    pub const XSAVES: Feature = Feature(0xd, 1, A, 3);
    pub const SYSCALL: Feature = Feature(0x8000_0001, 0, D, 11);
    pub const NX: Feature = Feature(0x8000_0001, 0, D, 20);
    pub const FXSR_OPT: Feature = Feature(0x8000_0001, 0, D, 25);
    pub const RDTSCP: Feature = Feature(0x8000_0001, 0, D, 27);
    pub const LONG_MODE: Feature = Feature(0x8000_0001, 0, D, 29);
    pub const AMD_IBPB: Feature = Feature(0x8000_0008, 0, B, 12);
    pub const AMD_IBRS: Feature = Feature(0x8000_0008, 0, B, 14);
    pub const AMD_STIBP: Feature = Feature(0x8000_0008, 0, B, 15);
    pub const AMD_SSBD: Feature = Feature(0x8000_0008, 0, B, 24);
}

impl Cpu {
    /// The static answer for exactly this leaf; zeros if there is none.
    pub fn cpuid_leaf(&self, leaf: u32, sub: u32) -> CpuidLeaf {
        self.shared.config.cpuid.leaf(leaf, sub).unwrap_or_default()
    }

    /// Whether the guest's CPUID has a feature.
    pub fn has(&self, Feature(leaf, sub, reg, bit): Feature) -> bool {
        let leaf = self.cpuid_leaf(leaf, sub);
        let value = match reg {
            Reg::A => leaf.eax,
            Reg::B => leaf.ebx,
            Reg::C => leaf.ecx,
            Reg::D => leaf.edx,
        };
        value >> bit & 1 != 0
    }

    /// Whether the guest sees an AMD (or Hygon) processor.
    pub fn is_amd(&self) -> bool {
        // "Auth" of AuthenticAMD, "Hygo" of HygonGenuine.
        matches!(self.cpuid_leaf(0, 0).ebx, 0x6874_7541 | 0x6f67_7948)
    }

    /// Width of guest-physical addresses in bits.
    pub fn physical_bits(&self) -> u32 {
        match self.cpuid_leaf(0x8000_0008, 0).eax & 0xff {
            0 => 36,
            bits => bits.clamp(32, 52),
        }
    }

    /// Bits that a guest-physical address can have.
    pub fn physical_mask(&self) -> u64 {
        (1 << self.physical_bits()) - 1
    }
}

/// Whether a 48-bit linear address is canonical.
pub fn canonical(address: u64) -> bool {
    ((address << 16) as i64 >> 16) as u64 == address
}
