//! What all vCPUs of a VM share.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use engine::{VmConfig, VmServices};

use crate::fabric::Fabric;

/// The VM as its vCPUs see it.
pub struct Shared {
    /// What the VM looks like.
    pub config: VmConfig,
    /// Memory, bus, interrupt controllers, power, timers, clock.
    pub services: VmServices,
    /// What vCPUs ask of each other.
    pub fabric: Arc<Fabric>,
    /// Guest TSC minus host TSC where the guest has not adjusted it, as the last state that was
    /// loaded has it: all vCPUs' time-stamp counters must agree to the tick.
    pub tsc_base: AtomicU64,
}

impl Shared {
    /// For a VM.
    pub fn new(config: VmConfig, services: VmServices) -> Arc<Self> {
        let shared = Self::unwatched(config, services);
        shared.services.memory.code().watch(shared.fabric.clone());
        shared
    }

    /// Without watching the memory for stores to translated code.
    pub fn unwatched(config: VmConfig, services: VmServices) -> Arc<Self> {
        let fabric = Arc::new(Fabric::new(config.vcpus, &services.memory));
        Arc::new(Self { config, services, fabric, tsc_base: AtomicU64::new(0) })
    }
}
