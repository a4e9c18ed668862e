//! A file to load, with every offset into it checked.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use memory::GuestMemory;

use crate::{Error, Result};

/// An open file and how the user named it.
pub struct Image<'a> {
    key: &'static str,
    path: &'a Path,
    file: File,
    len: u64,
}

impl<'a> Image<'a> {
    pub fn open(key: &'static str, path: &'a Path) -> Result<Self> {
        let error = |what: String| Error::File { key, path: path.into(), what };
        let file = File::open(path).map_err(|e| error(e.to_string()))?;
        let meta = file.metadata().map_err(|e| error(e.to_string()))?;
        if !meta.is_file() {
            return Err(error("not a regular file".into()));
        }
        Ok(Self { key, path, file, len: meta.len() })
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// An error about this file.
    pub fn error(&self, what: impl Into<String>) -> Error {
        Error::File { key: self.key, path: self.path.into(), what: what.into() }
    }

    /// Checks that `len` bytes at `offset` are in the file.
    pub fn check(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(self.error(format!("truncated: {len} bytes at {offset} are not in it"))),
        }
    }

    /// Reads a piece for a look.
    pub fn read(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        self.check(offset, to.len() as u64)?;
        self.file.read_exact_at(to, offset).map_err(|e| self.error(e.to_string()))
    }

    /// Reads `len` bytes at `offset` straight into guest RAM.
    pub fn place(&self, memory: &GuestMemory, offset: u64, len: u64, gpa: u64) -> Result<()> {
        self.check(offset, len)?;
        memory.slice(gpa, len)?.read_file(&self.file, offset).map_err(|e| self.error(e.to_string()))
    }
}

/// Little-endian values at an offset; `None` past the end.
pub trait Fields {
    fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]>;

    fn u16_at(&self, at: usize) -> Option<u16> {
        self.bytes(at).map(u16::from_le_bytes)
    }

    fn u32_at(&self, at: usize) -> Option<u32> {
        self.bytes(at).map(u32::from_le_bytes)
    }

    fn u64_at(&self, at: usize) -> Option<u64> {
        self.bytes(at).map(u64::from_le_bytes)
    }
}

impl Fields for [u8] {
    fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.get(at..at.checked_add(N)?)?.try_into().ok()
    }
}
