//! What a kernel finds in low memory: descriptor table, page tables, command line, RAM disk.

use memory::{GuestMemory, PAGE_SIZE};

use crate::file::Image;
use crate::{Entry, Error, Mode, Request, Result};

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
const CMDLINE: u64 = 0x2_0000;
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

/// Writes descriptor table and, for long mode, page tables; `rip`, `rsi` and `rbx` stay as given.
pub fn entry(memory: &GuestMemory, mode: Mode, rip: u64, rsi: u64, rbx: u64) -> Result<Entry> {
    let code = if mode == Mode::Long { CODE64 } else { CODE32 };
    let gdt: Vec<u8> = [0, 0, code, DATA32, TSS32].iter().flat_map(|d: &u64| d.to_le_bytes()).collect();
    memory.write(GDT, &gdt)?;
    let cr3 = if mode == Mode::Long { page_tables(memory)? } else { 0 };
    Ok(Entry {
        mode,
        rip,
        rsi,
        rbx,
        rax: 0,
        rsp: 0,
        cr3,
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

/// Writes the command line, at most `max` bytes, with its NUL.
pub fn cmdline(request: &Request, max: usize) -> Result<u64> {
    let text = request.cmdline.as_bytes();
    let max = max.min(CMDLINE_ROOM - 1);
    if text.len() > max {
        return Err(Error::Cmdline { len: text.len(), max });
    }
    let mut bytes = text.to_vec();
    bytes.push(0);
    request.memory.write(CMDLINE, &bytes)?;
    Ok(CMDLINE)
}

/// Reads the RAM disk to the highest page-aligned place below `limit` that is above `kernel_end`.
/// Without a RAM disk the answer is (0, 0).
pub fn initrd(request: &Request, kernel_end: u64, limit: u64) -> Result<(u64, u64)> {
    let Some(path) = request.initrd else { return Ok((0, 0)) };
    let image = Image::open("kernel.initrd", path)?;
    if image.len() == 0 {
        return Err(image.error("empty file"));
    }
    let limit = limit.min(low_end(request.memory));
    let at = limit.checked_sub(image.len()).map(|at| at & !(PAGE_SIZE - 1)).filter(|at| *at >= kernel_end);
    let Some(at) = at else {
        let room = limit.saturating_sub(kernel_end) >> 10;
        let len = image.len().div_ceil(1024);
        return Err(image
            .error(format!("{len} KiB long, the guest's memory has room for {room} KiB beside the kernel")));
    };
    image.place(request.memory, 0, image.len(), at)?;
    Ok((at, image.len()))
}
