//! Which features a guest sees.

/// What an engine can give beyond the common baseline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineFeatures {
    /// CR4.PCIDE and INVPCID.
    pub pcid: bool,
    /// CR4.UMIP.
    pub umip: bool,
    /// XSAVEOPT, XSAVEC and XGETBV with ECX = 1.
    pub xsave_variants: bool,
    /// Speculation of the guest can't reach across its own privilege boundaries in ways that it
    /// would have to defend against: ARCH_CAPABILITIES says so.
    pub confines_speculation: bool,
}

/// IA32_ARCH_CAPABILITIES of an engine with [`EngineFeatures::confines_speculation`] (Intel SDM
/// vol. 4, table 2-2): RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, PSCHANGE_MC_NO,
/// TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO.
pub const ARCH_CAPABILITIES: u64 = 1
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27
    | 1 << 62;

const fn bits(list: &[u32]) -> u32 {
    let mut mask = 0;
    let mut n = 0;
    while n < list.len() {
        mask |= 1 << list[n];
        n += 1;
    }
    mask
}

/// Leaf 1 EDX: fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx
/// fxsr sse sse2 (Intel SDM vol. 2, CPUID, table 3-11).
const LEAF1_EDX: u32 = bits(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26]);
/// Leaf 1 ECX: sse3 pclmulqdq ssse3 fma cx16 sse4.1 sse4.2 movbe popcnt aes xsave avx f16c rdrand
/// (table 3-10).
const LEAF1_ECX: u32 = bits(&[0, 1, 9, 12, 13, 19, 20, 22, 23, 25, 26, 28, 29, 30]);
/// x2apic, TSC-deadline and hypervisor, which are ours.
const LEAF1_ECX_ALWAYS: u32 = bits(&[21, 24, 31]);
const PCID: u32 = bits(&[17]);
/// Leaf 7 EBX: fsgsbase bmi1 avx2 smep bmi2 erms rdseed adx smap clflushopt clwb sha (table 3-8).
const LEAF7_EBX: u32 = bits(&[0, 3, 5, 7, 8, 9, 18, 19, 20, 23, 24, 29]);
/// tsc_adjust, which is ours.
const LEAF7_EBX_ALWAYS: u32 = bits(&[1]);
const INVPCID: u32 = bits(&[10]);
/// Leaf 7 ECX: gfni vaes vpclmulqdq rdpid.
const LEAF7_ECX: u32 = bits(&[8, 9, 10, 22]);
const UMIP: u32 = bits(&[2]);
/// Leaf 7 EDX: spec_ctrl stibp arch_capabilities ssbd.
const LEAF7_EDX: u32 = bits(&[26, 27, 29, 31]);
/// Leaf 7.2 EDX: bhi_ctrl. With it guests set one bit of SPEC_CTRL once where they would else
/// clear the branch history on every system call.
const LEAF7_2_EDX: u32 = bits(&[4]);
/// 80000001 ECX: lahf abm 3dnowprefetch.
const EXTENDED_ECX: u32 = bits(&[0, 5, 8]);
/// 80000001 EDX: syscall nx pdpe1gb rdtscp lm.
const EXTENDED_EDX: u32 = bits(&[11, 20, 26, 27, 29]);
/// Leaf Dh.1 EAX: xsaveopt xsavec xgetbv1.
const XSAVE_VARIANTS: u32 = bits(&[0, 1, 2]);

/// What of the host's answers a guest sees, and what it sees anyway.
pub(super) struct Masks {
    pub leaf1_ecx: u32,
    pub leaf1_ecx_always: u32,
    pub leaf1_edx: u32,
    pub leaf7_ebx: u32,
    pub leaf7_ebx_always: u32,
    pub leaf7_ecx: u32,
    pub leaf7_edx: u32,
    pub leaf7_2_edx: u32,
    pub extended_ecx: u32,
    pub extended_edx: u32,
    pub xsave_features: u32,
}

impl Masks {
    pub fn new(features: EngineFeatures) -> Self {
        let when = |on: bool, mask: u32| if on { mask } else { 0 };
        Self {
            leaf1_ecx: LEAF1_ECX | when(features.pcid, PCID),
            leaf1_ecx_always: LEAF1_ECX_ALWAYS,
            leaf1_edx: LEAF1_EDX,
            leaf7_ebx: LEAF7_EBX | when(features.pcid, INVPCID),
            leaf7_ebx_always: LEAF7_EBX_ALWAYS,
            leaf7_ecx: LEAF7_ECX | when(features.umip, UMIP),
            leaf7_edx: when(features.confines_speculation, LEAF7_EDX),
            leaf7_2_edx: when(features.confines_speculation, LEAF7_2_EDX),
            extended_ecx: EXTENDED_ECX,
            extended_edx: EXTENDED_EDX,
            xsave_features: when(features.xsave_variants, XSAVE_VARIANTS),
        }
    }

    /// Whether the guest has AVX.
    pub fn avx(&self) -> bool {
        super::host(1, 0).ecx & self.leaf1_ecx & 1 << 28 != 0
    }
}
