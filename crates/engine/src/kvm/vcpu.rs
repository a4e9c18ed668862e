//! One vCPU of KVM and its run loop.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bus::PowerEvent;
use kvm_bindings::{
    CpuId, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IOAPIC_EOI,
    KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MEMORY_FAULT, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_EXIT_X86_RDMSR,
    KVM_EXIT_X86_WRMSR, KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_SIMUL_EX, KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED,
    kvm_lapic_state,
};
use kvm_ioctls::VcpuFd;

use super::cpuid::Source;
use super::kick::{Kick, Life};
use super::page::{PortAccess, RunPage};
use super::state::{self, Context};
use super::stats::Stats;
use super::vm::Shared;
use super::{Stepper, failed, sys};
use crate::{Error, Event, Kicker, Result, Statistics, Stop, Vcpu, VcpuState, host_tsc_hz};

/// RFLAGS.IF.
const INTERRUPT_FLAG: u64 = 1 << 9;
/// IA32_APIC_BASE: x2APIC mode.
const X2APIC: u64 = 1 << 10;
/// Exits that completing one instruction can need: a page-crossing string element in pieces of 8 bytes
/// is far below.
const COMPLETIONS: u32 = 64;

/// One vCPU.
pub struct KvmVcpu {
    fd: VcpuFd,
    shared: Arc<Shared>,
    kick: Arc<Kick>,
    stats: Arc<Stats>,
    id: u32,
    apic_id: u32,
    msrs: Vec<u32>,
    reset_apic: kvm_lapic_state,
    stepper: Option<Box<dyn Stepper>>,
    /// A vector that the PIC has given and KVM has not taken yet.
    held: Option<u8>,
    /// KVM finishes the last exit's instruction when it is called next.
    unfinished: bool,
}

impl KvmVcpu {
    pub fn new(shared: &Arc<Shared>, id: u32) -> Result<Self> {
        let config = &shared.config;
        if id >= config.vcpus {
            return Err(Error::Unsupported(format!("vCPU {id}: no such vCPU in this VM")));
        }
        let apic_id = config.cpuid.topology.apic_id(id);
        let fd = shared.fd.create_vcpu(u64::from(apic_id)).map_err(failed("KVM_CREATE_VCPU"))?;
        let page = RunPage::map(&fd, shared.fd.run_size())
            .map_err(|source| Error::System { what: "cannot map a vCPU's page", source })?;
        let source = Source {
            table: &config.cpuid,
            supported: &shared.supported,
            tsc_deadline: shared.tsc_deadline,
            tsc_hz: fd.get_tsc_khz().map_or_else(|_| host_tsc_hz(), |khz| u64::from(khz) * 1000),
        };
        let cpuid = CpuId::from_entries(&source.entries(apic_id))
            .map_err(|_| Error::Unsupported("the CPUID table has too many entries for KVM".into()))?;
        fd.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2"))?;
        let make = |factory: &super::StepperFactory| factory(config, &shared.services, id);
        let mut vcpu = Self {
            msrs: state::kept_msrs(&fd),
            reset_apic: fd.get_lapic().map_err(failed("KVM_GET_LAPIC"))?,
            stats: Arc::new(Stats::open(&fd)),
            fd,
            shared: shared.clone(),
            kick: Arc::new(Kick::new(page)),
            id,
            apic_id,
            stepper: shared.steppers.as_ref().map(make).transpose()?,
            held: None,
            unfinished: false,
        };
        let mut reset = VcpuState::reset(id);
        if config.x2apic {
            reset.apic_base |= X2APIC;
        }
        vcpu.set_state(&reset)?;
        if !shared.register(id, vcpu.kick.clone()) {
            return Err(Error::Unsupported(format!("vCPU {id} exists already")));
        }
        Ok(vcpu)
    }

    fn context(&self) -> Context {
        Context {
            msrs: self.msrs.clone(),
            reset_apic: self.reset_apic,
            now: self.shared.services.clock.now(),
            has_xcrs: self.shared.has_xcrs,
        }
    }

    fn run_loop(&mut self) -> Stop {
        let kick = self.kick.clone();
        let _entered = kick.enter();
        loop {
            kick.page().set_immediate_exit(false);
            if kick.stop_wanted() || self.shared.services.power.event().is_some() {
                return Stop::Stopped;
            }
            if kick.take_ask() {
                kick.answer(self.life().unwrap_or(Life::Alive));
            }
            self.offer_interrupt();
            self.unfinished = false;
            self.stats.count(Event::UserSpace);
            let stop = match sys::run(&self.fd) {
                Ok(()) => self.handle_exit(),
                Err(error) => self.handle_error(&error),
            };
            if let Some(stop) = stop {
                return stop;
            }
        }
    }

    fn handle_error(&self, error: &io::Error) -> Option<Stop> {
        match error.raw_os_error() {
            // A signal; or a vCPU that waited for INIT has got one.
            Some(libc::EINTR | libc::EAGAIN) => None,
            Some(libc::EFAULT) => Some(self.unhandled("KVM can't reach the memory that the guest uses")),
            _ => Some(self.unhandled("KVM_RUN failed")),
        }
    }

    fn unhandled(&self, what: &'static str) -> Stop {
        let base = self.fd.get_sregs().map_or(0, |s| s.cs.base);
        Stop::Unhandled { rip: base.wrapping_add(self.fd.get_regs().map_or(0, |r| r.rip)), what }
    }

    fn handle_exit(&mut self) -> Option<Stop> {
        match self.kick.page().exit_reason() {
            KVM_EXIT_IO => {
                self.unfinished = true;
                self.stats.count(Event::Port);
                self.port_access()
            }
            KVM_EXIT_MMIO => {
                self.unfinished = true;
                self.memory_access();
                None
            }
            KVM_EXIT_INTR | KVM_EXIT_IRQ_WINDOW_OPEN => None,
            KVM_EXIT_IOAPIC_EOI => {
                let vector = self.kick.page().eoi_vector();
                self.shared.services.interrupts.end_of_interrupt(vector);
                None
            }
            KVM_EXIT_X86_RDMSR | KVM_EXIT_X86_WRMSR => {
                self.unfinished = true;
                self.kick.page().answer_msr(self.shared.config.strict_msr);
                None
            }
            KVM_EXIT_SHUTDOWN => {
                self.shared.services.power.request(PowerEvent::TripleFault);
                Some(Stop::TripleFault)
            }
            KVM_EXIT_INTERNAL_ERROR => match self.kick.page().internal_error() {
                KVM_INTERNAL_ERROR_EMULATION => self.step(),
                KVM_INTERNAL_ERROR_SIMUL_EX => {
                    Some(self.unhandled("KVM: exception while delivering another"))
                }
                KVM_INTERNAL_ERROR_DELIVERY_EV => Some(self.unhandled("KVM: can't deliver an event")),
                _ => Some(self.unhandled("KVM: internal error")),
            },
            KVM_EXIT_FAIL_ENTRY => Some(self.unhandled("the host's processor refuses the guest's state")),
            KVM_EXIT_MEMORY_FAULT => Some(self.unhandled("KVM can't reach the memory that the guest uses")),
            _ => Some(self.unhandled("KVM: unknown exit")),
        }
    }

    /// IN, OUT, INS, OUTS: all elements of the exit, one by one.
    fn port_access(&self) -> Option<Stop> {
        let PortAccess { write, port, size, count, offset } = self.kick.page().port_access();
        let (page, bus) = (self.kick.page(), &self.shared.services.bus);
        let mut buffer = [0u8; 4];
        let Some(data) = buffer.get_mut(..usize::from(size)) else {
            return Some(self.unhandled("KVM: port access of an unknown size"));
        };
        let mut claimed = true;
        for n in 0..u64::from(count) {
            let at = offset.saturating_add(n * u64::from(size));
            let inside = if write {
                let inside = page.read(at, data);
                claimed &= bus.port_write(port, data);
                inside
            } else {
                claimed &= bus.port_read(port, data);
                page.write(at, data)
            };
            if !inside {
                return Some(self.unhandled("KVM: port data outside of the shared page"));
            }
        }
        let strict = self.shared.config.strict_io && !claimed;
        strict.then_some(Stop::UnclaimedPort { port, write, size })
    }

    fn memory_access(&self) {
        let access = self.kick.page().memory_access();
        let mut data = access.data;
        let Some(part) = data.get_mut(..access.len as usize) else { return };
        if access.write {
            self.shared.services.bus.memory_write(access.gpa, part);
        } else {
            self.shared.services.bus.memory_read(access.gpa, part);
            self.kick.page().set_memory_data(data);
        }
    }

    /// Gives KVM the PIC's interrupt when the guest takes it, or asks to be told when it does.
    fn offer_interrupt(&mut self) {
        if self.id != 0 {
            return;
        }
        let wanted = || self.shared.intr.load(Ordering::SeqCst);
        let page = self.kick.page();
        if (self.held.is_some() || wanted()) && page.ready_for_interrupt() {
            let vector = self.held.take().or_else(|| self.shared.services.interrupts.acknowledge());
            if let Some(vector) = vector {
                match sys::interrupt(&self.fd, vector) {
                    Ok(()) => self.stats.count(Event::ExternalDelivered),
                    Err(_) => self.held = Some(vector),
                }
            }
        }
        page.request_interrupt_window(self.held.is_some() || wanted());
    }

    /// KVM can't emulate the instruction at RIP: the stepper executes it.
    fn step(&mut self) -> Option<Stop> {
        let Some(mut stepper) = self.stepper.take() else {
            return Some(self.unhandled("KVM can't emulate this instruction"));
        };
        let stop = match self.step_with(&mut *stepper) {
            Ok(Ok(())) => None,
            Ok(Err(what)) => Some(self.unhandled(what)),
            Err(_) => Some(self.unhandled("KVM refuses the state after a stepped instruction")),
        };
        self.stepper = Some(stepper);
        stop
    }

    fn step_with(&mut self, stepper: &mut dyn Stepper) -> Result<std::result::Result<(), &'static str>> {
        let context = self.context();
        let before = state::get(&self.fd, &context)?;
        let mut after = before.clone();
        if let Err(what) = stepper.step(&mut after, &self.shared.services) {
            return Ok(Err(what));
        }
        state::set_stepped(&self.fd, &before, &after, &context)?;
        Ok(Ok(()))
    }

    /// Whether anything but another vCPU can wake this one.
    fn life(&self) -> Result<Life> {
        let mp = self.fd.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?.mp_state;
        if matches!(mp, KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED) {
            return Ok(Life::Waiting);
        }
        let flags = self.fd.get_regs().map_err(failed("KVM_GET_REGS"))?.rflags;
        let events = self.fd.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?;
        let asleep = mp == KVM_MP_STATE_HALTED && flags & INTERRUPT_FLAG == 0;
        Ok(if asleep && events.nmi.pending == 0 && events.nmi.injected == 0 {
            Life::Dead
        } else {
            Life::Alive
        })
    }

    /// Lets KVM finish the instruction of the last exit, so that the state is one between instructions.
    fn finish(&mut self) -> Result<()> {
        let kick = self.kick.clone();
        for _ in 0..COMPLETIONS {
            if !std::mem::take(&mut self.unfinished) {
                return Ok(());
            }
            kick.page().set_immediate_exit(true);
            match sys::run(&self.fd) {
                // The instruction needs another access.
                Ok(()) => match self.handle_exit() {
                    None | Some(Stop::UnclaimedPort { .. }) => {}
                    Some(_) => return Err(Error::State("the vCPU can't finish its instruction")),
                },
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(source) => return Err(Error::System { what: "KVM_RUN", source }),
            }
        }
        Err(Error::State("the vCPU does not finish its instruction"))
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> Stop {
        self.run_loop()
    }

    fn state(&mut self) -> Result<VcpuState> {
        self.finish()?;
        state::get(&self.fd, &self.context())
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<()> {
        self.finish()?;
        state::set(&self.fd, state, self.apic_id, &self.context())
    }

    fn kicker(&self) -> Arc<dyn Kicker> {
        self.kick.clone()
    }

    fn statistics(&self) -> Arc<dyn Statistics> {
        self.stats.clone()
    }
}
