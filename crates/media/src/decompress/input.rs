//! The bytes of a source, one after the other.

use std::io::{self, Read};

use crate::{Fields, SourceRef};

/// Read from the source at once.
const CHUNK: u64 = 128 << 10;

/// Reads a source from its start to its end.
pub struct Input {
    source: SourceRef,
    /// Where the next chunk begins.
    next: u64,
    chunk: Vec<u8>,
    /// How much of the chunk is used up.
    used: usize,
}

impl Input {
    /// At the start of `source`.
    pub fn new(source: SourceRef) -> Self {
        Self { source, next: 0, chunk: Vec::new(), used: 0 }
    }

    /// Bytes that are there without reading; empty only at the end.
    pub fn available(&mut self) -> io::Result<&[u8]> {
        if self.used >= self.chunk.len() {
            let len = CHUNK.min(self.source.size().saturating_sub(self.next));
            self.chunk = self.source.read_vec(self.next, len as usize).map_err(io::Error::other)?;
            self.used = 0;
            self.next += len;
        }
        Ok(self.chunk.get(self.used..).unwrap_or_default())
    }

    /// Steps over bytes that were available.
    pub fn consume(&mut self, len: usize) {
        self.used = self.used.saturating_add(len).min(self.chunk.len());
    }

    /// Steps over `len` bytes.
    pub fn skip(&mut self, len: u64) -> io::Result<()> {
        let left = self.chunk.len() - self.used;
        if len <= left as u64 {
            self.used += len as usize;
            return Ok(());
        }
        let next = self.next.checked_add(len - left as u64).filter(|next| *next <= self.source.size());
        self.next = next.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.used = self.chunk.len();
        Ok(())
    }

    /// The next `N` bytes, without stepping over them; `None` if there are fewer.
    pub fn peek<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        if let Some(bytes) = self.available()?.array(0) {
            return Ok(Some(bytes));
        }
        let at = self.next - (self.chunk.len() - self.used) as u64;
        if self.source.size() - at < N as u64 {
            return Ok(None);
        }
        let mut bytes = [0; N];
        self.source.read_at(at, &mut bytes).map_err(io::Error::other)?;
        Ok(Some(bytes))
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

impl Read for Input {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let from = self.available()?;
        let len = from.len().min(to.len());
        if let (Some(to), Some(from)) = (to.get_mut(..len), from.get(..len)) {
            to.copy_from_slice(from);
        }
        self.consume(len);
        Ok(len)
    }
}

/// An error of the compressed format.
pub fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
