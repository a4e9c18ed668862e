//! What a kernel finds in low memory: descriptor table, page tables, command line, RAM disk.

use memory::{GuestMemory, PAGE_SIZE};

use crate::{Entry, Error, Image, MapEntry, Mode, Result};

/// Most entries of the memory map: the zero page has room for 128 (boot protocol, `e820_table`).
pub const MAX_MAP: usize = 128;
/// Kernels lie at 1 MiB or higher; below are our structures, VGA memory and firmware tables.
pub const KERNEL_MIN: u64 = 0x10_0000;

/// Places below 640 KiB. The BIOS data area at 400h stays empty.
const GDT: u64 = 0x1000;
/// Start info, module list and memory map of PVH.
pub const PVH_INFO: u64 = 0x2000;
/// Linux boot_params.
pub const ZERO_PAGE: u64 = 0x7000;
/// PML4, PDPT and four page directories.
const PAGE_TABLES: u64 = 0x9000;
pub const CMDLINE: u64 = 0x2_0000;
/// Room for the command line.
const CMDLINE_ROOM: usize = 0x1_0000;

/// Selectors: the boot protocol asks for code at 10h and data at 18h.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TSS: u16 = 0x20;

/// Flat descriptors (Intel SDM vol. 3, 3.4.5) and a TSS of 68h bytes at 0.
const CODE64: u64 = 0x00af_9b00_0000_ffff;
const CODE32: u64 = 0x00cf_9b00_0000_ffff;
const DATA32: u64 = 0x00cf_9300_0000_ffff;
const TSS32: u64 = 0x0000_8b00_0000_0067;

/// Page table entry bits (Intel SDM vol. 3, 4.5): present, writable, 2 MiB page.
const TABLE: u64 = 3;
const LARGE: u64 = 0x83;
const LARGE_SIZE: u64 = 2 << 20;

/// RAM that starts at 0: where it ends.
pub fn low_end(memory: &GuestMemory) -> u64 {
    memory.regions().first().filter(|r| r.gpa() == 0).map_or(0, memory::Region::len)
}

/// The map that bhyve's loaders tell kernels: RAM up to 640 KiB, from 1 MiB to the end of the RAM
/// below 4 GiB, and above 4 GiB.
pub fn memory_map(memory: &GuestMemory) -> Vec<MapEntry> {
    const BASE_END: u64 = 0xa_0000;
    let mut map = Vec::new();
    let mut add = |base: u64, end: u64| {
        if end > base {
            map.push(MapEntry { base, len: end - base, kind: 1 });
        }
    };
    for region in memory.regions() {
        let (base, end) = (region.gpa(), region.gpa().saturating_add(region.len()));
        if base == 0 {
            add(0, end.min(BASE_END));
            add(KERNEL_MIN, end);
        } else {
            add(base, end);
        }
    }
    map
}

/// Checks that the map fits a boot protocol.
pub fn check_map(map: &[MapEntry]) -> Result<()> {
    if map.len() > MAX_MAP { Err(Error::Map(map.len())) } else { Ok(()) }
}

/// The map as the BIOS and most protocols have it: base, length, type in 20 bytes (ACPI 6.4,
/// table 15.3).
pub fn smap(map: &[MapEntry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(20 * map.len());
    for entry in map {
        bytes.extend_from_slice(&entry.base.to_le_bytes());
        bytes.extend_from_slice(&entry.len.to_le_bytes());
        bytes.extend_from_slice(&entry.kind.to_le_bytes());
    }
    bytes
}

/// KiB of RAM below 1 MiB, and from 1 MiB to the first hole.
pub fn lower_upper(map: &[MapEntry]) -> (u32, u32) {
    let ram_at = |base| map.iter().find(|e| e.kind == 1 && e.base == base).map_or(0, |e| e.len >> 10);
    (ram_at(0).min(640) as u32, ram_at(KERNEL_MIN).min(u64::from(u32::MAX)) as u32)
}

/// 32-bit words as bytes.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// Writes the descriptor table and, for long mode, page tables that map one to one.
pub fn entry(memory: &GuestMemory, mode: Mode, rip: u64) -> Result<Entry> {
    let code = if mode == Mode::Long { CODE64 } else { CODE32 };
    let gdt: Vec<u8> = [0, 0, code, DATA32, TSS32].iter().flat_map(|d: &u64| d.to_le_bytes()).collect();
    memory.write(GDT, &gdt)?;
    Ok(Entry {
        mode,
        rip,
        rsi: 0,
        rbx: 0,
        rax: 0,
        rsp: 0,
        cr3: if mode == Mode::Long { page_tables(memory)? } else { 0 },
        gdt_base: GDT,
        gdt_limit: gdt.len() as u16 - 1,
        code: CODE,
        data: DATA,
        tss: TSS,
    })
}

/// Maps the first 4 GiB one to one with 2 MiB pages, which every 64-bit processor has.
fn page_tables(memory: &GuestMemory) -> Result<u64> {
    const DIRECTORIES: u64 = 4;
    let pdpt = PAGE_TABLES + PAGE_SIZE;
    let directory = |n: u64| pdpt + PAGE_SIZE * (n + 1);
    let write = |gpa: u64, entries: &mut dyn Iterator<Item = u64>| {
        let bytes: Vec<u8> = entries.flat_map(u64::to_le_bytes).collect();
        memory.write(gpa, &bytes)
    };
    write(PAGE_TABLES, &mut (0..512).map(|n| if n == 0 { pdpt | TABLE } else { 0 }))?;
    write(pdpt, &mut (0..512).map(|n| if n < DIRECTORIES { directory(n) | TABLE } else { 0 }))?;
    write(directory(0), &mut (0..512 * DIRECTORIES).map(|n| (n * LARGE_SIZE) | LARGE))?;
    Ok(PAGE_TABLES)
}

/// Writes the command line at `at`, at most `max` bytes, with its NUL.
pub fn cmdline(memory: &GuestMemory, at: u64, text: &[u8], max: usize, name: &'static str) -> Result<u64> {
    let max = max.min(CMDLINE_ROOM - 1);
    if text.len() > max {
        return Err(Error::Cmdline { name, len: text.len(), max });
    }
    let mut bytes = text.to_vec();
    bytes.push(0);
    memory.write(at, &bytes)?;
    Ok(at)
}

/// Reads the RAM disks, one behind the other, to the highest page-aligned place below `limit` that
/// is above `kernel_end`. The kernel looks for the next archive at a multiple of 4
/// (Documentation/driver-api/early-userspace/buffer-format.rst). Without one the answer is (0, 0).
pub fn initrd(memory: &GuestMemory, images: &[Image], kernel_end: u64, limit: u64) -> Result<(u64, u64)> {
    let Some(first) = images.first() else { return Ok((0, 0)) };
    let mut len = 0u64;
    for image in images {
        if image.is_empty() {
            return Err(image.error("empty file"));
        }
        // Files have at most 2^63 bytes, so that only the sum can overflow.
        len = len.next_multiple_of(4).saturating_add(image.len());
    }
    let limit = limit.min(low_end(memory));
    let at = limit.checked_sub(len).map(|at| at & !(PAGE_SIZE - 1)).filter(|at| *at >= kernel_end);
    let Some(at) = at else {
        let room = limit.saturating_sub(kernel_end) >> 10;
        let others = if images.len() > 1 { "with the other RAM disks " } else { "" };
        return Err(first.error(format!(
            "{others}{} KiB long, the guest's memory has room for {room} KiB beside the kernel",
            len.div_ceil(1024)
        )));
    };
    memory.fill(at, 0, len)?;
    let mut next = at;
    for image in images {
        next = next.next_multiple_of(4);
        image.place(memory, 0, image.len(), next)?;
        next += image.len();
    }
    Ok((at, len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::Backing;

    #[test]
    fn the_map_leaves_out_what_is_not_ram() {
        let memory = GuestMemory::new(&[(0, 0xc000_0000), (1 << 32, 1 << 30)], &Backing::Anonymous).unwrap();
        let map = memory_map(&memory);
        let ram = |base, len| MapEntry { base, len, kind: 1 };
        assert_eq!(map, [ram(0, 0xa_0000), ram(0x10_0000, 0xbff0_0000), ram(1 << 32, 1 << 30)]);
        assert_eq!(lower_upper(&map), (640, 0xbff0_0000 >> 10));
        assert_eq!(smap(&map)[20..40], [0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0xf0, 0xbf, 0, 0, 0, 0, 1, 0, 0, 0]);
    }
}
