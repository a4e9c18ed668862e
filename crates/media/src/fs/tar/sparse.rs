//! Files with holes, as GNU tar stores them ("Storing Sparse Files" in its manual).

use super::archive::{Body, Item, Piece};
use super::bad;
use super::header::{BLOCK, number};
use super::pax::Records;
use crate::{Error, Fields, Result, SourceRef};

/// Most pieces of a file.
const MAX_PIECES: usize = 500_000;

/// Where the pieces of a file belong: offset and length.
#[derive(Default)]
pub struct Map(Vec<(u64, u64)>);

impl Map {
    fn push(&mut self, at: u64, len: u64) -> Result<()> {
        if self.0.len() >= MAX_PIECES {
            return Err(Error::TooLarge("the map of a file with holes".into()));
        }
        if len > 0 {
            self.0.push((at, len));
        }
        Ok(())
    }

    /// Adds the `count` pairs at `at` in a block of the GNU format; whether the byte at `more` says
    /// that another block follows.
    pub fn add_block(&mut self, block: &[u8], at: usize, count: usize, more: usize) -> Result<bool> {
        for pair in block.get(at..at + 24 * count).unwrap_or_default().chunks_exact(24) {
            let (offset, len) = pair.split_at(12);
            if offset.first() == Some(&0) {
                break;
            }
            let pair = number(offset).zip(number(len));
            let (offset, len) = pair.ok_or_else(|| bad("the map of a file with holes"))?;
            self.push(offset, len)?;
        }
        Ok(block.u8_at(more).is_some_and(|more| more != 0))
    }

    /// The file: its pieces lie one after the other at `place`, `stored` bytes in all.
    pub fn finish(self, place: u64, stored: u64, size: u64) -> Result<Item> {
        let damaged = || bad("the map of a file with holes");
        let (mut pieces, mut used, mut last) = (Vec::new(), 0u64, 0);
        for (at, len) in self.0 {
            let end = at.checked_add(len).filter(|end| *end <= size && at >= last).ok_or_else(damaged)?;
            let place = place.checked_add(used).ok_or_else(damaged)?;
            used = used.checked_add(len).filter(|used| *used <= stored).ok_or_else(damaged)?;
            pieces.push(Piece { at, place, len });
            last = end;
        }
        Ok(Item { size, modified: None, body: Body::File(pieces) })
    }
}

/// A file whose map is in pax records, or before its data (format 1.0).
pub fn from_records(source: &SourceRef, at: u64, stored: u64, records: &Records) -> Result<Item> {
    let mut map = Map::default();
    let real = records.real_size.ok_or_else(|| bad("a file with holes has no size"))?;
    if records.sparse_major.unwrap_or(0) == 0 {
        for pair in records.map.chunks_exact(2) {
            if let [at, len] = pair {
                map.push(*at, *len)?;
            }
        }
        return map.finish(at, stored, real);
    }
    let mut lines = Lines { source, at, end: at.saturating_add(stored), rest: Vec::new() };
    let count = lines.number()?;
    for _ in 0..count {
        let (at, len) = (lines.number()?, lines.number()?);
        map.push(at, len)?;
    }
    // The map fills whole blocks.
    let used = lines.at - at;
    map.finish(lines.at, stored.saturating_sub(used), real)
}

/// Decimal numbers, one a line.
struct Lines<'a> {
    source: &'a SourceRef,
    /// The next block.
    at: u64,
    end: u64,
    /// What is left of the last one, backwards.
    rest: Vec<u8>,
}

impl Lines<'_> {
    fn number(&mut self) -> Result<u64> {
        let damaged = || bad("the map of a file with holes");
        let mut value = 0u64;
        loop {
            let Some(byte) = self.rest.pop() else {
                if self.at >= self.end || self.end - self.at > i64::MAX as u64 {
                    return Err(damaged());
                }
                self.rest = self.source.read_vec(self.at, BLOCK as usize)?;
                self.rest.reverse();
                self.at += BLOCK;
                continue;
            };
            match byte {
                b'\n' => return Ok(value),
                b'0'..=b'9' => {
                    let next =
                        value.checked_mul(10).and_then(|value| value.checked_add((byte - b'0').into()));
                    value = next.ok_or_else(damaged)?;
                }
                _ => return Err(damaged()),
            }
        }
    }
}
