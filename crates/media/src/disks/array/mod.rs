//! Bytes that are spread over several devices: what LVM and software RAID are made of.

use crate::source::check;
use crate::{Error, Result, Source, SourceRef};

pub mod layout;
mod parity;
mod raid10;
#[cfg(test)]
mod tests;

pub use parity::Parity;
pub use raid10::Raid10;

/// Devices one after the other.
pub struct Concat {
    /// Where each begins.
    parts: Vec<(u64, SourceRef)>,
    size: u64,
}

impl Concat {
    /// `None` if the sizes don't add up to a number.
    pub fn new(sources: impl IntoIterator<Item = SourceRef>) -> Option<Self> {
        let mut size = 0u64;
        let mut parts = Vec::new();
        for source in sources {
            let start = size;
            size = size.checked_add(source.size())?;
            parts.push((start, source));
        }
        Some(Self { parts, size })
    }
}

impl Source for Concat {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        check(self.size, offset, to.len() as u64)?;
        let first = self.parts.partition_point(|(start, _)| *start <= offset).saturating_sub(1);
        let mut rest = to;
        let mut at = offset;
        for (start, source) in self.parts.get(first..).unwrap_or_default() {
            let within = at - start;
            let here = source.size().saturating_sub(within).min(rest.len() as u64) as usize;
            let (part, after) = rest.split_at_mut(here);
            if !part.is_empty() {
                source.read_at(within, part)?;
            }
            at += here as u64;
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        Ok(())
    }
}

/// Zeros.
pub struct Zeros(pub u64);

impl Source for Zeros {
    fn size(&self) -> u64 {
        self.0
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        check(self.0, offset, to.len() as u64)?;
        to.fill(0);
        Ok(())
    }
}

/// The same bytes on each device: the first that can be read is.
pub struct Mirror {
    legs: Vec<SourceRef>,
    size: u64,
}

impl Mirror {
    /// The first `size` bytes of each of `legs`; those that are shorter are left out.
    pub fn new(mut legs: Vec<SourceRef>, size: u64) -> Self {
        legs.retain(|leg| leg.size() >= size);
        Self { legs, size }
    }
}

impl Source for Mirror {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        check(self.size, offset, to.len() as u64)?;
        let mut last = Err(missing("mirror"));
        for leg in &self.legs {
            last = leg.read_at(offset, to);
            if last.is_ok() {
                break;
            }
        }
        last
    }
}

/// Chunks in turn from each device. Where some are longer than others, the rest is striped over
/// those that are left: a zone.
pub struct Striped {
    zones: Vec<Zone>,
    chunk: u64,
    size: u64,
    /// Whether the first chunk of a zone is on the zone's first device; else devices are counted on
    /// from the start of the array.
    restart: bool,
}

struct Zone {
    /// Where it begins, and where on each device.
    start: u64,
    offset: u64,
    legs: Vec<SourceRef>,
}

impl Striped {
    /// Stripes over all of `legs`, whole chunks. `None` without legs or with a chunk of zero bytes.
    pub fn new(legs: Vec<SourceRef>, chunk: u64, restart: bool) -> Option<Self> {
        let usable = |leg: &SourceRef| leg.size().checked_div(chunk).map_or(0, |chunks| chunks * chunk);
        let mut zones = Vec::new();
        let (mut size, mut offset) = (0u64, 0);
        let mut left = legs;
        loop {
            left.retain(|leg| usable(leg) > offset);
            let Some(end) = left.iter().map(usable).min() else { break };
            zones.push(Zone { start: size, offset, legs: left.clone() });
            size = size.checked_add((end - offset).checked_mul(left.len() as u64)?)?;
            offset = end;
        }
        (size > 0).then_some(Self { zones, chunk, size, restart })
    }

    /// Whether the devices differ in length.
    pub fn has_zones(&self) -> bool {
        self.zones.len() > 1
    }
}

impl Source for Striped {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        check(self.size, offset, to.len() as u64)?;
        pieces(self.chunk, offset, to, |at, piece| {
            let zone = self.zones.iter().rev().find(|zone| zone.start <= at);
            let zone = zone.ok_or_else(|| missing("stripe"))?;
            let count = zone.legs.len() as u64;
            let chunk = (at - zone.start) / self.chunk;
            let turn = if self.restart { chunk } else { at / self.chunk };
            let leg = zone.legs.get((turn % count) as usize).ok_or_else(|| missing("stripe"))?;
            leg.read_at(zone.offset + chunk / count * self.chunk + at % self.chunk, piece)
        })
    }
}

/// Calls `read` for each part of `to` that lies in one chunk.
fn pieces(
    chunk: u64,
    offset: u64,
    to: &mut [u8],
    mut read: impl FnMut(u64, &mut [u8]) -> Result<()>,
) -> Result<()> {
    let mut at = offset;
    let mut rest = to;
    while !rest.is_empty() {
        let here = (chunk - at % chunk).min(rest.len() as u64) as usize;
        let (piece, after) = rest.split_at_mut(here);
        read(at, piece)?;
        at += here as u64;
        rest = after;
    }
    Ok(())
}

/// The error for a device that is needed and isn't there.
fn missing(kind: &'static str) -> Error {
    Error::corrupt(kind, "too many devices are missing")
}
