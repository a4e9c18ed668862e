//! Files, directories and symbolic links.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::checksum::name_hash;
use super::tree::{Key, Root};
use super::{ROOT_ITEM, Shared, bad, extent};
use crate::{Entry, Error, Fields, Kind, Metadata, Node, NodeRef, Result};

/// Types of items.
const INODE_ITEM: u8 = 1;
const DIR_ITEM: u8 = 84;
const DIR_INDEX: u8 = 96;
/// Longest target of a symbolic link, as Linux's PATH_MAX.
const MAX_LINK: u64 = 4096;

/// An inode of a subvolume.
pub struct Inode {
    shared: Arc<Shared>,
    root: Root,
    number: u64,
    meta: Metadata,
}

impl Inode {
    /// Inode `number` of the tree at `root`.
    pub fn load(shared: &Arc<Shared>, root: Root, number: u64) -> Result<Self> {
        let item = shared.trees.get(root, Key::new(number, INODE_ITEM, 0))?;
        let item = item.ok_or_else(|| bad(format!("inode {number} is missing")))?;
        // Offsets in `struct btrfs_inode_item`.
        let fields = item.u64_at(16).zip(item.u32_at(52)).zip(item.u64_at(136));
        let ((size, mode), time) = fields.ok_or_else(|| bad(format!("inode {number} is too short")))?;
        let kind = match mode & 0o170_000 {
            0o100_000 => Kind::File,
            0o040_000 => Kind::Directory,
            0o120_000 => Kind::Symlink,
            _ => Kind::Other,
        };
        let meta = Metadata { kind, size, modified: Some(time as i64) };
        Ok(Self { shared: shared.clone(), root, number, meta })
    }

    fn name(&self) -> String {
        format!("inode {}", self.number)
    }

    fn directory(&self) -> Result<()> {
        if self.meta.kind == Kind::Directory { Ok(()) } else { Err(Error::NotADirectory(self.name())) }
    }

    fn read(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        crate::source::check(self.meta.size, offset, to.len() as u64)?;
        extent::read(&self.shared, self.root, self.number, offset, to)
    }
}

/// One name in an item of a directory, which has several if their hashes are the same.
struct Listed<'a> {
    location: Key,
    kind: u8,
    name: &'a [u8],
}

/// Splits a directory item.
fn names(item: &[u8]) -> impl Iterator<Item = Result<Listed<'_>>> {
    let mut rest = item;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let parse = || {
            let (data, len) = (rest.u16_at(25)? as usize, rest.u16_at(27)? as usize);
            let name = Listed {
                location: Key::read(rest, 0)?,
                kind: rest.u8_at(29)?,
                name: rest.get(30..30 + len)?,
            };
            Some((name, rest.get(30 + len + data..)?))
        };
        let parsed = parse();
        rest = parsed.as_ref().map_or(&[], |(_, after)| after);
        Some(parsed.map(|(name, _)| name).ok_or_else(|| bad("a directory entry is too short")))
    })
}

/// Where the entry `name` of a directory leads.
pub fn find(shared: &Shared, root: Root, directory: u64, name: &[u8]) -> Result<Option<Key>> {
    let key = Key::new(directory, DIR_ITEM, name_hash(name));
    let Some(item) = shared.trees.get(root, key)? else { return Ok(None) };
    for entry in names(&item) {
        let entry = entry?;
        if entry.name == name {
            return Ok(Some(entry.location));
        }
    }
    Ok(None)
}

impl Node for Inode {
    fn metadata(&self) -> Result<Metadata> {
        Ok(self.meta)
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        match self.meta.kind {
            Kind::File => self.read(offset, to),
            Kind::Directory => Err(Error::IsADirectory(self.name())),
            _ => Err(Error::NotAFile(self.name())),
        }
    }

    fn entries(&self, visit: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        self.directory()?;
        self.shared.trees.each(self.root, self.number, DIR_INDEX, &mut |_, item| {
            for entry in names(item) {
                let entry = entry?;
                if matches!(entry.name, b"" | b"." | b"..") {
                    continue;
                }
                let kind = match entry.kind {
                    1 => Some(Kind::File),
                    2 => Some(Kind::Directory),
                    3..=6 => Some(Kind::Other),
                    7 => Some(Kind::Symlink),
                    _ => None,
                };
                if visit(Entry { name: entry.name.to_vec(), kind }).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    fn lookup(&self, name: &[u8]) -> Result<Option<NodeRef>> {
        self.directory()?;
        let Some(location) = find(&self.shared, self.root, self.number, name)? else { return Ok(None) };
        match location.kind {
            INODE_ITEM => Ok(Some(Arc::new(Self::load(&self.shared, self.root, location.object)?))),
            // As for GRUB, a snapshot leads into the subvolumes that its original has.
            ROOT_ITEM => match self.shared.tree(location.object)? {
                Some((root, dir)) => Ok(Some(Arc::new(Self::load(&self.shared, root, dir)?))),
                None => Ok(Some(Arc::new(Gone))),
            },
            kind => Err(bad(format!("a directory entry leads to an item of type {kind}"))),
        }
    }

    fn link(&self) -> Result<Vec<u8>> {
        if self.meta.kind != Kind::Symlink || self.meta.size > MAX_LINK {
            return Err(Error::NotAFile(format!("{} is no symbolic link", self.name())));
        }
        let mut target = vec![0; self.meta.size as usize];
        self.read(0, &mut target)?;
        Ok(target)
    }
}

/// What a snapshot shows of a subvolume that was deleted: an empty directory.
struct Gone;

impl Node for Gone {
    fn metadata(&self) -> Result<Metadata> {
        Ok(Metadata { kind: Kind::Directory, size: 0, modified: None })
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<()> {
        Err(Error::IsADirectory("a deleted subvolume".into()))
    }

    fn entries(&self, _: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        Ok(())
    }

    fn lookup(&self, _: &[u8]) -> Result<Option<NodeRef>> {
        Ok(None)
    }

    fn link(&self) -> Result<Vec<u8>> {
        Err(Error::NotAFile("a deleted subvolume is no symbolic link".into()))
    }
}
