//! Linux's RAID 10: each chunk has several copies, near, far or at an offset.

use super::{missing, pieces};
use crate::source::check;
use crate::{Result, Source, SourceRef};

/// An array of copies in stripes.
pub struct Raid10 {
    legs: Vec<Option<SourceRef>>,
    near: u64,
    far: u64,
    /// From one far copy to the next on a device, in bytes.
    stride: u64,
    /// Whether far copies follow each stripe instead of all stripes.
    offset: bool,
    chunk: u64,
    size: u64,
}

impl Raid10 {
    /// Whole chunks of `member` bytes of each of `legs`; `layout` as in md's metadata: near copies
    /// in the low byte, far copies in the next, bit 16 for offset. `None` if that is no array.
    pub fn new(legs: Vec<Option<SourceRef>>, layout: u32, chunk: u64, member: u64) -> Option<Self> {
        let (near, far) = (u64::from(layout & 0xff), u64::from(layout >> 8 & 0xff));
        let offset = layout >> 16 == 1;
        let devices = legs.len() as u64;
        if layout >> 17 != 0 || near == 0 || far == 0 || near * far > devices {
            return None;
        }
        // All in chunks, rounded as the kernel does it.
        let rows = member.checked_div(chunk)? / far;
        let chunks = rows.checked_mul(devices)? / near;
        let used = chunks.checked_mul(near * far)?.div_ceil(devices);
        let stride = if offset { 1 } else { used / far };
        let size = chunks.checked_mul(chunk)?;
        (size > 0).then_some(Self { legs, near, far, stride: stride * chunk, offset, chunk, size })
    }

    /// Whether some copy of every chunk is there.
    pub fn complete(&self) -> bool {
        let devices = self.legs.len() as u64;
        // The pattern repeats after as many chunks as there are devices.
        (0..devices.min(self.size / self.chunk)).all(|chunk| {
            self.copies(chunk).any(|(device, _)| self.legs.get(device).is_some_and(Option::is_some))
        })
    }

    /// Device and place of each copy of a chunk.
    pub(super) fn copies(&self, chunk: u64) -> impl Iterator<Item = (usize, u64)> {
        let devices = self.legs.len() as u64;
        let first = chunk * self.near;
        (0..self.near).flat_map(move |n| {
            let device = (first + n) % devices;
            let row = (first + n) / devices;
            // A row of offset copies takes as many rows on the devices.
            let start = if self.offset {
                // All near copies belong to the row of the first one.
                let base = first / devices;
                base * self.far + (row - base)
            } else {
                row
            };
            (0..self.far).map(move |f| {
                (((device + f * self.near) % devices) as usize, start * self.chunk + f * self.stride)
            })
        })
    }
}

impl Source for Raid10 {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        check(self.size, offset, to.len() as u64)?;
        pieces(self.chunk, offset, to, |at, piece| {
            let mut last = Err(missing("raid10"));
            for (device, place) in self.copies(at / self.chunk) {
                if let Some(Some(leg)) = self.legs.get(device) {
                    last = leg.read_at(place + at % self.chunk, piece);
                    if last.is_ok() {
                        break;
                    }
                }
            }
            last
        })
    }
}
