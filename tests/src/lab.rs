//! What tests share: temporary folders, the program under test, and the usual guest files.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::artifacts::{Cache, Flavour, Initramfs, Kernel, Script};
use crate::{Machine, Result, Vmm};

/// A temporary folder; dropping it removes it.
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes a folder whose name contains `label`.
    pub fn new(label: &str) -> Result<Self> {
        Self::below(&std::env::temp_dir(), label)
    }

    /// A folder in memory where the host has one, for VMs that are loaded: their RAM is then in it,
    /// and goes with it.
    pub fn in_memory(label: &str) -> Result<Self> {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { Self::below(memory, label) } else { Self::new(label) }
    }

    fn below(parent: &Path, label: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("bhyve-test-{}-{number}-{label}", std::process::id());
        let path = parent.join(name);
        std::fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Whether we may make interfaces and namespaces.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The program under test: `$BHYVE`, or what was built last beside this program, an optimized
/// build before another.
pub fn bhyve_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("BHYVE") {
        return Ok(PathBuf::from(path));
    }
    // …/target/PROFILE/deps/TEST
    let own = std::env::current_exe()?;
    let candidates = own
        .ancestors()
        .skip(1)
        .flat_map(|folder| ["release/bhyve", "debug/bhyve", "bhyve"].map(|name| folder.join(name)));
    candidates
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| "bhyve is not built: cargo build --release --package programs".into())
}

/// Everything for the usual guest: a stock kernel, and an initramfs that gives a shell.
pub struct Lab {
    /// Where the files come from.
    pub cache: Cache,
    /// The kernel.
    pub kernel: Kernel,
    /// The initramfs.
    pub initrd: PathBuf,
    /// The VMM under test.
    pub vmm: Vmm,
}

impl Lab {
    /// Gets everything, for the VMM that `$GUEST_VMM` names (`bhyve`, `qemu`; ours by default).
    pub fn new() -> Result<Self> {
        let vmm = match std::env::var("GUEST_VMM").as_deref() {
            Ok("qemu") => Vmm::Qemu { chipset: crate::Chipset::Q35 },
            Ok("bhyve") | Err(_) => Vmm::Bhyve { binary: bhyve_binary()?, engine: "soft".to_owned() },
            Ok(other) => return Err(format!("GUEST_VMM={other}: neither bhyve nor qemu").into()),
        };
        Self::with(vmm, Flavour::Cloud)
    }

    /// Gets everything for a VMM and a kernel of the caller's choice.
    pub fn with(vmm: Vmm, flavour: Flavour) -> Result<Self> {
        let cache = Cache::open()?;
        let kernel = Kernel::fetch(&cache, flavour)?;
        let initrd = Initramfs::new(&kernel, Script::Shell).build(&cache)?;
        Ok(Self { cache, kernel, initrd, vmm })
    }

    /// As [`Lab::new`], but prints why there is none and gives `None`, where the host lacks
    /// something. `cargo xtask test` forbids that by `GUEST_TESTS=require`.
    pub fn or_skip() -> Option<Self> {
        match Self::new() {
            Ok(lab) => Some(lab),
            Err(error) => {
                let required = std::env::var("GUEST_TESTS").is_ok_and(|value| value == "require");
                assert!(!required, "{error}");
                eprintln!("skipped: {error}");
                None
            }
        }
    }

    /// Whether the VMM under test is ours: only ours has bhyve's exit statuses.
    pub fn is_bhyve(&self) -> bool {
        matches!(self.vmm, Vmm::Bhyve { .. })
    }

    /// The usual machine.
    pub fn machine(&self, name: &str) -> Machine {
        Machine::new(name, &self.kernel.image, &self.initrd).cmdline("quiet")
    }
}
