//! Messages on the wire: a magic number, the protocol's version, a length, and that many bytes of
//! postcard.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Every message begins so.
const MAGIC: [u8; 4] = *b"bhyv";
/// Changes with every change of [`super::Request`] or [`super::Response`].
pub const VERSION: u32 = 1;
const HEADER: usize = 12;
/// Longest message: the largest is the state of a vCPU, some kilobytes.
const MAX_LEN: usize = 1 << 20;

/// A connection that keeps no one waiting: whatever the other side does, a message is read or
/// written within the given time or not at all.
pub struct Connection(pub UnixStream);

impl Connection {
    /// Reads a message. `None`: the other side has closed the connection.
    pub fn receive<T: DeserializeOwned>(&mut self, patience: Duration) -> Result<Option<T>> {
        let deadline = Instant::now() + patience;
        let mut header = [0; HEADER];
        if !self.fill(&mut header, deadline)? {
            return Ok(None);
        }
        let word =
            |at: usize| header.get(at..).and_then(|b| b.first_chunk()).copied().map(u32::from_le_bytes);
        if header.first_chunk() != Some(&MAGIC) {
            return Err(Error::new(ErrorKind::InvalidData, "that is not bhyve's protocol"));
        }
        let (version, len) = (word(4).unwrap_or(0), word(8).unwrap_or(0) as usize);
        if version != VERSION {
            let text = format!("it speaks version {version} of the protocol, this program version {VERSION}");
            return Err(Error::new(ErrorKind::InvalidData, text));
        }
        if len > MAX_LEN {
            return Err(Error::new(ErrorKind::InvalidData, "a message is too long"));
        }
        let mut body = vec![0; len];
        if !self.fill(&mut body, deadline)? && len > 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        postcard::from_bytes(&body).map(Some).map_err(|e| Error::new(ErrorKind::InvalidData, e))
    }

    /// Writes a message.
    pub fn send<T: Serialize>(&mut self, message: &T, patience: Duration) -> Result<()> {
        let body = postcard::to_stdvec(message).map_err(|e| Error::new(ErrorKind::InvalidData, e))?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(body);
        let deadline = Instant::now() + patience;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            self.0.set_write_timeout(Some(left(deadline)?))?;
            match self.0.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Fills `bytes`; false if the other side closed before the first of them.
    fn fill(&mut self, bytes: &mut [u8], deadline: Instant) -> Result<bool> {
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            self.0.set_read_timeout(Some(left(deadline)?))?;
            match self.0.read(rest) {
                Ok(0) if done == 0 => return Ok(false),
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => done += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

fn left(deadline: Instant) -> Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}
