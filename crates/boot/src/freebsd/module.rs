//! A module: a relocatable object whose sections get places here; the kernel links it.

use super::metadata::{self, Pointers};
use super::*;
use crate::elf::{
    self, Elf, SHF_ALLOC, SHT_FINI_ARRAY, SHT_INIT_ARRAY, SHT_NOBITS, SHT_PROGBITS, SHT_REL, SHT_RELA,
    SHT_X86_64_UNWIND, Sections,
};

/// Largest alignment of a section: a page of 2 MiB.
const MAX_ALIGN: u64 = 2 << 20;

/// Checks a module, and finds places for its sections from `start` on.
pub fn lay_out(image: Image, name: &str, start: u64) -> Result<Loaded> {
    if !elf::is_elf(&image) {
        return Err(image.error("not an ELF file, so no kernel module"));
    }
    let elf = Elf::read(&image)?;
    if !elf.long || !elf.amd64 {
        return Err(image.error("a module for FreeBSD/i386; only FreeBSD/amd64 is supported"));
    }
    match elf.kind {
        elf::ET_REL => {}
        elf::ET_EXEC => return Err(image.error("a kernel, not a module")),
        _ => return Err(image.error("an ELF file, but not a module of FreeBSD/amd64")),
    }
    let mut sections = Sections::read(&image, &elf)?;
    let Some((table, strings)) = sections.symbol_table() else {
        return Err(image.error("damaged: a module has one symbol table"));
    };
    if sections.names_index == 0 || sections.names_index >= sections.list.len() {
        return Err(image.error("damaged: a module's sections have names"));
    }
    let mut file = Loaded::new(image, name, TYPE_MODULE, start);
    // Code and data, symbols, names of symbols and of sections, relocations of what is loaded.
    sections.list.iter_mut().for_each(|s| s.addr = 0);
    let loaded = |kind, flags, size| {
        let kinds = [SHT_PROGBITS, SHT_NOBITS, SHT_X86_64_UNWIND, SHT_INIT_ARRAY, SHT_FINI_ARRAY];
        kinds.contains(&kind) && flags & SHF_ALLOC != 0 && size > 0
    };
    let mut order: Vec<usize> = Vec::new();
    let program = sections.list.iter().enumerate();
    order.extend(program.filter(|(_, s)| loaded(s.kind, s.flags, s.size)).map(|(n, _)| n));
    order.extend([table, strings, sections.names_index]);
    order.extend(sections.list.iter().enumerate().filter_map(|(n, s)| {
        let of = sections.list.get(s.info as usize)?;
        ([SHT_REL, SHT_RELA].contains(&s.kind) && of.flags & SHF_ALLOC != 0).then_some(n)
    }));
    for n in order {
        let Some(section) = sections.list.get_mut(n) else { continue };
        if section.addr != 0 {
            // Symbols and sections share their names.
            continue;
        }
        let align = section.align.max(1);
        if !align.is_power_of_two() || align > MAX_ALIGN {
            return Err(file.image.error(format!("damaged: a section is aligned to {align} bytes")));
        }
        let at = file.end.next_multiple_of(align);
        let Some(end) = at.checked_add(section.size).filter(|end| *end <= MAPPED) else {
            return Err(file.image.error("too large for the GiB that the kernel starts with"));
        };
        if section.kind != SHT_NOBITS {
            file.image.check(section.offset, section.size)?;
            file.pieces.push(Piece::File { at, offset: section.offset, len: section.size });
        }
        (section.addr, file.end) = (at, end);
    }
    file.metadata.push((MODINFOMD_SHDR, sections.to_bytes()));
    file.metadata.push((MODINFOMD_ELFHDR, elf.header.clone()));
    let found = metadata::read(&file.image, &sections, &Pointers::Relocated)?;
    (file.provides, file.depends) = (found.provides, found.depends);
    Ok(file)
}
