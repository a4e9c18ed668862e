//! Loads kernels into guest memory without a boot loader's help: Linux bzImages by the 64-bit
//! entry of the x86 boot protocol (32-bit where a kernel has no other) and ELF kernels by PVH.
//!
//! The kernel's file goes straight into guest RAM; nothing is decompressed here. The result is an
//! [`Entry`]: the registers that the first vCPU starts with.
#![forbid(unsafe_code)]

mod bzimage;
mod elf;
mod file;
mod handoff;
mod pvh;

#[cfg(test)]
mod test_image;

use std::path::{Path, PathBuf};

use memory::GuestMemory;

use file::Image;

/// What to load, and what the kernel is told.
pub struct Request<'a> {
    /// Guest RAM.
    pub memory: &'a GuestMemory,
    /// The kernel's file.
    pub kernel: &'a Path,
    /// A file to hand over as initial RAM disk.
    pub initrd: Option<&'a Path>,
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// The memory map, in ascending order.
    pub map: &'a [MapEntry],
    /// Where the ACPI RSDP is.
    pub rsdp: Option<u64>,
}

/// One range of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// Guest-physical address.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
    /// e820 type: 1 is RAM, 2 is reserved (ACPI 6.4, table 15.4).
    pub kind: u32,
}

/// How a vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 64-bit mode, paging on with the tables at [`Entry::cr3`].
    Long,
    /// 32-bit protected mode, paging off.
    Protected32,
}

/// The state that the bootstrap processor starts in. What is not named here is 0 (RFLAGS: 2);
/// segments are flat with the selectors of [`Entry`], interrupts are off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Processor mode.
    pub mode: Mode,
    /// Instruction pointer.
    pub rip: u64,
    /// Where the zero page is, for Linux.
    pub rsi: u64,
    /// Where hvm_start_info is, for PVH; the information structure, for Multiboot.
    pub rbx: u64,
    /// The magic number, for Multiboot.
    pub rax: u64,
    /// Stack pointer, for kernels that find their arguments on the stack.
    pub rsp: u64,
    /// Identity-mapped page tables; 0 without paging.
    pub cr3: u64,
    /// Linear address of the GDT.
    pub gdt_base: u64,
    /// Last valid offset of the GDT.
    pub gdt_limit: u16,
    /// Selector of the flat code segment.
    pub code: u16,
    /// Selector of the flat data segment, for DS, ES, FS, GS and SS.
    pub data: u16,
    /// Selector of the task state segment at address 0 with the limit 67h.
    pub tss: u16,
}

/// Why nothing was loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file can't be used.
    #[error("{key}={}: {what}", path.display())]
    File {
        /// The configuration key that named it.
        key: &'static str,
        /// As the user named it.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The command line is too long for this kernel.
    #[error("kernel.cmdline is {len} bytes long, this kernel takes {max}")]
    Cmdline {
        /// Its length.
        len: usize,
        /// The kernel's limit.
        max: usize,
    },
    /// The memory map has more entries than the boot protocol can pass on.
    #[error("the memory map has {0} entries, a boot protocol passes {max} on", max = handoff::MAX_MAP)]
    Map(usize),
    /// Guest memory has no RAM there.
    #[error(transparent)]
    Memory(#[from] memory::Error),
}

/// Result of loading.
pub type Result<T> = std::result::Result<T, Error>;

/// Loads the kernel, and says how the bootstrap processor starts.
pub fn load(request: &Request) -> Result<Entry> {
    if request.map.len() > handoff::MAX_MAP {
        return Err(Error::Map(request.map.len()));
    }
    let kernel = Image::open("kernel.path", request.kernel)?;
    let mut start = [0; 4];
    let is_elf = kernel.len() >= 4 && kernel.read(0, &mut start).is_ok() && &start == b"\x7fELF";
    if is_elf { pvh::load(request, &kernel) } else { bzimage::load(request, &kernel) }
}
