//! The content of an attribute, wherever it is.

use std::sync::{Arc, Mutex, PoisonError};

use super::record::{Attribute, Record};
use super::{KIND, Volume, attribute, lznt};
use crate::{Error, Fields, Result};

/// Largest attribute list that Windows makes.
const MAX_LIST: u64 = 256 << 10;
/// Most runs of one stream: 24 MiB.
const MAX_RUNS: usize = 1 << 20;
/// Largest unit of compression: 16 clusters of 4 KiB are 64 KiB.
const MAX_UNIT: u64 = 1 << 20;

/// The content of an attribute.
pub(super) enum Stream {
    Resident(Vec<u8>),
    Mapped(Box<Mapped>),
}

/// Content in clusters.
pub(super) struct Mapped {
    runs: Vec<Run>,
    size: u64,
    /// What follows is zeros.
    initialized: u64,
    flags: u16,
    /// Clusters of a unit of compression.
    unit: u64,
    /// The unit unpacked last.
    last: Mutex<Option<(u64, Arc<Vec<u8>>)>>,
}

/// Consecutive clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// The first one's number in the stream.
    vcn: u64,
    len: u64,
    /// Where it is; a hole is nowhere.
    lcn: Option<u64>,
}

/// Reads the whole table of files: its first record says where the rest is.
pub(super) fn find_mft(volume: &mut Volume, first: &Record) -> Result<()> {
    let data = first.attributes().find(|found| found.kind == attribute::DATA && found.name.is_empty());
    let data = data.ok_or_else(|| Error::corrupt(KIND, "the table of files has no content"))?;
    volume.mft = Stream::start(volume, &data)?;
    let Some(list) = list(volume, first)? else { return Ok(()) };
    for (number, id) in pieces(&list, attribute::DATA, &[]).into_iter().skip(1) {
        // Each piece is in what the pieces before it hold.
        let record = Record::load(volume, number, 0)?;
        let piece = piece(&record, attribute::DATA, id)?;
        let mut mft = std::mem::replace(&mut volume.mft, Stream::Resident(Vec::new()));
        mft.extend(volume, &piece)?;
        volume.mft = mft;
    }
    Ok(())
}

/// The attribute list of a file, if it has one.
fn list(volume: &Volume, record: &Record) -> Result<Option<Vec<u8>>> {
    match record.attributes().find(|found| found.kind == attribute::ATTRIBUTE_LIST) {
        Some(list) => Stream::start(volume, &list)?.all(volume, MAX_LIST).map(Some),
        None => Ok(None),
    }
}

/// The records and identifiers of the pieces of an attribute, in their order.
fn pieces(list: &[u8], kind: u32, name: &[u8]) -> Vec<(u64, u16)> {
    let mut found = Vec::new();
    let mut rest = list;
    while let Some(len) = rest.u16_at(4).map(usize::from) {
        // An entry has 26 bytes and its name.
        let Some((entry, later)) = rest.split_at_checked(len).filter(|_| len >= 26) else { break };
        rest = later;
        let start = usize::from(entry.u8_at(7).unwrap_or_default());
        let named = entry.get(start..start + 2 * usize::from(entry.u8_at(6).unwrap_or_default()));
        if entry.u32_at(0) == Some(kind) && named == Some(name) {
            let number = entry.u64_at(16).unwrap_or_default() & 0xffff_ffff_ffff;
            found.push((number, entry.u16_at(24).unwrap_or_default()));
        }
    }
    found
}

/// The attribute `id` of a record.
fn piece(record: &Record, kind: u32, id: u16) -> Result<Attribute<'_>> {
    record.attributes().find(|found| found.kind == kind && found.id == id).ok_or_else(|| {
        Error::corrupt(KIND, format!("a part of an attribute is not in file record {}", record.number))
    })
}

impl Stream {
    /// The attribute of a file with this kind and name.
    pub(super) fn find(volume: &Volume, record: &Record, kind: u32, name: &[u8]) -> Result<Option<Self>> {
        let Some(list) = list(volume, record)? else {
            let found = record.attributes().find(|found| found.kind == kind && found.name == name);
            return found.map(|found| Self::start(volume, &found)).transpose();
        };
        let mut stream: Option<Self> = None;
        for (number, id) in pieces(&list, kind, name) {
            let loaded;
            let holder = if number == record.number {
                record
            } else {
                loaded = Record::load(volume, number, 0)?;
                if loaded.base() != record.number {
                    return Err(Error::corrupt(KIND, format!("file record {number} is of another file")));
                }
                &loaded
            };
            let piece = piece(holder, kind, id)?;
            match &mut stream {
                Some(stream) => stream.extend(volume, &piece)?,
                None => stream = Some(Self::start(volume, &piece)?),
            }
        }
        Ok(stream)
    }

    /// The first or only piece of an attribute.
    fn start(volume: &Volume, piece: &Attribute) -> Result<Self> {
        let bad = || Error::corrupt(KIND, format!("an attribute of kind {:#x}", piece.kind));
        if piece.resident {
            return Ok(Self::Resident(piece.value().ok_or_else(bad)?.to_vec()));
        }
        let (size, initialized) = (piece.bytes.u64_at(48), piece.bytes.u64_at(56));
        let mut mapped = Mapped {
            runs: Vec::new(),
            size: size.ok_or_else(bad)?,
            initialized: initialized.ok_or_else(bad)?,
            flags: piece.flags,
            unit: 0,
            last: Mutex::new(None),
        };
        let log = piece.bytes.u8_at(34).ok_or_else(bad)?;
        if piece.flags & 0xff != 0 && log != 0 {
            mapped.unit = 1 << log.min(20);
            if mapped.unit * volume.cluster > MAX_UNIT {
                return Err(Error::unsupported(KIND, format!("a compression unit of 2^{log} clusters")));
            }
        }
        mapped.extend(volume, piece)?;
        Ok(Self::Mapped(Box::new(mapped)))
    }

    fn extend(&mut self, volume: &Volume, piece: &Attribute) -> Result<()> {
        match self {
            Self::Mapped(mapped) if !piece.resident => mapped.extend(volume, piece),
            _ => Err(Error::corrupt(KIND, "a resident attribute in parts")),
        }
    }

    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Resident(bytes) => bytes.len() as u64,
            Self::Mapped(mapped) => mapped.size,
        }
    }

    /// Why this can't be read.
    pub(super) fn refusal(&self) -> Option<String> {
        match self {
            Self::Mapped(mapped) if mapped.flags & 0x4000 != 0 => Some("an encrypted file".into()),
            Self::Mapped(mapped) if mapped.flags & 0xff > 1 => {
                Some(format!("compression method {}", mapped.flags & 0xff))
            }
            Self::Resident(_) | Self::Mapped(_) => None,
        }
    }

    /// All of it, if it isn't larger than `limit`.
    pub(super) fn all(&self, volume: &Volume, limit: u64) -> Result<Vec<u8>> {
        let size = self.size();
        if size > limit {
            return Err(Error::corrupt(KIND, format!("an attribute of {size} bytes (limit {limit})")));
        }
        let mut bytes = vec![0; size as usize];
        self.read(volume, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `to` from `offset`. All of it is in the stream.
    pub(super) fn read(&self, volume: &Volume, offset: u64, to: &mut [u8]) -> Result<()> {
        let mapped = match self {
            Self::Resident(bytes) => {
                let end = offset as usize + to.len();
                let part = bytes.get(offset as usize..end);
                to.copy_from_slice(part.ok_or_else(|| Error::corrupt(KIND, "a short attribute"))?);
                return Ok(());
            }
            Self::Mapped(mapped) => mapped,
        };
        let written = mapped.initialized.saturating_sub(offset).min(to.len() as u64) as usize;
        let (data, zeros) = to.split_at_mut(written);
        zeros.fill(0);
        if mapped.unit == 0 {
            mapped.plain(volume, offset, data)
        } else {
            mapped.packed(volume, offset, data)
        }
    }
}

impl Mapped {
    /// Adds the runs of a piece: pairs of a length and a signed distance from the run before.
    fn extend(&mut self, volume: &Volume, piece: &Attribute) -> Result<()> {
        let bad = || Error::corrupt(KIND, "the map of a file's clusters");
        let mut vcn = self.runs.last().map_or(0, |run| run.vcn + run.len);
        if piece.bytes.u64_at(16) != Some(vcn) {
            return Err(bad());
        }
        let limit = volume.source.size() / volume.cluster;
        let start = usize::from(piece.bytes.u16_at(32).ok_or_else(bad)?);
        let mut rest = piece.bytes.get(start..).ok_or_else(bad)?;
        let mut lcn = 0i64;
        while let Some(head) = rest.u8_at(0).filter(|head| *head != 0) {
            let (length, distance) = (usize::from(head & 0xf), usize::from(head >> 4));
            let (pair, later) = rest.split_at_checked(1 + length + distance).ok_or_else(bad)?;
            rest = later;
            let len = number(&pair[1..=length]).and_then(|len| u64::try_from(len).ok()).ok_or_else(bad)?;
            let end = vcn.checked_add(len).filter(|end| *end < 1 << 52 && len > 0).ok_or_else(bad)?;
            let place = if distance == 0 {
                None
            } else {
                lcn = number(&pair[1 + length..]).and_then(|step| lcn.checked_add(step)).ok_or_else(bad)?;
                let first = u64::try_from(lcn).map_err(|_| bad())?;
                if first.checked_add(len).is_none_or(|end| end > limit) {
                    return Err(bad());
                }
                Some(first)
            };
            if self.runs.len() >= MAX_RUNS {
                return Err(Error::TooLarge(format!("a file in more than {MAX_RUNS} pieces")));
            }
            self.runs.push(Run { vcn, len, lcn: place });
            vcn = end;
        }
        Ok(())
    }

    /// The run that holds cluster `vcn` of the stream.
    fn run(&self, vcn: u64) -> Result<Run> {
        let after = self.runs.partition_point(|run| run.vcn <= vcn);
        let run = after.checked_sub(1).and_then(|at| self.runs.get(at));
        run.filter(|run| vcn - run.vcn < run.len)
            .copied()
            .ok_or_else(|| Error::corrupt(KIND, "a file shorter than its size"))
    }

    fn plain(&self, volume: &Volume, mut offset: u64, mut to: &mut [u8]) -> Result<()> {
        while !to.is_empty() {
            let run = self.run(offset / volume.cluster)?;
            let within = offset - run.vcn * volume.cluster;
            let part = (run.len * volume.cluster - within).min(to.len() as u64);
            let (now, rest) = to.split_at_mut(part as usize);
            match run.lcn {
                Some(lcn) => volume.source.read_at(lcn * volume.cluster + within, now)?,
                None => now.fill(0),
            }
            offset += part;
            to = rest;
        }
        Ok(())
    }

    fn packed(&self, volume: &Volume, mut offset: u64, mut to: &mut [u8]) -> Result<()> {
        let bytes = self.unit * volume.cluster;
        while !to.is_empty() {
            let within = offset % bytes;
            let part = (bytes - within).min(to.len() as u64) as usize;
            let (now, rest) = to.split_at_mut(part);
            let stored = self.stored(offset / bytes)?;
            if stored == self.unit {
                self.plain(volume, offset, now)?;
            } else if stored == 0 {
                now.fill(0);
            } else {
                let unit = self.unpacked(volume, offset / bytes, stored)?;
                let part = unit.get(within as usize..within as usize + part);
                now.copy_from_slice(part.ok_or_else(|| Error::corrupt(KIND, "a compressed unit"))?);
            }
            offset += part as u64;
            to = rest;
        }
        Ok(())
    }

    /// How many clusters of a unit are stored: all, none, or the first ones of a compressed unit.
    fn stored(&self, unit: u64) -> Result<u64> {
        let (start, end) = (unit * self.unit, (unit + 1) * self.unit);
        let mut vcn = start;
        while vcn < end {
            let run = self.run(vcn)?;
            if run.lcn.is_none() {
                break;
            }
            vcn = run.vcn + run.len;
        }
        Ok(vcn.min(end) - start)
    }

    fn unpacked(&self, volume: &Volume, unit: u64, stored: u64) -> Result<Arc<Vec<u8>>> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((known, bytes)) = last
            && known == unit
        {
            return Ok(bytes);
        }
        let mut packed = vec![0; (stored * volume.cluster) as usize];
        self.plain(volume, unit * self.unit * volume.cluster, &mut packed)?;
        let bytes = lznt::unpack(&packed, (self.unit * volume.cluster) as usize)
            .ok_or_else(|| Error::corrupt(KIND, "a compressed unit"))?;
        let bytes = Arc::new(bytes);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((unit, bytes.clone()));
        Ok(bytes)
    }
}

/// A signed little-endian number of up to 8 bytes.
fn number(bytes: &[u8]) -> Option<i64> {
    let last = *bytes.last()?;
    if bytes.len() > 8 {
        return None;
    }
    let mut whole = [if last & 0x80 == 0 { 0 } else { 0xff }; 8];
    whole.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_signed() {
        assert_eq!(
            (number(&[0xff]), number(&[0xff, 0]), number(&[0, 0x80])),
            (Some(-1), Some(255), Some(-32768))
        );
        assert_eq!((number(&[]), number(&[0; 9])), (None, None));
    }

    #[test]
    fn lists_name_the_pieces() {
        let mut entry = vec![0; 32];
        entry[0] = 0x80;
        entry[4] = 32;
        entry[7] = 26;
        entry[16] = 40;
        entry[24] = 3;
        let mut other = entry.clone();
        other[0] = 0x90;
        let list = [entry.clone(), other, entry.clone(), vec![0; 5]].concat();
        assert_eq!(pieces(&list, 0x80, &[]), [(40, 3), (40, 3)]);
        assert_eq!(pieces(&list, 0x80, b"x\0"), []);
    }
}
