//! Sections and symbols.

use media::Fields;

use super::Elf;
use crate::{Image, Result};

/// sh_type (System V ABI, "Sections").
pub const SHT_PROGBITS: u32 = 1;
pub const SHT_SYMTAB: u32 = 2;
pub const SHT_STRTAB: u32 = 3;
pub const SHT_RELA: u32 = 4;
pub const SHT_NOBITS: u32 = 8;
pub const SHT_REL: u32 = 9;
pub const SHT_INIT_ARRAY: u32 = 14;
pub const SHT_FINI_ARRAY: u32 = 15;
/// x86-64 psABI, "Sections".
pub const SHT_X86_64_UNWIND: u32 = 0x7000_0001;
/// sh_flags: takes memory when the program runs.
pub const SHF_ALLOC: u64 = 2;
/// A kernel has some hundred sections.
const MAX_SECTIONS: u16 = 4096;
/// Longest table of strings or symbols that is looked at.
const MAX_TABLE: u64 = 32 << 20;
/// Longest name that is looked at.
const MAX_NAME: usize = 256;

/// A section header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Section {
    name: u32,
    pub kind: u32,
    pub flags: u64,
    pub addr: u64,
    pub offset: u64,
    pub size: u64,
    pub link: u32,
    pub info: u32,
    pub align: u64,
    entry_size: u64,
}

/// A symbol (System V ABI, "Symbol Table").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol {
    name: u32,
    /// Index of the section that it is in; 0 is undefined.
    pub section: u16,
    pub value: u64,
}

/// A file's section headers with their names.
#[derive(Clone, Debug, Default)]
pub struct Sections {
    long: bool,
    pub list: Vec<Section>,
    names: Vec<u8>,
    /// Index of the section with the names.
    pub names_index: usize,
}

impl Sections {
    /// Reads the section headers; a file without any has an empty list.
    pub fn read(image: &Image, elf: &Elf) -> Result<Self> {
        let damaged = || image.error("damaged: its section headers make no sense");
        let b = elf.header.as_slice();
        let (table, entry_len, count, names) = if elf.long {
            (b.u64_at(0x28), b.u16_at(0x3a), b.u16_at(0x3c), b.u16_at(0x3e))
        } else {
            (b.u32_at(0x20).map(u64::from), b.u16_at(0x2e), b.u16_at(0x30), b.u16_at(0x32))
        };
        let table = table.ok_or_else(damaged)?;
        let count = count.filter(|c| *c <= MAX_SECTIONS).ok_or_else(damaged)?;
        if table == 0 || count == 0 {
            return Ok(Self { long: elf.long, ..Self::default() });
        }
        let want = if elf.long { 64 } else { 40 };
        let entry_len = usize::from(entry_len.filter(|e| *e == want).ok_or_else(damaged)?);
        let mut bytes = vec![0; entry_len * usize::from(count)];
        image.read(table, &mut bytes)?;
        let list: Option<Vec<Section>> =
            bytes.chunks_exact(entry_len).map(|b| if elf.long { parse64(b) } else { parse32(b) }).collect();
        let list = list.ok_or_else(damaged)?;
        let names_index = usize::from(names.unwrap_or(0));
        let names = match list.get(names_index) {
            Some(s) if names_index != 0 && s.kind == SHT_STRTAB => {
                image.read_vec(s.offset, s.size, MAX_TABLE)?
            }
            _ => Vec::new(),
        };
        Ok(Self { long: elf.long, list, names, names_index })
    }

    /// The name of a section.
    pub fn name(&self, section: &Section) -> &[u8] {
        text_at(&self.names, section.name)
    }

    /// The first section of that name.
    pub fn by_name(&self, name: &[u8]) -> Option<&Section> {
        self.list.iter().find(|s| self.name(s) == name)
    }

    /// Index of the only symbol table, and of its strings.
    pub fn symbol_table(&self) -> Option<(usize, usize)> {
        let mut tables = self.list.iter().enumerate().filter(|(_, s)| s.kind == SHT_SYMTAB);
        let (index, table) = tables.next()?;
        let strings = table.link as usize;
        (tables.next().is_none() && self.list.get(strings)?.kind == SHT_STRTAB).then_some((index, strings))
    }

    /// The bytes of the only symbol table; none if there is no such table.
    pub fn symbols(&self, image: &Image) -> Result<Vec<u8>> {
        match self.symbol_table().and_then(|(table, _)| self.list.get(table)) {
            Some(table) => image.read_vec(table.offset, table.size, MAX_TABLE),
            None => Ok(Vec::new()),
        }
    }

    /// A symbol by its number in the bytes of a table.
    pub fn symbol(&self, symbols: &[u8], number: u32) -> Option<Symbol> {
        let len = if self.long { 24 } else { 16 };
        parse_symbol(symbols.get((number as usize).checked_mul(len)?..)?, self.long)
    }

    /// The symbols of these names; bounded by the size of the file.
    pub fn find_symbols<const N: usize>(
        &self,
        image: &Image,
        names: [&[u8]; N],
    ) -> Result<[Option<Symbol>; N]> {
        let mut found = [None; N];
        let Some((table, strings)) = self.symbol_table() else { return Ok(found) };
        let (Some(table), Some(strings)) = (self.list.get(table), self.list.get(strings)) else {
            return Ok(found);
        };
        let strings = image.read_vec(strings.offset, strings.size, MAX_TABLE)?;
        let bytes = image.read_vec(table.offset, table.size, MAX_TABLE)?;
        for bytes in bytes.chunks_exact(if self.long { 24 } else { 16 }) {
            let Some(symbol) = parse_symbol(bytes, self.long) else { continue };
            let name = text_at(&strings, symbol.name);
            for (want, place) in names.iter().zip(&mut found) {
                if name == *want && symbol.section != 0 {
                    *place = Some(symbol);
                }
            }
        }
        Ok(found)
    }

    /// The headers as a file has them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for s in &self.list {
            let words = [s.flags, s.addr, s.offset, s.size];
            let tail = [s.align, s.entry_size];
            let mut put = |word: u64| {
                let word = word.to_le_bytes();
                bytes.extend_from_slice(word.get(..if self.long { 8 } else { 4 }).unwrap_or_default());
            };
            if self.long {
                put(u64::from(s.name) | u64::from(s.kind) << 32);
                words.into_iter().for_each(&mut put);
                put(u64::from(s.link) | u64::from(s.info) << 32);
            } else {
                put(u64::from(s.name));
                put(u64::from(s.kind));
                words.into_iter().for_each(&mut put);
                put(u64::from(s.link));
                put(u64::from(s.info));
            }
            tail.into_iter().for_each(&mut put);
        }
        bytes
    }
}

/// A text up to its NUL.
fn text_at(strings: &[u8], at: u32) -> &[u8] {
    let text = strings.get(at as usize..).unwrap_or_default();
    let text = text.get(..text.len().min(MAX_NAME)).unwrap_or_default();
    text.split(|b| *b == 0).next().unwrap_or_default()
}

fn parse_symbol(b: &[u8], long: bool) -> Option<Symbol> {
    if long {
        Some(Symbol { name: b.u32_at(0)?, section: b.u16_at(6)?, value: b.u64_at(8)? })
    } else {
        Some(Symbol { name: b.u32_at(0)?, section: b.u16_at(14)?, value: u64::from(b.u32_at(4)?) })
    }
}

fn parse64(b: &[u8]) -> Option<Section> {
    Some(Section {
        name: b.u32_at(0)?,
        kind: b.u32_at(4)?,
        flags: b.u64_at(8)?,
        addr: b.u64_at(0x10)?,
        offset: b.u64_at(0x18)?,
        size: b.u64_at(0x20)?,
        link: b.u32_at(0x28)?,
        info: b.u32_at(0x2c)?,
        align: b.u64_at(0x30)?,
        entry_size: b.u64_at(0x38)?,
    })
}

fn parse32(b: &[u8]) -> Option<Section> {
    let word = |at| b.u32_at(at).map(u64::from);
    Some(Section {
        name: b.u32_at(0)?,
        kind: b.u32_at(4)?,
        flags: word(8)?,
        addr: word(0xc)?,
        offset: word(0x10)?,
        size: word(0x14)?,
        link: b.u32_at(0x18)?,
        info: b.u32_at(0x1c)?,
        align: word(0x20)?,
        entry_size: word(0x24)?,
    })
}
