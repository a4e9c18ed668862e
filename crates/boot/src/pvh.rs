//! PVH: ELF kernels with a 32-bit entry point in a Xen note (Xen's pvh.pandoc and
//! public/arch-x86/hvm/start_info.h).

use media::Fields;

use crate::elf::Elf;
use crate::handoff::{self, CMDLINE, KERNEL_MIN, PVH_INFO};
use crate::linux::Request;
use crate::{Entry, Image, Mode, Result};

/// XEN_ELFNOTE_PHYS32_ENTRY of the note owner "Xen".
const NOTE_OWNER: &[u8] = b"Xen\0";
const NOTE_PHYS32_ENTRY: u32 = 18;
/// `hvm_start_info.magic` and the version that has a memory map.
const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
/// Module list and memory map behind the start info.
const MODULES: u64 = PVH_INFO + 0x40;
const MEMORY_MAP: u64 = PVH_INFO + 0x80;
/// Longest command line: what Linux takes on x86.
const CMDLINE_MAX: usize = 2047;
/// Modules lie where a 32-bit kernel reaches them.
const MODULE_LIMIT: u64 = 0xc000_0000;

/// Loads an ELF kernel with a PVH note.
pub fn load(request: &Request, kernel: &Image) -> Result<Entry> {
    handoff::check_map(request.map)?;
    let elf = Elf::read(kernel)?;
    let entry = elf.note(NOTE_OWNER, NOTE_PHYS32_ENTRY).and_then(|desc| match desc.len() {
        4 => desc.u32_at(0).map(u64::from),
        _ => desc.u64_at(0),
    });
    let Some(entry) = entry else {
        return Err(kernel.error("not a bzImage or PVH ELF: an ELF file without a PVH entry note"));
    };
    let mut end = KERNEL_MIN;
    let mut entry_loaded = false;
    for segment in &elf.segments {
        let segment_end = segment.paddr.checked_add(segment.mem_len);
        let fits = request.memory.contains(segment.paddr, segment.mem_len) && segment.paddr >= KERNEL_MIN;
        let Some(segment_end) = segment_end.filter(|_| fits) else {
            let (at, len) = (segment.paddr, segment.mem_len);
            return Err(kernel.error(format!("its segment at {at:#x}+{len:#x} is not in the guest's memory")));
        };
        entry_loaded |= (segment.paddr..segment_end).contains(&entry);
        end = end.max(segment_end);
    }
    if !entry_loaded || entry > u64::from(u32::MAX) {
        return Err(kernel.error(format!("damaged: its PVH entry point {entry:#x} is in no segment")));
    }
    let initrd = handoff::initrd(request.memory, request.initrds, end, MODULE_LIMIT)?;
    let cmdline = handoff::cmdline(request.memory, CMDLINE, request.cmdline, CMDLINE_MAX, "kernel.cmdline")?;
    for segment in &elf.segments {
        segment.place(kernel, request.memory, segment.paddr)?;
    }
    start_info(request, initrd, cmdline)?;
    Ok(Entry { rbx: PVH_INFO, ..handoff::entry(request.memory, Mode::Protected32, entry)? })
}

/// Writes hvm_start_info, the module list and the memory map.
fn start_info(request: &Request, initrd: (u64, u64), cmdline: u64) -> Result<()> {
    let modules = u32::from(!request.initrds.is_empty());
    let mut info = Vec::with_capacity(56);
    for word in [MAGIC, VERSION, 0, modules] {
        info.extend_from_slice(&word.to_le_bytes());
    }
    let module_list = if modules > 0 { MODULES } else { 0 };
    for word in [module_list, cmdline, request.rsdp.unwrap_or(0), MEMORY_MAP] {
        info.extend_from_slice(&word.to_le_bytes());
    }
    info.extend_from_slice(&(request.map.len() as u32).to_le_bytes());
    info.extend_from_slice(&[0; 4]);
    request.memory.write(PVH_INFO, &info)?;

    let module: Vec<u8> = [initrd.0, initrd.1, 0, 0].iter().flat_map(|w| w.to_le_bytes()).collect();
    request.memory.write(MODULES, &module)?;

    let mut map = Vec::new();
    for entry in request.map {
        map.extend_from_slice(&entry.base.to_le_bytes());
        map.extend_from_slice(&entry.len.to_le_bytes());
        map.extend_from_slice(&entry.kind.to_le_bytes());
        map.extend_from_slice(&[0; 4]);
    }
    request.memory.write(MEMORY_MAP, &map)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::test_image::{Scratch, elf, memory, request};
    use crate::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn both_classes_load_and_get_a_start_info() {
        let dir = Scratch::new("pvh");
        let initrd = dir.file("i", &[5; 100]);
        for long in [true, false] {
            let kernel = dir.file("k", &elf(long, 0x20_0000, Some(0x20_0010)));
            let m = memory(16 << 20);
            m.fill(0x20_0000, 0xcc, 0x4000).unwrap();
            let mut r = request(&m, &kernel);
            (r.initrd, r.cmdline, r.rsdp) = (Some(initrd.as_path()), "a=b", Some(0xf_2400));
            let entry = load(&r).unwrap();
            assert_eq!((entry.mode, entry.rip, entry.rbx), (Mode::Protected32, 0x20_0010, 0x2000));
            let long_at = |gpa| m.load_u64(gpa, Relaxed).unwrap();
            assert_eq!(m.load_u32(0x2000, Relaxed).unwrap(), 0x336e_c578);
            assert_eq!(long_at(0x2008), 1 << 32);
            let module = long_at(0x2010);
            assert_eq!((long_at(module), long_at(module + 8)), ((16 << 20) - 4096, 100));
            assert_eq!(m.load_u32(long_at(0x2018), Relaxed).unwrap(), u32::from_le_bytes(*b"a=b\0"));
            assert_eq!((long_at(0x2020), long_at(0x2028 + 8)), (0xf_2400, 2));
            assert_eq!(long_at(long_at(0x2028) + 24), 0x10_0000);
            // The file's bytes, then zeros up to the segment's length, then what was there.
            assert_eq!(long_at(0x20_0000), u64::from_le_bytes(*b"SEGMENT!"));
            assert_eq!((long_at(0x20_0800), long_at(0x20_2ff8)), (0, 0));
            assert_eq!(long_at(0x20_3000), u64::from_le_bytes([0xcc; 8]));
        }
    }

    #[test]
    fn bad_kernels_are_refused() {
        let dir = Scratch::new("badpvh");
        let m = memory(16 << 20);
        let good = elf(true, 0x20_0000, Some(0x20_0010));
        let mut arm = good.clone();
        arm[0x12] = 40;
        let mut far = good.clone();
        far[0x20..0x28].copy_from_slice(&u64::MAX.to_le_bytes());
        let cases = [
            (elf(true, 0x20_0000, None), "without a PVH entry note"),
            (elf(true, 0x20_0000, Some(0x30_0000)), "is in no segment"),
            (elf(true, 0x8000, Some(0x8000)), "is not in the guest's memory"),
            (elf(true, 1 << 30, Some(1 << 30)), "is not in the guest's memory"),
            (elf(true, u64::MAX - 10, Some(1 << 30)), "is not in the guest's memory"),
            (arm, "not for x86"),
            (far, "truncated"),
            (good[..300].to_vec(), "truncated"),
            (good[..8].to_vec(), "not for x86"),
        ];
        for (bytes, expected) in cases {
            let path = dir.file("k", &bytes);
            let error = load(&request(&m, &path)).unwrap_err().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}
