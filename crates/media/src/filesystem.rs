//! What every file system can do.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::{Error, Result};

/// A mounted file system, read-only.
pub trait FileSystem: Send + Sync {
    /// GRUB's name of the kind: `ext2`, `xfs`, `iso9660`, …
    fn kind(&self) -> &'static str;
    /// Volume label, if it has one.
    fn label(&self) -> Option<String>;
    /// UUID or serial number, spelled as GRUB's `probe --fs-uuid` does.
    fn uuid(&self) -> Option<String>;
    /// When it was last written, seconds since 1970, if it says so.
    fn modified(&self) -> Option<i64> {
        None
    }
    /// Whether names differ if only their case does.
    fn case_sensitive(&self) -> bool {
        true
    }
    /// The root directory.
    fn root(&self) -> Result<NodeRef>;
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Device, socket, pipe.
    Other,
}

/// What is known of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// What it is.
    pub kind: Kind,
    /// Bytes of a file or a symbolic link.
    pub size: u64,
    /// Last change of content, seconds since 1970.
    pub modified: Option<i64>,
}

/// One name in a directory, never `.` or `..`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name; UTF-8 where the file system says what its names mean.
    pub name: Vec<u8>,
    /// What it names, where the directory says so cheaply.
    pub kind: Option<Kind>,
}

/// A file, directory or symbolic link.
pub trait Node: Send + Sync {
    /// Kind, size and time.
    fn metadata(&self) -> Result<Metadata>;
    /// Fills `to` with the file's bytes from `offset`; holes are zeros. The caller keeps within
    /// [`Metadata::size`]; more is [`Error::PastEnd`]. For directories [`Error::IsADirectory`].
    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()>;
    /// Calls `visit` for each entry of a directory, in the order on disk, until it breaks.
    fn entries(&self, visit: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()>;
    /// The entry `name` of a directory.
    fn lookup(&self, name: &[u8]) -> Result<Option<NodeRef>>;
    /// Where a symbolic link leads.
    fn link(&self) -> Result<Vec<u8>>;
}

/// A shared node.
pub type NodeRef = Arc<dyn Node>;

/// The whole file, if it has at most `limit` bytes.
pub fn read_all(node: &dyn Node, limit: u64) -> Result<Vec<u8>> {
    let size = node.metadata()?.size;
    if size > limit {
        return Err(Error::TooLarge(format!("a file of {size} bytes (limit {limit})")));
    }
    let mut bytes = vec![0; size as usize];
    node.read_at(0, &mut bytes)?;
    Ok(bytes)
}
