//! A machine for tiny guests: RAM below A0000, a flat 32-bit start, devices that remember.
//!
//! Port 5F4 ends the VM (power-off). Ports 500–51F and memory at D0000000 are remembered in a log;
//! byte `n` of the range reads as `n + 0x80`.

use std::sync::{Arc, Condvar, Mutex, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bus::{Bus, BusDevice, Clock, InterruptController, PowerEvent, PowerSwitch, Timers};
use memory::{Backing, GuestMemory};

use crate::{
    CpuidTable, Engine, Kicker, Segment, SharedVm, Stop, TableRegister, Topology, Vcpu, VcpuState, Vm,
    VmConfig, VmServices, reg, seg,
};

const RAM: u64 = 0xa0000;
const GDT: u64 = 0x800;
pub const CODE: u64 = 0x1000;
const IDT: u64 = 0x2000;
const STACK: u64 = 0x9000;
/// Where guests leave results.
pub const RESULT: u64 = 0x5000;
pub const PORTS: u16 = 0x500;
pub const MMIO: u64 = 0xd000_0000;
/// How long a guest may take. Generous: test machines are slow and shared.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A remembered access: address, bytes written (none for reads), length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    Read(u64, usize),
    Write(u64, Vec<u8>),
}

#[derive(Default)]
pub struct Log {
    entries: Mutex<Vec<Access>>,
    changed: Condvar,
}

impl Log {
    fn push(&self, access: Access) {
        self.entries.lock().unwrap().push(access);
        self.changed.notify_all();
    }

    pub fn all(&self) -> Vec<Access> {
        self.entries.lock().unwrap().clone()
    }

    pub fn writes_to(&self, address: u64) -> usize {
        let is = |a: &&Access| matches!(a, Access::Write(at, _) if *at == address);
        self.entries.lock().unwrap().iter().filter(is).count()
    }

    /// Waits until there were `count` writes to `address`.
    pub fn wait(&self, address: u64, count: usize) {
        let end = Instant::now() + PATIENCE;
        let mut entries = self.entries.lock().unwrap();
        loop {
            let is = |a: &&Access| matches!(a, Access::Write(at, _) if *at == address);
            let seen = entries.iter().filter(is).count();
            if seen >= count {
                return;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{seen} of {count} writes to {address:#x}");
            entries = self.changed.wait_timeout(entries, left).unwrap().0;
        }
    }
}

/// Remembers accesses to a range that begins at `base`.
struct Recorder {
    base: u64,
    log: Arc<Log>,
}

impl BusDevice for Recorder {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.log.push(Access::Read(self.base + offset, data.len()));
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = (offset as u8).wrapping_add(i as u8).wrapping_add(0x80);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.log.push(Access::Write(self.base + offset, data.to_vec()));
    }
}

struct End(Arc<PowerSwitch>);

impl BusDevice for End {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _: u64, _: &[u8]) {
        self.0.request(PowerEvent::PowerOff);
    }
}

/// A PIC with one request of vector 28, and what the I/O APIC hears.
#[derive(Default)]
pub struct Chipset {
    vm: OnceLock<Weak<dyn Vm>>,
    pub acknowledged: Mutex<u32>,
    pub ended: Mutex<Vec<u8>>,
}

impl InterruptController for Chipset {
    fn acknowledge(&self) -> Option<u8> {
        *self.acknowledged.lock().unwrap() += 1;
        self.vm.get()?.upgrade()?.set_intr(false);
        Some(0x28)
    }

    fn end_of_interrupt(&self, vector: u8) {
        self.ended.lock().unwrap().push(vector);
    }
}

pub struct Rig {
    pub services: VmServices,
    pub config: VmConfig,
    pub log: Arc<Log>,
    pub chipset: Arc<Chipset>,
}

/// A descriptor: base 0, limit 4 GiB; access byte and flags as in a descriptor's upper half.
fn flat(access: u64) -> u64 {
    0xffff | access << 40 | 0xcf << 48
}

impl Rig {
    pub fn new(engine: &dyn Engine, vcpus: u32, code: &[u8]) -> Self {
        let clock = Clock::new();
        let power = Arc::new(PowerSwitch::default());
        let (log, bus) = (Arc::new(Log::default()), Arc::new(Bus::new()));
        let recorder = |base| Arc::new(Recorder { base, log: log.clone() });
        bus.claim_ports(PORTS..PORTS + 0x20, recorder(u64::from(PORTS))).unwrap();
        bus.claim_ports(0x5f4..0x5f5, Arc::new(End(power.clone()))).unwrap();
        bus.claim_memory(MMIO..MMIO + 0x1000, recorder(MMIO)).unwrap();
        let chipset = Arc::new(Chipset::default());
        let services = VmServices {
            memory: GuestMemory::new(&[(0, RAM)], &Backing::Anonymous).unwrap(),
            bus,
            interrupts: chipset.clone(),
            power,
            timers: Arc::new(Timers::start(clock).unwrap()),
            clock,
        };
        let topology = Topology { sockets: 1, cores: vcpus, threads: 1 };
        let cpuid = CpuidTable::new(topology, engine.features());
        let config = VmConfig { vcpus, cpuid, strict_msr: true, x2apic: false, strict_io: false };
        let rig = Self { services, config, log, chipset };
        rig.put(CODE, code);
        for (i, descriptor) in [0, flat(0x9b), flat(0x93)].into_iter().enumerate() {
            rig.put(GDT + 8 * i as u64, &u64::to_le_bytes(descriptor));
        }
        rig
    }

    pub fn put(&self, gpa: u64, bytes: &[u8]) {
        self.services.memory.write(gpa, bytes).unwrap();
    }

    pub fn result(&self, offset: u64) -> u32 {
        self.services.memory.load_u32(RESULT + offset, std::sync::atomic::Ordering::SeqCst).unwrap()
    }

    /// Puts a handler at 3000 + 40h × n for the vector: a present 32-bit interrupt gate.
    pub fn handler(&self, vector: u64, code: &[u8]) {
        let at = 0x3000 + vector * 0x40;
        self.put(at, code);
        self.put(IDT + vector * 8, &(at & 0xffff | 8 << 16 | 0x8e00 << 32 | at >> 16 << 48).to_le_bytes());
    }

    /// 32-bit protected mode, flat, interrupts off, at the code.
    pub fn entry() -> VcpuState {
        let mut state = VcpuState::reset(0);
        let wide = Segment::GRANULAR | Segment::BIG;
        let data = Segment { base: 0, limit: u32::MAX, access: 0x93 | wide, selector: 0x10 };
        for n in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
            state.segments[n] = data;
        }
        state.segments[seg::CS] = Segment { access: 0x9b | wide, selector: 8, ..data };
        state.gdtr = TableRegister { base: GDT, limit: 23 };
        state.idtr = TableRegister { base: IDT, limit: 0x7ff };
        state.cr0 = 0x31;
        state.rip = CODE;
        state.gpr[reg::RSP] = STACK;
        state
    }

    pub fn vm(&self, engine: &dyn Engine) -> SharedVm {
        let vm = engine.new_vm(self.config.clone(), self.services.clone()).unwrap();
        let _ = self.chipset.vm.set(Arc::downgrade(&vm));
        vm
    }

    /// Makes the vCPUs and starts them; the first at the code.
    pub fn start(&self, vm: &SharedVm) -> Running {
        let mut vcpus: Vec<_> = (0..self.config.vcpus).map(|id| vm.new_vcpu(id).unwrap()).collect();
        vcpus[0].set_state(&Self::entry()).unwrap();
        Running::start(vcpus)
    }

    /// Makes a VM, runs it to its end; how its first vCPU stopped.
    pub fn run(&self, engine: &dyn Engine) -> Stop {
        let vm = self.vm(engine);
        self.start(&vm).join()[0].0
    }
}

/// vCPUs on their threads.
pub struct Running {
    pub kickers: Vec<Arc<dyn Kicker>>,
    threads: Vec<JoinHandle<(Stop, Box<dyn Vcpu>)>>,
}

impl Running {
    pub fn start(vcpus: Vec<Box<dyn Vcpu>>) -> Self {
        let kickers = vcpus.iter().map(|v| v.kicker()).collect();
        let run = |mut vcpu: Box<dyn Vcpu>| std::thread::spawn(move || (vcpu.run(), vcpu));
        Self { kickers, threads: vcpus.into_iter().map(run).collect() }
    }

    /// Waits until all have stopped; fails the test if one does not.
    pub fn join(self) -> Vec<(Stop, Box<dyn Vcpu>)> {
        let end = Instant::now() + PATIENCE;
        while !self.threads.iter().all(JoinHandle::is_finished) {
            if Instant::now() > end {
                self.kickers.iter().for_each(|k| k.stop());
                let stops: Vec<_> = self.threads.into_iter().map(|t| t.join().unwrap()).collect();
                let rips = stops.into_iter().map(|(_, mut v)| v.state().map(|s| (s.rip, s.run)));
                panic!("the guest does not stop; vCPUs are at {:x?}", rips.collect::<Vec<_>>());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.threads.into_iter().map(|t| t.join().unwrap()).collect()
    }
}
