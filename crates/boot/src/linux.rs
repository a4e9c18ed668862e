//! Linux bzImage (Documentation/arch/x86/boot.rst).

use media::Fields;
use memory::GuestMemory;

use crate::handoff::{self, CMDLINE, KERNEL_MIN, ZERO_PAGE};
use crate::{Entry, Image, MapEntry, Mode, Result};

/// Offsets in the first sectors of the file, the same in the zero page.
const SETUP_HEADER: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const JUMP_OFFSET: usize = 0x201;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const KERNEL_VERSION: usize = 0x20e;
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
const ALT_MEM_K: usize = 0x1e0;
const E820_ENTRIES: usize = 0x1e8;
const VID_MODE: usize = 0x1fa;
const E820_TABLE: usize = 0x2d0;
/// screen_info (include/uapi/linux/screen_info.h): video mode, columns, lines, whether it is a VGA,
/// and height of a character.
const SCREEN_MODE: usize = 0x06;
const SCREEN_COLUMNS: usize = 0x07;
const SCREEN_LINES: usize = 0x0e;
const SCREEN_IS_VGA: usize = 0x0f;
const SCREEN_POINTS: usize = 0x10;
/// The command line before protocol 2.02: a magic number and its offset from the zero page, which
/// has to be at 90000h.
const OLD_CL_MAGIC: usize = 0x20;
const OLD_CL_MAGIC_VALUE: u16 = 0xa33f;
const OLD_CL_OFFSET: u16 = 0x1000;
const OLD_ZERO_PAGE: u64 = 0x9_0000;
/// End of the room for the setup header in the zero page.
const HEADER_END: usize = 0x290;
const ZERO_PAGE_LEN: usize = 4096;

/// loadflags bit 0: loaded at 1 MiB, a bzImage rather than a zImage.
const LOADED_HIGH: u8 = 1;
/// xloadflags bit 0: a 64-bit entry point at 200h.
const XLF_KERNEL_64: u16 = 1;
const ENTRY_64: u64 = 0x200;
/// type_of_loader: a loader without an assigned number, and GRUB 2.
const LOADER_UNDEFINED: u8 = 0xff;
const LOADER_GRUB: u8 = 0x72;
/// `vga=normal`.
const VIDEO_NORMAL: u16 = 0xffff;
const SECTOR: u64 = 512;
/// What kernels before the fields existed take (boot protocol 2.02, 2.05).
const OLD_INITRD_MAX: u32 = 0x37ff_ffff;
const OLD_CMDLINE_MAX: u32 = 255;
/// Everything handed over has 32-bit addresses, and RAM below 4 GiB ends here at most.
const RAM_LIMIT: u64 = 0xc000_0000;
/// Longest version string.
const VERSION_MAX: u64 = 256;

/// What the kernel is told.
pub struct Request<'a> {
    /// Guest RAM.
    pub memory: &'a GuestMemory,
    /// RAM disks; the kernel sees them as one.
    pub initrds: &'a [Image],
    /// The kernel's command line.
    pub cmdline: &'a [u8],
    /// The memory map, in ascending order.
    pub map: &'a [MapEntry],
    /// Where the ACPI RSDP is or will be.
    pub rsdp: Option<u64>,
    /// Whether to say that there is a VGA text screen of 80 by 25.
    pub text_screen: bool,
}

/// What the setup header says, with the defaults of older protocol versions.
#[derive(Debug)]
struct Setup {
    header: Vec<u8>,
    version: u16,
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

/// A bzImage for a boot loader.
pub struct Kernel {
    image: Image,
    setup: Setup,
}

/// Who loads it, and so which entry is taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loader {
    Direct,
    Grub,
}

impl Kernel {
    /// Checks that `image` is a kernel that can be loaded.
    pub fn read(image: Image) -> Result<Self> {
        let setup = read_setup(&image)?;
        Ok(Self { image, setup })
    }

    /// The version that the kernel says it has.
    pub fn version(&self) -> Option<String> {
        let at = SECTOR + u64::from(self.setup.header.u16_at(KERNEL_VERSION).filter(|at| *at != 0)?);
        let mut text = vec![0; self.image.len().checked_sub(at)?.min(VERSION_MAX) as usize];
        self.image.read(at, &mut text).ok()?;
        let end = text.iter().position(|b| *b == 0)?;
        text.truncate(end);
        String::from_utf8(text).ok()
    }

    /// Loads it as GRUB does: the 32-bit boot protocol.
    pub fn load(&self, request: &Request) -> Result<Entry> {
        self.load_by(request, Loader::Grub)
    }

    fn load_by(&self, request: &Request, loader: Loader) -> Result<Entry> {
        handoff::check_map(request.map)?;
        let (setup, kernel, memory) = (&self.setup, &self.image, request.memory);
        let payload_len = kernel.len().saturating_sub(setup.payload);
        if payload_len <= ENTRY_64 {
            return Err(kernel.error("truncated: there is nothing behind the setup sectors"));
        }
        let low_end = handoff::low_end(memory).min(RAM_LIMIT);
        let (base, end) = place(setup, payload_len, low_end).ok_or_else(|| {
            let need = setup.init_size.max(payload_len).div_ceil(1 << 20);
            kernel.error(format!(
                "needs {need} MiB of memory above its load address, the guest has {} MiB",
                low_end >> 20
            ))
        })?;
        let told = if loader == Loader::Grub { told_memory(request.cmdline) } else { None };
        let limit = setup.initrd_max.min(RAM_LIMIT).min(told.unwrap_or(u64::MAX));
        let initrd = handoff::initrd(memory, request.initrds, end, limit)?;
        let old = setup.version < 0x202;
        let (page_at, cmdline_at) = if old {
            (OLD_ZERO_PAGE, OLD_ZERO_PAGE + u64::from(OLD_CL_OFFSET))
        } else {
            (ZERO_PAGE, CMDLINE)
        };
        let name = if loader == Loader::Direct { "kernel.cmdline" } else { "the kernel's command line" };
        let cmdline = handoff::cmdline(memory, cmdline_at, request.cmdline, setup.cmdline_max, name)?;
        kernel.place(memory, setup.payload, payload_len, base)?;
        memory.write(page_at, &zero_page(request, setup, loader, base, initrd, cmdline))?;
        let mut entry = if setup.long && loader == Loader::Direct {
            handoff::entry(memory, Mode::Long, base + ENTRY_64)?
        } else {
            handoff::entry(memory, Mode::Protected32, base)?
        };
        entry.rsi = page_at;
        Ok(entry)
    }
}

/// Loads a bzImage without a boot loader: by its 64-bit entry where it has one.
pub(crate) fn load_direct(request: &Request, image: Image) -> Result<Entry> {
    let kernel = Kernel::read(image)?;
    if kernel.setup.version < 0x202 {
        return Err(kernel.image.error("a boot protocol before 2.02; only newer bzImages are supported"));
    }
    kernel.load_by(request, Loader::Direct)
}

/// The size that the kernel is told by `mem=` to stay below, where GRUB puts no RAM disk either.
fn told_memory(cmdline: &[u8]) -> Option<u64> {
    let text = cmdline.split(|b| *b == b' ').filter_map(|word| word.strip_prefix(b"mem=")).next_back()?;
    let text = std::str::from_utf8(text).ok()?;
    let (digits, shift) = match text.as_bytes().last()?.to_ascii_lowercase() {
        b'k' => (text.get(..text.len() - 1)?, 10),
        b'm' => (text.get(..text.len() - 1)?, 20),
        b'g' => (text.get(..text.len() - 1)?, 30),
        _ => (text, 0),
    };
    let number = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => digits.parse().ok()?,
    };
    number.checked_mul(1 << shift).filter(|size| *size > 0)
}

/// What a file that is no bzImage is instead.
fn other_kind(kernel: &Image, header: &[u8]) -> &'static str {
    // The 64-byte header of arm64's Image (Documentation/arch/arm64/booting.rst) and RISC-V's.
    match header.get(0x38..0x3c) {
        Some(b"ARM\x64") => return "a kernel for ARM64 processors, not for x86",
        Some(b"RSC\x05") => return "a kernel for RISC-V processors, not for x86",
        _ => {}
    }
    if header.starts_with(b"\x7fELF") {
        return "an ELF file, not a bzImage";
    }
    if header.starts_with(b"MZ") {
        let mut machine = [0; 6];
        let at = u64::from(header.u32_at(0x3c).unwrap_or(0));
        // PE: signature, then the machine (PE format specification, "COFF File Header").
        if kernel.read(at, &mut machine).is_ok() && machine.starts_with(b"PE\0\0") {
            match machine.u16_at(4) {
                Some(0xaa64) => return "an EFI program for ARM64 processors, not for x86",
                Some(0x8664 | 0x14c) => return "an EFI program, not a bzImage",
                _ => return "an EFI program for another processor, not for x86",
            }
        }
    }
    if header.starts_with(&[0x1f, 0x8b]) {
        return "a gzip file, not a bzImage";
    }
    "not a bzImage or PVH ELF"
}

fn read_setup(kernel: &Image) -> Result<Setup> {
    let mut header = vec![0; HEADER_END];
    let have = kernel.len().min(HEADER_END as u64) as usize;
    kernel.read(0, header.get_mut(..have).unwrap_or_default())?;
    let signed = header.u16_at(BOOT_FLAG) == Some(0xaa55) && header.array(MAGIC) == Some(*b"HdrS");
    if have < HEADER_END || !signed {
        return Err(kernel.error(other_kind(kernel, &header)));
    }
    let version = header.u16_at(VERSION).unwrap_or(0);
    let flags = header.u8_at(LOADFLAGS).unwrap_or(0);
    if version < 0x200 {
        let (major, minor) = (version >> 8, version & 0xff);
        return Err(kernel.error(format!("boot protocol {major}.{minor:02} is too old; 2.00 is the oldest")));
    }
    if flags & LOADED_HIGH == 0 {
        return Err(kernel.error("a zImage; only bzImages are supported"));
    }
    // A field that came with a later version than the kernel's counts as its default.
    let since = |first: u16, at: usize, default: u32| {
        if version >= first { header.u32_at(at).unwrap_or(default) } else { default }
    };
    let sectors = header.u8_at(SETUP_HEADER).unwrap_or(0);
    let relocatable = header.u8_at(RELOCATABLE).unwrap_or(0);
    let min_alignment = header.u8_at(MIN_ALIGNMENT).unwrap_or(0);
    let alignment = u64::from(since(0x205, KERNEL_ALIGNMENT, 0x10_0000));
    let min_alignment =
        if version >= 0x20a { 1u64.checked_shl(u32::from(min_alignment)) } else { Some(alignment) };
    let Some(min_alignment) =
        min_alignment.filter(|a| alignment.is_power_of_two() && *a <= alignment.max(1 << 21))
    else {
        return Err(kernel.error("damaged: its alignment is not a power of two"));
    };
    Ok(Setup {
        version,
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
fn zero_page(
    request: &Request,
    setup: &Setup,
    loader: Loader,
    base: u64,
    initrd: (u64, u64),
    cmdline: u64,
) -> Vec<u8> {
    let mut page = vec![0; ZERO_PAGE_LEN];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(field) = page.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    // The header ends where its jump instruction goes.
    let jump = setup.header.u8_at(JUMP_OFFSET).unwrap_or(0);
    let end = (MAGIC + usize::from(jump)).clamp(INIT_SIZE + 4, HEADER_END);
    put(SETUP_HEADER, setup.header.get(SETUP_HEADER..end).unwrap_or_default());
    put(VID_MODE, &VIDEO_NORMAL.to_le_bytes());
    put(TYPE_OF_LOADER, &[if loader == Loader::Grub { LOADER_GRUB } else { LOADER_UNDEFINED }]);
    put(CODE32_START, &(base as u32).to_le_bytes());
    put(RAMDISK_IMAGE, &(initrd.0 as u32).to_le_bytes());
    put(RAMDISK_SIZE, &(initrd.1 as u32).to_le_bytes());
    if setup.version >= 0x202 {
        put(CMD_LINE_PTR, &(cmdline as u32).to_le_bytes());
    } else {
        put(OLD_CL_MAGIC, &OLD_CL_MAGIC_VALUE.to_le_bytes());
        put(OLD_CL_MAGIC + 2, &OLD_CL_OFFSET.to_le_bytes());
    }
    if request.text_screen {
        // Mode 3 is 80 by 25 in colour.
        put(SCREEN_MODE, &[3]);
        put(SCREEN_COLUMNS, &[80]);
        put(SCREEN_LINES, &[25]);
        put(SCREEN_IS_VGA, &[1]);
        put(SCREEN_POINTS, &16u16.to_le_bytes());
    }
    put(ALT_MEM_K, &handoff::lower_upper(request.map).1.to_le_bytes());
    put(ACPI_RSDP_ADDR, &request.rsdp.unwrap_or(0).to_le_bytes());
    put(E820_ENTRIES, &[request.map.len() as u8]);
    put(E820_TABLE, &handoff::smap(request.map));
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
        assert!(matches!(load(&r), Err(Error::Cmdline { len: 2048, max: 2047, .. })));
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
            format!("kernel.path={0}: cannot open {0}: No such file or directory", missing.display())
        );
    }

    fn image(bytes: Vec<u8>) -> Image {
        Image::new("(hd0,msdos1)/vmlinuz", std::sync::Arc::new(media::Bytes(bytes)))
    }

    fn grub<'a>(memory: &'a GuestMemory, initrds: &'a [Image], cmdline: &'a [u8]) -> linux::Request<'a> {
        let map = &crate::test_image::MAP;
        linux::Request { memory, initrds, cmdline, map, rsdp: Some(0xf_2400), text_screen: true }
    }

    #[test]
    fn grub_enters_in_32_bits_with_a_screen_and_all_ram_disks() {
        let m = memory(64 << 20);
        let kernel = linux::Kernel::read(image(bzimage(0x20f, 1))).unwrap();
        let initrds = [image(vec![7; 4097]), image(vec![9; 8])];
        let entry = kernel.load(&grub(&m, &initrds, b"quiet mem=32M")).unwrap();
        assert_eq!((entry.mode, entry.rip, entry.rsi, entry.cr3), (Mode::Protected32, 0x100_0000, 0x7000, 0));
        assert_eq!((entry.code, entry.data), (0x10, 0x18));
        let z = entry.rsi;
        // 4097 bytes, three of padding and 8 bytes, below what mem= leaves.
        let at = u32_of(&m, z + 0x218);
        assert_eq!((at, u32_of(&m, z + 0x21c)), ((32 << 20) - 8192, 4108));
        assert_eq!(u64_of(&m, at + 4096), 0x0909_0909_0000_0007);
        let mut screen = [0; 18];
        m.read(z, &mut screen).unwrap();
        assert_eq!(screen, [0, 0, 0, 0, 0, 0, 3, 80, 0, 0, 0, 0, 0, 0, 25, 1, 16, 0]);
        let mut loader = [0];
        m.read(z + 0x210, &mut loader).unwrap();
        assert_eq!(loader, [0x72]);
    }

    #[test]
    fn a_kernel_of_protocol_2_00_finds_its_command_line_by_the_old_way() {
        let m = memory(64 << 20);
        let kernel = linux::Kernel::read(image(bzimage(0x200, 0))).unwrap();
        let entry = kernel.load(&grub(&m, &[], b"root=/dev/hda1")).unwrap();
        assert_eq!((entry.rip, entry.rsi), (0x10_0000, 0x9_0000));
        assert_eq!(u32_of(&m, 0x9_0020), 0x1000_a33f);
        let mut text = [0; 15];
        m.read(0x9_1000, &mut text).unwrap();
        assert_eq!(&text, b"root=/dev/hda1\0");
        let long = [b'x'; 256];
        assert!(matches!(kernel.load(&grub(&m, &[], &long)), Err(Error::Cmdline { max: 255, .. })));
    }

    #[test]
    fn kernels_for_others_are_named() {
        let mut arm = vec![0; 4096];
        arm[..2].copy_from_slice(b"MZ");
        arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
        let mut efi = vec![0; 4096];
        efi[..2].copy_from_slice(b"MZ");
        efi[0x3c] = 0x80;
        efi[0x80..0x86].copy_from_slice(b"PE\0\0\x64\xaa");
        let mut old = bzimage(0x1ff, 0);
        old[0x206..0x208].copy_from_slice(&0x105u16.to_le_bytes());
        let cases = [
            (arm, "a kernel for ARM64 processors, not for x86"),
            (efi, "an EFI program for ARM64 processors, not for x86"),
            (old, "boot protocol 1.05 is too old; 2.00 is the oldest"),
            (b"\x7fELF".to_vec(), "an ELF file, not a bzImage"),
            (Vec::new(), "not a bzImage or PVH ELF"),
        ];
        for (bytes, expected) in cases {
            let error = linux::Kernel::read(image(bytes)).err().unwrap().to_string();
            assert_eq!(error, format!("(hd0,msdos1)/vmlinuz: {expected}"));
        }
    }

    #[test]
    fn the_version_is_told() {
        let mut bytes = bzimage(0x20f, 1);
        bytes[0x20e..0x210].copy_from_slice(&0x300u16.to_le_bytes());
        bytes[0x500..0x50a].copy_from_slice(b"6.1.0 #1\0x");
        assert_eq!(linux::Kernel::read(image(bytes.clone())).unwrap().version().unwrap(), "6.1.0 #1");
        bytes[0x20e..0x210].copy_from_slice(&0xffffu16.to_le_bytes());
        assert_eq!(linux::Kernel::read(image(bytes)).unwrap().version(), None);
    }

    #[test]
    fn mem_is_read_as_the_kernel_reads_it() {
        let told = |text: &str| super::told_memory(text.as_bytes());
        assert_eq!(told("mem=1G mem=64m"), Some(64 << 20));
        assert_eq!((told("mem=0x1000"), told("mem=8k"), told("amem=1M")), (Some(4096), Some(8192), None));
        assert_eq!(
            (told("mem="), told("mem=x"), told("mem=99999999999G"), told("mem=0")),
            (None, None, None, None)
        );
    }
}
