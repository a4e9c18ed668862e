//! What CPUID answers: one table for both engines.
//!
//! The guest sees the host's processor (vendor, family, model, name) with the features that the
//! engine can give it, and the topology of `-c`.

mod features;
mod topology;
mod tsc;

pub use features::{ARCH_CAPABILITIES, EngineFeatures};
pub use tsc::host_tsc_hz;
pub(crate) use tsc::ratio;

use features::Masks;

/// Sockets, cores and threads of the guest's processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Sockets.
    pub sockets: u32,
    /// Cores in a socket.
    pub cores: u32,
    /// Threads in a core.
    pub threads: u32,
}

/// One answer of CPUID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidLeaf {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// All answers of CPUID for one VM. APIC ids, OSXSAVE and sizes that follow XCR0 are filled in by
/// the engine for each vCPU.
#[derive(Clone, Debug)]
pub struct CpuidTable {
    /// The guest's topology.
    pub topology: Topology,
    /// (leaf, sub-leaf, answer); a leaf without sub-leaves has sub-leaf 0 only.
    pub leaves: Vec<(u32, u32, CpuidLeaf)>,
}

/// Highest basic leaf that the table has.
const MAX_BASIC: u32 = 0x16;
/// Highest extended leaf.
const MAX_EXTENDED: u32 = 0x8000_0008;
/// Clock of the local APIC's timer: bhyve's 128 MiHz.
pub const APIC_BUS_HZ: u32 = 128 << 20;
/// "bhyve bhyve " in EBX, ECX, EDX.
const SIGNATURE: [u32; 3] = [0x7679_6862, 0x6862_2065, 0x2065_7679];

fn host(leaf: u32, sub: u32) -> CpuidLeaf {
    let r = std::arch::x86_64::__cpuid_count(leaf, sub);
    CpuidLeaf { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
}

/// The host's answer, zeros past its last leaf.
fn host_or_zero(leaf: u32, sub: u32) -> CpuidLeaf {
    if leaf <= host(leaf & 0x8000_0000, 0).eax { host(leaf, sub) } else { CpuidLeaf::default() }
}

/// Family, model and stepping that guests see (Intel SDM vol. 2, CPUID, figure 3-6).
///
/// Programs pick code by the model alone (the compilers' function multiversioning does), so a model
/// that is known for features which guests don't get, such as AVX-512, must not be shown. The last
/// ones without any such: Skylake client (6, 5Eh, 3) and Zen 3 (19h, 21h, 0).
fn signature() -> u32 {
    const SKYLAKE: u32 = 0x0005_06e3;
    const ZEN3: u32 = 0x00a2_0f10;
    let (one, seven) = (host(1, 0), host_or_zero(7, 0));
    // ADX and CLFLUSHOPT came with Skylake; AVX-512 and AVX-VNNI (7.1 EAX bit 4) after it.
    let since_skylake = seven.ebx & (1 << 19 | 1 << 23) == 1 << 19 | 1 << 23;
    let avx512 = seven.ebx & 1 << 16 != 0;
    if is_intel() && since_skylake {
        SKYLAKE
    } else if !is_intel() && avx512 {
        ZEN3
    } else {
        one.eax
    }
}

impl CpuidTable {
    /// The table for a VM with this topology under an engine with these features.
    pub fn new(topology: Topology, features: EngineFeatures) -> Self {
        let mut table = Self { topology, leaves: Vec::new() };
        let masks = Masks::new(features);
        let intel = is_intel();
        let first = host(0, 0);
        table.put(0, 0, CpuidLeaf { eax: if intel { MAX_BASIC } else { 0xd }, ..first });
        table.basic(&masks);
        table.cache_and_topology(intel);
        // Leaf 6: the APIC timer never stops (ARAT); Linux else prefers the HPET.
        table.put(6, 0, CpuidLeaf { eax: 1 << 2, ..CpuidLeaf::default() });
        table.structured(&masks);
        table.xsave(&masks);
        if intel {
            table.frequency();
        }
        table.hypervisor();
        table.extended(&masks, intel);
        table
    }

    fn put(&mut self, leaf: u32, sub: u32, answer: CpuidLeaf) {
        self.leaves.push((leaf, sub, answer));
    }

    /// The table's answer for exactly this leaf and sub-leaf.
    pub fn leaf(&self, leaf: u32, sub: u32) -> Option<CpuidLeaf> {
        self.leaves.iter().find(|l| l.0 == leaf && l.1 == sub).map(|l| l.2)
    }

    /// Leaf 1: version and basic features.
    fn basic(&mut self, masks: &Masks) {
        let h = host(1, 0);
        let logical = self.threads_per_socket().next_power_of_two().min(255);
        let several = self.threads_per_socket() > 1;
        let answer = CpuidLeaf {
            eax: signature(),
            // CLFLUSH of 64 bytes, logical processors in the package; the engine adds the APIC id.
            ebx: 8 << 8 | logical << 16,
            ecx: h.ecx & masks.leaf1_ecx | masks.leaf1_ecx_always,
            edx: h.edx & masks.leaf1_edx | if several { 1 << 28 } else { 0 },
        };
        self.put(1, 0, answer);
    }

    /// Leaf 7: structured features.
    fn structured(&mut self, masks: &Masks) {
        let h = host_or_zero(7, 0);
        let controls = if is_intel() { masks.leaf7_2_edx } else { 0 };
        let answer = CpuidLeaf {
            // The last sub-leaf.
            eax: if controls != 0 { 2 } else { 0 },
            ebx: h.ebx & masks.leaf7_ebx | masks.leaf7_ebx_always,
            ecx: h.ecx & masks.leaf7_ecx,
            edx: if is_intel() { masks.leaf7_edx } else { 0 },
        };
        self.put(7, 0, answer);
        if controls != 0 {
            self.put(7, 1, CpuidLeaf::default());
            self.put(7, 2, CpuidLeaf { edx: controls, ..CpuidLeaf::default() });
        }
    }

    /// Leaf Dh: the standard format with x87, SSE and AVX.
    fn xsave(&mut self, masks: &Masks) {
        let avx = masks.avx();
        let (components, size) = if avx { (7, 832) } else { (3, 576) };
        self.put(0xd, 0, CpuidLeaf { eax: components, ebx: size, ecx: size, edx: 0 });
        self.put(
            0xd,
            1,
            CpuidLeaf { eax: host_or_zero(0xd, 1).eax & masks.xsave_features, ..CpuidLeaf::default() },
        );
        if avx {
            self.put(0xd, 2, CpuidLeaf { eax: 256, ebx: 576, ecx: 0, edx: 0 });
        }
    }

    /// Leaves 15h and 16h: the TSC's frequency, so that guests need not measure it. The crystal is
    /// what clocks the local APIC's timer: Linux takes it for that.
    fn frequency(&mut self) {
        let hz = host_tsc_hz();
        let (numerator, denominator) = tsc::ratio(hz, u64::from(APIC_BUS_HZ));
        self.put(0x15, 0, CpuidLeaf { eax: denominator, ebx: numerator, ecx: APIC_BUS_HZ, edx: 0 });
        let mhz = (hz / 1_000_000) as u32;
        self.put(0x16, 0, CpuidLeaf { eax: mhz, ebx: mhz, ecx: 100, edx: 0 });
    }

    /// The hypervisor's leaves: bhyve's signature.
    fn hypervisor(&mut self) {
        let [ebx, ecx, edx] = SIGNATURE;
        self.put(0x4000_0000, 0, CpuidLeaf { eax: 0x4000_0000, ebx, ecx, edx });
    }

    fn extended(&mut self, masks: &Masks, intel: bool) {
        let first = host(0x8000_0000, 0);
        self.put(0x8000_0000, 0, CpuidLeaf { eax: MAX_EXTENDED, ..first });
        let h = host_or_zero(0x8000_0001, 0);
        let mut edx = h.edx & masks.extended_edx;
        if !intel {
            // AMD repeats the basic features here.
            edx |= h.edx & masks.leaf1_edx & 0x0183_f3ff;
        }
        self.put(
            0x8000_0001,
            0,
            CpuidLeaf {
                eax: if intel { h.eax } else { signature() },
                ebx: 0,
                ecx: h.ecx & masks.extended_ecx,
                edx,
            },
        );
        for leaf in 0x8000_0002..=0x8000_0006 {
            self.put(leaf, 0, host_or_zero(leaf, 0));
        }
        // Invariant TSC.
        self.put(0x8000_0007, 0, CpuidLeaf { edx: 1 << 8, ..CpuidLeaf::default() });
        let widths = host_or_zero(0x8000_0008, 0).eax & 0xff;
        let ecx = if intel { 0 } else { self.threads_per_socket() - 1 };
        self.put(0x8000_0008, 0, CpuidLeaf { eax: widths.clamp(36, 52) | 48 << 8, ebx: 0, ecx, edx: 0 });
    }
}

/// Whether the host's (and so the guest's) vendor is Intel.
pub fn is_intel() -> bool {
    // "Genu" of GenuineIntel.
    host(0, 0).ebx == 0x756e_6547
}

#[cfg(test)]
mod tests;
