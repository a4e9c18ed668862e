//! Whether KVM works: a guest of four instructions runs and ends.

use std::sync::Arc;
use std::time::Duration;

use bus::{Bus, BusDevice, Clock, InterruptController, PowerEvent, PowerSwitch, Timers};
use memory::{Backing, GuestMemory};

use super::KvmEngine;
use crate::{CpuidTable, Engine, Error, Result, Stop, Topology, VcpuState, VmConfig, VmServices, seg};

/// 16-bit: mov al,5Ah; out 80h,al; then hlt for ever.
const GUEST: [u8; 7] = [0xb0, 0x5a, 0xe6, 0x80, 0xf4, 0xeb, 0xfd];
const AT: u64 = 0x400;
const PORT: u16 = 0x80;
const VALUE: u8 = 0x5a;
/// A KVM that works needs a millisecond.
const PATIENCE: Duration = Duration::from_secs(2);

struct Seen(Arc<PowerSwitch>);

impl BusDevice for Seen {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _: u64, data: &[u8]) {
        self.0.request(if data == [VALUE] { PowerEvent::PowerOff } else { PowerEvent::Error });
    }
}

struct NoChipset;

impl InterruptController for NoChipset {
    fn acknowledge(&self) -> Option<u8> {
        None
    }

    fn end_of_interrupt(&self, _: u8) {}
}

/// Runs the guest.
pub fn probe(engine: &KvmEngine) -> Result<()> {
    let broken = |why: String| Error::Unsupported(format!("/dev/kvm does not work: {why}"));
    let (clock, power, bus) = (Clock::new(), Arc::new(PowerSwitch::default()), Arc::new(Bus::new()));
    let timers =
        Timers::start(clock).map_err(|source| Error::System { what: "cannot start a thread", source })?;
    let memory = GuestMemory::new(&[(0, memory::PAGE_SIZE)], &Backing::Anonymous)
        .map_err(|e| broken(e.to_string()))?;
    memory.write(AT, &GUEST).map_err(|e| broken(e.to_string()))?;
    bus.claim_ports(PORT..PORT + 1, Arc::new(Seen(power.clone()))).map_err(|e| broken(e.to_string()))?;
    let topology = Topology { sockets: 1, cores: 1, threads: 1 };
    let config = VmConfig {
        vcpus: 1,
        cpuid: CpuidTable::new(topology, engine.features()),
        strict_msr: true,
        x2apic: false,
        strict_io: false,
    };
    let timers = Arc::new(timers);
    let services = VmServices {
        memory,
        bus,
        interrupts: Arc::new(NoChipset),
        power: power.clone(),
        timers: timers.clone(),
        clock,
    };
    let mut vcpu = engine.new_vm(config, services)?.new_vcpu(0)?;
    let mut state = VcpuState::reset(0);
    state.segments[seg::CS].base = 0;
    state.segments[seg::CS].selector = 0;
    state.rip = AT;
    vcpu.set_state(&state)?;
    let kicker = vcpu.kicker();
    let alarm = timers.timer(move || kicker.stop());
    alarm.arm(clock.now() + PATIENCE.as_nanos() as u64);
    match (vcpu.run(), power.event()) {
        (Stop::Stopped, Some(PowerEvent::PowerOff)) => Ok(()),
        (Stop::Stopped, None) => Err(broken("a tiny guest does not end".into())),
        (stop, _) => Err(broken(format!("a tiny guest ends with {stop:?}"))),
    }
}
