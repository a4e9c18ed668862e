//! Virtio devices (VIRTIO 1.2): the queue, the transitional PCI transport, and one file a device.

pub mod block;
pub mod console;
mod later;
pub mod net;
pub mod pci;
mod queue;
pub mod rnd;
#[cfg(test)]
mod test_driver;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bus::{SavedState, StateError};

pub use queue::{Chain, MAX_QUEUE_SIZE, QueueError, QueueOwner, RingConfig, RingPosition, VirtQueue};

/// Feature bits that do not depend on the kind of device (VIRTIO 1.2, 6; 24 and 27 in 6.3).
pub mod feature {
    /// Legacy: an interrupt when the available ring runs empty, even if interrupts are unwanted.
    pub const NOTIFY_ON_EMPTY: u64 = 1 << 24;
    /// Legacy: requests may be cut into descriptors anywhere.
    pub const ANY_LAYOUT: u64 = 1 << 27;
    /// Descriptors may point to tables of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Each side tells the other at which index it wants to hear of something.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Not a legacy driver.
    pub const VERSION_1: u64 = 1 << 32;
}

/// What a kind of device is on PCI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Device type (VIRTIO 1.2, 5), also the PCI subsystem id.
    pub id: u16,
    /// Transitional PCI device id (4.1.2.1).
    pub pci_device: u16,
    /// PCI class and subclass.
    pub pci_class: [u8; 2],
}

impl Kind {
    /// Network card.
    pub const NET: Self = Self { id: 1, pci_device: 0x1000, pci_class: [2, 0] };
    /// Block device.
    pub const BLOCK: Self = Self { id: 2, pci_device: 0x1001, pci_class: [1, 0] };
    /// Console. Subclass "other", because serial port drivers take every "serial" device.
    pub const CONSOLE: Self = Self { id: 3, pci_device: 0x1003, pci_class: [7, 0x80] };
    /// Entropy source.
    pub const RNG: Self = Self { id: 4, pci_device: 0x1005, pci_class: [0x10, 0] };
}

/// The transport, as its device sees it.
pub trait Transport: Send + Sync {
    /// The device's configuration space has changed: bumps its generation, tells a live driver.
    fn config_changed(&self);
    /// The device can't go on: sets NEEDS_RESET and tells the driver.
    fn needs_reset(&self, reason: &str);
}

/// The queues that the driver has set up, by number.
pub type Queues = Vec<Option<Arc<VirtQueue>>>;

/// One virtio device behind any transport. The transport serializes `activate`, `reset`, `drain`,
/// `save` and `restore`; the other methods come from any thread at any time.
pub trait VirtioDevice: Send + Sync {
    /// What it is.
    fn kind(&self) -> Kind;

    /// Device-specific features that it offers. The transport adds those of [`feature`].
    fn features(&self) -> u64;

    /// The largest size of each queue.
    fn queue_sizes(&self) -> &[u16];

    /// Length of the configuration space in bytes.
    fn config_len(&self) -> usize;

    /// Reads the configuration space; `offset + data.len()` is within its length.
    fn config_read(&self, offset: usize, data: &mut [u8]);

    /// Writes the configuration space, within its length. `features` is what was negotiated.
    fn config_write(&self, offset: usize, data: &[u8], features: u64) {
        let _ = (offset, data, features);
    }

    /// Called once, when the device gets its transport. It may keep the handle (which is weak:
    /// calls after the transport is gone do nothing).
    fn attach(&self, transport: Arc<dyn Transport>) {
        let _ = transport;
    }

    /// The driver is ready (DRIVER_OK). `features` is what was negotiated. [`Self::notify`] comes
    /// for every queue right afterwards.
    fn activate(&self, features: u64, queues: Queues);

    /// Queue `index` may have new chains. Must be quick: it may run on a vCPU's thread. May come
    /// for queues that do not exist or while the device is not active.
    fn notify(&self, index: u16);

    /// An eventfd that the device's own thread waits on, which does the same as `notify` of queue
    /// `index`. Without one, the event loop calls `notify`.
    fn doorbell(&self, index: u16) -> Option<Arc<OwnedFd>> {
        let _ = index;
        None
    }

    /// Stops: waits for what is in flight, lets go of the queues. `pop` finds nothing any more
    /// when this is called. Must be fine on a device that is not active.
    fn reset(&self);

    /// Waits for what is in flight and gives back chains that it holds ([`VirtQueue::rewind`]).
    /// `pop` finds nothing while this runs and afterwards, until a `notify` comes for every queue.
    fn drain(&self);

    /// State beside queues and negotiated features; the device is drained.
    fn save(&self) -> Result<SavedState, StateError>;

    /// Takes a saved state, on a device that is reset; `activate` may follow.
    fn restore(&self, state: &SavedState) -> Result<(), StateError>;
}
