//! ELF headers, segments and notes, 32 and 64 bits (System V ABI, "Object Files").

mod sections;

use media::Fields;
use memory::GuestMemory;

use crate::{Image, Result};

pub use sections::*;

pub const PT_LOAD: u32 = 1;
pub const PT_DYNAMIC: u32 = 2;
const PT_NOTE: u32 = 4;
/// OpenBSD: bytes that the loader fills with random ones (elf(5)).
const PT_OPENBSD_RANDOMIZE: u32 = 0x65a3_dbe6;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const DATA_LSB: u8 = 1;
/// e_type: relocatable, executable, shared object.
pub const ET_REL: u16 = 1;
pub const ET_EXEC: u16 = 2;
pub const ET_DYN: u16 = 3;
/// A kernel has a handful of segments; more is a damaged or hostile file.
const MAX_SEGMENTS: u16 = 256;
/// Longest note segment that is looked at.
const MAX_NOTES: u64 = 1 << 16;

/// A loadable segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    pub offset: u64,
    pub vaddr: u64,
    pub paddr: u64,
    pub file_len: u64,
    pub mem_len: u64,
}

impl Segment {
    /// Puts the segment at `gpa`: the file's bytes, then zeros.
    pub fn place(&self, image: &Image, memory: &GuestMemory, gpa: u64) -> Result<()> {
        image.place(memory, self.offset, self.file_len, gpa)?;
        let bss = self.mem_len - self.file_len;
        if bss > 0 {
            memory.fill(gpa + self.file_len, 0, bss)?;
        }
        Ok(())
    }

    /// Where `vaddr` is in the file, if the segment has it there.
    pub fn file_offset(&self, vaddr: u64) -> Option<u64> {
        let inside = vaddr.checked_sub(self.vaddr).filter(|inside| *inside < self.file_len)?;
        self.offset.checked_add(inside)
    }
}

/// What a loader needs of an ELF file.
#[derive(Clone, Debug, Default)]
pub struct Elf {
    /// 64 bits rather than 32.
    pub long: bool,
    /// For x86-64 rather than i386.
    pub amd64: bool,
    /// e_type.
    pub kind: u16,
    pub entry: u64,
    /// The ELF header's own bytes.
    pub header: Vec<u8>,
    pub segments: Vec<Segment>,
    /// Virtual address of the dynamic section.
    pub dynamic: Option<u64>,
    /// What OpenBSD wants filled with random bytes.
    pub random: Vec<Segment>,
    /// Note segments with their alignment.
    notes: Vec<(Vec<u8>, usize)>,
}

struct Header {
    kind: u32,
    segment: Segment,
    align: u64,
}

/// Whether the file starts as an ELF file.
pub fn is_elf(image: &Image) -> bool {
    let mut magic = [0; 4];
    image.len() >= 4 && image.read(0, &mut magic).is_ok() && &magic == b"\x7fELF"
}

impl Elf {
    pub fn read(image: &Image) -> Result<Self> {
        let damaged = || image.error("damaged: its ELF header makes no sense");
        let mut ident = [0; 64];
        let head_len = image.len().min(64) as usize;
        image.read(0, ident.get_mut(..head_len).unwrap_or_default())?;
        let long = match ident.get(4) {
            Some(1) => false,
            Some(2) => true,
            _ => return Err(damaged()),
        };
        let machine = ident.u16_at(0x12).unwrap_or(0);
        if ident.get(5) != Some(&DATA_LSB) || !(machine == EM_386 || machine == EM_X86_64) {
            return Err(image.error("an ELF file, but not for x86"));
        }
        let (entry, table, entry_len, count) = if long {
            (ident.u64_at(0x18), ident.u64_at(0x20), ident.u16_at(0x36), ident.u16_at(0x38))
        } else {
            let word = |at| ident.u32_at(at).map(u64::from);
            (word(0x18), word(0x1c), ident.u16_at(0x2a), ident.u16_at(0x2c))
        };
        let mut elf = Self {
            long,
            amd64: machine == EM_X86_64,
            kind: ident.u16_at(0x10).ok_or_else(damaged)?,
            entry: entry.ok_or_else(damaged)?,
            header: ident.get(..if long { 64 } else { 52 }).unwrap_or_default().to_vec(),
            ..Self::default()
        };
        let count = count.filter(|c| *c <= MAX_SEGMENTS).ok_or_else(damaged)?;
        if count == 0 {
            return Ok(elf);
        }
        let entry_len = entry_len.filter(|e| *e >= if long { 56 } else { 32 }).ok_or_else(damaged)?;
        let mut headers = vec![0; usize::from(entry_len) * usize::from(count)];
        image.read(table.ok_or_else(damaged)?, &mut headers)?;
        for bytes in headers.chunks_exact(usize::from(entry_len)) {
            let header = if long { parse64(bytes) } else { parse32(bytes) }.ok_or_else(damaged)?;
            elf.add(image, &header)?;
        }
        Ok(elf)
    }

    fn add(&mut self, image: &Image, header: &Header) -> Result<()> {
        let segment = header.segment;
        match header.kind {
            PT_LOAD if segment.mem_len > 0 => {
                if segment.file_len > segment.mem_len {
                    return Err(image.error("damaged: a segment is longer in the file than in memory"));
                }
                image.check(segment.offset, segment.file_len)?;
                self.segments.push(segment);
            }
            PT_DYNAMIC => self.dynamic = Some(segment.vaddr),
            PT_OPENBSD_RANDOMIZE => self.random.push(segment),
            PT_NOTE if segment.file_len <= MAX_NOTES => {
                let mut notes = vec![0; segment.file_len as usize];
                image.read(segment.offset, &mut notes)?;
                self.notes.push((notes, if header.align == 8 { 8 } else { 4 }));
            }
            _ => {}
        }
        Ok(())
    }

    /// The descriptor of the first note of `name` (with its NUL) and `kind`.
    pub fn note(&self, name: &[u8], kind: u32) -> Option<&[u8]> {
        self.notes.iter().find_map(|(bytes, align)| find_note(bytes, *align, name, kind))
    }
}

fn parse64(b: &[u8]) -> Option<Header> {
    Some(Header {
        kind: b.u32_at(0)?,
        segment: Segment {
            offset: b.u64_at(8)?,
            vaddr: b.u64_at(0x10)?,
            paddr: b.u64_at(0x18)?,
            file_len: b.u64_at(0x20)?,
            mem_len: b.u64_at(0x28)?,
        },
        align: b.u64_at(0x30)?,
    })
}

fn parse32(b: &[u8]) -> Option<Header> {
    let word = |at| b.u32_at(at).map(u64::from);
    Some(Header {
        kind: b.u32_at(0)?,
        segment: Segment {
            offset: word(4)?,
            vaddr: word(8)?,
            paddr: word(0xc)?,
            file_len: word(0x10)?,
            mem_len: word(0x14)?,
        },
        align: word(0x1c)?,
    })
}

fn find_note<'a>(bytes: &'a [u8], align: usize, name: &[u8], kind: u32) -> Option<&'a [u8]> {
    const HEADER_LEN: usize = 12;
    let mut at = 0usize;
    // Every turn goes on by a header's length at least.
    loop {
        let note = bytes.get(at..)?;
        let (name_len, desc_len) = (note.u32_at(0)? as usize, note.u32_at(4)? as usize);
        let desc = HEADER_LEN.checked_add(name_len)?.checked_next_multiple_of(align)?;
        let end = desc.checked_add(desc_len)?;
        if note.u32_at(8)? == kind && note.get(HEADER_LEN..HEADER_LEN + name_len)? == name {
            return note.get(desc..end);
        }
        at = at.checked_add(end.checked_next_multiple_of(align)?)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
        let mut b = Vec::new();
        for word in [name.len() as u32, desc.len() as u32, kind] {
            b.extend_from_slice(&word.to_le_bytes());
        }
        b.extend_from_slice(name);
        b.resize(b.len().next_multiple_of(4), 0);
        b.extend_from_slice(desc);
        b.resize(b.len().next_multiple_of(4), 0);
        b
    }

    #[test]
    fn notes_are_found_behind_others() {
        let bytes = [note(b"GNU\0", 3, &[1; 20]), note(b"Xen\0", 6, b"linux\0"), note(b"Xen\0", 18, &[9; 4])]
            .concat();
        assert_eq!(find_note(&bytes, 4, b"Xen\0", 18), Some(&[9u8; 4][..]));
        assert_eq!(find_note(&bytes, 4, b"Xen\0", 19), None);
        assert_eq!(find_note(&bytes[..bytes.len() - 1], 4, b"Xen\0", 18), None);
    }

    #[test]
    fn hostile_note_lengths_end_the_search() {
        for len in [u32::MAX, u32::MAX - 12, 0x7fff_ffff] {
            let mut bytes = note(b"Xen\0", 1, &[0; 8]);
            bytes[0..4].copy_from_slice(&len.to_le_bytes());
            assert_eq!(find_note(&bytes, 8, b"Xen\0", 18), None);
            bytes[0..4].copy_from_slice(&4u32.to_le_bytes());
            bytes[4..8].copy_from_slice(&len.to_le_bytes());
            assert_eq!(find_note(&bytes, 8, b"Xen\0", 18), None);
        }
    }
}
