//! What the BSDs have in common: ELF kernels that lie at the low 28 bits of their addresses, and
//! arguments on the stack in 32-bit mode.

use memory::{GuestMemory, PAGE_SIZE};

use crate::elf::{self, Elf, Sections};
use crate::handoff::{self, KERNEL_MIN};
use crate::{Entry, Image, Mode, Result};

/// Kernels are linked high; what counts is the offset from there. As wide as grub-bhyve has it.
const PHYSICAL_MASK: u64 = 0x0fff_ffff;
/// Stack and what it points at, below the 640 KiB that kernels know as base memory.
const STACK: u64 = 0x8_0000;
const ARGUMENTS: u64 = 0x8_0100;
const ARGUMENTS_END: u64 = 0x9_f000;

/// An OpenBSD or NetBSD kernel.
pub struct Kernel {
    pub image: Image,
    pub elf: Elf,
    pub sections: Sections,
    /// One past the last byte that it takes.
    pub end: u64,
}

impl Kernel {
    pub fn read(image: Image, system: &str) -> Result<Self> {
        if !elf::is_elf(&image) {
            return Err(image.error(format!("not an ELF file; only ELF kernels of {system} are supported")));
        }
        let elf = Elf::read(&image)?;
        if elf.kind != elf::ET_EXEC {
            return Err(image.error(format!("an ELF file, but not a kernel of {system}")));
        }
        let mut end = 0u64;
        let mut start = u64::MAX;
        for segment in &elf.segments {
            let base = segment.paddr & PHYSICAL_MASK;
            start = start.min(base);
            end = end.max(base.saturating_add(segment.mem_len));
        }
        let entry = elf.entry & PHYSICAL_MASK;
        if start < KERNEL_MIN || !(start..end).contains(&entry) {
            return Err(image.error("damaged: its entry point or a segment is nowhere a kernel can be"));
        }
        let sections = Sections::read(&image, &elf)?;
        Ok(Self { image, elf, sections, end })
    }

    /// Where execution starts.
    pub fn entry(&self) -> u64 {
        self.elf.entry & PHYSICAL_MASK
    }

    /// Puts the segments into guest memory.
    pub fn place(&self, memory: &GuestMemory) -> Result<()> {
        for segment in &self.elf.segments {
            let at = segment.paddr & PHYSICAL_MASK;
            if !memory.contains(at, segment.mem_len) {
                let end = at.saturating_add(segment.mem_len) >> 20;
                let have = handoff::low_end(memory) >> 20;
                return Err(self
                    .image
                    .error(format!("needs memory up to {end} MiB, the guest has {have} MiB")));
            }
        }
        self.elf.segments.iter().try_for_each(|s| s.place(&self.image, memory, s.paddr & PHYSICAL_MASK))
    }

    /// Where the kernel's address `vaddr` is in guest memory, if `len` bytes from there are its.
    pub fn physical(&self, vaddr: u64, len: u64) -> Option<u64> {
        self.elf.segments.iter().find_map(|s| {
            let inside = vaddr.checked_sub(s.vaddr)?;
            (inside.checked_add(len)? <= s.mem_len).then_some((s.paddr & PHYSICAL_MASK) + inside)
        })
    }
}

/// The next page.
pub fn page_up(at: u64) -> u64 {
    at.saturating_add(PAGE_SIZE - 1) & !(PAGE_SIZE - 1)
}

/// Where what the stack points at begins.
pub const fn arguments() -> u64 {
    ARGUMENTS
}

/// Writes the arguments and the stack, and says how the kernel starts. The kernels' first
/// instructions find their arguments above a return address.
pub fn start(memory: &GuestMemory, entry: u64, stack: &[u32], arguments: &[u8]) -> Result<Entry> {
    let (len, room) = (arguments.len() as u64, ARGUMENTS_END - ARGUMENTS);
    if len > room {
        return Err(crate::Error::Room { what: "the list of what the kernel is told", len, room });
    }
    memory.write(ARGUMENTS, arguments)?;
    memory.write(STACK, &handoff::words(stack))?;
    Ok(Entry { rsp: STACK, ..handoff::entry(memory, Mode::Protected32, entry)? })
}
