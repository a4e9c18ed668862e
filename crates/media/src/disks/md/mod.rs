//! Linux software RAID (md): superblocks 0.90, 1.0, 1.1 and 1.2; levels linear, 0, 1, 4, 5, 6, 10.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::array::layout::Layout;
use super::array::{Concat, Mirror, Parity, Raid10, Striped};
use super::table::{Candidate, Failure, Found};
use crate::{SourceRef, Window};

mod old;
mod superblock;
#[cfg(test)]
mod tests;

use superblock::Superblock;

/// Most devices of an array.
const MAX_DEVICES: usize = 1024;
const KIND: &str = "md";

/// What was found.
#[derive(Default)]
pub struct Arrays {
    /// The arrays.
    pub found: Vec<Found>,
    /// Names of the devices that are in them.
    pub members: Vec<String>,
}

/// A device with a superblock.
struct Member {
    name: String,
    source: SourceRef,
    block: Superblock,
}

/// Arrays of all candidates.
pub fn scan(candidates: &[Candidate]) -> Arrays {
    let mut arrays: Vec<([u8; 16], Vec<Member>)> = Vec::new();
    for candidate in candidates {
        let read = superblock::read(&candidate.source).or_else(|| old::read(&candidate.source));
        let Some(block) = read else { continue };
        let member = Member { name: candidate.name.clone(), source: candidate.source.clone(), block };
        match arrays.iter_mut().find(|(uuid, _)| *uuid == member.block.uuid) {
            Some((_, members)) => members.push(member),
            None => arrays.push((member.block.uuid, vec![member])),
        }
    }
    let mut result = Arrays::default();
    for (_, members) in arrays {
        result.members.extend(members.iter().map(|m| m.name.clone()));
        result.found.extend(array(&members));
    }
    result
}

fn array(members: &[Member]) -> Option<Found> {
    // The member that was written last knows which others still belong.
    let newest = &members.iter().rev().max_by_key(|m| m.block.events)?.block;
    let mut aliases = vec![format!("mduuid/{}", newest.uuid_text())];
    aliases.extend(newest.aliases());
    let source = assemble(newest, members);
    Some(Found { name: newest.device_name(), aliases, source })
}

/// The members that are up to date, by their place in the array.
fn places(newest: &Superblock, members: &[Member]) -> Vec<Option<SourceRef>> {
    let mut places: BTreeMap<usize, &Member> = BTreeMap::new();
    for member in members {
        let block = &member.block;
        // A crash may leave some members one write behind.
        if block.events.saturating_add(1) < newest.events || block.rebuilding {
            continue;
        }
        let Some(place) = newest.role(block.number) else { continue };
        if place < newest.devices {
            // A disk whose last partition ends where it ends has the old superblock at the same
            // place; partitions come after their disk. A replacement isn't complete.
            let taken = places.get(&place);
            if taken.is_none_or(|t| t.block.events < block.events || t.block.is_old || t.block.replacement) {
                places.insert(place, member);
            }
        }
    }
    let data = |member: &&Member| -> Option<SourceRef> {
        let Superblock { data_start, data_size, .. } = member.block;
        // Images may be shorter than their disks.
        let size = data_size.min(member.source.size().checked_sub(data_start)?);
        Some(Arc::new(Window::new(member.source.clone(), data_start, size).ok()?))
    };
    (0..newest.devices).map(|place| places.get(&place).and_then(data)).collect()
}

fn assemble(newest: &Superblock, members: &[Member]) -> Result<SourceRef, Failure> {
    let name = newest.device_name();
    if let Some(feature) = &newest.refused {
        return Err(Failure::Unsupported(KIND, format!("{name}: {feature}")));
    }
    if newest.devices == 0 || newest.devices > MAX_DEVICES {
        return Err(Failure::Corrupt(KIND, format!("{name}: {} devices", newest.devices)));
    }
    let legs = places(newest, members);
    let there = legs.iter().flatten().count();
    let missing =
        || Failure::Missing(format!("{name}: {} of its {} devices", newest.devices - there, newest.devices));
    let complete = || legs.iter().cloned().collect::<Option<Vec<_>>>().ok_or_else(missing);
    // Without a size of its own the array takes what the smallest member has.
    let smallest = legs.iter().flatten().map(|leg| leg.size()).min().ok_or_else(missing)?;
    let member = if newest.size == 0 { smallest } else { newest.size.min(smallest) };
    let bad = || Failure::Corrupt(KIND, format!("{name}: size, chunk or layout"));
    let unsupported = |what: String| Failure::Unsupported(KIND, format!("{name}: {what}"));
    Ok(match newest.level {
        // Multipath looks like a mirror.
        1 | -4 => Arc::new(Mirror::new(legs.into_iter().flatten().collect(), member)),
        -1 => {
            let round = |leg: SourceRef| -> Option<SourceRef> {
                let size = leg.size() - leg.size() % newest.chunk.max(1);
                Some(Arc::new(Window::new(leg, 0, size).ok()?))
            };
            let legs = complete()?.into_iter().map(round).collect::<Option<Vec<_>>>().ok_or_else(bad)?;
            Arc::new(Concat::new(legs).ok_or_else(bad)?)
        }
        0 => {
            // Layout 1 is the old way of counting in zones, 2 the new one. Without a layout it was
            // most likely a kernel between 3.14 and 5.3, which had the new one.
            let striped = Striped::new(complete()?, newest.chunk, newest.layout != 1).ok_or_else(bad)?;
            if striped.has_zones() && newest.layout > 2 {
                return Err(unsupported(format!("layout {} of RAID 0", newest.layout)));
            }
            Arc::new(striped)
        }
        level @ 4..=6 => {
            let layout = Layout::md(level, newest.layout)
                .ok_or_else(|| unsupported(format!("layout {} of RAID {level}", newest.layout)))?;
            if newest.devices - there > layout.parities() {
                return Err(missing());
            }
            Arc::new(Parity::new(legs, layout, newest.chunk, member).ok_or_else(bad)?)
        }
        10 => {
            if newest.layout >> 17 != 0 {
                return Err(unsupported(format!("layout {:#x} of RAID 10", newest.layout)));
            }
            let array = Raid10::new(legs.clone(), newest.layout, newest.chunk, member).ok_or_else(bad)?;
            if !array.complete() {
                return Err(missing());
            }
            Arc::new(array)
        }
        level => return Err(unsupported(format!("level {level}"))),
    })
}
