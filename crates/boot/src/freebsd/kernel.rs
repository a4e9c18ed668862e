//! The kernel: an ELF executable.

use super::metadata::{self, Pointers};
use super::*;
use crate::elf::{self, Elf, SHT_SYMTAB, Sections};
use crate::handoff::KERNEL_MIN;

/// Where the kernel is linked (KERNBASE, sys/amd64/include/vmparam.h); memory starts there.
const KERNBASE: u64 = 0xffff_ffff_8000_0000;

/// Checks the kernel, and finds places for its segments and symbols. The answer is the file and
/// the kernel's entry point.
pub fn lay_out(image: Image, name: &str) -> Result<(Loaded, u64)> {
    let elf = check(&image)?;
    let sections = Sections::read(&image, &elf)?;
    let mut file = Loaded::new(image, name, TYPE_KERNEL, u64::MAX);
    let (mut start, mut end) = (u64::MAX, 0);
    for segment in &elf.segments {
        let at = segment.vaddr.checked_sub(KERNBASE);
        let fits = at.and_then(|at| Some((at, at.checked_add(segment.mem_len)?)));
        let Some((at, to)) = fits.filter(|(at, to)| *at >= KERNEL_MIN && *to <= MAPPED) else {
            let (at, len) = (segment.vaddr, segment.mem_len);
            return Err(file
                .image
                .error(format!("its segment at {at:#x}+{len:#x} is not where FreeBSD/amd64 kernels are")));
        };
        (start, end) = (start.min(at), end.max(to));
        file.pieces.push(Piece::File { at, offset: segment.offset, len: segment.file_len });
    }
    if !(start..end).contains(&elf.entry.wrapping_sub(KERNBASE)) {
        return Err(file.image.error(format!("damaged: its entry point {:#x} is in no segment", elf.entry)));
    }
    (file.start, file.end) = (start, end.next_multiple_of(8));
    if !sections.list.is_empty() {
        file.metadata.push((MODINFOMD_SHDR, sections.to_bytes()));
    }
    if let Some(ctors) = sections.by_name(b".ctors") {
        file.metadata.push((MODINFOMD_CTORS_ADDR, ctors.addr.to_le_bytes().to_vec()));
        file.metadata.push((MODINFOMD_CTORS_SIZE, ctors.size.to_le_bytes().to_vec()));
    }
    symbols(&mut file, &elf, &sections)?;
    if let Some(dynamic) = elf.dynamic {
        file.metadata.push((MODINFOMD_DYNAMIC, dynamic.to_le_bytes().to_vec()));
    }
    file.metadata.push((MODINFOMD_ELFHDR, elf.header.clone()));
    let found = metadata::read(&file.image, &sections, &Pointers::Linked(&elf.segments))?;
    // A kernel depends on nothing.
    file.provides = found.provides;
    Ok((file, elf.entry))
}

fn check(image: &Image) -> Result<Elf> {
    if !elf::is_elf(image) {
        return Err(image.error("not an ELF file, so no FreeBSD kernel"));
    }
    let elf = Elf::read(image)?;
    if !elf.long || !elf.amd64 {
        return Err(image.error("a FreeBSD/i386 kernel; only FreeBSD/amd64 is supported"));
    }
    match elf.kind {
        elf::ET_EXEC => Ok(elf),
        elf::ET_REL | elf::ET_DYN => Err(image.error("a kernel module, not a kernel")),
        _ => Err(image.error("an ELF file, but not a FreeBSD kernel")),
    }
}

/// Puts the symbols and their names behind the kernel, each with its length in front.
fn symbols(file: &mut Loaded, elf: &Elf, sections: &Sections) -> Result<()> {
    let in_segment = |offset: u64, size: u64| {
        elf.segments
            .iter()
            .any(|s| offset >= s.offset && offset.saturating_add(size) <= s.offset.saturating_add(s.file_len))
    };
    let table =
        sections.list.iter().rfind(|s| s.kind == SHT_SYMTAB && s.size > 0 && !in_segment(s.offset, s.size));
    let Some((table, strings)) = table.and_then(|t| Some((t, sections.list.get(t.link as usize)?))) else {
        return Ok(());
    };
    let first = file.end;
    for section in [table, strings] {
        file.image.check(section.offset, section.size)?;
        file.pieces.push(Piece::Made { at: file.end, bytes: section.size.to_le_bytes().to_vec() });
        let at = file.end + 8;
        file.pieces.push(Piece::File { at, offset: section.offset, len: section.size });
        // Sizes are at most the file's, so that sums of a few don't overflow.
        file.end = (at + section.size).next_multiple_of(8);
    }
    if file.end > MAPPED {
        return Err(file.image.error("too large for the GiB that the kernel starts with"));
    }
    file.metadata.push((MODINFOMD_SSYM, first.to_le_bytes().to_vec()));
    file.metadata.push((MODINFOMD_ESYM, file.end.to_le_bytes().to_vec()));
    Ok(())
}
