//! Btrfs, read-only, over any number of devices.
//!
//! All profiles, also with a device missing where the profile allows it; all compressions; metadata
//! and data are checked, and read from another copy if one is wrong. The log tree is not replayed:
//! what an application synced just before a crash may be missing, as it is for GRUB.
//!
//! Layouts are those of `include/uapi/linux/btrfs_tree.h` and of the "On-disk format" page of
//! btrfs-progs. Memory: 16 MiB of nodes, 32 MiB of chunks, 8 MiB of unpacked extents.

mod checksum;
mod extent;
mod inode;
mod parity;
mod superblock;
#[cfg(test)]
mod tests;
mod tree;
mod volume;

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use superblock::Superblock;
use tree::{Key, Root, Start, Trees};
use volume::Volume;

use crate::{Error, Fields, FileSystem, NodeRef, Result, SourceRef};

/// GRUB's name.
const KIND: &str = "btrfs";

/// Types of items.
const ROOT_ITEM: u8 = 132;
const CHUNK_ITEM: u8 = 228;
/// Trees with fixed numbers.
const TOP_LEVEL: u64 = 5;
const CHECKSUMS: u64 = 7;
/// All chunks have this object.
const CHUNKS: u64 = 256;
/// Most bytes of chunk items: some ten million times a million of data.
const MAX_CHUNK_BYTES: usize = 24 << 20;

fn bad(what: impl Into<String>) -> Error {
    Error::corrupt(KIND, what)
}

/// What all nodes of a file system share.
struct Shared {
    trees: Trees,
    superblock: Superblock,
    /// The tree of trees.
    roots: Root,
    checksums: Option<Root>,
    unpacked: Mutex<extent::Cache>,
}

/// A Btrfs.
pub struct Btrfs(Arc<Shared>);

/// Opens the file system, if it is one. Its root directory is that of the default subvolume.
pub fn open(source: &SourceRef, peers: &[SourceRef]) -> Result<Option<Arc<dyn FileSystem>>> {
    Ok(open_volume(source, peers)?.map(|fs| -> Arc<dyn FileSystem> { Arc::new(fs) }))
}

/// As [`open`], for who wants to choose the subvolume.
pub fn open_volume(source: &SourceRef, peers: &[SourceRef]) -> Result<Option<Btrfs>> {
    let Some(found) = Superblock::read(source)? else { return Ok(None) };
    let (mut volume, superblock) = Volume::new(source, found, peers);
    volume.add_system(&superblock.system_chunks)?;
    let mut trees = Trees::new(volume, &superblock);
    let chunks = chunks(&trees, &superblock)?;
    for (logical, item) in chunks {
        trees.volume.add(logical, &item)?;
    }
    let roots =
        Root { address: superblock.root, level: superblock.root_level, generation: superblock.generation };
    let mut shared =
        Shared { trees, superblock, roots, checksums: None, unpacked: Mutex::new(extent::Cache::default()) };
    shared.checksums = shared.tree(CHECKSUMS)?.map(|(root, _)| root);
    Ok(Some(Btrfs(Arc::new(shared))))
}

/// The items of the chunk tree.
fn chunks(trees: &Trees, superblock: &Superblock) -> Result<Vec<(u64, Vec<u8>)>> {
    let root = Root {
        address: superblock.chunk_root,
        level: superblock.chunk_root_level,
        generation: superblock.chunk_root_generation,
    };
    let (mut chunks, mut bytes) = (Vec::new(), 0);
    trees.each(root, CHUNKS, CHUNK_ITEM, &mut |logical, item| {
        bytes += item.len();
        if bytes > MAX_CHUNK_BYTES {
            return Err(Error::TooLarge("the chunk tree of this btrfs".into()));
        }
        chunks.push((logical, item.to_vec()));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(chunks)
}

impl Shared {
    /// Tree number `id`, and the inode of its root directory.
    fn tree(&self, id: u64) -> Result<Option<(Root, u64)>> {
        let mut found = None;
        let last = Key::new(id, ROOT_ITEM, u64::MAX);
        self.trees.walk(self.roots, last, Start::UpTo, &mut |key, item| {
            if (key.object, key.kind) == (id, ROOT_ITEM) {
                // Offsets in `struct btrfs_root_item`.
                let root = item.u64_at(176).zip(item.u8_at(238)).zip(item.u64_at(160));
                let ((address, level), generation) = root.ok_or_else(|| bad("a root item is too short"))?;
                let dir = item.u64_at(168).unwrap_or_default();
                found = Some((Root { address, level, generation }, dir));
            }
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }
}

impl Btrfs {
    /// The top level, whatever the default subvolume is.
    pub fn top_level(&self) -> Result<NodeRef> {
        self.subvolume(TOP_LEVEL)
    }

    /// The root directory of the subvolume with this number.
    pub fn subvolume(&self, id: u64) -> Result<NodeRef> {
        let missing = || Error::NotFound(format!("subvolume {id}"));
        let (root, dir) = self.0.tree(id)?.ok_or_else(missing)?;
        Ok(Arc::new(inode::Inode::load(&self.0, root, dir)?))
    }

    /// The number of the default subvolume, if one is named.
    fn default_subvolume(&self) -> Result<Option<u64>> {
        let location = inode::find(&self.0, self.0.roots, self.0.superblock.root_dir, b"default")?;
        Ok(location.filter(|key| key.kind == ROOT_ITEM).map(|key| key.object))
    }
}

impl FileSystem for Btrfs {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn label(&self) -> Option<String> {
        Some(self.0.superblock.label.clone()).filter(|label| !label.is_empty())
    }

    fn uuid(&self) -> Option<String> {
        Some(self.0.superblock.uuid.clone())
    }

    fn root(&self) -> Result<NodeRef> {
        self.subvolume(self.default_subvolume()?.unwrap_or(TOP_LEVEL))
    }
}
