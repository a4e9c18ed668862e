//! A driver for tests, which knows nothing but registers and memory.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::pci::PciFunction;
use crate::testing::Rig;
use crate::virtio::{RingConfig, feature};

/// Which register block the driver uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    Legacy,
    Modern,
}

pub(crate) const BLOCKS: [Block; 2] = [Block::Legacy, Block::Modern];

/// A device on the bus and the driver's knowledge of it.
pub(crate) struct Guest {
    pub rig: Rig,
    pub function: Arc<dyn PciFunction>,
    pub block: Block,
    slot: u8,
    /// BAR address and offset of common, notify, ISR and device configuration.
    places: [u64; 4],
    notify_step: u64,
    msix: bool,
}

// Places.
const COMMON: usize = 0;
const NOTIFY: usize = 1;
const ISR: usize = 2;
const CONFIG: usize = 3;

/// Where the tests' MSI-X messages go.
pub(crate) const MSI_ADDRESS: u64 = 0xfee0_0000;

impl Guest {
    pub(crate) fn new(rig: Rig, function: Arc<dyn PciFunction>, block: Block) -> Self {
        rig.start(&function);
        Self::on(rig, function, block)
    }

    /// The same for a function that is on the bus already.
    pub(crate) fn on(rig: Rig, function: Arc<dyn PciFunction>, block: Block) -> Self {
        let slot = function.core().address().slot;
        let mut guest = Self { rig, function, block, slot, places: [0; 4], notify_step: 0, msix: false };
        match block {
            Block::Legacy => {
                let base = guest.rig.bar(slot, 0);
                guest.places = [base, base + 16, base + 19, base + 20];
            }
            Block::Modern => guest.find_capabilities(),
        }
        guest
    }

    fn find_capabilities(&mut self) {
        for kind in 1..=4u8 {
            let find = |nth| self.rig.capability(self.slot, 9, nth);
            let at =
                (0..).map_while(find).find(|at| self.rig.config_read(self.slot, at + 3, 1) as u8 == kind);
            // Devices without configuration space have no structure for it.
            let Some(at) = at else {
                assert_eq!(usize::from(kind) - 1, CONFIG, "a structure is missing");
                continue;
            };
            let bar = self.rig.config_read(self.slot, at + 4, 1) as u8;
            let offset = u64::from(self.rig.config_read(self.slot, at + 8, 4));
            self.places[usize::from(kind) - 1] = self.rig.bar(self.slot, bar) + offset;
            if kind == 2 {
                self.notify_step = u64::from(self.rig.config_read(self.slot, at + 16, 4));
            }
        }
    }

    fn read(&self, at: u64, len: usize) -> u32 {
        let mut data = [0; 4];
        match self.block {
            Block::Legacy => self.rig.bus.port_read(at as u16, &mut data[..len]),
            Block::Modern => self.rig.bus.memory_read(at, &mut data[..len]),
        };
        u32::from_le_bytes(data)
    }

    fn write(&self, at: u64, value: u32, len: usize) {
        let data = value.to_le_bytes();
        match self.block {
            Block::Legacy => self.rig.bus.port_write(at as u16, &data[..len]),
            Block::Modern => self.rig.bus.memory_write(at, &data[..len]),
        };
    }

    fn common(&self, offset: u64) -> u64 {
        self.places[COMMON] + offset
    }

    pub(crate) fn status(&self) -> u8 {
        let offset = if self.block == Block::Legacy { 18 } else { 0x14 };
        self.read(self.common(offset), 1) as u8
    }

    pub(crate) fn set_status(&self, value: u8) {
        let offset = if self.block == Block::Legacy { 18 } else { 0x14 };
        self.write(self.common(offset), u32::from(value), 1);
    }

    pub(crate) fn isr(&self) -> u8 {
        self.read(self.places[ISR], 1) as u8
    }

    pub(crate) fn offered(&self) -> u64 {
        match self.block {
            Block::Legacy => u64::from(self.read(self.common(0), 4)),
            Block::Modern => (0..2).fold(0, |features, half| {
                self.write(self.common(0), half, 4);
                features | u64::from(self.read(self.common(4), 4)) << (32 * half)
            }),
        }
    }

    pub(crate) fn accept(&self, features: u64) {
        match self.block {
            Block::Legacy => self.write(self.common(4), features as u32, 4),
            Block::Modern => {
                for half in 0..2 {
                    self.write(self.common(8), half, 4);
                    self.write(self.common(0xc), (features >> (32 * half)) as u32, 4);
                }
            }
        }
    }

    /// Reads device configuration.
    pub(crate) fn config(&self, offset: u64, len: usize) -> u32 {
        let skip = if self.block == Block::Legacy && self.msix { 4 } else { 0 };
        self.read(self.places[CONFIG] + skip + offset, len)
    }

    pub(crate) fn set_config(&self, offset: u64, value: u32, len: usize) {
        let skip = if self.block == Block::Legacy && self.msix { 4 } else { 0 };
        self.write(self.places[CONFIG] + skip + offset, value, len);
    }

    pub(crate) fn generation(&self) -> u8 {
        assert_eq!(self.block, Block::Modern);
        self.read(self.common(0x15), 1) as u8
    }

    /// The largest size of queue `index`.
    pub(crate) fn queue_size(&self, index: u16) -> u16 {
        let (select, size) = if self.block == Block::Legacy { (14, 12) } else { (0x16, 0x18) };
        self.write(self.common(select), u32::from(index), 2);
        self.read(self.common(size), 2) as u16
    }

    /// Sets up queue `index` at the page `page`.
    pub(crate) fn enable(&self, index: u16, page: u32) -> Queue {
        let size = self.queue_size(index);
        let ring = RingConfig::legacy(size, page);
        match self.block {
            Block::Legacy => self.write(self.common(8), page, 4),
            Block::Modern => {
                for (offset, address) in [(0x20, ring.desc), (0x28, ring.avail), (0x30, ring.used)] {
                    self.write(self.common(offset), address as u32, 4);
                    self.write(self.common(offset + 4), (address >> 32) as u32, 4);
                }
                self.write(self.common(0x1c), 1, 2);
            }
        }
        let clear = vec![0; (ring.used + 8 * u64::from(size) + 8 - ring.desc) as usize];
        self.rig.ram.write(ring.desc, &clear).unwrap();
        Queue { index, ring, avail: 0, used: 0 }
    }

    /// The driver's part of initialization (VIRTIO 1.2, 3.1.1) up to the queues.
    pub(crate) fn negotiate(&self, features: u64) {
        self.set_status(0);
        assert_eq!(self.status(), 0);
        self.set_status(1);
        self.set_status(3);
        let version = if self.block == Block::Modern { feature::VERSION_1 } else { 0 };
        self.accept(features | version);
        if self.block == Block::Modern {
            self.set_status(0xb);
            assert_eq!(self.status(), 0xb);
        }
    }

    pub(crate) fn go(&self) {
        self.set_status(self.status() | 4);
    }

    pub(crate) fn kick(&self, index: u16) {
        let step = self.notify_step * u64::from(index);
        self.write(self.places[NOTIFY] + step, u32::from(index), 2);
    }

    /// Turns MSI-X on: vector n sends data 0x40 + n.
    pub(crate) fn use_msix(&mut self) {
        let at = self.rig.capability(self.slot, 0x11, 0).unwrap();
        let count = self.rig.config_read(self.slot, at + 2, 2) as u64 + 1;
        let table = self.rig.bar(self.slot, self.rig.config_read(self.slot, at + 4, 1) as u8 & 7);
        for vector in 0..count {
            let entry = table + 16 * vector;
            self.rig.bus.memory_write(entry, &MSI_ADDRESS.to_le_bytes());
            self.rig.bus.memory_write(entry + 8, &(0x40 + vector as u32).to_le_bytes());
            self.rig.bus.memory_write(entry + 12, &[0; 4]);
        }
        self.rig.config_write(self.slot, at + 2, &0x8000u16.to_le_bytes());
        self.msix = true;
    }

    /// Assigns a vector to configuration changes; what it reads back.
    pub(crate) fn set_config_vector(&self, vector: u16) -> u16 {
        let at = self.common(if self.block == Block::Legacy { 20 } else { 0x10 });
        self.write(at, u32::from(vector), 2);
        self.read(at, 2) as u16
    }

    /// Assigns a vector to a queue; what it reads back.
    pub(crate) fn set_queue_vector(&self, index: u16, vector: u16) -> u16 {
        self.queue_size(index);
        let at = self.common(if self.block == Block::Legacy { 22 } else { 0x1a });
        self.write(at, u32::from(vector), 2);
        self.read(at, 2) as u16
    }

    /// Data of the messages that came since the last call.
    pub(crate) fn messages(&self) -> Vec<u32> {
        self.rig.probe.take_msis().iter().map(|msi| msi.data).collect()
    }
}

/// A queue in guest memory. Chain n uses descriptors from 4 * n on.
pub(crate) struct Queue {
    pub index: u16,
    pub ring: RingConfig,
    avail: u16,
    used: u16,
}

impl Queue {
    /// Makes a chain available: (gpa, len) of what the device reads, then writes; at most 4.
    pub(crate) fn add(&mut self, guest: &Guest, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> u16 {
        let ram = &guest.rig.ram;
        let count = readable.len() + writable.len();
        let head = 4 * (self.avail % (self.ring.size / 4));
        for (i, (gpa, len)) in (0u16..).zip(readable.iter().chain(writable)) {
            let next = usize::from(i) + 1 < count;
            let flags = u16::from(next) | if usize::from(i) >= readable.len() { 2 } else { 0 };
            let at = self.ring.desc + 16 * u64::from(head + i);
            ram.store_u64(at, *gpa, Ordering::Relaxed).unwrap();
            ram.store_u32(at + 8, *len, Ordering::Relaxed).unwrap();
            ram.store_u16(at + 12, flags, Ordering::Relaxed).unwrap();
            ram.store_u16(at + 14, if next { head + i + 1 } else { 0 }, Ordering::Relaxed).unwrap();
        }
        let slot = self.ring.avail + 4 + 2 * u64::from(self.avail % self.ring.size);
        ram.store_u16(slot, head, Ordering::Relaxed).unwrap();
        self.avail = self.avail.wrapping_add(1);
        ram.store_u16(self.ring.avail + 2, self.avail, Ordering::SeqCst).unwrap();
        head
    }

    /// The next chain that came back.
    pub(crate) fn used(&mut self, guest: &Guest) -> Option<(u16, u32)> {
        let ram = &guest.rig.ram;
        if ram.load_u16(self.ring.used + 2, Ordering::SeqCst).unwrap() == self.used {
            return None;
        }
        let at = self.ring.used + 4 + 8 * u64::from(self.used % self.ring.size);
        self.used = self.used.wrapping_add(1);
        let head = ram.load_u32(at, Ordering::Relaxed).unwrap() as u16;
        Some((head, ram.load_u32(at + 4, Ordering::Relaxed).unwrap()))
    }

    /// Adds, kicks and waits.
    pub(crate) fn turn(&mut self, guest: &Guest, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> u32 {
        let head = self.add(guest, readable, writable);
        guest.kick(self.index);
        let used = wait_for(|| self.used(guest));
        assert_eq!(used.0, head);
        used.1
    }
}

/// Polls until there is a value; a test that waits too long has failed.
pub(crate) fn wait_for<T>(mut poll: impl FnMut() -> Option<T>) -> T {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(std::time::Instant::now() < end, "nothing happened");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
