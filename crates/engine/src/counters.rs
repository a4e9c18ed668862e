//! What vCPUs did, for `bhyvectl --get-stats`.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Statistics;

/// Something that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Event {
    /// The vCPU left guest code.
    Exit,
    /// … for an interrupt of the host.
    ExternalInterrupt,
    /// … at HLT.
    Hlt,
    /// … at an access to a control register.
    ControlRegister,
    /// … at RDMSR.
    ReadMsr,
    /// … at WRMSR.
    WriteMsr,
    /// … because the guest takes interrupts now.
    InterruptWindow,
    /// … because the guest takes NMIs now.
    NmiWindow,
    /// … at IN, OUT, INS or OUTS.
    Port,
    /// … at CPUID.
    Cpuid,
    /// … for an address that had no translation.
    NestedFault,
    /// … for an instruction on device registers.
    Emulated,
    /// … and came back to this process.
    UserSpace,
    /// … for an exception of the guest.
    Exception,
    /// Milliseconds in HLT.
    IdleTicks,
    /// NMIs delivered.
    Nmi,
    /// Interrupts of the 8259 pair delivered.
    ExternalDelivered,
}

impl Event {
    /// All of them, in order of their numbers.
    pub const ALL: [Self; 17] = [
        Self::Exit,
        Self::ExternalInterrupt,
        Self::Hlt,
        Self::ControlRegister,
        Self::ReadMsr,
        Self::WriteMsr,
        Self::InterruptWindow,
        Self::NmiWindow,
        Self::Port,
        Self::Cpuid,
        Self::NestedFault,
        Self::Emulated,
        Self::UserSpace,
        Self::Exception,
        Self::IdleTicks,
        Self::Nmi,
        Self::ExternalDelivered,
    ];

    /// What bhyve's kernel module calls it; scripts look for these words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exit => "total number of vm exits",
            Self::ExternalInterrupt => "vm exits due to external interrupt",
            Self::Hlt => "number of times hlt was intercepted",
            Self::ControlRegister => "number of times %cr access was intercepted",
            Self::ReadMsr => "number of times rdmsr was intercepted",
            Self::WriteMsr => "number of times wrmsr was intercepted",
            Self::InterruptWindow => "vm exits due to interrupt window opening",
            Self::NmiWindow => "vm exits due to nmi window opening",
            Self::Port => "number of times in/out was intercepted",
            Self::Cpuid => "number of times cpuid was intercepted",
            Self::NestedFault => "vm exits due to nested page fault",
            Self::Emulated => "vm exits for instruction emulation",
            Self::UserSpace => "number of vm exits handled in userspace",
            Self::Exception => "number of vm exits due to exceptions",
            Self::IdleTicks => "number of ticks vcpu was idle",
            Self::Nmi => "number of NMIs delivered to vcpu",
            Self::ExternalDelivered => "number of ExtINTs delivered to vcpu",
        }
    }
}

/// The counters of one vCPU. Its thread counts; any thread reads.
pub struct Counters {
    values: [AtomicU64; Event::ALL.len()],
    counted: &'static [Event],
}

impl Counters {
    /// All zeros; `counted` is what this engine counts itself.
    pub fn new(counted: &'static [Event]) -> Self {
        Self { values: [const { AtomicU64::new(0) }; Event::ALL.len()], counted }
    }

    /// Counts an event. Only the vCPU's own thread does, so no locked instruction is needed.
    #[inline]
    pub fn count(&self, event: Event) {
        self.add(event, 1);
    }

    /// Counts an event that comes in lots.
    #[inline]
    pub fn add(&self, event: Event, number: u64) {
        if let Some(value) = self.values.get(event as usize) {
            value.store(value.load(Ordering::Relaxed).wrapping_add(number), Ordering::Relaxed);
        }
    }
}

impl Statistics for Counters {
    fn list(&self) -> Vec<(Event, u64)> {
        let value = |event: Event| self.values.get(event as usize).map_or(0, |v| v.load(Ordering::Relaxed));
        self.counted.iter().map(|event| (*event, value(*event))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_their_places_and_only_what_is_counted_is_listed() {
        for (number, event) in Event::ALL.iter().enumerate() {
            assert_eq!(*event as usize, number);
        }
        let counters = Counters::new(&[Event::Exit, Event::Cpuid]);
        counters.count(Event::Cpuid);
        counters.add(Event::Cpuid, 4);
        counters.count(Event::Hlt);
        assert_eq!(counters.list(), [(Event::Exit, 0), (Event::Cpuid, 5)]);
    }
}
