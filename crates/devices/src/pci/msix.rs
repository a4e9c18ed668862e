//! MSI-X (PCI 3.0, 6.8.2): a table of messages and the pending bits, both in one BAR.

use bus::Msi;
use serde::{Deserialize, Serialize};

use super::config_space::{ConfigSpace, LayoutError};

/// Capability id.
const ID: u8 = 0x11;
/// Most vectors (6.8.2.3: an 11-bit field).
pub const MAX_VECTORS: usize = 2048;
// Message control (6.8.2.3).
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
/// Vector control bit: masked (6.8.2.9).
const MASKED: u32 = 1;
/// Length of a table entry.
const ENTRY: u64 = 16;
/// Smallest BAR for the table, so that a page of its own can be trapped.
const MIN_BAR: u64 = 0x1000;

/// The capability's place.
#[derive(Clone, Copy, Debug)]
pub struct MsixCapability {
    offset: usize,
}

/// Where table and pending bits are in their BAR: the pending bits in the upper half.
fn pending_offset(vectors: usize) -> u64 {
    (vectors as u64 * ENTRY).next_power_of_two().max(MIN_BAR / 2)
}

/// Size of the BAR for `vectors`.
pub fn bar_size(vectors: usize) -> u64 {
    2 * pending_offset(vectors)
}

impl MsixCapability {
    /// Adds the capability; the table is in BAR `bar`, which must be of [`bar_size`].
    pub fn add(space: &mut ConfigSpace, vectors: usize, bar: u8) -> Result<Self, LayoutError> {
        if !(1..=MAX_VECTORS).contains(&vectors) {
            return Err(LayoutError::Vectors(vectors));
        }
        let mut body = (vectors as u16 - 1).to_le_bytes().to_vec();
        body.extend(u32::from(bar).to_le_bytes());
        body.extend((pending_offset(vectors) as u32 | u32::from(bar)).to_le_bytes());
        let mask = (ENABLE | FUNCTION_MASK).to_le_bytes();
        Ok(Self { offset: space.add_capability(ID, &body, &mask)? })
    }

    /// (enabled, all masked) as the registers say now.
    pub fn control(self, space: &ConfigSpace) -> (bool, bool) {
        let control = space.dword(self.offset + 2) as u16;
        (control & ENABLE != 0, control & FUNCTION_MASK != 0)
    }
}

/// One message: address low and high, data, vector control.
type Entry = [u32; 4];

/// The table and the pending bits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixTable {
    entries: Vec<Entry>,
    pending: Vec<u64>,
    /// Follow message control.
    #[serde(skip)]
    enabled: bool,
    #[serde(skip)]
    all_masked: bool,
}

impl MsixTable {
    /// A table in the state after reset: every vector masked.
    pub fn new(vectors: usize) -> Self {
        Self {
            entries: vec![[0, 0, 0, MASKED]; vectors],
            pending: vec![0; vectors.div_ceil(64)],
            enabled: false,
            all_masked: false,
        }
    }

    /// Whether the guest uses MSI-X.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// The same table after reset.
    #[must_use]
    pub fn emptied(&self) -> Self {
        Self::new(self.entries.len())
    }

    /// Whether another table, which may come from anywhere, can replace this one.
    pub fn same_shape(&self, other: &Self) -> bool {
        self.entries.len() == other.entries.len()
            && self.pending.len() == other.pending.len()
            && other.entries.iter().all(|e| e[3] & !MASKED == 0)
    }

    fn pending_bit(vector: usize) -> (usize, u64) {
        (vector / 64, 1 << (vector % 64))
    }

    /// The message of `vector`, or `None` after noting it as pending if it is masked. A vector
    /// that does not exist does nothing.
    pub fn raise(&mut self, vector: u16) -> Option<Msi> {
        let entry = *self.entries.get(usize::from(vector))?;
        if self.all_masked || entry[3] & MASKED != 0 {
            let (word, bit) = Self::pending_bit(usize::from(vector));
            *self.pending.get_mut(word)? |= bit;
            return None;
        }
        Some(message(&entry))
    }

    /// Takes all messages that are pending and not masked any more.
    fn take_pending(&mut self) -> Vec<Msi> {
        let mut messages = Vec::new();
        if !self.enabled || self.all_masked || self.pending.iter().all(|word| *word == 0) {
            return messages;
        }
        for (vector, entry) in self.entries.iter().enumerate() {
            let (word, bit) = Self::pending_bit(vector);
            if let Some(word) =
                self.pending.get_mut(word).filter(|w| **w & bit != 0 && entry[3] & MASKED == 0)
            {
                *word &= !bit;
                messages.push(message(entry));
            }
        }
        messages
    }

    /// Follows message control; returns what may be sent now.
    pub fn set_control(&mut self, enabled: bool, all_masked: bool) -> Vec<Msi> {
        (self.enabled, self.all_masked) = (enabled, all_masked);
        self.take_pending()
    }

    /// Reads the BAR.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let pending = pending_offset(self.entries.len());
        for (at, to) in (offset..).zip(data) {
            *to = if at < pending {
                let dword =
                    self.entries.get((at / ENTRY) as usize).and_then(|e| e.get((at % ENTRY / 4) as usize));
                dword.map_or(0, |d| (d >> (at % 4 * 8)) as u8)
            } else {
                let word = self.pending.get(((at - pending) / 8) as usize);
                word.map_or(0, |w| (w >> (at % 8 * 8)) as u8)
            };
        }
    }

    /// Writes the BAR; returns what may be sent now. Pending bits can't be written (6.8.2.10).
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Vec<Msi> {
        for (at, from) in (offset..).zip(data) {
            let part = (at % ENTRY / 4) as usize;
            let entry = self.entries.get_mut((at / ENTRY) as usize);
            if let Some(dword) = entry.and_then(|e| e.get_mut(part)) {
                let shift = at % 4 * 8;
                *dword = *dword & !(0xff << shift) | u32::from(*from) << shift;
                if part == 3 {
                    *dword &= MASKED;
                }
            }
        }
        self.take_pending()
    }
}

fn message(&[low, high, data, _]: &Entry) -> Msi {
    // The low two address bits are to be written as 0 (6.8.2.7).
    Msi { address: u64::from(low & !3) | u64::from(high) << 32, data }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::Identity;

    fn program(table: &mut MsixTable, vector: u64, data: u32, control: u32) -> Vec<Msi> {
        let mut sent = table.write(vector * 16, &0xfee0_0000u64.to_le_bytes());
        sent.extend(table.write(vector * 16 + 8, &data.to_le_bytes()));
        sent.extend(table.write(vector * 16 + 12, &control.to_le_bytes()));
        sent
    }

    fn pending(table: &MsixTable, vectors: usize) -> u64 {
        let mut bits = [0; 8];
        table.read(pending_offset(vectors), &mut bits);
        u64::from_le_bytes(bits)
    }

    #[test]
    fn masked_vectors_become_pending_and_are_sent_once() {
        let mut table = MsixTable::new(3);
        assert!(table.set_control(true, false).is_empty());
        assert!(program(&mut table, 1, 0x41, 1).is_empty());
        assert_eq!((table.raise(1), table.raise(1), table.raise(9)), (None, None, None));
        assert_eq!(pending(&table, 3), 2);
        let sent = table.write(16 + 12, &[0]);
        assert_eq!(sent, [Msi { address: 0xfee0_0000, data: 0x41 }]);
        assert_eq!(pending(&table, 3), 0);
        assert!(table.write(16 + 12, &[0]).is_empty());
        assert_eq!(table.raise(1), Some(sent[0]));
    }

    #[test]
    fn the_function_mask_masks_all() {
        let mut table = MsixTable::new(2);
        table.set_control(true, true);
        program(&mut table, 0, 0x30, 0);
        program(&mut table, 1, 0x31, 1);
        assert_eq!((table.raise(0), table.raise(1)), (None, None));
        assert_eq!(table.set_control(true, false).iter().map(|m| m.data).collect::<Vec<_>>(), [0x30]);
        // Disabling keeps what is pending; nothing is sent while disabled.
        assert!(table.set_control(false, false).is_empty());
        assert!(table.write(16 + 12, &[0]).is_empty());
        assert_eq!(table.set_control(true, false).len(), 1);
    }

    #[test]
    fn registers_of_any_width() {
        let mut table = MsixTable::new(130);
        table.write(0x10, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        table.write(0x1c, &[0xfe; 4]);
        let mut data = [0; 16];
        table.read(0x10, &mut data);
        assert_eq!(data, [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0, 0, 0, 0, 0]);
        let end = bar_size(130);
        assert_eq!(end, 0x2000);
        table.write(pending_offset(130), &[0xff; 8]);
        assert_eq!(pending(&table, 130), 0);
        table.read(end - 4, &mut data[..8]);
        assert_eq!(&data[..8], &[0; 8]);
        assert_eq!(bar_size(1), 0x1000);
    }

    #[test]
    fn capability_names_bar_and_offsets() {
        let mut space = ConfigSpace::new(&Identity::default());
        let msix = MsixCapability::add(&mut space, 3, 1).unwrap();
        assert_eq!((space.dword(0x40), space.dword(0x44), space.dword(0x48)), (0x0002_0011, 1, 0x801));
        space.write(0x42, &[0xff, 0xff]);
        assert_eq!(msix.control(&space), (true, true));
        assert_eq!(space.dword(0x40) >> 16, 0xc002);
        assert!(MsixCapability::add(&mut space, 0, 1).is_err());
        assert!(MsixCapability::add(&mut space, 2049, 1).is_err());
    }
}
