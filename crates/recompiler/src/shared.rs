//! What all vCPUs of a VM share.

use engine::{VmConfig, VmServices};

/// The VM as its vCPUs see it.
pub struct Shared {
    /// What the VM looks like.
    pub config: VmConfig,
    /// Memory, bus, interrupt controllers, power, timers, clock.
    pub services: VmServices,
}
