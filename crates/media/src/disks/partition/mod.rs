//! Partition maps.

use std::fmt::Write;
use std::sync::Arc;

use crate::{Result, SourceRef, Window};

mod apple;
mod bsd;
mod gpt;
mod msdos;
#[cfg(test)]
mod tests;

/// Most partitions of a disk that are listed.
const MAX_PARTITIONS: usize = 1024;

/// Kinds of partition maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    /// Master boot record.
    Msdos,
    /// GUID partition table.
    Gpt,
    /// BSD disklabel on a whole disk or in a FreeBSD slice.
    Bsd,
    /// NetBSD disklabel in a slice.
    NetBsd,
    /// OpenBSD disklabel in a slice.
    OpenBsd,
    /// Apple partition map.
    Apple,
}

impl Map {
    /// GRUB's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Msdos => "msdos",
            Self::Gpt => "gpt",
            Self::Bsd => "bsd",
            Self::NetBsd => "netbsd",
            Self::OpenBsd => "openbsd",
            Self::Apple => "apple",
        }
    }
}

/// What a partition is for, as its map says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartitionKind {
    /// Type byte of a master boot record.
    Msdos(u8),
    /// Type GUID, lower case.
    Gpt(String),
    /// File system type of a BSD disklabel.
    Bsd(u8),
    /// Apple's type name.
    Apple(String),
}

/// A part of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Name within the disk: `msdos1`, `msdos1,bsd1`.
    pub name: String,
    /// Kind of map that lists it.
    pub map: Map,
    /// Number in its map, from 1.
    pub number: u32,
    /// First byte on the disk.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// What it is for.
    pub kind: PartitionKind,
    /// Its own UUID: of GPT the GUID, of a master boot record the disk's signature and the number,
    /// both as Linux's PARTUUID.
    pub uuid: Option<String>,
    /// Its label, where the map has labels.
    pub label: Option<String>,
    /// Whether it is marked as the one to boot.
    pub active: bool,
}

impl Partition {
    /// The name of the partition that it is in.
    pub fn parent(&self) -> Option<&str> {
        self.name.rsplit_once(',').map(|(parent, _)| parent)
    }
}

/// A partition as its map shows it, relative to where the map is.
struct Slot {
    number: u32,
    start: u64,
    size: u64,
    kind: PartitionKind,
    uuid: Option<String>,
    label: Option<String>,
    active: bool,
}

type Reader = fn(&SourceRef) -> Result<Vec<Slot>>;

/// Maps of whole disks. The first is the first for names without a map, `hd0,1`.
const READERS: &[(Map, Reader)] = &[
    (Map::Msdos, msdos::read),
    (Map::Gpt, gpt::read),
    (Map::Bsd, bsd::whole_disk),
    (Map::NetBsd, bsd::netbsd),
    (Map::OpenBsd, bsd::openbsd),
    (Map::Apple, apple::read),
];

/// All partitions, each map's in its own order. What can't be read is not there: a damaged map
/// must not hide the rest.
pub fn scan(source: &SourceRef) -> Vec<Partition> {
    let mut found = Vec::new();
    for (map, read) in READERS {
        let Ok(slots) = read(source) else { continue };
        for slot in slots {
            let Some(partition) = place(source.size(), *map, slot) else { continue };
            let inner = within(source, &partition);
            found.push(partition);
            found.extend(inner);
            if found.len() >= MAX_PARTITIONS {
                found.truncate(MAX_PARTITIONS);
                return found;
            }
        }
    }
    found
}

/// FreeBSD slices have a label of their own.
fn within(source: &SourceRef, slice: &Partition) -> Vec<Partition> {
    if slice.kind != PartitionKind::Msdos(bsd::FREEBSD) {
        return Vec::new();
    }
    let Ok(window) = Window::new(source.clone(), slice.start, slice.size) else { return Vec::new() };
    let window: SourceRef = Arc::new(window);
    let slots = bsd::slice(&window).unwrap_or_default();
    let inner = slots.into_iter().filter_map(|slot| place(slice.size, Map::Bsd, slot));
    inner
        .map(|p| Partition { name: format!("{},{}", slice.name, p.name), start: slice.start + p.start, ..p })
        .collect()
}

/// A slot that lies in its disk. One that begins there but ends behind is cut: images are often
/// shorter than the disks that they were made for.
fn place(disk: u64, map: Map, slot: Slot) -> Option<Partition> {
    if slot.size == 0 || slot.start >= disk {
        return None;
    }
    let Slot { number, start, size, kind, uuid, label, active } = slot;
    let size = size.min(disk - start);
    Some(Partition {
        name: format!("{}{number}", map.name()),
        map,
        number,
        start,
        size,
        kind,
        uuid,
        label,
        active,
    })
}

/// A GUID as text: the first three fields are little endian (UEFI 2.10, appendix A).
fn guid(bytes: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (n, at) in [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15].into_iter().enumerate() {
        if matches!(n, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let _ = write!(text, "{:02x}", bytes[at]);
    }
    text
}
