//! System calls of the network back ends that no safe crate has.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use memory::GuestSlice;

/// Pieces of a frame without an allocation; a driver rarely uses more than 20.
const FEW: usize = 64;
/// Most pieces in one call (Linux `UIO_MAXIOV`).
const IOV_MAX: usize = 1024;

/// Calls with the iovecs of `bufs` and of `more`.
fn with_iovecs<R>(
    bufs: &[GuestSlice],
    more: &mut [u8],
    call: impl FnOnce(&[libc::iovec]) -> io::Result<R>,
) -> io::Result<R> {
    let more = libc::iovec { iov_base: more.as_mut_ptr().cast(), iov_len: more.len() };
    let count = bufs.len() + 1;
    if count > IOV_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let all = bufs
        .iter()
        .map(|s| libc::iovec { iov_base: s.as_ptr().cast(), iov_len: s.len() })
        .chain(std::iter::once(more));
    let mut few = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; FEW];
    match few.get_mut(..count) {
        Some(few) => {
            few.iter_mut().zip(all).for_each(|(to, from)| *to = from);
            call(few)
        }
        None => call(&all.collect::<Vec<_>>()),
    }
}

fn length(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// One frame out of guest memory.
pub(super) fn write_guest(fd: BorrowedFd<'_>, bufs: &[GuestSlice]) -> io::Result<usize> {
    with_iovecs(bufs, &mut [], |iov| {
        // SAFETY: the iovecs are guest memory that `bufs` keeps mapped during the call.
        length(unsafe { libc::writev(fd.as_raw_fd(), iov.as_ptr(), iov.len() as libc::c_int) })
    })
}

/// One frame into guest memory.
pub(super) fn read_guest(fd: BorrowedFd<'_>, bufs: &[GuestSlice]) -> io::Result<usize> {
    // Neither a tap nor a socket tells that a frame was cut off; a byte too much does.
    let mut excess = [0];
    let len = with_iovecs(bufs, &mut excess, |iov| {
        // SAFETY: the iovecs are `excess` and guest memory that `bufs` keeps mapped during the
        // call; it is only ever accessed as shared memory.
        length(unsafe { libc::readv(fd.as_raw_fd(), iov.as_ptr(), iov.len() as libc::c_int) })
    })?;
    let mut left = len;
    for buf in bufs {
        buf.written(left);
        left = left.saturating_sub(buf.len());
    }
    let room: usize = bufs.iter().map(GuestSlice::len).sum();
    if len > room { Err(io::ErrorKind::InvalidData.into()) } else { Ok(len) }
}

/// An `ifreq` for the interface `name`, which is short enough for it.
fn request(name: &str) -> libc::ifreq {
    // SAFETY: all bytes zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(room)) {
        *to = from as libc::c_char;
    }
    request
}

fn ioctl_request(fd: BorrowedFd<'_>, number: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the ioctls used here read and write one ifreq.
    length(unsafe { libc::ioctl(fd.as_raw_fd(), number, std::ptr::from_mut(request)) } as isize).map(drop)
}

/// Attaches `/dev/net/tun` to the tap interface `name`, with virtio-net headers.
pub(super) fn attach(fd: BorrowedFd<'_>, name: &str, multi_queue: bool) -> io::Result<()> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    ioctl_request(fd, libc::TUNSETIFF, &mut request)
}

fn ioctl_int(fd: BorrowedFd<'_>, number: libc::Ioctl, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the ioctls used here read one int.
    length(unsafe { libc::ioctl(fd.as_raw_fd(), number, std::ptr::from_ref(&value)) } as isize).map(drop)
}

/// Sets the length of the virtio-net header.
pub(super) fn set_header_len(fd: BorrowedFd<'_>, len: usize) -> io::Result<()> {
    ioctl_int(fd, libc::TUNSETVNETHDRSZ, len as libc::c_int)
}

/// The header is little-endian.
pub(super) fn set_little_endian(fd: BorrowedFd<'_>) -> io::Result<()> {
    ioctl_int(fd, libc::TUNSETVNETLE, 1)
}

/// Sets what the reader of the tap finishes itself (`TUN_F_*`).
pub(super) fn set_offload(fd: BorrowedFd<'_>, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: the argument is a plain number.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) };
    length(result as isize).map(drop)
}

/// Brings `name` up unless it is. `socket` is any socket of its namespace.
pub(super) fn bring_up(socket: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut request = request(name);
    ioctl_request(socket, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS has set this member.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let up = libc::IFF_UP as libc::c_short;
    if flags & up != 0 {
        return Ok(());
    }
    request.ifr_ifru.ifru_flags = flags | up;
    ioctl_request(socket, libc::SIOCSIFFLAGS, &mut request)
}

/// The MTU of `name`.
pub(super) fn mtu(socket: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    let mut request = request(name);
    ioctl_request(socket, libc::SIOCGIFMTU, &mut request)?;
    // SAFETY: SIOCGIFMTU has set this member.
    Ok(unsafe { request.ifr_ifru.ifru_mtu } as u32)
}

/// Sets the MTU of `name`.
pub(super) fn set_mtu(socket: BorrowedFd<'_>, name: &str, mtu: u16) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_mtu = libc::c_int::from(mtu);
    ioctl_request(socket, libc::SIOCSIFMTU, &mut request)
}

/// Whether there is an interface `name`.
pub(super) fn exists(socket: BorrowedFd<'_>, name: &str) -> bool {
    ioctl_request(socket, libc::SIOCGIFFLAGS, &mut request(name)).is_ok()
}
