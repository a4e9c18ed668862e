//! Inodes, and data that is stored in them.

use super::{KIND, Volume, superblock};
use crate::{Error, Fields, Kind, Result};

/// `i_flags`: encrypted.
const ENCRYPTED: u32 = 0x800;
/// `i_flags`: `i_blocks` counts blocks of the file system, not of 512 bytes.
const HUGE: u32 = 0x4_0000;
/// `i_flags`: `i_block` is the root of a tree of extents.
const EXTENTS: u32 = 0x8_0000;
/// `i_flags`: the data is in the inode.
const INLINE: u32 = 0x1000_0000;
/// `i_flags`: names in this directory are looked up whatever their case.
const CASEFOLD: u32 = 0x4000_0000;
/// `h_magic` of the attributes after an inode.
const ATTRIBUTES: u32 = 0xea02_0000;
/// `e_name_index` of the name space `system.`.
const SYSTEM: u8 = 7;

/// What a reader needs of an inode.
#[derive(Debug)]
pub struct Inode {
    pub kind: Kind,
    pub size: u64,
    pub modified: i64,
    pub encrypted: bool,
    pub extents: bool,
    pub casefold: bool,
    /// `i_block`: pointers, extents, or the first 60 bytes of data.
    pub block: [u8; 60],
    /// The data is in `block` and this.
    pub inline: Option<Vec<u8>>,
    /// Whether a symbolic link's target is in `block`.
    pub fast_link: bool,
}

impl Inode {
    /// Takes it out of `inode_size` bytes.
    pub fn parse(raw: &[u8], sb: &superblock::Superblock) -> Result<Self> {
        let u16_at = |at| raw.u16_at(at).unwrap_or(0);
        let u32_at = |at| raw.u32_at(at).unwrap_or(0);
        // `i_mode`
        let kind = match u16_at(0) >> 12 {
            8 => Kind::File,
            4 => Kind::Directory,
            10 => Kind::Symlink,
            1 | 2 | 6 | 12 => Kind::Other,
            _ => return Err(Error::corrupt(KIND, "an inode that is not in use")),
        };
        let flags = u32_at(0x20);
        let high = kind == Kind::File || kind == Kind::Directory && sb.incompat & superblock::LARGEDIR != 0;
        let size = u64::from(u32_at(4)) | if high { u64::from(u32_at(0x6c)) << 32 } else { 0 };
        let extra = if raw.len() > 128 { usize::from(u16_at(0x80)) } else { 0 };
        // The two lowest bits of `i_mtime_extra` extend the seconds, if the inode reaches that far.
        let epoch = if extra >= 0x8c - 0x80 { i64::from(u32_at(0x88) & 3) << 32 } else { 0 };
        let modified = i64::from(u32_at(0x10) as i32) + epoch;
        let inline = if flags & INLINE != 0 { Some(attribute(raw, extra)) } else { None };
        let attributes = u64::from(u32_at(0x68)) | u64::from(u16_at(0x76)) << 32;
        let unit = if flags & HUGE != 0 { sb.block_size / 512 } else { 1 };
        let sectors = (u64::from(u32_at(0x1c)) | u64::from(u16_at(0x74)) << 32) * unit;
        // A block of attributes counts as a cluster, which isn't smaller than a block.
        let fast_link =
            inline.is_none() && size < 60 && flags & EXTENTS == 0 && (sectors == 0 || attributes != 0);
        Ok(Self {
            kind,
            size,
            modified,
            encrypted: flags & ENCRYPTED != 0,
            extents: flags & EXTENTS != 0,
            casefold: flags & CASEFOLD != 0,
            block: raw.array(0x28).ok_or_else(|| Error::corrupt(KIND, "a short inode"))?,
            inline,
            fast_link: kind == Kind::Symlink && fast_link,
        })
    }

    /// Fills `to` from `offset` with data that is in the inode; `None` if it is elsewhere.
    pub fn read_inline(&self, offset: u64, to: &mut [u8]) -> Option<()> {
        let empty = Vec::new();
        let more = match &self.inline {
            Some(more) => more,
            None if self.fast_link => &empty,
            None => return None,
        };
        let bytes = self.block.iter().chain(more).copied().chain(std::iter::repeat(0));
        to.iter_mut().zip(bytes.skip(offset.min(1 << 20) as usize)).for_each(|(to, byte)| *to = byte);
        Some(())
    }

    /// Refuses what can't be read.
    pub fn readable(&self) -> Result<()> {
        if !self.encrypted {
            return Ok(());
        }
        let what = match self.kind {
            Kind::Directory => "an encrypted directory",
            Kind::Symlink => "an encrypted symbolic link",
            _ => "an encrypted file",
        };
        Err(Error::unsupported(KIND, what))
    }
}

/// The value of `system.data`, which continues `i_block`; empty if there is none.
fn attribute(raw: &[u8], extra: usize) -> Vec<u8> {
    let find = || {
        let area = raw.get(128usize.checked_add(extra)?..)?;
        if area.u32_at(0)? != ATTRIBUTES {
            return None;
        }
        let area = area.get(4..)?;
        let mut at = 0usize;
        while area.u32_at(at)? != 0 {
            let name = usize::from(area.u8_at(at)?);
            // Neither in another inode, nor of another name.
            if area.u8_at(at + 1)? == SYSTEM
                && area.get(at + 16..at + 16 + name)? == b"data"
                && area.u32_at(at + 4)? == 0
            {
                let start = usize::from(area.u16_at(at + 2)?);
                let len = area.u32_at(at + 8)? as usize;
                return area.get(start..start.checked_add(len)?).map(<[u8]>::to_vec);
            }
            at += (16 + name).next_multiple_of(4);
        }
        None
    };
    find().unwrap_or_default()
}

impl Volume {
    /// Inode number `number`.
    pub fn inode(&self, number: u32) -> Result<Inode> {
        let bad = || Error::corrupt(KIND, format!("inode {number} does not exist"));
        let (at, in_table) = self.sb.descriptor(number).ok_or_else(bad)?;
        let mut descriptor = [0; 64];
        let descriptor = &mut descriptor[..self.sb.descriptor_size()];
        self.read(at, descriptor)?;
        let table = self.sb.inode_table(descriptor);
        let at =
            table.checked_mul(self.sb.block_size).and_then(|at| at.checked_add(in_table)).ok_or_else(bad)?;
        let mut raw = vec![0; self.sb.inode_size];
        self.read(at, &mut raw)?;
        Inode::parse(&raw, &self.sb)
    }
}
