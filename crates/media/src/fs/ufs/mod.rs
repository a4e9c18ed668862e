//! The Berkeley fast file system: UFS1 and UFS2, of either byte order.

mod inode;
mod superblock;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::sync::Arc;

use inode::Inode;
use superblock::Superblock;

use super::support::{BlockCache, NameIndex, Note, Trail, usable};
use crate::source::check;
use crate::{Entry, Error, Fields, FileSystem, Kind, Metadata, Node, NodeRef, Result, SourceRef};

/// Inode of the root directory.
const ROOT: u64 = 2;
/// What directories are written in: no entry crosses such a piece.
const DIRECTORY_BLOCK: usize = 512;
/// How much of a directory is read at once.
const CHUNK: usize = 32 << 10;
/// Largest directory, in bytes.
const MAX_DIRECTORY: u64 = 128 << 20;
/// Longest symbolic link, as Linux's PATH_MAX.
const MAX_LINK: u64 = 4096;
/// Fragments of block addresses that are kept: 16 MiB of the largest.
const CACHED: usize = 256;

struct Volume {
    source: SourceRef,
    sb: Superblock,
    /// Blocks of addresses, by the fragment: they start at any fragment.
    pointers: BlockCache,
    index: NameIndex,
}

/// Opens the file system, if it is one.
pub fn open(source: &SourceRef, _: &[SourceRef]) -> Result<Option<Arc<dyn FileSystem>>> {
    let Some(sb) = Superblock::find(source)? else { return Ok(None) };
    let pointers = BlockCache::new(source.clone(), sb.fsize as usize, CACHED);
    Ok(Some(Arc::new(Mounted(Arc::new(Volume {
        source: source.clone(),
        sb,
        pointers,
        index: NameIndex::new(),
    })))))
}

struct Mounted(Arc<Volume>);

impl FileSystem for Mounted {
    fn kind(&self) -> &'static str {
        self.0.sb.kind()
    }

    fn label(&self) -> Option<String> {
        self.0.sb.label.clone()
    }

    fn uuid(&self) -> Option<String> {
        let [high, low] = self.0.sb.id;
        (self.0.sb.id != [0, 0]).then(|| format!("{high:08x}{low:08x}"))
    }

    fn modified(&self) -> Option<i64> {
        Some(self.0.sb.time)
    }

    fn root(&self) -> Result<NodeRef> {
        let inode = Inode::load(&self.0, ROOT)?;
        if inode.kind != Kind::Directory {
            return Err(Error::corrupt(self.kind(), "the root is not a directory"));
        }
        Ok(Arc::new(UfsNode { volume: self.0.clone(), inode, trail: Some(Trail::root(ROOT)) }))
    }
}

struct UfsNode {
    volume: Arc<Volume>,
    inode: Inode,
    /// Only directories have one.
    trail: Option<Arc<Trail>>,
}

/// An entry as it is on the disk.
struct Raw<'a> {
    place: u64,
    inode: u32,
    kind: Option<Kind>,
    name: &'a [u8],
}

impl UfsNode {
    fn shown(&self) -> String {
        format!("inode {}", self.inode.number)
    }

    fn trail(&self) -> Result<&Arc<Trail>> {
        self.trail.as_ref().ok_or_else(|| Error::NotADirectory(self.shown()))
    }

    /// Calls `visit` for each entry from the piece at `from` on, but not for `.` and `..`.
    fn each(&self, from: u64, visit: &mut dyn FnMut(&Raw) -> ControlFlow<()>) -> Result<()> {
        let size = self.inode.size;
        if size > MAX_DIRECTORY {
            return Err(Error::TooLarge(format!("a directory of {size} bytes")));
        }
        let mut bytes = Vec::new();
        let mut start = from;
        while start < size {
            let chunk = if bytes.is_empty() && from > 0 { DIRECTORY_BLOCK } else { CHUNK };
            bytes.resize((size - start).min(chunk as u64) as usize, 0);
            self.inode.read(&self.volume, start, &mut bytes)?;
            for piece in bytes.chunks(DIRECTORY_BLOCK) {
                if self.piece(start, piece, visit)?.is_break() {
                    return Ok(());
                }
                start += piece.len() as u64;
            }
        }
        Ok(())
    }

    fn piece(
        &self,
        start: u64,
        piece: &[u8],
        visit: &mut dyn FnMut(&Raw) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let sb = &self.volume.sb;
        let mut at = 0;
        while at < piece.len() {
            let entry = piece.get(at..).unwrap_or_default();
            let place = start + at as u64;
            let bad = || Error::corrupt(sb.kind(), format!("{}: directory entry at {place}", self.shown()));
            // struct direct: d_ino, d_reclen, d_type, d_namlen; before 4.4BSD d_namlen had 16 bits.
            let inode = sb.u32_at(entry, 0).ok_or_else(bad)?;
            let record = usize::from(sb.u16_at(entry, 4).ok_or_else(bad)?);
            if record < 8 || record > entry.len() {
                return Err(bad());
            }
            let (kind, len) = if sb.old_directories {
                (None, usize::from(sb.u16_at(entry, 6).ok_or_else(bad)?))
            } else {
                (entry.u8_at(6).and_then(kind_of), usize::from(entry.u8_at(7).ok_or_else(bad)?))
            };
            at += record;
            // Inode 0 is a deleted entry, and 1 a whiteout (DT_WHT).
            if inode < 2 {
                continue;
            }
            let name = entry.get(8..8 + len).filter(|_| 8 + len <= record).ok_or_else(bad)?;
            if usable(name) && visit(&Raw { place, inode, kind, name }).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// The kind in an entry (DT_*).
fn kind_of(code: u8) -> Option<Kind> {
    match code {
        0 => None,
        4 => Some(Kind::Directory),
        8 => Some(Kind::File),
        10 => Some(Kind::Symlink),
        _ => Some(Kind::Other),
    }
}

impl Node for UfsNode {
    fn metadata(&self) -> Result<Metadata> {
        let Inode { kind, size, modified, .. } = self.inode;
        Ok(Metadata { kind, size, modified: Some(modified) })
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        match self.inode.kind {
            Kind::File => {}
            Kind::Directory => return Err(Error::IsADirectory(self.shown())),
            Kind::Symlink | Kind::Other => return Err(Error::NotAFile(self.shown())),
        }
        check(self.inode.size, offset, to.len() as u64)?;
        self.inode.read(&self.volume, offset, to)
    }

    fn entries(&self, visit: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        self.trail()?;
        self.each(0, &mut |raw| visit(Entry { name: raw.name.to_vec(), kind: raw.kind }))
    }

    fn lookup(&self, name: &[u8]) -> Result<Option<NodeRef>> {
        let trail = self.trail()?;
        let list = |note: &mut Note| {
            self.each(0, &mut |raw| {
                note(raw.name, raw.place as u32);
                ControlFlow::Continue(())
            })
        };
        let get = |place: u32| {
            let mut found = None;
            let piece = place - place % DIRECTORY_BLOCK as u32;
            self.each(u64::from(piece), &mut |raw| {
                if raw.place < u64::from(place) {
                    return ControlFlow::Continue(());
                }
                found = (raw.name == name).then_some(raw.inode);
                ControlFlow::Break(())
            })?;
            Ok(found)
        };
        let found = self.volume.index.find(self.inode.number, name, list, get)?;
        let Some(number) = found.map(u64::from) else { return Ok(None) };
        let inode = Inode::load(&self.volume, number)?;
        let trail = match inode.kind {
            Kind::Directory => Some(trail.down(self.volume.sb.kind(), number)?),
            _ => None,
        };
        Ok(Some(Arc::new(Self { volume: self.volume.clone(), inode, trail })))
    }

    fn link(&self) -> Result<Vec<u8>> {
        if self.inode.kind != Kind::Symlink {
            return Err(Error::NotAFile(self.shown()));
        }
        if self.inode.size > MAX_LINK {
            return Err(Error::TooLarge(format!("a symbolic link of {} bytes", self.inode.size)));
        }
        if let Some(target) = self.inode.short_link(&self.volume.sb) {
            return Ok(target.to_vec());
        }
        let mut target = vec![0; self.inode.size as usize];
        self.inode.read(&self.volume, 0, &mut target)?;
        Ok(target)
    }
}
