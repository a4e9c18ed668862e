//! vCPU engines: the traits, the vCPU state that both share, the CPUID policy and the choice.
//!
//! An engine calls the [`bus::Bus`] for port and memory accesses; only what ends or pauses a vCPU
//! comes back from [`Vcpu::run`].

mod check;
mod choose;
mod counters;
mod cpuid;
#[cfg(any(test, feature = "test-guests"))]
pub mod guests;
mod kvm;
mod state;
mod traits;
mod wire;

pub use choose::{Choice, Kind, Wanted, choose, virtualization};
pub use counters::{Counters, Event};
pub use cpuid::{
    APIC_BUS_HZ, ARCH_CAPABILITIES, CpuidLeaf, CpuidTable, EngineFeatures, Topology, host_tsc_hz, is_intel,
};
pub use kvm::{KvmEngine, Stepper, StepperFactory};
pub use state::{ApicState, FpuState, Pending, RunState, Segment, TableRegister, VcpuState, reg, seg};
pub use traits::{
    Doorbell, Engine, Error, Kicker, Result, SharedVm, Statistics, Stop, Vcpu, Vm, VmConfig, VmServices,
};
