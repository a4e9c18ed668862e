//! Answers `bhyvectl`.

use std::sync::{Arc, Weak};

use bus::{PowerEvent, PowerSwitch};
use devices::chipset::Rtc;
use engine::{RunState, VcpuState, Vm};
use memory::GuestMemory;
use vm::control::{Handler, Request, Response, Summary};
use vm::{Ram, Topology};

use crate::cpus::Desk;

/// Delivery modes of an interrupt message and of a local vector table entry, in bits 8–10 (Intel SDM
/// vol. 3, 11.5.1).
const FIXED: u32 = 0;
const NMI: u32 = 4;
/// A local vector table entry is switched off.
const MASKED: u32 = 1 << 16;
/// The local vector table in the order of bhyve's pin numbers: LINT0, LINT1, timer, error,
/// performance, thermal, CMCI; as indices of [`engine::ApicState::regs`].
const PINS: [usize; 7] = [0x35, 0x36, 0x32, 0x37, 0x34, 0x33, 0x2f];

/// First byte of the clock that is memory, and the century's place: the others are the time and the
/// control registers.
const CLOCK_MEMORY: std::ops::Range<u8> = 0x0e..0x80;
const CENTURY: u8 = 0x32;

/// The running machine as `bhyvectl` reaches it. Client threads may outlive the machine, so nothing
/// here keeps it alive.
pub struct Control {
    pub vm: Weak<dyn Vm>,
    pub engine: &'static str,
    pub capabilities: Vec<(&'static str, bool)>,
    pub topology: Topology,
    pub ram: Ram,
    pub memory: GuestMemory,
    pub desks: Arc<[Desk]>,
    pub rtc: Weak<Rtc>,
    pub power: Arc<PowerSwitch>,
}

/// An answer, or why there is none.
type Answer = Result<Response, String>;

impl Handler for Control {
    fn answer(&self, request: Request) -> Response {
        let answer = match request {
            Request::Summary => Ok(Response::Summary(Summary {
                topology: self.topology,
                ram: self.ram.clone(),
                engine: self.engine.to_owned(),
                capabilities: self.capabilities.iter().map(|(name, on)| ((*name).to_owned(), *on)).collect(),
            })),
            Request::Active => self.active(),
            Request::Vcpu(cpu) => self.state(cpu).map(|state| Response::Vcpu(Box::new(state))),
            Request::Statistics(cpu) => {
                self.desk(cpu).map(|desk| Response::Statistics(self.statistics(desk)))
            }
            Request::Nmi(cpu) => self.signal(cpu, NMI << 8),
            Request::LocalPin { cpu, pin } => self.local_pin(cpu, pin),
            Request::Reset => {
                self.power.request(PowerEvent::Reset);
                Ok(Response::Done)
            }
            Request::PowerOff => {
                self.power.request(PowerEvent::PowerOff);
                Ok(Response::Done)
            }
            Request::Time => self.clock(|rtc| Ok(Response::Time(rtc.seconds()))),
            Request::SetTime(seconds) => self.clock(|rtc| {
                rtc.set_seconds(seconds);
                Ok(Response::Done)
            }),
            Request::Memory(offset) if offset < CLOCK_MEMORY.end => {
                self.clock(|rtc| Ok(Response::Byte(rtc.register(offset))))
            }
            Request::Memory(offset) => Err(format!("the clock has no byte {offset}")),
            Request::SetMemory { offset, value } => self.set_clock_memory(offset, value),
        };
        answer.unwrap_or_else(Response::Refused)
    }
}

impl Control {
    fn desk(&self, cpu: u32) -> Result<&Desk, String> {
        let count = self.desks.len();
        self.desks.get(cpu as usize).ok_or_else(|| format!("there is no vCPU {cpu}, the VM has {count}"))
    }

    fn state(&self, cpu: u32) -> Result<VcpuState, String> {
        let state = self.desk(cpu)?.ask(|vcpu| vcpu.state());
        let state = state.ok_or_else(|| format!("vCPU {cpu} does not answer"))?;
        state.map_err(|e| format!("the state of vCPU {cpu} can't be read: {e}"))
    }

    /// The vCPUs that the guest has started.
    fn active(&self) -> Answer {
        let mut active = Vec::new();
        for cpu in 0..self.desks.len() as u32 {
            if self.state(cpu)?.run != RunState::WaitForSipi {
                active.push(cpu);
            }
        }
        Ok(Response::Cpus(active))
    }

    fn statistics(&self, desk: &Desk) -> Vec<(String, u64)> {
        let mut list = Vec::new();
        if let Some(thread) = desk.thread().map(Thread) {
            list.extend(thread.migrations().map(|n| ("vcpu migration across host cpus".to_owned(), n)));
            list.extend(thread.cycles().map(|n| ("vcpu total runtime".to_owned(), n)));
        }
        list.extend(desk.statistics.list().into_iter().map(|(event, n)| (event.name().to_owned(), n)));
        list.push(("Resident memory".to_owned(), self.memory.resident()));
        list.push(("Wired memory".to_owned(), if self.ram.wired { self.memory.size() } else { 0 }));
        list
    }

    fn signal(&self, cpu: u32, data: u32) -> Answer {
        self.desk(cpu)?;
        let vm = self.vm.upgrade().ok_or("the VM has ended")?;
        vm.signal_vcpu(cpu, data).map_err(|e| e.to_string())?;
        Ok(Response::Done)
    }

    /// Does what the local vector table says for the pin.
    fn local_pin(&self, cpu: u32, pin: u32) -> Answer {
        let Some(register) = PINS.get(pin as usize) else {
            return Err(format!("a local APIC has no pin {pin}, the last one is {}", PINS.len() - 1));
        };
        let entry = self.state(cpu)?.apic.regs.get(*register).copied().unwrap_or(MASKED);
        if entry & MASKED != 0 {
            return Ok(Response::Done);
        }
        match entry >> 8 & 7 {
            FIXED | NMI => self.signal(cpu, entry & 0x7ff),
            _ => Err(format!("pin {pin} of vCPU {cpu} belongs to another interrupt controller")),
        }
    }

    fn clock(&self, act: impl FnOnce(&Rtc) -> Answer) -> Answer {
        act(&*self.rtc.upgrade().ok_or("the VM has ended")?)
    }

    fn set_clock_memory(&self, offset: u8, value: u8) -> Answer {
        if !CLOCK_MEMORY.contains(&offset) || offset == CENTURY {
            return Err(format!("byte {offset} of the clock is the time, a control register, or none"));
        }
        self.clock(|rtc| {
            rtc.set_cmos(offset, value);
            Ok(Response::Done)
        })
    }
}

/// A thread of this process, as /proc knows it.
struct Thread(i32);

impl Thread {
    fn file(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(format!("/proc/self/task/{}/{name}", self.0)).ok()
    }

    /// CPU time used, in cycles of the time-stamp counter.
    fn cycles(&self) -> Option<u64> {
        // The first number is nanoseconds on a CPU (Documentation/scheduler/sched-stats.rst).
        let nanos: u64 = self.file("schedstat")?.split_whitespace().next()?.parse().ok()?;
        Some((u128::from(nanos) * u128::from(engine::host_tsc_hz()) / 1_000_000_000) as u64)
    }

    fn migrations(&self) -> Option<u64> {
        let text = self.file("sched")?;
        let line = text.lines().find(|line| line.starts_with("se.nr_migrations"))?;
        line.split(':').nth(1)?.trim().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threads_time_grows() {
        let own = Thread(rustix::thread::gettid().as_raw_nonzero().get());
        let Some(before) = own.cycles() else {
            eprintln!("left out: this kernel has no schedstat");
            return;
        };
        let end = std::time::Instant::now() + std::time::Duration::from_millis(50);
        let mut n = 0u64;
        while std::time::Instant::now() < end {
            n = std::hint::black_box(n + 1);
        }
        assert!(own.cycles().unwrap() > before, "{n} rounds");
        assert_eq!(Thread(0).cycles(), None);
    }
}
