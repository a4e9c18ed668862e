//! The content of files: extents, inline or elsewhere, plain or compressed.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, PoisonError};

use super::tree::{Key, Root, Start};
use super::{KIND, Shared, bad};
use crate::{Error, Fields, Result, decompress};

/// Type of extent items.
const EXTENT_DATA: u8 = 108;
/// Most bytes of a compressed extent, packed or not. Linux writes up to 128 KiB.
const MAX_PACKED: u64 = 1 << 20;
/// Unpacked extents that are kept.
const KEPT: usize = 8;
/// Read and checked at once.
const PIECE: usize = 512 << 10;

/// Extents that were unpacked last, by address.
#[derive(Default)]
pub struct Cache(VecDeque<(u64, Arc<Vec<u8>>)>);

/// `struct btrfs_file_extent_item`.
struct Extent<'a> {
    unpacked_len: u64,
    compression: u8,
    place: Place<'a>,
}

enum Place<'a> {
    Inline(&'a [u8]),
    /// Zeros.
    Hole(u64),
    /// Address and length on the disk, and the part of what is there that belongs here.
    Disk {
        address: u64,
        disk_len: u64,
        offset: u64,
        len: u64,
    },
}

impl<'a> Extent<'a> {
    fn parse(item: &'a [u8]) -> Result<Self> {
        let short = || bad("an extent is too short");
        let unpacked_len = item.u64_at(8).ok_or_else(short)?;
        let [compression, encryption] = item.array(16).ok_or_else(short)?;
        let other = item.u16_at(18).ok_or_else(short)?;
        if encryption != 0 || other != 0 {
            return Err(Error::unsupported(KIND, "encryption"));
        }
        let disk = || {
            let (address, disk_len) = (item.u64_at(21)?, item.u64_at(29)?);
            let (offset, len) = (item.u64_at(37)?, item.u64_at(45)?);
            Some((address, disk_len, offset, len))
        };
        let place = match item.u8_at(20).ok_or_else(short)? {
            0 => Place::Inline(item.get(21..).unwrap_or_default()),
            kind @ (1 | 2) => {
                let (address, disk_len, offset, len) = disk().ok_or_else(short)?;
                // Type 2 is allocated but was never written.
                if address == 0 || kind == 2 {
                    Place::Hole(len)
                } else {
                    Place::Disk { address, disk_len, offset, len }
                }
            }
            kind => return Err(bad(format!("extent of type {kind}"))),
        };
        Ok(Self { unpacked_len, compression, place })
    }

    /// Bytes of the file that it stands for.
    fn len(&self) -> u64 {
        match self.place {
            Place::Inline(_) => self.unpacked_len,
            Place::Hole(len) | Place::Disk { len, .. } => len,
        }
    }
}

/// Fills `to` with the content of inode `number` from `offset`.
pub fn read(shared: &Shared, root: Root, number: u64, offset: u64, to: &mut [u8]) -> Result<()> {
    to.fill(0);
    let end = offset.checked_add(to.len() as u64).ok_or_else(|| bad("size of a file"))?;
    let mut last = 0;
    let from = Key::new(number, EXTENT_DATA, offset);
    shared.trees.walk(root, from, Start::UpTo, &mut |key, item| {
        if (key.object, key.kind) != (number, EXTENT_DATA) {
            // Either what stands before the first extent, or the end.
            return Ok(if key < from { ControlFlow::Continue(()) } else { ControlFlow::Break(()) });
        }
        if key.offset >= end {
            return Ok(ControlFlow::Break(()));
        }
        let extent = Extent::parse(item)?;
        let stop = key.offset.checked_add(extent.len()).ok_or_else(|| bad("an extent is too long"))?;
        if key.offset < last {
            return Err(bad(format!("extents of inode {number} overlap")));
        }
        last = stop;
        let (first, stop) = (key.offset.max(offset), stop.min(end));
        if first < stop {
            let part = to.get_mut((first - offset) as usize..(stop - offset) as usize).unwrap_or_default();
            fill(shared, &extent, first - key.offset, part)?;
        }
        Ok(ControlFlow::Continue(()))
    })
}

/// Fills `to` from `skip` of an extent.
fn fill(shared: &Shared, extent: &Extent, skip: u64, to: &mut [u8]) -> Result<()> {
    match extent.place {
        Place::Hole(_) => Ok(()),
        Place::Inline(bytes) if extent.compression == 0 => {
            copy(bytes, skip, to);
            Ok(())
        }
        Place::Inline(bytes) => {
            copy(&unpack(shared, extent, bytes)?, skip, to);
            Ok(())
        }
        Place::Disk { address, disk_len, offset, len } if extent.compression == 0 => {
            if offset.checked_add(len).is_none_or(|end| end > disk_len) {
                return Err(bad("an extent is longer than its data"));
            }
            let start = address.checked_add(offset).and_then(|start| start.checked_add(skip));
            plain(shared, start.ok_or_else(|| bad("address of an extent"))?, to)
        }
        Place::Disk { address, disk_len, offset, .. } => {
            let bytes = unpacked(shared, extent, address, disk_len)?;
            copy(&bytes, offset.saturating_add(skip), to);
            Ok(())
        }
    }
}

/// Copies what there is; the rest stays zero.
fn copy(from: &[u8], skip: u64, to: &mut [u8]) {
    let from = usize::try_from(skip).ok().and_then(|skip| from.get(skip..)).unwrap_or_default();
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
}

/// Reads data that isn't compressed.
fn plain(shared: &Shared, address: u64, to: &mut [u8]) -> Result<()> {
    let sector = u64::from(shared.superblock.sector_size);
    let (mut at, mut to) = (address, to);
    while !to.is_empty() {
        let within = at % sector;
        if within == 0 && to.len() as u64 >= sector {
            let whole = to.len().min(PIECE) as u64 / sector * sector;
            let (now, later) = to.split_at_mut(whole as usize);
            checked(shared, at, now)?;
            at = at.checked_add(whole).ok_or_else(|| bad("address of an extent"))?;
            to = later;
        } else {
            let len = (sector - within).min(to.len() as u64);
            let mut bytes = vec![0; sector as usize];
            checked(shared, at - within, &mut bytes)?;
            let (now, later) = to.split_at_mut(len as usize);
            copy(&bytes, within, now);
            at = at.checked_add(len).ok_or_else(|| bad("address of an extent"))?;
            to = later;
        }
    }
    Ok(())
}

/// Reads whole sectors and checks them.
fn checked(shared: &Shared, address: u64, to: &mut [u8]) -> Result<()> {
    let sector = u64::from(shared.superblock.sector_size);
    let count = to.len() / sector as usize;
    let sums = match shared.checksums {
        Some(root) => shared.trees.sums(root, address, count, sector)?,
        None => Vec::new(),
    };
    shared.trees.read_data(address, to, sector as usize, &sums)
}

/// A compressed extent's content.
fn unpacked(shared: &Shared, extent: &Extent, address: u64, disk_len: u64) -> Result<Arc<Vec<u8>>> {
    let lock = || shared.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = lock().0.iter().find(|(at, _)| *at == address).map(|(_, bytes)| bytes.clone());
    if let Some(bytes) = kept {
        return Ok(bytes);
    }
    if disk_len > MAX_PACKED {
        return Err(bad("a compressed extent is too long"));
    }
    let mut packed = vec![0; disk_len as usize];
    plain(shared, address, &mut packed)?;
    let bytes = Arc::new(unpack(shared, extent, &packed)?);
    let mut cache = lock();
    if cache.0.len() >= KEPT {
        cache.0.pop_front();
    }
    cache.0.push_back((address, bytes.clone()));
    Ok(bytes)
}

fn unpack(shared: &Shared, extent: &Extent, packed: &[u8]) -> Result<Vec<u8>> {
    if extent.unpacked_len > MAX_PACKED {
        return Err(bad("a compressed extent is too long"));
    }
    let sector = shared.superblock.sector_size as usize;
    // Linux compresses whole sectors, although inline extents say how much of it counts.
    let max = (extent.unpacked_len as usize).next_multiple_of(sector);
    match extent.compression {
        1 => decompress::zlib(packed, max),
        2 => lzo(packed, sector, max),
        3 => decompress::zstd(packed, max),
        other => Err(Error::unsupported(KIND, format!("compression {other}"))),
    }
}

/// Unpacks segments of LZO: the length of all, then each with its length and one sector's content.
/// A length never crosses a sector's end; fewer than 4 bytes there are left out.
fn lzo(packed: &[u8], sector: usize, max: usize) -> Result<Vec<u8>> {
    let short = || bad("an lzo extent ends too early");
    let total = packed.u32_at(0).ok_or_else(short)? as usize;
    let packed = packed.get(..total).ok_or_else(short)?;
    let mut output = Vec::new();
    let mut at = 4;
    while at < total && output.len() < max {
        if sector - at % sector < 4 {
            at = at.next_multiple_of(sector);
            if at >= total {
                break;
            }
        }
        let len = packed.u32_at(at).ok_or_else(short)? as usize;
        at += 4;
        let segment = packed.get(at..at.saturating_add(len)).ok_or_else(short)?;
        output.extend(decompress::lzo1x(segment, sector.min(max - output.len()))?);
        at += len;
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_lzo_segments_do_not_cross_sectors() {
        // A segment that ends two bytes before the end of the first sector of 512.
        let literals = vec![b'a'; 512 - 2 - 8 - 5];
        let segment = [&[0, (literals.len() - 255 - 18) as u8][..], &literals, &[17, 0, 0]].concat();
        let segment = [&[0u8, 0][..], &segment[1..]].concat();
        let second = [21, b'b', b'b', b'b', b'b', 17, 0, 0];
        let mut packed = vec![0; 4];
        packed.extend((segment.len() as u32).to_le_bytes());
        packed.extend(&segment);
        assert_eq!(packed.len(), 511, "the next length would cross");
        packed.resize(512, 0xee);
        packed.extend(8u32.to_le_bytes());
        packed.extend(second);
        let total = packed.len() as u32;
        packed[..4].copy_from_slice(&total.to_le_bytes());
        packed.resize(1024, 0);
        let plain = lzo(&packed, 512, 1024).unwrap();
        assert_eq!(plain, [literals, b"bbbb".to_vec()].concat());
        assert!(lzo(&packed[..520], 512, 1024).is_err());
    }
}
