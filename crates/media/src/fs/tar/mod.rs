//! tar archives: ustar (POSIX.1-1988), pax (POSIX.1-2001) and GNU, with their files with holes.
//!
//! Archives without the word `ustar` in their first header are not recognized, as by GRUB.

pub(super) mod archive;
mod header;
mod pax;
mod sparse;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use archive::{Body, Builder, Item};
use header::{BLOCK, Header};
use pax::Records;

use crate::{Error, FileSystem, Result, SourceRef};

/// GRUB's name.
const KIND: &str = "tarfs";
/// Longest name and longest set of pax records.
const MAX_NAME: u64 = 64 << 10;
const MAX_RECORDS: u64 = 1 << 20;

fn bad(what: impl Into<String>) -> Error {
    Error::corrupt(KIND, what)
}

/// Opens the file system, if it is one.
pub fn open(source: &SourceRef, _: &[SourceRef]) -> Result<Option<Arc<dyn FileSystem>>> {
    if source.size() < BLOCK {
        return Ok(None);
    }
    let first = source.read_vec(0, BLOCK as usize)?;
    // GNU's label of a volume goes without the word.
    if !header::is_sound(&first) || !(header::is_ustar(&first) || first.get(156) == Some(&b'V')) {
        return Ok(None);
    }
    let mut reader = Reader { source, at: 0, builder: Builder::new(KIND), label: None, modified: None };
    while reader.member()? {}
    Ok(Some(reader.builder.finish(source, reader.label)))
}

struct Reader<'a> {
    source: &'a SourceRef,
    at: u64,
    builder: Builder,
    label: Option<String>,
    /// The time of all members from here on.
    modified: Option<i64>,
}

impl Reader<'_> {
    /// The next block, if it isn't the end.
    fn header(&mut self) -> Result<Option<Header>> {
        if self.at.checked_add(BLOCK).is_none_or(|end| end > self.source.size()) {
            return Ok(None);
        }
        let block = self.source.read_vec(self.at, BLOCK as usize)?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if !header::is_sound(&block) {
            return Err(bad(format!("checksum of the header at {:#x} differs", self.at)));
        }
        self.at += BLOCK;
        Header::parse(&block).map(Some).ok_or_else(|| bad(format!("header at {:#x}", self.at - BLOCK)))
    }

    /// Steps over `size` bytes and what fills their last block.
    fn skip(&mut self, size: u64) -> Result<()> {
        let next = size.checked_next_multiple_of(BLOCK).and_then(|size| self.at.checked_add(size));
        self.at = next
            .filter(|_| self.at + size <= self.source.size())
            .ok_or_else(|| bad("a member is cut off"))?;
        Ok(())
    }

    /// The data of a header that describes the next one.
    fn text(&mut self, size: u64, limit: u64) -> Result<Vec<u8>> {
        if size > limit {
            return Err(Error::TooLarge(format!("a name or a set of records of this {KIND}")));
        }
        let text = self.source.read_vec(self.at, size as usize)?;
        self.skip(size)?;
        Ok(text)
    }

    /// Reads a member with all of its headers; false at the end.
    fn member(&mut self) -> Result<bool> {
        let (mut name, mut target) = (None, None);
        let mut records = Records::default();
        loop {
            let Some(header) = self.header()? else { return Ok(false) };
            match header.kind {
                b'L' => name = Some(header::text(&self.text(header.size, MAX_NAME)?).to_vec()),
                b'K' => target = Some(header::text(&self.text(header.size, MAX_NAME)?).to_vec()),
                b'x' => records.add(&self.text(header.size, MAX_RECORDS)?)?,
                b'g' => {
                    // Of what may hold for all members, only a time makes sense.
                    let mut global = Records::default();
                    global.add(&self.text(header.size, MAX_RECORDS)?)?;
                    self.modified = global.modified.or(self.modified);
                }
                _ => {
                    let name = records.path.clone().or(name).unwrap_or_else(|| header.name.clone());
                    let target = records.link.clone().or(target).unwrap_or_else(|| header.target.clone());
                    self.add(&header, &name, target, &records)?;
                    return Ok(true);
                }
            }
        }
    }

    fn add(&mut self, header: &Header, name: &[u8], target: Vec<u8>, records: &Records) -> Result<()> {
        let size = records.size.unwrap_or(header.size);
        let modified = records.modified.or(self.modified).or(header.modified);
        // Only files have data, whatever the size of other members says; GNU's list of a folder too.
        let data = if matches!(header.kind, b'1'..=b'6') { 0 } else { size };
        match header.kind {
            b'5' | b'D' => self.builder.add_directory(name, modified)?,
            b'V' => self.label = Some(String::from_utf8_lossy(name).into_owned()),
            b'2' => {
                let item = Item { size: target.len() as u64, modified, body: Body::Symlink(target) };
                self.builder.add(name, item)?;
            }
            // A link to what isn't in the archive has nothing to show.
            b'1' => {
                if let Some(item) = self.builder.find(&target) {
                    self.builder.link(name, item)?;
                }
            }
            b'3' | b'4' | b'6' => {
                self.builder.add(name, Item { size: 0, modified, body: Body::Other })?;
            }
            b'M' => return Err(Error::unsupported(KIND, "an archive in several volumes")),
            b'S' => {
                let item = self.old_sparse(header, size, modified)?;
                self.builder.add(name, item)?;
            }
            _ if records.is_sparse() => {
                let item = sparse::from_records(self.source, self.at, size, records)?;
                self.builder
                    .add(records.sparse_name.as_deref().unwrap_or(name), Item { modified, ..item })?;
            }
            // What programs before ustar wrote for directories.
            _ if name.ends_with(b"/") => self.builder.add_directory(name, modified)?,
            _ => {
                self.builder.add(name, Item::file(self.at, size, modified))?;
            }
        }
        self.skip(data)
    }

    /// A file with holes in the GNU format: its map is in the header, and in blocks that follow.
    fn old_sparse(&mut self, header: &Header, size: u64, modified: Option<i64>) -> Result<Item> {
        let mut map = sparse::Map::default();
        let mut more = map.add_block(&header.block, 386, 4, 482)?;
        while more {
            let block = self.source.read_vec(self.at, BLOCK as usize)?;
            self.at += BLOCK;
            more = map.add_block(&block, 0, 21, 504)?;
        }
        let real = header::number(header.block.get(483..495).unwrap_or_default());
        let item = map.finish(self.at, size, real.ok_or_else(|| bad("size of a file with holes"))?)?;
        Ok(Item { modified, ..item })
    }
}
