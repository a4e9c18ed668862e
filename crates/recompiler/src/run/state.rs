//! Between the vCPU structure and [`VcpuState`].

use engine::{FpuState, Pending, RunState, VcpuState};

use super::SoftVcpu;
use crate::apic::pending;
use crate::cpu::{Activity, Cpu, control};
use crate::mmu::read_pdptes;
use crate::system::msr;

/// Offset of MXCSR in the image.
const MXCSR: usize = 24;
/// The part that is x87: control words and pointers, then (after MXCSR) eight registers.
const CONTROL: std::ops::Range<usize> = 0..24;
const REGISTERS: std::ops::Range<usize> = 32..160;
/// XMM0–15 in the image, and their upper halves in the XSAVE area.
const XMM: usize = 160;
const YMM_HIGH: usize = 576;

impl SoftVcpu {
    /// The architectural state.
    pub(crate) fn get_state(&mut self) -> VcpuState {
        let cpu = &mut *self.cpu;
        let mut fpu = FpuState::default();
        fpu.area[CONTROL].copy_from_slice(&self.x87.0[CONTROL]);
        fpu.area[REGISTERS].copy_from_slice(&self.x87.0[REGISTERS]);
        fpu.area[MXCSR..MXCSR + 4].copy_from_slice(&cpu.mxcsr.to_le_bytes());
        fpu.area[MXCSR + 4..MXCSR + 8].copy_from_slice(&0xffffu32.to_le_bytes());
        for (n, v) in cpu.vectors.iter().enumerate() {
            let halves = [(XMM, &v[..2]), (YMM_HIGH, &v[2..])];
            for (base, half) in halves {
                for (k, word) in half.iter().enumerate() {
                    let at = base + 16 * n + 8 * k;
                    fpu.area[at..at + 8].copy_from_slice(&word.to_le_bytes());
                }
            }
        }
        let (apic_base, apic) = cpu.apic.save();
        let nmi = cpu.apic.pending() & pending::NMI != 0;
        VcpuState {
            gpr: cpu.gpr,
            rip: cpu.rip,
            rflags: cpu.rflags,
            segments: cpu.segments,
            gdtr: cpu.gdtr,
            idtr: cpu.idtr,
            cr0: cpu.cr0,
            cr2: cpu.cr2,
            cr3: cpu.cr3,
            cr4: cpu.cr4,
            efer: cpu.efer,
            xcr0: cpu.xcr0,
            dr: cpu.dr,
            fpu,
            msrs: msr::export(cpu),
            apic_base,
            apic,
            run: match cpu.activity {
                Activity::Halted => RunState::Halted,
                Activity::WaitForSipi => RunState::WaitForSipi,
                Activity::Running | Activity::Shutdown => RunState::Running,
            },
            pending: Pending { nmi, nmi_blocked: cpu.nmi_blocked, shadow: cpu.shadow },
        }
    }

    /// Replaces the architectural state.
    pub(crate) fn put_state(&mut self, state: &VcpuState) -> engine::Result<()> {
        if state.rflags & 2 == 0 {
            return Err(engine::Error::State("RFLAGS bit 1 is always set"));
        }
        self.x87.0[CONTROL].copy_from_slice(&state.fpu.area[CONTROL]);
        self.x87.0[REGISTERS].copy_from_slice(&state.fpu.area[REGISTERS]);
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&state.fpu.area[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let mxcsr = word(MXCSR) as u32;
        if mxcsr & !0xffff != 0 {
            return Err(engine::Error::State("MXCSR has reserved bits"));
        }
        let cpu: &mut Cpu = &mut self.cpu;
        cpu.apic.restore(state.apic_base, &state.apic).map_err(engine::Error::State)?;
        cpu.mxcsr = mxcsr;
        cpu.jit.upper_used = 1;
        for (n, v) in cpu.vectors.iter_mut().enumerate() {
            let (low, high) = (XMM + 16 * n, YMM_HIGH + 16 * n);
            *v = [word(low), word(low + 8), word(high), word(high + 8)];
        }
        cpu.gpr = state.gpr;
        cpu.rip = state.rip;
        cpu.rflags = state.rflags;
        cpu.segments = state.segments;
        cpu.gdtr = state.gdtr;
        cpu.idtr = state.idtr;
        (cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4) = (state.cr0, state.cr2, state.cr3, state.cr4);
        cpu.efer = state.efer;
        cpu.xcr0 = state.xcr0 | 1;
        cpu.dr = state.dr;
        msr::import(cpu, &state.msrs).map_err(engine::Error::State)?;
        let pae = cpu.cr0 & control::CR0_PG != 0 && cpu.cr4 & control::CR4_PAE != 0 && !cpu.long_mode();
        if pae {
            // The state has no place for what CR3 loaded; nearly always memory still holds it.
            cpu.pdptes = read_pdptes(cpu, cpu.cr3).unwrap_or_default();
        }
        // CPL is the DPL of SS (Intel SDM vol. 3, 25.3.1.2), but 0 in real and 3 in v86 mode.
        cpu.cpl = match (cpu.protected(), cpu.virtual_8086()) {
            (false, _) => 0,
            (_, true) => 3,
            _ => cpu.segments[engine::seg::SS].dpl(),
        };
        cpu.activity = match state.run {
            RunState::Running => Activity::Running,
            RunState::Halted => Activity::Halted,
            RunState::WaitForSipi => Activity::WaitForSipi,
        };
        cpu.apic.set_waiting(state.run == RunState::WaitForSipi);
        cpu.nmi_blocked = state.pending.nmi_blocked;
        cpu.shadow = state.pending.shadow;
        if state.pending.nmi {
            cpu.apic.raise_nmi();
        }
        cpu.tlb.flush_all();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apic::Apics;
    use crate::testing;

    #[test]
    fn what_the_state_does_not_hold_itself_comes_back() {
        let shared = testing::cpu().shared.clone();
        let apics = Apics::new(&shared.config, &shared.services);
        let mut vcpu = SoftVcpu::new(&shared, &apics, 0).unwrap();
        shared.services.memory.write(0x4008, &0x5001u64.to_le_bytes()).unwrap();
        let mut state = vcpu.get_state();
        state.cr0 |= control::CR0_PE | control::CR0_PG;
        (state.cr3, state.cr4) = (0x4000, control::CR4_PAE);
        state.pending.nmi = true;
        vcpu.put_state(&state).unwrap();
        assert_eq!(vcpu.cpu.pdptes, [0, 0x5001, 0, 0]);
        assert!(vcpu.get_state().pending.nmi);
    }
}
