//! The software engine against the scenarios that every engine must pass.
#![allow(clippy::unwrap_used)]

use recompiler::SoftEngine;

/// One test for each scenario, by its index.
macro_rules! scenarios {
    ($($test:ident $name:literal)*) => {
        $(
            #[test]
            fn $test() {
                let scenario = engine::guests::ALL.iter().find(|s| s.name == $name).unwrap();
                scenario.check(&SoftEngine::new().unwrap());
            }
        )*

        #[test]
        fn all_scenarios_are_tests_here() {
            let all: Vec<_> = engine::guests::ALL.iter().map(|s| s.name).collect();
            assert_eq!(all, [$($name),*]);
        }
    };
}

scenarios! {
    port_io "port I/O"
    memory_io "memory I/O"
    msi_by_signal "MSI by signal"
    msi_by_event "MSI by irqfd"
    doorbell "doorbell by ioeventfd"
    second_vcpu "INIT and SIPI of a second vCPU"
    apic_timer "HLT and the APIC timer"
    pic_interrupt "PIC interrupts"
    level_eoi "EOI of level-triggered interrupts"
    state_round_trip "state round trip"
    state_moves "state moves to another VM"
    kick "kick of a spinning vCPU"
    nmi_and_statistics "NMI and statistics"
    power_event "power event stops all vCPUs"
    triple_fault "triple fault"
    halted_for_good "all vCPUs halted for good"
    cpuid "CPUID"
    unknown_msr_strict "unknown MSR, strict"
    unknown_msr_ignored "unknown MSR, ignored"
    unclaimed_port "unclaimed port, strict"
}
