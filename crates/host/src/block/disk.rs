//! A disk on a file or block device.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use memory::GuestSlice;
use rustix::io::Errno;

use super::open::{DirectAlign, OpenError, Opened, open, size_of};
use super::options::BlockOptions;
use super::pool::Pool;
use super::request::{InFlight, Kind, Request, Zeroing};
use super::sys;
use super::uring::Uring;
use super::{Disk, DiskInfo, Done, Op, default_serial};

/// Which engine moves the data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoEngine {
    /// `io_uring` where the host has it, else threads.
    #[default]
    Auto,
    /// Blocking calls on a pool of threads.
    Threads,
}

enum Engine {
    Uring(Uring),
    Threads,
}

type Listener = Box<dyn Fn(u64) + Send + Sync>;

/// A raw image or block device.
pub struct FileDisk {
    file: Arc<File>,
    is_device: bool,
    direct: Option<DirectAlign>,
    /// The file system has reads that don't block.
    nowait: AtomicBool,
    info: DiskInfo,
    size: AtomicU64,
    engine: Engine,
    /// For what the ring can't do, or for everything.
    pool: OnceLock<Pool>,
    in_flight: Arc<InFlight>,
    listeners: Mutex<Vec<Listener>>,
}

impl FileDisk {
    /// Opens a disk, locks it against other writers, and starts its engine.
    pub fn open(options: &BlockOptions) -> Result<Self, OpenError> {
        Self::open_with(options, IoEngine::Auto)
    }

    /// As [`FileDisk::open`], with a choice of the engine.
    pub fn open_with(options: &BlockOptions, engine: IoEngine) -> Result<Self, OpenError> {
        let opened = open(options)?;
        let serial = options.serial.clone().unwrap_or_else(|| default_serial(&options.path));
        Self::new(opened, serial, engine)
            .map_err(|source| OpenError::Open { path: options.path.clone(), source })
    }

    pub(super) fn new(opened: Opened, serial: String, engine: IoEngine) -> io::Result<Self> {
        let file = Arc::new(opened.file);
        let size = size_of(&file, opened.is_device)?;
        let engine = match engine {
            IoEngine::Threads => Engine::Threads,
            IoEngine::Auto => Uring::start(file.clone()).map_or(Engine::Threads, Engine::Uring),
        };
        let disk = Self {
            info: DiskInfo {
                size: 0,
                logical_sector: opened.sector.logical,
                physical_sector: opened.sector.physical,
                read_only: opened.read_only,
                can_discard: opened.can_discard,
                discard_granularity: opened.discard_granularity,
                serial,
            },
            file,
            is_device: opened.is_device,
            direct: opened.direct,
            nowait: AtomicBool::new(true),
            size: AtomicU64::new(0),
            engine,
            pool: OnceLock::new(),
            in_flight: Arc::default(),
            listeners: Mutex::default(),
        };
        disk.size.store(disk.whole_sectors(size), Ordering::Release);
        Ok(disk)
    }

    /// Name of the engine in use, for logs: `io_uring` or `threads`.
    pub fn engine(&self) -> &'static str {
        match self.engine {
            Engine::Uring(_) => "io_uring",
            Engine::Threads => "threads",
        }
    }

    fn whole_sectors(&self, size: u64) -> u64 {
        size - size % u64::from(self.info.logical_sector)
    }

    pub(super) fn set_size(&self, size: u64) {
        let size = self.whole_sectors(size);
        if self.size.swap(size, Ordering::AcqRel) != size {
            for listener in self.listeners.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                listener(size);
            }
        }
    }

    /// Refuses what lies past the end of the disk.
    fn check_range(&self, offset: u64, len: u64) -> io::Result<()> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.size.load(Ordering::Acquire));
        if inside { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    /// Also refuses what lies past the end of a file that was cut off just now: a write there
    /// would bring the cut off part back as zeros.
    fn check_change(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.info.read_only {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.check_range(offset, len)?;
        if self.is_device {
            return Ok(());
        }
        let size = size_of(&self.file, false)?;
        if size < offset.saturating_add(len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// Checks `op`: its kind, offset, length and buffers.
    fn check(&self, op: Op) -> io::Result<(Kind, u64, u64, Option<Vec<GuestSlice>>)> {
        let total = |bufs: &[GuestSlice]| bufs.iter().map(|b| b.len() as u64).sum::<u64>();
        Ok(match op {
            Op::Read { offset, bufs } => {
                let len = total(&bufs);
                self.check_range(offset, len)?;
                (Kind::Read, offset, len, Some(bufs))
            }
            Op::Write { offset, bufs, durable } => {
                let len = total(&bufs);
                self.check_change(offset, len)?;
                (Kind::Write { durable }, offset, len, Some(bufs))
            }
            Op::Flush => (Kind::Flush, 0, 0, None),
            Op::Discard { offset, len } => {
                if !self.info.can_discard {
                    return Err(io::ErrorKind::Unsupported.into());
                }
                self.check_change(offset, len)?;
                (Kind::Discard { device: self.is_device }, offset, len, None)
            }
            Op::WriteZeroes { offset, len, unmap } => {
                self.check_change(offset, len)?;
                let how = if unmap && self.info.can_discard { Zeroing::Punch } else { Zeroing::Range };
                (Kind::Zero(how), offset, len, None)
            }
        })
    }

    /// Runs a short read at once if all of it is in the page cache; else gives it back.
    fn try_inline(&self, mut request: Request) -> Option<Request> {
        if !request.may_run_inline() || !self.nowait.load(Ordering::Relaxed) {
            return Some(request);
        }
        let result = sys::perform(&self.file, &mut request, &mut Vec::new(), true);
        match result.as_ref().err().and_then(Errno::from_io_error) {
            Some(Errno::AGAIN) => return Some(request),
            Some(Errno::OPNOTSUPP | Errno::INVAL) => {
                self.nowait.store(false, Ordering::Relaxed);
                return Some(request);
            }
            _ => {}
        }
        match request.complete(result) {
            Some(result) => {
                request.finish(result);
                None
            }
            None => Some(request),
        }
    }

    fn start(&self, request: Request) {
        let Some(request) = self.try_inline(request) else { return };
        match &self.engine {
            Engine::Uring(ring) if !request.needs_thread(self.is_device) => ring.submit(request),
            _ => self.pool.get_or_init(|| Pool::new(self.file.clone())).submit(request),
        }
    }
}

impl Disk for FileDisk {
    fn info(&self) -> DiskInfo {
        DiskInfo { size: self.size.load(Ordering::Acquire), ..self.info.clone() }
    }

    fn submit(&self, op: Op, done: Done) {
        let (kind, offset, len, bufs) = match self.check(op) {
            Ok(checked) => checked,
            Err(e) => return done(Err(e)),
        };
        if (len == 0 && kind != Kind::Flush) || (kind == Kind::Flush && self.info.read_only) {
            return done(Ok(()));
        }
        let request = Request::new(kind, offset, len, done, self.in_flight.enter());
        self.start(match bufs {
            Some(bufs) => request.with_buffers(bufs, self.direct),
            None => request.with_direct(self.direct),
        });
    }

    fn drain(&self) {
        self.in_flight.wait_idle();
    }

    fn check_size(&self) -> u64 {
        if let Ok(size) = size_of(&self.file, self.is_device) {
            self.set_size(size);
        }
        self.size.load(Ordering::Acquire)
    }

    fn on_resize(&self, listener: Listener) {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
    }
}
