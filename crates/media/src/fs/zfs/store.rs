//! Blocks: read from any of their places, checked, unpacked, and kept for a while.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use crate::decompress::{lz4, lzjb, zle, zlib, zstd_magicless};
use crate::{Error, Fields, Result};

use super::KIND;
use super::block::{Block, Dva, Embedded, MAX_BLOCK, POINTER, Pointer};
use super::checksum::{verify, verify_embedded};
use super::vdev::{Vdevs, any};

/// Bytes that are kept.
const CACHE: usize = 48 << 20;
/// Bytes of a gang header: SPA_GANGBLOCKSIZE.
const GANG_HEADER: usize = 512;
/// Pointers in it.
const GANG_MEMBERS: usize = 3;
/// Gangs in gangs: each time, a block is cut in three.
const GANG_DEPTH: usize = 8;

/// An unpacked block.
pub type Data = Arc<Vec<u8>>;

/// Reads blocks.
pub struct Store {
    vdevs: Vdevs,
    check: bool,
    cache: Mutex<Cache>,
}

impl Store {
    /// Reads from these devices. Without `check`, checksums don't matter: for tests with damaged blocks,
    /// which would get no further otherwise.
    pub fn new(vdevs: Vdevs, check: bool) -> Self {
        Self { vdevs, check, cache: Mutex::default() }
    }

    /// The block that `pointer` points to; `None` if it is a hole.
    pub fn read(&self, pointer: &Pointer) -> Result<Option<Data>> {
        match pointer {
            Pointer::Hole => Ok(None),
            Pointer::Embedded(Embedded { size, compression, bytes, .. }) => {
                Ok(Some(Arc::new(unpack(*compression, bytes, *size)?)))
            }
            Pointer::Block(block) => self.block(block).map(Some),
        }
    }

    fn block(&self, block: &Block) -> Result<Data> {
        if let Some(data) = self.cache().get(&block.key) {
            return Ok(data);
        }
        if block.encrypted {
            return Err(Error::unsupported(KIND, "an encrypted block"));
        }
        if !block.little {
            return Err(Error::unsupported(KIND, "a block in big-endian byte order"));
        }
        let stored = self.stored(block, 0)?;
        let data = Arc::new(unpack(block.compression, &stored, block.size)?);
        self.cache().put(block.key, &data);
        Ok(data)
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes on disk, from the first place that has the right ones.
    fn stored(&self, block: &Block, depth: usize) -> Result<Vec<u8>> {
        let mut failure = None;
        let mut right = |bytes: &[u8]| match verify(block.checksum, bytes, &block.sum) {
            Ok(right) => right || !self.check,
            Err(error) => {
                failure = Some(error);
                false
            }
        };
        let read = any(block.places.iter().map(|place| {
            if place.gang {
                self.gang(block, *place, depth).map(Some)
            } else {
                self.vdevs.read(place.vdev, place.offset, block.stored, &mut right)
            }
        }))?;
        if let Some(failure) = failure {
            return Err(failure);
        }
        read.ok_or_else(|| {
            let place = block.places.first().map_or((0, 0), |place| (place.vdev, place.offset));
            Error::corrupt(KIND, format!("checksum of the block at {} on device {}", place.1, place.0))
        })
    }

    /// A block that was stored in pieces. Each has a checksum of its own.
    fn gang(&self, block: &Block, place: Dva, depth: usize) -> Result<Vec<u8>> {
        let bad = || Error::corrupt(KIND, format!("the gang at {} on device {}", place.offset, place.vdev));
        let first = block.places.first().filter(|_| depth < GANG_DEPTH).ok_or_else(bad)?;
        let verifier = [first.vdev.into(), first.offset, block.stored_at, 0];
        let mut right = |bytes: &[u8]| !self.check || verify_embedded(bytes, verifier);
        let header = self.vdevs.read(place.vdev, place.offset, GANG_HEADER, &mut right)?.ok_or_else(bad)?;
        let mut bytes = Vec::new();
        for member in header.chunks_exact(POINTER).take(GANG_MEMBERS) {
            let Pointer::Block(member) = Pointer::parse(member)? else { continue };
            if member.stored > block.stored - bytes.len() {
                return Err(bad());
            }
            bytes.extend(self.stored(&member, depth + 1)?);
        }
        if bytes.len() == block.stored { Ok(bytes) } else { Err(bad()) }
    }
}

/// Unpacks a block (`enum zio_compress`); what is missing are zeros.
fn unpack(kind: u8, stored: &[u8], size: usize) -> Result<Vec<u8>> {
    let cut = || Error::corrupt(KIND, "a compressed block is cut off");
    // Some formats are preceded by the number of bytes that are theirs.
    let sized = |header: usize| -> Result<&[u8]> {
        let len = stored.u32_be(0).ok_or_else(cut)? as usize;
        stored.get(header..).and_then(|rest| rest.get(..len)).ok_or_else(cut)
    };
    if size > MAX_BLOCK {
        return Err(Error::corrupt(KIND, format!("a block of {size} bytes")));
    }
    let mut bytes = match kind {
        // off
        2 => stored.to_vec(),
        // on, lzjb
        1 | 3 => lzjb(stored, size)?,
        // empty
        4 => Vec::new(),
        // gzip-1 to gzip-9
        5..=13 => zlib(stored, size)?,
        14 => zle(stored, size)?,
        15 => lz4(sized(4)?, size)?,
        // Length, then version and level.
        16 => zstd_magicless(sized(8)?, size)?,
        kind => return Err(Error::unsupported(KIND, format!("compression {kind}"))),
    };
    bytes.resize(size, 0);
    Ok(bytes)
}

/// The blocks that were used last.
#[derive(Default)]
struct Cache {
    blocks: HashMap<[u64; 4], (Data, u64)>,
    /// Keys by the time of their last use.
    order: BTreeMap<u64, [u64; 4]>,
    now: u64,
    size: usize,
}

impl Cache {
    fn get(&mut self, key: &[u64; 4]) -> Option<Data> {
        let (data, used) = self.blocks.get_mut(key)?;
        self.order.remove(used);
        self.now += 1;
        *used = self.now;
        self.order.insert(self.now, *key);
        Some(data.clone())
    }

    fn put(&mut self, key: [u64; 4], data: &Data) {
        self.now += 1;
        self.size += data.len();
        self.order.insert(self.now, key);
        if let Some((old, used)) = self.blocks.insert(key, (data.clone(), self.now)) {
            self.size -= old.len();
            self.order.remove(&used);
        }
        while self.size > CACHE
            && let Some((_, key)) = self.order.pop_first()
        {
            if let Some((old, _)) = self.blocks.remove(&key) {
                self.size -= old.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_forgets_what_was_not_used() {
        let mut cache = Cache::default();
        let data = Arc::new(vec![0; CACHE / 4]);
        for key in 0..4 {
            cache.put([key; 4], &data);
        }
        assert!(cache.get(&[0; 4]).is_some());
        cache.put([9; 4], &data);
        assert!(cache.get(&[1; 4]).is_none(), "the oldest");
        assert!(cache.get(&[0; 4]).is_some());
        cache.put([9; 4], &data);
        assert_eq!((cache.size, cache.blocks.len(), cache.order.len()), (CACHE, 4, 4));
    }

    #[test]
    fn packed_blocks_are_filled_up() {
        assert_eq!(unpack(2, &[1, 2], 4).unwrap(), [1, 2, 0, 0]);
        assert_eq!(unpack(4, &[], 2).unwrap(), [0, 0]);
        // One literal, whose token says so.
        assert_eq!(unpack(15, &[0, 0, 0, 2, 0x10, 7, 99], 3).unwrap(), [7, 0, 0]);
        assert!(unpack(15, &[0, 0, 0, 4, 0x10, 7, 99], 3).is_err());
        assert!(unpack(17, &[], 1).is_err());
        assert!(unpack(2, &[], MAX_BLOCK + 1).is_err());
    }
}
