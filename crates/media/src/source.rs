//! Random-access bytes: an image, a device, a partition, a volume, a file.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::{Error, NodeRef, Result};

/// Bytes that can be read from anywhere, by several threads.
pub trait Source: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Fills `to` from `offset`. Nothing past the end can be read.
    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()>;
}

/// A shared source.
pub type SourceRef = Arc<dyn Source>;

/// Checks that `len` bytes at `offset` are among `size`.
pub(crate) fn check(size: u64, offset: u64, len: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Error::PastEnd { offset, len, size }),
    }
}

impl dyn Source {
    /// `len` bytes at `offset`. The caller bounds `len`.
    pub fn read_vec(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        check(self.size(), offset, len as u64)?;
        let mut bytes = vec![0; len];
        self.read_at(offset, &mut bytes)?;
        Ok(bytes)
    }
}

/// A file or block device of the host.
pub struct FileSource {
    name: String,
    file: File,
    size: u64,
}

impl FileSource {
    /// Opens `path` for reading.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let error = |source| Error::Io { what: name.clone(), source };
        let mut file = File::open(path).map_err(error)?;
        let kind = file.metadata().map_err(error)?.file_type();
        if kind.is_dir() {
            return Err(Error::IsADirectory(name));
        }
        // A block device's size is where its end is.
        let size = file.seek(SeekFrom::End(0)).map_err(error)?;
        Ok(Self { name, file, size })
    }
}

impl Source for FileSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        check(self.size, offset, to.len() as u64)?;
        self.file.read_exact_at(to, offset).map_err(|source| Error::Io { what: self.name.clone(), source })
    }
}

/// A part of another source.
pub struct Window {
    source: SourceRef,
    start: u64,
    size: u64,
}

impl Window {
    /// `size` bytes at `start` of `source`; an error if they are not all in it.
    pub fn new(source: SourceRef, start: u64, size: u64) -> Result<Self> {
        check(source.size(), start, size)?;
        Ok(Self { source, start, size })
    }
}

impl Source for Window {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        check(self.size, offset, to.len() as u64)?;
        self.source.read_at(self.start + offset, to)
    }
}

/// Bytes in memory.
pub struct Bytes(pub Vec<u8>);

impl Source for Bytes {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        check(self.size(), offset, to.len() as u64)?;
        to.copy_from_slice(&self.0[offset as usize..offset as usize + to.len()]);
        Ok(())
    }
}

/// A file in a file system.
pub struct NodeSource {
    node: NodeRef,
    size: u64,
}

impl NodeSource {
    /// The bytes of the regular file `node`.
    pub fn new(node: NodeRef) -> Result<Self> {
        let size = node.metadata()?.size;
        Ok(Self { node, size })
    }
}

impl Source for NodeSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        check(self.size, offset, to.len() as u64)?;
        self.node.read_at(offset, to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_ends_where_it_ends() {
        let bytes: SourceRef = Arc::new(Bytes((0..100).collect()));
        assert!(Window::new(bytes.clone(), 90, 11).is_err());
        assert!(Window::new(bytes.clone(), u64::MAX, 2).is_err());
        let window: SourceRef = Arc::new(Window::new(bytes, 10, 20).unwrap());
        assert_eq!(window.read_vec(18, 2).unwrap(), [28, 29]);
        assert!(matches!(window.read_vec(19, 2), Err(Error::PastEnd { size: 20, .. })));
    }

    #[test]
    fn a_missing_image_is_named() {
        let error = FileSource::open(Path::new("/nowhere/disk.img")).err().unwrap();
        assert!(error.to_string().starts_with("/nowhere/disk.img: No such file"));
        assert!(matches!(FileSource::open(Path::new("/")), Err(Error::IsADirectory(_))));
    }
}
