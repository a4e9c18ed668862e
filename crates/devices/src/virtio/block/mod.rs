//! virtio-blk (VIRTIO 1.2, 5.2) on a disk of the host.
//!
//! All requests are asynchronous: a notification takes the chains and submits them, and each
//! completion gives its chain back, in any order.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bus::{SavedState, StateError, Timers};
use config::{Key, Kind as Value, Node};
use host::block::{BlockOptions, Disk, DiskInfo, FileDisk, Op, ResizeWatch, SectorSize, submit_all};
use memory::GuestSlice;
use serde::{Deserialize, Serialize};

use super::{Chain, Kind, QueueError, Queues, Transport, VirtQueue, VirtioDevice, pci};
use crate::pci::PciFunction;
use crate::registry::{BuildContext, BuildError, DeviceEntry};

mod request;

#[cfg(test)]
mod tests;

use request::{MAX_RANGE_SECTORS, MAX_RANGES, Request, SECTOR, Status, Terms, Work};

/// The block device.
pub const DEVICE: DeviceEntry =
    DeviceEntry { name: "virtio-blk", aliases: &[], help: "virtio block device", keys: KEYS, build };

fn build(context: &BuildContext, node: &Node<'_>) -> Result<Arc<dyn PciFunction>, BuildError> {
    let device = VirtioBlock::open(node, Some(&context.timers))?;
    pci::function(context, Arc::new(device))
}

/// What the user can set; also for the other disk controllers.
pub const KEYS: &[Key] = &[
    Key::new("path", Value::Path, "image file or block device"),
    Key::new("nocache", Value::Bool, "bypass the host's page cache (O_DIRECT)").default("false"),
    Key::new("sync", Value::Bool, "write through to stable storage (O_SYNC)").default("false"),
    Key::new("direct", Value::Bool, "the same as sync").default("false"),
    Key::new("ro", Value::Bool, "refuse writes").default("false"),
    Key::new("sectorsize", Value::SectorSize, "sector sizes that the guest sees"),
    Key::new("nodelete", Value::Bool, "offer no discard").default("false"),
    Key::new("bootindex", Value::Integer { min: 0, max: 255 }, "place in the firmware's boot order")
        .unsupported(),
    Key::new("ser", Value::Text(20), "serial number; made from the path by default"),
];

/// Feature bits (5.2.3).
mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Entries of the queue: twice bhyve's, and the most that SeaBIOS takes.
const QUEUE_SIZE: u16 = 256;
/// Data buffers in a request: header and status need two descriptors more.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Length of the configuration space up to `write_zeroes_may_unmap` and its padding (5.2.4).
const CONFIG_LEN: usize = 60;
/// Offset of `writeback` in it.
const WRITEBACK: usize = 32;
/// Chains that one notification may start before a thread of its own goes on: a guest that adds
/// chains as fast as they are done must not keep a vCPU's thread for ever.
const BUDGET: u32 = 4 * QUEUE_SIZE as u32;

/// Takes the options of a disk from its node.
pub fn block_options(node: &Node<'_>) -> Result<BlockOptions, config::Error> {
    let sector_size = node
        .read("sectorsize", "expected logical[/physical]", config::value::parse_sector_size)?
        .map(|(logical, physical)| SectorSize { logical, physical });
    let serial = node.read("ser", "expected at most 20 printable ASCII characters", |text| {
        let good = text.len() <= 20 && text.bytes().all(|b| (0x20..0x7f).contains(&b));
        good.then(|| text.to_string())
    })?;
    Ok(BlockOptions {
        path: node.require("path")?,
        nocache: node.flag("nocache")?,
        sync: node.flag("sync")? | node.flag("direct")?,
        read_only: node.flag("ro")?,
        sector_size,
        no_delete: node.flag("nodelete")?,
        serial,
        boot_index: node.integer("bootindex")?.and_then(|n| u32::try_from(n).ok()),
    })
}

/// The queue in use and what was negotiated.
struct Active {
    queue: Arc<VirtQueue>,
    features: u64,
}

struct Core {
    disk: Arc<dyn Disk>,
    serial: String,
    read_only: bool,
    /// Held for reading while chains are taken and submitted, so that a writer knows that what
    /// was taken is with the disk.
    active: RwLock<Option<Arc<Active>>>,
    /// The driver has chosen a volatile cache (5.2.4, `writeback`).
    writeback: AtomicBool,
    /// A thread goes on with the queue for a notification that has used up its budget.
    handed_over: AtomicBool,
}

/// The virtio-blk device.
pub struct VirtioBlock {
    core: Arc<Core>,
    transport: Arc<OnceLock<Arc<dyn Transport>>>,
    _watch: Option<ResizeWatch>,
}

#[derive(Serialize, Deserialize)]
struct State {
    writeback: bool,
}

const STATE_VERSION: u32 = 1;

impl VirtioBlock {
    /// A device on `disk`; with `timers`, changes of its size are noticed.
    pub fn new(disk: Arc<dyn Disk>, timers: Option<&Timers>) -> Self {
        let transport: Arc<OnceLock<Arc<dyn Transport>>> = Arc::default();
        let tell = Arc::downgrade(&transport);
        disk.on_resize(Box::new(move |_| {
            if let Some(transport) = tell.upgrade().as_ref().and_then(|t| t.get()) {
                transport.config_changed();
            }
        }));
        let info = disk.info();
        let watch = timers.map(|timers| ResizeWatch::start(timers, &disk));
        let core = Arc::new(Core {
            disk,
            serial: info.serial,
            read_only: info.read_only,
            active: RwLock::default(),
            writeback: AtomicBool::new(true),
            handed_over: AtomicBool::new(false),
        });
        Self { core, transport, _watch: watch }
    }

    /// A device as its node says.
    pub fn open(node: &Node<'_>, timers: Option<&Timers>) -> Result<Self, config::Error> {
        let node = node.clone().declared(KEYS);
        let disk = FileDisk::open(&block_options(&node)?).map_err(|e| node.error("path", e.to_string()))?;
        Ok(Self::new(Arc::new(disk), timers))
    }

    fn config(&self) -> [u8; CONFIG_LEN] {
        config_space(&self.core.disk.info(), self.core.writeback.load(Ordering::Relaxed))
    }
}

/// The configuration space (5.2.4).
fn config_space(info: &DiskInfo, writeback: bool) -> [u8; CONFIG_LEN] {
    let logical = info.logical_sector.max(1);
    let per_physical = (info.physical_sector / logical).max(1);
    let mut config = [0; CONFIG_LEN];
    let mut put = |at: usize, bytes: &[u8]| {
        config.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    };
    put(0, &(info.size / SECTOR).to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &info.logical_sector.to_le_bytes());
    // Topology: exponent of logical blocks in a physical one; the smallest good request.
    put(24, &[per_physical.ilog2() as u8, 0]);
    put(26, &u16::try_from(per_physical).unwrap_or(1).to_le_bytes());
    put(WRITEBACK, &[u8::from(writeback)]);
    put(34, &1u16.to_le_bytes());
    if info.can_discard {
        put(36, &MAX_RANGE_SECTORS.to_le_bytes());
        put(40, &MAX_RANGES.to_le_bytes());
        put(44, &(u64::from(info.discard_granularity) / SECTOR).to_le_bytes()[..4]);
    }
    if !info.read_only {
        put(48, &MAX_RANGE_SECTORS.to_le_bytes());
        put(52, &MAX_RANGES.to_le_bytes());
        put(56, &[u8::from(info.can_discard)]);
    }
    config
}

impl Core {
    fn lock_shared(&self) -> RwLockReadGuard<'_, Option<Arc<Active>>> {
        self.active.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> RwLockWriteGuard<'_, Option<Arc<Active>>> {
        self.active.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the chains that are there.
    fn process(self: &Arc<Self>) {
        let guard = self.lock_shared();
        let Some(active) = guard.as_ref() else { return };
        // An error has been told to the driver, and the queue is dead.
        if self.take(active) != Ok(true) || self.handed_over.swap(true, Ordering::AcqRel) {
            return;
        }
        let core = self.clone();
        let thread = std::thread::Builder::new().name("virtio-blk".into()).spawn(move || {
            core.handed_over.store(false, Ordering::Release);
            core.process();
        });
        if thread.is_err() {
            self.handed_over.store(false, Ordering::Release);
            active.queue.fault("more requests than the host has threads for");
        }
    }

    /// Returns whether the budget was used up before the chains.
    fn take(self: &Arc<Self>, active: &Arc<Active>) -> Result<bool, ()> {
        let told = |_: QueueError| ();
        let mut left = BUDGET;
        loop {
            active.queue.disable_notifications().map_err(told)?;
            while let Some(chain) = active.queue.pop().map_err(told)? {
                self.start(active, &chain)?;
                left -= 1;
                if left == 0 {
                    return Ok(true);
                }
            }
            if !active.queue.enable_notifications().map_err(told)? {
                return Ok(false);
            }
        }
    }

    fn start(&self, active: &Arc<Active>, chain: &Chain) -> Result<(), ()> {
        let has = |bit: u64| active.features & bit != 0;
        // 5.2.5.2: without FLUSH the driver can only mean a write-through cache.
        let write_back = if has(feature::CONFIG_WCE) {
            self.writeback.load(Ordering::Relaxed)
        } else {
            has(feature::FLUSH)
        };
        let terms = Terms {
            read_only: self.read_only,
            discard: has(feature::DISCARD),
            write_zeroes: has(feature::WRITE_ZEROES),
            write_through: !write_back,
            serial: &self.serial,
        };
        let Some(request) = Request::parse(&chain.readable, &chain.writable, &terms) else {
            active.queue.fault("a block request without a header or room for a status");
            return Err(());
        };
        let finish = Finish {
            queue: active.queue.clone(),
            head: chain.head,
            status: request.status,
            data: request.data,
        };
        match request.work {
            Work::Now(status) => finish.run(status),
            Work::Disk(ops) => submit_all(&*self.disk, ops, move |result| {
                finish.run(match result {
                    Ok(()) => Status::Ok,
                    Err(ErrorKind::Unsupported) => Status::Unsupported,
                    Err(_) => Status::IoError,
                });
            }),
        }
        Ok(())
    }

    /// Waits until nothing is with the disk. Chains can't be taken meanwhile.
    fn settle(&self) {
        drop(self.lock());
        self.disk.drain();
    }
}

/// How a request ends.
struct Finish {
    queue: Arc<VirtQueue>,
    head: u16,
    status: GuestSlice,
    data: u32,
}

impl Finish {
    fn run(&self, status: Status) {
        self.status.write(&[status as u8]);
        let data = if status == Status::Ok { self.data } else { 0 };
        // An error has been told to the driver.
        let _ = self.queue.complete(self.head, data.saturating_add(1));
    }
}

impl VirtioDevice for VirtioBlock {
    fn kind(&self) -> Kind {
        Kind::BLOCK
    }

    fn features(&self) -> u64 {
        use feature::*;
        let info = self.core.disk.info();
        let mut features = SEG_MAX | BLK_SIZE | FLUSH | TOPOLOGY | CONFIG_WCE;
        features |= if info.read_only { RO } else { WRITE_ZEROES };
        if info.can_discard {
            features |= DISCARD;
        }
        features
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config_len(&self) -> usize {
        CONFIG_LEN
    }

    fn config_read(&self, offset: usize, data: &mut [u8]) {
        let config = self.config();
        let bytes = config.iter().skip(offset).copied().chain(std::iter::repeat(0));
        data.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    }

    fn config_write(&self, offset: usize, data: &[u8], features: u64) {
        if features & feature::CONFIG_WCE == 0 {
            return;
        }
        let Some(value) = WRITEBACK.checked_sub(offset).and_then(|at| data.get(at)) else { return };
        let writeback = *value & 1 != 0;
        if self.core.writeback.swap(writeback, Ordering::Relaxed) && !writeback {
            // What the cache holds now goes through as well.
            self.core.disk.submit(Op::Flush, Box::new(|_| {}));
        }
    }

    fn attach(&self, transport: Arc<dyn Transport>) {
        let _ = self.transport.set(transport);
    }

    fn activate(&self, features: u64, queues: Queues) {
        let queue = queues.into_iter().next().flatten();
        *self.core.lock() = queue.map(|queue| Arc::new(Active { queue, features }));
    }

    fn notify(&self, index: u16) {
        if index == 0 {
            self.core.process();
        }
    }

    fn reset(&self) {
        *self.core.lock() = None;
        self.core.disk.drain();
        self.core.writeback.store(true, Ordering::Relaxed);
    }

    fn drain(&self) {
        self.core.settle();
    }

    fn save(&self) -> Result<SavedState, StateError> {
        let writeback = self.core.writeback.load(Ordering::Relaxed);
        SavedState::encode(STATE_VERSION, &State { writeback })
    }

    fn restore(&self, state: &SavedState) -> Result<(), StateError> {
        let state: State = state.decode(STATE_VERSION)?;
        self.core.writeback.store(state.writeback, Ordering::Relaxed);
        Ok(())
    }
}
