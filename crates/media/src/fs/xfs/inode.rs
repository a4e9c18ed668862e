//! Inodes.

use std::ops::{ControlFlow, Range};

use super::super::runs::{Filler, Visit};
use super::{KIND, Volume, map};
use crate::{Error, Fields, Kind, Result};

/// `di_magic`: `IN`.
const MAGIC: u16 = 0x494e;
/// `di_flags`: the data is on the realtime device.
const REALTIME: u16 = 1;
/// `di_flags2`: times are nanoseconds since 1901.
const BIGTIME: u64 = 8;
/// `di_flags2`: the number of extents has 64 bits.
const MANY_EXTENTS: u64 = 0x10;
/// Magic number of a block of a symbolic link, `XSLM`, and how long its header is.
const LINK_MAGIC: u32 = 0x5853_4c4d;
const LINK_HEADER: usize = 56;
/// Longest target of a symbolic link (`XFS_SYMLINK_MAXLEN`).
pub const MAX_LINK: u64 = 1024;

/// Where the data is.
#[derive(Debug)]
enum Fork {
    /// In the inode.
    Local(Vec<u8>),
    /// In the extents of this list.
    Extents(Vec<u8>),
    /// In the extents of the tree with this root.
    Tree(Vec<u8>),
    /// Nowhere: devices.
    Nothing,
}

/// What a reader needs of an inode.
#[derive(Debug)]
pub struct Inode {
    pub kind: Kind,
    pub size: u64,
    pub modified: i64,
    realtime: bool,
    fork: Fork,
}

fn bad(what: &str) -> Error {
    Error::corrupt(KIND, what)
}

impl Inode {
    fn parse(raw: &[u8]) -> Result<Self> {
        let u16_at = |at| raw.u16_be(at).unwrap_or(0);
        let version = raw.u8_at(4).unwrap_or(0);
        if u16_at(0) != MAGIC || !(1..=3).contains(&version) {
            return Err(bad("an inode without its magic number"));
        }
        let kind = match u16_at(2) >> 12 {
            8 => Kind::File,
            4 => Kind::Directory,
            10 => Kind::Symlink,
            1 | 2 | 6 | 12 => Kind::Other,
            _ => return Err(bad("an inode that is not in use")),
        };
        let flags2 = if version == 3 { raw.u64_be(120).unwrap_or(0) } else { 0 };
        let modified = raw.u64_be(40).unwrap_or(0);
        let modified = if flags2 & BIGTIME != 0 {
            // Counted from the earliest second that 32 bits can hold.
            (modified / 1_000_000_000) as i64 - (1 << 31)
        } else {
            i64::from((modified >> 32) as i32)
        };
        let extents = if flags2 & MANY_EXTENTS != 0 { raw.u64_be(24) } else { raw.u32_be(76).map(u64::from) };
        let core = if version == 3 { 176 } else { 100 };
        let data = raw.get(core..).ok_or_else(|| bad("a short inode"))?;
        // `di_forkoff`: where the attributes start, in units of 8 bytes.
        let data = match raw.u8_at(82).unwrap_or(0) {
            0 => data,
            units => data.get(..usize::from(units) * 8).ok_or_else(|| bad("the fork of attributes"))?,
        };
        let size = raw.u64_be(56).unwrap_or(0);
        if size > i64::MAX as u64 {
            return Err(bad("size of an inode"));
        }
        let fork = match raw.u8_at(5) {
            Some(1) => {
                Fork::Local(data.get(..size as usize).ok_or_else(|| bad("data in an inode"))?.to_vec())
            }
            Some(2) => {
                let len = extents.unwrap_or(0).saturating_mul(16);
                Fork::Extents(data.get(..len as usize).ok_or_else(|| bad("number of extents"))?.to_vec())
            }
            Some(3) => Fork::Tree(data.to_vec()),
            _ if kind == Kind::Other => Fork::Nothing,
            _ => return Err(bad("format of an inode")),
        };
        Ok(Self { kind, size, modified, realtime: u16_at(90) & REALTIME != 0, fork })
    }

    /// The data, if it is in the inode.
    pub fn local(&self) -> Option<&[u8]> {
        if let Fork::Local(bytes) = &self.fork { Some(bytes) } else { None }
    }
}

impl Volume {
    /// Inode number `number`.
    pub fn inode(&self, number: u64) -> Result<Inode> {
        let mut raw = vec![0; self.sb.inode_size];
        self.read(self.sb.inode(number)?, &mut raw)?;
        Inode::parse(&raw)
    }

    /// Visits a file's runs among the blocks `range`.
    pub fn runs(&self, inode: &Inode, range: &Range<u64>, visit: &mut Visit) -> Result<()> {
        match &inode.fork {
            Fork::Extents(records) => map::list(records, range, &mut 0, visit).map(drop),
            Fork::Tree(root) => map::tree(self, root, range, visit),
            Fork::Local(_) | Fork::Nothing => Ok(()),
        }
    }

    /// A file's bytes.
    pub fn read_file(&self, inode: &Inode, offset: u64, to: &mut [u8]) -> Result<()> {
        crate::source::check(inode.size, offset, to.len() as u64)?;
        if inode.realtime {
            return Err(Error::unsupported(KIND, "a file on the realtime device"));
        }
        if let Some(local) = inode.local() {
            let range = offset as usize..offset as usize + to.len();
            to.copy_from_slice(local.get(range).ok_or_else(|| bad("data in an inode"))?);
            return Ok(());
        }
        let mut filler = Filler::new(KIND, self.sb.block_size, offset, to);
        self.runs(inode, &filler.blocks(), &mut |run| {
            let start = self.sb.block(run.physical, run.count)?;
            filler.add(run, |skip, part| self.read(start + skip, part))?;
            Ok(ControlFlow::Continue(()))
        })?;
        filler.finish()
    }

    /// A symbolic link's target.
    pub fn target(&self, inode: &Inode) -> Result<Vec<u8>> {
        if inode.size > MAX_LINK {
            return Err(bad("target of a symbolic link"));
        }
        let len = inode.size as usize;
        let mut target = vec![0; len];
        if !self.sb.v5 || inode.local().is_some() {
            self.read_file(inode, 0, &mut target)?;
            return Ok(target);
        }
        // Each extent has a header. 512 bytes of a block are the least that isn't header.
        target.clear();
        self.runs(inode, &(0..4), &mut |run| {
            let mut bytes = vec![0; (run.count.min(4) * self.sb.block_size) as usize];
            self.read(self.sb.block(run.physical, run.count)?, &mut bytes)?;
            if bytes.u32_be(0) != Some(LINK_MAGIC) || bytes.u32_be(4) != Some(target.len() as u32) {
                return Err(bad("a block of a symbolic link"));
            }
            let part = bytes.u32_be(8).unwrap_or(0) as usize;
            target.extend_from_slice(
                bytes.get(LINK_HEADER..LINK_HEADER + part).ok_or_else(|| bad("a symbolic link"))?,
            );
            Ok(if target.len() < len { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        if target.len() == len { Ok(target) } else { Err(bad("length of a symbolic link")) }
    }
}
