//! Directory entries and names (Microsoft's FAT specification 1.03).

use crate::Fields;
use crate::fs::support::{Date, utf8};

use super::chain::ENTRY;

/// Attribute bits (page 23).
const LABEL: u8 = 0x08;
const DIRECTORY: u8 = 0x10;
/// All of read-only, hidden, system and label: a part of a long name.
const LONG: u8 = 0x0f;
/// Most parts of a long name: 255 characters of 13 a part.
const MAX_PARTS: u8 = 20;
/// The upper half of code page 437, in which short names are.
const CP437: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀\
                     αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// What an entry is.
pub(super) enum Slot {
    /// The directory ends here.
    End,
    /// Nothing, or a part of a name.
    None,
    Label(Vec<u8>),
    File(File),
}

/// A file or directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct File {
    /// Place of its first entry.
    pub(super) place: u64,
    pub(super) name: Vec<u8>,
    /// Its other name, if it has a long one.
    pub(super) alias: Option<Vec<u8>>,
    pub(super) directory: bool,
    pub(super) cluster: u32,
    pub(super) size: u32,
    pub(super) modified: Option<i64>,
}

/// The parts of a long name seen so far.
#[derive(Default)]
pub(super) struct Names {
    /// Last part first.
    parts: Vec<[u16; 13]>,
    /// Number of the part that must come next, and 0 for the file itself.
    next: u8,
    checksum: u8,
    place: u64,
}

impl Names {
    /// Takes the entry at `place`.
    pub(super) fn take(&mut self, place: u64, entry: &[u8; ENTRY]) -> Slot {
        let attributes = entry[11];
        match entry[0] {
            0 => return Slot::End,
            0xe5 => {
                *self = Self::default();
                return Slot::None;
            }
            _ if attributes & 0x3f == LONG => {
                self.part(place, entry);
                return Slot::None;
            }
            _ => {}
        }
        let long = std::mem::take(self);
        if attributes & LABEL != 0 {
            return Slot::Label(padded(&entry[..11], false));
        }
        let short = short_name(entry);
        let (name, alias, place) = match long.finish(checksum(&entry[..11])) {
            Some(name) => (name, Some(short), long.place),
            None => (short, None, place),
        };
        let half = |at| u32::from(entry.u16_at(at).unwrap_or_default());
        Slot::File(File {
            place,
            name,
            alias,
            directory: attributes & DIRECTORY != 0,
            cluster: half(20) << 16 | half(26),
            size: entry.u32_at(28).unwrap_or_default(),
            modified: date(half(24), half(22)),
        })
    }

    fn part(&mut self, place: u64, entry: &[u8; ENTRY]) {
        let order = entry[0] & 0x3f;
        if entry[0] & 0x40 != 0 {
            *self = Self { next: order, checksum: entry[13], place, parts: Vec::new() };
        }
        if order == 0 || order > MAX_PARTS || order != self.next || entry[13] != self.checksum {
            *self = Self::default();
            return;
        }
        self.next -= 1;
        let mut part = [0; 13];
        let places = (1..11).chain(14..26).chain(28..32);
        let bytes: Vec<u8> = places.filter_map(|at| entry.u8_at(at)).collect();
        for (unit, value) in part.iter_mut().zip(crate::fs::support::units(&bytes)) {
            *unit = value;
        }
        self.parts.push(part);
    }

    /// The name, if it is complete and belongs to the file whose short name has this checksum.
    fn finish(&self, checksum: u8) -> Option<Vec<u8>> {
        if self.parts.is_empty() || self.next != 0 || self.checksum != checksum {
            return None;
        }
        let units = self.parts.iter().rev().flatten().copied();
        Some(utf8(units.take_while(|unit| *unit != 0)))
    }
}

/// Page 28.
fn checksum(short: &[u8]) -> u8 {
    short.iter().fold(0, |sum: u8, byte| sum.rotate_right(1).wrapping_add(*byte))
}

/// `NAME.EXT`; two bits say whether the halves are in lower case, as Windows NT and Linux do it.
fn short_name(entry: &[u8; ENTRY]) -> Vec<u8> {
    let mut base: [u8; 8] = entry.array(0).unwrap_or_default();
    if base[0] == 0x05 {
        base[0] = 0xe5;
    }
    let mut name = padded(&base, entry[12] & 0x08 != 0);
    let extension = padded(&entry[8..11], entry[12] & 0x10 != 0);
    if !extension.is_empty() {
        name.push(b'.');
        name.extend(extension);
    }
    name
}

/// UTF-8 of a field that is filled up with spaces.
fn padded(field: &[u8], lower: bool) -> Vec<u8> {
    let len = field.iter().rposition(|byte| *byte != b' ').map_or(0, |at| at + 1);
    let text: String = field.iter().take(len).map(|byte| character(*byte)).collect();
    if lower { text.to_lowercase().into_bytes() } else { text.into_bytes() }
}

fn character(byte: u8) -> char {
    match byte.checked_sub(0x80) {
        None => char::from(byte),
        Some(upper) => CP437.chars().nth(usize::from(upper)).unwrap_or(char::REPLACEMENT_CHARACTER),
    }
}

/// A name in the form in which names are compared.
pub(super) fn fold(name: &[u8]) -> Vec<u8> {
    let upper = |char: char| {
        let mut upper = char.to_uppercase();
        let first = upper.next().unwrap_or(char);
        if upper.next().is_none() { first } else { char }
    };
    String::from_utf8_lossy(name).chars().map(upper).collect::<String>().into_bytes()
}

/// Page 25. Local time, of which nobody knows the zone.
pub(in crate::fs) fn date(date: u32, time: u32) -> Option<i64> {
    let date = Date {
        year: 1980 + (date >> 9 & 0x7f),
        month: date >> 5 & 0xf,
        day: date & 0x1f,
        hour: time >> 11 & 0x1f,
        minute: time >> 5 & 0x3f,
        second: (time & 0x1f) * 2,
    };
    date.seconds()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_page_is_whole() {
        assert_eq!(CP437.chars().count(), 128);
        assert_eq!((character(0xe1), character(b'A'), character(0x80)), ('ß', 'A', 'Ç'));
    }

    fn file(slot: Slot) -> File {
        match slot {
            Slot::File(file) => file,
            _ => panic!("no file"),
        }
    }

    #[test]
    fn a_long_name_needs_its_checksum() {
        let mut short = [0; ENTRY];
        short[..11].copy_from_slice(b"LONGNA~1TXT");
        let mut long = [0xff; ENTRY];
        long[0] = 0x41;
        long[11] = LONG;
        long[13] = checksum(b"LONGNA~1TXT");
        for (at, unit) in [1, 3, 5, 7, 9, 14, 16].into_iter().zip("Läng\0".encode_utf16()) {
            long[at..at + 2].copy_from_slice(&unit.to_le_bytes());
        }
        let mut names = Names::default();
        assert!(matches!(names.take(64, &long), Slot::None));
        let found = file(names.take(96, &short));
        assert_eq!((found.name.as_slice(), found.place), ("Läng".as_bytes(), 64));
        assert_eq!(found.alias.unwrap(), b"LONGNA~1.TXT");
        // The same with another short name, and without its last part.
        short[0] = b'X';
        names.take(64, &long);
        assert_eq!(file(names.take(96, &short)).name, b"XONGNA~1.TXT");
        long[0] = 1;
        names.take(64, &long);
        assert_eq!(file(names.take(96, &short)).place, 96);
    }

    #[test]
    fn short_names_have_a_case() {
        let mut entry = [0; ENTRY];
        entry[..11].copy_from_slice(b"README  TXT");
        entry[12] = 0x10;
        assert_eq!(short_name(&entry), b"README.txt");
        entry[..11].copy_from_slice(b"\x05A         ");
        assert_eq!(short_name(&entry), "σA".as_bytes());
        assert_eq!(fold("straße.Ä".as_bytes()), fold("STRAßE.ä".as_bytes()));
    }
}
