//! ISO 9660 (ECMA-119) with Rock Ridge (IEEE P1282), Joliet and zisofs. The first session only.
//!
//! Rock Ridge wins over Joliet, as in GRUB and Linux. Without both, names are shown in lower case
//! and without a version, and their case doesn't matter.

mod boot;
mod record;
mod rock;
#[cfg(test)]
mod tests;
mod zisofs;

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

pub use boot::{BootImage, Emulation, boot_images};
use record::{Extent, Record};

use super::support::{BlockCache, Date, NameIndex, Trail, usable, utf8};
use crate::source::check;
use crate::{Entry, Error, Fields, FileSystem, Kind, Metadata, Node, NodeRef, Result, SourceRef};

const KIND: &str = "iso9660";
/// ECMA-119 6.1.2.
const SECTOR: u64 = 2048;
/// Volume descriptors start at sector 16 (6.2.1).
const FIRST_DESCRIPTOR: u64 = 16;
/// Most volume descriptors that are looked at.
const MAX_DESCRIPTORS: u64 = 64;
/// Largest directory, in bytes.
const MAX_DIRECTORY: u64 = 128 << 20;

/// What names mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    /// As in ECMA-119.
    Plain,
    /// UTF-16, big-endian.
    Joliet,
    /// Rock Ridge; its fields start after this many bytes (SUSP 5.3).
    Rock { skip: usize },
}

/// A mounted volume.
struct Volume {
    source: SourceRef,
    /// Size of a logical block (6.2.2).
    block: u64,
    names: Names,
    root: Record,
    label: Option<String>,
    /// The modification date, 17 bytes (8.4.26.1).
    date: [u8; 17],
    index: NameIndex,
    areas: BlockCache,
    unpacked: Mutex<zisofs::Last>,
}

/// Opens the file system, if it is one.
pub fn open(source: &SourceRef, _: &[SourceRef]) -> Result<Option<Arc<dyn FileSystem>>> {
    let mut primary = None;
    let mut joliet = None;
    for number in 0..MAX_DESCRIPTORS {
        let Some(sector) = descriptor(source, number)? else { break };
        match sector.first() {
            // 8.1.1: 1 is a primary descriptor, 2 a supplementary one, 255 ends the set.
            Some(1) if primary.is_none() => primary = Some(sector),
            Some(2) if joliet.is_none() && is_joliet(&sector) => joliet = Some(sector),
            Some(255) => break,
            _ => {}
        }
    }
    let Some(primary) = primary else { return Ok(None) };
    let mut volume = Volume::new(source, &primary, Names::Plain)?;
    if let Some(skip) = volume.rock_ridge()? {
        volume.names = Names::Rock { skip };
    } else if let Some(joliet) = joliet {
        volume = Volume::new(source, &joliet, Names::Joliet)?;
    }
    Ok(Some(Arc::new(Mounted(Arc::new(volume)))))
}

/// Volume descriptor `number`, if there is one.
fn descriptor(source: &SourceRef, number: u64) -> Result<Option<Vec<u8>>> {
    let at = (FIRST_DESCRIPTOR + number) * SECTOR;
    if source.size() < at + SECTOR {
        return Ok(None);
    }
    let sector = source.read_vec(at, SECTOR as usize)?;
    Ok((sector.get(1..6) == Some(b"CD001")).then_some(sector))
}

/// Joliet specification: the escape sequences of UCS-2 levels 1 to 3.
fn is_joliet(sector: &[u8]) -> bool {
    matches!(sector.get(88..91), Some(b"%/@" | b"%/C" | b"%/E"))
}

impl Volume {
    fn new(source: &SourceRef, sector: &[u8], names: Names) -> Result<Self> {
        let short = || Error::corrupt(KIND, "volume descriptor");
        let block = u64::from(sector.u16_at(128).ok_or_else(short)?);
        if !matches!(block, 512 | 1024 | 2048) {
            return Err(Error::corrupt(KIND, format!("a logical block of {block} bytes")));
        }
        let raw = record::Raw::parse(sector.get(156..190).unwrap_or_default())
            .ok_or_else(|| Error::corrupt(KIND, "the record of the root directory"))?;
        let mut root = raw.plain(block, Vec::new())?;
        root.kind = Kind::Directory;
        let name = sector.get(40..72).unwrap_or_default();
        let label = if names == Names::Joliet {
            utf8(name.as_chunks::<2>().0.iter().map(|pair| u16::from_be_bytes(*pair)))
        } else {
            name.to_vec()
        };
        let label = String::from_utf8_lossy(&label).trim_end_matches([' ', '\0']).to_owned();
        Ok(Self {
            source: source.clone(),
            block,
            names,
            root,
            label: Some(label).filter(|label| !label.is_empty()),
            date: sector.array(830).ok_or_else(short)?,
            index: NameIndex::new(),
            areas: BlockCache::new(source.clone(), SECTOR as usize, 8),
            unpacked: Mutex::new(None),
        })
    }

    /// How many bytes Rock Ridge skips, if the root directory says that it is used.
    fn rock_ridge(&self) -> Result<Option<usize>> {
        let mut skip = None;
        record::each_raw(self, &self.root, 0, &mut |_, raw| {
            skip = rock::marker(raw.system_use);
            ControlFlow::Break(())
        })?;
        Ok(skip)
    }

    /// Fills `to` from `offset` of a record's extents. All of it is in them.
    fn read(&self, extents: &[Extent], mut offset: u64, mut to: &mut [u8]) -> Result<()> {
        for extent in extents {
            if to.is_empty() {
                return Ok(());
            }
            if offset >= extent.len {
                offset -= extent.len;
                continue;
            }
            let part = (extent.len - offset).min(to.len() as u64) as usize;
            let (now, rest) = to.split_at_mut(part);
            self.source.read_at(extent.start + offset, now)?;
            to = rest;
            offset = 0;
        }
        if to.is_empty() { Ok(()) } else { Err(Error::corrupt(KIND, "a file shorter than its size")) }
    }
}

/// A volume as a file system.
struct Mounted(Arc<Volume>);

impl FileSystem for Mounted {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn label(&self) -> Option<String> {
        self.0.label.clone()
    }

    fn uuid(&self) -> Option<String> {
        let digits = self.0.date.get(..16)?;
        if !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let text = std::str::from_utf8(digits).ok()?;
        let part = |from: usize| text.get(from..from + 2);
        let parts = [text.get(..4)?, part(4)?, part(6)?, part(8)?, part(10)?, part(12)?, part(14)?];
        Some(parts.join("-"))
    }

    fn modified(&self) -> Option<i64> {
        record::long_date(&self.0.date)
    }

    fn case_sensitive(&self) -> bool {
        self.0.names != Names::Plain
    }

    fn root(&self) -> Result<NodeRef> {
        let record = self.0.root.clone();
        let trail = Some(Trail::root(record.id()));
        Ok(Arc::new(IsoNode { volume: self.0.clone(), record, trail }))
    }
}

/// A file, directory or symbolic link.
struct IsoNode {
    volume: Arc<Volume>,
    record: Record,
    /// Only directories have one.
    trail: Option<Arc<Trail>>,
}

impl IsoNode {
    fn trail(&self) -> Result<&Arc<Trail>> {
        let name = || String::from_utf8_lossy(&self.record.name).into_owned();
        self.trail.as_ref().ok_or_else(|| Error::NotADirectory(name()))
    }
}

impl Node for IsoNode {
    fn metadata(&self) -> Result<Metadata> {
        let Record { kind, modified, .. } = self.record;
        Ok(Metadata { kind, size: self.record.size(), modified })
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        let name = || String::from_utf8_lossy(&self.record.name).into_owned();
        match self.record.kind {
            Kind::File => {}
            Kind::Directory => return Err(Error::IsADirectory(name())),
            Kind::Symlink | Kind::Other => return Err(Error::NotAFile(name())),
        }
        check(self.record.size(), offset, to.len() as u64)?;
        match &self.record.zisofs {
            Some(packed) => packed.read(&self.volume, &self.record, offset, to),
            None => self.volume.read(&self.record.extents, offset, to),
        }
    }

    fn entries(&self, visit: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        self.trail()?;
        record::each(&self.volume, &self.record, 0, &mut |_, record| {
            if !usable(&record.name) {
                return ControlFlow::Continue(());
            }
            visit(Entry { name: record.name, kind: Some(record.kind) })
        })
    }

    fn lookup(&self, name: &[u8]) -> Result<Option<NodeRef>> {
        let trail = self.trail()?;
        if !usable(name) {
            return Ok(None);
        }
        let plain = self.volume.names == Names::Plain;
        let wanted = if plain { name.to_ascii_lowercase() } else { name.to_vec() };
        let list = |note: &mut super::support::Note| {
            record::each(&self.volume, &self.record, 0, &mut |at, record| {
                note(&record.name, at as u32);
                ControlFlow::Continue(())
            })
        };
        let get = |at: u32| {
            let mut found = None;
            record::each(&self.volume, &self.record, u64::from(at), &mut |_, record| {
                found = Some(record).filter(|record| record.name == wanted);
                ControlFlow::Break(())
            })?;
            Ok(found)
        };
        let Some(record) = self.volume.index.find(self.record.id(), &wanted, list, get)? else {
            return Ok(None);
        };
        let trail = match record.kind {
            Kind::Directory => Some(trail.down(KIND, record.id())?),
            _ => None,
        };
        Ok(Some(Arc::new(Self { volume: self.volume.clone(), record, trail })))
    }

    fn link(&self) -> Result<Vec<u8>> {
        self.record
            .link
            .clone()
            .ok_or_else(|| Error::NotAFile(String::from_utf8_lossy(&self.record.name).into_owned()))
    }
}
