//! Directory entries (sections 6 and 7).

use crate::Fields;
use crate::fs::fat::chain::ENTRY;
use crate::fs::fat::names::date;
use crate::fs::support::{units, utf8};

/// What an entry is, once its set is complete.
pub(super) enum Slot {
    /// The directory ends here.
    End,
    /// Nothing, or a part of a set.
    None,
    Label(Vec<u8>),
    UpCase {
        cluster: u32,
        len: u64,
    },
    File(File),
}

/// A file or directory.
#[derive(Clone, Debug, Default)]
pub(super) struct File {
    /// Place of its first entry.
    pub(super) place: u64,
    pub(super) name: Vec<u8>,
    pub(super) directory: bool,
    /// Its clusters follow each other and the allocation table says nothing of them.
    pub(super) contiguous: bool,
    pub(super) cluster: u32,
    pub(super) size: u64,
    /// How much of it was ever written.
    pub(super) valid: u64,
    pub(super) modified: Option<i64>,
}

/// Puts the entries of a file together.
#[derive(Default)]
pub(super) struct Reader {
    file: File,
    name: Vec<u16>,
    /// Entries of the set that are still to come.
    left: u8,
    /// Characters of the name; 0 before the stream extension.
    characters: usize,
    checksum: u16,
    sum: u16,
}

impl Reader {
    /// Takes the entry at `place`.
    pub(super) fn take(&mut self, place: u64, entry: &[u8; ENTRY]) -> Slot {
        // 6.2.1: bit 7 says that an entry is in use, bit 6 that it is a secondary one.
        match entry[0] {
            0 => return Slot::End,
            0x85 => self.start(place, entry),
            0xc0 if self.left > 0 => self.stream(entry),
            0xc1 if self.left > 0 => self.name.extend(units(&entry[2..])),
            // Vendor extensions and the like belong to the set but say nothing to us.
            0xc2..=0xff if self.left > 0 => {}
            0x82 => {
                self.left = 0;
                let len = entry.u64_at(24).unwrap_or_default();
                return Slot::UpCase { cluster: entry.u32_at(20).unwrap_or_default(), len };
            }
            0x83 => {
                self.left = 0;
                let len = usize::from(entry[1]).min(11);
                return Slot::Label(utf8(units(&entry[2..24]).take(len)));
            }
            _ => {
                self.left = 0;
                return Slot::None;
            }
        }
        self.add(entry);
        if entry[0] == 0x85 {
            return Slot::None;
        }
        self.left -= 1;
        if self.left > 0 || self.sum != self.checksum || self.characters == 0 {
            return Slot::None;
        }
        if self.name.len() < self.characters {
            return Slot::None;
        }
        self.name.truncate(self.characters);
        let mut file = std::mem::take(&mut self.file);
        file.name = utf8(self.name.drain(..));
        Slot::File(file)
    }

    /// 7.4: the file entry.
    fn start(&mut self, place: u64, entry: &[u8; ENTRY]) {
        *self = Self { left: entry[1], checksum: entry.u16_at(2).unwrap_or_default(), ..Self::default() };
        self.file.place = place;
        self.file.directory = entry.u16_at(4).unwrap_or_default() & 0x10 != 0;
        let time = entry.u32_at(12).unwrap_or_default();
        // 7.4.10: quarters of an hour from UTC in seven bits, if the eighth is set.
        let zone = entry[23];
        let quarters = if zone & 0x80 == 0 { 0 } else { i64::from((zone << 1) as i8 >> 1) };
        self.file.modified = date(time >> 16, time & 0xffff).map(|time| time - quarters * 15 * 60);
    }

    /// 7.6: the stream extension.
    fn stream(&mut self, entry: &[u8; ENTRY]) {
        self.characters = usize::from(entry[3]);
        self.file.contiguous = entry[1] & 2 != 0;
        self.file.valid = entry.u64_at(8).unwrap_or_default();
        self.file.cluster = entry.u32_at(20).unwrap_or_default();
        self.file.size = entry.u64_at(24).unwrap_or_default();
    }

    /// 6.3.3: the sum over the set leaves out the sum itself.
    fn add(&mut self, entry: &[u8; ENTRY]) {
        for (at, byte) in entry.iter().enumerate() {
            if entry[0] != 0x85 || !matches!(at, 2 | 3) {
                self.sum = self.sum.rotate_right(1).wrapping_add(u16::from(*byte));
            }
        }
    }
}

/// 7.2.5: the table on the disk; 0xFFFF stands before a number of characters that stay as they are.
pub(super) fn upcase_table(bytes: &[u8]) -> Vec<u16> {
    let mut table = Vec::new();
    let mut units = units(bytes);
    while let Some(unit) = units.next() {
        let room = 0x1_0000 - table.len();
        if room == 0 {
            break;
        }
        if unit == 0xffff && bytes.len() < 2 * 0x1_0000 {
            let count = usize::from(units.next().unwrap_or_default()).min(room);
            let first = table.len();
            table.extend((first..first + count).map(|unit| unit as u16));
        } else {
            table.push(unit);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_unpacked() {
        let packed: Vec<u8> = [0xffffu16, 0x61, 0x41, 0x42, 0xffff, 2, 0x99]
            .iter()
            .flat_map(|unit| unit.to_le_bytes())
            .collect();
        let table = upcase_table(&packed);
        assert_eq!(table.len(), 0x61 + 2 + 2 + 1);
        assert_eq!(
            (table[0x20], table[0x61], table[0x62], table[0x63], table[0x65]),
            (0x20, 0x41, 0x42, 0x63, 0x99)
        );
        let endless: Vec<u8> = std::iter::repeat_n(0xff, 4000).collect();
        assert_eq!(upcase_table(&endless).len(), 0x1_0000);
    }

    fn set(sum: u16) -> Vec<[u8; ENTRY]> {
        let mut file = [0; ENTRY];
        file[0] = 0x85;
        file[1] = 2;
        file[2..4].copy_from_slice(&sum.to_le_bytes());
        let mut stream = [0; ENTRY];
        (stream[0], stream[1], stream[3], stream[20], stream[24]) = (0xc0, 3, 2, 9, 77);
        let mut name = [0; ENTRY];
        (name[0], name[2], name[4]) = (0xc1, b'h', b'i');
        vec![file, stream, name]
    }

    #[test]
    fn a_set_needs_its_checksum() {
        let mut reader = Reader::default();
        for entry in set(0) {
            assert!(matches!(reader.take(32, &entry), Slot::None));
        }
        let sum = reader.sum;
        let mut found = None;
        for entry in set(sum) {
            if let Slot::File(file) = reader.take(32, &entry) {
                found = Some(file);
            }
        }
        let file = found.unwrap();
        assert_eq!(
            (file.name.as_slice(), file.size, file.cluster, file.contiguous),
            (b"hi".as_slice(), 77, 9, true)
        );
    }
}
