//! Objects: what blocks belong to them, and the sets that they form.

use std::sync::Arc;

use crate::{Error, Fields, Result};

use super::KIND;
use super::block::{POINTER, Pointer};
use super::store::{Data, Store};

/// Unit of dnodes.
const DNODE: usize = 512;
/// Where a dnode's pointers begin.
const POINTERS: usize = 64;
/// Deepest tree of indirect blocks: with the smallest of them, one level more than 64 bits need.
const MAX_LEVELS: u8 = 34;
/// Flag of a dnode with a pointer to a spill block at its end.
const SPILL: u8 = 1 << 2;

/// Kinds of objects and of bonus buffers (`dmu_object_type_t`).
pub mod kind {
    pub const PACKED_NVLIST: u8 = 3;
    pub const DNODE: u8 = 10;
    pub const DSL_DIR: u8 = 12;
    pub const DSL_DATASET: u8 = 16;
    pub const ZNODE: u8 = 17;
    pub const FILE: u8 = 19;
    pub const DIRECTORY: u8 = 20;
    pub const SA: u8 = 44;
}

/// What an object is and where its blocks are.
#[derive(Clone)]
pub struct Dnode {
    /// Kind of object.
    pub kind: u8,
    /// Kind of bonus buffer.
    pub bonus_kind: u8,
    /// Bytes of a block.
    pub block_size: usize,
    /// The last block.
    last: u64,
    levels: u8,
    indirect_shift: u8,
    pointers: usize,
    bonus_len: usize,
    raw: Vec<u8>,
}

impl Dnode {
    /// Parses a dnode at the start of `bytes`; `None` if there is no object.
    fn parse(bytes: &[u8]) -> Result<Option<Self>> {
        let dnode = Self::fields(bytes).ok_or_else(|| Error::corrupt(KIND, "a dnode is cut off"))?;
        if dnode.kind == 0 {
            return Ok(None);
        }
        let end = POINTERS + dnode.pointers * POINTER + dnode.bonus_len;
        let sound = (1..=3).contains(&dnode.pointers)
            && end <= dnode.raw.len()
            && (1..=MAX_LEVELS).contains(&dnode.levels)
            && (dnode.levels == 1 || (8..=24).contains(&dnode.indirect_shift));
        if !sound {
            return Err(Error::corrupt(KIND, format!("a dnode of type {}", dnode.kind)));
        }
        Ok(Some(dnode))
    }

    fn fields(bytes: &[u8]) -> Option<Self> {
        let extra = usize::from(bytes.u8_at(12)?);
        let raw = bytes.get(..DNODE * (1 + extra))?.to_vec();
        Some(Self {
            kind: raw.u8_at(0)?,
            indirect_shift: raw.u8_at(1)?,
            levels: raw.u8_at(2)?,
            pointers: raw.u8_at(3)?.into(),
            bonus_kind: raw.u8_at(4)?,
            block_size: usize::from(raw.u16_at(8)?) * 512,
            bonus_len: raw.u16_at(10)?.into(),
            last: raw.u64_at(16)?,
            raw,
        })
    }

    /// The bonus buffer.
    pub fn bonus(&self) -> &[u8] {
        let start = POINTERS + self.pointers * POINTER;
        self.raw.get(start..start + self.bonus_len).unwrap_or_default()
    }

    fn pointer(&self, index: u64) -> Result<Pointer> {
        if index >= self.pointers as u64 {
            return Ok(Pointer::Hole);
        }
        Pointer::parse(self.raw.get(POINTERS + index as usize * POINTER..).unwrap_or_default())
    }

    /// The pointer to more of the bonus.
    fn spill(&self) -> Result<Pointer> {
        if self.raw.u8_at(7).unwrap_or_default() & SPILL == 0 {
            return Ok(Pointer::Hole);
        }
        Pointer::parse(self.raw.get(self.raw.len() - POINTER..).unwrap_or_default())
    }
}

/// An object.
#[derive(Clone)]
pub struct Object {
    store: Arc<Store>,
    /// What it is.
    pub dnode: Dnode,
}

impl Object {
    /// Block `id`; `None` if it is a hole.
    pub fn block(&self, id: u64) -> Result<Option<Data>> {
        let dnode = &self.dnode;
        if id > dnode.last {
            return Ok(None);
        }
        let per_block = u32::from(dnode.indirect_shift.saturating_sub(7));
        let index = |level: u8| id.checked_shr(per_block * u32::from(level)).unwrap_or(0);
        let mut level = dnode.levels - 1;
        let mut pointer = dnode.pointer(index(level))?;
        loop {
            if pointer.level().is_some_and(|found| found != level) {
                return Err(Error::corrupt(KIND, "a block is on the wrong level"));
            }
            let Some(data) = self.store.read(&pointer)? else { return Ok(None) };
            if level == 0 {
                return Ok(Some(data));
            }
            level -= 1;
            let place = (index(level) & ((1 << per_block) - 1)) as usize * POINTER;
            // An embedded block may be cut where only zeros follow.
            pointer = match data.get(place..) {
                Some(bytes) if bytes.len() >= POINTER => Pointer::parse(bytes)?,
                _ => Pointer::Hole,
            };
        }
    }

    /// Fills `to` with the bytes from `offset`. Holes and what is past the last block are zeros.
    pub fn read_at(&self, mut offset: u64, mut to: &mut [u8]) -> Result<()> {
        let size = self.dnode.block_size;
        if size == 0 {
            to.fill(0);
            return Ok(());
        }
        while !to.is_empty() {
            let (id, start) = (offset / size as u64, (offset % size as u64) as usize);
            let (piece, rest) = to.split_at_mut(to.len().min(size - start));
            match self.block(id)? {
                Some(data) => {
                    let from = data.get(start..).unwrap_or_default();
                    let len = from.len().min(piece.len());
                    piece[..len].copy_from_slice(&from[..len]);
                    piece[len..].fill(0);
                }
                None => piece.fill(0),
            }
            offset += piece.len() as u64;
            to = rest;
        }
        Ok(())
    }

    /// The block with what didn't fit into the bonus buffer.
    pub fn spill(&self) -> Result<Option<Data>> {
        self.store.read(&self.dnode.spill()?)
    }
}

/// A set of objects: a file system, a volume, or that of the pool itself.
pub struct ObjectSet {
    meta: Object,
    /// 1: the pool's own; 2: file system; 3: volume (`dmu_objset_type_t`).
    pub kind: u64,
}

impl ObjectSet {
    /// The set that `pointer` points to.
    pub fn open(store: &Arc<Store>, pointer: &Pointer) -> Result<Self> {
        let bad = || Error::corrupt(KIND, "an object set");
        let data = store.read(pointer)?.ok_or_else(bad)?;
        let dnode = Dnode::parse(&data)?.filter(|dnode| dnode.kind == kind::DNODE).ok_or_else(bad)?;
        // After the dnode and the header of the intent log (192 bytes).
        let kind = data.u64_at(704).ok_or_else(bad)?;
        if dnode.block_size < DNODE {
            return Err(bad());
        }
        Ok(Self { meta: Object { store: store.clone(), dnode }, kind })
    }

    /// Object `id`; an error if there is none.
    pub fn object(&self, id: u64) -> Result<Object> {
        let bad = || Error::corrupt(KIND, format!("there is no object {id}"));
        let per_block = (self.meta.dnode.block_size / DNODE) as u64;
        let data = self.meta.block(id / per_block)?.ok_or_else(bad)?;
        let bytes = data.get((id % per_block) as usize * DNODE..).ok_or_else(bad)?;
        let dnode = Dnode::parse(bytes)?.filter(|_| id != 0).ok_or_else(bad)?;
        Ok(Object { store: self.meta.store.clone(), dnode })
    }

    /// Object `id` if its bonus buffer is of the kind `bonus`.
    pub fn object_with(&self, id: u64, bonus: u8) -> Result<Object> {
        let object = self.object(id)?;
        if object.dnode.bonus_kind != bonus {
            return Err(Error::corrupt(KIND, format!("object {id} is not what it should be")));
        }
        Ok(object)
    }

    /// Where blocks come from.
    pub fn store(&self) -> &Arc<Store> {
        &self.meta.store
    }
}
