//! Multiboot 1 (Multiboot Specification, version 0.6.96).

use media::Fields;
use memory::{GuestMemory, PAGE_SIZE};

use crate::elf::{self, Elf};
use crate::handoff::{self, KERNEL_MIN, words};
use crate::{Entry, Image, MapEntry, Mode, Result};

/// The header: in the first 8 KiB, at a multiple of 4 (3.1).
const MAGIC: u32 = 0x1bad_b002;
const SEARCH: u64 = 8192;
/// Flags of the header that have to be understood (3.1.2): module alignment and memory information
/// are always given; a video mode can't be.
const PAGE_ALIGN: u32 = 1;
const MEMORY_INFO: u32 = 2;
const VIDEO_MODE: u32 = 4;
const REQUIRED: u32 = 0xffff;
/// Addresses are in the header itself.
const ADDRESSES: u32 = 1 << 16;

/// What EAX holds (3.2), and flags of the information structure (3.3).
const BOOT_MAGIC: u64 = 0x2bad_b002;
const INFO_MEMORY: u32 = 1;
const INFO_CMDLINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_MAP: u32 = 1 << 6;
const INFO_LOADER: u32 = 1 << 9;
const INFO_LEN: usize = 116;
/// The structure and what it points at.
const INFO: u64 = 0x1_0000;
const INFO_END: u64 = 0x9_0000;
/// Modules lie where a 32-bit kernel reaches them.
const LIMIT: u64 = 0xc000_0000;

/// A file to load beside the kernel.
pub struct Module {
    /// The file.
    pub image: Image,
    /// Its command line.
    pub cmdline: Vec<u8>,
}

/// What the kernel is told.
pub struct Request<'a> {
    /// Guest RAM.
    pub memory: &'a GuestMemory,
    /// The kernel's command line.
    pub cmdline: &'a [u8],
    /// Files beside the kernel.
    pub modules: &'a [Module],
    /// The boot loader's name.
    pub loader: &'a str,
    /// The memory map, in ascending order.
    pub map: &'a [MapEntry],
}

/// A piece of the kernel: where it is in the file, how much, where it goes, how much it takes there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    offset: u64,
    file_len: u64,
    at: u64,
    mem_len: u64,
}

/// A Multiboot kernel.
pub struct Kernel {
    image: Image,
    pieces: Vec<Piece>,
    entry: u64,
}

impl Kernel {
    /// Checks that `image` is a kernel that can be loaded.
    pub fn read(image: Image) -> Result<Self> {
        let mut head = vec![0; image.len().min(SEARCH) as usize];
        image.read(0, &mut head)?;
        let Some(at) = find(&head) else {
            return Err(image.error("not a Multiboot kernel: there is no header in its first 8 KiB"));
        };
        let flags = head.u32_at(at + 4).unwrap_or(0);
        if flags & VIDEO_MODE != 0 {
            return Err(image.error("wants a video mode, which is not supported"));
        }
        let unknown = flags & REQUIRED & !(PAGE_ALIGN | MEMORY_INFO);
        if unknown != 0 {
            return Err(image.error(format!("wants the unknown Multiboot features {unknown:#x}")));
        }
        let (pieces, entry) = if flags & ADDRESSES != 0 {
            let piece = by_addresses(&image, &head, at)
                .ok_or_else(|| image.error("damaged: the addresses in its Multiboot header make no sense"))?;
            (vec![piece], u64::from(head.u32_at(at + 28).unwrap_or(0)))
        } else if elf::is_elf(&image) {
            by_elf(&Elf::read(&image)?)
        } else {
            return Err(image.error("neither an ELF file nor with addresses in its Multiboot header"));
        };
        let inside = |p: &Piece| (p.at..p.at.saturating_add(p.mem_len)).contains(&entry);
        if !pieces.iter().any(inside) || entry > u64::from(u32::MAX) {
            return Err(image.error(format!("damaged: its entry point {entry:#x} is in no segment")));
        }
        Ok(Self { image, pieces, entry })
    }

    /// Loads it.
    pub fn load(&self, request: &Request) -> Result<Entry> {
        handoff::check_map(request.map)?;
        let memory = request.memory;
        let mut end = KERNEL_MIN;
        for piece in &self.pieces {
            if piece.at < KERNEL_MIN || !memory.contains(piece.at, piece.mem_len) {
                let (at, len) = (piece.at, piece.mem_len);
                return Err(self
                    .image
                    .error(format!("its segment at {at:#x}+{len:#x} is not in the guest's memory")));
            }
            end = end.max(piece.at + piece.mem_len);
        }
        for piece in &self.pieces {
            self.image.place(memory, piece.offset, piece.file_len, piece.at)?;
            memory.fill(piece.at + piece.file_len, 0, piece.mem_len - piece.file_len)?;
        }
        let places = place_modules(request, end)?;
        let info = info(request, &places)?;
        memory.write(INFO, &info)?;
        let entry = handoff::entry(memory, Mode::Protected32, self.entry)?;
        Ok(Entry { rax: BOOT_MAGIC, rbx: INFO, ..entry })
    }
}

/// Where the header is: magic, flags and checksum add up to zero.
fn find(head: &[u8]) -> Option<usize> {
    (0..head.len()).step_by(4).find(|at| {
        let word = |n: usize| head.u32_at(at + 4 * n);
        let (Some(magic), Some(flags), Some(check)) = (word(0), word(1), word(2)) else { return false };
        magic == MAGIC && magic.wrapping_add(flags).wrapping_add(check) == 0
    })
}

/// The address fields of the header (3.1.3).
fn by_addresses(image: &Image, head: &[u8], at: usize) -> Option<Piece> {
    let word = |n: usize| head.u32_at(at + 4 * n).map(u64::from);
    let (header, load, load_end, bss_end) = (word(3)?, word(4)?, word(5)?, word(6)?);
    let offset = (at as u64).checked_sub(header.checked_sub(load)?)?;
    let file_len =
        if load_end == 0 { image.len().checked_sub(offset)? } else { load_end.checked_sub(load)? };
    image.check(offset, file_len).ok()?;
    let mem_len = if bss_end == 0 { file_len } else { bss_end.checked_sub(load)? };
    (mem_len >= file_len && mem_len > 0).then_some(Piece { offset, file_len, at: load, mem_len })
}

/// An ELF file's segments. The entry point is a physical address, or a virtual one in a segment.
fn by_elf(elf: &Elf) -> (Vec<Piece>, u64) {
    let pieces = elf
        .segments
        .iter()
        .map(|s| Piece { offset: s.offset, file_len: s.file_len, at: s.paddr, mem_len: s.mem_len })
        .collect();
    let physical = elf.segments.iter().find_map(|s| {
        let inside = elf.entry.checked_sub(s.vaddr).filter(|inside| *inside < s.mem_len)?;
        s.paddr.checked_add(inside)
    });
    (pieces, physical.unwrap_or(elf.entry))
}

/// Reads the modules behind the kernel, each to a page of its own; the answer is where they are.
fn place_modules(request: &Request, kernel_end: u64) -> Result<Vec<(u64, u64)>> {
    let mut next = kernel_end.next_multiple_of(PAGE_SIZE);
    let mut places = Vec::new();
    let top = handoff::low_end(request.memory).min(LIMIT);
    for module in request.modules {
        let len = module.image.len();
        let Some(end) = next.checked_add(len).filter(|end| *end <= top) else {
            let room = top.saturating_sub(next);
            return Err(module
                .image
                .error(format!("{len} bytes long, the guest's memory has room for {room} bytes")));
        };
        module.image.place(request.memory, 0, len, next)?;
        places.push((next, end));
        next = end.next_multiple_of(PAGE_SIZE);
    }
    Ok(places)
}

/// The information structure and, behind it, what it points at (3.3).
fn info(request: &Request, places: &[(u64, u64)]) -> Result<Vec<u8>> {
    let mut bytes = vec![0; INFO_LEN];
    let mut add = |data: &[u8]| {
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let at = INFO as u32 + bytes.len() as u32;
        bytes.extend_from_slice(data);
        at
    };
    let text = |text: &[u8]| [text, &[0]].concat();
    let cmdline = add(&text(request.cmdline));
    let loader = add(&text(request.loader.as_bytes()));
    let mut list = Vec::new();
    for (module, (start, end)) in request.modules.iter().zip(places) {
        let cmdline = add(&text(&module.cmdline));
        list.extend_from_slice(&words(&[*start as u32, *end as u32, cmdline, 0]));
    }
    let modules = add(&list);
    let mut map = Vec::new();
    for entry in handoff::smap(request.map).chunks_exact(20) {
        // The size field comes first and doesn't count itself.
        map.extend_from_slice(&words(&[20]));
        map.extend_from_slice(entry);
    }
    let map_at = add(&map);
    let (lower, upper) = handoff::lower_upper(request.map);
    let mut flags = INFO_MEMORY | INFO_CMDLINE | INFO_MAP | INFO_LOADER;
    if !places.is_empty() {
        flags |= INFO_MODULES;
    }
    let mut put = |at: usize, values: &[u32]| {
        let values = words(values);
        if let Some(field) = bytes.get_mut(at..at + values.len()) {
            field.copy_from_slice(&values);
        }
    };
    put(0, &[flags, lower, upper, 0, cmdline, places.len() as u32, modules]);
    put(44, &[map.len() as u32, map_at]);
    put(64, &[loader]);
    let (len, room) = (bytes.len() as u64, INFO_END - INFO);
    if len > room {
        return Err(crate::Error::Room { what: "what a Multiboot kernel is told", len, room });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_elf::Maker;
    use crate::test_image::{MAP, at, image, long, memory, word};

    fn header(flags: u32, addresses: &[u32]) -> Vec<u8> {
        let check = 0u32.wrapping_sub(MAGIC).wrapping_sub(flags);
        words(&[&[MAGIC, flags, check], addresses].concat())
    }

    fn request<'a>(memory: &'a GuestMemory, modules: &'a [Module]) -> Request<'a> {
        Request { memory, cmdline: b"gnumach root=x", modules, loader: "GRUB 2.00", map: &MAP }
    }

    #[test]
    fn an_elf_kernel_gets_modules_map_and_texts() {
        let m = memory(16 << 20);
        for long_elf in [false, true] {
            let mut bytes = vec![0; 32];
            bytes.extend_from_slice(&header(3, &[]));
            // Linked high, loaded low, as the Hurd's Mach.
            let base = if long_elf { 0xffff_ffff_8010_0000 } else { 0xc010_0000 };
            let elf = Maker::executable(long_elf, base + 16).segment(base, 0x10_0000, &bytes, 0x2000).build();
            let modules = [
                Module { image: image("a", vec![1; 5000]), cmdline: b"ext2fs --x".to_vec() },
                Module { image: image("b", vec![2; 3]), cmdline: Vec::new() },
            ];
            m.fill(0x10_1000, 0xff, 0x1000).unwrap();
            let entry = Kernel::read(image("k", elf)).unwrap().load(&request(&m, &modules)).unwrap();
            assert_eq!((entry.mode, entry.rip, entry.rax), (Mode::Protected32, 0x10_0010, 0x2bad_b002));
            assert_eq!((word(&m, 0x10_0020), word(&m, 0x10_1ffc)), (MAGIC, 0));
            let i = entry.rbx;
            assert_eq!([0, 4, 8].map(|n| word(&m, i + n)), [0x24d, 640, 3072]);
            assert_eq!(&at::<15>(&m, u64::from(word(&m, i + 16))), b"gnumach root=x\0");
            assert_eq!(&at::<10>(&m, u64::from(word(&m, i + 64))), b"GRUB 2.00\0");
            assert_eq!(word(&m, i + 20), 2);
            let list = u64::from(word(&m, i + 24));
            let [start, end, text] = [0, 4, 8].map(|n| u64::from(word(&m, list + n)));
            assert_eq!((start, end, &at::<11>(&m, text)), (0x10_2000, 0x10_2000 + 5000, b"ext2fs --x\0"));
            assert_eq!((at::<5000>(&m, start), word(&m, list + 16)), ([1; 5000], 0x10_4000));
            let (len, map) = (word(&m, i + 44), u64::from(word(&m, i + 48)));
            assert_eq!((len, word(&m, map), long(&m, map + 24 + 4)), (48, 20, 0x10_0000));
            assert_eq!((long(&m, map + 24 + 12), word(&m, map + 24 + 20)), (0x30_0000, 1));
        }
    }

    #[test]
    fn addresses_in_the_header_count_before_elf() {
        let m = memory(16 << 20);
        let mut file = vec![0x11; 0x100];
        // The header at 100h of the file and 200100h in memory: loaded from 80h on.
        file.extend_from_slice(&header(1 << 16, &[0x20_0100, 0x20_0080, 0x20_0180, 0x20_0300, 0x20_0090]));
        file.resize(0x200, 0x22);
        let kernel = Kernel::read(image("k", file.clone())).unwrap();
        m.fill(0x20_0000, 0xff, 0x1000).unwrap();
        let entry = kernel.load(&request(&m, &[])).unwrap();
        assert_eq!((entry.rip, word(&m, entry.rbx) & 8), (0x20_0090, 0));
        assert_eq!((word(&m, 0x20_0080), word(&m, 0x20_0100)), (0x1111_1111, MAGIC));
        assert_eq!((word(&m, 0x20_017c), word(&m, 0x20_0180)), (0x2222_2222, 0));
        assert_eq!((word(&m, 0x20_02fc), word(&m, 0x20_0300)), (0, 0xffff_ffff));
        // A kernel without an end has the rest of the file and no zeros.
        file[0x114..0x11c].fill(0);
        Kernel::read(image("k", file.clone())).unwrap().load(&request(&m, &[])).unwrap();
        assert_eq!(word(&m, 0x20_01fc - 0x80), 0x2222_2222);
        file[0x110..0x114].copy_from_slice(&0x20_0101u32.to_le_bytes());
        assert!(Kernel::read(image("k", file)).is_err());
    }

    #[test]
    fn what_is_wanted_and_not_there_is_refused() {
        let with = |flags| {
            let mut bytes = vec![0; 0x40];
            bytes.extend_from_slice(&header(flags, &[]));
            bytes
        };
        let elf = |flags, entry, paddr| {
            Maker::executable(false, entry).segment(paddr, paddr, &with(flags), 0x1000).build()
        };
        let cases = [
            (vec![0; 10_000], "not a Multiboot kernel: there is no header in its first 8 KiB"),
            ([vec![0; 8192], with(0)].concat(), "not a Multiboot kernel"),
            (elf(4, 0x10_0000, 0x10_0000), "wants a video mode, which is not supported"),
            (elf(0x28, 0x10_0000, 0x10_0000), "wants the unknown Multiboot features 0x28"),
            (with(0), "neither an ELF file nor with addresses"),
            (elf(0, 0x30_0000, 0x10_0000), "damaged: its entry point 0x300000 is in no segment"),
        ];
        for (bytes, expected) in cases {
            let error = Kernel::read(image("k", bytes)).err().unwrap().to_string();
            assert!(error.starts_with(&format!("k: {expected}")), "{error}");
        }
        let m = memory(4 << 20);
        for paddr in [0x1000, 0x50_0000] {
            let kernel = Kernel::read(image("k", elf(0, paddr, paddr))).unwrap();
            let error = kernel.load(&request(&m, &[])).unwrap_err().to_string();
            assert!(error.contains("is not in the guest's memory"), "{error}");
        }
        let kernel = Kernel::read(image("k", elf(0, 0x10_0000, 0x10_0000))).unwrap();
        let modules = [Module { image: image("m", vec![0; 3 << 20]), cmdline: Vec::new() }];
        let error = kernel.load(&request(&m, &modules)).unwrap_err().to_string();
        assert_eq!(error, "m: 3145728 bytes long, the guest's memory has room for 3141632 bytes");
    }
}
