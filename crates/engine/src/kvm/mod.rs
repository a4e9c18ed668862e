//! Hardware virtualization through /dev/kvm.
//!
//! The local APICs are KVM's, the I/O APIC and the PIC are the chipset's (split irqchip). HLT, INIT and
//! SIPI happen inside of KVM; port and memory accesses come here and go to the bus.

mod cpuid;
mod halt;
mod kick;
mod page;
mod probe;
mod routes;
mod state;
mod stats;
mod sys;
mod vcpu;
mod vm;

use std::sync::Arc;

use kvm_ioctls::{Cap, Kvm};

use crate::{Engine, EngineFeatures, Error, Result, SharedVm, VcpuState, VmConfig, VmServices};

pub(crate) use probe::probe;

/// Executes one instruction that KVM can't emulate.
pub trait Stepper: Send {
    /// Executes the instruction at `state`'s RIP, or delivers the exception that it raises. The local
    /// APIC in `state` is a copy: changes to it are not taken over.
    fn step(&mut self, state: &mut VcpuState, services: &VmServices)
    -> std::result::Result<(), &'static str>;
}

/// Makes the stepper of one vCPU.
pub type StepperFactory = Arc<dyn Fn(&VmConfig, &VmServices, u32) -> Result<Box<dyn Stepper>> + Send + Sync>;

/// The KVM engine.
pub struct KvmEngine {
    kvm: Kvm,
    steppers: Option<StepperFactory>,
}

/// The only version of the interface that ever was (Documentation/virt/kvm/api.rst, 4.1).
const API_VERSION: i32 = 12;

/// What can't be done without.
const NEEDED: [(Cap, &str); 7] = [
    (Cap::UserMemory, "user memory"),
    (Cap::SplitIrqchip, "split irqchip"),
    (Cap::SignalMsi, "MSI"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::ImmediateExit, "immediate exit"),
    (Cap::Xsave, "XSAVE"),
];

impl KvmEngine {
    /// Opens /dev/kvm. With `steppers`, instructions that KVM fails to emulate are executed by these;
    /// without, a VM that meets one can't go on.
    pub fn new(steppers: Option<StepperFactory>) -> Result<Self> {
        let open = |e: kvm_ioctls::Error| Error::System { what: "/dev/kvm", source: e.into() };
        let kvm = Kvm::new().map_err(open)?;
        if kvm.get_api_version() != API_VERSION {
            return Err(Error::Unsupported("/dev/kvm: unknown version of the interface".into()));
        }
        for (cap, name) in NEEDED {
            if !kvm.check_extension(cap) {
                return Err(Error::Unsupported(format!("/dev/kvm: this host's KVM has no {name}")));
            }
        }
        Ok(Self { kvm, steppers })
    }
}

impl Engine for KvmEngine {
    fn name(&self) -> &'static str {
        "kvm"
    }

    /// All there is: what this host's KVM lacks of it is taken out when a VM is made.
    fn features(&self) -> EngineFeatures {
        EngineFeatures { pcid: true, umip: true, xsave_variants: true, confines_speculation: false }
    }

    fn new_vm(&self, config: VmConfig, services: VmServices) -> Result<SharedVm> {
        Ok(Arc::new(vm::KvmVm::new(&self.kvm, config, services, self.steppers.clone())?))
    }
}

/// Makes an [`Error`] out of a failed call.
fn failed(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |e| Error::System { what, source: e.into() }
}

#[cfg(test)]
mod tests;
