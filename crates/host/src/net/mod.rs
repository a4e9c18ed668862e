//! Network back ends: where a network device's frames go.
//!
//! Every frame is preceded by the virtio-net header (VIRTIO 1.2, 5.1.6), which a tap interface
//! takes and gives as it is; so offloads work from end to end and data moves without a copy.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use memory::GuestSlice;

mod mac;
mod pair;
mod sys;
mod tap;
mod waker;

pub use mac::{MacAddress, MacError};
pub use pair::{PairBackend, PairPeer, pair};
pub use tap::{Tap, TapError};
pub use waker::{Ready, Waker};

/// Longest frame with its header: 64 KiB of IP packet, an Ethernet header with a VLAN tag, and
/// the longest virtio-net header.
pub const MAX_FRAME: usize = 65535 + 18 + 12;

/// Segmentation and checksum work that one side may leave to the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Packets whose checksum is not filled in.
    pub checksum: bool,
    /// TCP over IPv4 packets longer than the MTU.
    pub tso4: bool,
    /// The same over IPv6.
    pub tso6: bool,
    /// Such packets with ECN bits.
    pub ecn: bool,
    /// UDP packets longer than the MTU.
    pub ufo: bool,
}

/// One end of an Ethernet. Calls never block.
pub trait NetBackend: Send + Sync {
    /// Name for messages.
    fn name(&self) -> &str;

    /// Readable when a frame can be received, writable when one can be sent.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Sends one frame with its header. [`io::ErrorKind::WouldBlock`] when there is no room; other
    /// errors mean that the frame is lost.
    fn send(&self, frame: &[GuestSlice]) -> io::Result<usize>;

    /// Receives one frame with its header straight into guest memory; returns its length.
    /// [`io::ErrorKind::WouldBlock`] when there is none; [`io::ErrorKind::InvalidData`] when it
    /// did not fit and is lost.
    fn receive(&self, bufs: &[GuestSlice]) -> io::Result<usize>;

    /// As [`NetBackend::receive`], into host memory, which must be longer than the frame.
    fn receive_bytes(&self, buf: &mut [u8]) -> io::Result<usize>;

    /// Sets the length of the virtio-net header: 10 or 12.
    fn set_header_len(&self, len: usize) -> io::Result<()>;

    /// What the back end can leave to the guest and, the other way, take from it.
    fn offloads(&self) -> Offloads;

    /// What the guest takes; frames that need more are finished before they are received.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;

    /// Largest IP packet, if the back end has a limit.
    fn mtu(&self) -> io::Result<Option<u16>>;

    /// Sets the largest IP packet.
    fn set_mtu(&self, mtu: u16) -> io::Result<()>;
}

/// Why there is no such back end.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The tap interface can't be used.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// One of bhyve's back ends that needs FreeBSD or does not exist here yet.
    #[error("network back end {0} is not available; use a tap interface")]
    Unavailable(String),
    /// No back end goes by this name.
    #[error("unknown network back end {0}; use a tap interface, such as tap0")]
    Unknown(String),
}

/// Opens the back end that bhyve's option string names: `tapN` or `vmnetN`, or any interface name
/// with `kind` (the `type` key) `tap`.
pub fn open(name: &str, kind: Option<&str>) -> Result<Arc<dyn NetBackend>, BackendError> {
    let other = ["slirp", "netmap", "vale", "netgraph", "ngd"];
    match kind {
        Some("tap" | "vmnet") => Ok(Arc::new(Tap::open(name)?)),
        Some(kind) if other.contains(&kind) => Err(BackendError::Unavailable(kind.to_string())),
        Some(kind) => Err(BackendError::Unknown(kind.to_string())),
        None if name.starts_with("tap") || name.starts_with("vmnet") => Ok(Arc::new(Tap::open(name)?)),
        None if other.iter().any(|o| name.starts_with(o)) => Err(BackendError::Unavailable(name.to_string())),
        None => Err(BackendError::Unknown(name.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_ends_are_told_by_name_or_type() {
        let error = |name: &str, kind: Option<&str>| open(name, kind).err().map(|e| e.to_string());
        assert!(error("slirp", None).unwrap().contains("slirp is not available"));
        assert!(error("eth0", None).unwrap().contains("unknown network back end eth0"));
        assert!(error("tap0", Some("netgraph")).unwrap().contains("netgraph is not available"));
        assert!(error("tap0", Some("foo")).unwrap().contains("unknown network back end foo"));
        assert!(error("tap/0", None).unwrap().contains("not an interface name"));
    }
}
