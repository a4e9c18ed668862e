//! Processor topology and cache sharing.

use super::{CpuidLeaf, CpuidTable, Topology, host_or_zero};

/// Bits of the APIC id that number `count` things.
fn width(count: u32) -> u32 {
    count.max(1).next_power_of_two().trailing_zeros()
}

impl Topology {
    /// APIC id of vCPU `index`: thread, core and socket in fields as wide as their counts need
    /// (Intel SDM vol. 3, 9.9.3).
    pub fn apic_id(&self, index: u32) -> u32 {
        let (threads, cores) = (self.threads.max(1), self.cores.max(1));
        let (thread, core, socket) = (index % threads, index / threads % cores, index / threads / cores);
        thread | core << width(threads) | socket << (width(threads) + width(cores))
    }
}

impl CpuidTable {
    /// vCPUs in a socket.
    pub(super) fn threads_per_socket(&self) -> u32 {
        self.topology.cores.max(1) * self.topology.threads.max(1)
    }

    /// Leaves 4 and Bh.
    pub(super) fn cache_and_topology(&mut self, intel: bool) {
        let (threads, cores) = (self.topology.threads.max(1), self.topology.cores.max(1));
        if intel {
            for sub in 0..8 {
                let h = host_or_zero(4, sub);
                if h.eax & 0x1f == 0 {
                    break;
                }
                // Level 3 is shared by the socket, the others by the threads of a core.
                let sharing = if h.eax >> 5 & 7 >= 3 { threads * cores } else { threads };
                let cores_field = (1 << width(cores)) - 1;
                let eax = h.eax & 0x3ff | (sharing.next_power_of_two() - 1) << 14 | cores_field << 26;
                self.put(4, sub, CpuidLeaf { eax, ..h });
            }
        }
        let thread_bits = width(threads);
        // Level types: 1 SMT, 2 core (Intel SDM vol. 2, CPUID leaf 0Bh).
        let smt = CpuidLeaf { eax: thread_bits, ebx: threads, ecx: 1 << 8, edx: 0 };
        let core =
            CpuidLeaf { eax: thread_bits + width(cores), ebx: threads * cores, ecx: 2 << 8 | 1, edx: 0 };
        self.put(0xb, 0, smt);
        self.put(0xb, 1, core);
        self.put(0xb, 2, CpuidLeaf { ecx: 2, ..CpuidLeaf::default() });
    }
}
