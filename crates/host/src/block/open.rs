//! Opens an image or a block device and finds out what it can do.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FallocateFlags, FlockOperation, OFlags, StatxFlags};
use rustix::io::Errno;

use super::options::{BlockOptions, SectorSize};

/// Why a disk can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The host can't open it.
    #[error("cannot open {path}: {}", describe(.source))]
    Open {
        /// The disk.
        path: String,
        /// The host's answer.
        source: io::Error,
    },
    /// Neither a regular file nor a block device.
    #[error("cannot open {path}: {what}; a disk must be a regular file or a block device")]
    Kind {
        /// The disk.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// Another program uses it.
    #[error("cannot open {path}: it is in use by another virtual machine or program")]
    Busy {
        /// The disk.
        path: String,
    },
    /// The file system has no `O_DIRECT`.
    #[error("cannot open {path} with nocache: its file system does not support direct I/O")]
    NoDirect {
        /// The disk.
        path: String,
    },
    /// Not powers of two in order.
    #[error("cannot open {path}: sector sizes must be powers of two from 512 on, logical not above physical")]
    SectorSize {
        /// The disk.
        path: String,
    },
    /// The asked for sector size does not go with direct I/O.
    #[error("cannot open {path}: sectorsize={asked} is less than the {least} bytes that nocache needs there")]
    SectorTooSmall {
        /// The disk.
        path: String,
        /// What the option says.
        asked: u32,
        /// The host's unit.
        least: u32,
    },
}

/// An error without Rust's "(os error n)".
fn describe(e: &io::Error) -> String {
    let text = e.to_string();
    text.find(" (os error").and_then(|at| text.get(..at)).map_or(text.clone(), str::to_string)
}

/// What direct I/O asks of buffers and offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DirectAlign {
    /// Buffer addresses, in bytes.
    pub memory: u32,
    /// Offsets and lengths, in bytes.
    pub offset: u32,
}

/// An open disk and its properties.
pub(super) struct Opened {
    pub file: File,
    pub is_device: bool,
    pub read_only: bool,
    pub sector: SectorSize,
    /// `None` without `nocache`.
    pub direct: Option<DirectAlign>,
    pub can_discard: bool,
    pub discard_granularity: u32,
}

/// Size of a file or block device in bytes.
pub(super) fn size_of(file: &File, is_device: bool) -> io::Result<u64> {
    if is_device {
        // The position is used by nobody: all I/O names its offset.
        return Ok(rustix::fs::seek(file, rustix::fs::SeekFrom::End(0))?);
    }
    Ok(file.metadata()?.len())
}

fn try_open(options: &BlockOptions, write: bool) -> io::Result<File> {
    let mut flags = OFlags::empty();
    flags.set(OFlags::DIRECT, options.nocache);
    flags.set(OFlags::SYNC, options.sync);
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(flags.bits() as i32)
        .open(Path::new(&options.path))
}

/// Refuses what is not a disk before opening it: a FIFO would block, a tape would rewind.
fn check_kind(path: &str, kind: std::fs::FileType) -> Result<(), OpenError> {
    let what = match kind {
        k if k.is_file() || k.is_block_device() => return Ok(()),
        k if k.is_dir() => "it is a directory",
        k if k.is_char_device() => "it is a character device",
        k if k.is_fifo() => "it is a pipe",
        k if k.is_socket() => "it is a socket",
        _ => "it is of an unknown kind",
    };
    Err(OpenError::Kind { path: path.to_string(), what })
}

pub(super) fn open(options: &BlockOptions) -> Result<Opened, OpenError> {
    let path = options.path.clone();
    let failed = |source: io::Error| OpenError::Open { path: path.clone(), source };
    check_kind(&path, std::fs::metadata(&path).map_err(failed)?.file_type())?;

    // As bhyve: a disk that may not be written is silently read-only.
    let mut read_only = options.read_only;
    let mut opened = try_open(options, !read_only);
    if !read_only
        && let Err(e) = &opened
        && matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
    {
        read_only = true;
        opened = try_open(options, false);
    }
    let file = match opened {
        Err(e) if options.nocache && e.kind() == io::ErrorKind::InvalidInput => {
            return Err(OpenError::NoDirect { path });
        }
        other => other.map_err(failed)?,
    };
    let meta = file.metadata().map_err(failed)?;
    check_kind(&path, meta.file_type())?;
    lock(&file, read_only, &path)?;

    let is_device = meta.file_type().is_block_device();
    let direct = options.nocache.then(|| direct_align(&file, is_device));
    let sector = sector_size(options, &file, &meta, direct, is_device)?;
    let (can_discard, discard_granularity) = match () {
        () if read_only || options.no_delete => (false, sector.physical),
        () if is_device => device_discard(meta.rdev()),
        () => (can_punch(&file, &meta), meta.blksize() as u32),
    };
    let discard_granularity = discard_granularity.max(sector.logical);
    Ok(Opened { file, is_device, read_only, sector, direct, can_discard, discard_granularity })
}

/// A process that was killed, or udev looking at a device, holds its lock for a moment.
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(30);

/// Two writers, or a writer and a reader, on one image destroy it; readers may share it.
fn lock(file: &File, read_only: bool, path: &str) -> Result<(), OpenError> {
    let how = if read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    for _ in 0..LOCK_TRIES {
        // A file system without locks is no reason not to run.
        if rustix::fs::flock(file, how) != Err(Errno::WOULDBLOCK) {
            return Ok(());
        }
        std::thread::sleep(LOCK_PAUSE);
    }
    Err(OpenError::Busy { path: path.to_string() })
}

/// The kernel says what direct I/O needs since 6.1; before, the logical sector is always enough
/// for a device, and a page for a file.
fn direct_align(file: &File, is_device: bool) -> DirectAlign {
    let empty = c"";
    let stat = rustix::fs::statx(file, empty, rustix::fs::AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    if let Ok(stat) = stat
        && stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0
        && stat.stx_dio_mem_align.is_power_of_two()
        && stat.stx_dio_offset_align.is_power_of_two()
    {
        return DirectAlign { memory: stat.stx_dio_mem_align, offset: stat.stx_dio_offset_align };
    }
    let unit = if is_device { rustix::fs::ioctl_blksszget(file).unwrap_or(512) } else { 4096 };
    DirectAlign { memory: unit, offset: unit }
}

fn sector_size(
    options: &BlockOptions,
    file: &File,
    meta: &std::fs::Metadata,
    direct: Option<DirectAlign>,
    is_device: bool,
) -> Result<SectorSize, OpenError> {
    let least = direct.map_or(512, |d| d.offset.max(512));
    if let Some(asked) = options.sector_size {
        if !asked.is_valid() {
            return Err(OpenError::SectorSize { path: options.path.clone() });
        }
        if asked.logical < least {
            let path = options.path.clone();
            return Err(OpenError::SectorTooSmall { path, asked: asked.logical, least });
        }
        return Ok(asked);
    }
    let valid = |n: u32| Some(n).filter(|n| *n >= 512 && n.is_power_of_two());
    let (logical, physical) = if is_device {
        let logical = rustix::fs::ioctl_blksszget(file).ok().and_then(valid).unwrap_or(512);
        (logical, rustix::fs::ioctl_blkpbszget(file).ok().and_then(valid).unwrap_or(logical))
    } else {
        // Nobody would boot an image made with 512-byte sectors if the host's file system
        // decided this; its block size is only the hint for the guest's alignment.
        (512, u32::try_from(meta.blksize()).ok().and_then(valid).unwrap_or(4096).min(4096))
    };
    let logical = logical.max(least);
    Ok(SectorSize { logical, physical: physical.max(logical) })
}

/// Whether a file's blocks can be given back. Punching past the end changes nothing.
fn can_punch(file: &File, meta: &std::fs::Metadata) -> bool {
    let unit = meta.blksize().max(4096);
    let Some(past) = meta.len().checked_next_multiple_of(unit).and_then(|p| p.checked_add(unit)) else {
        return false;
    };
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, flags, past, unit).is_ok()
}

/// Whether a block device takes discards, and its granularity, from sysfs.
fn device_discard(rdev: u64) -> (bool, u32) {
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    // A partition has its queue in the parent.
    let number = |name: &str| {
        ["queue", "../queue"].iter().find_map(|queue| {
            let file = format!("/sys/dev/block/{major}:{minor}/{queue}/{name}");
            std::fs::read_to_string(file).ok()?.trim().parse::<u64>().ok()
        })
    };
    let granularity = number("discard_granularity").and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    (number("discard_max_bytes").is_some_and(|n| n > 0), granularity)
}
