//! The blocking system calls on guest memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::request::{Request, Step};

/// `_IO(0x12, 119)`: discard a range of a block device (linux/fs.h).
const BLKDISCARD: libc::Ioctl = 0x1277;

/// Makes the next call of `request` and returns its result for [`Request::complete`]. Reads with
/// `nowait` fail with `EAGAIN` instead of waiting for the disk.
pub(super) fn perform(
    file: &File,
    request: &mut Request,
    iovecs: &mut Vec<libc::iovec>,
    nowait: bool,
) -> io::Result<usize> {
    let fd = file.as_raw_fd();
    let step = request.next(iovecs)?;
    let (iov, count) = (iovecs.as_ptr(), iovecs.len() as libc::c_int);
    let result = match step {
        Step::Read { offset } => {
            let flags = if nowait { libc::RWF_NOWAIT } else { 0 };
            // SAFETY: `next` made the iovecs from memory that `request` owns or keeps mapped, and
            // `request` is borrowed until the call returns. Racing guest stores are the guest's.
            unsafe { libc::preadv2(fd, iov, count, offset as libc::off_t, flags) }
        }
        Step::Write { offset, durable } => {
            let flags = if durable { libc::RWF_DSYNC } else { 0 };
            // SAFETY: as for the read.
            unsafe { libc::pwritev2(fd, iov, count, offset as libc::off_t, flags) }
        }
        Step::Sync => {
            // SAFETY: takes no memory.
            (unsafe { libc::fdatasync(fd) }) as isize
        }
        Step::Allocate { mode, offset, len } => {
            // SAFETY: takes no memory.
            (unsafe { libc::fallocate(fd, mode, offset as libc::off_t, len as libc::off_t) }) as isize
        }
        Step::DeviceDiscard { offset, len } => {
            let range = [offset, len];
            // SAFETY: the ioctl reads two u64 behind the pointer.
            (unsafe { libc::ioctl(fd, BLKDISCARD, range.as_ptr()) }) as isize
        }
    };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
