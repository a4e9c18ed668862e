//! Which blocks a file's bytes are in: extents, or direct and indirect pointers.

use std::ops::{ControlFlow, Range};

use super::super::runs::{Run, Visit};
use super::{KIND, Volume};
use crate::{Error, Fields, Result};

/// `eh_magic`.
const EXTENT_MAGIC: u16 = 0xf30a;
/// Deepest tree of extents (`EXT4_MAX_EXTENT_DEPTH`).
const MAX_DEPTH: u16 = 5;
/// A longer extent is one that was reserved and not yet written: `ee_len - 0x8000` blocks of zeros.
const MAX_WRITTEN: u64 = 0x8000;

/// Visits the runs of a file among the blocks `range`. `block` is `i_block`.
pub fn runs(
    volume: &Volume,
    block: &[u8; 60],
    extents: bool,
    range: Range<u64>,
    visit: &mut Visit,
) -> Result<()> {
    if extents {
        let _ = walk_extents(volume, block, None, range, visit)?;
    } else {
        let mut merge = Merge { visit, pending: None };
        if pointers(volume, block, &range, &mut merge)?.is_continue() {
            let _ = merge.flush()?;
        }
    }
    Ok(())
}

fn bad(what: impl Into<String>) -> Error {
    Error::corrupt(KIND, what)
}

/// Each node covers less than its parent and each index entry starts after the one before it, so
/// there are no more steps than blocks in `range`, times the depth.
fn walk_extents(
    volume: &Volume,
    node: &[u8],
    expected: Option<u16>,
    range: Range<u64>,
    visit: &mut Visit,
) -> Result<ControlFlow<()>> {
    let field = |at| node.u16_at(at).unwrap_or(0);
    let (entries, depth) = (usize::from(field(2)), field(6));
    if field(0) != EXTENT_MAGIC || depth > MAX_DEPTH || expected.is_some_and(|expected| expected != depth) {
        return Err(bad("header of an extent tree"));
    }
    let entries = node.get(12..12 + entries * 12).ok_or_else(|| bad("too many extents in a block"))?;
    let mut from = 0;
    let mut list = entries.chunks_exact(12).peekable();
    while let Some(entry) = list.next() {
        let start = u64::from(entry.u32_at(0).unwrap_or(0));
        if start < from {
            return Err(bad("extents out of order"));
        }
        if start >= range.end {
            break;
        }
        if depth == 0 {
            let len = u64::from(entry.u16_at(4).unwrap_or(0));
            let (len, written) = if len > MAX_WRITTEN { (len - MAX_WRITTEN, false) } else { (len, true) };
            from = start + len;
            let (first, end) = (start.max(range.start), from.min(range.end));
            if first >= end || !written {
                continue;
            }
            let high = u64::from(entry.u16_at(6).unwrap_or(0)) << 32;
            let physical = (u64::from(entry.u32_at(8).unwrap_or(0)) | high) + (first - start);
            if visit(Run { logical: first, physical, count: end - first })?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            continue;
        }
        from = start + 1;
        let next = list.peek().map_or(u64::MAX, |next| u64::from(next.u32_at(0).unwrap_or(0)));
        let part = start.max(range.start)..next.min(range.end);
        if part.is_empty() {
            continue;
        }
        let child = u64::from(entry.u32_at(4).unwrap_or(0)) | u64::from(entry.u16_at(8).unwrap_or(0)) << 32;
        let child = volume.block(child)?;
        if walk_extents(volume, &child, Some(depth - 1), part, visit)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Joins neighbours into runs.
struct Merge<'a, 'b> {
    visit: &'a mut Visit<'b>,
    pending: Option<Run>,
}

impl Merge<'_, '_> {
    fn add(&mut self, logical: u64, physical: u64) -> Result<ControlFlow<()>> {
        if let Some(run) = &mut self.pending
            && run.logical + run.count == logical
            && run.physical + run.count == physical
        {
            run.count += 1;
            return Ok(ControlFlow::Continue(()));
        }
        let flow = self.flush()?;
        self.pending = Some(Run { logical, physical, count: 1 });
        Ok(flow)
    }

    fn flush(&mut self) -> Result<ControlFlow<()>> {
        match self.pending.take() {
            Some(run) => (self.visit)(run),
            None => Ok(ControlFlow::Continue(())),
        }
    }
}

/// 12 pointers to blocks, then one each to a block of pointers, of pointers to those, and so on.
fn pointers(
    volume: &Volume,
    block: &[u8; 60],
    range: &Range<u64>,
    merge: &mut Merge,
) -> Result<ControlFlow<()>> {
    let per_block = volume.sb.block_size / 4;
    let mut base = 0;
    for (index, pointer) in block.chunks_exact(4).enumerate() {
        let pointer = u64::from(pointer.u32_at(0).unwrap_or(0));
        let level = index.saturating_sub(11) as u32;
        if base >= range.end {
            break;
        }
        if indirect(volume, pointer, level, base, range, merge)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        base += per_block.pow(level);
    }
    Ok(ControlFlow::Continue(()))
}

/// The part within `range` of what is `level` blocks of pointers away. `base` is its first block.
fn indirect(
    volume: &Volume,
    pointer: u64,
    level: u32,
    base: u64,
    range: &Range<u64>,
    merge: &mut Merge,
) -> Result<ControlFlow<()>> {
    let per_block = volume.sb.block_size / 4;
    let end = base + per_block.pow(level);
    if pointer == 0 || base >= range.end || end <= range.start {
        return Ok(ControlFlow::Continue(()));
    }
    if level == 0 {
        return merge.add(base, pointer);
    }
    let span = per_block.pow(level - 1);
    let table = volume.block(pointer)?;
    let first = range.start.saturating_sub(base) / span;
    let last = (range.end - base).div_ceil(span).min(per_block);
    for index in first..last {
        let next = u64::from(table.u32_at(index as usize * 4).unwrap_or(0));
        if indirect(volume, next, level - 1, base + index * span, range, merge)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}
