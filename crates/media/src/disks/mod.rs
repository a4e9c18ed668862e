//! Devices by GRUB names: disks, partitions, volumes.
//!
//! [`Disks`] holds the whole disks that a device map names and finds what is on them: partitions
//! (`hd0,msdos1`, `hd0,gpt2`, `hd0,msdos1,bsd1`), software RAID (`md/0`), logical volumes
//! (`lvm/VG-LV`) and, given a passphrase, encrypted volumes (`crypto0`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Error, FileSystem, Result, SourceRef, fs};

mod array;
mod cache;
mod device_map;
mod luks;
mod lvm;
mod md;
mod names;
mod partition;
mod search;
mod table;
#[cfg(test)]
mod tests;

pub use cache::Cached;
pub use device_map::{DeviceMap, MapEntry, MapWarning};
pub use partition::{Map, Partition, PartitionKind};
pub use search::Wanted;

use table::{Origin, Table};

/// Bytes of a sector as GRUB counts them, whatever the disk's own sectors are.
pub const SECTOR: u64 = 512;

/// A device that a name led to.
#[derive(Clone)]
pub struct Device {
    /// Its full name without parentheses: `hd0,msdos1` even if `hd0,1` was asked for.
    pub name: String,
    /// The disk or volume it is or is a part of.
    pub disk: String,
    /// Its bytes.
    pub source: SourceRef,
    /// Where it is on its disk, if it is a partition.
    pub partition: Option<Partition>,
}

/// The devices of a boot loader.
#[derive(Default)]
pub struct Disks {
    table: Mutex<Table>,
    filesystems: Mutex<HashMap<String, Arc<dyn FileSystem>>>,
}

impl Disks {
    /// No devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a whole disk after those that are there: `hd0`, `cd0`, `fd0`. Reads go through a cache.
    /// A name that exists already is refused.
    pub fn add_disk(&self, name: &str, source: SourceRef) -> Result<()> {
        self.add(name, Arc::new(Cached::new(source)), Origin::Disk)
    }

    /// Adds a loop device (any name that is free), as `loopback` does.
    pub fn add_loop(&self, name: &str, source: SourceRef) -> Result<()> {
        self.add(name, source, Origin::Loop)
    }

    /// Removes a loop device.
    pub fn remove_loop(&self, name: &str) -> Result<()> {
        let name = names::bare(name);
        self.table().remove_loop(name)?;
        self.forget_filesystems();
        Ok(())
    }

    /// Shows a folder of the host as `(host)`.
    pub fn set_host(&self, host: Arc<dyn FileSystem>) {
        self.table().host = Some(host);
    }

    /// All devices, without parentheses, in the order of GRUB's `ls`: each disk with its partitions
    /// from the last to the first, then `host`, then RAID and logical volumes.
    pub fn names(&self) -> Vec<String> {
        self.table().names()
    }

    /// The device with this name; parentheses and short forms (`hd0,1`) are accepted.
    pub fn device(&self, name: &str) -> Result<Device> {
        self.table().device(names::bare(name))
    }

    /// The bytes of a device.
    pub fn source(&self, name: &str) -> Result<SourceRef> {
        Ok(self.device(name)?.source)
    }

    /// The file system on a device. It is opened once and kept.
    pub fn filesystem(&self, name: &str) -> Result<Arc<dyn FileSystem>> {
        let bare = names::bare(name);
        let (device, peers) = {
            let mut table = self.table();
            if bare == names::HOST
                && let Some(host) = &table.host
            {
                return Ok(host.clone());
            }
            (table.device(bare)?, table.sources())
        };
        if let Some(fs) = self.filesystems().get(&device.name) {
            return Ok(fs.clone());
        }
        let fs = fs::probe(&device.source, &peers)?;
        self.filesystems().insert(device.name, fs.clone());
        Ok(fs)
    }

    /// Partitions of a disk or volume in the order of its partition maps.
    pub fn partitions(&self, name: &str) -> Result<Vec<Partition>> {
        self.table().partitions(names::bare(name))
    }

    /// What kind of partition map a disk has, or a partition is in: `msdos`, `gpt`, ….
    pub fn partition_map(&self, name: &str) -> Result<Option<Map>> {
        let device = self.device(name)?;
        if let Some(partition) = device.partition {
            return Ok(Some(partition.map));
        }
        Ok(self.partitions(&device.disk)?.first().map(|p| p.map))
    }

    /// The name of what an encrypted device holds, if it is open.
    pub fn unlocked(&self, name: &str) -> Option<String> {
        let device = self.device(name).ok()?;
        self.table().opened(&device.name)
    }

    /// Opens an encrypted device and gives the name of the new one: `crypto0`. A device that is
    /// open already keeps its name.
    pub fn unlock(&self, name: &str, passphrase: &[u8]) -> Result<String> {
        let device = self.device(name)?;
        if let Some(open) = self.table().opened(&device.name) {
            return Ok(open);
        }
        // Without the lock: a key takes seconds.
        let volume = luks::unlock(&device.source, passphrase)?;
        let opened = self.table().add_crypto(&device.name, &volume.uuid, volume.source);
        self.forget_filesystems();
        Ok(opened)
    }

    /// All devices that hold an encrypted volume, with its UUID (hexadecimal digits only).
    pub fn encrypted(&self) -> Vec<(String, String)> {
        let names = self.names();
        let mut found = Vec::new();
        for name in names {
            if let Ok(device) = self.device(&name)
                && let Ok(Some(uuid)) = luks::uuid(&device.source)
            {
                found.push((device.name, uuid));
            }
        }
        found
    }

    fn add(&self, name: &str, source: SourceRef, origin: Origin) -> Result<()> {
        let name = names::bare(name);
        names::check_new(name)?;
        self.table().add(name, source, origin)?;
        self.forget_filesystems();
        Ok(())
    }

    /// File systems may span devices, so none is kept when devices come or go.
    fn forget_filesystems(&self) {
        self.filesystems().clear();
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn filesystems(&self) -> MutexGuard<'_, HashMap<String, Arc<dyn FileSystem>>> {
        self.filesystems.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error for a device that is not there.
fn no_device(name: &str) -> Error {
    Error::NotFound(format!("device ({name})"))
}
