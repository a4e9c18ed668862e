//! Interrupts, NMI, INIT and SIPI.

use engine::{Event as Counted, RunState, Segment, VcpuState, seg};

use super::SoftVcpu;
use crate::apic::pending;
use crate::cpu::{Activity, control, flag};
use crate::exception::Exception;
use crate::system::interrupts::{self, Event};

impl SoftVcpu {
    /// Takes what the local APIC holds and the vCPU accepts now, in the order of Intel SDM vol. 3,
    /// table 6-2.
    pub(super) fn take_events(&mut self) {
        let waiting = self.cpu.apic.pending();
        if waiting & pending::INIT != 0 && self.cpu.apic.take_init() {
            self.init();
            return;
        }
        if self.cpu.activity == Activity::WaitForSipi {
            if waiting & pending::SIPI != 0
                && let Some(vector) = self.cpu.apic.take_sipi()
            {
                self.start_up(vector);
            }
            return;
        }
        if self.cpu.shadow || self.cpu.activity == Activity::Shutdown {
            return;
        }
        if waiting & pending::NMI != 0 && !self.cpu.nmi_blocked && self.cpu.apic.take_nmi() {
            self.cpu.activity = Activity::Running;
            self.cpu.nmi_blocked = true;
            self.cpu.counters.count(Counted::Nmi);
            interrupts::deliver(&mut self.cpu, Event::nmi());
            return;
        }
        if waiting & (pending::FIXED | pending::EXTINT) != 0
            && self.cpu.rflags & flag::IF != 0
            && let Some(vector) = self.acknowledge()
        {
            self.cpu.activity = Activity::Running;
            interrupts::deliver(&mut self.cpu, Event::external(vector));
        }
    }

    fn acknowledge(&mut self) -> Option<u8> {
        if let Some(vector) = self.cpu.apic.acknowledge_external() {
            self.cpu.counters.count(Counted::ExternalDelivered);
            return Some(vector);
        }
        self.cpu.apic.acknowledge()
    }

    /// Delivers an exception of the instruction at CS:RIP.
    pub(super) fn raise(&mut self, exception: Exception) {
        self.cpu.shadow = false;
        self.cpu.counters.count(Counted::Exception);
        interrupts::deliver(&mut self.cpu, exception.into());
    }

    /// The state after INIT (Intel SDM vol. 3, table 10-1): x87, SSE, TSC and most MSRs stay.
    fn init(&mut self) {
        let reset = VcpuState::reset(self.cpu.id);
        let cpu = &mut self.cpu;
        cpu.gpr = reset.gpr;
        cpu.rip = reset.rip;
        cpu.rflags = reset.rflags;
        cpu.segments = reset.segments;
        cpu.gdtr = reset.gdtr;
        cpu.idtr = reset.idtr;
        cpu.cr0 =
            reset.cr0 & !(control::CR0_CD | control::CR0_NW) | cpu.cr0 & (control::CR0_CD | control::CR0_NW);
        cpu.cr2 = 0;
        cpu.cr3 = 0;
        cpu.cr4 = 0;
        cpu.efer = 0;
        cpu.dr = reset.dr;
        cpu.cpl = 0;
        cpu.shadow = false;
        cpu.nmi_blocked = false;
        cpu.tlb.flush_all();
        let bootstrap = cpu.apic.is_bootstrap();
        cpu.activity = if bootstrap { Activity::Running } else { Activity::WaitForSipi };
        debug_assert_eq!(reset.run == RunState::Running, cpu.id == 0);
    }

    /// Starts in real mode at page `vector` (Intel SDM vol. 3, 10.4.4.1).
    fn start_up(&mut self, vector: u8) {
        let cpu = &mut self.cpu;
        cpu.segments[seg::CS] = Segment {
            base: u64::from(vector) << 12,
            selector: u16::from(vector) << 8,
            ..cpu.segments[seg::CS]
        };
        cpu.rip = 0;
        cpu.activity = Activity::Running;
        cpu.apic.set_waiting(false);
    }
}
