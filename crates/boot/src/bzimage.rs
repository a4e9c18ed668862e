//! Linux bzImage (Documentation/arch/x86/boot.rst).

use crate::file::{Fields, Image};
use crate::handoff::{self, KERNEL_MIN, ZERO_PAGE};
use crate::{Entry, Mode, Request, Result};

/// Offsets in the first sectors of the file, the same in the zero page.
const SETUP_HEADER: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const JUMP_OFFSET: usize = 0x201;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const CODE32_START: usize = 0x214;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const INITRD_ADDR_MAX: usize = 0x22c;
const KERNEL_ALIGNMENT: usize = 0x230;
const RELOCATABLE: usize = 0x234;
const MIN_ALIGNMENT: usize = 0x235;
const XLOADFLAGS: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;

/// Offsets that only the zero page has (Documentation/arch/x86/zero-page.rst).
const ACPI_RSDP_ADDR: usize = 0x70;
const E820_ENTRIES: usize = 0x1e8;
const VID_MODE: usize = 0x1fa;
const E820_TABLE: usize = 0x2d0;
/// End of the room for the setup header in the zero page.
const HEADER_END: usize = 0x290;
const ZERO_PAGE_LEN: usize = 4096;

/// loadflags bit 0: loaded at 1 MiB, a bzImage rather than a zImage.
const LOADED_HIGH: u8 = 1;
/// xloadflags bit 0: a 64-bit entry point at 200h.
const XLF_KERNEL_64: u16 = 1;
const ENTRY_64: u64 = 0x200;
/// A loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
/// `vga=normal`.
const VIDEO_NORMAL: u16 = 0xffff;
const SECTOR: u64 = 512;
/// What kernels before the fields existed take (boot protocol 2.02, 2.05).
const OLD_INITRD_MAX: u32 = 0x37ff_ffff;
const OLD_CMDLINE_MAX: u32 = 255;
/// Everything handed over has 32-bit addresses, and RAM below 4 GiB ends here at most.
const RAM_LIMIT: u64 = 0xc000_0000;

/// What the setup header says, with the defaults of older protocol versions.
#[derive(Debug)]
struct Setup {
    header: Vec<u8>,
    /// Where the protected-mode kernel starts in the file.
    payload: u64,
    initrd_max: u64,
    cmdline_max: usize,
    relocatable: bool,
    alignment: u64,
    min_alignment: u64,
    pref_address: u64,
    init_size: u64,
    long: bool,
}

/// Loads a bzImage.
pub fn load(request: &Request, kernel: &Image) -> Result<Entry> {
    let setup = read_setup(kernel)?;
    let payload_len = kernel.len().saturating_sub(setup.payload);
    if payload_len <= ENTRY_64 {
        return Err(kernel.error("truncated: there is nothing behind the setup sectors"));
    }
    let low_end = handoff::low_end(request.memory).min(RAM_LIMIT);
    let (base, end) = place(&setup, payload_len, low_end).ok_or_else(|| {
        let need = setup.init_size.max(payload_len).div_ceil(1 << 20);
        kernel.error(format!(
            "needs {need} MiB of memory above its load address, the guest has {} MiB",
            low_end >> 20
        ))
    })?;
    let initrd = handoff::initrd(request, end, setup.initrd_max.min(RAM_LIMIT))?;
    let cmdline = handoff::cmdline(request, setup.cmdline_max)?;
    kernel.place(request.memory, setup.payload, payload_len, base)?;
    request.memory.write(ZERO_PAGE, &zero_page(request, &setup, base, initrd, cmdline))?;
    if setup.long {
        handoff::entry(request.memory, Mode::Long, base + ENTRY_64, ZERO_PAGE, 0)
    } else {
        handoff::entry(request.memory, Mode::Protected32, base, ZERO_PAGE, 0)
    }
}

fn read_setup(kernel: &Image) -> Result<Setup> {
    let not_ours = || kernel.error("not a bzImage or PVH ELF");
    let mut header = vec![0; HEADER_END];
    if kernel.len() < HEADER_END as u64 {
        return Err(not_ours());
    }
    kernel.read(0, &mut header)?;
    if header.u16_at(BOOT_FLAG) != Some(0xaa55) || header.bytes(MAGIC) != Some(*b"HdrS") {
        return Err(not_ours());
    }
    let version = header.u16_at(VERSION).unwrap_or(0);
    let [flags] = header.bytes(LOADFLAGS).unwrap_or_default();
    if version < 0x202 || flags & LOADED_HIGH == 0 {
        return Err(kernel.error("a zImage or of a boot protocol before 2.02; only bzImages are supported"));
    }
    // A field that came with a later version than the kernel's counts as its default.
    let since = |first: u16, at: usize, default: u32| {
        if version >= first { header.u32_at(at).unwrap_or(default) } else { default }
    };
    let [sectors] = header.bytes(SETUP_HEADER).unwrap_or_default();
    let [relocatable] = header.bytes(RELOCATABLE).unwrap_or_default();
    let [min_alignment] = header.bytes(MIN_ALIGNMENT).unwrap_or_default();
    let alignment = u64::from(since(0x205, KERNEL_ALIGNMENT, 0x10_0000));
    let min_alignment =
        if version >= 0x20a { 1u64.checked_shl(u32::from(min_alignment)) } else { Some(alignment) };
    let Some(min_alignment) =
        min_alignment.filter(|a| alignment.is_power_of_two() && *a <= alignment.max(1 << 21))
    else {
        return Err(kernel.error("damaged: its alignment is not a power of two"));
    };
    Ok(Setup {
        payload: (u64::from(if sectors == 0 { 4 } else { sectors }) + 1) * SECTOR,
        initrd_max: u64::from(since(0x203, INITRD_ADDR_MAX, OLD_INITRD_MAX)) + 1,
        cmdline_max: since(0x206, CMDLINE_SIZE, OLD_CMDLINE_MAX) as usize,
        relocatable: version >= 0x205 && relocatable != 0,
        alignment,
        min_alignment: min_alignment.max(4096),
        pref_address: if version >= 0x20a { header.u64_at(PREF_ADDRESS).unwrap_or(0) } else { 0 },
        init_size: u64::from(since(0x20a, INIT_SIZE, 0)),
        long: version >= 0x20c && since(0x20c, XLOADFLAGS, 0) as u16 & XLF_KERNEL_64 != 0,
        header,
    })
}

/// Load address and end of what the kernel uses before it knows the memory map.
fn place(setup: &Setup, payload: u64, low_end: u64) -> Option<(u64, u64)> {
    let need = setup.init_size.max(payload);
    let fits = |base: u64| base.checked_add(need).filter(|end| base >= KERNEL_MIN && *end <= low_end);
    if !setup.relocatable {
        // The code lies at 1 MiB and then moves to its preferred address.
        let end = fits(setup.pref_address.max(KERNEL_MIN))?.max(fits(KERNEL_MIN)?);
        return Some((KERNEL_MIN, end));
    }
    let candidates = [
        setup.pref_address,
        KERNEL_MIN.next_multiple_of(setup.alignment),
        KERNEL_MIN.next_multiple_of(setup.min_alignment),
    ];
    candidates.into_iter().find_map(|base| Some((base, fits(base)?)))
}

/// boot_params: the setup header as the file has it, completed.
fn zero_page(request: &Request, setup: &Setup, base: u64, initrd: (u64, u64), cmdline: u64) -> Vec<u8> {
    let mut page = vec![0; ZERO_PAGE_LEN];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(field) = page.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    // The header ends where its jump instruction goes.
    let [jump] = setup.header.bytes(JUMP_OFFSET).unwrap_or_default();
    let end = (MAGIC + usize::from(jump)).clamp(INIT_SIZE + 4, HEADER_END);
    put(SETUP_HEADER, setup.header.get(SETUP_HEADER..end).unwrap_or_default());
    put(VID_MODE, &VIDEO_NORMAL.to_le_bytes());
    put(TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    put(CODE32_START, &(base as u32).to_le_bytes());
    put(RAMDISK_IMAGE, &(initrd.0 as u32).to_le_bytes());
    put(RAMDISK_SIZE, &(initrd.1 as u32).to_le_bytes());
    put(CMD_LINE_PTR, &(cmdline as u32).to_le_bytes());
    put(ACPI_RSDP_ADDR, &request.rsdp.unwrap_or(0).to_le_bytes());
    put(E820_ENTRIES, &[request.map.len() as u8]);
    for (n, entry) in request.map.iter().enumerate() {
        let at = E820_TABLE + 20 * n;
        put(at, &entry.base.to_le_bytes());
        put(at + 8, &entry.len.to_le_bytes());
        put(at + 16, &entry.kind.to_le_bytes());
    }
    page
}

#[cfg(test)]
mod tests {
    use crate::test_image::{Scratch, bzimage, memory, request};
    use crate::*;

    fn u32_of(memory: &GuestMemory, gpa: u64) -> u64 {
        u64::from(memory.load_u32(gpa, std::sync::atomic::Ordering::Relaxed).unwrap())
    }

    fn u64_of(memory: &GuestMemory, gpa: u64) -> u64 {
        memory.load_u64(gpa, std::sync::atomic::Ordering::Relaxed).unwrap()
    }

    #[test]
    fn a_64_bit_kernel_gets_zero_page_initrd_and_page_tables() {
        let dir = Scratch::new("bz64");
        let (kernel, initrd) = (dir.file("k", &bzimage(0x20f, 1)), dir.file("i", &[7; 5000]));
        let m = memory(64 << 20);
        let mut r = request(&m, &kernel);
        (r.initrd, r.cmdline, r.rsdp) = (Some(initrd.as_path()), "console=ttyS0", Some(0xf_2400));
        let entry = load(&r).unwrap();
        assert_eq!((entry.mode, entry.rip, entry.rsi), (Mode::Long, 0x100_0200, 0x7000));
        let z = entry.rsi;
        let mut text = [0; 14];
        m.read(u32_of(&m, z + 0x228), &mut text).unwrap();
        assert_eq!(&text, b"console=ttyS0\0");
        let at = u32_of(&m, z + 0x218);
        assert_eq!((at, u32_of(&m, z + 0x21c)), ((64 << 20) - 8192, 5000));
        assert_eq!(u32_of(&m, at + 4996), 0x0707_0707);
        assert_eq!((u64_of(&m, z + 0x70), u32_of(&m, z + 0x214)), (0xf_2400, 0x100_0000));
        assert_eq!((u32_of(&m, z + 0x1e8) & 0xff, u64_of(&m, z + 0x2d0 + 20)), (2, 0x10_0000));
        assert_eq!(u32_of(&m, 0x100_0000), 0x4c4e_524b);
        // Address 1 GiB + 2 MiB through the tables.
        let pdpt = u64_of(&m, entry.cr3) & !0xfff;
        let directory = u64_of(&m, pdpt + 8) & !0xfff;
        assert_eq!(u64_of(&m, directory + 8), 0x4020_0083);
        assert_eq!(u64_of(&m, entry.gdt_base + u64::from(entry.code)), 0x00af_9b00_0000_ffff);
    }

    #[test]
    fn a_kernel_without_a_64_bit_entry_starts_in_32_bits() {
        let dir = Scratch::new("bz32");
        for (version, xload) in [(0x20f, 0), (0x20b, 1)] {
            let kernel = dir.file("k", &bzimage(version, xload));
            let m = memory(64 << 20);
            let entry = load(&request(&m, &kernel)).unwrap();
            assert_eq!((entry.mode, entry.rip, entry.cr3), (Mode::Protected32, 0x100_0000, 0));
        }
    }

    #[test]
    fn a_small_guest_gets_the_kernel_lower_or_a_clear_error() {
        let dir = Scratch::new("small");
        let kernel = dir.file("k", &bzimage(0x20f, 1));
        let m = memory(12 << 20);
        assert_eq!(load(&request(&m, &kernel)).unwrap().rip, 0x20_0200);
        let m = memory(4 << 20);
        let error = load(&request(&m, &kernel)).unwrap_err().to_string();
        assert!(error.starts_with(&format!("kernel.path={}: needs 8 MiB", kernel.display())), "{error}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let dir = Scratch::new("fit");
        let (kernel, initrd) = (dir.file("k", &bzimage(0x20f, 1)), dir.file("i", &vec![7; 60 << 20]));
        let empty = dir.file("e", &[]);
        let m = memory(64 << 20);
        let long = "x".repeat(2048);
        let mut r = request(&m, &kernel);
        r.cmdline = &long;
        assert!(matches!(load(&r), Err(Error::Cmdline { len: 2048, max: 2047 })));
        r.cmdline = &long[1..];
        assert!(load(&r).is_ok());
        r.initrd = Some(&initrd);
        assert!(load(&r).unwrap_err().to_string().contains("61440 KiB long"));
        r.initrd = Some(&empty);
        assert!(load(&r).unwrap_err().to_string().ends_with("empty file"));
    }

    #[test]
    fn other_files_are_refused() {
        let dir = Scratch::new("other");
        let m = memory(64 << 20);
        let good = bzimage(0x20f, 1);
        let mut zimage = good.clone();
        zimage[0x211] = 0;
        let cases = [
            ("text", b"hello\n".to_vec(), "not a bzImage or PVH ELF"),
            ("zeros", vec![0; 100_000], "not a bzImage or PVH ELF"),
            ("cut", good[..0x800].to_vec(), "nothing behind the setup sectors"),
            ("z", zimage, "only bzImages"),
        ];
        for (name, bytes, expected) in cases {
            let path = dir.file(name, &bytes);
            let error = load(&request(&m, &path)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let error = load(&request(&m, &dir.0)).unwrap_err().to_string();
        assert!(error.ends_with("not a regular file"), "{error}");
        let missing = dir.0.join("nowhere");
        let error = load(&request(&m, &missing)).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("kernel.path={}: No such file or directory (os error 2)", missing.display())
        );
    }
}
