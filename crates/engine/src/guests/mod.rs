//! Tiny guests that test an engine through its traits alone.
//!
//! Every engine must pass every [`Scenario`]: `for s in guests::ALL { s.check(&engine) }`. A failure is
//! a panic, as in any test.
#![allow(clippy::panic, clippy::unwrap_used, clippy::indexing_slicing)]

mod code;
pub(crate) mod rig;
pub(crate) mod scenarios;

use crate::Engine;

/// One guest and what must come of it.
pub struct Scenario {
    /// Its name, for messages.
    pub name: &'static str,
    check: fn(&dyn Engine),
}

impl Scenario {
    /// Runs it; panics if the engine does anything else than it must.
    pub fn check(&self, engine: &dyn Engine) {
        (self.check)(engine);
    }
}

/// All scenarios.
pub const ALL: &[Scenario] = &[
    Scenario { name: "port I/O", check: scenarios::port_io },
    Scenario { name: "memory I/O", check: scenarios::memory_io },
    Scenario { name: "MSI by signal", check: scenarios::msi_by_signal },
    Scenario { name: "MSI by irqfd", check: scenarios::msi_by_event },
    Scenario { name: "doorbell by ioeventfd", check: scenarios::doorbell },
    Scenario { name: "INIT and SIPI of a second vCPU", check: scenarios::second_vcpu },
    Scenario { name: "HLT and the APIC timer", check: scenarios::apic_timer },
    Scenario { name: "PIC interrupts", check: scenarios::pic_interrupt },
    Scenario { name: "EOI of level-triggered interrupts", check: scenarios::level_eoi },
    Scenario { name: "state round trip", check: scenarios::state_round_trip },
    Scenario { name: "state moves to another VM", check: scenarios::state_moves },
    Scenario { name: "kick of a spinning vCPU", check: scenarios::kick },
    Scenario { name: "NMI and statistics", check: scenarios::nmi_and_statistics },
    Scenario { name: "power event stops all vCPUs", check: scenarios::power_event },
    Scenario { name: "triple fault", check: scenarios::triple_fault },
    Scenario { name: "all vCPUs halted for good", check: scenarios::halted_for_good },
    Scenario { name: "CPUID", check: scenarios::cpuid },
    Scenario { name: "unknown MSR, strict", check: scenarios::unknown_msr_strict },
    Scenario { name: "unknown MSR, ignored", check: scenarios::unknown_msr_ignored },
    Scenario { name: "unclaimed port, strict", check: scenarios::unclaimed_port },
];
