//! Direct kernel boot: what the kernel's keys name.

use std::path::PathBuf;

use boot::{Entry, MapEntry};
use config::Tree;
use firmware::MemoryMap;
use memory::GuestMemory;

use crate::Result;

/// What to boot; paths as the user named them.
pub struct Kernel {
    path: PathBuf,
    initrd: Option<PathBuf>,
    cmdline: String,
}

impl Kernel {
    /// Reads the kernel keys; `None` if there is no kernel.
    pub fn read(tree: &Tree) -> Result<Option<Self>> {
        let Some(path) = tree.get("kernel.path")? else { return Ok(None) };
        Ok(Some(Self {
            path: path.into(),
            initrd: tree.get("kernel.initrd")?.map(PathBuf::from),
            cmdline: tree.get("kernel.cmdline")?.unwrap_or_default(),
        }))
    }

    /// Loads it; the answer is how the first vCPU starts.
    pub fn load(&self, memory: &GuestMemory, map: &MemoryMap, rsdp: Option<u64>) -> Result<Entry> {
        let entries: Vec<MapEntry> =
            map.e820().iter().map(|e| MapEntry { base: e.base, len: e.len, kind: e.kind as u32 }).collect();
        Ok(boot::load(&boot::Request {
            memory,
            kernel: &self.path,
            initrd: self.initrd.as_deref(),
            cmdline: &self.cmdline,
            map: &entries,
            rsdp,
        })?)
    }
}
