//! Files, directories and symbolic links.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use super::metadata::Place;
use super::{STORED, Shared, bad};
use crate::{Entry, Error, Fields, Kind, Metadata, Node, NodeRef, Result};

/// Bytes that all inodes begin with.
const HEADER: usize = 16;
/// The number that says "no fragment".
const NO_FRAGMENT: u32 = u32::MAX;
/// Longest target of a symbolic link (SQUASHFS: PATH_MAX).
const MAX_LINK: u32 = 4096;
/// A directory's size counts 3 bytes for `.` and `..` that aren't stored.
const DOTS: u32 = 3;
/// Most entries behind one header, and longest name.
const MAX_RUN: u32 = 256;
const MAX_NAME: usize = 256;
/// Most blocks of a file: 8 TiB with the usual size. The list is read one by one.
const MAX_BLOCKS: u64 = 1 << 26;
/// Waypoints in a file's list of blocks.
const WAYPOINTS: u64 = 1024;

/// Takes an entry's name, its type and where its inode is; says whether to go on.
type Visit<'a> = dyn FnMut(&[u8], u16, u64) -> ControlFlow<()> + 'a;

/// An inode.
pub struct Inode {
    shared: Arc<Shared>,
    number: u32,
    meta: Metadata,
    body: Body,
}

enum Body {
    File(File),
    Directory { listing: Place, len: u32, index: Option<(Place, u16)> },
    Symlink { target: Place },
    Other,
}

struct File {
    /// Blocks, and a rest in a fragment at an offset.
    blocks: u64,
    fragment: Option<(u32, u32)>,
    /// Places in the list of blocks, as far as they are known: every `step`th one.
    step: u64,
    waypoints: Mutex<Vec<Waypoint>>,
    /// Where the last walk ended.
    last: Mutex<Waypoint>,
}

/// Where a block's size is listed, and where its data is.
#[derive(Clone, Copy)]
struct Waypoint {
    block: u64,
    list: Place,
    data: u64,
}

impl Inode {
    /// The inode at `place`.
    pub fn load(shared: &Arc<Shared>, place: Place) -> Result<Self> {
        let mut place = place;
        let metadata = &shared.metadata;
        let header: [u8; HEADER] = metadata.array(&mut place)?;
        let number = header.u32_at(12).unwrap_or_default();
        let damaged = || bad(format!("inode {number} is of no known type"));
        let (kind, size, body) = match header.u16_at(0).unwrap_or_default() {
            1 => Self::directory(shared, &metadata.array::<16>(&mut place)?, place).ok_or_else(damaged)?,
            8 => Self::large_directory(shared, &metadata.array::<24>(&mut place)?, place)
                .ok_or_else(damaged)?,
            2 => Self::file(shared, &metadata.array::<16>(&mut place)?, place).ok_or_else(damaged)?,
            9 => Self::large_file(shared, &metadata.array::<40>(&mut place)?, place).ok_or_else(damaged)?,
            3 | 10 => {
                let size = metadata.array::<8>(&mut place)?.u32_at(4).unwrap_or_default();
                (Kind::Symlink, size.into(), Body::Symlink { target: place })
            }
            4..=7 | 11..=14 => (Kind::Other, 0, Body::Other),
            _ => return Err(damaged()),
        };
        let modified = header.u32_at(8).map(i64::from);
        if matches!(&body, Body::File(file) if file.blocks > MAX_BLOCKS) {
            return Err(Error::TooLarge(format!("the file of inode {number}")));
        }
        Ok(Self { shared: shared.clone(), number, meta: Metadata { kind, size, modified }, body })
    }

    fn directory(shared: &Shared, fields: &[u8], _: Place) -> Option<(Kind, u64, Body)> {
        let block = shared.directories.checked_add(fields.u32_at(0)?.into())?;
        let len = u32::from(fields.u16_at(8)?);
        let listing = Place { block, offset: fields.u16_at(10)?.into() };
        let body = Body::Directory { listing, len: len.saturating_sub(DOTS), index: None };
        Some((Kind::Directory, len.into(), body))
    }

    fn large_directory(shared: &Shared, fields: &[u8], after: Place) -> Option<(Kind, u64, Body)> {
        let len = fields.u32_at(4)?;
        let block = shared.directories.checked_add(fields.u32_at(8)?.into())?;
        let listing = Place { block, offset: fields.u16_at(18)?.into() };
        let index = Some((after, fields.u16_at(16)?));
        let body = Body::Directory { listing, len: len.saturating_sub(DOTS), index };
        Some((Kind::Directory, len.into(), body))
    }

    fn file(shared: &Shared, fields: &[u8], list: Place) -> Option<(Kind, u64, Body)> {
        let (start, size) = (fields.u32_at(0)?.into(), fields.u32_at(12)?.into());
        Some(Self::blocks(shared, start, size, fields.u32_at(4)?, fields.u32_at(8)?, list))
    }

    fn large_file(shared: &Shared, fields: &[u8], list: Place) -> Option<(Kind, u64, Body)> {
        let (start, size) = (fields.u64_at(0)?, fields.u64_at(8)?);
        Some(Self::blocks(shared, start, size, fields.u32_at(28)?, fields.u32_at(32)?, list))
    }

    fn blocks(
        shared: &Shared,
        start: u64,
        size: u64,
        fragment: u32,
        offset: u32,
        list: Place,
    ) -> (Kind, u64, Body) {
        let block_size = u64::from(shared.block_size);
        let fragment = (fragment != NO_FRAGMENT).then_some((fragment, offset));
        let blocks = if fragment.is_some() { size / block_size } else { size.div_ceil(block_size) };
        let first = Waypoint { block: 0, list, data: start };
        let file = File {
            blocks,
            fragment,
            step: (blocks / WAYPOINTS).max(WAYPOINTS),
            waypoints: Mutex::new(vec![first]),
            last: Mutex::new(first),
        };
        (Kind::File, size, Body::File(file))
    }

    fn name(&self) -> String {
        format!("inode {}", self.number)
    }

    /// Visits entries from `place` on, `len` bytes of them.
    fn list(&self, place: Place, len: u32, visit: &mut Visit) -> Result<()> {
        let (mut place, mut left) = (place, len);
        let metadata = &self.shared.metadata;
        let short = || bad("a directory ends too early");
        while left > 0 {
            let header: [u8; 12] = metadata.array(&mut place)?;
            left = left.checked_sub(12).ok_or_else(short)?;
            let (count, block) = header.u32_at(0).zip(header.u32_at(4)).ok_or_else(short)?;
            if count >= MAX_RUN {
                return Err(bad("too many entries in a part of a directory"));
            }
            for _ in 0..=count {
                let entry: [u8; 8] = metadata.array(&mut place)?;
                let [offset, _, kind, size] = [0, 2, 4, 6].map(|at| entry.u16_at(at).unwrap_or_default());
                let size = size as usize + 1;
                if size > MAX_NAME {
                    return Err(bad("a name is too long"));
                }
                let name = metadata.bytes(&mut place, size)?;
                left = left.checked_sub(8 + size as u32).ok_or_else(short)?;
                if visit(&name, kind, u64::from(block) << 16 | u64::from(offset)).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Where in a large directory the part begins that would have `name`, and how many bytes are before it.
    fn part(&self, listing: Place, index: Place, count: u16, name: &[u8]) -> Result<(Place, u32)> {
        let mut place = index;
        let mut part = (listing, 0);
        for _ in 0..count {
            let entry: [u8; 12] = self.shared.metadata.array(&mut place)?;
            let [before, block, size] = [0, 4, 8].map(|at| entry.u32_at(at).unwrap_or_default());
            let size = size as usize + 1;
            if size > MAX_NAME {
                return Err(bad("a name is too long"));
            }
            if self.shared.metadata.bytes(&mut place, size)?.as_slice() > name {
                break;
            }
            let block = self.shared.directories.checked_add(block.into());
            let block = block.ok_or_else(|| bad("an index of a directory"))?;
            // All blocks but the last of a table hold 8 KiB.
            let offset = (listing.offset + before as usize) % 8192;
            part = (Place { block, offset }, before);
        }
        Ok(part)
    }

    /// The data of block `number`, `None` for a hole.
    fn data(&self, file: &File, number: u64) -> Result<Option<Arc<Vec<u8>>>> {
        let lock = |last: &Mutex<Waypoint>| *last.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = lock(&file.last);
        {
            let waypoints = file.waypoints.lock().unwrap_or_else(PoisonError::into_inner);
            let near = waypoints.partition_point(|waypoint| waypoint.block <= number);
            let near = waypoints.get(near.saturating_sub(1)).copied();
            if let Some(near) = near.filter(|near| at.block > number || near.block > at.block) {
                at = near;
            }
        }
        loop {
            let mut list = at.list;
            let size = u32::from_le_bytes(self.shared.metadata.array(&mut list)?);
            if at.block == number {
                *file.last.lock().unwrap_or_else(PoisonError::into_inner) = at;
                let hole = size & (STORED - 1) == 0;
                return if hole {
                    Ok(None)
                } else {
                    self.shared.block(at.data, size, &self.shared.blocks).map(Some)
                };
            }
            let data = at.data.checked_add((size & (STORED - 1)).into());
            at = Waypoint { block: at.block + 1, list, data: data.ok_or_else(|| bad("place of a block"))? };
            if at.block.is_multiple_of(file.step) {
                let mut waypoints = file.waypoints.lock().unwrap_or_else(PoisonError::into_inner);
                if waypoints.last().is_some_and(|last| last.block < at.block) {
                    waypoints.push(at);
                }
            }
        }
    }

    fn read(&self, file: &File, offset: u64, to: &mut [u8]) -> Result<()> {
        let block_size = u64::from(self.shared.block_size);
        let (mut offset, mut to) = (offset, to);
        while !to.is_empty() {
            let (number, within) = (offset / block_size, (offset % block_size) as usize);
            let len = (block_size as usize - within).min(to.len());
            let (now, later) = to.split_at_mut(len);
            let (bytes, start) = match file.fragment {
                Some((fragment, start)) if number >= file.blocks => {
                    (Some(self.shared.fragment(fragment)?), start as usize)
                }
                _ => (self.data(file, number)?, 0),
            };
            match bytes {
                None => now.fill(0),
                Some(bytes) => {
                    let first = start.checked_add(within);
                    let from = first.and_then(|first| bytes.get(first..first.checked_add(len)?));
                    now.copy_from_slice(from.ok_or_else(|| bad("a block is too short"))?);
                }
            }
            offset += len as u64;
            to = later;
        }
        Ok(())
    }
}

impl Node for Inode {
    fn metadata(&self) -> Result<Metadata> {
        Ok(self.meta)
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        match &self.body {
            Body::File(file) => {
                crate::source::check(self.meta.size, offset, to.len() as u64)?;
                self.read(file, offset, to)
            }
            Body::Directory { .. } => Err(Error::IsADirectory(self.name())),
            _ => Err(Error::NotAFile(self.name())),
        }
    }

    fn entries(&self, visit: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        let Body::Directory { listing, len, .. } = self.body else {
            return Err(Error::NotADirectory(self.name()));
        };
        self.list(listing, len, &mut |name, kind, _| {
            if matches!(name, b"." | b"..") {
                return ControlFlow::Continue(());
            }
            let kind = match kind {
                1 => Some(Kind::Directory),
                2 => Some(Kind::File),
                3 => Some(Kind::Symlink),
                4..=7 => Some(Kind::Other),
                _ => None,
            };
            visit(Entry { name: name.to_vec(), kind })
        })
    }

    fn lookup(&self, name: &[u8]) -> Result<Option<NodeRef>> {
        let Body::Directory { listing, len, index } = self.body else {
            return Err(Error::NotADirectory(self.name()));
        };
        let (place, before) = match index {
            Some((index, count)) => self.part(listing, index, count, name)?,
            None => (listing, 0),
        };
        let mut found = None;
        self.list(place, len.saturating_sub(before), &mut |other, _, reference| {
            if other == name {
                found = Some(reference);
            }
            // Names are in order.
            if other >= name { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        match found {
            Some(reference) => Ok(Some(Arc::new(self.shared.inode(reference)?))),
            None => Ok(None),
        }
    }

    fn link(&self) -> Result<Vec<u8>> {
        let Body::Symlink { target } = self.body else {
            return Err(Error::NotAFile(format!("{} is no symbolic link", self.name())));
        };
        if self.meta.size > MAX_LINK.into() {
            return Err(bad("the target of a symbolic link is too long"));
        }
        self.shared.metadata.bytes(&mut { target }, self.meta.size as usize)
    }
}
