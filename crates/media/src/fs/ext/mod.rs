//! ext2, ext3 and ext4.
//!
//! Layout: the kernel's `Documentation/filesystems/ext4`. If the file system was not unmounted, its journal is
//! applied in memory. An external journal is looked for among the other devices; if it isn't there, blocks are
//! read as they are in place, as GRUB reads them.

mod directory;
mod inode;
mod journal;
mod map;
mod superblock;
#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use super::runs::{Filler, Visit};
use inode::Inode;
use superblock::{RECOVER, SUPERBLOCK, Superblock};

use crate::{Entry, Error, FileSystem, Kind, Metadata, Node, NodeRef, Result, SourceRef};

/// GRUB's name of all three.
const KIND: &str = "ext2";
/// Inode of the root directory.
const ROOT: u32 = 2;
/// Longest target of a symbolic link.
const MAX_LINK: u64 = 4096;

/// Opens an ext2, ext3 or ext4 file system. `peers` may hold its journal.
pub fn open(source: &SourceRef, peers: &[SourceRef]) -> Result<Option<Arc<dyn FileSystem>>> {
    let mut bytes = [0; 1024];
    if source.read_at(SUPERBLOCK, &mut bytes).is_err() {
        return Ok(None);
    }
    let Some(sb) = Superblock::parse(&bytes)? else { return Ok(None) };
    let recover = sb.incompat & RECOVER != 0;
    let mut volume = Volume { source: source.clone(), sb, overlay: None };
    if recover && let Some(overlay) = journal::replay(&volume, peers)? {
        volume.overlay = Some(overlay);
        // The journal may hold a newer superblock too, which must still be one of this file system.
        volume.read(SUPERBLOCK, &mut bytes)?;
        let size = volume.sb.block_size;
        volume.sb = Superblock::parse(&bytes)?
            .filter(|sb| sb.block_size == size)
            .ok_or_else(|| Error::corrupt(KIND, "superblock in the journal"))?;
    }
    let volume = Arc::new(volume);
    if volume.inode(ROOT)?.kind != Kind::Directory {
        return Err(Error::corrupt(KIND, "the root is not a directory"));
    }
    Ok(Some(Arc::new(Ext { volume })))
}

/// A UUID as GRUB spells it.
pub(super) fn spell_uuid(uuid: &[u8; 16]) -> String {
    let mut text = String::new();
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Blocks and inodes.
struct Volume {
    source: SourceRef,
    sb: Superblock,
    overlay: Option<journal::Overlay>,
}

impl Volume {
    /// Bytes at an offset, with what the journal has instead of them.
    fn read(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        self.source.read_at(offset, to)?;
        match &self.overlay {
            Some(overlay) => overlay.apply(offset, to, self.sb.block_size),
            None => Ok(()),
        }
    }

    /// Blocks from `block`, as many as fit into `to`.
    fn read_blocks(&self, block: u64, to: &mut [u8]) -> Result<()> {
        if block == 0 || block >= self.sb.blocks {
            return Err(Error::corrupt(KIND, format!("block {block} does not exist")));
        }
        // No overflow: `blocks` was checked.
        self.read(block * self.sb.block_size, to)
    }

    /// One block.
    fn block(&self, block: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.sb.block_size as usize];
        self.read_blocks(block, &mut bytes)?;
        Ok(bytes)
    }

    fn runs(&self, inode: &Inode, range: Range<u64>, visit: &mut Visit) -> Result<()> {
        map::runs(self, &inode.block, inode.extents, range, visit)
    }

    /// A file's bytes. Whole runs go straight into `to`.
    fn read_file(&self, inode: &Inode, offset: u64, to: &mut [u8]) -> Result<()> {
        crate::source::check(inode.size, offset, to.len() as u64)?;
        inode.readable()?;
        if to.is_empty() || inode.read_inline(offset, to).is_some() {
            return Ok(());
        }
        let size = self.sb.block_size;
        let mut filler = Filler::new(KIND, size, offset, to);
        self.runs(inode, filler.blocks(), &mut |run| {
            if run.physical == 0 || run.physical.saturating_add(run.count) > self.sb.blocks {
                return Err(Error::corrupt(KIND, format!("block {} does not exist", run.physical)));
            }
            filler.add(run, |skip, part| self.read(run.physical * size + skip, part))?;
            Ok(ControlFlow::Continue(()))
        })?;
        filler.finish()
    }
}

/// An ext2, ext3 or ext4 file system.
struct Ext {
    volume: Arc<Volume>,
}

impl FileSystem for Ext {
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

    fn modified(&self) -> Option<i64> {
        Some(self.volume.sb.written.into())
    }

    fn root(&self) -> Result<NodeRef> {
        ExtNode::open(&self.volume, ROOT)
    }
}

struct ExtNode {
    volume: Arc<Volume>,
    inode: Inode,
}

impl ExtNode {
    fn open(volume: &Arc<Volume>, number: u32) -> Result<NodeRef> {
        Ok(Arc::new(Self { inode: volume.inode(number)?, volume: volume.clone() }))
    }

    fn directory(&self) -> Result<()> {
        if self.inode.kind == Kind::Directory { Ok(()) } else { Err(Error::NotADirectory(KIND.into())) }
    }
}

impl Node for ExtNode {
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
            Some(number) => ExtNode::open(&self.volume, number).map(Some),
            None => Ok(None),
        }
    }

    fn link(&self) -> Result<Vec<u8>> {
        if self.inode.kind != Kind::Symlink {
            return Err(Error::NotAFile("not a symbolic link".into()));
        }
        if self.inode.size > MAX_LINK {
            return Err(Error::corrupt(KIND, "target of a symbolic link"));
        }
        let mut target = vec![0; self.inode.size as usize];
        self.volume.read_file(&self.inode, 0, &mut target)?;
        Ok(target)
    }
}
