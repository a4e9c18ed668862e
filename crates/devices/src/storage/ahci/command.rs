//! A command as the driver puts it in memory (AHCI 1.3.1, 4.2.2 and 4.2.3).

use memory::GuestSlice;

use crate::pci::{DmaMemory, DmaResult};

/// Length of a command header.
const HEADER: u64 = 32;
/// Where the ATAPI packet and the region descriptors are in the command table.
const PACKET: u64 = 0x40;
const REGIONS: u64 = 0x80;
/// Length of a physical region descriptor.
const REGION: usize = 16;
/// Byte count of a region, less one (4.2.3.3).
const COUNT: u32 = (1 << 22) - 1;
/// Regions that are read at once.
const BATCH: usize = 64;
/// Type of a register FIS from the host (Serial ATA 3.2, 10.5.5).
const HOST_TO_DEVICE: u8 = 0x27;
/// The FIS carries a command rather than device control.
const IS_COMMAND: u8 = 1 << 7;
/// SRST in the control field.
const SOFT_RESET: u8 = 1 << 2;

/// A fetched command.
pub(super) struct Command {
    pub slot: u8,
    header: u64,
    table: u64,
    regions: u16,
    /// The device gets a packet.
    pub packet: bool,
    fis: [u8; 20],
}

/// Why a command's buffers can't be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadBuffers {
    /// They are shorter than the transfer.
    Short,
    /// They are not in guest RAM.
    Memory,
}

impl Command {
    /// Reads the header in `slot` of the list at `list`, and the FIS.
    pub fn fetch(dma: &DmaMemory, list: u64, slot: u8) -> DmaResult<Self> {
        let header = list.wrapping_add(u64::from(slot) * HEADER);
        let mut bytes = [0; HEADER as usize];
        dma.read(header, &mut bytes)?;
        let [a, _, c, d, _, _, _, _, t0, t1, t2, t3, t4, t5, t6, t7, ..] = bytes;
        let table = u64::from_le_bytes([t0 & 0x80, t1, t2, t3, t4, t5, t6, t7]);
        let mut fis = [0; 20];
        dma.read(table, &mut fis)?;
        Ok(Self { slot, header, table, regions: u16::from_le_bytes([c, d]), packet: a & 1 << 5 != 0, fis })
    }

    fn byte(&self, at: usize) -> u8 {
        self.fis.get(at).copied().unwrap_or(0)
    }

    /// Whether the FIS is one that a host sends.
    pub fn is_valid(&self) -> bool {
        self.byte(0) == HOST_TO_DEVICE
    }

    /// Device control instead of a command: whether it asserts a soft reset.
    pub fn control(&self) -> Option<bool> {
        (self.byte(1) & IS_COMMAND == 0).then(|| self.byte(15) & SOFT_RESET != 0)
    }

    pub fn opcode(&self) -> u8 {
        self.byte(2)
    }

    pub fn features(&self) -> u16 {
        u16::from_le_bytes([self.byte(3), self.byte(11)])
    }

    pub fn device(&self) -> u8 {
        self.byte(7)
    }

    pub fn lba28(&self) -> u64 {
        u64::from(u32::from_le_bytes([self.byte(4), self.byte(5), self.byte(6), self.byte(7) & 0xf]))
    }

    pub fn lba48(&self) -> u64 {
        let b = |at| self.byte(at);
        u64::from_le_bytes([b(4), b(5), b(6), b(8), b(9), b(10), 0, 0])
    }

    pub fn count(&self) -> u16 {
        u16::from_le_bytes([self.byte(12), self.byte(13)])
    }

    /// The twelve or sixteen bytes of the ATAPI packet.
    pub fn packet_bytes(&self, dma: &DmaMemory) -> DmaResult<[u8; 16]> {
        let mut bytes = [0; 16];
        dma.read(self.table.wrapping_add(PACKET), &mut bytes)?;
        Ok(bytes)
    }

    /// Buffers for exactly `len` bytes.
    pub fn buffers(&self, dma: &DmaMemory, len: u64) -> Result<Vec<GuestSlice>, BadBuffers> {
        let (slices, room) = self.gather(dma, len)?;
        if room < len { Err(BadBuffers::Short) } else { Ok(slices) }
    }

    /// Buffers for at most `len` bytes, and how many there are.
    pub fn gather(&self, dma: &DmaMemory, len: u64) -> Result<(Vec<GuestSlice>, u64), BadBuffers> {
        let (mut slices, mut room) = (Vec::new(), 0u64);
        let mut at = self.table.wrapping_add(REGIONS);
        let mut left = usize::from(self.regions);
        while left > 0 && room < len {
            let batch = left.min(BATCH);
            let mut bytes = [0; BATCH * REGION];
            let bytes = bytes.get_mut(..batch * REGION).unwrap_or_default();
            dma.read(at, bytes).map_err(|_| BadBuffers::Memory)?;
            for region in bytes.chunks_exact(REGION) {
                if room >= len {
                    break;
                }
                let word = |n: usize| {
                    region.get(n..n + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
                };
                let base = u64::from(word(0) & !1) | u64::from(word(4)) << 32;
                let bytes = (u64::from(word(12) & COUNT) + 1).min(len - room);
                slices.push(dma.slice(base, bytes).map_err(|_| BadBuffers::Memory)?);
                room += bytes;
            }
            at = at.wrapping_add((batch * REGION) as u64);
            left -= batch;
        }
        Ok((slices, room))
    }

    /// Says in the header how much was transferred.
    pub fn set_transferred(&self, dma: &DmaMemory, bytes: u32) {
        // The header was readable; if it is gone now, so is whoever would read this.
        let _ = dma.write(self.header.wrapping_add(4), &bytes.to_le_bytes());
    }
}
