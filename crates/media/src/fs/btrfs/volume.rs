//! Devices and chunks: from logical addresses to bytes.

use std::collections::BTreeMap;

use super::superblock::{DeviceUuid, Superblock};
use super::{bad, parity};
use crate::{Error, Fields, Result, SourceRef};

/// Most chunks, and most of their stripes: about 32 MiB. A chunk holds 1 GiB as a rule.
const MAX_STRIPES: usize = 500_000;

/// Profiles in a chunk's type.
const RAID0: u64 = 1 << 3;
const RAID1: u64 = 1 << 4;
const DUP: u64 = 1 << 5;
const RAID10: u64 = 1 << 6;
const RAID5: u64 = 1 << 7;
const RAID6: u64 = 1 << 8;
const RAID1C3: u64 = 1 << 9;
const RAID1C4: u64 = 1 << 10;
const PROFILES: u64 = 0x7f8;

/// A device that is there.
struct Device {
    uuid: DeviceUuid,
    source: SourceRef,
    /// It has missed commits: used only where no other has the bytes.
    stale: bool,
}

/// All devices and chunks of a file system.
pub struct Volume {
    devices: Vec<Device>,
    chunks: BTreeMap<u64, Chunk>,
    stripes: usize,
}

#[derive(Clone, Copy)]
enum Profile {
    /// Every stripe has everything.
    Mirrored,
    /// Striped over groups of so many copies.
    Striped(usize),
    /// So many of the stripes are parity, in turn.
    Parity(usize),
}

struct Chunk {
    length: u64,
    stripe_len: u64,
    profile: Profile,
    stripes: Vec<Stripe>,
}

struct Stripe {
    /// Among those that are there.
    device: Option<usize>,
    id: u64,
    offset: u64,
}

impl Volume {
    /// The devices of a file system among `peers`, and the superblock to go by.
    pub fn new(source: &SourceRef, found: Superblock, peers: &[SourceRef]) -> (Self, Superblock) {
        let mut newest = found.clone();
        let mut members = vec![(source.clone(), found)];
        // A single device may have a seed: then it needs peers, although it counts one device only.
        for peer in peers {
            let Ok(Some(other)) = Superblock::read(peer) else { continue };
            let known = members.iter().position(|(_, member)| member.device == other.device);
            if other.fsid == newest.fsid && other.generation > newest.generation {
                newest = other.clone();
            }
            match known {
                Some(0) => {}
                Some(place) => {
                    if let Some(member) = members.get_mut(place).filter(|m| m.1.generation < other.generation)
                    {
                        *member = (peer.clone(), other);
                    }
                }
                None => members.push((peer.clone(), other)),
            }
        }
        let devices = members
            .into_iter()
            .map(|(source, member)| Device {
                uuid: member.device,
                source,
                stale: member.fsid == newest.fsid && member.generation < newest.generation,
            })
            .collect();
        (Self { devices, chunks: BTreeMap::new(), stripes: 0 }, newest)
    }

    /// Adds the chunks of a superblock's array: keys, each with its item.
    pub fn add_system(&mut self, array: &[u8]) -> Result<()> {
        let mut rest = array;
        while !rest.is_empty() {
            let logical = rest.u64_at(9).ok_or_else(|| bad("system chunks"))?;
            let item = rest.get(17..).unwrap_or_default();
            let len = self.add(logical, item)?;
            rest = item.get(len..).unwrap_or_default();
        }
        Ok(())
    }

    /// Adds a chunk from its item; returns the item's length.
    pub fn add(&mut self, logical: u64, item: &[u8]) -> Result<usize> {
        let damaged = || bad(format!("chunk at {logical:#x}"));
        let count = item.u16_at(44).ok_or_else(damaged)? as usize;
        let chunk = self.chunk(item, count).ok_or_else(damaged)?;
        if logical.checked_add(chunk.length).is_none() {
            return Err(damaged());
        }
        self.stripes += count + 1;
        if self.stripes > MAX_STRIPES {
            return Err(Error::TooLarge("the number of chunks of this btrfs".into()));
        }
        self.chunks.insert(logical, chunk);
        Ok(48 + 32 * count)
    }

    fn chunk(&self, item: &[u8], count: usize) -> Option<Chunk> {
        let (length, stripe_len) = (item.u64_at(0)?, item.u64_at(16)?);
        let sub = item.u16_at(46)? as usize;
        let profile = match item.u64_at(24)? & PROFILES {
            0 if count == 1 => Profile::Mirrored,
            RAID1 | DUP | RAID1C3 | RAID1C4 if count > 0 => Profile::Mirrored,
            RAID0 if count > 0 => Profile::Striped(1),
            RAID10 if sub > 0 && count >= sub && count.is_multiple_of(sub) => Profile::Striped(sub),
            RAID5 if count >= 2 => Profile::Parity(1),
            RAID6 if count >= 3 => Profile::Parity(2),
            _ => return None,
        };
        // All there are have 64 KiB; the bound keeps a row's buffer small.
        if length == 0 || !(512..=1 << 20).contains(&stripe_len) {
            return None;
        }
        let stripes = item.get(48..48 + 32 * count)?.chunks_exact(32);
        let stripes = stripes.map(|stripe| {
            let uuid: DeviceUuid = stripe.array(16)?;
            let device = self.devices.iter().position(|device| device.uuid == uuid);
            Some(Stripe { device, id: stripe.u64_at(0)?, offset: stripe.u64_at(8)? })
        });
        let stripes = stripes.collect::<Option<_>>()?;
        Some(Chunk { length, stripe_len, profile, stripes })
    }

    fn at(&self, logical: u64) -> Result<(&Chunk, u64)> {
        let found = self.chunks.range(..=logical).next_back();
        let found = found.map(|(start, chunk)| (chunk, logical - start));
        found
            .filter(|(chunk, offset)| *offset < chunk.length)
            .ok_or_else(|| bad(format!("no chunk holds address {logical:#x}")))
    }

    /// In how many ways the bytes at `logical` can be had.
    pub fn copies(&self, logical: u64) -> Result<usize> {
        let (chunk, _) = self.at(logical)?;
        Ok(match chunk.profile {
            Profile::Mirrored => chunk.stripes.len(),
            Profile::Striped(sub) => sub,
            Profile::Parity(1) => 2,
            Profile::Parity(_) => chunk.stripes.len() + 1,
        })
    }

    /// Reads `copy` of the bytes at `logical`.
    pub fn read(&self, logical: u64, to: &mut [u8], copy: usize) -> Result<()> {
        let (mut logical, mut to) = (logical, to);
        while !to.is_empty() {
            let (chunk, offset) = self.at(logical)?;
            let most = match chunk.profile {
                Profile::Mirrored => chunk.length - offset,
                _ => (chunk.stripe_len - offset % chunk.stripe_len).min(chunk.length - offset),
            };
            let len = most.min(to.len() as u64);
            let (now, later) = to.split_at_mut(len as usize);
            self.piece(chunk, offset, now, copy)?;
            logical = logical.checked_add(len).ok_or_else(|| bad("address"))?;
            to = later;
        }
        Ok(())
    }

    /// Reads within one stripe.
    fn piece(&self, chunk: &Chunk, offset: u64, to: &mut [u8], copy: usize) -> Result<()> {
        let count = chunk.stripes.len();
        let (number, within) = (offset / chunk.stripe_len, offset % chunk.stripe_len);
        match chunk.profile {
            Profile::Mirrored => self.mirror(&chunk.stripes, copy, offset, to),
            Profile::Striped(sub) => {
                let groups = (count / sub) as u64;
                let first = (number % groups) as usize * sub;
                let stripes = chunk.stripes.get(first..first + sub).unwrap_or_default();
                self.mirror(stripes, copy, number / groups * chunk.stripe_len + within, to)
            }
            Profile::Parity(parity) => {
                let data = count - parity;
                let (row, wanted) = (number / data as u64, (number % data as u64) as usize);
                let place = row * chunk.stripe_len + within;
                // Each row begins one device later than the one before.
                let read = |column: usize, to: &mut [u8]| {
                    let stripe = (column as u64 + row) % count as u64;
                    self.stripe(chunk.stripes.get(stripe as usize), place, to)
                };
                if copy == 0 && read(wanted, to).is_ok() {
                    return Ok(());
                }
                // Copies from the second on each leave out one more stripe: the one that is wrong.
                let also = copy.checked_sub(1).filter(|step| *step > 0).map(|step| (wanted + step) % count);
                parity::rebuild(data, parity, wanted, also, to, &read)
            }
        }
    }

    /// Reads the `copy`th best of some equal stripes.
    fn mirror(&self, stripes: &[Stripe], copy: usize, place: u64, to: &mut [u8]) -> Result<()> {
        let rank = |stripe: &&Stripe| match stripe.device.and_then(|device| self.devices.get(device)) {
            Some(device) => u8::from(device.stale),
            None => 2,
        };
        let mut order: Vec<&Stripe> = stripes.iter().collect();
        order.sort_by_key(rank);
        self.stripe(order.get(copy).copied(), place, to)
    }

    fn stripe(&self, stripe: Option<&Stripe>, place: u64, to: &mut [u8]) -> Result<()> {
        let stripe = stripe.ok_or_else(|| bad("there is no such copy"))?;
        let device = stripe.device.and_then(|device| self.devices.get(device));
        let device = device.ok_or_else(|| Error::NotFound(format!("device {} of this btrfs", stripe.id)))?;
        let place = stripe.offset.checked_add(place).ok_or_else(|| bad("address of a stripe"))?;
        device.source.read_at(place, to)
    }
}
