//! Directory records (ECMA-119 9.1).

use std::ops::ControlFlow;

use super::rock::Rock;
use super::zisofs::Packed;
use super::{Date, KIND, MAX_DIRECTORY, Names, SECTOR, Volume, utf8};
use crate::{Error, Fields, Kind, Result};

/// Most parts of one file: 4 TiB and more.
const MAX_EXTENTS: usize = 4096;
/// Length of a record without name and system use.
const HEAD: usize = 33;
/// How much of a directory is read at once, after the first sector.
const CHUNK: u64 = 32 * SECTOR;

/// Consecutive bytes of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) start: u64,
    pub(super) len: u64,
}

/// One record as it is on the disk.
pub(super) struct Raw<'a> {
    bytes: &'a [u8],
    name: &'a [u8],
    pub(super) system_use: &'a [u8],
}

/// A file, directory or symbolic link; all its records in one.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) extents: Vec<Extent>,
    pub(super) modified: Option<i64>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) zisofs: Option<Packed>,
}

impl Record {
    /// Where it is on the disk.
    pub(super) fn id(&self) -> u64 {
        self.extents.first().map_or(0, |extent| extent.start)
    }

    /// Bytes on the disk.
    pub(super) fn stored(&self) -> u64 {
        self.extents.iter().map(|extent| extent.len).sum()
    }

    pub(super) fn size(&self) -> u64 {
        match (&self.link, &self.zisofs) {
            (Some(link), _) => link.len() as u64,
            (None, Some(packed)) => packed.size(),
            (None, None) => self.stored(),
        }
    }
}

impl<'a> Raw<'a> {
    /// The record that fills the start of `bytes`.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let len = usize::from(*bytes.first()?);
        let bytes = bytes.get(..len)?;
        let name = bytes.get(HEAD..HEAD + usize::from(bytes.u8_at(32)?))?;
        // 9.1.12: a pad byte keeps what follows at an even place.
        let system_use = bytes.get((HEAD + name.len()).next_multiple_of(2)..).unwrap_or_default();
        Some(Self { bytes, name, system_use })
    }

    fn flags(&self) -> u8 {
        self.bytes.u8_at(25).unwrap_or_default()
    }

    /// `.` and `..` (9.1.11).
    fn is_dot(&self) -> bool {
        matches!(self.name, [0 | 1])
    }

    /// Whether the next record continues the file (9.1.6).
    fn goes_on(&self) -> bool {
        self.flags() & 0x80 != 0
    }

    fn extent(&self, block: u64) -> Option<Extent> {
        let blocks = u64::from(self.bytes.u32_at(2)?) + u64::from(self.bytes.u8_at(1)?);
        Some(Extent { start: blocks * block, len: u64::from(self.bytes.u32_at(10)?) })
    }

    /// The record without Rock Ridge.
    pub(super) fn plain(&self, block: u64, name: Vec<u8>) -> Result<Record> {
        let extent = self.extent(block).ok_or_else(|| Error::corrupt(KIND, "a short directory record"))?;
        if self.bytes.u8_at(26).unwrap_or_default() != 0 {
            return Err(Error::unsupported(KIND, "an interleaved file"));
        }
        Ok(Record {
            name,
            kind: if self.flags() & 2 != 0 { Kind::Directory } else { Kind::File },
            extents: vec![extent],
            modified: self.bytes.array(18).and_then(short_date),
            link: None,
            zisofs: None,
        })
    }

    /// The record with all that is known of it; `None` if it isn't shown.
    fn full(&self, volume: &Volume) -> Result<Option<Record>> {
        let Names::Rock { skip } = volume.names else {
            let joliet = volume.names == Names::Joliet;
            let name = if joliet { joliet_name(self.name) } else { plain_name(self.name) };
            return self.plain(volume.block, name).map(Some);
        };
        let rock = Rock::parse(volume, self.system_use.get(skip..).unwrap_or_default())?;
        if rock.relocated {
            return Ok(None);
        }
        let name = rock.name.unwrap_or_else(|| plain_name(self.name));
        let mut record = self.plain(volume.block, name)?;
        record.modified = rock.modified.or(record.modified);
        if let Some(block) = rock.child {
            record.kind = Kind::Directory;
            record.extents = vec![directory_at(volume, block)?];
        } else if record.kind == Kind::File {
            record.kind = match (rock.kind, &rock.link) {
                (Some(Kind::Symlink), Some(_)) => Kind::Symlink,
                (Some(Kind::Symlink), None) => Kind::Other,
                (Some(Kind::Other), _) => Kind::Other,
                _ => Kind::File,
            };
        }
        match record.kind {
            Kind::Symlink => record.link = rock.link,
            Kind::File => record.zisofs = rock.zisofs,
            Kind::Directory | Kind::Other => {}
        }
        Ok(Some(record))
    }
}

/// The directory at `block`, whose `.` says how long it is: a relocated one (RRIP 4.1.5.1).
fn directory_at(volume: &Volume, block: u32) -> Result<Extent> {
    let bad = || Error::corrupt(KIND, format!("a relocated directory at block {block}"));
    let start = u64::from(block) * volume.block;
    let bytes: Vec<u8> = volume.source.read_vec(start, HEAD + 1)?;
    let len = bytes.u32_at(10).ok_or_else(bad)?;
    if bytes.u32_at(2) != Some(block) || bytes.u8_at(25).is_none_or(|flags| flags & 2 == 0) {
        return Err(bad());
    }
    Ok(Extent { start, len: u64::from(len) })
}

/// Calls `visit` with the place and the first record of each record from `from` on.
pub(super) fn each_raw(
    volume: &Volume,
    directory: &Record,
    from: u64,
    visit: &mut dyn FnMut(u64, &Raw) -> ControlFlow<()>,
) -> Result<()> {
    let size = directory.stored();
    if size > MAX_DIRECTORY {
        return Err(Error::TooLarge(format!("a directory of {size} bytes")));
    }
    let mut bytes = Vec::new();
    let mut start = from - from % SECTOR;
    let mut skip = (from - start) as usize;
    while start < size {
        let chunk = if bytes.is_empty() { SECTOR } else { CHUNK };
        bytes.resize(chunk.min(size - start) as usize, 0);
        volume.read(&directory.extents, start, &mut bytes)?;
        for (sector, at) in bytes.chunks(SECTOR as usize).zip((start..).step_by(SECTOR as usize)) {
            let mut place = std::mem::take(&mut skip);
            // A record lies within a sector; a zero ends the sector (6.8.1.1).
            while sector.get(place).is_some_and(|len| *len != 0) {
                let at = at + place as u64;
                let raw = Raw::parse(sector.get(place..).unwrap_or_default()).ok_or_else(|| {
                    Error::corrupt(KIND, format!("directory record at {at} of its directory"))
                })?;
                place += raw.bytes.len();
                if visit(at, &raw).is_break() {
                    return Ok(());
                }
            }
        }
        start += bytes.len() as u64;
    }
    Ok(())
}

/// Calls `visit` with the place and what the records from `from` on describe, but not `.` and `..`.
pub(super) fn each(
    volume: &Volume,
    directory: &Record,
    from: u64,
    visit: &mut dyn FnMut(u64, Record) -> ControlFlow<()>,
) -> Result<()> {
    let mut started: Option<(u64, Record)> = None;
    let mut failed = None;
    each_raw(volume, directory, from, &mut |at, raw| match gather(volume, &mut started, at, raw) {
        Ok(Some((at, record))) => visit(at, record),
        Ok(None) => ControlFlow::Continue(()),
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    })?;
    failed.map_or(Ok(()), Err)
}

/// Adds a record to the file that was started, and returns the file once it is complete.
fn gather(
    volume: &Volume,
    started: &mut Option<(u64, Record)>,
    at: u64,
    raw: &Raw,
) -> Result<Option<(u64, Record)>> {
    // 0x04 is an associated file (9.1.6): not one of its own.
    if raw.is_dot() || raw.flags() & 4 != 0 {
        return Ok(None);
    }
    if let Some((_, record)) = started {
        if record.extents.len() >= MAX_EXTENTS {
            return Err(Error::TooLarge(format!("a file of more than {MAX_EXTENTS} parts")));
        }
        record.extents.extend(raw.extent(volume.block));
    } else {
        *started = raw.full(volume)?.map(|record| (at, record));
    }
    Ok(if raw.goes_on() { None } else { started.take() })
}

/// A name as GRUB shows it: no version, no dot that only ends it, lower case.
fn plain_name(name: &[u8]) -> Vec<u8> {
    let end = name.iter().rposition(|byte| *byte == b';').unwrap_or(name.len());
    let name = name.get(..end).unwrap_or_default();
    name.strip_suffix(b".").unwrap_or(name).to_ascii_lowercase()
}

/// A Joliet name without its version.
fn joliet_name(name: &[u8]) -> Vec<u8> {
    let name = utf8(name.as_chunks::<2>().0.iter().map(|pair| u16::from_be_bytes(*pair)));
    match name.iter().rposition(|byte| *byte == b';') {
        Some(end) if name.get(end + 1..).is_some_and(|tail| tail.iter().all(u8::is_ascii_digit)) => {
            name.get(..end).map(<[u8]>::to_vec).unwrap_or_default()
        }
        _ => name,
    }
}

/// A date of 7 bytes (9.1.5).
pub(super) fn short_date(bytes: [u8; 7]) -> Option<i64> {
    let [year, month, day, hour, minute, second, zone] = bytes.map(u32::from);
    let date = Date { year: year + 1900, month, day, hour, minute, second };
    Some(date.seconds()? - i64::from(zone as u8 as i8) * 15 * 60)
}

/// A date of 17 bytes (8.4.26.1).
pub(super) fn long_date(bytes: &[u8; 17]) -> Option<i64> {
    let number = |from: usize, to: usize| std::str::from_utf8(bytes.get(from..to)?).ok()?.parse().ok();
    let date = Date {
        year: number(0, 4)?,
        month: number(4, 6)?,
        day: number(6, 8)?,
        hour: number(8, 10)?,
        minute: number(10, 12)?,
        second: number(12, 14)?,
    };
    // The offset from Greenwich in quarters of an hour.
    Some(date.seconds()? - i64::from(bytes[16] as i8) * 15 * 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_version_and_case() {
        assert_eq!(plain_name(b"README.;1"), b"readme");
        assert_eq!(plain_name(b"VMLINUZ.GZ;12"), b"vmlinuz.gz");
        assert_eq!(plain_name(b"BOOT"), b"boot");
        let wide = |text: &str| text.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<u8>>();
        assert_eq!(joliet_name(&wide("Grüße.txt;1")), "Grüße.txt".as_bytes());
        assert_eq!(joliet_name(&wide("a;b")), b"a;b");
    }

    #[test]
    fn dates_know_their_zone() {
        assert_eq!(short_date([124, 3, 1, 12, 0, 0, 4]), Some(1_709_294_400 - 3600));
        assert_eq!(long_date(b"2024030112000000\xfc"), Some(1_709_294_400 + 3600));
        assert_eq!(long_date(b"0000000000000000\0"), None);
    }
}
