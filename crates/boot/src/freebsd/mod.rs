//! FreeBSD amd64 kernels and modules, as FreeBSD's loader hands them over: files one behind the
//! other in memory, then the environment, then a list of all that (sys/sys/linker.h,
//! sys/x86/include/metadata.h), and long mode with the first GiB mapped everywhere.

mod handoff;
mod kernel;
mod metadata;
mod module;
#[cfg(test)]
mod tests;

use memory::GuestMemory;

use crate::bsd::page_up;
use crate::{Entry, Image, MapEntry, Result};

pub use metadata::{Depend, Provide};

/// Bits of [`Request::howto`] (sys/sys/reboot.h).
pub mod howto {
    /// Ask for the root device (`-a`).
    pub const ASKNAME: u32 = 0x1;
    /// Single user (`-s`).
    pub const SINGLE: u32 = 0x2;
    /// The root device that was compiled in (`-r`).
    pub const DFLTROOT: u32 = 0x20;
    /// Enter the debugger (`-d`).
    pub const KDB: u32 = 0x40;
    /// Edit the kernel's configuration (`-c`; historic).
    pub const CONFIG: u32 = 0x400;
    /// More messages (`-v`).
    pub const VERBOSE: u32 = 0x800;
    /// The console is a serial line (`-h`).
    pub const SERIAL: u32 = 0x1000;
    /// Root is a CD-ROM (`-C`).
    pub const CDROM: u32 = 0x2000;
    /// The debugger is a remote gdb (`-g`).
    pub const GDB: u32 = 0x8000;
    /// No messages (`-m`).
    pub const MUTE: u32 = 0x1_0000;
    /// Wait for a key after each line (`-p`).
    pub const PAUSE: u32 = 0x10_0000;
    /// Fewer messages (`-q`; historic).
    pub const QUIET: u32 = 0x20_0000;
    /// No interaction (`-n`; historic).
    pub const NOINTR: u32 = 0x1000_0000;
    /// Both screen and serial line (`-D`).
    pub const MULTIPLE: u32 = 0x2000_0000;
}

/// Types of files that the kernel looks for.
pub const TYPE_KERNEL: &str = "elf kernel";
/// A module as a relocatable object.
pub const TYPE_MODULE: &str = "elf obj module";
/// The page tables map this much.
const MAPPED: u64 = 1 << 30;
/// Kinds of metadata of a file.
const MODINFOMD_ELFHDR: u32 = 0x2;
const MODINFOMD_SSYM: u32 = 0x3;
const MODINFOMD_ESYM: u32 = 0x4;
const MODINFOMD_DYNAMIC: u32 = 0x5;
const MODINFOMD_SHDR: u32 = 0x9;
const MODINFOMD_CTORS_ADDR: u32 = 0xa;
const MODINFOMD_CTORS_SIZE: u32 = 0xb;

/// A piece of memory that a file fills.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    /// Bytes of the file.
    File { at: u64, offset: u64, len: u64 },
    /// Bytes that the loader made.
    Made { at: u64, bytes: Vec<u8> },
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Self::File { len, .. } => *len,
            Self::Made { bytes, .. } => bytes.len() as u64,
        }
    }
}

/// A file that the kernel will find in memory.
pub struct Loaded {
    image: Image,
    name: String,
    kind: String,
    args: Option<String>,
    start: u64,
    end: u64,
    pieces: Vec<Piece>,
    metadata: Vec<(u32, Vec<u8>)>,
    provides: Vec<Provide>,
    depends: Vec<Depend>,
}

impl Loaded {
    fn new(image: Image, name: &str, kind: &str, start: u64) -> Self {
        Self {
            image,
            name: name.into(),
            kind: kind.into(),
            args: None,
            start,
            end: start,
            pieces: Vec::new(),
            metadata: Vec::new(),
            provides: Vec::new(),
            depends: Vec::new(),
        }
    }

    /// Its path, as the kernel sees it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its type: [`TYPE_KERNEL`], [`TYPE_MODULE`], or what the user said.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Where it will be in guest memory.
    pub fn address(&self) -> u64 {
        self.start
    }

    /// How much it takes there.
    pub fn size(&self) -> u64 {
        self.end - self.start
    }

    /// The modules in it, with their versions.
    pub fn provides(&self) -> &[Provide] {
        &self.provides
    }

    /// The modules that it needs.
    pub fn depends(&self) -> &[Depend] {
        &self.depends
    }
}

/// What the kernel is told.
pub struct Request<'a> {
    /// Guest RAM.
    pub memory: &'a GuestMemory,
    /// Bits of [`howto`].
    pub howto: u32,
    /// The kernel environment.
    pub environment: &'a [(String, String)],
    /// The memory map, in ascending order.
    pub map: &'a [MapEntry],
}

/// A kernel and the files beside it, laid out for guest memory but not written there yet.
pub struct Preload {
    files: Vec<Loaded>,
    entry: u64,
}

impl Preload {
    /// Starts with the kernel; `name` is its path as the kernel sees it.
    pub fn kernel(image: Image, name: &str, args: Option<&str>) -> Result<Self> {
        let (mut file, entry) = kernel::lay_out(image, name)?;
        file.args = args.map(str::to_owned);
        Ok(Self { files: vec![file], entry })
    }

    /// Adds a module.
    pub fn module(&mut self, image: Image, name: &str, args: Option<&str>) -> Result<&Loaded> {
        let file = module::lay_out(image, name, self.next())?;
        self.push(file, args)
    }

    /// Adds a file of the given type as it is.
    pub fn raw(&mut self, image: Image, name: &str, kind: &str, args: Option<&str>) -> Result<&Loaded> {
        let mut file = Loaded::new(image, name, kind, self.next());
        file.end = file.start.saturating_add(file.image.len());
        file.pieces.push(Piece::File { at: file.start, offset: 0, len: file.image.len() });
        self.push(file, args)
    }

    fn push(&mut self, mut file: Loaded, args: Option<&str>) -> Result<&Loaded> {
        file.args = args.map(str::to_owned);
        if file.end > MAPPED {
            let (len, room) = (file.image.len(), MAPPED - file.start.min(MAPPED));
            return Err(file.image.error(format!(
                "{len} bytes long, the GiB that the kernel starts with has room for {room} bytes"
            )));
        }
        Ok(self.files.push_mut(file))
    }

    /// Takes the files away again that were added since there were `len`.
    pub fn truncate(&mut self, len: usize) {
        self.files.truncate(len.max(1));
    }

    /// All files; the kernel is the first.
    pub fn files(&self) -> &[Loaded] {
        &self.files
    }

    /// Where the next file goes.
    fn next(&self) -> u64 {
        page_up(self.files.last().map_or(0, |f| f.end))
    }

    /// Writes it all to guest memory.
    pub fn load(&self, request: &Request) -> Result<Entry> {
        handoff::load(self, request)
    }
}
