//! Virtual devices: what a pool is made of, from its top level down to disks.

use std::collections::BTreeMap;

use crate::{Error, Result, SourceRef};

use super::KIND;
use super::block::MAX_BLOCK;
use super::nvlist::Nvlist;
use super::raidz::RaidZ;

/// Where a device's allocatable space begins: after two labels and the boot area.
const START: u64 = 4 << 20;
/// Deepest tree: a replacement in a spare in a mirror.
const MAX_DEPTH: usize = 6;
/// Most devices below one, and most at the top level.
const MAX_CHILDREN: usize = 255;
/// Most removed devices that lead to each other.
const MAX_REMOVED: usize = 16;
/// The sectors that OpenZFS allows, as powers of two: ASHIFT_MIN, ASHIFT_MAX.
const ASHIFT: std::ops::RangeInclusive<u64> = 9..=16;

/// Decides whether bytes are the right ones.
pub type Accept<'a> = &'a mut dyn FnMut(&[u8]) -> bool;

/// A virtual device.
pub enum Vdev {
    /// A disk.
    Disk(SourceRef),
    /// Several with the same content.
    Mirror(Vec<Vdev>),
    /// With parity.
    RaidZ(RaidZ),
    /// It was removed, and its content moved to others.
    Removed(Vec<Moved>),
    /// A disk that is not there, by name.
    Missing(String),
}

/// A part of a removed device.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// Where it was.
    pub from: u64,
    /// Its size.
    pub len: u64,
    /// The top-level device where it is now.
    pub vdev: u32,
    /// And where there.
    pub to: u64,
}

impl Vdev {
    /// Builds the tree below a list of the configuration. `find` gives the disk with a guid.
    pub fn build(list: &Nvlist, find: &dyn Fn(u64) -> Option<SourceRef>) -> Result<Self> {
        Self::build_at(list, find, 0, None)
    }

    fn build_at(
        list: &Nvlist,
        find: &dyn Fn(u64) -> Option<SourceRef>,
        depth: usize,
        ashift: Option<u64>,
    ) -> Result<Self> {
        let children = list.lists("children");
        if depth > MAX_DEPTH || children.len() > MAX_CHILDREN {
            return Err(Error::corrupt(KIND, "the tree of devices"));
        }
        let ashift = list.number("ashift").or(ashift);
        let build = || -> Result<Vec<Self>> {
            children.iter().map(|child| Self::build_at(child, find, depth + 1, ashift)).collect()
        };
        Ok(match list.text("type").unwrap_or_default() {
            "disk" | "file" => {
                let guid = list.number("guid").unwrap_or_default();
                let path = list.text("path").unwrap_or("without a path");
                let missing = || Self::Missing(format!("device {path} (guid {guid})"));
                find(guid).map_or_else(missing, Self::Disk)
            }
            "mirror" | "replacing" | "spare" => Self::Mirror(build()?),
            "raidz" => {
                // The first versions had one parity and didn't say so.
                let parity = list.number("nparity").unwrap_or(1);
                let ashift = ashift.filter(|ashift| ASHIFT.contains(ashift));
                let (1..=3, Some(ashift)) = (parity, ashift) else {
                    return Err(Error::corrupt(
                        KIND,
                        format!("RAID-Z with parity {parity}, ashift {ashift:?}"),
                    ));
                };
                if list.has("raidz_expanding") {
                    return Err(Error::unsupported(KIND, "a RAID-Z device that is being expanded"));
                }
                Self::RaidZ(RaidZ { parity: parity as usize, ashift: ashift as u32, children: build()? })
            }
            kind @ ("hole" | "indirect" | "missing") => Self::Missing(format!("a device of type {kind}")),
            kind => return Err(Error::unsupported(KIND, format!("a device of type {kind}"))),
        })
    }

    /// Reads `len` bytes at `offset`: those that `accept` takes, or `None` if it takes none that there are.
    /// Fails if nothing could be read.
    pub fn read(&self, offset: u64, len: usize, accept: Accept<'_>) -> Result<Option<Vec<u8>>> {
        match self {
            Self::Disk(source) => {
                let at = offset.checked_add(START).ok_or_else(|| Error::corrupt(KIND, "an address"))?;
                let bytes = source.read_vec(at, len)?;
                Ok(accept(&bytes).then_some(bytes))
            }
            Self::Mirror(children) => any(children.iter().map(|child| child.read(offset, len, accept))),
            Self::RaidZ(raidz) => raidz.read(offset, len, accept),
            Self::Removed(_) => Err(Error::corrupt(KIND, "a removed device below another")),
            Self::Missing(name) => Err(Error::NotFound(name.clone())),
        }
    }
}

/// The first that was accepted. If none was, that some were read outweighs that others were not.
pub fn any(results: impl Iterator<Item = Result<Option<Vec<u8>>>>) -> Result<Option<Vec<u8>>> {
    let mut outcome = Err(Error::corrupt(KIND, "a block without a place"));
    for result in results {
        match result {
            Ok(Some(bytes)) => return Ok(Some(bytes)),
            Ok(None) => outcome = Ok(None),
            Err(error) if outcome.is_err() => outcome = Err(error),
            Err(_) => {}
        }
    }
    outcome
}

/// The devices at the top level, by number.
pub struct Vdevs(BTreeMap<u32, Vdev>);

impl Vdevs {
    /// None yet.
    pub fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Adds or replaces number `id`.
    pub fn insert(&mut self, id: u64, vdev: Vdev) -> Result<()> {
        if id >= MAX_CHILDREN as u64 {
            return Err(Error::corrupt(KIND, format!("device number {id}")));
        }
        self.0.insert(id as u32, vdev);
        Ok(())
    }

    /// Reads from a top-level device, as [`Vdev::read`].
    pub fn read(&self, id: u32, offset: u64, len: usize, accept: Accept<'_>) -> Result<Option<Vec<u8>>> {
        self.read_at(id, offset, len, accept, 0)
    }

    fn read_at(
        &self,
        id: u32,
        offset: u64,
        len: usize,
        accept: Accept<'_>,
        depth: usize,
    ) -> Result<Option<Vec<u8>>> {
        if len > MAX_BLOCK || depth > MAX_REMOVED {
            return Err(Error::corrupt(KIND, "an address"));
        }
        let vdev = self.0.get(&id).ok_or_else(|| Error::NotFound(format!("device {id} of the pool")))?;
        let Vdev::Removed(parts) = vdev else { return vdev.read(offset, len, accept) };
        let lost = || Error::corrupt(KIND, format!("nothing took the place of {offset} on device {id}"));
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let at = offset.checked_add(bytes.len() as u64).ok_or_else(lost)?;
            let index = parts.partition_point(|part| part.from <= at).checked_sub(1).ok_or_else(lost)?;
            let part = parts.get(index).ok_or_else(lost)?;
            let inside = at - part.from;
            let left = part.len.checked_sub(inside).filter(|left| *left > 0).ok_or_else(lost)?;
            let piece = left.min((len - bytes.len()) as u64) as usize;
            let to = part.to.checked_add(inside).ok_or_else(lost)?;
            if piece == len {
                return self.read_at(part.vdev, to, len, accept, depth + 1);
            }
            // Only the whole has a checksum.
            let read = self.read_at(part.vdev, to, piece, &mut |_| true, depth + 1)?;
            bytes.extend(read.ok_or_else(lost)?);
        }
        Ok(accept(&bytes).then_some(bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::Bytes;

    fn disk(fill: u8) -> Vdev {
        let mut bytes = vec![0; START as usize];
        bytes.extend((0..4096).map(|byte| (byte / 512) as u8 ^ fill));
        Vdev::Disk(Arc::new(Bytes(bytes)))
    }

    #[test]
    fn a_mirror_asks_until_one_is_right() {
        let mirror = Vdev::Mirror(vec![Vdev::Missing("a".into()), disk(0x80), disk(0)]);
        assert_eq!(mirror.read(512, 2, &mut |bytes| bytes[0] == 1).unwrap(), Some(vec![1, 1]));
        assert_eq!(mirror.read(512, 2, &mut |bytes| bytes[0] == 9).unwrap(), None);
        assert!(mirror.read(1 << 40, 2, &mut |_| true).is_err());
        assert!(Vdev::Mirror(vec![]).read(0, 2, &mut |_| true).is_err());
    }

    #[test]
    fn a_removed_device_is_in_pieces_elsewhere() {
        let mut vdevs = Vdevs::new();
        let moved = |from, len, vdev, to| Moved { from, len, vdev, to };
        vdevs.insert(0, Vdev::Removed(vec![moved(0, 1024, 1, 2048), moved(1024, 512, 1, 512)])).unwrap();
        vdevs.insert(1, disk(0)).unwrap();
        vdevs.insert(2, Vdev::Removed(vec![moved(0, 512, 2, 0)])).unwrap();
        let read = |id, offset, len| vdevs.read(id, offset, len, &mut |_| true);
        let expected = [vec![5; 512], vec![1; 512]].concat();
        assert_eq!(read(0, 512, 1024).unwrap(), Some(expected));
        assert!(read(0, 1024, 1024).is_err());
        assert!(read(2, 0, 512).is_err(), "a device that is its own replacement");
        assert!(read(7, 0, 512).is_err());
        assert!(vdevs.insert(1 << 32, disk(0)).is_err());
    }
}
