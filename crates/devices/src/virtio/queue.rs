//! The split virtqueue (VIRTIO 1.2, 2.7), with nothing in it trusted.
//!
//! Every descriptor is copied once and judged on the copy, every chain is bounded, every address
//! is checked where it is used. What breaks the rules makes the queue broken: it hands out nothing
//! more, and its owner tells the driver that the device needs a reset.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use memory::GuestSlice;
use serde::{Deserialize, Serialize};

use super::feature;
use crate::pci::{DmaError, DmaMemory};

/// Largest queue size (VIRTIO 1.2, 2.7: a power of 2 up to 32768).
pub const MAX_QUEUE_SIZE: u16 = 32768;
/// Most descriptors in an indirect table. The standard allows no more than the queue's size, but
/// drivers make larger ones for small queues.
pub const MAX_INDIRECT: u64 = 1024;

/// Length of a descriptor (2.7.5).
const DESCRIPTOR: u64 = 16;
// Flags of a descriptor (2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Flag of the available ring: the driver wants no interrupts (2.7.6).
const NO_INTERRUPT: u16 = 1;
/// Flag of the used ring: we want no notifications (2.7.8).
const NO_NOTIFY: u16 = 1;
/// Offset of `idx` in both rings (2.7.6, 2.7.8).
const IDX: u64 = 2;
/// Offset of `ring` in both rings.
const RING: u64 = 4;

/// What a driver did wrong with a queue.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum QueueError {
    #[error("queue size {0} is not a power of 2 up to 32768")]
    Size(u16),
    #[error("the rings are not in RAM or not aligned")]
    Layout,
    #[error("the available ring claims {0} new buffers, more than it holds")]
    AvailIndex(u16),
    #[error("more buffers in flight than the queue holds")]
    InFlight,
    #[error("descriptor {0} does not exist")]
    Descriptor(u16),
    #[error("a descriptor chain is a loop or too long")]
    Loop,
    #[error("a descriptor is empty")]
    Empty,
    #[error("a chain is longer than 4 GiB")]
    TooLong,
    #[error("a buffer for the device to read comes after one for it to write")]
    Order,
    #[error("a bad indirect descriptor")]
    Indirect,
    #[error("a request that makes no sense: {0}")]
    Request(&'static str),
    #[error(transparent)]
    Dma(#[from] DmaError),
}

/// Where the driver has put a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingConfig {
    /// Number of descriptors.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub desc: u64,
    /// Guest-physical address of the available ring.
    pub avail: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
}

impl RingConfig {
    /// The layout of legacy drivers (VIRTIO 1.2, 2.7.2): one block at page number `pfn`, the used
    /// ring on the page after the available ring's `used_event`.
    pub fn legacy(size: u16, pfn: u32) -> Self {
        let desc = u64::from(pfn) << 12;
        let avail = desc + DESCRIPTOR * u64::from(size);
        let used = (avail + RING + 2 * u64::from(size) + 2).next_multiple_of(4096);
        Self { size, desc, avail, used }
    }

    fn check(&self, memory: &DmaMemory) -> Result<(), QueueError> {
        if !self.size.is_power_of_two() || self.size > MAX_QUEUE_SIZE {
            return Err(QueueError::Size(self.size));
        }
        let size = u64::from(self.size);
        // Alignments of 2.7; each ring ends with the event index of the other side.
        let parts = [
            (self.desc, DESCRIPTOR * size, 16),
            (self.avail, RING + 2 * size + 2, 2),
            (self.used, RING + 8 * size + 2, 4),
        ];
        let good = parts.iter().all(|&(gpa, len, align)| gpa % align == 0 && memory.contains(gpa, len));
        if good { Ok(()) } else { Err(QueueError::Layout) }
    }
}

/// Where a queue is in its rings; all that has to be saved beside [`RingConfig`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingPosition {
    /// Free-running index of the next available entry.
    pub next_avail: u16,
    /// Free-running index of the next used entry.
    pub next_used: u16,
}

/// One request: buffers that the device may read, then buffers that it may write.
pub struct Chain {
    /// Names the chain to the driver.
    pub head: u16,
    /// What the driver has written for us, in order. No slice is empty.
    pub readable: Vec<GuestSlice>,
    /// Where we may write, in order. No slice is empty.
    pub writable: Vec<GuestSlice>,
}

impl Chain {
    /// Bytes to read.
    pub fn readable_len(&self) -> u64 {
        total(&self.readable)
    }

    /// Room to write.
    pub fn writable_len(&self) -> u64 {
        total(&self.writable)
    }

    /// Copies from the readable bytes at `offset`; returns how many there were.
    pub fn read(&self, offset: u64, to: &mut [u8]) -> usize {
        let mut done = 0;
        each(&self.readable, offset, |slice| {
            done += slice.read(to.get_mut(done..).unwrap_or_default());
            done < to.len()
        });
        done
    }

    /// Copies to the writable bytes at `offset`; returns how many fitted.
    pub fn write(&self, offset: u64, from: &[u8]) -> usize {
        let mut done = 0;
        each(&self.writable, offset, |slice| {
            done += slice.write(from.get(done..).unwrap_or_default());
            done < from.len()
        });
        done
    }

    /// All readable bytes, at most `limit`.
    pub fn read_all(&self, limit: usize) -> Vec<u8> {
        let len = usize::try_from(self.readable_len()).unwrap_or(usize::MAX).min(limit);
        let mut data = vec![0; len];
        let got = self.read(0, &mut data);
        data.truncate(got);
        data
    }
}

fn total(slices: &[GuestSlice]) -> u64 {
    slices.iter().map(|s| s.len() as u64).sum()
}

/// Calls `visit` on the parts of `slices` from `offset` until it has enough.
fn each(slices: &[GuestSlice], offset: u64, mut visit: impl FnMut(&GuestSlice) -> bool) {
    let mut skip = usize::try_from(offset).unwrap_or(usize::MAX);
    for slice in slices {
        if skip >= slice.len() {
            skip -= slice.len();
            continue;
        }
        if !visit(&slice.sub(skip, usize::MAX)) {
            return;
        }
        skip = 0;
    }
}

/// A descriptor, copied.
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn parse(raw: &[u8; DESCRIPTOR as usize]) -> Self {
        let raw = u128::from_le_bytes(*raw);
        Self {
            address: raw as u64,
            len: (raw >> 64) as u32,
            flags: (raw >> 96) as u16,
            next: (raw >> 112) as u16,
        }
    }
}

/// Collects a chain.
#[derive(Default)]
struct Collector {
    readable: Vec<GuestSlice>,
    writable: Vec<GuestSlice>,
    total: u64,
}

impl Collector {
    fn add(&mut self, memory: &DmaMemory, d: &Descriptor) -> Result<(), QueueError> {
        if d.len == 0 {
            return Err(QueueError::Empty);
        }
        self.total += u64::from(d.len);
        // The length in a used element has 32 bits.
        if self.total > u64::from(u32::MAX) {
            return Err(QueueError::TooLong);
        }
        let slice = memory.slice(d.address, u64::from(d.len))?;
        if d.flags & WRITE != 0 {
            self.writable.push(slice);
        } else if self.writable.is_empty() {
            self.readable.push(slice);
        } else {
            return Err(QueueError::Order);
        }
        Ok(())
    }
}

/// The rings of one queue and our place in them.
struct Ring {
    memory: DmaMemory,
    config: RingConfig,
    features: u64,
    position: RingPosition,
    /// `next_used` when we last decided whether to interrupt.
    signalled: u16,
    /// Taken and not given back.
    in_flight: u16,
    /// Hands out nothing for the time being.
    paused: bool,
    /// Does nothing any more: the driver broke the rules, or the device was reset.
    dead: bool,
}

impl Ring {
    fn has(&self, bit: u64) -> bool {
        self.features & bit != 0
    }

    fn avail_idx(&self) -> Result<u16, QueueError> {
        // Acquire: the ring entries and descriptors were written before the index.
        Ok(self.memory.load_u16(self.config.avail + IDX, Ordering::Acquire)?)
    }

    fn slot(&self, index: u16) -> u64 {
        u64::from(index & (self.config.size - 1))
    }

    fn used_event(&self) -> Result<u16, QueueError> {
        let at = self.config.avail + RING + 2 * u64::from(self.config.size);
        Ok(self.memory.load_u16(at, Ordering::Relaxed)?)
    }

    fn waiting(&self) -> Result<u16, QueueError> {
        let waiting = self.avail_idx()?.wrapping_sub(self.position.next_avail);
        if waiting > self.config.size {
            return Err(QueueError::AvailIndex(waiting));
        }
        Ok(waiting)
    }

    fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        if self.waiting()? == 0 {
            return Ok(None);
        }
        if self.in_flight >= self.config.size {
            return Err(QueueError::InFlight);
        }
        let at = self.config.avail + RING + 2 * self.slot(self.position.next_avail);
        let head = self.memory.load_u16(at, Ordering::Relaxed)?;
        let chain = self.walk(head)?;
        self.position.next_avail = self.position.next_avail.wrapping_add(1);
        self.in_flight += 1;
        Ok(Some(Chain { head, readable: chain.readable, writable: chain.writable }))
    }

    fn walk(&self, head: u16) -> Result<Collector, QueueError> {
        let mut chain = Collector::default();
        let mut index = head;
        for _ in 0..self.config.size {
            if index >= self.config.size {
                return Err(QueueError::Descriptor(index));
            }
            let mut raw = [0; DESCRIPTOR as usize];
            self.memory.read(self.config.desc + DESCRIPTOR * u64::from(index), &mut raw)?;
            let descriptor = Descriptor::parse(&raw);
            if descriptor.flags & INDIRECT != 0 {
                self.walk_indirect(&descriptor, &mut chain)?;
                return Ok(chain);
            }
            chain.add(&self.memory, &descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(chain);
            }
            index = descriptor.next;
        }
        Err(QueueError::Loop)
    }

    /// 2.7.5.3: the table ends the chain, and there are no tables in tables.
    fn walk_indirect(&self, outer: &Descriptor, chain: &mut Collector) -> Result<(), QueueError> {
        let count = u64::from(outer.len) / DESCRIPTOR;
        let whole = u64::from(outer.len) % DESCRIPTOR == 0;
        if !self.has(feature::INDIRECT_DESC) || outer.flags & NEXT != 0 || !whole || count == 0 {
            return Err(QueueError::Indirect);
        }
        if count > MAX_INDIRECT {
            return Err(QueueError::Loop);
        }
        let mut table = vec![0; outer.len as usize];
        self.memory.read(outer.address, &mut table)?;
        let (table, _) = table.as_chunks();
        let mut index = 0;
        for _ in 0..count {
            let raw = table.get(usize::from(index)).ok_or(QueueError::Descriptor(index))?;
            let descriptor = Descriptor::parse(raw);
            if descriptor.flags & INDIRECT != 0 {
                return Err(QueueError::Indirect);
            }
            chain.add(&self.memory, &descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(QueueError::Loop)
    }

    /// Puts elements in the used ring; they appear to the driver together.
    fn push(&mut self, done: &[(u16, u32)]) -> Result<(), QueueError> {
        let mut next = self.position.next_used;
        for &(head, len) in done {
            self.in_flight = self.in_flight.checked_sub(1).ok_or(QueueError::InFlight)?;
            let at = self.config.used + RING + 8 * self.slot(next);
            let element = u64::from(head) | u64::from(len) << 32;
            self.memory.write(at, &element.to_le_bytes())?;
            next = next.wrapping_add(1);
        }
        self.position.next_used = next;
        // Release: the elements and the data in the buffers are there before the index.
        self.memory.store_u16(self.config.used + IDX, next, Ordering::Release)?;
        Ok(())
    }

    /// Whether the driver wants to hear of what was pushed since the last call (2.7.7).
    fn wants_interrupt(&mut self) -> Result<bool, QueueError> {
        let (old, new) = (self.signalled, self.position.next_used);
        if old == new {
            return Ok(false);
        }
        self.signalled = new;
        // Our index must be visible before we look at what the driver waits for.
        fence(Ordering::SeqCst);
        if self.has(feature::NOTIFY_ON_EMPTY) && self.in_flight == 0 && self.waiting()? == 0 {
            return Ok(true);
        }
        if self.has(feature::EVENT_IDX) {
            // 2.7.7.2: whether the event index is among those passed since.
            let event = self.used_event()?;
            return Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old));
        }
        Ok(self.memory.load_u16(self.config.avail, Ordering::Relaxed)? & NO_INTERRUPT == 0)
    }

    /// Asks for notifications, or asks to be spared (2.7.10). With the event index there is no
    /// way to ask for silence, but an index in the past amounts to it.
    fn set_notifications(&mut self, on: bool) -> Result<(), QueueError> {
        if self.has(feature::EVENT_IDX) {
            if on {
                let at = self.config.used + RING + 8 * u64::from(self.config.size);
                self.memory.store_u16(at, self.position.next_avail, Ordering::Relaxed)?;
            }
        } else {
            let flags = if on { 0 } else { NO_NOTIFY };
            self.memory.store_u16(self.config.used, flags, Ordering::Relaxed)?;
        }
        Ok(())
    }
}

/// What a queue tells its transport.
pub trait QueueOwner: Send + Sync {
    /// Interrupts the driver on behalf of queue `index`.
    fn interrupt(&self, index: u16);
    /// The driver broke the rules on queue `index`.
    fn fault(&self, index: u16, error: &QueueError);
}

/// One virtqueue in use, shared between the transport and the device's threads.
///
/// An error of any method has been told to the driver already; the queue is of no use any more
/// until the driver resets the device.
pub struct VirtQueue {
    index: u16,
    size: u16,
    owner: Arc<dyn QueueOwner>,
    ring: Mutex<Ring>,
    idle: Condvar,
}

impl VirtQueue {
    /// The queue at `config`. `features` is what was negotiated.
    pub fn new(
        index: u16,
        config: RingConfig,
        position: RingPosition,
        features: u64,
        memory: DmaMemory,
        owner: Arc<dyn QueueOwner>,
    ) -> Result<Self, QueueError> {
        config.check(&memory)?;
        let ring = Ring {
            memory,
            config,
            features,
            position,
            signalled: position.next_used,
            in_flight: 0,
            paused: false,
            dead: false,
        };
        Ok(Self { index, size: config.size, owner, ring: Mutex::new(ring), idle: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queue's number.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Runs `work` unless the queue is dead or the function may not do DMA; what fails kills the
    /// queue.
    fn with<T>(
        &self,
        none: T,
        work: impl FnOnce(&mut Ring) -> Result<T, QueueError>,
    ) -> Result<T, QueueError> {
        let mut ring = self.lock();
        if ring.dead {
            return Ok(none);
        }
        match work(&mut ring) {
            Err(QueueError::Dma(DmaError::Off)) => Ok(none),
            Err(error) => {
                ring.dead = true;
                drop(ring);
                self.idle.notify_all();
                self.owner.fault(self.index, &error);
                Err(error)
            }
            good => good,
        }
    }

    /// Takes the next chain, if there is one.
    pub fn pop(&self) -> Result<Option<Chain>, QueueError> {
        self.with(None, |ring| if ring.paused { Ok(None) } else { ring.pop() })
    }

    /// Gives back, unused, the last `count` chains that were taken: the next `pop` takes the first
    /// of them again.
    pub fn rewind(&self, count: u16) {
        let mut ring = self.lock();
        let count = count.min(ring.in_flight);
        ring.position.next_avail = ring.position.next_avail.wrapping_sub(count);
        ring.in_flight -= count;
        drop(ring);
        self.idle.notify_all();
    }

    /// Gives back chains with the number of bytes written to each, which appear to the driver
    /// together; then interrupts it if it wants that.
    pub fn complete_all(&self, done: &[(u16, u32)]) -> Result<(), QueueError> {
        self.push_all(done)?;
        self.signal()
    }

    /// Gives back one chain into which `len` bytes were written.
    pub fn complete(&self, head: u16, len: u32) -> Result<(), QueueError> {
        self.complete_all(&[(head, len)])
    }

    /// As [`VirtQueue::complete_all`], without the interrupt: [`VirtQueue::signal`] must follow.
    pub fn push_all(&self, done: &[(u16, u32)]) -> Result<(), QueueError> {
        let idle = self.with(false, |ring| {
            ring.push(done)?;
            Ok(ring.in_flight == 0)
        })?;
        if idle {
            self.idle.notify_all();
        }
        Ok(())
    }

    /// Interrupts the driver if it wants to hear of what was pushed since the last time.
    pub fn signal(&self) -> Result<(), QueueError> {
        if self.with(false, Ring::wants_interrupt)? {
            self.owner.interrupt(self.index);
        }
        Ok(())
    }

    /// Asks the driver for notifications; true if there are chains already, for which it may have
    /// sent none: the caller must look again before it sleeps.
    pub fn enable_notifications(&self) -> Result<bool, QueueError> {
        self.with(false, |ring| {
            if ring.paused {
                return Ok(false);
            }
            ring.set_notifications(true)?;
            // The driver must see our wish before we look at its index.
            fence(Ordering::SeqCst);
            Ok(ring.waiting()? != 0)
        })
    }

    /// Asks the driver to spare us notifications while we look ourselves.
    pub fn disable_notifications(&self) -> Result<(), QueueError> {
        self.with((), |ring| ring.set_notifications(false))
    }

    /// Whether the driver has made chains available.
    pub fn has_work(&self) -> Result<bool, QueueError> {
        self.with(false, |ring| Ok(!ring.paused && ring.waiting()? != 0))
    }

    /// The driver sent a request that makes no sense at all, so that it can't be answered.
    pub fn fault(&self, what: &'static str) {
        let _ = self.with((), |_| Err(QueueError::Request(what)));
    }

    /// Whether the queue works: neither broken nor reset.
    pub fn alive(&self) -> bool {
        !self.lock().dead
    }

    /// Waits until all chains that were taken have been given back, or the queue is dead.
    pub fn wait_idle(&self) {
        let ring = self.lock();
        drop(self.idle.wait_while(ring, |ring| ring.in_flight != 0 && !ring.dead));
    }

    /// Makes `pop` find nothing, or takes that back.
    pub(crate) fn pause(&self, on: bool) {
        self.lock().paused = on;
    }

    /// Ends the queue's use: late calls of device threads do nothing.
    pub(crate) fn retire(&self) {
        self.lock().dead = true;
        self.idle.notify_all();
    }

    /// Where the queue is; `None` while chains are in flight.
    pub(crate) fn position(&self) -> Option<RingPosition> {
        let ring = self.lock();
        (ring.in_flight == 0 || ring.dead).then_some(ring.position)
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
