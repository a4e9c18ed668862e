//! The local APIC.

/// Local APIC of one vCPU; any thread may deliver interrupts to it.
pub struct Apic {}
