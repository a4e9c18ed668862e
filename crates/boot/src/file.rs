//! A file to load, with every offset into it checked.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use media::SourceRef;
use memory::GuestMemory;

use crate::{Error, Result};

/// How much of a file in an image is copied at once.
const CHUNK: u64 = 1 << 20;

#[derive(Clone)]
enum Bytes {
    /// A file of the host goes into guest memory without a copy.
    Host(Arc<File>),
    /// Anything else: a file in a file system in an image, bytes in memory.
    Source(SourceRef),
}

/// A file to load, and what the user called it.
#[derive(Clone)]
pub struct Image {
    name: String,
    bytes: Bytes,
    len: u64,
}

impl Image {
    /// `source`, called `name` in errors.
    pub fn new(name: impl Into<String>, source: SourceRef) -> Self {
        let len = source.size();
        Self { name: name.into(), bytes: Bytes::Source(source), len }
    }

    /// A regular file of the host, called `name` in errors.
    pub fn open(name: impl Into<String>, path: &Path) -> Result<Self> {
        let name = name.into();
        let error = |what| Error::File { name: name.clone(), what };
        let cannot = |e| error(format!("cannot open {}: {}", path.display(), reason(&e)));
        let file = File::open(path).map_err(cannot)?;
        let meta = file.metadata().map_err(cannot)?;
        if !meta.is_file() {
            return Err(error("not a regular file".into()));
        }
        Ok(Self { bytes: Bytes::Host(Arc::new(file)), len: meta.len(), name })
    }

    /// What the user called it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// An error about this file.
    pub fn error(&self, what: impl Into<String>) -> Error {
        Error::File { name: self.name.clone(), what: what.into() }
    }

    /// Checks that `len` bytes at `offset` are in the file.
    pub(crate) fn check(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(self.error(format!("truncated: {len} bytes at {offset} are not in it"))),
        }
    }

    /// Reads a piece for a look.
    pub(crate) fn read(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        self.check(offset, to.len() as u64)?;
        match &self.bytes {
            Bytes::Host(file) => file.read_exact_at(to, offset).map_err(|e| self.error(reason(&e))),
            Bytes::Source(source) => source.read_at(offset, to).map_err(|e| self.error(e.to_string())),
        }
    }

    /// `len` bytes at `offset`, if that is not more than `limit`.
    pub(crate) fn read_vec(&self, offset: u64, len: u64, limit: u64) -> Result<Vec<u8>> {
        self.check(offset, len)?;
        if len > limit {
            return Err(self.error(format!("damaged: a table of {len} bytes at {offset}")));
        }
        let mut bytes = vec![0; len as usize];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads `len` bytes at `offset` into guest RAM.
    pub(crate) fn place(&self, memory: &GuestMemory, offset: u64, len: u64, gpa: u64) -> Result<()> {
        self.check(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let slice = memory.slice(gpa, len)?;
        if let Bytes::Host(file) = &self.bytes {
            return slice.read_file(file, offset).map_err(|e| self.error(reason(&e)));
        }
        let mut chunk = vec![0; len.min(CHUNK) as usize];
        let mut done = 0;
        while done < len {
            let now = chunk.get_mut(..(len - done).min(CHUNK) as usize).unwrap_or_default();
            self.read(offset + done, now)?;
            memory.write(gpa + done, now)?;
            done += now.len() as u64;
        }
        Ok(())
    }
}

/// The host's reason without Rust's "(os error n)".
fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}
