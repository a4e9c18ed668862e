//! The table of devices: what was added, and what was found on it.

use std::collections::HashSet;
use std::sync::Arc;

use super::partition::{self, Partition};
use super::{Device, lvm, md, names, no_device};
use crate::{Error, FileSystem, Result, SourceRef, Window};

/// Volumes within volumes that are looked for.
const MAX_DEPTH: usize = 4;
/// Most disks and volumes.
const MAX_DISKS: usize = 4096;

/// Where a disk comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The device map.
    Disk,
    /// A file.
    Loop,
    /// An encrypted volume.
    Crypto,
    /// Software RAID or LVM.
    Volume,
}

/// A disk or volume.
struct Disk {
    name: String,
    /// Other names by which it can be found.
    aliases: Vec<String>,
    source: SourceRef,
    origin: Origin,
    partitions: Vec<Partition>,
}

/// What RAID and LVM found.
#[derive(Default)]
struct Volumes {
    disks: Vec<Disk>,
    /// Volumes that are known but can't be read, by all their names, and why.
    broken: Vec<(Vec<String>, Failure)>,
}

/// Why a volume can't be read; made into an error each time it is asked for.
#[derive(Clone, Debug)]
pub enum Failure {
    /// The metadata makes no sense.
    Corrupt(&'static str, String),
    /// A kind of volume that we don't read.
    Unsupported(&'static str, String),
    /// Disks are missing.
    Missing(String),
}

impl Failure {
    fn error(&self) -> Error {
        match self {
            Self::Corrupt(kind, what) => Error::corrupt(kind, what.clone()),
            Self::Unsupported(kind, what) => Error::unsupported(kind, what.clone()),
            Self::Missing(what) => Error::NotFound(what.clone()),
        }
    }
}

/// A volume that RAID or LVM made, or why it could not.
pub struct Found {
    /// Its name in lists.
    pub name: String,
    /// Its other names.
    pub aliases: Vec<String>,
    /// Its bytes.
    pub source: std::result::Result<SourceRef, Failure>,
}

/// A device on which volumes are looked for.
#[derive(Clone)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub source: SourceRef,
}

/// All devices.
#[derive(Default)]
pub struct Table {
    disks: Vec<Disk>,
    volumes: Option<Volumes>,
    /// Folder of the host.
    pub host: Option<Arc<dyn FileSystem>>,
    crypto: usize,
}

impl Table {
    pub fn add(&mut self, name: &str, source: SourceRef, origin: Origin) -> Result<()> {
        if self.disks.iter().any(|d| d.name == name) {
            return Err(Error::Unsupported { kind: "device", what: format!("a second ({name})") });
        }
        if self.disks.len() >= MAX_DISKS {
            return Err(Error::TooLarge("the number of disks".into()));
        }
        self.disks.push(Disk::new(name.to_owned(), Vec::new(), source, origin));
        self.volumes = None;
        Ok(())
    }

    pub fn remove_loop(&mut self, name: &str) -> Result<()> {
        let at = self.disks.iter().position(|d| d.name == name && d.origin == Origin::Loop);
        self.disks.remove(at.ok_or_else(|| no_device(name))?);
        self.volumes = None;
        Ok(())
    }

    /// Adds an opened volume of the device `of`.
    pub fn add_crypto(&mut self, of: &str, uuid: &str, source: SourceRef) -> String {
        if let Some(open) = self.opened(of) {
            return open;
        }
        let name = format!("crypto{}", self.crypto);
        self.crypto += 1;
        let aliases = vec![format!("cryptouuid/{uuid}"), crypto_of(of)];
        self.disks.push(Disk::new(name.clone(), aliases, source, Origin::Crypto));
        self.volumes = None;
        name
    }

    /// The name of the opened volume of a device.
    pub fn opened(&self, of: &str) -> Option<String> {
        let alias = crypto_of(of);
        self.disks.iter().find(|d| d.aliases.contains(&alias)).map(|d| d.name.clone())
    }

    pub fn names(&mut self) -> Vec<String> {
        let host = self.host.is_some();
        let mut names = Vec::new();
        let (disks, volumes) = self.all();
        for disk in disks {
            disk.list(&mut names);
        }
        if host {
            names.push(names::HOST.to_owned());
        }
        // GRUB puts what it finds before what it has.
        for disk in volumes.disks.iter().rev() {
            disk.list(&mut names);
        }
        names
    }

    pub fn device(&mut self, name: &str) -> Result<Device> {
        let (disk_name, within) = names::split(name);
        let disk = self.disk(&disk_name, name)?;
        let Some(within) = within else {
            return Ok(Device {
                name: disk.name.clone(),
                disk: disk.name.clone(),
                source: disk.source.clone(),
                partition: None,
            });
        };
        let partition = names::find(&disk.partitions, within).ok_or_else(|| no_device(name))?;
        Ok(Device {
            name: disk.part_name(partition),
            disk: disk.name.clone(),
            source: Arc::new(Window::new(disk.source.clone(), partition.start, partition.size)?),
            partition: Some(partition.clone()),
        })
    }

    pub fn partitions(&mut self, name: &str) -> Result<Vec<Partition>> {
        let (disk, _) = names::split(name);
        Ok(self.disk(&disk, name)?.partitions.clone())
    }

    /// The bytes of all disks, volumes and partitions.
    pub fn sources(&mut self) -> Vec<SourceRef> {
        let (disks, volumes) = self.all();
        disks
            .iter()
            .chain(&volumes.disks)
            .flat_map(|disk| disk.devices().into_iter().map(|(_, source)| source))
            .collect()
    }

    fn disk(&mut self, disk: &str, asked: &str) -> Result<&Disk> {
        // Without a look for volumes, which most names don't need.
        if let Some(at) = self.disks.iter().position(|d| d.is(disk)) {
            return self.disks.get(at).ok_or_else(|| no_device(asked));
        }
        let (_, volumes) = self.all();
        if let Some(found) = volumes.disks.iter().find(|d| d.is(disk)) {
            return Ok(found);
        }
        match volumes.broken.iter().find(|(names, _)| names.iter().any(|n| n == disk)) {
            Some((_, failure)) => Err(failure.error()),
            None => Err(no_device(asked)),
        }
    }

    fn all(&mut self) -> (&[Disk], &Volumes) {
        let disks = &self.disks;
        let volumes = self.volumes.get_or_insert_with(|| find_volumes(disks));
        (disks, volumes)
    }
}

impl Disk {
    fn new(name: String, aliases: Vec<String>, source: SourceRef, origin: Origin) -> Self {
        let partitions = partition::scan(&source);
        Self { name, aliases, source, origin, partitions }
    }

    fn is(&self, name: &str) -> bool {
        self.name == name || self.aliases.iter().any(|a| a == name)
    }

    fn part_name(&self, partition: &Partition) -> String {
        format!("{},{}", self.name.replace(',', "\\,"), partition.name)
    }

    fn list(&self, names: &mut Vec<String>) {
        names.push(self.name.replace(',', "\\,"));
        names.extend(self.partitions.iter().rev().map(|p| self.part_name(p)));
    }

    /// The disk and its partitions.
    fn devices(&self) -> Vec<(String, SourceRef)> {
        let mut devices = vec![(self.name.clone(), self.source.clone())];
        for partition in &self.partitions {
            if let Ok(window) = Window::new(self.source.clone(), partition.start, partition.size) {
                devices.push((self.part_name(partition), Arc::new(window)));
            }
        }
        devices
    }
}

fn crypto_of(device: &str) -> String {
    format!("cryptodev/{device}")
}

/// Puts RAID and LVM together, and what is within them again.
fn find_volumes(disks: &[Disk]) -> Volumes {
    let mut volumes = Volumes::default();
    let mut known: HashSet<String> = HashSet::new();
    // Members of an array are not looked at on their own: a mirror's members look like the mirror.
    let mut members: HashSet<String> = HashSet::new();
    for _ in 0..MAX_DEPTH {
        let mut candidates = Vec::new();
        for disk in disks.iter().chain(&volumes.disks) {
            let whole = members.contains(&disk.name);
            let devices = disk.devices().into_iter().filter(|(name, _)| !whole && !members.contains(name));
            candidates.extend(devices.map(|(name, source)| Candidate { name, source }));
        }
        volumes.broken.clear();
        let arrays = md::scan(&candidates);
        members.extend(arrays.members);
        let fresh = volumes.take(arrays.found, &mut known);
        // Physical volumes on arrays that are new come in the next round, with the array.
        candidates.retain(|c| !members.contains(&c.name));
        let groups = if fresh { Vec::new() } else { lvm::scan(&candidates) };
        if !volumes.take(groups, &mut known) && !fresh {
            break;
        }
    }
    volumes
}

impl Volumes {
    /// Keeps what is new; whether anything was.
    fn take(&mut self, found: Vec<Found>, known: &mut HashSet<String>) -> bool {
        let mut fresh = false;
        for volume in found {
            // Names of arrays come from their metadata, and two may be the same.
            let Some(identity) = volume.aliases.first().cloned() else { continue };
            match volume.source {
                Err(failure) => {
                    let mut names = volume.aliases;
                    names.push(volume.name);
                    self.broken.push((names, failure));
                }
                Ok(source) if self.disks.len() < MAX_DISKS && known.insert(identity) => {
                    let mut name = volume.name.clone();
                    let mut number = 1;
                    while self.disks.iter().any(|d| d.name == name) {
                        name = format!("{}_{number}", volume.name);
                        number += 1;
                    }
                    self.disks.push(Disk::new(name, volume.aliases, source, Origin::Volume));
                    fresh = true;
                }
                Ok(_) => {}
            }
        }
        fresh
    }
}
