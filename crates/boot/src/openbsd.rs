//! OpenBSD kernels, as boot(8) starts them (sys/arch/amd64/amd64/locore0.S and
//! sys/arch/amd64/include/biosvar.h).

use std::io::Read;

use media::Fields;
use memory::GuestMemory;

use crate::handoff::{self, words};
use crate::{Entry, Image, MapEntry, Result, bsd};

/// Bits of [`Request::howto`] (sys/sys/reboot.h).
pub mod howto {
    /// Ask for the root device.
    pub const ASKNAME: u32 = 0x1;
    /// Single user.
    pub const SINGLE: u32 = 0x2;
    /// Halt instead of rebooting.
    pub const HALT: u32 = 0x8;
    /// Enter the debugger.
    pub const KDB: u32 = 0x40;
    /// Edit the kernel's configuration.
    pub const CONFIG: u32 = 0x400;
    /// The console is a serial line; [`super::Request::console`] sets it.
    pub const SERCONS: u32 = 0x2000;
}

/// A boot device: `B_DEVMAGIC`, then type, unit and partition at their shifts (sys/sys/disklabel.h,
/// sys/sys/reboot.h).
const DEVMAGIC: u32 = 0xa000_0000;
const UNIT_SHIFT: u32 = 16;
const PARTITION_SHIFT: u32 = 8;
/// Block device numbers of disks (sys/arch/amd64/amd64/conf.c).
const DISKS: [(&str, u32); 4] = [("wd", 0), ("sd", 4), ("cd", 6), ("rd", 17)];

/// BAPIV_VECTOR | BAPIV_ENV | BAPIV_BMEMMAP: the arguments are a list, memory sizes are in bytes.
const API_VERSION: u32 = 0x2 | 0x4 | 0x8;
/// Kinds of arguments.
const BOOTARG_MEMMAP: u32 = 0;
const BOOTARG_CONSDEV: u32 = 5;
const BOOTARG_BOOTDUID: u32 = 9;
const BOOTARG_END: u32 = u32::MAX;
/// Character devices: com and the VGA console.
const COM_MAJOR: u32 = 8;
const VGA_MAJOR: u32 = 12;
/// The kernel copies one page of arguments.
const ARGUMENTS_MAX: u64 = 4096;
/// More random bytes than a kernel asks for.
const RANDOM_MAX: u64 = 1 << 20;

/// A serial console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serial {
    /// 0 is com0, the first line.
    pub unit: u8,
    /// Bits a second.
    pub speed: u32,
}

/// What the kernel is told.
pub struct Request<'a> {
    /// Guest RAM.
    pub memory: &'a GuestMemory,
    /// Bits of [`howto`].
    pub howto: u32,
    /// From [`boot_device`]; 0 leaves the choice to the kernel.
    pub root: u32,
    /// The identifier in the boot disk's label, by which the kernel finds its root.
    pub duid: Option<[u8; 8]>,
    /// The console: a serial line, or the screen.
    pub console: Option<Serial>,
    /// What takes the place of the RAM disk in the kernel.
    pub ramdisk: Option<&'a Image>,
    /// The memory map, in ascending order.
    pub map: &'a [MapEntry],
}

/// The device number of a name such as `wd0a` or `sd1b`.
pub fn boot_device(name: &str) -> Option<u32> {
    let (_, major) = DISKS.iter().find(|(disk, _)| name.starts_with(disk))?;
    let rest = name.get(2..)?;
    let letter = rest.chars().next_back()?;
    let unit: u32 = rest.get(..rest.len().checked_sub(letter.len_utf8())?)?.parse().ok()?;
    let partition = u32::from(letter).checked_sub(u32::from('a')).filter(|p| *p < 16)?;
    (unit < 16).then_some(DEVMAGIC | unit << UNIT_SHIFT | partition << PARTITION_SHIFT | major)
}

/// An OpenBSD kernel.
pub struct Kernel(bsd::Kernel);

/// The room for a RAM disk in the kernel, in guest memory.
struct Ramdisk {
    image: u64,
    size: u64,
    room: u64,
}

impl Kernel {
    /// Checks that `image` is a kernel that can be loaded.
    pub fn read(image: Image) -> Result<Self> {
        bsd::Kernel::read(image, "OpenBSD").map(Self)
    }

    /// Where the RAM disk is in a kernel with one (`RAMDISK_HOOKS`, sys/dev/rd.c).
    fn ramdisk(&self) -> Result<Option<Ramdisk>> {
        let kernel = &self.0;
        let names: [&[u8]; 2] = [b"rd_root_image", b"rd_root_size"];
        let [image, size] = kernel.sections.find_symbols(&kernel.image, names)?;
        let (Some(image), Some(size)) = (image, size) else { return Ok(None) };
        let segment = kernel.elf.segments.iter().find_map(|s| s.file_offset(size.value));
        let (Some(offset), Some(size)) = (segment, kernel.physical(size.value, 4)) else { return Ok(None) };
        let mut room = [0; 4];
        kernel.image.read(offset, &mut room)?;
        let room = u64::from(u32::from_le_bytes(room));
        Ok(kernel.physical(image.value, room).map(|image| Ramdisk { image, size, room }))
    }

    /// Loads it.
    pub fn load(&self, request: &Request) -> Result<Entry> {
        handoff::check_map(request.map)?;
        let (memory, kernel) = (request.memory, &self.0);
        let room = match request.ramdisk {
            Some(disk) => Some((disk, self.check_ramdisk(disk)?)),
            None => None,
        };
        kernel.place(memory)?;
        self.randomize(memory)?;
        if let Some((disk, room)) = room {
            memory.fill(room.image, 0, room.room)?;
            disk.place(memory, 0, disk.len(), room.image)?;
            memory.write(room.size, &(disk.len().next_multiple_of(512) as u32).to_le_bytes())?;
        }
        let arguments = arguments(request)?;
        let (lower, upper) = handoff::lower_upper(request.map);
        let mut howto = request.howto & !howto::SERCONS;
        if request.console.is_some() {
            howto |= howto::SERCONS;
        }
        // Return address, howto, device, version, end of symbols, extended and base memory, the
        // arguments' length and place.
        let entry = kernel.entry();
        let (at, len) = (bsd::arguments() as u32, arguments.len() as u32);
        let stack = [entry as u32, howto, request.root, API_VERSION, 0, upper, lower, len, at];
        bsd::start(memory, entry, &stack, &arguments)
    }

    fn check_ramdisk(&self, disk: &Image) -> Result<Ramdisk> {
        let Some(room) = self.ramdisk()? else {
            return Err(disk.error(format!("{} has no room for a RAM disk", self.0.image.name())));
        };
        if disk.is_empty() || disk.len().next_multiple_of(512) > room.room {
            let (len, room) = (disk.len(), room.room);
            return Err(
                disk.error(format!("{len} bytes long, the kernel takes RAM disks up to {room} bytes"))
            );
        }
        Ok(room)
    }

    /// Fills what the kernel wants filled with random bytes, as boot(8) does.
    fn randomize(&self, memory: &GuestMemory) -> Result<()> {
        for segment in &self.0.elf.random {
            let len = segment.mem_len;
            let Some(at) = self.0.physical(segment.vaddr, len).filter(|_| len <= RANDOM_MAX) else {
                continue;
            };
            let mut bytes = vec![0; len as usize];
            let read = std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes));
            read.map_err(|e| self.0.image.error(format!("no random numbers for it: {e}")))?;
            memory.write(at, &bytes)?;
        }
        Ok(())
    }
}

/// The list of arguments: kind, length and next of each, then its data.
fn arguments(request: &Request) -> Result<Vec<u8>> {
    let mut list = Vec::new();
    let mut add = |kind: u32, data: &[u8]| {
        let len = 12 + data.len() as u32;
        let next = bsd::arguments() as u32 + list.len() as u32 + len;
        list.extend_from_slice(&words(&[kind, len, next]));
        list.extend_from_slice(data);
    };
    // An entry of zeros ends the map (BIOS_MAP_END).
    let mut map = handoff::smap(request.map);
    map.extend_from_slice(&[0; 20]);
    add(BOOTARG_MEMMAP, &map);
    // Device, speed, address of the port (-1: by its number), frequency.
    let console = match request.console {
        Some(serial) => words(&[COM_MAJOR << 8 | u32::from(serial.unit), serial.speed, u32::MAX, 0]),
        None => words(&[VGA_MAJOR << 8, 0, 0, 0]),
    };
    add(BOOTARG_CONSDEV, &console);
    if let Some(duid) = request.duid {
        add(BOOTARG_BOOTDUID, &duid);
    }
    list.extend_from_slice(&words(&[BOOTARG_END, 0, 0]));
    let len = list.len() as u64;
    if len > ARGUMENTS_MAX {
        let what = "what an OpenBSD kernel is told";
        return Err(crate::Error::Room { what, len, room: ARGUMENTS_MAX });
    }
    Ok(list)
}

/// The identifier in a disk label, if `sector` is one (sys/sys/disklabel.h): magic numbers, then
/// d_uid behind the geometry.
pub fn label_duid(sector: &[u8]) -> Option<[u8; 8]> {
    const MAGIC: u32 = 0x8256_4557;
    let ours = sector.u32_at(0) == Some(MAGIC) && sector.u32_at(0x84) == Some(MAGIC);
    sector.array(0x40).filter(|duid| ours && *duid != [0; 8])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mode;
    use crate::test_elf::{Maker, Section, symbol64};
    use crate::test_image::{MAP, at, image, long, memory, word};

    const BASE: u64 = 0xffff_ffff_8100_0000;

    /// A kernel with a RAM disk of 1024 bytes at 2000h, its size at 1000h.
    fn kernel() -> Kernel {
        let mut bytes = b"ENTRY".to_vec();
        bytes.resize(0x1000, 0);
        bytes.extend_from_slice(&1024u32.to_le_bytes());
        bytes.resize(0x3000, 0xdd);
        let mut elf = Maker::executable(true, BASE).segment(BASE, 0x100_0000, &bytes, 0x5000);
        let names = b"\0rd_root_size\0rd_root_image\0".to_vec();
        let strings = elf.section(Section { name: ".strtab", kind: 3, bytes: names, ..Section::default() });
        let symbols =
            [symbol64(0, 0, 0), symbol64(1, 1, BASE + 0x1000), symbol64(14, 1, BASE + 0x2000)].concat();
        elf.section(Section {
            name: ".symtab",
            kind: 2,
            bytes: symbols,
            link: strings,
            ..Section::default()
        });
        Kernel::read(image("(hd0)/bsd", elf.build())).unwrap()
    }

    fn request(memory: &GuestMemory) -> Request<'_> {
        let (howto, root) = (howto::SINGLE | howto::KDB, boot_device("sd1b").unwrap());
        Request { memory, howto, root, duid: None, console: None, ramdisk: None, map: &MAP }
    }

    #[test]
    fn arguments_are_on_the_stack_and_in_the_list() {
        let m = memory(32 << 20);
        let mut r = request(&m);
        (r.console, r.duid) = (Some(Serial { unit: 0, speed: 115_200 }), Some(*b"01234567"));
        let entry = kernel().load(&r).unwrap();
        assert_eq!((entry.mode, entry.rip), (Mode::Protected32, 0x100_0000));
        assert_eq!(&at::<5>(&m, 0x100_0000), b"ENTRY");
        // The file's bytes end at 3000h, the kernel's zeros at 5000h.
        assert_eq!((word(&m, 0x100_2ffc), word(&m, 0x100_3000)), (0xdddd_dddd, 0));
        let stack: Vec<u32> = (0..9).map(|n| word(&m, entry.rsp + 4 * n)).collect();
        assert_eq!(stack[1..7], [0x2042, 0xa001_0104, 14, 0, 3072, 640]);
        let (mut list, end) = (u64::from(stack[8]), u64::from(stack[8] + stack[7]));
        let mut seen = Vec::new();
        while word(&m, list) != u32::MAX {
            let (kind, len, next) = (word(&m, list), word(&m, list + 4), word(&m, list + 8));
            assert_eq!(u64::from(next), list + u64::from(len));
            match kind {
                0 => {
                    assert_eq!(len, 12 + 20 * 3);
                    assert_eq!((long(&m, list + 12 + 20), word(&m, list + 12 + 36)), (0x10_0000, 1));
                    assert_eq!(at::<20>(&m, list + 12 + 40), [0; 20]);
                }
                5 => assert_eq!([12, 16, 20, 24].map(|n| word(&m, list + n)), [0x800, 115_200, u32::MAX, 0]),
                9 => assert_eq!(&at::<8>(&m, list + 12), b"01234567"),
                _ => panic!("argument {kind}"),
            }
            seen.push(kind);
            list = u64::from(next);
        }
        assert_eq!((seen, list + 12), (vec![0, 5, 9], end));
    }

    #[test]
    fn without_a_serial_line_the_console_is_the_screen() {
        let m = memory(32 << 20);
        let mut r = request(&m);
        r.howto |= howto::SERCONS;
        let entry = kernel().load(&r).unwrap();
        assert_eq!(word(&m, entry.rsp + 4), 0x42);
        let console = u64::from(word(&m, entry.rsp + 32)) + 12 + 60;
        assert_eq!((word(&m, console), word(&m, console + 12)), (5, 0xc00));
    }

    #[test]
    fn a_ram_disk_goes_into_the_kernel() {
        let m = memory(32 << 20);
        let (disk, large) = (image("rd", vec![7; 700]), image("rd", vec![7; 1025]));
        let mut r = request(&m);
        r.ramdisk = Some(&disk);
        kernel().load(&r).unwrap();
        assert_eq!(at::<700>(&m, 0x100_2000), [7; 700]);
        assert_eq!(at::<324>(&m, 0x100_2000 + 700), [0; 324]);
        assert_eq!((word(&m, 0x100_1000), word(&m, 0x100_2400)), (1024, 0xdddd_dddd));
        r.ramdisk = Some(&large);
        let error = kernel().load(&r).unwrap_err().to_string();
        assert_eq!(error, "rd: 1025 bytes long, the kernel takes RAM disks up to 1024 bytes");
        let plain = Maker::executable(true, BASE).segment(BASE, 0x100_0000, b"x", 1).build();
        let error = Kernel::read(image("k", plain)).unwrap().load(&r).unwrap_err().to_string();
        assert_eq!(error, "rd: k has no room for a RAM disk");
    }

    #[test]
    fn other_files_and_small_guests_are_refused() {
        let m = memory(16 << 20);
        let error = kernel().load(&request(&m)).unwrap_err().to_string();
        assert_eq!(error, "(hd0)/bsd: needs memory up to 16 MiB, the guest has 16 MiB");
        let low = Maker::executable(true, 0x1000).segment(0x1000, 0x1000, b"x", 1).build();
        let object = Maker::object().build();
        for (bytes, expected) in
            [(low, "damaged"), (object, "not a kernel of OpenBSD"), (vec![], "not an ELF file")]
        {
            let error = Kernel::read(image("k", bytes)).err().unwrap().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn devices_have_numbers() {
        assert_eq!(boot_device("wd0a"), Some(0xa000_0000));
        assert_eq!(boot_device("cd3p"), Some(0xa003_0f06));
        for bad in ["", "wd", "wd0", "wda", "hd0a", "sd16a", "sd0q", "sd0é"] {
            assert_eq!(boot_device(bad), None, "{bad}");
        }
        let mut label = vec![0; 512];
        label[0..4].copy_from_slice(&0x8256_4557u32.to_le_bytes());
        label[0x40..0x48].copy_from_slice(b"UIDUIDUI");
        assert_eq!(label_duid(&label), None);
        label[0x84..0x88].copy_from_slice(&0x8256_4557u32.to_le_bytes());
        assert_eq!(label_duid(&label), Some(*b"UIDUIDUI"));
    }
}
