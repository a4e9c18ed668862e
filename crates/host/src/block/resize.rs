//! Notices that an image has grown or shrunk while the VM runs.

use std::sync::{Arc, OnceLock, Weak};

use bus::{Timer, Timers};

use super::Disk;

/// How often the size is looked at, in ns. inotify would report every write of our own as well.
const INTERVAL: u64 = 1_000_000_000;

/// Looks at a disk's size once a second as long as it lives; the disk's listeners hear of changes.
pub struct ResizeWatch {
    _timer: Arc<OnceLock<Timer>>,
}

impl ResizeWatch {
    /// Watches `disk` until this value or the disk is dropped.
    pub fn start(timers: &Timers, disk: &Arc<dyn Disk>) -> Self {
        let slot: Arc<OnceLock<Timer>> = Arc::default();
        let (again, disk, clock) = (Arc::downgrade(&slot), Arc::downgrade(disk), timers.clock());
        let timer = timers.timer(move || {
            let Some(disk) = Weak::upgrade(&disk) else { return };
            disk.check_size();
            if let Some(slot) = again.upgrade()
                && let Some(timer) = slot.get()
            {
                timer.arm(clock.now() + INTERVAL);
            }
        });
        slot.get_or_init(|| timer).arm(clock.now() + INTERVAL);
        Self { _timer: slot }
    }
}
