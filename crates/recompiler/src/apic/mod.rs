//! The local APICs: xAPIC and x2APIC, timers, inter-processor interrupts, messages.
//!
//! Each APIC's registers are behind one short-held lock, so any thread may deliver. What waits
//! for the vCPU is mirrored in one atomic ([`Apic::pending`]) that its run loop reads without the
//! lock; it is stored before [`Attention::raise`] is called, so a vCPU that clears its attention
//! flag and then looks at `pending` never misses an interrupt.

mod ipi;
mod registers;
mod state;
#[cfg(test)]
mod tests;
mod timer;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use bus::{Clock, InterruptController, Timer};
use engine::{VmConfig, VmServices, host_tsc_hz};

use crate::exception::{Exception, Exec};
use registers::{Effect, Features, Registers};

pub use registers::{Lvt, pending};
pub use timer::{BUS_HZ, host_tsc};

/// MSRs of x2APIC mode (Intel SDM vol. 3, table 11-6).
pub const X2APIC_MSRS: std::ops::RangeInclusive<u32> = 0x800..=0x8ff;

/// Value of the page when the APIC is not in memory.
const NO_PAGE: u64 = u64::MAX;

/// Tells a vCPU that something waits for it. Called from any thread, after the fact is visible in
/// [`Apic::pending`], without locks held.
pub trait Attention: Send + Sync {
    /// Makes the vCPU leave translated code, or HLT, soon.
    fn raise(&self);
}

/// Local APIC of one vCPU; any thread may deliver interrupts to it.
pub struct Apic {
    index: u32,
    id: u32,
    registers: Mutex<Registers>,
    pending: AtomicU32,
    page: AtomicU64,
    attention: OnceLock<Arc<dyn Attention>>,
    timer: Timer,
    clock: Clock,
    interrupts: Arc<dyn InterruptController>,
    peers: Weak<Apics>,
}

/// The local APICs of a VM; as [`bus::MsiSink`] it takes the machine's interrupts.
pub struct Apics {
    cpus: Vec<Arc<Apic>>,
    intr: AtomicBool,
}

fn features(config: &VmConfig) -> Features {
    let leaf = |n: u32| config.cpuid.leaf(n, 0);
    let ecx = leaf(1).map_or(0, |l| l.ecx);
    let width = leaf(0x8000_0008).map_or(36, |l| l.eax & 0xff).clamp(32, 52);
    Features { x2apic: ecx & 1 << 21 != 0, tsc_deadline: ecx & 1 << 24 != 0, physical_mask: (1 << width) - 1 }
}

impl Apics {
    /// The APICs of a VM, in the state after power-on.
    pub fn new(config: &VmConfig, services: &VmServices) -> Arc<Self> {
        let features = features(config);
        Arc::new_cyclic(|peers| {
            let cpu = |index| {
                let id = config.cpuid.topology.apic_id(index);
                let registers = Registers::new(id, index == 0, config.x2apic, features);
                Apic::new(index, registers, services, peers.clone())
            };
            Self { cpus: (0..config.vcpus).map(cpu).collect(), intr: AtomicBool::new(false) }
        })
    }

    /// The APIC of vCPU `index`.
    pub fn get(&self, index: u32) -> Option<&Arc<Apic>> {
        self.cpus.get(index as usize)
    }

    /// All, in vCPU order.
    pub fn all(&self) -> &[Arc<Apic>] {
        &self.cpus
    }
}

impl Apic {
    fn new(index: u32, registers: Registers, services: &VmServices, peers: Weak<Apics>) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| {
            let me = me.clone();
            let timer = services.timers.timer(move || {
                if let Some(apic) = me.upgrade() {
                    apic.timer_expired();
                }
            });
            let new = Self {
                index,
                id: registers.id,
                pending: AtomicU32::new(0),
                page: AtomicU64::new(NO_PAGE),
                registers: Mutex::new(registers),
                attention: OnceLock::new(),
                timer,
                clock: services.clock,
                interrupts: services.interrupts.clone(),
                peers,
            };
            new.publish(&new.lock());
            new
        })
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes what changed under the lock visible outside; what is pending now.
    fn publish(&self, registers: &Registers) -> u32 {
        let pending = registers.pending();
        self.pending.store(pending, Ordering::SeqCst);
        let in_memory = registers.enabled() && !registers.x2apic();
        let page = registers.base & registers.features.physical_mask & !0xfff;
        self.page.store(if in_memory { page } else { NO_PAGE }, Ordering::Release);
        pending
    }

    /// Changes the registers, publishes, and calls for attention if anything waits.
    fn change<T>(&self, change: impl FnOnce(&mut Registers) -> T) -> T {
        let mut registers = self.lock();
        let result = change(&mut registers);
        let pending = self.publish(&registers);
        drop(registers);
        if pending != 0 {
            self.raise();
        }
        result
    }

    fn raise(&self) {
        if let Some(attention) = self.attention.get() {
            attention.raise();
        }
    }

    /// Whom to tell; the first one stays. Raises at once if something waits already.
    pub fn set_attention(&self, attention: Arc<dyn Attention>) {
        let _ = self.attention.set(attention);
        if self.pending() != 0 {
            self.raise();
        }
    }

    /// Number of the vCPU.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// APIC id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What waits: bits of [`pending`]. The task priority is taken into account, RFLAGS.IF and
    /// the like are not.
    pub fn pending(&self) -> u32 {
        self.pending.load(Ordering::SeqCst)
    }

    /// Whether a maskable interrupt waits.
    pub fn has_interrupt(&self) -> bool {
        self.pending() & (pending::FIXED | pending::EXTINT) != 0
    }

    /// Takes the interrupt that the processor accepts now: the vector of the 8259 pair if it asks,
    /// else the highest requested one, which goes into service. `None`: the request went away.
    pub fn acknowledge(&self) -> Option<u8> {
        self.acknowledge_external().or_else(|| self.change(Registers::acknowledge))
    }

    /// Takes the vector of the 8259 pair, if it asks.
    pub fn acknowledge_external(&self) -> Option<u8> {
        if self.pending() & pending::EXTINT == 0 {
            return None;
        }
        self.change(|r| r.extint = false);
        // Without the lock: the controller may drop INTR, which comes back here.
        self.interrupts.acknowledge()
    }

    /// Takes a latched NMI.
    pub fn take_nmi(&self) -> bool {
        self.change(|r| std::mem::take(&mut r.nmi))
    }

    /// Takes a latched INIT; the registers are then as INIT leaves them. The vCPU goes on at the
    /// reset vector if [`Apic::is_bootstrap`], else it waits for [`Apic::take_sipi`].
    pub fn take_init(&self) -> bool {
        let taken = self.change(|r| {
            let init = std::mem::take(&mut r.init);
            if init {
                r.reset();
            }
            init
        });
        if taken {
            self.timer.disarm();
        }
        taken
    }

    /// Takes the vector of a latched SIPI. Those that come to a running vCPU are not latched.
    pub fn take_sipi(&self) -> Option<u8> {
        self.change(|r| r.sipi.take())
    }

    /// Says whether the vCPU waits for a SIPI (after its state was set).
    pub fn set_waiting(&self, waiting: bool) {
        self.change(|r| r.waiting = waiting);
    }

    /// Whether this is the bootstrap processor.
    pub fn is_bootstrap(&self) -> bool {
        self.lock().bootstrap()
    }

    /// Latches an NMI.
    pub fn raise_nmi(&self) {
        self.change(|r| r.nmi = true);
    }

    /// Fires a local source as if its pin or counter did.
    pub fn raise_local(&self, lvt: Lvt) {
        self.change(|r| r.local(lvt));
    }

    /// CR8: bits 4–7 of the task priority.
    pub fn cr8(&self) -> u64 {
        u64::from(self.lock().tpr >> 4)
    }

    /// Writes CR8; the caller has checked that it is below 16.
    pub fn set_cr8(&self, value: u64) {
        self.change(|r| r.tpr = (value as u32 & 0xf) << 4);
    }

    /// IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        self.lock().base
    }

    /// Writes IA32_APIC_BASE; #GP for a value or transition that does not exist. The caller drops
    /// its translations if the page moved.
    pub fn set_base(&self, value: u64) -> Exec<()> {
        self.change(|r| {
            r.set_base(value)?;
            self.rearm(r);
            Ok(())
        })
        .map_err(|registers::Illegal| Exception::gp(0))
    }

    /// Guest-physical address of the register page while it is in memory.
    pub fn mmio_page(&self) -> Option<u64> {
        match self.page.load(Ordering::Acquire) {
            NO_PAGE => None,
            page => Some(page),
        }
    }

    /// Reads the register page at `offset`. Registers are 32 bits at multiples of 16; what lies
    /// between reads as 0.
    pub fn mmio_read(&self, offset: u64, data: &mut [u8]) {
        let mut registers = self.lock();
        let mut bad = false;
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = if at & 0xc == 0 {
                let value = registers.read((at >> 4 & 0xff) as usize, &self.clock);
                bad |= value.is_err();
                (value.unwrap_or(0) >> (8 * (at & 3))) as u8
            } else {
                0
            };
        }
        if bad {
            registers.illegal_register();
            self.publish(&registers);
        }
        drop(registers);
        if bad {
            self.raise();
        }
    }

    /// Writes the register page. Only whole registers are taken, as 32 bits or the low half of 64.
    pub fn mmio_write(&self, offset: u64, data: &[u8]) {
        let Some(&[a, b, c, d]) = data.first_chunk() else { return };
        if offset & 0xf != 0 {
            return;
        }
        let value = u32::from_le_bytes([a, b, c, d]);
        let effect = self.change(|r| {
            let effect = r.write((offset >> 4 & 0xff) as usize, value, &self.clock);
            if effect.is_err() {
                r.illegal_register();
            }
            self.rearm(r);
            effect
        });
        self.act(effect.unwrap_or(Effect::None));
    }

    /// Reads an MSR of [`X2APIC_MSRS`].
    pub fn read_msr(&self, msr: u32) -> Exec<u64> {
        let registers = self.lock();
        let register = msr.wrapping_sub(*X2APIC_MSRS.start()) as usize;
        if !registers.x2apic() {
            return Err(Exception::gp(0));
        }
        registers.read_msr(register, &self.clock).map_err(|registers::Illegal| Exception::gp(0))
    }

    /// Writes an MSR of [`X2APIC_MSRS`].
    pub fn write_msr(&self, msr: u32, value: u64) -> Exec<()> {
        let register = msr.wrapping_sub(*X2APIC_MSRS.start()) as usize;
        let effect = self.change(|r| {
            if !r.x2apic() {
                return Err(registers::Illegal);
            }
            let effect = r.write_msr(register, value, &self.clock)?;
            self.rearm(r);
            Ok(effect)
        });
        self.act(effect.map_err(|registers::Illegal| Exception::gp(0))?);
        Ok(())
    }

    /// IA32_TSC_DEADLINE.
    pub fn tsc_deadline(&self) -> u64 {
        self.lock().timing.tsc_deadline
    }

    /// Writes IA32_TSC_DEADLINE while the guest's TSC reads `tsc`.
    pub fn set_tsc_deadline(&self, value: u64, tsc: u64) {
        self.change(|r| {
            if r.timing.set_tsc_deadline(value, tsc, host_tsc_hz(), self.clock.now()) {
                r.local(Lvt::Timer);
            }
            self.rearm(r);
        });
    }

    /// Arms the service's timer as the registers say; under the lock, so that the last one wins.
    fn rearm(&self, registers: &mut Registers) {
        let deadline = registers.timing.deadline;
        if registers.timing.armed == deadline {
            return;
        }
        registers.timing.armed = deadline;
        match deadline {
            0 => self.timer.disarm(),
            deadline => self.timer.arm(deadline),
        }
    }

    fn timer_expired(&self) {
        self.change(|r| {
            r.timing.armed = 0;
            if r.timing.expire(self.clock.now()) {
                r.local(Lvt::Timer);
            }
            self.rearm(r);
        });
    }
}
