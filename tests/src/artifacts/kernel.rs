//! Debian's kernels and their modules.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Cache, run};
use crate::Result;

/// Which of Debian's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// The small one for virtual machines.
    Cloud,
    /// The one for everything.
    Generic,
}

impl Flavour {
    /// The package that depends on today's version.
    fn meta_package(self) -> &'static str {
        match self {
            Self::Cloud => "linux-image-cloud-amd64",
            Self::Generic => "linux-image-amd64",
        }
    }

    /// Whether a package name is that of one version of this kernel.
    fn owns(self, package: &str) -> bool {
        package.starts_with("linux-image-6")
            && !package.contains("-rt-")
            && package.contains("-cloud-") == (self == Self::Cloud)
    }
}

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The bzImage.
    pub image: PathBuf,
    /// What `uname -r` says under it.
    pub release: String,
    modules: PathBuf,
}

impl Kernel {
    /// Fetches a stock Debian kernel.
    pub fn fetch(cache: &Cache, flavour: Flavour) -> Result<Self> {
        let folder = match cache.depends(flavour.meta_package(), "linux-image-") {
            Ok(package) => cache.package(&package)?,
            Err(error) => cached_kernel(cache, flavour).ok_or(error)?,
        };
        Self::in_folder(&folder)
    }

    /// The kernel in a folder laid out like a root file system.
    pub fn in_folder(root: &Path) -> Result<Self> {
        let boot = root.join("boot");
        let image = entries(&boot)?
            .into_iter()
            .find(|path| name(path).starts_with("vmlinuz-"))
            .ok_or_else(|| format!("{}: no vmlinuz", boot.display()))?;
        let release = name(&image).trim_start_matches("vmlinuz-").to_owned();
        let modules = ["lib/modules", "usr/lib/modules"]
            .iter()
            .map(|folder| root.join(folder).join(&release))
            .find(|path| path.is_dir())
            .ok_or_else(|| format!("{}: no modules of {release}", root.display()))?;
        Ok(Self { image, release, modules })
    }

    /// The folder with the modules, called as [`Kernel::release`].
    pub fn modules_folder(&self) -> &Path {
        &self.modules
    }

    /// Reads the named modules and all that they need, in the order in which they must be loaded.
    /// Names that are built into the kernel, or that it lacks, are left out.
    pub fn modules(&self, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = BTreeMap::new();
        collect(&self.modules.join("kernel"), &mut files)?;
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for module in wanted {
            add(&canonical(module), &files, &mut seen, &mut order)?;
        }
        Ok(order)
    }
}

/// The newest cached kernel of this flavour.
fn cached_kernel(cache: &Cache, flavour: Flavour) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = entries(&cache.root().join("packages")).ok()?;
    found.retain(|path| flavour.owns(&name(path)) && path.join("boot").is_dir());
    found.pop()
}

/// Adds a module after those that it depends on.
fn add(
    module: &str,
    files: &BTreeMap<String, PathBuf>,
    seen: &mut BTreeSet<String>,
    order: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    let Some(path) = files.get(module) else { return Ok(()) };
    if !seen.insert(module.to_owned()) {
        return Ok(());
    }
    let content = read_module(path)?;
    for needed in dependencies(&content) {
        add(&canonical(&needed), files, seen, order)?;
    }
    order.push((module.to_owned(), content));
    Ok(())
}

/// A module's content, whether it is stored compressed or not.
fn read_module(path: &Path) -> Result<Vec<u8>> {
    match path.extension().and_then(|end| end.to_str()) {
        Some("xz") => run(Command::new("xz").arg("-dc").arg(path)),
        Some("zst") => run(Command::new("zstd").arg("-dc").arg(path)),
        Some("gz") => run(Command::new("gzip").arg("-dc").arg(path)),
        _ => Ok(fs::read(path)?),
    }
}

/// The modules that a module names in its `.modinfo` section (NUL-separated `key=value` strings).
fn dependencies(module: &[u8]) -> Vec<String> {
    module
        .split(|&byte| byte == 0)
        .filter_map(|entry| entry.strip_prefix(b"depends="))
        .flat_map(|list| list.split(|&byte| byte == b','))
        .filter(|needed| !needed.is_empty())
        .map(|needed| String::from_utf8_lossy(needed).into_owned())
        .collect()
}

/// Every module below a folder, by name.
fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for path in entries(folder)? {
        if path.is_dir() {
            collect(&path, files)?;
        } else if let Some((module, _)) = name(&path).split_once(".ko") {
            files.insert(canonical(module), path);
        }
    }
    Ok(())
}

/// To the kernel `-` and `_` are the same in a module's name.
fn canonical(module: &str) -> String {
    module.replace('-', "_")
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What is in a folder, sorted by name.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))? {
        paths.push(entry?.path());
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scratch;

    fn module(depends: &str) -> Vec<u8> {
        let mut content = b"\x7fELF\0license=GPL\0depends=".to_vec();
        content.extend_from_slice(depends.as_bytes());
        content.push(0);
        content
    }

    #[test]
    fn modules_come_after_what_they_need() -> Result<()> {
        let root = Scratch::new("modules")?;
        let kernel = root.path().join("lib/modules/6.1/kernel");
        fs::create_dir_all(kernel.join("net"))?;
        fs::create_dir_all(root.path().join("boot"))?;
        fs::write(root.path().join("boot/vmlinuz-6.1"), "")?;
        fs::write(kernel.join("net/virtio_net.ko"), module("net_failover,virtio"))?;
        fs::write(kernel.join("net/net-failover.ko"), module("failover"))?;
        fs::write(kernel.join("failover.ko"), module(""))?;
        fs::write(kernel.join("virtio.ko"), module(""))?;
        let kernel = Kernel::in_folder(root.path())?;
        assert_eq!(kernel.release, "6.1");
        let order: Vec<String> =
            kernel.modules(&["ext4", "virtio-net", "virtio"])?.into_iter().map(|(name, _)| name).collect();
        assert_eq!(order, ["failover", "net_failover", "virtio", "virtio_net"]);
        Ok(())
    }

    #[test]
    fn flavours_are_told_apart_by_package_name() {
        assert!(Flavour::Cloud.owns("linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64"));
        assert!(!Flavour::Generic.owns("linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64"));
        assert!(Flavour::Generic.owns("linux-image-6.1.0-56-amd64_6.1.192-2_amd64"));
        assert!(!Flavour::Generic.owns("linux-image-6.1.0-56-rt-amd64_6.1.192-2_amd64"));
    }
}
