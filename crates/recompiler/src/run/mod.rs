//! Runs a vCPU: finds or makes its next block, enters it, and does what the exit asks for.

mod bounce;
mod events;
mod exits;
mod lookup;
mod state;
mod step;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use engine::{Counters, Event, Stop};

use crate::apic::{Apics, Attention};
use crate::cache::{CodeCache, ExitKind};
use crate::cpu::{ARITHMETIC_FLAGS, Activity, Cpu, flag};
use crate::fabric::{Doorstep, Request};
use crate::shared::Shared;
use crate::signal::{self, Running};
use crate::system::x87;
use crate::translate::Tools;

pub use step::steppers;

/// One virtual processor of the software engine.
pub struct SoftVcpu {
    cpu: Box<Cpu>,
    cache: CodeCache,
    tools: Tools,
    doorstep: Arc<Doorstep>,
    /// x87 state while the vCPU does not run (FXSAVE image); it lives in the host FPU meanwhile.
    x87: x87::Image,
    /// Counts how often the cache was cleared: numbers from before mean nothing.
    epoch: u64,
    /// Nanoseconds asleep that are not counted yet.
    idle: u64,
}

/// As FreeBSD's clock with its usual 1000 Hz.
const NANOS_PER_TICK: u64 = 1_000_000;

/// `arch_prctl` code that sets the GS base (`arch/x86/include/uapi/asm/prctl.h`).
const ARCH_SET_GS: libc::c_int = 0x1001;

impl SoftVcpu {
    /// vCPU `id` in the state after power-on.
    pub fn new(shared: &Arc<Shared>, apics: &Arc<Apics>, id: u32) -> engine::Result<Self> {
        let missing = || engine::Error::Unsupported(format!("vCPU {id}: no such vCPU in this VM"));
        let apic = apics.get(id).ok_or_else(missing)?;
        let doorstep = shared.fabric.doorstep(id).ok_or_else(missing)?.clone();
        let mut cpu = Cpu::new_boxed(shared.clone(), id, apic.clone());
        let cache = CodeCache::new(std::arch::is_x86_feature_detected!("avx"))
            .map_err(|source| engine::Error::System { what: "cannot map the code cache", source })?;
        cache.reset_jumps(&mut cpu);
        doorstep.arrive(&cpu.attention, cpu.tlb.written.clone());
        apic.set_attention(doorstep.clone());
        signal::install();
        let x87 = x87::Image::initial();
        Ok(Self { cpu, cache, tools: Tools::new(), doorstep, x87, epoch: 0, idle: 0 })
    }

    /// The vCPU as other threads see it.
    pub fn doorstep(&self) -> Arc<Doorstep> {
        self.doorstep.clone()
    }

    /// What it did so far.
    pub fn counters(&self) -> Arc<Counters> {
        self.cpu.counters.clone()
    }

    /// See [`engine::Vcpu::run`].
    pub fn run_loop(&mut self) -> Stop {
        self.enter_thread();
        let stop = loop {
            if let Some(stop) = self.turn() {
                break stop;
            }
        };
        self.leave_thread();
        stop
    }

    pub(crate) fn enter_thread(&mut self) {
        signal::block_asynchronous();
        self.borrow_thread();
        // Requests that came while nobody looked were not kept; a standing stop still stands.
        self.clear_cache();
        self.doorstep.raise();
    }

    /// Makes this thread ready to run translated code.
    fn borrow_thread(&mut self) {
        signal::ensure_alternate_stack();
        // SAFETY: GS is unused by Rust and glibc on x86-64 Linux; translated code addresses this
        // vCPU through it on this thread, and the box does not move.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, &raw mut *self.cpu) };
        signal::set_running(Some(Running {
            cpu: &raw mut *self.cpu,
            start: self.cache.address(0),
            len: CodeCache::len(),
            fault: self.cache.address(self.cache.stubs().exit(ExitKind::Fault)),
        }));
        self.doorstep.set_running(true);
        self.x87.load();
    }

    pub(crate) fn leave_thread(&mut self) {
        self.x87 = x87::Image::save();
        x87::init();
        self.doorstep.set_running(false);
        signal::set_running(None);
    }

    /// Drops all translations; only for a vCPU that runs in single steps, whose jump cache stays
    /// empty.
    fn forget_code(&mut self) {
        self.cache.clear_blocks(&mut self.cpu);
        self.epoch += 1;
    }

    fn clear_cache(&mut self) {
        self.cache.clear(&mut self.cpu);
        self.epoch += 1;
    }

    /// One turn: what others want, events, then guest code up to an exit.
    pub(crate) fn turn(&mut self) -> Option<Stop> {
        if self.cpu.attention.load(Ordering::SeqCst) != 0 {
            self.cpu.attention.store(0, Ordering::SeqCst);
            self.serve();
            if self.doorstep.stop_wanted() || self.cpu.shared.services.power.event().is_some() {
                return Some(Stop::Stopped);
            }
        }
        if self.cpu.apic.pending() != 0 {
            self.take_events();
        }
        self.cpu.jit.waiting = u32::from(self.cpu.apic.has_interrupt());
        match self.cpu.activity {
            Activity::Running => self.execute(),
            Activity::Shutdown => {
                self.cpu.shared.services.power.request(bus::PowerEvent::TripleFault);
                Some(Stop::TripleFault)
            }
            Activity::Halted | Activity::WaitForSipi => {
                self.sleep();
                None
            }
        }
    }

    /// Does what other vCPUs and devices asked for.
    fn serve(&mut self) {
        while let Some(request) = self.doorstep.next_request() {
            match request {
                Request::DropAll => self.clear_cache(),
                Request::DropCode(page) => self.cache.drop_page(&mut self.cpu, page),
                Request::Protect(page, left) => {
                    self.cpu.tlb.protect(page);
                    left.fetch_sub(1, Ordering::SeqCst);
                }
            }
        }
    }

    /// Waits for attention. In a sleep that no interrupt can end, tells the VM.
    fn sleep(&mut self) {
        let dead = self.cpu.activity == Activity::WaitForSipi || self.cpu.rflags & flag::IF == 0;
        let fabric = self.cpu.shared.fabric.clone();
        if dead && fabric.set_dead(true) {
            self.cpu.shared.services.power.request(bus::PowerEvent::Halt);
        }
        let begin = self.cpu.shared.services.clock.now();
        self.doorstep.sleep(&self.cpu.attention);
        self.slept(begin);
        if dead {
            fabric.set_dead(false);
        }
    }

    /// Counts whole milliseconds; what is left over goes with the next sleep.
    fn slept(&mut self, begin: u64) {
        self.idle += self.cpu.shared.services.clock.now().saturating_sub(begin);
        self.cpu.counters.add(Event::IdleTicks, self.idle / NANOS_PER_TICK);
        self.idle %= NANOS_PER_TICK;
    }

    /// Runs host code at `target` until it leaves.
    fn enter(&mut self, target: u64) {
        let of = self.cpu.rflags >> 11 & 1;
        self.cpu.jit.flags = of | (self.cpu.rflags & ARITHMETIC_FLAGS & 0xff | 2) << 8;
        self.cpu.jit.target = target;
        let enter = self.cache.address(self.cache.stubs().enter);
        // SAFETY: the fixed entry code follows the C ABI: it saves and restores all that a callee
        // must, and comes back. GS points to this vCPU (`enter_thread`). Translated code touches
        // only the vCPU structure and, through checked translations, guest RAM.
        unsafe {
            let enter: unsafe extern "sysv64" fn() = std::mem::transmute(enter);
            enter();
        }
        self.cpu.counters.count(Event::Exit);
        let flags = self.cpu.jit.flags;
        let arithmetic = flags >> 8 & ARITHMETIC_FLAGS & 0xff | (flags & 1) << 11;
        self.cpu.rflags = self.cpu.rflags & !ARITHMETIC_FLAGS | arithmetic;
    }
}

#[cfg(test)]
impl SoftVcpu {
    /// The vCPU structure.
    pub(crate) fn cpu_mut(&mut self) -> &mut Cpu {
        &mut self.cpu
    }

    /// The code cache.
    pub(crate) fn cache_mut(&mut self) -> &mut CodeCache {
        &mut self.cache
    }

    /// Runs host code with GS at this vCPU, then gives GS back to whoever had it.
    pub(crate) fn enter_with_gs(&mut self, target: u64) {
        let mut before = 0u64;
        // SAFETY: reads, sets and restores the GS base, which only this crate uses.
        unsafe {
            libc::syscall(libc::SYS_arch_prctl, 0x1004, &raw mut before);
            libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, &raw mut *self.cpu);
        }
        self.enter(target);
        // SAFETY: as above.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, before) };
    }
}

impl Drop for SoftVcpu {
    fn drop(&mut self) {
        self.doorstep.leave();
    }
}
