//! The engine's interface.

use std::sync::Arc;

use bus::{Bus, Clock, InterruptController, Msi, MsiSink, PowerSwitch, Timers};
use memory::GuestMemory;

use crate::{CpuidTable, EngineFeatures, Event, VcpuState};

/// Why an engine can't do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host lacks something.
    #[error("{0}")]
    Unsupported(String),
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// The host's answer.
        source: std::io::Error,
    },
    /// A vCPU state that no processor can be in.
    #[error("vCPU state is not valid: {0}")]
    State(&'static str),
}

/// Result of an engine operation.
pub type Result<T> = std::result::Result<T, Error>;

/// What the machine gives a VM.
#[derive(Clone)]
pub struct VmServices {
    /// Guest RAM.
    pub memory: GuestMemory,
    /// Ports and memory-mapped registers.
    pub bus: Arc<Bus>,
    /// The chipset's PIC and I/O APIC.
    pub interrupts: Arc<dyn InterruptController>,
    /// Reset, power-off, halt and triple fault go here.
    pub power: Arc<PowerSwitch>,
    /// Timers for the local APICs.
    pub timers: Arc<Timers>,
    /// The VM's clock.
    pub clock: Clock,
}

/// What a VM looks like to its engine.
#[derive(Clone)]
pub struct VmConfig {
    /// Number of vCPUs, 1 or more. Their APIC ids are given by the CPUID table's topology.
    pub vcpus: u32,
    /// What CPUID answers.
    pub cpuid: CpuidTable,
    /// `-w` not given: an access to an unknown MSR raises #GP. Otherwise it reads 0 and ignores.
    pub strict_msr: bool,
    /// `-x`: vCPUs start in x2APIC mode.
    pub x2apic: bool,
    /// `-e`: an access to an unclaimed port stops the VM with [`Stop::UnclaimedPort`].
    pub strict_io: bool,
}

/// Why a vCPU came back from [`Vcpu::run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// [`Kicker::stop`] was called, or the VM got a power event.
    Stopped,
    /// Shutdown state after a triple fault. The engine has told the power switch.
    TripleFault,
    /// `-e`: an access to a port that nobody claimed.
    UnclaimedPort {
        /// The port.
        port: u16,
        /// Whether it was a write.
        write: bool,
        /// 1, 2 or 4 bytes.
        size: u8,
    },
    /// The engine can't go on at this instruction.
    Unhandled {
        /// Guest linear address of the instruction.
        rip: u64,
        /// A static description.
        what: &'static str,
    },
}

/// Makes VMs.
pub trait Engine: Send + Sync {
    /// `kvm` or `soft`.
    fn name(&self) -> &'static str;
    /// What the engine can give beyond the common baseline, for [`CpuidTable::new`].
    fn features(&self) -> EngineFeatures {
        EngineFeatures::default()
    }
    /// A VM without vCPUs.
    fn new_vm(&self, config: VmConfig, services: VmServices) -> Result<SharedVm>;
}

/// One virtual machine of an engine. As [`MsiSink`] it takes MSIs and the 8259's INTR pin.
pub trait Vm: MsiSink {
    /// Makes vCPU `id` (0-based, each once). vCPU 0 is the bootstrap processor and runs from its
    /// state; the others wait for INIT and SIPI unless their state says otherwise.
    fn new_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>>;

    /// Sends vCPU `id`, and it alone, the interrupt that MSI data asks for: delivery mode and vector
    /// (Intel SDM vol. 3, 11.11.2).
    fn signal_vcpu(&self, id: u32, data: u32) -> Result<()>;

    /// Asks that a guest write of `len` bytes to port or memory `address` signals `event` instead
    /// of going to the bus. Returns false where the engine has no such short cut: the write then
    /// reaches the device through the bus, which must do the same work.
    fn add_doorbell(&self, address: Doorbell, event: &std::os::fd::OwnedFd) -> Result<bool>;

    /// Undoes [`Vm::add_doorbell`].
    fn remove_doorbell(&self, address: Doorbell, event: &std::os::fd::OwnedFd) -> Result<()>;

    /// Asks that a signal on `event` sends `msi`, without a thread in between. Called again with the
    /// same descriptor it replaces the message. Returns false where the engine has no such short cut:
    /// someone must then wait for the event and call [`MsiSink::signal_msi`].
    fn add_msi_event(&self, _msi: Msi, _event: &std::os::fd::OwnedFd) -> Result<bool> {
        Ok(false)
    }

    /// Undoes [`Vm::add_msi_event`].
    fn remove_msi_event(&self, _event: &std::os::fd::OwnedFd) -> Result<()> {
        Ok(())
    }

    /// What the I/O APIC's `pin` sends from now on (`None`: nothing), as the I/O APIC's `on_route`
    /// tells. Engines whose local APIC is elsewhere must know which vectors are level-triggered: only
    /// of those they tell [`InterruptController::end_of_interrupt`].
    fn set_ioapic_route(&self, _pin: u32, _msi: Option<Msi>) -> Result<()> {
        Ok(())
    }
}

/// A VM, shared between the machine and its devices.
pub type SharedVm = Arc<dyn Vm>;

/// One virtual processor, run on one thread.
pub trait Vcpu: Send {
    /// Runs until something ends or pauses the vCPU. HLT sleeps inside.
    fn run(&mut self) -> Stop;
    /// The architectural state.
    fn state(&mut self) -> Result<VcpuState>;
    /// Replaces the architectural state.
    fn set_state(&mut self, state: &VcpuState) -> Result<()>;
    /// A handle to stop the vCPU from other threads.
    fn kicker(&self) -> Arc<dyn Kicker>;
    /// What the vCPU did so far, for other threads.
    fn statistics(&self) -> Arc<dyn Statistics>;
}

/// Says what a vCPU did so far.
pub trait Statistics: Send + Sync {
    /// What this engine counts.
    fn list(&self) -> Vec<(Event, u64)>;
}

/// Stops a vCPU that runs on another thread.
pub trait Kicker: Send + Sync {
    /// Makes [`Vcpu::run`] return [`Stop::Stopped`] soon. Stays in force (a later `run` returns
    /// at once) until [`Kicker::resume`].
    fn stop(&self);
    /// Takes `stop` back.
    fn resume(&self);
}

/// Where a doorbell is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doorbell {
    /// A port write of `size` bytes, optionally only of `value`.
    Port {
        /// The port.
        port: u16,
        /// 1, 2 or 4 bytes.
        size: u8,
        /// Only this value rings, if given.
        value: Option<u32>,
    },
    /// A memory write of `size` bytes, optionally only of `value`.
    Memory {
        /// Guest-physical address.
        gpa: u64,
        /// 1, 2, 4 or 8 bytes.
        size: u8,
        /// Only this value rings, if given.
        value: Option<u32>,
    },
}
