//! A machine of RAM, bus and PCI alone, for tests that act as a guest would: through ports and
//! memory.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bus::{Bus, Clock, EventLoop, IrqLine, IrqSink, Msi, MsiSink, PowerSwitch, Timers};
use config::{PciAddress, Tree};
use devices::pci::{PciBus, PciBusConfig, PciFunction, PirqRouter};
use devices::virtio::net::VirtioNet;
use devices::{BuildContext, DeviceEntry, NoDoorbells};
use memory::{Backing, GuestMemory};

/// RAM of the machine.
pub const RAM: u64 = 16 << 20;

/// What devices have told the rest of the machine.
#[derive(Default)]
pub struct Board {
    pub messages: Mutex<Vec<Msi>>,
    pub lines: Mutex<[bool; 32]>,
    pub pirqs: Mutex<[Option<u8>; 8]>,
}

impl Board {
    pub fn take_messages(&self) -> Vec<Msi> {
        std::mem::take(&mut self.messages.lock().unwrap())
    }

    pub fn line(&self, gsi: u32) -> bool {
        self.lines.lock().unwrap()[gsi as usize]
    }
}

impl MsiSink for Board {
    fn signal_msi(&self, msi: Msi) {
        let mut messages = self.messages.lock().unwrap();
        // A storm is of no interest.
        if messages.len() < 1000 {
            messages.push(msi);
        }
    }

    fn set_intr(&self, _: bool) {}
}

impl IrqSink for Board {
    fn set_irq(&self, gsi: u32, level: bool) {
        self.lines.lock().unwrap()[gsi as usize] = level;
    }
}

impl PirqRouter for Board {
    fn set_pirq(&self, pirq: u8, irq: Option<u8>) {
        self.pirqs.lock().unwrap()[usize::from(pirq)] = irq;
    }
}

/// A folder that goes away with the test.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("devices-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The machine.
pub struct Rig {
    pub memory: GuestMemory,
    pub bus: Arc<Bus>,
    pub board: Arc<Board>,
    pub pci: Arc<PciBus>,
    pub context: BuildContext,
    pub folder: Folder,
}

impl Rig {
    pub fn new(virtio_msix: bool) -> Self {
        let memory = GuestMemory::new(&[(0, RAM)], &Backing::Anonymous).unwrap();
        let (bus, board, clock) = (Arc::new(Bus::new()), Arc::new(Board::default()), Clock::new());
        let sink = board.clone();
        let pci = PciBus::new(PciBusConfig {
            bus: bus.clone(),
            memory: memory.clone(),
            line: Box::new(move |gsi| IrqLine::new(sink.clone(), gsi)),
            reset_control: None,
            firmware: false,
        })
        .unwrap();
        let context = BuildContext {
            memory: memory.clone(),
            bus: bus.clone(),
            msi: board.clone(),
            doorbells: Arc::new(NoDoorbells),
            pirq: board.clone(),
            timers: Arc::new(Timers::start(clock).unwrap()),
            events: Arc::new(EventLoop::start().unwrap()),
            clock,
            power: Arc::default(),
            address: PciAddress { bus: 0, slot: 3, function: 0 },
            vm_name: "test".into(),
            virtio_msix,
        };
        let _: &PowerSwitch = &context.power;
        Self { memory, bus, board, pci, context, folder: Folder::new() }
    }

    /// What a device needs to exist, in its own keys. A new device with keys that it can't do
    /// without has a line here.
    fn sample(&self, device: &str) -> Vec<(&'static str, String)> {
        match device {
            "virtio-blk" => {
                let path = self.folder.file("disk");
                std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
                vec![("path", path)]
            }
            "virtio-console" => vec![
                ("port.0.name", "first".into()),
                ("port.0.path", self.folder.file("a.sock")),
                ("port.5.name", "other".into()),
                ("port.5.path", self.folder.file("b.sock")),
            ],
            _ => Vec::new(),
        }
    }

    /// Makes a device with a sample configuration, on no bus yet.
    pub fn make(&self, entry: &DeviceEntry) -> Arc<dyn PciFunction> {
        if entry.name == "virtio-net" {
            // No tap interface is needed here.
            let (backend, _) = host::net::pair(host::net::Offloads::default()).unwrap();
            let mac = host::net::MacAddress::default_for(3, 0, "test");
            let net = VirtioNet::new(Arc::new(backend), mac, None).unwrap();
            return devices::virtio::pci::function(&self.context, Arc::new(net)).unwrap();
        }
        let mut tree = Tree::new();
        let path = self.context.address.key();
        tree.set(&format!("{path}.device"), entry.name).unwrap();
        for (name, value) in self.sample(entry.name) {
            tree.set(&format!("{path}.{name}"), &value).unwrap();
        }
        let node = tree.node(&path).declared(entry.keys);
        (entry.build)(&self.context, &node).unwrap_or_else(|error| panic!("{}: {error}", entry.name))
    }

    /// A machine with one device of this name, as firmware leaves it.
    pub fn with(name: &str, virtio_msix: bool) -> (Self, Arc<dyn PciFunction>) {
        let rig = Self::new(virtio_msix);
        let function = rig.make(devices::find(name).unwrap());
        rig.pci.add(function.clone()).unwrap();
        rig.pci.assign(RAM).unwrap();
        (rig, function)
    }

    fn select(&self, register: u16) {
        let at = self.context.address;
        let bits = u32::from(at.bus) << 16 | u32::from(at.slot) << 11 | u32::from(at.function) << 8;
        let address = 1 << 31 | bits | u32::from(register & 0xfc);
        self.bus.port_write(0xcf8, &address.to_le_bytes());
    }

    /// Reads configuration space through the ports.
    pub fn config(&self, register: u16) -> u32 {
        self.select(register);
        let mut data = [0; 4];
        self.bus.port_read(0xcfc, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn config8(&self, register: u16) -> u8 {
        (self.config(register) >> (8 * (register % 4))) as u8
    }

    /// Writes configuration space through the ports.
    pub fn set_config(&self, register: u16, data: &[u8]) {
        self.select(register);
        self.bus.port_write(0xcfc + register % 4, data);
    }

    /// Address of a memory or I/O BAR.
    pub fn bar(&self, index: u8) -> u64 {
        let register = 0x10 + 4 * u16::from(index);
        let low = u64::from(self.config(register));
        if low & 1 != 0 {
            return low & !3;
        }
        let high = if low & 4 != 0 { u64::from(self.config(register + 4)) } else { 0 };
        low & !0xf | high << 32
    }

    pub fn read(&self, gpa: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.bus.memory_read(gpa, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    pub fn write(&self, gpa: u64, len: usize, value: u64) {
        self.bus.memory_write(gpa, &value.to_le_bytes()[..len]);
    }

    pub fn port_in(&self, port: u16, len: usize) -> u32 {
        let mut data = [0; 4];
        self.bus.port_read(port, &mut data[..len]);
        u32::from_le_bytes(data)
    }

    pub fn port_out(&self, port: u16, len: usize, value: u32) {
        self.bus.port_write(port, &value.to_le_bytes()[..len]);
    }
}

/// Marsaglia's xorshift64*: random enough, and the same every time.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }
}
