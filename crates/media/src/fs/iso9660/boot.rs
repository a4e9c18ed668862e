//! What a CD boots from: the El Torito catalogue (El Torito 1.0; UEFI 2.10, 13.3.2.1).

use super::{KIND, SECTOR, descriptor};
use crate::{Error, Fields, Result, SourceRef};

/// Most entries that are read.
const MAX_ENTRIES: usize = 256;
/// Size of an entry.
const ENTRY: usize = 32;

/// What the firmware pretends that a boot image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulation {
    /// Nothing: the image is loaded and started.
    None,
    /// A floppy disk of so many KiB.
    Floppy(u32),
    /// A hard disk.
    HardDisk,
}

/// A boot image of a CD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootImage {
    /// 0 is a PC's BIOS, 0xEF UEFI.
    pub platform: u8,
    /// Whether the firmware may boot it.
    pub bootable: bool,
    /// What it is presented as.
    pub emulation: Emulation,
    /// Real-mode segment it is loaded to; never 0.
    pub load_segment: u16,
    /// First byte.
    pub offset: u64,
    /// Bytes the firmware loads, in sectors of 512; 0 and 1 mean "all that there is" to UEFI.
    pub sectors: u16,
}

/// The boot images of a CD, the default one first; none if it doesn't boot.
pub fn boot_images(source: &SourceRef) -> Result<Vec<BootImage>> {
    // The boot record is the second descriptor.
    let Some(record) = descriptor(source, 1)? else { return Ok(Vec::new()) };
    if record.first() != Some(&0) || record.get(7..30) != Some(b"EL TORITO SPECIFICATION") {
        return Ok(Vec::new());
    }
    let start = u64::from(record.u32_at(0x47).unwrap_or_default()) * SECTOR;
    let len = source.size().saturating_sub(start).min((MAX_ENTRIES * ENTRY) as u64);
    let catalogue = source.read_vec(start, len as usize)?;
    parse(&catalogue)
}

fn parse(catalogue: &[u8]) -> Result<Vec<BootImage>> {
    let bad = |what: &str| Error::corrupt(KIND, format!("boot catalogue: {what}"));
    let (entries, _) = catalogue.as_chunks::<ENTRY>();
    let mut entries = entries.iter();
    let first = entries.next().ok_or_else(|| bad("no validation entry"))?;
    let sum = super::super::support::units(first).fold(0, u16::wrapping_add);
    if first[0] != 1 || first[30..] != [0x55, 0xaa] || sum != 0 {
        return Err(bad("validation entry"));
    }
    let mut images = Vec::new();
    let default = entries.next().ok_or_else(|| bad("no default entry"))?;
    images.push(image(first[1], default));
    while let Some(header) = entries.next() {
        // 0x90: sections follow; 0x91: this is the last.
        if !matches!(header[0], 0x90 | 0x91) {
            break;
        }
        for _ in 0..header.u16_at(2).unwrap_or_default() {
            let Some(entry) = entries.by_ref().find(|entry| entry[0] != 0x44) else { break };
            images.push(image(header[1], entry));
        }
        if header[0] == 0x91 {
            break;
        }
    }
    Ok(images)
}

fn image(platform: u8, entry: &[u8; ENTRY]) -> BootImage {
    let segment = entry.u16_at(2).unwrap_or_default();
    BootImage {
        platform,
        bootable: entry[0] == 0x88,
        emulation: match entry[1] & 0xf {
            1 => Emulation::Floppy(1200),
            2 => Emulation::Floppy(1440),
            3 => Emulation::Floppy(2880),
            4 => Emulation::HardDisk,
            _ => Emulation::None,
        },
        load_segment: if segment == 0 { 0x7c0 } else { segment },
        sectors: entry.u16_at(6).unwrap_or_default(),
        offset: u64::from(entry.u32_at(8).unwrap_or_default()) * SECTOR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(start: &[u8]) -> Vec<u8> {
        let mut entry = start.to_vec();
        entry.resize(ENTRY, 0);
        entry
    }

    #[test]
    fn sections_follow_the_default_entry() {
        let mut first = entry(&[1, 0]);
        first[30..].copy_from_slice(&[0x55, 0xaa]);
        first[28..30].copy_from_slice(&0u16.wrapping_sub(0xaa55 + 1).to_le_bytes());
        let catalogue = [
            first,
            entry(&[0x88, 0, 0, 0, 0, 0, 4, 0, 30]),
            entry(&[0x91, 0xef, 1, 0]),
            entry(&[0x88, 0, 0, 0, 0, 0, 0, 0, 40]),
            entry(&[0x88]),
        ]
        .concat();
        let images = parse(&catalogue).unwrap();
        assert_eq!(images.len(), 2);
        assert_eq!((images[0].platform, images[0].offset, images[0].sectors), (0, 30 * SECTOR, 4));
        assert_eq!((images[1].platform, images[1].offset, images[1].bootable), (0xef, 40 * SECTOR, true));
        let mut wrong = catalogue.clone();
        wrong[5] ^= 1;
        assert!(parse(&wrong).is_err());
        assert!(parse(&catalogue[..32]).is_err());
    }
}
