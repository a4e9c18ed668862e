//! The local APIC's state at rest.

use engine::ApicState;

use super::Apic;
use super::registers::{Registers, Vectors, index};

impl Apic {
    /// IA32_APIC_BASE and the registers.
    pub fn save(&self) -> (u64, ApicState) {
        let registers = self.lock();
        let mut regs = [0; 64];
        for (register, slot) in regs.iter_mut().enumerate() {
            *slot = registers.read(register, &self.clock).unwrap_or(0);
        }
        if registers.x2apic() {
            regs[index::ICR_HIGH] = (registers.icr >> 32) as u32;
        }
        (registers.base, ApicState { regs, timer_deadline: registers.timing.deadline })
    }

    /// Takes a saved state. A register page that was never written (version 0) is the state after
    /// power-on in the mode that `base` says. Latched NMI, INIT and SIPI are dropped.
    pub fn restore(&self, base: u64, state: &ApicState) -> Result<(), &'static str> {
        self.change(|r| {
            let mut new = Registers::new(r.id, false, false, r.features);
            (new.intr, new.waiting) = (r.intr, r.waiting);
            // From "off" every state can be reached, if by two steps.
            new.base = 0;
            let enable = base & !super::registers::base::X2APIC;
            new.set_base(enable).and_then(|()| new.set_base(base)).map_err(|_| "IA32_APIC_BASE")?;
            new.reset();
            if state.regs[index::VERSION] != 0 {
                load(&mut new, state);
            }
            *r = new;
            self.timer.disarm();
            self.rearm(r);
            Ok(())
        })
    }
}

fn load(r: &mut Registers, state: &ApicState) {
    let regs = &state.regs;
    let vectors = |first: usize| {
        let mut words = [0; 8];
        words.copy_from_slice(&regs[first..first + 8]);
        // Vectors 0–15 can't be requested.
        words[0] &= !0xffff;
        Vectors(words)
    };
    r.tpr = regs[index::TPR] & 0xff;
    r.isr = vectors(index::ISR);
    r.tmr = vectors(index::TMR);
    r.irr = vectors(index::IRR);
    if !r.x2apic() {
        r.ldr = regs[index::LDR] & 0xff00_0000;
        r.dfr = regs[index::DFR] | 0x0fff_ffff;
    }
    r.esr = regs[index::ESR];
    r.icr = u64::from(regs[index::ICR]) | u64::from(regs[index::ICR_HIGH]) << 32;
    r.load_svr_and_lvt(regs[index::SVR], &regs[index::LVT..index::INITIAL]);
    r.timing.initial = regs[index::INITIAL];
    r.timing.divide = regs[index::DIVIDE] & 0xb;
    r.timing.mode = regs[index::LVT] >> 17 & 3;
    r.timing.deadline = state.timer_deadline;
}
