//! NetBSD kernels (sys/arch/amd64/amd64/locore.S, sys/arch/x86/include/bootinfo.h).

use memory::GuestMemory;

use crate::bsd::{self, page_up};
use crate::handoff::{self, words};
use crate::{Entry, Image, MapEntry, Result};

/// Bits of [`Request::howto`] (sys/sys/reboot.h, sys/sys/boot_flag.h).
pub mod howto {
    /// Ask for the root device.
    pub const ASKNAME: u32 = 0x1;
    /// Single user.
    pub const SINGLE: u32 = 0x2;
    /// Halt instead of rebooting.
    pub const HALT: u32 = 0x8;
    /// Enter the debugger.
    pub const KDB: u32 = 0x40;
    /// Root is in memory.
    pub const MINIROOT: u32 = 0x200;
    /// Edit the kernel's configuration.
    pub const USERCONF: u32 = 0x1000;
    /// Few messages.
    pub const QUIET: u32 = 0x1_0000;
    /// More messages.
    pub const VERBOSE: u32 = 0x2_0000;
    /// No messages but warnings.
    pub const SILENT: u32 = 0x4_0000;
    /// Messages for developers.
    pub const DEBUG: u32 = 0x8_0000;
    /// One processor only.
    pub const NOSMP: u32 = 0x1000_0000;
    /// No ACPI.
    pub const NOACPI: u32 = 0x2000_0000;
}

/// Kinds of entries.
const BTINFO_BOOTPATH: u32 = 0;
const BTINFO_ROOTDEVICE: u32 = 1;
const BTINFO_CONSOLE: u32 = 6;
const BTINFO_SYMTAB: u32 = 8;
const BTINFO_MEMMAP: u32 = 9;
const BTINFO_BOOTWEDGE: u32 = 10;
const BTINFO_MODULELIST: u32 = 11;
/// Lengths of their texts.
const PATH_LEN: usize = 80;
const DEVICE_LEN: usize = 16;
/// BIOS device of no BIOS disk, as GRUB says it.
const NO_BIOS_DEVICE: u32 = 0xff;
/// BOOTINFO_MAXSIZE of older kernels.
const INFO_MAX: u64 = 4096;
/// Everything has 32-bit addresses, and RAM below 4 GiB ends here at most.
const LIMIT: u64 = 0xc000_0000;

/// A serial console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serial {
    /// I/O port.
    pub port: u16,
    /// Bits a second.
    pub speed: u32,
}

/// How a module is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleKind {
    /// A kernel module (`knetbsd_module_elf`).
    Elf,
    /// Bytes, such as a splash image (`knetbsd_module`).
    Raw,
}

/// A file to load beside the kernel.
pub struct Module {
    /// The file.
    pub image: Image,
    /// The name that the kernel sees: what follows the last slash.
    pub name: String,
    /// How it is used.
    pub kind: ModuleKind,
}

/// The partition that root is on, in sectors of 512 bytes, and a block to know the disk by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wedge {
    /// First sector.
    pub start: u64,
    /// Length.
    pub len: u64,
    /// The sector that was hashed.
    pub match_sector: u64,
    /// Its MD5.
    pub match_md5: [u8; 16],
}

/// What the kernel is told.
pub struct Request<'a> {
    /// Guest RAM.
    pub memory: &'a GuestMemory,
    /// Bits of [`howto`].
    pub howto: u32,
    /// The kernel's name: what follows the last slash.
    pub path: &'a str,
    /// Name of the root device.
    pub root: Option<&'a str>,
    /// The partition that the kernel came from.
    pub wedge: Option<Wedge>,
    /// The console: a serial line, or the screen.
    pub console: Option<Serial>,
    /// Files beside the kernel.
    pub modules: &'a [Module],
    /// The memory map, in ascending order.
    pub map: &'a [MapEntry],
}

/// A NetBSD kernel.
pub struct Kernel(bsd::Kernel);

impl Kernel {
    /// Checks that `image` is a kernel that can be loaded.
    pub fn read(image: Image) -> Result<Self> {
        bsd::Kernel::read(image, "NetBSD").map(Self)
    }

    /// Loads it.
    pub fn load(&self, request: &Request) -> Result<Entry> {
        handoff::check_map(request.map)?;
        let (memory, kernel) = (request.memory, &self.0);
        kernel.place(memory)?;
        let mut info = Info::default();
        info.add(BTINFO_BOOTPATH, &text::<PATH_LEN>(request.path));
        if let Some(root) = request.root {
            info.add(BTINFO_ROOTDEVICE, &text::<DEVICE_LEN>(root));
        }
        let (name, port, speed) =
            request.console.map_or(("pc", 0, 0), |serial| ("com", u32::from(serial.port), serial.speed));
        info.add(BTINFO_CONSOLE, &[&text::<DEVICE_LEN>(name)[..], &words(&[port, speed])].concat());
        if let Some(wedge) = request.wedge {
            info.add(BTINFO_BOOTWEDGE, &wedge_bytes(&wedge));
        }
        let mut map = words(&[request.map.len() as u32]);
        map.extend_from_slice(&handoff::smap(request.map));
        info.add(BTINFO_MEMMAP, &map);
        let mut end = page_up(kernel.end);
        if let Some((start, symbols_end)) = self.symbols(memory, end)? {
            info.add(BTINFO_SYMTAB, &words(&[1, start as u32, symbols_end as u32]));
            end = page_up(symbols_end);
        }
        let modules = modules(request, &mut end)?;
        if !request.modules.is_empty() {
            info.add(BTINFO_MODULELIST, &modules);
        }
        let bytes = info.finish()?;
        // Return address, howto, device, information, end of symbols, extended and base memory.
        let (lower, upper) = handoff::lower_upper(request.map);
        let entry = kernel.entry();
        let stack = [entry as u32, request.howto, 0, bsd::arguments() as u32, 0, upper, lower];
        bsd::start(memory, entry, &stack, &bytes)
    }

    /// Puts ELF header, section headers, symbols and their names behind the kernel, with offsets
    /// from the header (lib/libsa/loadfile_elf32.c); a kernel without symbols has none.
    fn symbols(&self, memory: &GuestMemory, at: u64) -> Result<Option<(u64, u64)>> {
        let kernel = &self.0;
        let Some((table, strings)) = kernel.sections.symbol_table() else { return Ok(None) };
        let mut sections = kernel.sections.clone();
        let mut header = kernel.elf.header.clone();
        let header_len = header.len() as u64;
        let section_len = if kernel.elf.long { 64 } else { 40 };
        let mut next = header_len + section_len * sections.list.len() as u64;
        let keep = [table, strings, sections.names_index];
        let mut pieces = Vec::new();
        for (n, section) in sections.list.iter_mut().enumerate() {
            section.addr = 0;
            if !keep.contains(&n) || n == 0 {
                section.offset = 0;
                continue;
            }
            kernel.image.check(section.offset, section.size)?;
            next = next.next_multiple_of(8);
            pieces.push((section.offset, section.size, next));
            section.offset = next;
            next = next.saturating_add(section.size);
        }
        if !memory.contains(at, next) || at + next > LIMIT {
            return Err(kernel.image.error(format!(
                "its symbols take {next} bytes behind the kernel, more than the guest's memory has"
            )));
        }
        // e_phoff, e_shoff, e_phentsize and e_phnum.
        let (program, section, counts) =
            if kernel.elf.long { (0x20, 0x28, 0x36) } else { (0x1c, 0x20, 0x2a) };
        let word = section - program;
        for (field, value) in [(program, 0), (section, header_len)] {
            let value = value.to_le_bytes();
            if let (Some(to), Some(from)) = (header.get_mut(field..field + word), value.get(..word)) {
                to.copy_from_slice(from);
            }
        }
        if let Some(to) = header.get_mut(counts..counts + 4) {
            to.fill(0);
        }
        memory.write(at, &header)?;
        memory.write(at + header_len, &sections.to_bytes())?;
        for (offset, size, to) in pieces {
            kernel.image.place(memory, offset, size, at + to)?;
        }
        Ok(Some((at, at + next)))
    }
}

/// Loads the modules one page after the other, and lists them.
fn modules(request: &Request, end: &mut u64) -> Result<Vec<u8>> {
    let mut list = Vec::new();
    for module in request.modules {
        let (at, len) = (*end, module.image.len());
        if !request.memory.contains(at, len.max(1)) || at.saturating_add(len) > LIMIT {
            let room = handoff::low_end(request.memory).min(LIMIT).saturating_sub(at);
            return Err(module
                .image
                .error(format!("{len} bytes long, the guest's memory has room for {room} bytes")));
        }
        module.image.place(request.memory, 0, len, at)?;
        list.extend_from_slice(&text::<PATH_LEN>(&module.name));
        // BI_MODULE_ELF and BI_MODULE_IMAGE.
        let kind = if module.kind == ModuleKind::Elf { 1 } else { 2 };
        list.extend_from_slice(&words(&[kind, len as u32, at as u32]));
        *end = page_up(at + len);
    }
    Ok([words(&[request.modules.len() as u32, *end as u32]), list].concat())
}

fn wedge_bytes(wedge: &Wedge) -> Vec<u8> {
    let mut bytes = words(&[NO_BIOS_DEVICE]);
    for word in [wedge.start, wedge.len, wedge.match_sector, 1] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(&wedge.match_md5);
    bytes
}

/// A text of fixed length with at least one NUL.
fn text<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    for (to, from) in bytes.iter_mut().take(N - 1).zip(text.bytes()) {
        *to = from;
    }
    bytes
}

/// The list of entries: their number and places, then each with its length and kind.
#[derive(Default)]
struct Info(Vec<Vec<u8>>);

impl Info {
    fn add(&mut self, kind: u32, data: &[u8]) {
        let mut entry = words(&[8 + data.len() as u32, kind]);
        entry.extend_from_slice(data);
        entry.resize(entry.len().next_multiple_of(4), 0);
        self.0.push(entry);
    }

    fn finish(&self) -> Result<Vec<u8>> {
        let mut at = bsd::arguments() as u32 + 4 + 4 * self.0.len() as u32;
        let mut head = vec![self.0.len() as u32];
        for entry in &self.0 {
            head.push(at);
            at += entry.len() as u32;
        }
        let len: u64 = self.0.iter().map(|e| e.len() as u64).sum();
        if len > INFO_MAX - 4 {
            return Err(crate::Error::Room { what: "what a NetBSD kernel is told", len, room: INFO_MAX - 4 });
        }
        Ok([words(&head), self.0.concat()].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mode;
    use crate::test_elf::{Maker, Section, symbol64};
    use crate::test_image::{MAP, at, image, long, memory, word};

    const BASE: u64 = 0xffff_ffff_8020_0000;

    fn kernel(symbols: bool) -> Kernel {
        let mut elf = Maker::executable(true, BASE).segment(BASE, 0x20_0000, b"ENTRY", 0x1800);
        if symbols {
            let names = b"\0start\0".to_vec();
            let strings =
                elf.section(Section { name: ".strtab", kind: 3, bytes: names, ..Section::default() });
            let table = [symbol64(0, 0, 0), symbol64(1, 1, BASE)].concat();
            elf.section(Section {
                name: ".symtab",
                kind: 2,
                bytes: table,
                link: strings,
                ..Section::default()
            });
        }
        Kernel::read(image("(hd0)/netbsd", elf.build())).unwrap()
    }

    fn request(memory: &GuestMemory) -> Request<'_> {
        Request {
            memory,
            howto: howto::VERBOSE | howto::SINGLE,
            path: "netbsd",
            root: None,
            wedge: None,
            console: None,
            modules: &[],
            map: &MAP,
        }
    }

    /// Kind and place of the entries.
    fn entries(memory: &GuestMemory, rsp: u64) -> Vec<(u32, u64, u32)> {
        let list = u64::from(word(memory, rsp + 12));
        let place = |n| u64::from(word(memory, list + 4 + 4 * n));
        let entry = |n| (word(memory, place(n) + 4), place(n) + 8, word(memory, place(n)));
        (0..u64::from(word(memory, list))).map(entry).collect()
    }

    #[test]
    fn the_list_says_everything() {
        let m = memory(16 << 20);
        let modules = [
            Module { image: image("m", vec![3; 5000]), name: "ffs.kmod".into(), kind: ModuleKind::Elf },
            Module { image: image("s", vec![4; 10]), name: "x".repeat(100), kind: ModuleKind::Raw },
        ];
        let mut r = request(&m);
        let wedge = Wedge { start: 64, len: 1000, match_sector: 1, match_md5: [9; 16] };
        (r.root, r.wedge, r.modules) = (Some("wd0a"), Some(wedge), &modules);
        r.console = Some(Serial { port: 0x3f8, speed: 115_200 });
        let entry = kernel(true).load(&r).unwrap();
        assert_eq!((entry.mode, entry.rip), (Mode::Protected32, 0x20_0000));
        let stack = [4, 8, 16, 20, 24].map(|n| word(&m, entry.rsp + n));
        assert_eq!(stack, [0x2_0002, 0, 0, 3072, 640]);
        let list = entries(&m, entry.rsp);
        let kinds: Vec<u32> = list.iter().map(|e| e.0).collect();
        assert_eq!(kinds, [0, 1, 6, 10, 9, 8, 11]);
        assert_eq!((&at::<7>(&m, list[0].1), list[0].2), (b"netbsd\0", 88));
        assert_eq!(&at::<5>(&m, list[1].1), b"wd0a\0");
        assert_eq!((&at::<4>(&m, list[2].1), word(&m, list[2].1 + 16)), (b"com\0", 0x3f8));
        assert_eq!(word(&m, list[2].1 + 20), 115_200);
        let w = list[3].1;
        assert_eq!((word(&m, w), long(&m, w + 4), long(&m, w + 12)), (0xff, 64, 1000));
        assert_eq!((long(&m, w + 20), long(&m, w + 28), at::<16>(&m, w + 36)), (1, 1, [9; 16]));
        assert_eq!((word(&m, list[4].1), long(&m, list[4].1 + 4 + 20)), (2, 0x10_0000));

        // Symbols behind the kernel, with offsets from their own ELF header.
        let [one, ssym, esym] = [0, 4, 8].map(|n| word(&m, list[5].1 + n));
        assert_eq!((one, ssym), (1, 0x20_2000));
        let header = u64::from(ssym);
        assert_eq!((&at::<4>(&m, header), long(&m, header + 0x28)), (b"\x7fELF", 64));
        assert_eq!((long(&m, header + 0x20), word(&m, header + 0x36)), (0, 0));
        let section = |n: u64, field| long(&m, header + 64 + 64 * n + field);
        let names = header + section(1, 0x18);
        assert_eq!((&at::<7>(&m, names), section(1, 0x20)), (b"\0start\0", 7));
        assert_eq!(long(&m, header + section(2, 0x18) + 24 + 8), BASE);

        // Modules, each on its own page, behind the symbols.
        let list = list[6].1;
        let first = u64::from(word(&m, list + 8 + 88));
        assert_eq!((word(&m, list), first, first >= u64::from(esym)), (2, 0x20_3000, true));
        assert_eq!((&at::<9>(&m, list + 8), word(&m, list + 8 + 80)), (b"ffs.kmod\0", 1));
        assert_eq!((word(&m, list + 8 + 84), at::<5000>(&m, first)), (5000, [3; 5000]));
        let second = list + 8 + 92;
        assert_eq!((at::<81>(&m, second)[78..81].to_vec(), word(&m, second + 80)), (vec![b'x', 0, 2], 2));
        assert_eq!(word(&m, second + 88), 0x20_5000);
        assert_eq!(word(&m, list + 4), 0x20_6000);
    }

    #[test]
    fn a_plain_kernel_has_the_screen_and_no_modules() {
        let m = memory(16 << 20);
        let entry = kernel(false).load(&request(&m)).unwrap();
        let list = entries(&m, entry.rsp);
        assert_eq!(list.iter().map(|e| e.0).collect::<Vec<_>>(), [0, 6, 9]);
        assert_eq!(&at::<3>(&m, list[1].1), b"pc\0");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let m = memory(4 << 20);
        let modules =
            [Module { image: image("big", vec![3; 3 << 20]), name: "big".into(), kind: ModuleKind::Raw }];
        let mut r = request(&m);
        r.modules = &modules;
        let error = kernel(false).load(&r).unwrap_err().to_string();
        assert_eq!(error, "big: 3145728 bytes long, the guest's memory has room for 2088960 bytes");
        let many: Vec<Module> = (0..60)
            .map(|n| Module { image: image("m", vec![1]), name: n.to_string(), kind: ModuleKind::Elf })
            .collect();
        r.modules = &many;
        let error = kernel(false).load(&r).unwrap_err().to_string();
        assert!(error.starts_with("what a NetBSD kernel is told takes"), "{error}");
    }
}
