//! Devices by FreeBSD's names, and paths on them.
//!
//! `disk0p2:` is a GPT partition of the first disk, `disk0s1a:` a BSD partition of an MBR slice,
//! `cd1:` a second image that is an optical disc, `zfs:pool/dataset:` a data set, `host:` the folder
//! of `-h`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use media::disks::Disks;
use media::fs::host::HostFs;
use media::fs::zfs::Pool;
use media::{FileSource, FileSystem, Kind, Node, NodeRef, SourceRef, resolve};

/// Most disks, as bhyveload.
pub const MAX_DISKS: usize = 32;
/// The host's folder.
const HOST: &str = "host";
/// Systems on a pool that the menu offers.
const MAX_SYSTEMS: usize = 100;
/// The largest text file that is read.
pub const MAX_TEXT: u64 = 1 << 20;
/// What makes a file system one to boot from.
const SIGNS: [&str; 4] = ["/boot/kernel", "/boot/loader.conf", "/boot/defaults/loader.conf", "/boot/loader"];

/// A device with a file system, or without one that is known.
struct Device {
    name: String,
    /// What the disks call it; the host's folder and data sets are none of them.
    disk: Option<String>,
    /// Its file system, or why there is none.
    fs: Result<Arc<dyn FileSystem>, String>,
    size: u64,
}

/// All devices.
#[derive(Default)]
pub struct Devices {
    disks: Disks,
    count: usize,
    list: Vec<Device>,
    pools: Vec<Arc<Pool>>,
    /// Data sets that were looked into, by name.
    sets: RefCell<HashMap<String, Arc<dyn FileSystem>>>,
}

impl Devices {
    /// Adds an image or device of the host as the next disk.
    pub fn add_disk(&mut self, path: &Path) -> Result<(), String> {
        if self.count == MAX_DISKS {
            return Err(format!("more than {MAX_DISKS} disks"));
        }
        let source = FileSource::open(path).map_err(|e| reason(&e.to_string()))?;
        self.add_source(Arc::new(source))
    }

    /// Adds the bytes of a disk as the next one.
    pub(super) fn add_source(&mut self, source: SourceRef) -> Result<(), String> {
        self.disks.add_disk(&format!("hd{}", self.count), source).map_err(|e| e.to_string())?;
        self.count += 1;
        Ok(())
    }

    /// Shows a folder of the host, and nothing outside of it.
    pub fn add_folder(&mut self, path: &Path) -> Result<(), String> {
        let folder = HostFs::open(path).map_err(|e| reason(&e.to_string()))?;
        self.set_host(Arc::new(folder));
        Ok(())
    }

    /// Shows a file system as the host's.
    pub fn set_host(&mut self, fs: Arc<dyn FileSystem>) {
        self.list.push(Device { name: HOST.into(), disk: None, fs: Ok(fs), size: 0 });
    }

    /// Looks at all disks; after this the devices are known.
    pub fn probe(&mut self) {
        let mut names = Vec::new();
        for n in 0..self.count {
            let disk = format!("hd{n}");
            let partitions = self.disks.partitions(&disk).unwrap_or_default();
            names.push(disk.clone());
            names.extend(partitions.iter().map(|p| format!("{disk},{}", p.name)));
        }
        let sources: Vec<_> = names.iter().filter_map(|name| self.disks.source(name).ok()).collect();
        let mut found: Vec<Device> = Vec::new();
        for name in names {
            let Ok(source) = self.disks.source(&name) else { continue };
            let fs = self.disks.filesystem(&name).map_err(|e| e.to_string());
            let kind = fs.as_ref().map_or("", |fs| fs.kind());
            // A pool is found on each of its disks.
            if kind == "zfs"
                && let Ok(Some(pool)) = Pool::open(&source, &sources)
                && self.pools.iter().all(|p| p.name() != pool.name())
            {
                self.pools.push(pool);
            }
            let ours = spell(&name, kind == "iso9660").unwrap_or_else(|| name.clone());
            found.push(Device { name: ours, disk: Some(name), fs, size: source.size() });
        }
        let host = std::mem::take(&mut self.list);
        self.list.extend(found);
        self.list.extend(host);
    }

    /// The device to boot from: a pool's data set, a disk, the host's folder, whichever first has
    /// something to boot; else the first that can be read.
    pub fn boot_device(&self) -> Option<String> {
        let mut names: Vec<String> = Vec::new();
        for pool in &self.pools {
            // What the pool says it boots from, or the only system that FreeBSD's installer made.
            let set = pool.bootfs().ok().flatten().or_else(|| match systems(pool).as_slice() {
                [only] => Some(only.clone()),
                _ => None,
            });
            names.extend(set.map(|set| format!("zfs:{set}")));
            names.push(format!("zfs:{}", pool.name()));
        }
        names.extend(self.list.iter().filter(|d| d.fs.is_ok()).map(|d| d.name.clone()));
        let good = |name: &&String| SIGNS.iter().any(|sign| self.node(&format!("{name}:{sign}")).is_ok());
        names.iter().find(good).or(names.first()).map(|name| format!("{name}:"))
    }

    /// The systems beside one on ZFS, itself the first: `zfs:pool/ROOT/name` each.
    pub fn environments(&self, device: &str) -> Vec<String> {
        let Some(set) = device.strip_prefix("zfs:").map(|set| set.trim_end_matches(':')) else {
            return Vec::new();
        };
        let pool = set.split('/').next().unwrap_or_default();
        let Some(pool) = self.pools.iter().find(|p| p.name() == pool) else { return Vec::new() };
        let others = systems(pool).into_iter().filter(|s| s != set);
        std::iter::once(set.to_owned()).chain(others).map(|set| format!("zfs:{set}")).collect()
    }

    /// Whether a name with its colon is that of a device that can be read.
    pub fn check(&self, name: &str) -> Result<(), String> {
        self.directory(&format!("{}:/", name.trim_end_matches(':'))).map(|_| ())
    }

    /// The node at a full path, `device:/path`.
    pub fn node(&self, path: &str) -> Result<NodeRef, String> {
        let (device, inside) = split(path).ok_or_else(|| format!("{path}: no device is named"))?;
        let fs = self.filesystem(device)?;
        resolve(fs.as_ref(), inside.as_bytes()).map_err(|e| match e {
            media::Error::NotFound(_) => format!("{path}: no such file or directory"),
            e => format!("{path}: {}", reason(&e.to_string())),
        })
    }

    fn directory(&self, path: &str) -> Result<NodeRef, String> {
        let node = self.node(path)?;
        match node.metadata().map_err(|e| e.to_string())?.kind {
            Kind::Directory => Ok(node),
            _ => Err(format!("{path}: not a directory")),
        }
    }

    /// The file system of a device.
    fn filesystem(&self, name: &str) -> Result<Arc<dyn FileSystem>, String> {
        if let Some(set) = name.strip_prefix("zfs:") {
            return self.data_set(set).map_err(|why| format!("{name}: {why}"));
        }
        let device =
            self.list.iter().find(|d| d.name == name).ok_or_else(|| format!("{name}: no such device"))?;
        device.fs.clone().map_err(|why| format!("{name}: {why}"))
    }

    /// The file system of a data set.
    fn data_set(&self, name: &str) -> Result<Arc<dyn FileSystem>, String> {
        if let Some(fs) = self.sets.borrow().get(name) {
            return Ok(fs.clone());
        }
        let pool = name.split('/').next().unwrap_or_default();
        let pool = self.pools.iter().find(|p| p.name() == pool).ok_or("no such device")?;
        let fs = pool.dataset(name).map_err(|e| e.to_string())?;
        self.sets.borrow_mut().insert(name.to_owned(), fs.clone());
        Ok(fs)
    }

    /// Why there is nothing to boot from, in one line.
    pub fn trouble(&self) -> String {
        let each =
            self.list.iter().filter_map(|d| d.fs.as_ref().err().map(|why| format!("{}: {why}", d.name)));
        let all = each.collect::<Vec<_>>().join("; ");
        if all.is_empty() { "no disk (-d) and no folder (-h) is given".into() } else { all }
    }

    /// A list for people.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for pool in &self.pools {
            let boots =
                pool.bootfs().ok().flatten().map(|set| format!("  boots zfs:{set}:")).unwrap_or_default();
            let _ = writeln!(text, "    zfs:{}:{boots}", pool.name());
        }
        for device in &self.list {
            let what = match &device.fs {
                Ok(fs) => fs.kind().to_owned(),
                Err(why) => why.clone(),
            };
            let size = match device.disk {
                Some(_) => format!("  {} MiB", device.size >> 20),
                None => String::new(),
            };
            let _ = writeln!(text, "    {}:{size}  {what}", device.name);
        }
        if text.is_empty() { "no devices\n".into() } else { text }
    }
}

/// FreeBSD's name of one of GRUB's: `hd0,msdos1,bsd1` is `disk0s1a`.
fn spell(grub: &str, optical: bool) -> Option<String> {
    let mut parts = grub.split(',');
    let number = parts.next()?.strip_prefix("hd")?;
    let mut name = format!("{}{number}", if optical && !grub.contains(',') { "cd" } else { "disk" });
    for part in parts {
        if let Some(n) = part.strip_prefix("gpt") {
            let _ = write!(name, "p{n}");
        } else if let Some(n) = part.strip_prefix("msdos") {
            let _ = write!(name, "s{n}");
        } else {
            let digits = part.find(|c: char| c.is_ascii_digit())?;
            let n: u8 = part.get(digits..)?.parse().ok()?;
            name.push(char::from(b'a'.checked_add(n.checked_sub(1)?)?));
        }
    }
    Some(name)
}

/// The data sets below `ROOT`, where FreeBSD's installer and bectl(8) put systems.
fn systems(pool: &Arc<Pool>) -> Vec<String> {
    let mut names = Vec::new();
    let visit = &mut |entry: media::Entry| {
        // Names with an @ are the data set's own content and its snapshots.
        if let Ok(name) = String::from_utf8(entry.name)
            && !name.starts_with('@')
        {
            names.push(format!("{}/ROOT/{name}", pool.name()));
        }
        if names.len() < MAX_SYSTEMS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    if let Ok(Some(root)) = pool.tree().lookup(b"ROOT") {
        // A pool that can't be read has no systems.
        let _ = root.entries(visit);
    }
    names.sort();
    names
}

/// Device and path of a full path.
pub fn split(path: &str) -> Option<(&str, &str)> {
    let from = if path.starts_with("zfs:") { 4 } else { 0 };
    let colon = from + path.get(from..)?.find(':')?;
    let device = path.get(..colon)?;
    let known = ["disk", "cd", "zfs:", HOST].iter().any(|start| device.starts_with(start));
    known.then_some((device, path.get(colon + 1..)?))
}

/// A reason without Rust's "(os error n)".
pub fn reason(text: &str) -> String {
    text.split(" (os error").next().unwrap_or(text).to_owned()
}

/// A text file's text.
pub fn read_text(node: &dyn Node, path: &str) -> Result<String, String> {
    let bytes = media::read_all(node, MAX_TEXT).map_err(|e| format!("{path}: {}", reason(&e.to_string())))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_freebsds() {
        let table = [
            ("hd0", false, "disk0"),
            ("hd1", true, "cd1"),
            ("hd0,gpt2", false, "disk0p2"),
            ("hd0,msdos1", false, "disk0s1"),
            ("hd12,msdos4,bsd1", false, "disk12s4a"),
            ("hd0,bsd5", false, "disk0e"),
        ];
        for (grub, optical, ours) in table {
            assert_eq!(spell(grub, optical).unwrap(), ours);
        }
    }

    #[test]
    fn paths_name_devices_or_not() {
        assert_eq!(split("disk0p2:/boot/kernel"), Some(("disk0p2", "/boot/kernel")));
        assert_eq!(split("zfs:zroot/ROOT/default:/boot"), Some(("zfs:zroot/ROOT/default", "/boot")));
        assert_eq!(split("host:"), Some(("host", "")));
        assert_eq!(split("/boot/a:b"), None);
        assert_eq!(split("zfs:zroot"), None);
    }
}
