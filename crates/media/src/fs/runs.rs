//! Files as runs of blocks: what readers of file systems with extents share.

use std::ops::ControlFlow;

use crate::{Error, Result};

/// Blocks that follow each other both in the file and on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// First block in the file.
    pub logical: u64,
    /// First block on the disk.
    pub physical: u64,
    /// How many.
    pub count: u64,
}

/// Called for each run in ascending order; what lies between runs is a hole.
pub(crate) type Visit<'a> = dyn FnMut(Run) -> Result<ControlFlow<()>> + 'a;

/// Fills a caller's buffer with runs and, between them, zeros. Whole runs go straight into it.
pub(crate) struct Filler<'a> {
    kind: &'static str,
    block_size: u64,
    offset: u64,
    /// Up to here it is filled.
    filled: u64,
    to: &'a mut [u8],
}

impl<'a> Filler<'a> {
    /// For the bytes of a file from `offset` on. `kind` is for messages.
    pub fn new(kind: &'static str, block_size: u64, offset: u64, to: &'a mut [u8]) -> Self {
        Self { kind, block_size, offset, filled: offset, to }
    }

    /// One past the last byte that is wanted.
    fn end(&self) -> u64 {
        self.offset + self.to.len() as u64
    }

    /// The blocks that are wanted.
    pub fn blocks(&self) -> std::ops::Range<u64> {
        self.offset / self.block_size..self.end().div_ceil(self.block_size)
    }

    fn part(&mut self, from: u64, until: u64) -> Result<&mut [u8]> {
        let range = from.checked_sub(self.offset).zip(until.checked_sub(self.offset));
        let part = range.and_then(|(from, until)| self.to.get_mut(from as usize..until as usize));
        part.ok_or_else(|| Error::corrupt(self.kind, "blocks of a file overlap"))
    }

    /// Adds a run: `read` gets how many bytes into the run to start, and where to.
    pub fn add(&mut self, run: Run, read: impl FnOnce(u64, &mut [u8]) -> Result<()>) -> Result<()> {
        let first = run.logical.saturating_mul(self.block_size);
        let last = run.logical.saturating_add(run.count).saturating_mul(self.block_size);
        let (start, stop) = (first.max(self.offset), last.min(self.end()));
        let hole = self.filled;
        self.part(hole, start)?.fill(0);
        read(start - first, self.part(start, stop)?)?;
        self.filled = stop;
        Ok(())
    }

    /// Zeros for the rest.
    pub fn finish(mut self) -> Result<()> {
        let (filled, end) = (self.filled, self.end());
        self.part(filled, end)?.fill(0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::unnecessary_wraps, reason = "as reading has it")]
    fn fill(part: &mut [u8], byte: u8) -> Result<()> {
        part.fill(byte);
        Ok(())
    }

    #[test]
    fn holes_are_zeros_and_runs_keep_their_order() {
        let mut to = [9; 20];
        let mut filler = Filler::new("test", 8, 5, &mut to);
        assert_eq!(filler.blocks(), 0..4);
        let run = |logical, count| Run { logical, physical: 1, count };
        filler.add(run(1, 1), |skip, part| fill(part, skip as u8 + 1)).unwrap();
        filler.add(run(3, 5), |skip, part| fill(part, skip as u8 + 2)).unwrap();
        assert!(filler.add(run(1, 1), |_, _| Ok(())).is_err());
        filler.finish().unwrap();
        assert_eq!(to, [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    }
}
