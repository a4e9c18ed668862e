//! Trees: checked nodes, and walks over their items.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use super::checksum::Checksum;
use super::volume::Volume;
use super::{bad, superblock::Superblock};
use crate::{Error, Fields, Result};

/// Highest level of a node (`BTRFS_MAX_LEVEL`, 8 levels).
const MAX_LEVEL: u8 = 7;
/// Bytes before the items or pointers of a node.
const HEADER: usize = 101;
/// Bytes of an item in a leaf, and of a pointer in a node.
const ITEM: usize = 25;
const POINTER: usize = 33;
/// Nodes that are kept, in bytes.
const CACHE: usize = 16 << 20;

/// A key: object, type of item, and what the type makes of the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub object: u64,
    pub kind: u8,
    pub offset: u64,
}

impl Key {
    /// A key.
    pub const fn new(object: u64, kind: u8, offset: u64) -> Self {
        Self { object, kind, offset }
    }

    /// The 17 bytes at `at`.
    pub fn read(bytes: &[u8], at: usize) -> Option<Self> {
        Some(Self::new(bytes.u64_at(at)?, bytes.u8_at(at + 8)?, bytes.u64_at(at + 9)?))
    }
}

/// Where a tree begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    pub address: u64,
    pub level: u8,
    pub generation: u64,
}

/// A checksum; shorter ones end with zeros.
pub type Sum = [u8; 32];

/// A sound node.
struct Node {
    bytes: Vec<u8>,
    level: u8,
    count: usize,
}

impl Node {
    fn size(&self) -> usize {
        if self.level == 0 { ITEM } else { POINTER }
    }

    fn key(&self, index: usize) -> Option<Key> {
        if index < self.count { Key::read(&self.bytes, HEADER + index * self.size()) } else { None }
    }

    /// How many keys are below or at `key`.
    fn upper(&self, key: Key) -> usize {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.key(middle).is_some_and(|found| found <= key) { low = middle + 1 } else { high = middle }
        }
        low
    }

    fn child(&self, index: usize) -> Option<Root> {
        let at = HEADER + index * POINTER;
        self.key(index)?;
        Some(Root {
            address: self.bytes.u64_at(at + 17)?,
            level: self.level.checked_sub(1)?,
            generation: self.bytes.u64_at(at + 25)?,
        })
    }

    fn item(&self, index: usize) -> Option<(Key, &[u8])> {
        let at = HEADER + index * ITEM;
        let start = HEADER.checked_add(self.bytes.u32_at(at + 17)? as usize)?;
        let end = start.checked_add(self.bytes.u32_at(at + 21)? as usize)?;
        Some((self.key(index)?, self.bytes.get(start..end)?))
    }
}

/// Nodes that were read last.
struct Cache {
    nodes: HashMap<u64, Arc<Node>>,
    order: VecDeque<u64>,
}

/// Takes a key, or the last part of one, and an item; says whether to go on.
type Visit<'a, K> = dyn FnMut(K, &[u8]) -> Result<ControlFlow<()>> + 'a;

/// Reads trees.
pub struct Trees {
    pub volume: Volume,
    checksum: Checksum,
    node_size: usize,
    cache: Mutex<Cache>,
}

/// Whether a walk begins at the first item from a key on, or at the last one up to it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Start {
    From,
    UpTo,
}

impl Trees {
    /// The trees of a file system whose chunks may not all be known yet.
    pub fn new(volume: Volume, superblock: &Superblock) -> Self {
        Self {
            volume,
            checksum: superblock.checksum,
            node_size: superblock.node_size as usize,
            cache: Mutex::new(Cache { nodes: HashMap::new(), order: VecDeque::new() }),
        }
    }

    fn node(&self, at: Root) -> Result<Arc<Node>> {
        let lock = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let cached = lock().nodes.get(&at.address).cloned();
        if let Some(node) = cached {
            // What was checked then was checked against another pointer.
            Self::fits(&node.bytes, at)?;
            return Ok(node);
        }
        if at.level > MAX_LEVEL {
            return Err(bad("a tree is too high"));
        }
        let mut bytes = vec![0; self.node_size];
        let mut refusal = None;
        let good = (0..self.volume.copies(at.address)?).any(|copy| {
            let read = self.volume.read(at.address, &mut bytes, copy).and_then(|()| {
                self.checksum.check_block(&bytes, &format!("the node at {:#x}", at.address))?;
                Self::fits(&bytes, at)
            });
            read.map_err(|error| refusal = refusal.take().or(Some(error))).is_ok()
        });
        if !good {
            return Err(refusal.unwrap_or_else(|| bad("a node has no copy")));
        }
        let count = bytes.u32_at(96).unwrap_or_default() as usize;
        let node = Arc::new(Node { bytes, level: at.level, count });
        if HEADER.saturating_add(count.saturating_mul(node.size())) > self.node_size {
            return Err(bad(format!("the node at {:#x} has {count} entries", at.address)));
        }
        let mut cache = lock();
        if cache.order.len() >= CACHE / self.node_size
            && let Some(oldest) = cache.order.pop_front()
        {
            cache.nodes.remove(&oldest);
        }
        if cache.nodes.insert(at.address, node.clone()).is_none() {
            cache.order.push_back(at.address);
        }
        Ok(node)
    }

    /// Whether a node is the one that a pointer means, and not an older one in its place.
    fn fits(bytes: &[u8], at: Root) -> Result<()> {
        let found = (bytes.u64_at(48), bytes.u8_at(100), bytes.u64_at(80));
        if found == (Some(at.address), Some(at.level), Some(at.generation)) {
            return Ok(());
        }
        Err(bad(format!("the node at {:#x} is another one", at.address)))
    }

    /// Visits items in the order of their keys.
    pub fn walk(&self, root: Root, from: Key, start: Start, visit: &mut Visit<Key>) -> Result<()> {
        let mut way: Vec<(Arc<Node>, usize)> = Vec::new();
        let mut next = Some(root);
        // Only the first way down looks for a key; later ones lead to the next leaf.
        let mut wanted = Some(from);
        let mut last: Option<Key> = None;
        loop {
            while let Some(at) = next.take() {
                let node = self.node(at)?;
                if node.count == 0 && (node.level > 0 || !way.is_empty()) {
                    return Err(bad(format!("the node at {:#x} is empty", at.address)));
                }
                let mut index = wanted.map_or(0, |key| node.upper(key).saturating_sub(1));
                if node.level > 0 {
                    next = node.child(index);
                } else if let Some(key) = wanted.take()
                    && start == Start::From
                    && node.key(index).is_some_and(|found| found < key)
                {
                    index += 1;
                }
                way.push((node, index));
            }
            let Some((node, index)) = way.last_mut() else { return Ok(()) };
            if *index >= node.count {
                way.pop();
                if let Some((_, index)) = way.last_mut() {
                    *index += 1;
                }
            } else if node.level > 0 {
                next = node.child(*index);
            } else {
                let (key, item) = node.item(*index).ok_or_else(|| bad("an item is outside its leaf"))?;
                // This also ends walks over trees that lead back into themselves.
                if last.is_some_and(|last| last >= key) {
                    return Err(bad("keys are out of order"));
                }
                last = Some(key);
                if visit(key, item)?.is_break() {
                    return Ok(());
                }
                *index += 1;
            }
        }
    }

    /// The item of a key.
    pub fn get(&self, root: Root, key: Key) -> Result<Option<Vec<u8>>> {
        let mut found = None;
        self.walk(root, key, Start::From, &mut |at, item| {
            if at == key {
                found = Some(item.to_vec());
            }
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }

    /// All items of an object and a type.
    pub fn each(&self, root: Root, object: u64, kind: u8, visit: &mut Visit<u64>) -> Result<()> {
        self.walk(root, Key::new(object, kind, 0), Start::From, &mut |key, item| {
            if (key.object, key.kind) != (object, kind) {
                return Ok(ControlFlow::Break(()));
            }
            visit(key.offset, item)
        })
    }

    /// Fills `to` from `logical`, in whole sectors, each from a copy that has the sum in `sums`.
    pub fn read_data(&self, logical: u64, to: &mut [u8], sector: usize, sums: &[Option<Sum>]) -> Result<()> {
        let first = self.volume.read(logical, to, 0);
        let places = (logical..).step_by(sector.max(1));
        for (number, (at, piece)) in places.zip(to.chunks_mut(sector.max(1))).enumerate() {
            let sum = sums.get(number).and_then(Option::as_ref);
            let sum = sum.and_then(|sum| sum.get(..self.checksum.len()));
            let fits = |piece: &[u8]| sum.is_none_or(|sum| self.checksum.fits(piece, sum));
            if first.is_ok() && fits(piece) {
                continue;
            }
            let mut refusal: Option<Error> = None;
            let good = (0..self.volume.copies(at)?).any(|copy| match self.volume.read(at, piece, copy) {
                Ok(()) => fits(piece),
                Err(error) => {
                    refusal = refusal.take().or(Some(error));
                    false
                }
            });
            if !good {
                return Err(refusal.unwrap_or_else(|| bad(format!("checksum of data at {at:#x} differs"))));
            }
        }
        Ok(())
    }

    /// The checksums of `count` sectors from `logical`, out of the checksum tree. Data that was
    /// written without them has none.
    pub fn sums(&self, root: Root, logical: u64, count: usize, sector: u64) -> Result<Vec<Option<Sum>>> {
        /// Object and type of checksum items (`BTRFS_EXTENT_CSUM_OBJECTID`, `BTRFS_EXTENT_CSUM_KEY`).
        const OBJECT: u64 = -10i64 as u64;
        const EXTENT_CSUM: u8 = 128;
        let mut sums = vec![None; count];
        let end = logical.saturating_add((count as u64).saturating_mul(sector));
        let from = Key::new(OBJECT, EXTENT_CSUM, logical);
        self.walk(root, from, Start::UpTo, &mut |key, item| {
            if key >= Key::new(OBJECT, EXTENT_CSUM, end) {
                return Ok(ControlFlow::Break(()));
            }
            if (key.object, key.kind) != (OBJECT, EXTENT_CSUM) {
                return Ok(ControlFlow::Continue(()));
            }
            // The item may begin before the sectors that are wanted, or after the first of them.
            let skip = (logical.saturating_sub(key.offset) / sector) as usize;
            let place = (key.offset.saturating_sub(logical) / sector) as usize;
            let found = item.chunks_exact(self.checksum.len()).skip(skip);
            for (slot, sum) in sums.iter_mut().skip(place).zip(found) {
                let mut whole = [0; 32];
                whole.iter_mut().zip(sum).for_each(|(to, from)| *to = *from);
                *slot = Some(whole);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(sums)
    }
}
