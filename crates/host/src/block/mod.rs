//! Disks backed by raw files and block devices.
//!
//! A device model opens a [`FileDisk`] and submits [`Op`]s on slices of guest memory. All of them
//! are asynchronous: the result comes by callback, as a rule on a thread of the disk's own. Data
//! goes straight between the file and guest memory, by `io_uring` or, where the host refuses that
//! or would use a thread itself, by a small pool of threads.

use std::io;

use memory::GuestSlice;

mod disk;
mod identity;
mod open;
mod options;
mod parts;
mod pool;
mod request;
mod resize;
mod sys;
mod uring;

#[cfg(test)]
mod tests;

pub use disk::{FileDisk, IoEngine};
pub use identity::{Geometry, default_serial};
pub use open::OpenError;
pub use options::{BlockOptions, SectorSize};
pub use parts::submit_all;
pub use resize::ResizeWatch;

/// What a device model must know of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    /// Size in bytes, rounded down to whole logical sectors.
    pub size: u64,
    /// Logical sector size in bytes: the smallest unit of a request.
    pub logical_sector: u32,
    /// Physical sector size in bytes: the unit the host writes without a read first.
    pub physical_sector: u32,
    /// Writes, discards and zeroing are refused.
    pub read_only: bool,
    /// [`Op::Discard`] gives space back to the host.
    pub can_discard: bool,
    /// Unit of useful discards in bytes.
    pub discard_granularity: u32,
    /// Serial number, at most 20 ASCII characters.
    pub serial: String,
}

impl DiskInfo {
    /// A geometry for firmware and drivers that still want one.
    pub fn geometry(&self) -> Geometry {
        Geometry::of(self.size)
    }
}

/// One request. Offsets and lengths are in bytes.
pub enum Op {
    /// Fills the buffers from `offset` on.
    Read {
        /// First byte on the disk.
        offset: u64,
        /// Where to, in order.
        bufs: Vec<GuestSlice>,
    },
    /// Writes the buffers to `offset`.
    Write {
        /// First byte on the disk.
        offset: u64,
        /// Where from, in order.
        bufs: Vec<GuestSlice>,
        /// Complete only when the data is on stable storage (a write-through cache).
        durable: bool,
    },
    /// Puts all writes that completed before on stable storage.
    Flush,
    /// Gives the range back to the host; it reads as anything afterwards.
    Discard {
        /// First byte on the disk.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Makes the range read as zeros.
    WriteZeroes {
        /// First byte on the disk.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// The host may give the space back.
        unmap: bool,
    },
}

/// Takes the result of an [`Op`]. May run on the submitting thread, before `submit` returns, when
/// the request is refused or quickly done; so the caller must not hold a lock that it takes.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// A disk. Requests run in any order and at the same time.
pub trait Disk: Send + Sync {
    /// The disk's properties now; the size may change while it runs.
    fn info(&self) -> DiskInfo;

    /// Starts `op`; `done` is called exactly once. Errors have the host's `errno` where there is
    /// one; [`io::ErrorKind::InvalidInput`] means that the range or alignment was refused, and
    /// [`io::ErrorKind::Unsupported`] that this disk can't do it.
    fn submit(&self, op: Op, done: Done);

    /// Waits until nothing is in flight. Must not be called from a [`Done`].
    fn drain(&self);

    /// Asks the host for the size now and, if it has changed, tells the listeners.
    fn check_size(&self) -> u64;

    /// Adds a listener that is told of each new size.
    fn on_resize(&self, listener: Box<dyn Fn(u64) + Send + Sync>);
}
