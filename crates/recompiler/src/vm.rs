//! The software engine behind the engine traits.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bus::{Msi, MsiSink};
use engine::{
    Doorbell, Engine, EngineFeatures, Error, Kicker, Result, SharedVm, Statistics, Stop, Vcpu, VcpuState, Vm,
    VmConfig, VmServices,
};

use crate::apic::Apics;
use crate::fabric::Doorstep;
use crate::run::SoftVcpu;
use crate::shared::Shared;

/// The software engine.
pub struct SoftEngine {
    _private: (),
}

impl SoftEngine {
    /// The engine, if the host's CPU has what it needs: BMI2 (PEXT and the like work without
    /// touching flags), which processors since Haswell and Zen have.
    pub fn new() -> Result<Self> {
        if !std::arch::is_x86_feature_detected!("bmi2") {
            return Err(Error::Unsupported("the software engine needs a host CPU with BMI2".into()));
        }
        Ok(Self { _private: () })
    }
}

impl Engine for SoftEngine {
    fn name(&self) -> &'static str {
        "soft"
    }

    fn features(&self) -> EngineFeatures {
        EngineFeatures { xsave_variants: true, confines_speculation: true, ..EngineFeatures::default() }
    }

    fn new_vm(&self, config: VmConfig, services: VmServices) -> Result<SharedVm> {
        let apics = Apics::new(&config, &services);
        let power = services.power.clone();
        let shared = Shared::new(config, services);
        let fabric = Arc::downgrade(&shared.fabric);
        power.on_event(move |_| {
            if let Some(fabric) = fabric.upgrade() {
                fabric.raise_all();
            }
        });
        Ok(Arc::new(SoftVm { shared, apics }))
    }
}

struct SoftVm {
    shared: Arc<Shared>,
    apics: Arc<Apics>,
}

impl MsiSink for SoftVm {
    fn signal_msi(&self, msi: Msi) {
        self.apics.signal_msi(msi);
    }

    fn set_intr(&self, level: bool) {
        self.apics.set_intr(level);
    }
}

impl Vm for SoftVm {
    fn new_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>> {
        Ok(Box::new(SoftVcpu::new(&self.shared, &self.apics, id)?))
    }

    fn signal_vcpu(&self, id: u32, data: u32) -> Result<()> {
        let missing = || Error::Unsupported(format!("vCPU {id}: no such vCPU in this VM"));
        self.apics.get(id).ok_or_else(missing)?.signal(data);
        Ok(())
    }

    /// A bus write is a direct call here: no short cut is needed.
    fn add_doorbell(&self, _address: Doorbell, _event: &OwnedFd) -> Result<bool> {
        Ok(false)
    }

    fn remove_doorbell(&self, _address: Doorbell, _event: &OwnedFd) -> Result<()> {
        Ok(())
    }
}

impl Vcpu for SoftVcpu {
    fn run(&mut self) -> Stop {
        self.run_loop()
    }

    fn state(&mut self) -> Result<VcpuState> {
        Ok(self.get_state())
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<()> {
        self.put_state(state)
    }

    fn kicker(&self) -> Arc<dyn Kicker> {
        self.doorstep()
    }

    fn statistics(&self) -> Arc<dyn Statistics> {
        self.counters()
    }
}

impl Kicker for Doorstep {
    fn stop(&self) {
        self.set_stop(true);
    }

    fn resume(&self) {
        self.set_stop(false);
    }
}
