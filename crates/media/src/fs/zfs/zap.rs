//! ZAP objects: names with values. Small ones are one block of entries; large ones a hash table of leaves.

use std::ops::ControlFlow;

use crate::{Error, Fields, Result};

use super::KIND;
use super::dmu::Object;
use super::store::Data;

/// What the first block of each kind begins with (ZBT_*).
const MICRO: u64 = (1 << 63) + 3;
const HEADER: u64 = (1 << 63) + 1;
const LEAF: u64 = 1 << 63;
/// ZAP_MAGIC, ZAP_LEAF_MAGIC
const MAGIC: u64 = 0x0002_F52A_B2AB;
const LEAF_MAGIC: u32 = 0x02AB_1EAF;
/// Header and entries of a small one: 64 bytes each.
const MICRO_ENTRY: usize = 64;
/// Where the hash table of a leaf begins.
const LEAF_HEADER: usize = 48;
/// Size of the chunks of a leaf; they hold an entry or 21 bytes of an array.
const CHUNK: usize = 24;
const ARRAY: usize = 21;
/// Kinds of chunks.
const CHUNK_ENTRY: u8 = 252;
const CHUNK_ARRAY: u8 = 251;
/// End of a chain of chunks.
const END: u16 = 0xffff;
/// Largest table of leaves, as a power of two: a thousand million names.
const MAX_TABLE: u64 = 26;
/// Longest name, with the zero at its end: ZAP_MAXNAMELEN_NEW.
const MAX_NAME: usize = 1024;
/// Longest value: ZAP_MAXVALUELEN.
const MAX_VALUE: usize = 8192;
/// Keys are numbers: ZAP_FLAG_UINT64_KEY. No such object matters to us.
const NUMBER_KEYS: u64 = 1 << 1;
/// Hashes have 48 bits instead of 28: ZAP_FLAG_HASH64.
const LONG_HASH: u64 = 1 << 0;

/// A value: integers, stored in big-endian byte order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Bytes of an integer.
    pub width: usize,
    /// All of them.
    pub bytes: Vec<u8>,
}

impl Value {
    /// The only number.
    pub fn number(&self) -> Option<u64> {
        (self.width == 8 && self.bytes.len() == 8).then(|| self.bytes.u64_be(0))?
    }
}

/// Is called for each name.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], Value) -> ControlFlow<()>;

/// An open ZAP object.
pub struct Zap<'a> {
    object: &'a Object,
    first: Data,
    small: bool,
    /// Names are compared in a normalized form, and hashed so.
    normalized: bool,
}

fn bad(what: &str) -> Error {
    Error::corrupt(KIND, format!("a ZAP: {what}"))
}

impl<'a> Zap<'a> {
    /// Opens the object as a ZAP.
    pub fn open(object: &'a Object) -> Result<Self> {
        let first = object.block(0)?.ok_or_else(|| bad("no first block"))?;
        let (small, normalized) = match first.u64_at(0) {
            Some(MICRO) => (true, first.u64_at(16) != Some(0)),
            Some(HEADER) if first.u64_at(8) == Some(MAGIC) => (false, first.u64_at(88) != Some(0)),
            _ => return Err(bad("no magic number")),
        };
        if !small && first.u64_at(96).is_some_and(|flags| flags & NUMBER_KEYS != 0) {
            return Err(bad("its keys are numbers"));
        }
        Ok(Self { object, first, small, normalized })
    }

    /// The value of `name`.
    pub fn get(&self, name: &[u8]) -> Result<Option<Value>> {
        if !self.small && !self.normalized {
            return self.hashed(name);
        }
        self.find(|other| other == name)
    }

    /// The only number of `name`.
    pub fn number(&self, name: &str) -> Result<Option<u64>> {
        Ok(self.get(name.as_bytes())?.and_then(|value| value.number()))
    }

    /// The value of the first name that `matches`.
    pub fn find(&self, matches: impl Fn(&[u8]) -> bool) -> Result<Option<Value>> {
        let mut found = None;
        self.each(&mut |name, value| {
            if !matches(name) {
                return ControlFlow::Continue(());
            }
            found = Some(value);
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// Visits all names until `visit` breaks.
    pub fn each(&self, visit: Visit<'_>) -> Result<()> {
        if self.small {
            self.each_small(visit);
            return Ok(());
        }
        let table = self.table()?;
        let slots = 1u64 << table.shift;
        let mut slot = 0;
        while slot < slots {
            let leaf = self.leaf(&table, slot)?;
            if leaf.each(visit)?.is_break() {
                break;
            }
            // A leaf takes all slots whose numbers begin with its prefix.
            slot += 1 << (table.shift - leaf.prefix_len);
        }
        Ok(())
    }

    fn each_small(&self, visit: Visit<'_>) {
        for entry in self.first.chunks_exact(MICRO_ENTRY).skip(1) {
            let name = entry.get(14..).unwrap_or_default();
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            if name.is_empty() {
                continue;
            }
            let value = entry.u64_at(0).unwrap_or_default();
            if visit(name, Value { width: 8, bytes: value.to_be_bytes().to_vec() }).is_break() {
                return;
            }
        }
    }

    fn hashed(&self, name: &[u8]) -> Result<Option<Value>> {
        let table = self.table()?;
        let bits = if self.first.u64_at(96).unwrap_or_default() & LONG_HASH != 0 { 48 } else { 28 };
        let hash = hash(self.first.u64_at(80).unwrap_or_default(), name) & !(u64::MAX >> bits);
        let slot = hash.checked_shr(64 - table.shift).unwrap_or(0);
        self.leaf(&table, slot)?.get(name, hash)
    }

    /// The table of leaves.
    fn table(&self) -> Result<Table> {
        let field = |at| self.first.u64_at(at).unwrap_or_default();
        let (block, blocks, shift) = (field(16), field(24), field(32));
        // The table that is in the first block takes half of it.
        let size = self.first.len();
        let most = if blocks == 0 { (size / 16) as u64 } else { blocks.saturating_mul(size as u64 / 8) };
        if shift > MAX_TABLE || 1 << shift > most {
            return Err(bad("the size of the table"));
        }
        Ok(Table { start: if blocks == 0 { None } else { Some(block) }, shift: shift as u32 })
    }

    /// The leaf of a slot of the table.
    fn leaf(&self, table: &Table, slot: u64) -> Result<Leaf> {
        let size = self.first.len();
        let entry = match table.start {
            None => self.first.u64_at(size / 2 + slot as usize * 8),
            Some(start) => {
                let per_block = size as u64 / 8;
                let block = start.checked_add(slot / per_block).ok_or_else(|| bad("the table's place"))?;
                let data = self.object.block(block)?.ok_or_else(|| bad("the table has a hole"))?;
                data.u64_at((slot % per_block) as usize * 8)
            }
        };
        let block = entry.ok_or_else(|| bad("the table is cut off"))?;
        let data = self.object.block(block)?.ok_or_else(|| bad("a leaf is missing"))?;
        let leaf = Leaf::parse(data)?;
        if leaf.prefix_len > table.shift || slot >> (table.shift - leaf.prefix_len) != leaf.prefix {
            return Err(bad("a leaf is in the wrong slot"));
        }
        Ok(leaf)
    }
}

struct Table {
    /// Its first block; `None`: it is in the header.
    start: Option<u64>,
    shift: u32,
}

struct Leaf {
    data: Data,
    prefix: u64,
    prefix_len: u32,
    /// Heads of chains.
    heads: usize,
    chunks: usize,
}

impl Leaf {
    fn parse(data: Data) -> Result<Self> {
        if data.u64_at(0) != Some(LEAF) || data.u32_at(24) != Some(LEAF_MAGIC) {
            return Err(bad("a leaf without its magic number"));
        }
        // A head for each 32 bytes of the block; two chunks' worth of space is given up for the header.
        let heads = data.len() / 32;
        let chunks = (data.len().saturating_sub(heads * 2) / CHUNK).saturating_sub(2);
        let prefix = data.u64_at(16).unwrap_or_default();
        let prefix_len = u32::from(data.u16_at(32).unwrap_or_default());
        if !heads.is_power_of_two() || prefix_len > 63 - heads.ilog2() {
            return Err(bad("the size of a leaf"));
        }
        Ok(Self { data, prefix, prefix_len, heads, chunks })
    }

    fn chunk(&self, index: u16) -> Option<&[u8]> {
        let index = usize::from(index);
        let start = LEAF_HEADER + self.heads * 2 + index * CHUNK;
        self.data.get(start..start + CHUNK).filter(|_| index < self.chunks)
    }

    fn each(&self, visit: Visit<'_>) -> Result<ControlFlow<()>> {
        for index in 0..self.chunks.min(usize::from(END)) {
            let Some(entry) = self.chunk(index as u16).filter(|entry| entry.first() == Some(&CHUNK_ENTRY))
            else {
                continue;
            };
            let name = self.name(entry)?;
            if visit(&name, self.value(entry)?).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn get(&self, name: &[u8], hash: u64) -> Result<Option<Value>> {
        let place = (hash << self.prefix_len) >> (64 - self.heads.ilog2());
        let mut next = self.data.u16_at(LEAF_HEADER + place as usize * 2).unwrap_or(END);
        for _ in 0..self.chunks {
            if next == END {
                break;
            }
            let entry = self.chunk(next).filter(|entry| entry.first() == Some(&CHUNK_ENTRY));
            let entry = entry.ok_or_else(|| bad("a chain leads astray"))?;
            if entry.u64_at(16) == Some(hash) && self.name(entry)? == name {
                return self.value(entry).map(Some);
            }
            next = entry.u16_at(2).unwrap_or(END);
        }
        Ok(None)
    }

    /// The name of an entry, without the zero that is stored after it.
    fn name(&self, entry: &[u8]) -> Result<Vec<u8>> {
        let len = usize::from(entry.u16_at(6).unwrap_or_default());
        if len == 0 || len > MAX_NAME {
            return Err(bad("the length of a name"));
        }
        let mut name = self.array(entry.u16_at(4).unwrap_or(END), len)?;
        name.pop();
        Ok(name)
    }

    fn value(&self, entry: &[u8]) -> Result<Value> {
        let width = usize::from(entry.u8_at(1).unwrap_or_default());
        let count = usize::from(entry.u16_at(10).unwrap_or_default());
        let len = width * count;
        if !matches!(width, 1 | 2 | 4 | 8) || len > MAX_VALUE {
            return Err(bad("the size of a value"));
        }
        Ok(Value { width, bytes: self.array(entry.u16_at(8).unwrap_or(END), len)? })
    }

    fn array(&self, mut next: u16, len: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let chunk = self.chunk(next).filter(|chunk| chunk.first() == Some(&CHUNK_ARRAY));
            let chunk = chunk.ok_or_else(|| bad("an array leads astray"))?;
            let piece = chunk.get(1..=ARRAY).unwrap_or_default();
            bytes.extend_from_slice(&piece[..ARRAY.min(len - bytes.len())]);
            next = chunk.u16_at(22).unwrap_or(END);
        }
        Ok(bytes)
    }
}

/// CRC-64 with the polynomial of ECMA-182, reflected; it starts with the object's salt.
fn hash(salt: u64, name: &[u8]) -> u64 {
    name.iter().fold(salt, |crc, byte| (crc >> 8) ^ CRC[((crc ^ u64::from(*byte)) & 0xff) as usize])
}

const CRC: [u64; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = index as u64;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xC96C_5795_D787_0F42 } else { crc >> 1 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
};
