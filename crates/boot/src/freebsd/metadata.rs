//! What a file says of its modules: the linker set `modmetadata_set` (sys/sys/module.h,
//! sys/sys/linker_set.h). It is an array of pointers to structures
//! {int version; int type; void *data; const char *name}.

use std::collections::HashMap;

use media::Fields;

use crate::elf::{SHT_RELA, Section, Sections, Segment};
use crate::{Image, Result};

/// Types of entries.
const MDT_DEPEND: u32 = 1;
const MDT_VERSION: u32 = 3;
/// R_X86_64_64 and R_X86_64_RELATIVE (x86-64 psABI, "Relocation").
const R_64: u32 = 1;
const R_RELATIVE: u32 = 8;
/// Most entries that are looked at: a kernel has some thousand.
const MAX_ENTRIES: u64 = 8192;
/// Bytes of relocations that are looked at.
const MAX_RELOCATIONS: u64 = 24 << 20;
/// Longest name of a module (MAXMODNAME, sys/sys/module.h).
const MAX_NAME: usize = 32;

/// A module that a file has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provide {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: i32,
}

/// A module that a file needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Depend {
    /// Its name.
    pub name: String,
    /// The oldest version that will do.
    pub minimum: i32,
    /// The best version.
    pub preferred: i32,
    /// The newest version that will do.
    pub maximum: i32,
}

impl Depend {
    /// Whether a version will do.
    pub fn takes(&self, version: i32) -> bool {
        version == self.preferred || (self.minimum..=self.maximum).contains(&version)
    }
}

/// All that a file says.
#[derive(Default)]
pub struct Found {
    pub provides: Vec<Provide>,
    pub depends: Vec<Depend>,
}

/// What the file's pointers are.
pub enum Pointers<'a> {
    /// Addresses in segments.
    Linked(&'a [Segment]),
    /// Relocations; addresses are those that sections have got.
    Relocated,
}

/// Reads the set. A file without one says nothing.
pub fn read(image: &Image, sections: &Sections, pointers: &Pointers) -> Result<Found> {
    let mut found = Found::default();
    let Some(set) = sections.by_name(b"set_modmetadata_set") else { return Ok(found) };
    let count = set.size / 8;
    if count > MAX_ENTRIES {
        return Err(image.error(format!("damaged: it says it has {count} modules")));
    }
    let symbols = match pointers {
        Pointers::Linked(_) => Vec::new(),
        Pointers::Relocated => sections.symbols(image)?,
    };
    let (tables, room) = (HashMap::new(), MAX_RELOCATIONS);
    let mut reader = Reader { image, sections, pointers, symbols, tables, room };
    for n in 0..count {
        // An entry that leads nowhere says nothing; the kernel looks at it again.
        let Some(entry) = reader.pointer(set.addr.saturating_add(8 * n))? else { continue };
        let Some(kind) = reader.bytes::<4>(entry.wrapping_add(4))?.map(u32::from_le_bytes) else { continue };
        if kind != MDT_DEPEND && kind != MDT_VERSION {
            continue;
        }
        let data = reader.pointer(entry.wrapping_add(8))?;
        let name = reader.pointer(entry.wrapping_add(16))?;
        let (Some(data), Some(name)) = (data, name) else { continue };
        let (Some(name), Some(first)) = (reader.text(name)?, reader.bytes::<4>(data)?) else { continue };
        let first = i32::from_le_bytes(first);
        if kind == MDT_VERSION {
            found.provides.push(Provide { name, version: first });
        } else if let Some(rest) = reader.bytes::<8>(data.wrapping_add(4))? {
            let word = |at| rest.u32_at(at).unwrap_or(0) as i32;
            let (preferred, maximum) = (word(0), word(4));
            found.depends.push(Depend { name, minimum: first, preferred, maximum });
        }
    }
    Ok(found)
}

/// Reads by address what is still in the file.
struct Reader<'a> {
    image: &'a Image,
    sections: &'a Sections,
    pointers: &'a Pointers<'a>,
    symbols: Vec<u8>,
    /// Relocations of sections, by section: address and value.
    tables: HashMap<usize, HashMap<u64, u64>>,
    /// How many bytes of relocations may still be read.
    room: u64,
}

impl Reader<'_> {
    fn section_at(&self, address: u64) -> Option<(usize, &Section)> {
        self.sections
            .list
            .iter()
            .enumerate()
            .find(|(_, s)| s.addr != 0 && address.checked_sub(s.addr).is_some_and(|inside| inside < s.size))
    }

    fn file_offset(&self, address: u64) -> Option<u64> {
        match self.pointers {
            Pointers::Linked(segments) => segments.iter().find_map(|s| s.file_offset(address)),
            Pointers::Relocated => {
                let (_, section) = self.section_at(address)?;
                section.offset.checked_add(address - section.addr)
            }
        }
    }

    /// `N` bytes, if they are in the file.
    fn bytes<const N: usize>(&self, address: u64) -> Result<Option<[u8; N]>> {
        let mut bytes = [0; N];
        match self.file_offset(address) {
            Some(offset) if self.image.check(offset, N as u64).is_ok() => {
                self.image.read(offset, &mut bytes)?;
                Ok(Some(bytes))
            }
            _ => Ok(None),
        }
    }

    fn text(&self, address: u64) -> Result<Option<String>> {
        let Some(offset) = self.file_offset(address) else { return Ok(None) };
        let mut bytes = [0; MAX_NAME + 1];
        let len = self.image.len().saturating_sub(offset).min(bytes.len() as u64) as usize;
        let bytes = bytes.get_mut(..len).unwrap_or_default();
        self.image.read(offset, bytes)?;
        let Some(end) = bytes.iter().position(|b| *b == 0) else { return Ok(None) };
        Ok(String::from_utf8(bytes.get(..end).unwrap_or_default().to_vec()).ok())
    }

    /// The pointer at an address.
    fn pointer(&mut self, address: u64) -> Result<Option<u64>> {
        if let Pointers::Linked(_) = self.pointers {
            return Ok(self.bytes::<8>(address)?.map(u64::from_le_bytes));
        }
        let Some((index, _)) = self.section_at(address) else { return Ok(None) };
        if !self.tables.contains_key(&index) {
            let table = self.relocations(index)?;
            self.tables.insert(index, table);
        }
        Ok(self.tables.get(&index).and_then(|table| table.get(&address)).copied())
    }

    /// The 64-bit relocations of a section: which address gets which value.
    fn relocations(&mut self, target: usize) -> Result<HashMap<u64, u64>> {
        let mut values = HashMap::new();
        let Some(base) = self.sections.list.get(target).map(|s| s.addr) else { return Ok(values) };
        for table in self.sections.list.iter().filter(|s| s.kind == SHT_RELA && s.info as usize == target) {
            let bytes = self.image.read_vec(table.offset, table.size, self.room)?;
            self.room -= table.size;
            for entry in bytes.chunks_exact(24) {
                // r_offset, r_info (symbol and type), r_addend.
                let (Some(offset), Some(kind), Some(number), Some(addend)) =
                    (entry.u64_at(0), entry.u32_at(8), entry.u32_at(12), entry.u64_at(16))
                else {
                    continue;
                };
                let from = match kind {
                    R_64 => self.sections.symbol(&self.symbols, number).and_then(|s| {
                        let section = self.sections.list.get(usize::from(s.section))?;
                        (section.addr != 0).then_some(section.addr.wrapping_add(s.value))
                    }),
                    R_RELATIVE => Some(base),
                    _ => None,
                };
                if let Some(from) = from {
                    values.insert(base.wrapping_add(offset), from.wrapping_add(addend));
                }
            }
        }
        Ok(values)
    }
}
