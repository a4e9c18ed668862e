//! What the tests of PCI functions share: a small machine without vCPUs.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::{Bus, Clock, EventLoop, IrqLine, IrqSink, Msi, MsiSink, PowerSwitch, Timers};
use config::{PciAddress, Tree};
use memory::{Backing, GuestMemory};

use crate::pci::{BarKind, PciBus, PciBusConfig, PciFunction, PirqRouter};
use crate::registry::{self, BuildContext, BuildError, DoorbellAddress, Doorbells};

/// A reproducible source of numbers (xorshift64).
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes what devices do to the rest of the machine.
#[derive(Default)]
pub(crate) struct Probe {
    pub msis: Mutex<Vec<Msi>>,
    /// Level of each GSI.
    pub lines: Mutex<[bool; 32]>,
    pub pirqs: Mutex<[Option<u8>; 8]>,
    /// Doorbells, if the engine has some.
    pub doorbells: Mutex<Option<Vec<(DoorbellAddress, OwnedFd)>>>,
}

impl Probe {
    pub(crate) fn take_msis(&self) -> Vec<Msi> {
        std::mem::take(&mut lock(&self.msis))
    }

    pub(crate) fn line(&self, gsi: u32) -> bool {
        lock(&self.lines)[gsi as usize]
    }

    pub(crate) fn any_line(&self) -> bool {
        lock(&self.lines).iter().any(|level| *level)
    }

    /// Rings a doorbell as the engine would; false if nobody has asked for it.
    pub(crate) fn ring(&self, at: DoorbellAddress) -> bool {
        let doorbells = lock(&self.doorbells);
        let found = doorbells.iter().flatten().find(|(place, _)| *place == at);
        if let Some((_, event)) = found {
            rustix::io::write(event, &1u64.to_ne_bytes()).unwrap();
        }
        found.is_some()
    }
}

impl MsiSink for Probe {
    fn signal_msi(&self, msi: Msi) {
        lock(&self.msis).push(msi);
    }
    fn set_intr(&self, _: bool) {}
}

impl IrqSink for Probe {
    fn set_irq(&self, gsi: u32, level: bool) {
        lock(&self.lines)[gsi as usize] = level;
    }
}

impl PirqRouter for Probe {
    fn set_pirq(&self, pirq: u8, irq: Option<u8>) {
        lock(&self.pirqs)[usize::from(pirq)] = irq;
    }
}

impl Doorbells for Probe {
    fn add(&self, at: DoorbellAddress, event: &OwnedFd) -> bool {
        let mut doorbells = lock(&self.doorbells);
        let Some(doorbells) = &mut *doorbells else { return false };
        assert!(doorbells.iter().all(|(place, _)| *place != at), "doorbell added twice: {at:?}");
        doorbells.push((at, event.try_clone().unwrap()));
        true
    }
    fn remove(&self, at: DoorbellAddress, _: &OwnedFd) {
        let mut doorbells = lock(&self.doorbells);
        let doorbells = doorbells.as_mut().unwrap();
        let before = doorbells.len();
        doorbells.retain(|(place, _)| *place != at);
        assert_eq!(doorbells.len() + 1, before, "doorbell removed that was not added: {at:?}");
    }
}

/// RAM of the small machine.
pub(crate) const RAM: u64 = 16 << 20;

/// A machine of RAM and a PCI bus.
pub(crate) struct Rig {
    pub ram: GuestMemory,
    pub bus: Arc<Bus>,
    pub pci: Arc<PciBus>,
    pub probe: Arc<Probe>,
    pub context: BuildContext,
}

impl Rig {
    /// Without firmware: BARs are assigned by [`Rig::start`].
    pub(crate) fn new() -> Self {
        Self::with(false)
    }

    pub(crate) fn with(firmware: bool) -> Self {
        let ram = GuestMemory::new(&[(0, RAM)], &Backing::Anonymous).unwrap();
        let bus = Arc::new(Bus::new());
        let probe = Arc::new(Probe::default());
        let sink = probe.clone();
        let pci = PciBus::new(PciBusConfig {
            bus: bus.clone(),
            memory: ram.clone(),
            line: Box::new(move |gsi| IrqLine::new(sink.clone(), gsi)),
            reset_control: None,
            firmware,
        })
        .unwrap();
        let clock = Clock::new();
        let context = BuildContext {
            memory: ram.clone(),
            bus: bus.clone(),
            msi: probe.clone(),
            doorbells: probe.clone(),
            pirq: probe.clone(),
            timers: Arc::new(Timers::start(clock).unwrap()),
            events: Arc::new(EventLoop::start().unwrap()),
            clock,
            power: Arc::new(PowerSwitch::default()),
            address: PciAddress { bus: 0, slot: 3, function: 0 },
            vm_name: "test".into(),
            virtio_msix: true,
        };
        Self { ram, bus, pci, probe, context }
    }

    pub(crate) fn at(&self, slot: u8, function: u8) -> BuildContext {
        let address = PciAddress { bus: 0, slot, function };
        BuildContext { address, ..self.context.clone() }
    }

    /// Builds the device `name` with keys as (name, value).
    pub(crate) fn build(
        &self,
        slot: u8,
        name: &str,
        keys: &[(&str, &str)],
    ) -> Result<Arc<dyn PciFunction>, BuildError> {
        let mut tree = Tree::new();
        let base = format!("pci.0.{slot}.0");
        tree.set(&format!("{base}.device"), name).unwrap();
        for (key, value) in keys {
            tree.set(&format!("{base}.{key}"), value).unwrap();
        }
        let entry = registry::find(name).unwrap();
        (entry.build)(&self.at(slot, 0), &tree.node(&base).declared(entry.keys))
    }

    /// Puts the function on the bus, assigns BARs and turns bus mastering on.
    pub(crate) fn start(&self, function: &Arc<dyn PciFunction>) {
        self.pci.add(function.clone()).unwrap();
        self.pci.assign(RAM).unwrap();
        let slot = function.core().address().slot;
        let command = self.config_read(slot, 4, 2) as u16;
        self.config_write(slot, 4, &(command | 4).to_le_bytes());
    }

    fn select(&self, slot: u8, register: u8) {
        let address = 0x8000_0000 | u32::from(slot) << 11 | u32::from(register & 0xfc);
        self.bus.port_write(0xcf8, &address.to_le_bytes());
    }

    /// Reads configuration space through CF8 and CFC.
    pub(crate) fn config_read(&self, slot: u8, register: u8, len: usize) -> u32 {
        self.select(slot, register);
        let mut data = [0; 4];
        self.bus.port_read(0xcfc + u16::from(register & 3), &mut data[..len]);
        u32::from_le_bytes(data)
    }

    /// Writes configuration space through CF8 and CFC.
    pub(crate) fn config_write(&self, slot: u8, register: u8, data: &[u8]) {
        self.select(slot, register);
        self.bus.port_write(0xcfc + u16::from(register & 3), data);
    }

    /// The address in a BAR.
    pub(crate) fn bar(&self, slot: u8, index: u8) -> u64 {
        let low = self.config_read(slot, 0x10 + 4 * index, 4);
        match low & 7 {
            4 => u64::from(low & !0xf) | u64::from(self.config_read(slot, 0x14 + 4 * index, 4)) << 32,
            1 | 5 => u64::from(low & !3),
            _ => u64::from(low & !0xf),
        }
    }

    /// Offset of the capability `id`, the `nth` of its kind.
    pub(crate) fn capability(&self, slot: u8, id: u8, nth: usize) -> Option<u8> {
        let mut at = self.config_read(slot, 0x34, 1) as u8;
        let mut found = 0;
        while at != 0 {
            if self.config_read(slot, at, 1) as u8 == id {
                if found == nth {
                    return Some(at);
                }
                found += 1;
            }
            at = self.config_read(slot, at + 1, 1) as u8;
        }
        None
    }
}

/// Random accesses to all registers of a function on its bus, with resets, saves and restores in
/// between. Nothing may panic, hang, or leave a state that does not load.
pub(crate) fn hammer(rig: &Rig, function: &Arc<dyn PciFunction>, rounds: u32) {
    let slot = function.core().address().slot;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..rounds {
        let size = 1usize << (random.next() % 4);
        let value = match random.next() % 3 {
            0 => random.next(),
            1 => random.next() % 0x100,
            _ => random.next() % RAM,
        };
        let mut data = value.to_le_bytes();
        let write = random.next() & 1 == 0;
        match random.next() % 4 {
            0 => {
                let register = (random.next() % 256) as u8;
                let size = size.min(4 - usize::from(register % 4));
                if write {
                    rig.config_write(slot, register, &data[..size]);
                } else {
                    rig.config_read(slot, register, size);
                }
            }
            1 => {
                let at = 0xe000_0000 + (u64::from(slot) << 15) + random.next() % 0x1000;
                if write {
                    rig.bus.memory_write(at, &data[..size]);
                } else {
                    rig.bus.memory_read(at, &mut data[..size]);
                }
            }
            2 => {
                // On the bus, wherever the BARs are now: the MSI-X table too.
                let decoded = function.core().decoded();
                let pick = random.next() as usize % decoded.len().max(1);
                let Some((bar, range)) = decoded.get(pick) else { continue };
                let at = range.start + random.next() % bar.size.min(256);
                let port = bar.kind == BarKind::Io;
                match (port, write) {
                    (true, true) => drop(rig.bus.port_write(at as u16, &data[..size])),
                    (true, false) => drop(rig.bus.port_read(at as u16, &mut data[..size])),
                    (false, true) => drop(rig.bus.memory_write(at, &data[..size])),
                    (false, false) => drop(rig.bus.memory_read(at, &mut data[..size])),
                }
            }
            _ => {
                let bars = function.core().bars();
                let Some(bar) = bars.get(random.next() as usize % bars.len().max(1)) else { continue };
                let offset = random.next() % if random.next() & 1 == 0 { bar.size } else { bar.size.min(64) };
                let size = size.min((bar.size - offset) as usize);
                if write {
                    function.bar_write(bar.index, offset, &data[..size]);
                } else {
                    function.bar_read(bar.index, offset, &mut data[..size]);
                }
            }
        }
        if round % 1000 == 999 {
            cycle(rig, function, &mut random);
        }
    }
    rig.pci.refresh();
}

/// Drains, saves, maybe resets, restores and saves again.
fn cycle(rig: &Rig, function: &Arc<dyn PciFunction>, random: &mut Random) {
    function.drain();
    let saved = function.save().unwrap();
    if random.next() & 1 == 0 {
        function.reset();
    }
    // A state may name queues that are not in RAM any more, but never one that makes a mess.
    if function.restore(&saved).is_ok() {
        function.drain();
        assert_eq!(function.save().unwrap(), saved);
    }
    function.resume();
    let mut broken = saved;
    if let Some(byte) = broken.data.get_mut(random.next() as usize % 64) {
        *byte ^= 1 << (random.next() % 8);
    }
    let _ = function.restore(&broken);
    if random.next().is_multiple_of(4) {
        function.reset();
    }
    rig.pci.refresh();
    let slot = function.core().address().slot;
    rig.config_write(slot, 4, &7u16.to_le_bytes());
}
