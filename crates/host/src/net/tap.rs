//! Linux tap interfaces.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use memory::GuestSlice;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{NetBackend, Offloads, sys};

/// Longest interface name (`IFNAMSIZ` - 1).
const NAME_MAX: usize = 15;

/// Why a tap interface can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// Not a name that an interface can have.
    #[error("{0:?} is not an interface name")]
    Name(String),
    /// No tap driver.
    #[error("cannot open {name}: this host has no /dev/net/tun; load the driver: modprobe tun")]
    NoDriver {
        /// The interface.
        name: String,
    },
    /// The driver's file can't be opened.
    #[error("cannot open {name}: /dev/net/tun: {source}")]
    Driver {
        /// The interface.
        name: String,
        /// The host's answer.
        source: io::Error,
    },
    /// It is missing, and we may not make it.
    #[error(
        "cannot open {name}: it does not exist and may not be created without root; as root: ip tuntap add {name} mode tap user USER"
    )]
    Missing {
        /// The interface.
        name: String,
    },
    /// It belongs to someone else.
    #[error(
        "cannot open {name}: permission denied; as root: ip tuntap del {name} mode tap; ip tuntap add {name} mode tap user USER"
    )]
    Permission {
        /// The interface.
        name: String,
    },
    /// Another VM has it.
    #[error("cannot open {name}: it is in use by another virtual machine or program")]
    Busy {
        /// The interface.
        name: String,
    },
    /// Some other interface.
    #[error("cannot open {name}: it is not a tap interface")]
    NotTap {
        /// The interface.
        name: String,
    },
    /// It is down, and we may not change that.
    #[error("cannot bring {name} up: {source}; as root: ip link set {name} up")]
    Down {
        /// The interface.
        name: String,
        /// The host's answer.
        source: io::Error,
    },
    /// Anything else.
    #[error("cannot set up {name}: {source}")]
    Setup {
        /// The interface.
        name: String,
        /// The host's answer.
        source: io::Error,
    },
}

/// A tap interface, attached as long as this value lives. One that did not exist is made, and goes
/// away again with it.
pub struct Tap {
    name: String,
    tun: OwnedFd,
    /// For interface ioctls.
    socket: OwnedFd,
    supported: Offloads,
}

impl Tap {
    /// Attaches to the tap interface `name` and brings it up.
    pub fn open(name: &str) -> Result<Self, TapError> {
        let name = name.to_string();
        // '%' would make the kernel choose a number.
        let fits = !name.is_empty() && name.len() <= NAME_MAX && name != "." && name != "..";
        if !fits || !name.bytes().all(|b| b.is_ascii_graphic() && !b"/:%".contains(&b)) {
            return Err(TapError::Name(name));
        }
        let setup = |source: io::Error| TapError::Setup { name: name.clone(), source };
        let socket = rustix::net::socket_with(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::DGRAM,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|e| setup(e.into()))?;
        let tun: OwnedFd = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NONBLOCK.bits() as i32)
            .open("/dev/net/tun")
            .map_err(|e| driver_error(&name, e))?
            .into();
        let existed = sys::exists(socket.as_fd(), &name);
        let attached = match sys::attach(tun.as_fd(), &name, false) {
            // A tap made for several queues is only opened so.
            Err(e) if errno(&e) == Some(Errno::INVAL) && existed => sys::attach(tun.as_fd(), &name, true),
            other => other,
        };
        attached.map_err(|e| attach_error(&name, existed, e))?;
        sys::set_little_endian(tun.as_fd()).map_err(setup)?;
        sys::set_header_len(tun.as_fd(), 12).map_err(setup)?;
        let supported = probe_offloads(tun.as_fd());
        sys::set_offload(tun.as_fd(), 0).map_err(setup)?;
        sys::bring_up(socket.as_fd(), &name)
            .map_err(|source| TapError::Down { name: name.clone(), source })?;
        Ok(Self { name, tun, socket, supported })
    }
}

fn errno(e: &io::Error) -> Option<Errno> {
    Errno::from_io_error(e)
}

fn driver_error(name: &str, source: io::Error) -> TapError {
    let name = name.to_string();
    match errno(&source) {
        Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => TapError::NoDriver { name },
        _ => TapError::Driver { name, source },
    }
}

fn attach_error(name: &str, existed: bool, source: io::Error) -> TapError {
    let name = name.to_string();
    match errno(&source) {
        Some(Errno::PERM | Errno::ACCESS) if existed => TapError::Permission { name },
        Some(Errno::PERM | Errno::ACCESS) => TapError::Missing { name },
        Some(Errno::BUSY) => TapError::Busy { name },
        Some(Errno::INVAL) if existed => TapError::NotTap { name },
        _ => TapError::Setup { name, source },
    }
}

fn tun_flags(offloads: Offloads) -> libc::c_uint {
    let mut flags = 0;
    for (on, flag) in [
        (offloads.checksum, libc::TUN_F_CSUM),
        (offloads.tso4, libc::TUN_F_TSO4),
        (offloads.tso6, libc::TUN_F_TSO6),
        (offloads.ecn, libc::TUN_F_TSO_ECN),
        (offloads.ufo, libc::TUN_F_UFO),
    ] {
        if on {
            flags |= flag;
        }
    }
    flags
}

/// The kernel refuses what it does not know; segmentation needs checksums.
fn probe_offloads(tun: BorrowedFd<'_>) -> Offloads {
    let works = |o: Offloads| sys::set_offload(tun, tun_flags(o)).is_ok();
    let base = Offloads { checksum: true, ..Offloads::default() };
    if !works(base) {
        return Offloads::default();
    }
    let tso = Offloads { tso4: true, tso6: true, ..base };
    if !works(tso) {
        return base;
    }
    let ecn = works(Offloads { ecn: true, ..tso });
    let ufo = works(Offloads { ufo: true, ..tso });
    Offloads { ecn, ufo, ..tso }
}

impl NetBackend for Tap {
    fn name(&self) -> &str {
        &self.name
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.tun.as_fd()
    }

    fn send(&self, frame: &[GuestSlice]) -> io::Result<usize> {
        sys::write_guest(self.fd(), frame)
    }

    fn receive(&self, bufs: &[GuestSlice]) -> io::Result<usize> {
        sys::read_guest(self.fd(), bufs)
    }

    fn receive_bytes(&self, buf: &mut [u8]) -> io::Result<usize> {
        let len = rustix::io::read(&self.tun, &mut *buf)?;
        if len == buf.len() { Err(io::ErrorKind::InvalidData.into()) } else { Ok(len) }
    }

    fn set_header_len(&self, len: usize) -> io::Result<()> {
        sys::set_header_len(self.fd(), len)
    }

    fn offloads(&self) -> Offloads {
        self.supported
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        sys::set_offload(self.fd(), tun_flags(offloads))
    }

    fn mtu(&self) -> io::Result<Option<u16>> {
        Ok(u16::try_from(sys::mtu(self.socket.as_fd(), &self.name)?).ok())
    }

    fn set_mtu(&self, mtu: u16) -> io::Result<()> {
        sys::set_mtu(self.socket.as_fd(), &self.name, mtu)
    }
}

#[cfg(test)]
#[path = "tap_tests.rs"]
mod tests;
