//! Makes ELF files for tests; tests of other crates take this file too.

#![allow(dead_code, missing_docs)]

/// Where FreeBSD kernels are linked.
pub const KERNBASE: u64 = 0xffff_ffff_8000_0000;

struct Segment {
    vaddr: u64,
    paddr: u64,
    bytes: Vec<u8>,
    mem_len: u64,
}

#[derive(Default, Clone)]
pub struct Section {
    pub name: &'static str,
    pub kind: u32,
    pub flags: u64,
    pub addr: u64,
    pub bytes: Vec<u8>,
    pub link: u32,
    pub info: u32,
    pub align: u64,
}

pub struct Maker {
    long: bool,
    kind: u16,
    entry: u64,
    segments: Vec<Segment>,
    sections: Vec<Section>,
}

impl Maker {
    /// An executable file.
    pub fn executable(long: bool, entry: u64) -> Self {
        Self { long, kind: 2, entry, segments: Vec::new(), sections: vec![Section::default()] }
    }

    /// A relocatable file of 64 bits.
    pub fn object() -> Self {
        Self { kind: 1, ..Self::executable(true, 0) }
    }

    pub fn segment(mut self, vaddr: u64, paddr: u64, bytes: &[u8], mem_len: u64) -> Self {
        self.segments.push(Segment { vaddr, paddr, bytes: bytes.to_vec(), mem_len });
        self
    }

    /// Adds a section; the answer is its index.
    pub fn section(&mut self, section: Section) -> u32 {
        self.sections.push(section);
        self.sections.len() as u32 - 1
    }

    pub fn build(mut self) -> Vec<u8> {
        let (head, ph, sh) = if self.long { (64, 56, 64) } else { (52, 32, 40) };
        let names_index = self.section(Section { name: ".shstrtab", kind: 3, ..Section::default() });
        let mut names = vec![0];
        let mut name_at = Vec::new();
        for section in &self.sections {
            name_at.push(if section.name.is_empty() { 0 } else { names.len() as u32 });
            if !section.name.is_empty() {
                names.extend_from_slice(section.name.as_bytes());
                names.push(0);
            }
        }
        self.sections[names_index as usize].bytes = names;
        let mut b = vec![0; head + ph * self.segments.len()];
        let place = |b: &mut Vec<u8>, bytes: &[u8]| {
            b.resize(b.len().next_multiple_of(16), 0xee);
            let at = b.len() as u64;
            b.extend_from_slice(bytes);
            at
        };
        let segments: Vec<u64> = self.segments.iter().map(|s| place(&mut b, &s.bytes)).collect();
        let sections: Vec<u64> = self.sections.iter().map(|s| place(&mut b, &s.bytes)).collect();
        let table = place(&mut b, &[]);
        for (n, s) in self.sections.iter().enumerate() {
            let size = s.bytes.len() as u64;
            let words = [s.flags, s.addr, if n == 0 { 0 } else { sections[n] }, size];
            if self.long {
                b.extend([name_at[n], s.kind].iter().flat_map(|w| w.to_le_bytes()));
                b.extend(words.iter().flat_map(|w| w.to_le_bytes()));
                b.extend([s.link, s.info].iter().flat_map(|w| w.to_le_bytes()));
                b.extend([s.align, 0].iter().flat_map(|w| w.to_le_bytes()));
            } else {
                let w: Vec<u32> = words.iter().map(|w| *w as u32).collect();
                let all = [name_at[n], s.kind, w[0], w[1], w[2], w[3], s.link, s.info, s.align as u32, 0];
                b.extend(all.iter().flat_map(|w| w.to_le_bytes()));
            }
        }
        let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF");
        put(4, &[if self.long { 2 } else { 1 }, 1, 1]);
        let machine = if self.long { 62 } else { 3u16 };
        put(0x10, &[self.kind.to_le_bytes(), machine.to_le_bytes()].concat());
        put(0x14, &[1]);
        let counts = [head, ph, self.segments.len(), sh, self.sections.len(), names_index as usize];
        let counts: Vec<u8> = counts.iter().flat_map(|c| (*c as u16).to_le_bytes()).collect();
        let has_segments = if self.segments.is_empty() { 0 } else { head as u64 };
        let words = [self.entry, has_segments, table];
        if self.long {
            put(0x18, &words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>());
            put(0x34, &counts);
        } else {
            put(0x18, &words.iter().flat_map(|w| (*w as u32).to_le_bytes()).collect::<Vec<u8>>());
            put(0x28, &counts);
        }
        for (n, s) in self.segments.iter().enumerate() {
            let (at, len) = (head + ph * n, s.bytes.len() as u64);
            let words = [segments[n], s.vaddr, s.paddr, len, s.mem_len, 0x1000];
            put(at, &[1]);
            if self.long {
                put(at + 8, &words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>());
            } else {
                let w = [words[0], words[1], words[2], words[3], words[4], 7, words[5]];
                put(at + 4, &w.iter().flat_map(|w| (*w as u32).to_le_bytes()).collect::<Vec<u8>>());
            }
        }
        b
    }
}

/// A symbol of a 64-bit table.
pub fn symbol64(name: u32, section: u16, value: u64) -> Vec<u8> {
    let mut b = name.to_le_bytes().to_vec();
    b.extend([0, 0]);
    b.extend(section.to_le_bytes());
    b.extend(value.to_le_bytes());
    b.extend([0; 8]);
    b
}

/// What a module says of itself: provided modules with versions, and needed ones.
pub type Says<'a> = (&'a [(&'a str, i32)], &'a [(&'a str, i32, i32, i32)]);

/// The structures of `modmetadata_set` as one block: structures of 24 bytes first. The pointers
/// are in a list: where, and what they point at, both from the start of the block.
fn metadata((provides, depends): Says) -> (Vec<u8>, Vec<(u64, u64)>, u64) {
    let count = provides.len() + depends.len();
    let mut block = vec![0; 24 * count + 16 * count];
    let mut pointers = Vec::new();
    let all = depends.iter().map(|(n, a, b, c)| (*n, 1u32, vec![*a, *b, *c]));
    let all = all.chain(provides.iter().map(|(n, v)| (*n, 3, vec![*v])));
    for (n, (name, kind, numbers)) in all.enumerate() {
        let (at, data, text) = (24 * n, 24 * count + 16 * n, block.len());
        block[at..at + 4].copy_from_slice(&1u32.to_le_bytes());
        block[at + 4..at + 8].copy_from_slice(&kind.to_le_bytes());
        for (i, number) in numbers.iter().enumerate() {
            block[data + 4 * i..data + 4 * i + 4].copy_from_slice(&number.to_le_bytes());
        }
        block.extend_from_slice(name.as_bytes());
        block.push(0);
        pointers.push((at as u64 + 8, data as u64));
        pointers.push((at as u64 + 16, text as u64));
    }
    (block, pointers, count as u64)
}

/// A module of FreeBSD/amd64, whose code is `code`.
pub fn freebsd_module(code: &[u8], says: Says) -> Vec<u8> {
    let (block, pointers, count) = metadata(says);
    let rela = |list: &[(u64, u64)]| -> Vec<u8> {
        // R_X86_64_64 against symbol 1, the data section.
        list.iter().flat_map(|(at, to)| [*at, 1 << 32 | 1, *to]).flat_map(u64::to_le_bytes).collect()
    };
    let set: Vec<(u64, u64)> = (0..count).map(|n| (8 * n, 24 * n)).collect();
    let mut elf = Maker::object();
    let section = |name, kind, flags, bytes: Vec<u8>, align| Section {
        name,
        kind,
        flags,
        bytes,
        align,
        ..Section::default()
    };
    elf.section(section(".text", 1, 6, code.to_vec(), 16));
    let data = elf.section(section(".data", 1, 3, block, 64));
    let list = elf.section(section("set_modmetadata_set", 1, 2, vec![0; 8 * count as usize], 8));
    let symbols = [symbol64(0, 0, 0), symbol64(0, data as u16, 0), symbol64(1, 1, 4)].concat();
    let strings = elf.section(section(".strtab", 3, 0, b"\0start\0".to_vec(), 1));
    let table = elf.section(Section { link: strings, info: 2, ..section(".symtab", 2, 0, symbols, 8) });
    let with = |info, s: Section| Section { link: table, info, ..s };
    elf.section(with(data, section(".rela.data", 4, 0, rela(&pointers), 8)));
    elf.section(with(list, section(".rela.set_modmetadata_set", 4, 0, rela(&set), 8)));
    elf.section(section(".comment", 1, 0, b"not loaded".to_vec(), 1));
    elf.build()
}

/// A kernel of FreeBSD/amd64: `code` at its entry point, some zeroed memory, and symbols.
pub fn freebsd_kernel(code: &[u8], says: Says) -> Vec<u8> {
    let base = KERNBASE + 0x20_0000;
    let (mut block, pointers, count) = metadata(says);
    let block_at = base + 0x4000;
    for (at, to) in pointers {
        block[at as usize..at as usize + 8].copy_from_slice(&(block_at + to).to_le_bytes());
    }
    let set: Vec<u8> = (0..count).flat_map(|n| (block_at + 24 * n).to_le_bytes()).collect();
    let mut image = vec![0x90; 0x1000];
    image.extend_from_slice(code);
    image.resize(0x3000, 0xcc);
    image.extend_from_slice(&set);
    image.resize(0x4000, 0);
    image.extend_from_slice(&block);
    let len = image.len() as u64;
    let mut elf = Maker::executable(true, base + 0x1000).segment(base, 0x20_0000, &image, len + 0x5000);
    elf.section(Section {
        name: "set_modmetadata_set",
        kind: 1,
        flags: 2,
        addr: base + 0x3000,
        bytes: set,
        align: 8,
        ..Section::default()
    });
    let strings =
        elf.section(Section { name: ".strtab", kind: 3, bytes: b"\0btext\0".to_vec(), ..Section::default() });
    let symbols = [symbol64(0, 0, 0), symbol64(1, 1, base + 0x1000)].concat();
    elf.section(Section {
        name: ".symtab",
        kind: 2,
        bytes: symbols,
        link: strings,
        align: 8,
        ..Section::default()
    });
    elf.build()
}
