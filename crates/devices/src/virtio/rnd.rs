//! virtio-rnd: an entropy source (VIRTIO 1.2, 5.4) fed by the host's.

use std::fs::File;
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bus::{SavedState, StateError};
use config::Node;

use super::later::{Later, TURN};
use super::{Kind, Queues, VirtQueue, VirtioDevice, pci};
use crate::pci::PciFunction;
use crate::registry::{BuildContext, BuildError, DeviceEntry};

/// One queue, as bhyve's.
const QUEUE_SIZES: &[u16] = &[64];
/// Most bytes for one request. The driver gets at least one (5.4.6.2) and asks again.
const MAX_BYTES: usize = 4096;
/// bhyve reads /dev/random; on Linux this is the same source without the wait.
const SOURCE: &str = "/dev/urandom";
const VERSION: u32 = 1;

/// The entropy source.
pub const DEVICE: DeviceEntry =
    DeviceEntry { name: "virtio-rnd", aliases: &[], help: "source of random numbers", keys: &[], build };

fn build(context: &BuildContext, _: &Node<'_>) -> Result<Arc<dyn PciFunction>, BuildError> {
    let source = File::open(SOURCE).map_err(|source| BuildError::Host { what: SOURCE.into(), source })?;
    let device = Arc::new_cyclic(|this: &Weak<Rnd>| {
        let this = this.clone();
        let later = Later::new(&context.timers, move |queue| {
            if let Some(device) = this.upgrade() {
                device.notify(queue);
            }
        });
        Rnd { source, queue: Mutex::default(), later }
    });
    pci::function(context, device)
}

struct Rnd {
    source: File,
    queue: Mutex<Option<Arc<VirtQueue>>>,
    later: Later,
}

impl Rnd {
    fn queue(&self) -> MutexGuard<'_, Option<Arc<VirtQueue>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, queue: &VirtQueue) -> Result<(), super::QueueError> {
        let mut bytes = [0; MAX_BYTES];
        let mut served = 0;
        loop {
            while let Some(chain) = queue.pop()? {
                let len = usize::try_from(chain.writable_len()).unwrap_or(MAX_BYTES).min(MAX_BYTES);
                let bytes = bytes.get_mut(..len).unwrap_or_default();
                if len == 0 {
                    queue.fault("no room for random bytes");
                    return Ok(());
                }
                // This source does not fail; if it did, the guest must not take zeros for random.
                let len = match (&self.source).read_exact(bytes) {
                    Ok(()) => chain.write(0, bytes),
                    Err(_) => 0,
                };
                queue.complete(chain.head, len as u32)?;
                served += 1;
                if served == TURN {
                    self.later.call(queue.index());
                    return Ok(());
                }
            }
            if !queue.enable_notifications()? {
                return Ok(());
            }
        }
    }
}

impl VirtioDevice for Rnd {
    fn kind(&self) -> Kind {
        Kind::RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn config_len(&self) -> usize {
        0
    }

    fn config_read(&self, _: usize, _: &mut [u8]) {}

    fn activate(&self, _: u64, queues: Queues) {
        *self.queue() = queues.into_iter().next().flatten();
    }

    fn notify(&self, index: u16) {
        let queue = self.queue().clone();
        if let Some(queue) = queue.filter(|_| index == 0) {
            // An error has been told to the driver.
            let _ = self.serve(&queue);
        }
    }

    fn reset(&self) {
        self.drain();
        *self.queue() = None;
    }

    fn drain(&self) {
        let queue = self.queue().clone();
        if let Some(queue) = queue {
            queue.wait_idle();
        }
    }

    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::encode(VERSION, &())
    }

    fn restore(&self, state: &SavedState) -> Result<(), StateError> {
        state.decode(VERSION)
    }
}
