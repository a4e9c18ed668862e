//! IDENTIFY DEVICE and IDENTIFY PACKET DEVICE data (ACS-3, 7.12.7 and 7.13.7).

use super::ata::{MAX_MULTIPLE, MAX_TRIM_BLOCKS, QUEUE_DEPTH};
use super::drive::{Drive, DriveState};

/// Sectors that a 28-bit command can reach.
const MAX_LBA28: u64 = 0x0fff_ffff;
/// Most sectors in the geometry's product (16383 × 16 × 63).
const MAX_CHS: u64 = 16_514_064;

/// 256 words.
struct Words([u16; 256]);

impl Words {
    fn new() -> Self {
        Self([0; 256])
    }

    fn set(&mut self, at: usize, value: u16) {
        if let Some(word) = self.0.get_mut(at) {
            *word = value;
        }
    }

    fn set32(&mut self, at: usize, value: u32) {
        self.set(at, value as u16);
        self.set(at + 1, (value >> 16) as u16);
    }

    fn set64(&mut self, at: usize, value: u64) {
        self.set32(at, value as u32);
        self.set32(at + 2, (value >> 32) as u32);
    }

    /// Text padded with blanks, the first of two characters in the upper byte.
    fn text(&mut self, at: usize, words: usize, text: &str) {
        let mut bytes = text.bytes().map(|b| if (0x20..0x7f).contains(&b) { b } else { b'?' });
        for word in at..at + words {
            let (high, low) = (bytes.next().unwrap_or(b' '), bytes.next().unwrap_or(b' '));
            self.set(word, u16::from(high) << 8 | u16::from(low));
        }
    }

    /// Signature and checksum in the last word: all bytes add up to 0.
    fn finish(mut self) -> Vec<u8> {
        self.set(255, 0xa5);
        let sum = self
            .0
            .iter()
            .fold(0u8, |sum, word| sum.wrapping_add(*word as u8).wrapping_add((word >> 8) as u8));
        self.set(255, u16::from(sum.wrapping_neg()) << 8 | 0xa5);
        self.0.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn common(&mut self, drive: &Drive, state: &DriveState) {
        self.text(10, 10, &drive.serial);
        self.text(23, 4, &drive.revision);
        self.text(27, 20, &drive.model);
        // Words 54–58, 64–70 and 88 are valid.
        self.set(53, 7);
        let mode = u16::from(state.transfer_mode);
        // Multiword DMA 0–2 and Ultra DMA 0–6, and which of them is chosen.
        self.set(63, 7 | if mode & 0xf8 == 0x20 { 1 << (8 + (mode & 7)) } else { 0 });
        self.set(88, 0x7f | if mode & 0xf8 == 0x40 { 1 << (8 + (mode & 7)) } else { 0 });
        // PIO 3 and 4, cycle times of 120 ns.
        self.set(64, 3);
        for word in 65..=68 {
            self.set(word, 120);
        }
        // Serial ATA at 1.5, 3 and 6 Gbit/s, now at 6.
        self.set(77, 3 << 1);
        // ATA8-ACS, ACS-2 and ACS-3 and the ones before.
        self.set(80, 0x7f0);
        // Transport: Serial ATA 3.0 and before.
        self.set(222, 0x107f);
    }
}

/// Of a disk.
pub(super) fn disk(drive: &Drive, state: &DriveState) -> Vec<u8> {
    let Some(info) = drive.disk.as_ref().map(|disk| disk.info()) else { return Words::new().finish() };
    let sectors = info.size / u64::from(info.logical_sector.max(512));
    let mut w = Words::new();
    w.common(drive, state);
    w.set(0, 0x0040);
    let cylinders = (sectors.min(MAX_CHS) / (16 * 63)) as u16;
    for (at, value) in [(1, cylinders), (3, 16), (6, 63), (54, cylinders), (55, 16), (56, 63)] {
        w.set(at, value);
    }
    w.set32(57, u32::from(cylinders) * 16 * 63);
    w.set(47, 0x8000 | u16::from(MAX_MULTIPLE));
    // IORDY, LBA, DMA.
    w.set(49, 0x0f00);
    w.set(50, 0x4000);
    w.set(59, if state.multiple == 0 { 0 } else { 0x100 | u16::from(state.multiple) });
    w.set32(60, sectors.min(MAX_LBA28) as u32);
    w.set(75, QUEUE_DEPTH - 1);
    // NCQ; 1.5, 3 and 6 Gbit/s.
    w.set(76, 1 << 8 | 0xe);
    // Power management, write cache, look-ahead.
    let cache = u16::from(state.write_cache) << 5 | u16::from(state.look_ahead) << 6;
    w.set(82, 1 << 3 | 1 << 5 | 1 << 6);
    w.set(85, 1 << 3 | cache);
    // 48-bit addresses, FLUSH CACHE and FLUSH CACHE EXT; bit 14 is always set.
    for word in [83, 86] {
        w.set(word, 1 << 14 | 1 << 13 | 1 << 12 | 1 << 10);
    }
    // WRITE DMA FUA EXT, general purpose logging.
    for word in [84, 87] {
        w.set(word, 1 << 14 | 1 << 6 | 1 << 5);
    }
    w.set64(100, sectors);
    if info.can_discard {
        // TRIM, whose ranges then read as anything.
        w.set(105, MAX_TRIM_BLOCKS);
        w.set(169, 1);
    }
    let per_physical = (info.physical_sector / info.logical_sector.max(1)).max(1);
    let mut sizes = 1 << 14 | (per_physical.ilog2() as u16 & 0xf);
    if per_physical > 1 {
        sizes |= 1 << 13;
    }
    if info.logical_sector > 512 {
        sizes |= 1 << 12;
        w.set32(117, info.logical_sector / 2);
    }
    w.set(106, sizes);
    // The first logical sector begins a physical one.
    w.set(209, 1 << 14);
    w.set(217, drive.rotation);
    w.finish()
}

/// Of an optical drive.
pub(super) fn optical(drive: &Drive, state: &DriveState) -> Vec<u8> {
    let mut w = Words::new();
    w.common(drive, state);
    // ATAPI, CD-ROM, removable, DRQ within 50 µs, packets of 12 bytes.
    w.set(0, 2 << 14 | 5 << 8 | 1 << 7 | 2 << 5);
    // LBA and DMA.
    w.set(49, 1 << 9 | 1 << 8);
    w.set(50, 0x4000);
    // 1.5, 3 and 6 Gbit/s.
    w.set(76, 0xe);
    // PACKET and DEVICE RESET.
    for word in [82, 85] {
        w.set(word, 1 << 4 | 1 << 9);
    }
    for word in [83, 84, 87] {
        w.set(word, 1 << 14);
    }
    w.finish()
}
