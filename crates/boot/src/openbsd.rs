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
