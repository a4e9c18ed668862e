//! Loads kernels into guest memory: Linux bzImages, ELF kernels by PVH, and what boot loaders
//! load — the BSDs and Multiboot kernels.
//!
//! Each format has its module: a kernel is read and checked first, then loaded by a request that
//! names the memory and what the kernel is told. Files of the host go straight into guest RAM;
//! nothing is decompressed here. The result is an [`Entry`]: the registers that the first vCPU
//! starts with.
#![forbid(unsafe_code)]

mod bsd;
mod elf;
mod file;
pub mod freebsd;
mod handoff;
pub mod linux;
pub mod multiboot;
pub mod netbsd;
pub mod openbsd;
mod pvh;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod test_elf;
#[cfg(test)]
mod test_image;

use std::path::Path;

use memory::GuestMemory;

pub use file::Image;
pub use handoff::{MAX_MAP, memory_map};

/// What to load without a boot loader, and what the kernel is told.
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
    /// Page tables; 0 without paging.
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
    #[error("{name}: {what}")]
    File {
        /// What the user called it.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// The command line is too long for this kernel.
    #[error("{name} is {len} bytes long, this kernel takes {max}")]
    Cmdline {
        /// What the user calls the command line.
        name: &'static str,
        /// Its length.
        len: usize,
        /// The kernel's limit.
        max: usize,
    },
    /// The memory map has more entries than the boot protocol can pass on.
    #[error("the memory map has {0} entries, a boot protocol passes {max} on", max = MAX_MAP)]
    Map(usize),
    /// What is handed over does not fit.
    #[error("{what} takes {len} bytes, there is room for {room}")]
    Room {
        /// What it is.
        what: &'static str,
        /// Its length.
        len: u64,
        /// What there is room for.
        room: u64,
    },
    /// Guest memory has no RAM there.
    #[error(transparent)]
    Memory(#[from] memory::Error),
}

/// Result of loading.
pub type Result<T> = std::result::Result<T, Error>;

/// Loads the kernel without a boot loader, and says how the bootstrap processor starts.
pub fn load(request: &Request) -> Result<Entry> {
    let name = |key: &str, path: &Path| format!("{key}={}", path.display());
    let kernel = Image::open(name("kernel.path", request.kernel), request.kernel)?;
    let initrd = match request.initrd {
        Some(path) => vec![Image::open(name("kernel.initrd", path), path)?],
        None => Vec::new(),
    };
    let request = linux::Request {
        memory: request.memory,
        initrds: &initrd,
        cmdline: request.cmdline.as_bytes(),
        map: request.map,
        rsdp: request.rsdp,
        text_screen: false,
    };
    load_direct(&request, kernel)
}

/// As [`load`], of files that are open already: a bzImage by its 64-bit entry where it has one, an
/// ELF kernel by PVH.
pub fn load_direct(request: &linux::Request, kernel: Image) -> Result<Entry> {
    let mut start = [0; 4];
    let is_elf = kernel.len() >= 4 && kernel.read(0, &mut start).is_ok() && &start == b"\x7fELF";
    if is_elf { pvh::load(request, &kernel) } else { linux::load_direct(request, kernel) }
}
