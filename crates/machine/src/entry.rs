//! Direct kernel boot: what the kernel's keys name.

use std::path::PathBuf;

use boot::{Entry, Image, MapEntry, linux};
use config::Tree;
use firmware::MemoryMap;
use memory::GuestMemory;

use crate::Result;

/// A file of the host, and the user's words for it.
type Named = (String, PathBuf);

/// What to boot.
pub struct Kernel {
    image: Named,
    initrd: Option<Named>,
    cmdline: String,
}

impl Kernel {
    /// Reads the kernel keys; `None` if there is no kernel.
    pub fn read(tree: &Tree) -> Result<Option<Self>> {
        let named = |key: &str| -> Result<Option<Named>> {
            Ok(tree.get(key)?.map(|path| (tree.origin(key).to_string(), path.into())))
        };
        let Some(kernel) = named("kernel.path")? else { return Ok(None) };
        Ok(Some(Self {
            image: kernel,
            initrd: named("kernel.initrd")?,
            cmdline: tree.get("kernel.cmdline")?.unwrap_or_default(),
        }))
    }

    /// Loads it; the answer is how the first vCPU starts.
    pub fn load(&self, memory: &GuestMemory, map: &MemoryMap, rsdp: Option<u64>) -> Result<Entry> {
        let entries: Vec<MapEntry> =
            map.e820().iter().map(|e| MapEntry { base: e.base, len: e.len, kind: e.kind as u32 }).collect();
        let open = |(name, path): &Named| Image::open(name, path);
        let initrds: Vec<Image> = self.initrd.iter().map(open).collect::<boot::Result<_>>()?;
        let request = linux::Request {
            memory,
            initrds: &initrds,
            cmdline: self.cmdline.as_bytes(),
            map: &entries,
            rsdp,
            text_screen: false,
        };
        Ok(boot::load_direct(&request, open(&self.image)?)?)
    }
}
