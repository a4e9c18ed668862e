//! SMBIOS tables (DSP0134 3.6), with the 2.8 entry point.

use crate::pool::Pool;
use crate::{Error, HIGH_BASE, Platform, SMBIOS_BASE, checksum};

const MAJOR: u8 = 2;
const MINOR: u8 = 8;
const ENTRY_LEN: u64 = 0x1f;
/// Where structures start when they follow the entry point.
const NEAR_BASE: u64 = SMBIOS_BASE + 0x20;
/// bhyve's room for entry point and structures.
const NEAR_ROOM: u64 = 0x1400;
/// Handle in a reference that refers to nothing, and one that says "no error information".
const NO_HANDLE: u16 = 0xffff;
const NO_ERROR: u16 = 0xfffe;

const CHASSIS_HANDLE: u16 = 3;
const MEMORY_ARRAY_HANDLE: u16 = 0x10;
const FIRST_CPU_HANDLE: u16 = 0x1000;

/// One structure: formatted part, then its strings.
struct Structure {
    bytes: Vec<u8>,
    strings: Vec<u8>,
    count: u8,
}

impl Structure {
    fn new(kind: u8, handle: u16) -> Self {
        let [low, high] = handle.to_le_bytes();
        Self { bytes: vec![kind, 0, low, high], strings: Vec::new(), count: 0 }
    }

    fn put(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn u16(self, value: u16) -> Self {
        self.put(&value.to_le_bytes())
    }

    fn u32(self, value: u32) -> Self {
        self.put(&value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.put(&value.to_le_bytes())
    }

    /// Adds a string and the reference to it; an empty one is reference 0.
    fn text(mut self, text: &str) -> Self {
        let bytes: Vec<u8> = text.bytes().filter(|b| *b != 0).collect();
        if bytes.is_empty() {
            return self.put(&[0]);
        }
        self.count += 1;
        self.strings.extend_from_slice(&bytes);
        self.strings.push(0);
        let count = self.count;
        self.put(&[count])
    }

    fn finish(mut self) -> Vec<u8> {
        let len = self.bytes.len() as u8;
        if let Some(field) = self.bytes.get_mut(1) {
            *field = len;
        }
        if self.strings.is_empty() {
            self.strings.push(0);
        }
        self.bytes.append(&mut self.strings);
        self.bytes.push(0);
        self.bytes
    }
}

/// Entry point and structures, each with its place. The structures follow the entry point, or go
/// to `pool` when they are too long for that.
pub fn build(platform: &Platform, pool: &mut Pool) -> Result<[(u64, Vec<u8>); 2], Error> {
    let mut structures = vec![bios(platform), system(platform), board(platform), chassis(platform)];
    let memory = memory(platform);
    let near = NEAR_ROOM - (NEAR_BASE - SMBIOS_BASE);
    let fixed: u64 = structures.iter().chain(&memory).map(|s| s.len() as u64).sum();
    let cpus: Vec<_> = (0..platform.sockets.min(0x4000)).map(|n| processor(platform, n as u16)).collect();
    let cpu_len: u64 = cpus.iter().map(|s| s.len() as u64).sum();
    let far = fixed + cpu_len > near;
    // More sockets than the segment has room for are left out: nothing depends on all of them.
    let mut left = if far { pool.left().saturating_sub(fixed) } else { near };
    for cpu in cpus {
        left = match left.checked_sub(cpu.len() as u64) {
            Some(left) => left,
            None => break,
        };
        structures.push(cpu);
    }
    structures.extend(memory);

    let longest = structures.iter().map(Vec::len).max().unwrap_or(0);
    let count = structures.len() as u16;
    let table = structures.concat();
    let at = if far { pool.take("SMBIOS", table.len() as u64)? } else { NEAR_BASE };
    let full = Error::Full { what: "SMBIOS", len: table.len() as u64 };
    let len = u16::try_from(table.len()).map_err(|_| full)?;

    let mut tail = Vec::from(*b"_DMI_\0");
    tail.extend_from_slice(&len.to_le_bytes());
    tail.extend_from_slice(&(at as u32).to_le_bytes());
    tail.extend_from_slice(&count.to_le_bytes());
    tail.push(MAJOR << 4 | MINOR);
    let sum = checksum(&tail);
    if let Some(field) = tail.get_mut(5) {
        *field = sum;
    }
    let mut entry = Vec::from(*b"_SM_\0");
    entry.extend_from_slice(&[ENTRY_LEN as u8, MAJOR, MINOR]);
    entry.extend_from_slice(&(longest as u16).to_le_bytes());
    entry.extend_from_slice(&[0; 6]);
    entry.append(&mut tail);
    let sum = checksum(&entry);
    if let Some(field) = entry.get_mut(4) {
        *field = sum;
    }
    Ok([(SMBIOS_BASE, entry), (at, table)])
}

/// Type 0 (7.1).
fn bios(platform: &Platform) -> Vec<u8> {
    // ISA, PCI, boot from CD, selectable boot; then ACPI; then "describes a virtual machine".
    const CHARACTERISTICS: u64 = 1 << 4 | 1 << 7 | 1 << 15 | 1 << 16;
    let info = &platform.system;
    Structure::new(0, 0)
        .text(&info.bios_vendor)
        .text(&info.bios_version)
        .u16(0xf000)
        .text(&info.bios_release_date)
        .put(&[0]) // 64 KiB
        .u64(CHARACTERISTICS)
        .put(&[u8::from(platform.acpi), 1 << 4])
        .put(&[14, 0, 0xff, 0xff]) // release 14.0, no embedded controller
        .finish()
}

/// Type 1 (7.2).
fn system(platform: &Platform) -> Vec<u8> {
    let info = &platform.system;
    // The first three fields are little-endian (7.2.1).
    let u = info.uuid;
    let uuid = [
        u[3], u[2], u[1], u[0], u[5], u[4], u[7], u[6], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15],
    ];
    Structure::new(1, 1)
        .text(&info.system_manufacturer)
        .text(&info.system_product_name)
        .text(&info.system_version)
        .text(&info.system_serial_number)
        .put(&uuid)
        .put(&[6]) // woken by the power switch
        .text(&info.system_sku)
        .text(&info.system_family_name)
        .finish()
}

/// Type 2 (7.3).
fn board(platform: &Platform) -> Vec<u8> {
    let info = &platform.system;
    Structure::new(2, 2)
        .text(&info.board_manufacturer)
        .text(&info.board_product_name)
        .text(&info.board_version)
        .text(&info.board_serial_number)
        .text(&info.board_asset_tag)
        .put(&[1]) // a hosting board
        .text(&info.board_location)
        .u16(CHASSIS_HANDLE)
        .put(&[0x0a, 0]) // motherboard, contains no handles
        .finish()
}

/// Type 3 (7.4).
fn chassis(platform: &Platform) -> Vec<u8> {
    let info = &platform.system;
    Structure::new(3, CHASSIS_HANDLE)
        .text(&info.chassis_manufacturer)
        .put(&[2]) // unknown
        .text(&info.chassis_version)
        .text(&info.chassis_serial_number)
        .text(&info.chassis_asset_tag)
        .put(&[3, 3, 3, 3]) // boot-up, power and thermal state safe, no security
        .u32(0)
        .put(&[0, 1, 0, 0]) // height unknown, one power cord, no elements
        .text(&info.chassis_sku)
        .finish()
}

/// Type 4 (7.5), one a socket.
fn processor(platform: &Platform, socket: u16) -> Vec<u8> {
    let cores = platform.cores.min(255) as u8;
    let threads = platform.cores.saturating_mul(platform.threads).min(255) as u8;
    Structure::new(4, FIRST_CPU_HANDLE + socket)
        .text(&format!("CPU #{socket}"))
        .put(&[3, 2]) // central processor, family unknown
        .text(&platform.system.system_manufacturer)
        .u32(platform.cpu_signature)
        .u32(platform.cpu_features)
        .put(&[0, 0]) // no version string, voltage unknown
        .u16(0) // clock, highest and current speed unknown
        .u16(0)
        .u16(0)
        .put(&[0x41, 2]) // populated and enabled, upgrade unknown
        .u16(NO_HANDLE)
        .u16(NO_HANDLE)
        .u16(NO_HANDLE)
        .put(&[0, 0, 0])
        .put(&[cores, cores, threads])
        .u16(1 << 2) // 64-bit capable
        .u16(2)
        .finish()
}

/// Types 16, 17, 19, 32 and 127 (7.17, 7.18, 7.20, 7.33, 7.45).
fn memory(platform: &Platform) -> Vec<Vec<u8>> {
    let size = platform.memory.size();
    let kib = size >> 10;
    let (capacity, extended) = if kib < 0x8000_0000 { (kib as u32, 0) } else { (0x8000_0000, size) };
    let array = Structure::new(16, MEMORY_ARRAY_HANDLE)
        .put(&[3, 3, 3]) // on the motherboard, system memory, no error correction
        .u32(capacity)
        .u16(NO_ERROR)
        .u16(1)
        .u64(extended)
        .finish();

    // Units of 1 MiB, or of 1 KiB with bit 15; 7FFFh refers to the extended size in MiB.
    let mib = size >> 20;
    let (size_field, extended) = match () {
        () if size.trailing_zeros() < 20 && kib < 0x7fff => (kib as u16 | 0x8000, 0),
        () if mib < 0x7fff => (mib as u16, 0),
        () => (0x7fff, mib.min(0x7fff_ffff) as u32),
    };
    let device = Structure::new(17, MEMORY_ARRAY_HANDLE + 1)
        .u16(MEMORY_ARRAY_HANDLE)
        .u16(NO_ERROR)
        .u16(64)
        .u16(64)
        .u16(size_field)
        .put(&[2, 0]) // form unknown, no set
        .text("DIMM 0")
        .put(&[0, 7]) // no bank, RAM
        .u16(1 << 2) // detail unknown
        .u16(0)
        .put(&[0, 0, 0, 0, 0])
        .u32(extended)
        .u16(0)
        .u16(0)
        .u16(0)
        .u16(0)
        .finish();

    let mut structures = vec![array, device];
    let ranges = [(0, platform.memory.low), (HIGH_BASE, platform.memory.high)];
    for (n, (base, len)) in (0u16..).zip(ranges).filter(|(_, (_, len))| *len > 0) {
        structures.push(mapped(MEMORY_ARRAY_HANDLE + 2 + n, base, base + len));
    }
    structures.push(Structure::new(32, 0x20).put(&[0; 6]).put(&[0]).finish());
    structures.push(Structure::new(127, 0xfeff).finish());
    structures
}

/// Type 19: RAM of the array from `start` to `end`.
fn mapped(handle: u16, start: u64, end: u64) -> Vec<u8> {
    let (first, last) = (start >> 10, (end >> 10).saturating_sub(1));
    let structure = Structure::new(19, handle);
    match (u32::try_from(first), u32::try_from(last)) {
        (Ok(first), Ok(last)) if last != u32::MAX => {
            structure.u32(first).u32(last).u16(MEMORY_ARRAY_HANDLE).put(&[1]).u64(0).u64(0)
        }
        // The byte addresses are in the extended fields.
        _ => structure.u32(u32::MAX).u32(u32::MAX).u16(MEMORY_ARRAY_HANDLE).put(&[1]).u64(start).u64(end - 1),
    }
    .finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::example::platform;
    use crate::{ACPI_BASE, MemoryMap, SEGMENT_END};

    struct Parsed {
        kind: u8,
        formatted: Vec<u8>,
        strings: Vec<String>,
    }

    fn parse(table: &[u8]) -> Vec<Parsed> {
        let (mut at, mut all) = (0, Vec::new());
        while at < table.len() {
            let len = usize::from(table[at + 1]);
            let formatted = table[at..at + len].to_vec();
            at += len;
            let mut strings = Vec::new();
            let end = at + table[at..].windows(2).position(|w| w == [0, 0]).unwrap();
            if table[at] != 0 {
                strings =
                    table[at..end].split(|b| *b == 0).map(|s| String::from_utf8(s.into()).unwrap()).collect();
            }
            at = end + 2;
            all.push(Parsed { kind: formatted[0], formatted, strings });
        }
        all
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b))
    }

    fn tables(p: &Platform) -> [(u64, Vec<u8>); 2] {
        build(p, &mut Pool::new(ACPI_BASE, SEGMENT_END)).unwrap()
    }

    #[test]
    fn structures_parse_back() {
        let mut p = platform(2);
        p.system.system_serial_number = "SN 42".into();
        p.system.board_asset_tag = String::new();
        p.system.uuid = *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff";
        let [(base, entry), (at, table)] = tables(&p);
        assert_eq!((base, at), (SMBIOS_BASE, NEAR_BASE));
        assert_eq!((entry.len(), sum(&entry), sum(&entry[16..])), (0x1f, 0, 0));
        assert_eq!(usize::from(u16::from_le_bytes([entry[0x16], entry[0x17]])), table.len());
        let all = parse(&table);
        assert_eq!(usize::from(u16::from_le_bytes([entry[0x1c], entry[0x1d]])), all.len());
        let kinds: Vec<_> = all.iter().map(|s| s.kind).collect();
        assert_eq!(kinds, [0, 1, 2, 3, 4, 4, 16, 17, 19, 19, 32, 127]);
        let lens: Vec<_> = all.iter().map(|s| s.formatted.len()).collect();
        assert_eq!(lens, [0x18, 0x1b, 0x0f, 0x16, 0x2a, 0x2a, 0x17, 0x28, 0x1f, 0x1f, 0x0b, 4]);
        assert_eq!(all[1].strings, ["FreeBSD", "BHYVE", "1.0", "SN 42", "None", "Virtual Machine"]);
        assert_eq!(all[1].formatted[8..16], [0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66]);
        assert_eq!(all[2].formatted[8], 0);
    }

    #[test]
    fn ram_sizes_are_told_in_their_fields() {
        let mut p = platform(1);
        let size_of = |p: &Platform| {
            let all = parse(&tables(p)[1].1);
            let s = all.iter().find(|s| s.kind == 17).unwrap();
            let long = u32::from_le_bytes(s.formatted[0x1c..0x20].try_into().unwrap());
            (u16::from_le_bytes([s.formatted[12], s.formatted[13]]), long)
        };
        p.memory = MemoryMap::new(512 << 20);
        assert_eq!(size_of(&p), (512, 0));
        p.memory = MemoryMap::new(64 << 30);
        assert_eq!(size_of(&p), (0x7fff, 65536));
        p.memory = MemoryMap::new(0x11_0000);
        assert_eq!(size_of(&p), (0x8000 | 0x440, 0));
    }

    #[test]
    fn many_sockets_and_long_texts_move_or_are_refused() {
        let [_, (at, table)] = tables(&platform(300));
        assert!(at >= ACPI_BASE);
        assert_eq!(parse(&table).iter().filter(|s| s.kind == 4).count(), 300);
        let [_, (_, table)] = tables(&platform(1024));
        assert!(table.len() as u64 <= SEGMENT_END - ACPI_BASE);
        assert_eq!(parse(&table).last().map(|s| s.kind), Some(127));
        let mut p = platform(1);
        p.system.bios_vendor = "x".repeat(70_000);
        assert!(build(&p, &mut Pool::new(ACPI_BASE, SEGMENT_END)).is_err());
    }
}
