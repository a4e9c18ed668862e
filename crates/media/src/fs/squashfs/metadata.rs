//! Metadata: a chain of blocks of 8 KiB, packed one by one.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Compression, bad};
use crate::{Fields, Result, SourceRef};

/// Bytes in a block, unpacked.
const BLOCK: usize = 8192;
/// In the size of a block: it is stored as it is.
const STORED: u16 = 1 << 15;
/// Blocks that are kept.
const KEPT: usize = 512;

/// A few things by number; the oldest goes first.
pub struct Cache<T> {
    most: usize,
    found: HashMap<u64, T>,
    order: VecDeque<u64>,
}

impl<T: Clone> Cache<T> {
    pub fn new(most: usize) -> Self {
        Self { most, found: HashMap::new(), order: VecDeque::new() }
    }

    pub fn get(&self, number: u64) -> Option<T> {
        self.found.get(&number).cloned()
    }

    pub fn put(&mut self, number: u64, value: T) {
        if self.found.insert(number, value).is_none() {
            self.order.push_back(number);
        }
        if self.order.len() > self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.found.remove(&oldest);
        }
    }
}

/// Where something is: a packed block, and an offset in what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub block: u64,
    pub offset: usize,
}

#[derive(Clone)]
struct Block {
    bytes: Arc<Vec<u8>>,
    next: u64,
}

/// Reads metadata.
pub struct Metadata {
    source: SourceRef,
    compression: Compression,
    blocks: Mutex<Cache<Block>>,
}

impl Metadata {
    pub fn new(source: SourceRef, compression: Compression) -> Self {
        Self { source, compression, blocks: Mutex::new(Cache::new(KEPT)) }
    }

    fn block(&self, at: u64) -> Result<Block> {
        let lock = || self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = lock().get(at) {
            return Ok(block);
        }
        let header = self.source.read_vec(at, 2)?.u16_at(0).unwrap_or_default();
        // A size of 0 stands for the largest there is (SQUASHFS_COMPRESSED_SIZE).
        let len = match header & !STORED {
            0 => STORED as usize,
            len => len as usize,
        };
        let bytes = self.source.read_vec(at + 2, len)?;
        let bytes = if header & STORED == 0 { self.compression.unpack(&bytes, BLOCK)? } else { bytes };
        if bytes.is_empty() || bytes.len() > BLOCK {
            return Err(bad(format!("the metadata block at {at:#x} has {} bytes", bytes.len())));
        }
        let block = Block { bytes: Arc::new(bytes), next: at + 2 + len as u64 };
        lock().put(at, block.clone());
        Ok(block)
    }

    /// Fills `to` and moves on, over the ends of blocks.
    pub fn read(&self, place: &mut Place, to: &mut [u8]) -> Result<()> {
        let mut to = to;
        while !to.is_empty() {
            let block = self.block(place.block)?;
            let rest = block.bytes.get(place.offset..).ok_or_else(|| bad("an offset in metadata"))?;
            let len = rest.len().min(to.len());
            let (now, later) = to.split_at_mut(len);
            now.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
            to = later;
            place.offset += len;
            if place.offset >= block.bytes.len() {
                *place = Place { block: block.next, offset: 0 };
            }
        }
        Ok(())
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&self, place: &mut Place) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read(place, &mut bytes)?;
        Ok(bytes)
    }

    /// The next `len` bytes; the caller bounds them.
    pub fn bytes(&self, place: &mut Place, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read(place, &mut bytes)?;
        Ok(bytes)
    }
}
