//! cpio archives: `newc` and `crc` (SVR4), `odc` (POSIX.1-1988), and the old binary format.
//!
//! Layouts are those of cpio(5). What follows the trailer is left alone, as GRUB does.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use super::tar::archive::{Body, Builder, Item};
use crate::{Error, Fields, FileSystem, Result, SourceRef};

/// Longest name and longest target of a link.
const MAX_NAME: u64 = 4096;
/// The name of the member after the last one.
const TRAILER: &[u8] = b"TRAILER!!!";
/// The longest header.
const HEADER: u64 = 110;

/// Number that every header begins with, in the formats without letters.
const MAGIC: u16 = 0o070_707;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// Hexadecimal; also with sums.
    New,
    /// Octal.
    Odc,
    /// Binary, little-endian.
    Little,
    /// Binary, big-endian.
    Big,
}

impl Format {
    fn of(start: &[u8]) -> Option<Self> {
        match start.get(..6) {
            Some(b"070701" | b"070702") => return Some(Self::New),
            Some(b"070707") => return Some(Self::Odc),
            _ => {}
        }
        if start.u16_at(0) == Some(MAGIC) {
            return Some(Self::Little);
        }
        (start.u16_be(0) == Some(MAGIC)).then_some(Self::Big)
    }

    /// GRUB's name.
    fn name(self) -> &'static str {
        match self {
            Self::New => "newc",
            Self::Odc => "odc",
            Self::Little => "cpiofs",
            Self::Big => "cpiofs_be",
        }
    }

    fn header_len(self) -> u64 {
        match self {
            Self::New => 110,
            Self::Odc => 76,
            Self::Little | Self::Big => 26,
        }
    }

    /// What names and contents are filled up to.
    fn alignment(self) -> u64 {
        match self {
            Self::New => 4,
            Self::Odc => 1,
            Self::Little | Self::Big => 2,
        }
    }
}

/// What a header says.
struct Header {
    /// Device and inode: what hard links have in common.
    inode: (u64, u64),
    mode: u64,
    links: u64,
    modified: u64,
    name_len: u64,
    size: u64,
}

fn digits(bytes: &[u8], at: usize, len: usize, radix: u32) -> Option<u64> {
    let digits = bytes.get(at..at + len)?;
    digits.iter().try_fold(0, |sum: u64, byte| {
        let digit = char::from(*byte).to_digit(radix)?;
        Some(sum * u64::from(radix) + u64::from(digit))
    })
}

impl Header {
    /// Parses a header; `None` if it is none of this format.
    fn parse(format: Format, bytes: &[u8]) -> Option<Self> {
        if Format::of(bytes)? != format {
            return None;
        }
        match format {
            Format::New => {
                let field = |at| digits(bytes, at, 8, 16);
                Some(Self {
                    inode: (field(62)? << 32 | field(70)?, field(6)?),
                    mode: field(14)?,
                    links: field(38)?,
                    modified: field(46)?,
                    name_len: field(94)?,
                    size: field(54)?,
                })
            }
            Format::Odc => {
                let field = |at, len| digits(bytes, at, len, 8);
                Some(Self {
                    inode: (field(6, 6)?, field(12, 6)?),
                    mode: field(18, 6)?,
                    links: field(36, 6)?,
                    modified: field(48, 11)?,
                    name_len: field(59, 6)?,
                    size: field(65, 11)?,
                })
            }
            Format::Little | Format::Big => {
                let half = |at| -> Option<u64> {
                    let number = if format == Format::Little { bytes.u16_at(at) } else { bytes.u16_be(at) };
                    number.map(u64::from)
                };
                // The upper half of a long number comes first, whatever the order of bytes.
                let long = |at| Some(half(at)? << 16 | half(at + 2)?);
                Some(Self {
                    inode: (half(2)?, half(4)?),
                    mode: half(6)?,
                    links: half(12)?,
                    modified: long(16)?,
                    name_len: half(20)?,
                    size: long(22)?,
                })
            }
        }
    }
}

/// Opens the file system, if it is one.
pub fn open(source: &SourceRef, _: &[SourceRef]) -> Result<Option<Arc<dyn FileSystem>>> {
    let start = source.read_vec(0, source.size().min(HEADER) as usize)?;
    let Some(format) = Format::of(&start) else { return Ok(None) };
    let mut reader =
        Reader { source, format, at: 0, builder: Builder::new(format.name()), links: HashMap::new() };
    match reader.member() {
        Ok(true) => {}
        Ok(false) => return Ok(Some(reader.builder.finish(source, None))),
        // Two bytes may be those of the binary format by chance.
        Err(_) if matches!(format, Format::Little | Format::Big) => return Ok(None),
        Err(error) => return Err(error),
    }
    while reader.member()? {}
    Ok(Some(reader.builder.finish(source, None)))
}

struct Reader<'a> {
    source: &'a SourceRef,
    format: Format,
    at: u64,
    builder: Builder,
    /// Files with several names, of which only the last member has the content.
    links: HashMap<(u64, u64), usize>,
}

impl Reader<'_> {
    fn bad(&self, what: &str) -> Error {
        Error::corrupt(self.format.name(), format!("{what} at {:#x}", self.at))
    }

    /// `len` bytes from here on; moves past them and what fills them up.
    fn take(&mut self, start: u64, len: u64) -> Result<()> {
        let end = start.checked_add(len).filter(|end| *end <= self.source.size());
        let end = end.and_then(|end| end.checked_next_multiple_of(self.format.alignment()));
        self.at = end.ok_or_else(|| self.bad("a member is cut off"))?;
        Ok(())
    }

    /// Reads a member; false at the trailer.
    fn member(&mut self) -> Result<bool> {
        let len = self.format.header_len();
        if self.at.saturating_add(len) > self.source.size() {
            return Err(self.bad("the trailer is missing"));
        }
        let bytes = self.source.read_vec(self.at, len as usize)?;
        let header = Header::parse(self.format, &bytes).ok_or_else(|| self.bad("a header is wrong"))?;
        if !(1..=MAX_NAME).contains(&header.name_len) {
            return Err(self.bad("a name has a wrong length"));
        }
        let start = self.at + len;
        self.take(start, header.name_len)?;
        let mut name = self.source.read_vec(start, header.name_len as usize)?;
        if name.pop() != Some(0) || name.contains(&0) {
            return Err(self.bad("a name doesn't end"));
        }
        if name == TRAILER {
            return Ok(false);
        }
        let content = self.at;
        self.take(content, header.size)?;
        self.add(&header, &name, content)?;
        Ok(true)
    }

    fn add(&mut self, header: &Header, name: &[u8], content: u64) -> Result<()> {
        let modified = i64::try_from(header.modified).ok();
        match header.mode & 0o170_000 {
            0o040_000 => self.builder.add_directory(name, modified)?,
            0o100_000 => self.file(header, name, content)?,
            0o120_000 => {
                if header.size > MAX_NAME {
                    return Err(self.bad("the target of a link is too long"));
                }
                let target = self.source.read_vec(content, header.size as usize)?;
                let item = Item { size: header.size, modified, body: Body::Symlink(target) };
                self.builder.add(name, item)?;
            }
            0o010_000 | 0o020_000 | 0o060_000 | 0o140_000 => {
                self.builder.add(name, Item { size: 0, modified, body: Body::Other })?;
            }
            _ => return Err(self.bad("a member of an unknown type")),
        }
        Ok(())
    }

    fn file(&mut self, header: &Header, name: &[u8], content: u64) -> Result<()> {
        let item = Item::file(content, header.size, i64::try_from(header.modified).ok());
        let linked = self.format == Format::New && header.links > 1;
        if linked && let Some(known) = self.links.get(&header.inode).copied() {
            self.builder.link(name, known)?;
            if header.size > 0
                && let Some(known) = self.builder.item(known)
            {
                *known = item;
            }
            return Ok(());
        }
        let added = self.builder.add(name, item)?;
        if linked && let Some(added) = added {
            self.links.insert(header.inode, added);
        }
        Ok(())
    }
}
