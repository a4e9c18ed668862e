//! System attributes: what a file system knows of a file, packed by layouts that it describes itself.

use std::collections::HashMap;
use std::ops::ControlFlow;

use crate::{Error, Fields, Result};

use super::KIND;
use super::dmu::{Object, ObjectSet, kind};
use super::zap::Zap;

/// SA_MAGIC
const MAGIC: u32 = 0x002F_505A;
/// Most attributes of a layout, and most layouts: their number has ten bits.
const MAX_LAYOUT: usize = 1024;
/// The attributes that we want: POSIX mode, bytes, time of the last change, target of a link.
const WANTED: [&str; 4] = ["ZPL_MODE", "ZPL_SIZE", "ZPL_MTIME", "ZPL_SYMLINK"];
/// Bytes of a znode of before system attributes (`znode_phys_t`).
const ZNODE: usize = 264;

/// What we want to know of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// POSIX mode, with the kind.
    pub mode: u64,
    /// Bytes.
    pub size: u64,
    /// Seconds since 1970.
    pub modified: i64,
    /// Where a symbolic link leads, if that is stored among the attributes.
    pub target: Option<Vec<u8>>,
}

/// The layouts of a file system.
pub struct Layouts {
    /// Attributes in their order.
    orders: HashMap<u16, Vec<u16>>,
    /// Lengths; 0 if each file has its own.
    lengths: HashMap<u16, u16>,
    mode: u16,
    size: u16,
    modified: u16,
    target: u16,
}

impl Layouts {
    /// Reads the registry and the layouts of the master object `id`.
    pub fn read(set: &ObjectSet, id: u64) -> Result<Self> {
        let bad = |what: &str| Error::corrupt(KIND, format!("system attributes: {what}"));
        let master = set.object(id)?;
        let master = Zap::open(&master)?;
        let part = |name| -> Result<Object> {
            set.object(master.number(name)?.ok_or_else(|| bad("no registry or layouts"))?)
        };
        let mut wanted = [None; WANTED.len()];
        let mut lengths = HashMap::new();
        Zap::open(&part("REGISTRY")?)?.each(&mut |name, value| {
            // Number in bits 0 to 15, length in 24 to 39 (ATTR_NUM, ATTR_LENGTH).
            if let Some(value) = value.number() {
                lengths.insert(value as u16, (value >> 24) as u16);
                for (to, wanted) in wanted.iter_mut().zip(WANTED) {
                    if name == wanted.as_bytes() {
                        *to = Some(value as u16);
                    }
                }
            }
            ControlFlow::Continue(())
        })?;
        let mut orders = HashMap::new();
        Zap::open(&part("LAYOUTS")?)?.each(&mut |name, value| {
            let number = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
            if let Some(number) = number.filter(|number| usize::from(*number) < MAX_LAYOUT)
                && value.width == 2
            {
                let attributes = value.bytes.chunks_exact(2).take(MAX_LAYOUT);
                orders.insert(number, attributes.filter_map(|bytes| bytes.u16_be(0)).collect());
            }
            ControlFlow::Continue(())
        })?;
        let [Some(mode), Some(size), Some(modified), Some(target)] = wanted else {
            return Err(bad("one is missing in the registry"));
        };
        Ok(Self { orders, lengths, mode, size, modified, target })
    }

    fn attributes(&self, object: &Object) -> Result<Attributes> {
        let bad = || Error::corrupt(KIND, "system attributes of a file");
        let bonus = object.dnode.bonus();
        let number = |attribute| -> Result<u64> {
            self.find(bonus, attribute)?.and_then(|bytes| bytes.u64_at(0)).ok_or_else(bad)
        };
        let mode = number(self.mode)?;
        let mut target = self.find(bonus, self.target)?.map(<[u8]>::to_vec);
        if target.is_none()
            && is_link(mode)
            && let Some(spill) = object.spill()?
        {
            target = self.find(&spill, self.target)?.map(<[u8]>::to_vec);
        }
        Ok(Attributes { mode, size: number(self.size)?, modified: number(self.modified)? as i64, target })
    }

    /// The bytes of an attribute in a bonus buffer or a spill block.
    fn find<'a>(&self, area: &'a [u8], wanted: u16) -> Result<Option<&'a [u8]>> {
        let bad = || Error::corrupt(KIND, "system attributes of a file");
        if area.u32_at(0) != Some(MAGIC) {
            return Err(bad());
        }
        // Layout in bits 0 to 9, size of the header in units of 8 bytes in 10 to 15; then the lengths of
        // attributes that have none of their own.
        let info = area.u16_at(4).ok_or_else(bad)?;
        let layout = self.orders.get(&(info & 0x3ff)).ok_or_else(bad)?;
        let mut at = usize::from(info >> 10) * 8;
        let mut lengths = 6;
        for attribute in layout {
            let mut len = self.lengths.get(attribute).copied().ok_or_else(bad)?;
            if len == 0 {
                len = area.u16_at(lengths).ok_or_else(bad)?;
                lengths += 2;
            }
            let end = at + usize::from(len);
            if *attribute == wanted {
                return area.get(at..end).map(Some).ok_or_else(bad);
            }
            at = end.next_multiple_of(8);
        }
        Ok(None)
    }
}

/// Whether a mode is that of a symbolic link (S_IFLNK).
pub fn is_link(mode: u64) -> bool {
    mode & 0o170000 == 0o120000
}

/// The attributes of a file, in whichever form it has them.
pub fn attributes(object: &Object, layouts: Option<&Layouts>) -> Result<Attributes> {
    match (object.dnode.bonus_kind, layouts) {
        (kind::SA, Some(layouts)) => layouts.attributes(object),
        (kind::ZNODE, _) => {
            znode(object.dnode.bonus()).ok_or_else(|| Error::corrupt(KIND, "a znode is cut off"))
        }
        _ => Err(Error::corrupt(KIND, "an object is not a file")),
    }
}

/// Parses a `znode_phys_t`; the target of a short link follows it.
fn znode(bonus: &[u8]) -> Option<Attributes> {
    let size = bonus.u64_at(80)?;
    let rest = bonus.get(ZNODE..)?;
    let target = rest.get(..usize::try_from(size).ok()?);
    Some(Attributes {
        mode: bonus.u64_at(72)?,
        size,
        modified: bonus.u64_at(16)? as i64,
        target: target.filter(|target| !target.is_empty()).map(<[u8]>::to_vec),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_follow_their_layout() {
        let layouts = Layouts {
            orders: [(3, vec![5, 9, 6, 7])].into(),
            lengths: [(5, 8), (6, 16), (7, 8), (9, 0)].into(),
            mode: 5,
            size: 7,
            modified: 6,
            target: 9,
        };
        let mut area = vec![0; 56];
        area[..4].copy_from_slice(&MAGIC.to_le_bytes());
        area[4..8].copy_from_slice(&[3, 1 << 2, 3, 0]);
        area[8] = 0x11;
        area[16..19].copy_from_slice(b"abc");
        area[24] = 0x22;
        area[40] = 0x33;
        let find = |wanted| layouts.find(&area, wanted).unwrap();
        assert_eq!(find(5).unwrap(), [0x11, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(find(9).unwrap(), b"abc");
        assert_eq!(find(7).unwrap()[0], 0x33);
        assert_eq!(find(8), None);
        assert!(layouts.find(&area[..40], 7).is_err());
        assert!(layouts.find(&area[1..], 5).is_err());
    }

    #[test]
    fn a_znode_holds_a_short_target() {
        let mut bonus = vec![0; ZNODE + 4];
        bonus[16] = 77;
        bonus[73] = 0xa1;
        bonus[80] = 4;
        bonus[ZNODE..].copy_from_slice(b"here");
        let expected = Attributes { mode: 0xa100, size: 4, modified: 77, target: Some(b"here".to_vec()) };
        assert_eq!(znode(&bonus), Some(expected));
        bonus[80] = 5;
        assert_eq!(znode(&bonus).unwrap().target, None);
        assert_eq!(znode(&bonus[..ZNODE - 1]), None);
    }
}
