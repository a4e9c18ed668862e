//! XFS, versions 4 and 5.
//!
//! Layout: the kernel's `fs/xfs/libxfs/xfs_format.h` and the "XFS Algorithms & Data Structures" documentation. All
//! numbers are big-endian. If the file system was not unmounted, its log is applied in memory. A log that makes no sense
//! is left alone, and metadata is read as it is in place, as GRUB reads it.

mod directory;
mod inode;
mod log;
mod map;
mod replay;
mod superblock;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::sync::Arc;

use inode::Inode;
use superblock::Superblock;

use super::ext::spell_uuid;
use crate::{Entry, Error, FileSystem, Kind, Metadata, Node, NodeRef, Result, SourceRef};

const KIND: &str = "xfs";

/// Opens an XFS file system.
pub fn open(source: &SourceRef, _: &[SourceRef]) -> Result<Option<Arc<dyn FileSystem>>> {
    let mut bytes = [0; 512];
    if source.read_at(0, &mut bytes).is_err() {
        return Ok(None);
    }
    let Some(sb) = Superblock::parse(&bytes)? else { return Ok(None) };
    let mut volume = Volume { source: source.clone(), sb, overlay: None };
    if let Ok(transactions) = log::transactions(&volume)
        && !transactions.is_empty()
    {
        volume.overlay = replay::replay(&volume, &transactions).ok();
    }
    let volume = Arc::new(volume);
    if volume.inode(volume.sb.root)?.kind != Kind::Directory {
        return Err(Error::corrupt(KIND, "the root is not a directory"));
    }
    Ok(Some(Arc::new(Xfs { volume })))
}

/// Blocks and inodes.
struct Volume {
    source: SourceRef,
    sb: Superblock,
    overlay: Option<replay::Overlay>,
}

impl Volume {
    /// Bytes at an offset, with what the log has instead of them.
    fn read(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        match &self.overlay {
            Some(overlay) => overlay.read(&self.source, offset, to),
            None => self.source.read_at(offset, to),
        }
    }
}

/// An XFS file system.
struct Xfs {
    volume: Arc<Volume>,
}

impl FileSystem for Xfs {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn label(&self) -> Option<String> {
        let label = &self.volume.sb.label;
        (!label.is_empty()).then(|| String::from_utf8_lossy(label).into_owned())
    }

    fn uuid(&self) -> Option<String> {
        Some(spell_uuid(&self.volume.sb.uuid))
    }

    fn case_sensitive(&self) -> bool {
        !self.volume.sb.any_case
    }

    fn root(&self) -> Result<NodeRef> {
        XfsNode::open(&self.volume, self.volume.sb.root)
    }
}

struct XfsNode {
    volume: Arc<Volume>,
    inode: Inode,
}

impl XfsNode {
    fn open(volume: &Arc<Volume>, number: u64) -> Result<NodeRef> {
        Ok(Arc::new(Self { inode: volume.inode(number)?, volume: volume.clone() }))
    }

    fn directory(&self) -> Result<()> {
        if self.inode.kind == Kind::Directory { Ok(()) } else { Err(Error::NotADirectory(KIND.into())) }
    }
}

impl Node for XfsNode {
    fn metadata(&self) -> Result<Metadata> {
        Ok(Metadata { kind: self.inode.kind, size: self.inode.size, modified: Some(self.inode.modified) })
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        match self.inode.kind {
            Kind::File => self.volume.read_file(&self.inode, offset, to),
            Kind::Directory => Err(Error::IsADirectory(KIND.into())),
            Kind::Symlink | Kind::Other => Err(Error::NotAFile(KIND.into())),
        }
    }

    fn entries(&self, visit: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        self.directory()?;
        directory::scan(&self.volume, &self.inode, &mut |entry| {
            visit(Entry { name: entry.name.to_vec(), kind: entry.kind })
        })
    }

    fn lookup(&self, name: &[u8]) -> Result<Option<NodeRef>> {
        self.directory()?;
        match directory::find(&self.volume, &self.inode, name)? {
            Some(number) => XfsNode::open(&self.volume, number).map(Some),
            None => Ok(None),
        }
    }

    fn link(&self) -> Result<Vec<u8>> {
        if self.inode.kind != Kind::Symlink {
            return Err(Error::NotAFile("not a symbolic link".into()));
        }
        self.volume.target(&self.inode)
    }
}
