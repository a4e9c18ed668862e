//! What the transport tells the driver, from any thread: interrupts, and that the device is broken.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::pci::Interrupter;
use crate::virtio::{QueueError, QueueOwner, Transport};

/// No vector is assigned (VIRTIO 1.2, 4.1.4.3).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// Bits of the device status (2.1).
pub(super) mod status {
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const NEEDS_RESET: u8 = 64;
    pub const FAILED: u8 = 128;
    /// What a driver sets: also ACKNOWLEDGE and DRIVER, which have no effect.
    pub const DRIVER_BITS: u8 = 1 | 2 | DRIVER_OK | FEATURES_OK | FAILED;
}

// Bits of the ISR status (4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// Status and interrupts of one device. Nothing here waits for a device's lock.
pub(super) struct Signals {
    name: String,
    interrupts: Interrupter,
    /// Number of vectors that may be assigned.
    vectors: u16,
    isr: Mutex<u8>,
    status: AtomicU8,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    /// One complaint a device is enough: a guest can break it as often as it likes.
    complained: AtomicBool,
}

impl Signals {
    pub fn new(name: String, interrupts: Interrupter, queues: usize, vectors: u16) -> Self {
        let queue_vectors = (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect();
        Self {
            name,
            interrupts,
            vectors,
            isr: Mutex::new(0),
            status: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors,
            complained: AtomicBool::new(false),
        }
    }

    fn isr(&self) -> MutexGuard<'_, u8> {
        self.isr.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn interrupts(&self) -> &Interrupter {
        &self.interrupts
    }

    pub fn status(&self) -> u8 {
        self.status.load(Ordering::Acquire)
    }

    pub fn add_status(&self, bits: u8) {
        self.status.fetch_or(bits, Ordering::AcqRel);
    }

    pub fn isr_pending(&self) -> u8 {
        *self.isr()
    }

    /// Reads and clears the ISR status, which drops INTx (4.1.4.5.1).
    pub fn take_isr(&self) -> u8 {
        let mut isr = self.isr();
        let value = std::mem::take(&mut *isr);
        self.interrupts.lower();
        value
    }

    pub fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Relaxed)
    }

    pub fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.valid(vector), Ordering::Relaxed);
    }

    pub fn queue_vector(&self, queue: u16) -> u16 {
        self.queue_vectors.get(usize::from(queue)).map_or(NO_VECTOR, |v| v.load(Ordering::Relaxed))
    }

    pub fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(place) = self.queue_vectors.get(usize::from(queue)) {
            place.store(self.valid(vector), Ordering::Relaxed);
        }
    }

    /// A vector that does not exist can't be assigned; the driver sees that by reading it back
    /// (4.1.5.1.2).
    fn valid(&self, vector: u16) -> u16 {
        if vector < self.vectors { vector } else { NO_VECTOR }
    }

    /// Everything as after power-on.
    pub fn reset(&self) {
        self.status.store(0, Ordering::Release);
        self.config_vector.store(NO_VECTOR, Ordering::Relaxed);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Relaxed);
        }
        self.take_isr();
    }

    pub fn restore(&self, status: u8, isr: u8) {
        self.status.store(status, Ordering::Release);
        *self.isr() = isr;
    }

    fn raise(&self, vector: u16, bit: u8) {
        if self.interrupts.raise_msix(vector) {
            return;
        }
        // Held until INTx is up, so that a driver that reads the bit also drops the line.
        let mut isr = self.isr();
        *isr |= bit;
        self.interrupts.raise(0);
    }
}

impl QueueOwner for Signals {
    fn interrupt(&self, index: u16) {
        self.raise(self.queue_vector(index), ISR_QUEUE);
    }

    fn fault(&self, index: u16, error: &QueueError) {
        self.needs_reset(&format!("queue {index}: {error}"));
    }
}

impl Transport for Signals {
    fn config_changed(&self) {
        if self.status() & status::DRIVER_OK != 0 {
            self.raise(self.config_vector(), ISR_CONFIG);
        }
    }

    fn needs_reset(&self, reason: &str) {
        if self.status.fetch_or(status::NEEDS_RESET, Ordering::AcqRel) & status::NEEDS_RESET == 0 {
            if !self.complained.swap(true, Ordering::Relaxed) {
                eprintln!("bhyve: {}: the guest's driver must reset the device: {reason}", self.name);
            }
            self.config_changed();
        }
    }
}
