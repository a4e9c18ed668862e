//! One instruction at a time, for an engine that can't emulate it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use engine::{Stepper, StepperFactory, VcpuState, VmServices};

use super::SoftVcpu;
use super::exits::Outcome;
use crate::apic::Apics;
use crate::cpu::flag;
use crate::shared::Shared;
use crate::translate::Mode;

/// Makes steppers out of the recompiler.
pub fn steppers() -> StepperFactory {
    Arc::new(|config, services, id| {
        let apics = Apics::new(config, services);
        let shared = Shared::unwatched(config.clone(), services.clone());
        Ok(Box::new(SoftStepper(SoftVcpu::new(&shared, &apics, id)?)))
    })
}

struct SoftStepper(SoftVcpu);

impl Stepper for SoftStepper {
    fn step(&mut self, state: &mut VcpuState, _services: &VmServices) -> Result<(), &'static str> {
        let vcpu = &mut self.0;
        vcpu.put_state(state).map_err(|_| "the recompiler refuses the vCPU's state")?;
        vcpu.borrow_thread();
        let result = vcpu.one_instruction();
        vcpu.leave_thread();
        result?;
        *state = vcpu.get_state();
        Ok(())
    }
}

impl SoftVcpu {
    /// Executes exactly one instruction, or delivers what it raises. Nothing translated is kept:
    /// other vCPUs and devices change memory without telling.
    fn one_instruction(&mut self) -> Result<(), &'static str> {
        self.forget_code();
        self.cpu.attention.store(0, Ordering::SeqCst);
        let trap = self.cpu.rflags & flag::TF != 0;
        let mode = Mode::of(&self.cpu, true);
        self.cpu.shadow = false;
        let done = self.find_block(mode).and_then(|number| {
            let target = self.cache.address(self.cache.block(number).checked);
            self.run_code(target, mode)
        });
        match done {
            Ok(Outcome::Done) if trap => self.single_step(),
            Ok(Outcome::Done | Outcome::Entered | Outcome::Again) => {}
            Ok(Outcome::Stop(_)) => return Err("the instruction stops the VM"),
            Err(exception) => self.raise(exception),
        }
        Ok(())
    }
}
