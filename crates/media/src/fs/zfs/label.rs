//! Labels: four copies at the ends of each device, each with the device's place in the pool and a ring of
//! uberblocks.

use crate::{Error, Fields, Result, SourceRef};

use super::KIND;
use super::block::{POINTER, Pointer};
use super::checksum::verify_embedded;
use super::nvlist::Nvlist;

/// Size of a label.
const LABEL: u64 = 256 << 10;
/// Where the name-value list is in a label (after 8 KiB of nothing and the boot header), and its size with
/// the checksum.
const LIST: (u64, usize) = (16 << 10, 112 << 10);
/// Where the ring of uberblocks is; it fills the rest.
const RING: u64 = 128 << 10;
/// Smallest and largest slot of the ring, as powers of two.
const SLOT: (u64, u64) = (10, 13);
/// Largest sector that a device can have, as a power of two: ASHIFT_MAX.
const MAX_ASHIFT: u64 = 16;
/// Start of an uberblock.
const MAGIC: u64 = 0x00ba_b10c;

/// What the labels of one device say.
pub struct Labels {
    /// The device.
    pub source: SourceRef,
    /// The newest name-value list.
    pub list: Nvlist,
    /// Its pool.
    pub pool: u64,
    /// The device itself.
    pub guid: u64,
    /// When the list was written.
    pub txg: u64,
    /// Whether one of the two labels at the front is sound. Those at the back show on the whole disk as
    /// well if they are those of its last partition.
    pub front: bool,
}

/// The root of everything.
#[derive(Clone, Debug)]
pub struct Uberblock {
    /// When it was written, in transactions.
    pub txg: u64,
    /// When it was written, seconds since 1970.
    pub time: u64,
    /// The pool's object set.
    pub root: Pointer,
}

/// State of a device or its pool (`pool_state_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// In a pool.
    Member,
    /// In a pool that was destroyed.
    Destroyed,
    /// A spare.
    Spare,
    /// A cache.
    Cache,
}

impl Labels {
    /// Reads the labels of a device; `None` if it has none.
    pub fn read(source: &SourceRef) -> Result<Option<Self>> {
        let mut best: Option<Self> = None;
        let mut front = false;
        let mut failure = None;
        for (index, offset) in places(source.size()).into_iter().enumerate() {
            let at = offset + LIST.0;
            let bytes = match source.read_vec(at, LIST.1) {
                Ok(bytes) => bytes,
                Err(error) => {
                    failure = Some(error);
                    continue;
                }
            };
            if !verify_embedded(&bytes, [at, 0, 0, 0]) {
                continue;
            }
            let Ok(list) = Nvlist::parse(&bytes) else { continue };
            front |= index < 2;
            // The label of a cache device has no transaction.
            let txg = list.number("txg").unwrap_or_default();
            if best.as_ref().is_some_and(|best| best.txg >= txg) {
                continue;
            }
            let Some(guid) = list.number("guid") else { continue };
            let pool = list.number("pool_guid").unwrap_or_default();
            best = Some(Self { source: source.clone(), list, pool, guid, txg, front });
        }
        match (best, failure) {
            (None, Some(failure)) => Err(failure),
            (best, _) => Ok(best.map(|best| Self { front, ..best })),
        }
    }

    /// What the device is.
    pub fn state(&self) -> Result<State> {
        match self.list.number("state") {
            // active, exported
            Some(0 | 1) => Ok(State::Member),
            Some(2) => Ok(State::Destroyed),
            Some(3) => Ok(State::Spare),
            Some(4) => Ok(State::Cache),
            state => Err(Error::corrupt(KIND, format!("pool state {state:?}"))),
        }
    }

    /// The sound uberblocks in all labels.
    pub fn uberblocks(&self) -> Vec<Uberblock> {
        let ashift = self.list.list("vdev_tree").and_then(|tree| tree.number("ashift"));
        let shift = ashift.unwrap_or_default().min(MAX_ASHIFT).clamp(SLOT.0, SLOT.1);
        let slot = 1 << shift;
        let mut found = Vec::new();
        for offset in places(self.source.size()) {
            let Ok(ring) = self.source.read_vec(offset + RING, (LABEL - RING) as usize) else { continue };
            for (index, bytes) in ring.chunks_exact(slot).enumerate() {
                let at = offset + RING + (index * slot) as u64;
                found.extend(uberblock(bytes, at));
            }
        }
        found
    }
}

/// Where the labels of a device of `size` bytes are.
fn places(size: u64) -> Vec<u64> {
    let end = size - size % LABEL;
    if end < 4 * LABEL {
        return Vec::new();
    }
    vec![0, LABEL, end - 2 * LABEL, end - LABEL]
}

fn uberblock(bytes: &[u8], at: u64) -> Option<Uberblock> {
    if bytes.u64_at(0)? != MAGIC || !verify_embedded(bytes, [at, 0, 0, 0]) {
        return None;
    }
    let root = Pointer::parse(bytes.get(40..40 + POINTER)?).ok()?;
    Some(Uberblock { txg: bytes.u64_at(16)?, time: bytes.u64_at(32)?, root })
}

/// Whether the device holds uberblocks of a machine with the other byte order.
pub fn other_byte_order(labels: &Labels) -> bool {
    places(labels.source.size()).into_iter().any(|offset| {
        (0..128u64).any(|slot| {
            let magic = labels.source.read_vec(offset + RING + slot * 1024, 8);
            magic.is_ok_and(|bytes| bytes.u64_be(0) == Some(MAGIC))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_at_both_ends() {
        assert_eq!(places((1 << 20) + 5), [0, LABEL, 2 * LABEL, 3 * LABEL]);
        assert_eq!(places((2 << 20) - 1), [0, LABEL, 5 * LABEL, 6 * LABEL]);
        assert!(places((1 << 20) - 1).is_empty());
    }
}
