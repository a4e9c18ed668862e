//! A back end whose other end is in this process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use memory::GuestSlice;

use super::{MAX_FRAME, NetBackend, Offloads, sys};

#[derive(Default)]
struct Shared {
    header: AtomicUsize,
    offloads: Mutex<Offloads>,
}

/// The device's end.
pub struct PairBackend {
    socket: UnixDatagram,
    supported: Offloads,
    shared: Arc<Shared>,
}

/// The other end.
pub struct PairPeer {
    socket: UnixDatagram,
    shared: Arc<Shared>,
}

/// Two ends of one wire; the device may be offered `supported`.
pub fn pair(supported: Offloads) -> io::Result<(PairBackend, PairPeer)> {
    let (device, peer) = UnixDatagram::pair()?;
    device.set_nonblocking(true)?;
    let shared = Arc::new(Shared { header: AtomicUsize::new(12), ..Shared::default() });
    Ok((PairBackend { socket: device, supported, shared: shared.clone() }, PairPeer { socket: peer, shared }))
}

impl NetBackend for PairBackend {
    fn name(&self) -> &'static str {
        "pair"
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn send(&self, frame: &[GuestSlice]) -> io::Result<usize> {
        sys::write_guest(self.fd(), frame)
    }

    fn receive(&self, bufs: &[GuestSlice]) -> io::Result<usize> {
        sys::read_guest(self.fd(), bufs)
    }

    fn receive_bytes(&self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.socket.recv(buf)?;
        if len == buf.len() { Err(io::ErrorKind::InvalidData.into()) } else { Ok(len) }
    }

    fn set_header_len(&self, len: usize) -> io::Result<()> {
        self.shared.header.store(len, Ordering::SeqCst);
        Ok(())
    }

    fn offloads(&self) -> Offloads {
        self.supported
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        *self.shared.offloads.lock().unwrap_or_else(PoisonError::into_inner) = offloads;
        Ok(())
    }

    fn mtu(&self) -> io::Result<Option<u16>> {
        Ok(None)
    }

    fn set_mtu(&self, _: u16) -> io::Result<()> {
        Ok(())
    }
}

impl PairPeer {
    /// Length of the header that frames have now.
    pub fn header_len(&self) -> usize {
        self.shared.header.load(Ordering::SeqCst)
    }

    /// What the device's end has asked for.
    pub fn offloads(&self) -> Offloads {
        *self.shared.offloads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a frame, with its header.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.socket.send(frame).map(drop)
    }

    /// Receives a frame, with its header; waits up to `timeout`.
    pub fn receive(&self, timeout: Duration) -> io::Result<Vec<u8>> {
        self.socket.set_read_timeout(Some(timeout))?;
        let mut frame = vec![0; MAX_FRAME];
        let len = self.socket.recv(&mut frame)?;
        frame.truncate(len);
        Ok(frame)
    }
}
