//! The label of a physical volume, and where the text of the metadata is.

use super::super::SECTOR;
use crate::{Error, Fields, Result, SourceRef};

const KIND: &str = "lvm";
/// The label is in one of the first four sectors.
const LABEL_SECTORS: usize = 4;
const LABEL: &[u8; 8] = b"LABELONE";
const LABEL_TYPE: &[u8; 8] = b"LVM2 001";
/// At 4 of the header of a metadata area, behind its checksum.
const AREA: &[u8; 16] = b" LVM2 x[5A%r0N*>";
/// Size of that header, where the ring of texts begins.
const AREA_HEADER: u64 = 512;
/// The place of a text is only for volumes that don't keep it.
const IGNORED: u32 = 1;
/// Largest text. A thousand volumes have about half a megabyte.
const MAX_TEXT: u64 = 4 << 20;
/// Most areas in a label; its sector has room for no more.
const MAX_AREAS: usize = 32;

/// A physical volume.
pub struct Label {
    /// 32 letters and digits.
    pub uuid: String,
    /// Start and size of the metadata areas.
    areas: Vec<(u64, u64)>,
}

/// The label, if the device has one.
pub fn read(source: &SourceRef) -> Result<Option<Label>> {
    let sector = SECTOR as usize;
    let size = (source.size().min(SECTOR * LABEL_SECTORS as u64)) as usize;
    let head = source.read_vec(0, size)?;
    for (number, bytes) in (0u64..).zip(head.chunks_exact(sector)) {
        if !bytes.starts_with(LABEL) || bytes.get(24..32) != Some(LABEL_TYPE) {
            continue;
        }
        let bad = |what: &str| Error::corrupt(KIND, format!("label: {what}"));
        if bytes.u64_at(8) != Some(number) || bytes.get(20..).map(crc) != bytes.u32_at(16) {
            return Err(bad("checksum"));
        }
        let at = bytes.u32_at(20).ok_or_else(|| bad("short"))? as usize;
        return parse(bytes, at).map(Some).ok_or_else(|| bad("out of its sector"));
    }
    Ok(None)
}

/// The header at `at` of the label's sector: UUID, size, data areas, metadata areas.
fn parse(bytes: &[u8], at: usize) -> Option<Label> {
    let uuid = bytes.get(at..at.checked_add(32)?)?;
    let mut at = at + 40;
    let mut list = || -> Option<Vec<(u64, u64)>> {
        let mut areas = Vec::new();
        loop {
            let area = (bytes.u64_at(at)?, bytes.u64_at(at + 8)?);
            at += 16;
            if area.0 == 0 || areas.len() >= MAX_AREAS {
                return Some(areas);
            }
            areas.push(area);
        }
    };
    let _data = list()?;
    Some(Label { uuid: String::from_utf8_lossy(uuid).into_owned(), areas: list()? })
}

impl Label {
    /// The texts of the metadata areas that are sound.
    pub fn texts(&self, source: &SourceRef) -> Vec<Vec<u8>> {
        self.areas.iter().filter_map(|(start, size)| text(source, *start, *size).ok().flatten()).collect()
    }
}

fn text(source: &SourceRef, area: u64, size: u64) -> Result<Option<Vec<u8>>> {
    let bad = |what: &str| Error::corrupt(KIND, format!("metadata area at {area}: {what}"));
    let header = source.read_vec(area, AREA_HEADER as usize)?;
    if header.get(4..20) != Some(AREA) || header.get(4..).map(crc) != header.u32_at(0) {
        return Err(bad("header"));
    }
    if header.u64_at(24) != Some(area) {
        return Err(bad("meant for another place"));
    }
    let field = |at| header.u64_at(at).ok_or_else(|| bad("short"));
    let (offset, len) = (field(40)?, field(48)?);
    let (sum, flags) = (header.u32_at(56), header.u32_at(60).unwrap_or(0));
    if offset == 0 || len == 0 || flags & IGNORED != 0 {
        return Ok(None);
    }
    if len > MAX_TEXT || offset < AREA_HEADER || offset >= size || len > size - AREA_HEADER {
        return Err(bad("place of the text"));
    }
    // The area is a ring: what doesn't fit before its end goes on behind its header.
    let first = len.min(size - offset);
    let at = |offset: u64| area.checked_add(offset).ok_or_else(|| bad("out of the disk"));
    let mut text = source.read_vec(at(offset)?, first as usize)?;
    text.extend(source.read_vec(at(AREA_HEADER)?, (len - first) as usize)?);
    if Some(crc(&text)) != sum {
        return Err(bad("checksum of the text"));
    }
    Ok(Some(text))
}

/// LVM's CRC-32: the usual polynomial, another start and no final inversion.
pub fn crc(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0xf597_a6cf, |crc: u32, byte| (crc >> 8) ^ TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize])
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut crc = n as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 != 0 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[n] = crc;
        n += 1;
    }
    table
};
