//! The driver's side of a virtqueue, for tests of devices.

use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use memory::{Backing, GuestMemory};

use super::{QueueError, QueueOwner, RingConfig, RingPosition, Transport, VirtQueue, feature};
use crate::pci::DmaMemory;

/// What the device has told its transport.
#[derive(Default)]
pub struct Owner {
    pub interrupts: AtomicU32,
    pub config_changes: AtomicU32,
    pub faults: Mutex<Vec<String>>,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Owner {
    pub fn faults(&self) -> Vec<String> {
        self.faults.lock().unwrap().clone()
    }

    fn note(&self) {
        drop(self.lock.lock().unwrap());
        self.changed.notify_all();
    }
}

impl QueueOwner for Owner {
    fn interrupt(&self, _: u16) {
        self.interrupts.fetch_add(1, Ordering::SeqCst);
        self.note();
    }

    fn fault(&self, _: u16, error: &QueueError) {
        self.faults.lock().unwrap().push(error.to_string());
        self.note();
    }
}

impl Transport for Owner {
    fn config_changed(&self) {
        self.config_changes.fetch_add(1, Ordering::SeqCst);
        self.note();
    }

    fn needs_reset(&self, reason: &str) {
        self.faults.lock().unwrap().push(reason.to_string());
        self.note();
    }
}

/// RAM for tests: rings from 0, buffers from 1 MiB.
pub fn ram() -> GuestMemory {
    GuestMemory::new(&[(0, 16 << 20)], &Backing::Anonymous).unwrap()
}

/// One queue, as its driver sees it.
pub struct Driver {
    pub ram: GuestMemory,
    pub queue: Arc<VirtQueue>,
    pub owner: Arc<Owner>,
    ring: RingConfig,
    features: u64,
    free: Vec<u16>,
    /// The descriptors of each chain in flight, by head.
    chains: Vec<Vec<u16>>,
    avail: u16,
    used: u16,
    kicked: u16,
}

impl Driver {
    /// Queue `index` of `size` entries, whose rings are at `index` * 64 KiB.
    pub fn new(ram: &GuestMemory, owner: &Arc<Owner>, index: u16, size: u16, features: u64) -> Self {
        let ring = RingConfig::legacy(size, u32::from(index) * 16);
        let dma = DmaMemory::new(ram.clone());
        dma.set_enabled(true);
        let position = RingPosition::default();
        let queue = VirtQueue::new(index, ring, position, features, dma, owner.clone()).unwrap();
        Self {
            ram: ram.clone(),
            queue: Arc::new(queue),
            owner: owner.clone(),
            ring,
            features,
            free: (0..size).rev().collect(),
            chains: vec![Vec::new(); usize::from(size)],
            avail: 0,
            used: 0,
            kicked: 0,
        }
    }

    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Makes a chain available: (gpa, len) of what the device reads, then writes.
    pub fn add(&mut self, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> u16 {
        let count = readable.len() + writable.len();
        let ids: Vec<u16> = (0..count).map(|_| self.free.pop().expect("no free descriptor")).collect();
        for (i, &(gpa, len)) in readable.iter().chain(writable).enumerate() {
            let next = ids.get(i + 1).copied();
            let flags = u16::from(next.is_some()) | if i >= readable.len() { 2 } else { 0 };
            let at = self.ring.desc + 16 * u64::from(ids[i]);
            self.ram.store_u64(at, gpa, Ordering::Relaxed).unwrap();
            self.ram.store_u32(at + 8, len, Ordering::Relaxed).unwrap();
            self.ram.store_u16(at + 12, flags, Ordering::Relaxed).unwrap();
            self.ram.store_u16(at + 14, next.unwrap_or(0), Ordering::Relaxed).unwrap();
        }
        let head = ids[0];
        self.chains[usize::from(head)] = ids;
        let slot = u64::from(self.avail % self.ring.size);
        self.ram.store_u16(self.ring.avail + 4 + 2 * slot, head, Ordering::Relaxed).unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.ram.store_u16(self.ring.avail + 2, self.avail, Ordering::Release).unwrap();
        head
    }

    /// Whether the device wants to hear of what was added since the last call.
    pub fn must_kick(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let (old, new) = (self.kicked, self.avail);
        self.kicked = new;
        if self.features & feature::EVENT_IDX == 0 {
            return self.ram.load_u16(self.ring.used, Ordering::Relaxed).unwrap() & 1 == 0;
        }
        let at = self.ring.used + 4 + 8 * u64::from(self.ring.size);
        let event = self.ram.load_u16(at, Ordering::Relaxed).unwrap();
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    /// The next chain that the device has given back.
    pub fn used(&mut self) -> Option<(u16, u32)> {
        if self.ram.load_u16(self.ring.used + 2, Ordering::Acquire).unwrap() == self.used {
            return None;
        }
        let at = self.ring.used + 4 + 8 * u64::from(self.used % self.ring.size);
        let head = self.ram.load_u32(at, Ordering::Relaxed).unwrap() as u16;
        let len = self.ram.load_u32(at + 4, Ordering::Relaxed).unwrap();
        self.used = self.used.wrapping_add(1);
        self.free.append(&mut self.chains[usize::from(head)]);
        Some((head, len))
    }

    /// Asks for an interrupt with the next chain that is given back; false if there is one already.
    fn arm(&self) -> bool {
        let at = self.ring.avail + 4 + 2 * u64::from(self.ring.size);
        self.ram.store_u16(at, self.used, Ordering::Relaxed).unwrap();
        fence(Ordering::SeqCst);
        self.ram.load_u16(self.ring.used + 2, Ordering::Acquire).unwrap() == self.used
    }

    /// Sleeps until the device interrupts, as a real driver would: a lost interrupt fails the test.
    pub fn wait_used(&mut self) -> (u16, u32) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let seen = self.owner.interrupts.load(Ordering::SeqCst);
            if let Some(used) = self.used() {
                return used;
            }
            if !self.arm() {
                continue;
            }
            let mut guard = self.owner.lock.lock().unwrap();
            while self.owner.interrupts.load(Ordering::SeqCst) == seen {
                let left = end.checked_duration_since(Instant::now()).expect("no interrupt came");
                guard = self.owner.changed.wait_timeout(guard, left).unwrap().0;
            }
        }
    }

    pub fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.ram.read(gpa, &mut data).unwrap();
        data
    }
}
