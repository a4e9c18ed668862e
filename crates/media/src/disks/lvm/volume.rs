//! From the segments of a logical volume to its bytes.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::SECTOR;
use super::super::array::layout::Layout;
use super::super::array::{Concat, Mirror, Parity, Raid10, Striped, Zeros};
use super::super::table::Failure;
use super::KIND;
use super::text::{Section, Value};
use crate::{Fields, SourceRef, Window};

/// Most segments of a volume, and most devices of a segment.
const MAX_SEGMENTS: usize = 65536;
const MAX_DEVICES: usize = 1024;
/// Volumes within volumes; a cached thin pool on RAID has five levels.
const MAX_DEPTH: usize = 8;
/// Magic number of device mapper's RAID superblock (`drivers/md/dm-raid.c`).
const RAID_MAGIC: u32 = 0x6452_6d44;

type Made = Result<SourceRef, Failure>;

/// A volume group.
pub struct Group<'a> {
    name: &'a str,
    /// Bytes of an extent.
    extent: u64,
    volumes: HashMap<&'a str, &'a Section>,
    /// Section, and the device if it is there.
    physical: HashMap<&'a str, (&'a Section, Option<SourceRef>)>,
    /// Volumes that hold what a snapshot's origin had.
    snapshots: Vec<&'a str>,
    /// What was made already; `None` while it is being made.
    made: HashMap<&'a str, Option<Made>>,
    depth: usize,
}

/// A segment with what all kinds need.
struct Segment<'a> {
    body: &'a Section,
    kind: &'a str,
    /// The volume, for errors.
    volume: &'a str,
    /// Bytes.
    size: u64,
}

impl<'a> Group<'a> {
    /// A group from its metadata and all physical volumes by UUID without dashes.
    pub fn new(
        name: &'a str,
        body: &'a Section,
        disks: &HashMap<String, SourceRef>,
    ) -> Result<Self, Failure> {
        let bad = |what: &str| Failure::Corrupt(KIND, format!("volume group {name}: {what}"));
        let extent = body.number("extent_size").and_then(|sectors| sectors.checked_mul(SECTOR));
        let extent = extent.filter(|extent| *extent > 0).ok_or_else(|| bad("extent size"))?;
        let section = |key| body.section(key).map(|s| s.sections().collect::<Vec<_>>()).unwrap_or_default();
        let mut physical = HashMap::new();
        for (pv, pv_body) in section("physical_volumes") {
            let id = pv_body.text("id").unwrap_or_default().replace('-', "");
            physical.insert(pv, (pv_body, disks.get(&id).cloned()));
        }
        let volumes: HashMap<_, _> = section("logical_volumes").into_iter().collect();
        let snapshots = volumes
            .values()
            .flat_map(|lv| lv.sections())
            .filter(|(_, segment)| segment.text("type") == Some("snapshot"))
            .filter_map(|(_, segment)| segment.text("cow_store"))
            .collect();
        Ok(Self { name, extent, volumes, physical, snapshots, made: HashMap::new(), depth: 0 })
    }

    /// Whether a volume is one that `lvs` lists without asking for all.
    pub fn is_visible(&self, name: &str, body: &Section) -> bool {
        // Of a snapshot the part that says so has the status, and the store the name.
        let says_snapshot = body.sections().any(|(_, segment)| segment.text("type") == Some("snapshot"));
        !says_snapshot && (body.has("status", "VISIBLE") || self.snapshots.contains(&name))
    }

    /// The bytes of a volume.
    pub fn volume(&mut self, name: &str) -> Made {
        let Some((name, body)) = self.volumes.get_key_value(name).map(|(name, body)| (*name, *body)) else {
            return Err(self.bad(name, "is not in the group"));
        };
        match self.made.get(name) {
            Some(Some(made)) => return made.clone(),
            Some(None) => return Err(self.bad(name, "is within itself")),
            None => {}
        }
        if self.depth >= MAX_DEPTH {
            return Err(self.bad(name, "too many volumes within each other"));
        }
        self.depth += 1;
        self.made.insert(name, None);
        let made = if self.snapshots.contains(&name) {
            Err(self.unsupported(name, "a snapshot"))
        } else {
            self.make(name, body)
        };
        self.depth -= 1;
        self.made.insert(name, Some(made.clone()));
        made
    }

    fn bad(&self, volume: &str, what: &str) -> Failure {
        Failure::Corrupt(KIND, format!("logical volume {}/{volume}: {what}", self.name))
    }

    fn unsupported(&self, volume: &str, what: &str) -> Failure {
        Failure::Unsupported(KIND, format!("logical volume {}/{volume}: {what}", self.name))
    }

    fn make(&mut self, name: &'a str, body: &'a Section) -> Made {
        let mut segments = Vec::new();
        for (_, segment) in body.sections().filter(|(key, _)| key.starts_with("segment")) {
            let start =
                segment.number("start_extent").ok_or_else(|| self.bad(name, "segment without a start"))?;
            segments.push((start, segment));
        }
        segments.sort_by_key(|(start, _)| *start);
        if segments.is_empty() || segments.len() > MAX_SEGMENTS {
            return Err(self.bad(name, "number of segments"));
        }
        let mut next = 0u64;
        let mut parts = Vec::new();
        for (start, segment) in segments {
            let count = segment.number("extent_count").filter(|count| *count > 0);
            let size = count.and_then(|count| count.checked_mul(self.extent));
            let (Some(count), Some(size), true) = (count, size, start == next) else {
                return Err(self.bad(name, "segments don't follow each other"));
            };
            next = start.checked_add(count).ok_or_else(|| self.bad(name, "segment too long"))?;
            let kind = segment.text("type").ok_or_else(|| self.bad(name, "segment without a type"))?;
            parts.push(self.segment(&Segment { body: segment, kind, volume: name, size })?);
        }
        if let [only] = parts.as_slice() {
            return Ok(only.clone());
        }
        Ok(Arc::new(Concat::new(parts).ok_or_else(|| self.bad(name, "size"))?))
    }

    fn segment(&mut self, segment: &Segment<'_>) -> Made {
        match segment.kind {
            "striped" | "linear" => self.striped(segment),
            "mirror" => {
                let legs = self.areas(segment, "mirrors", segment.size)?;
                self.mirror(segment, legs)
            }
            "zero" => Ok(Arc::new(Zeros(segment.size))),
            "raid1" | "raid1_all" => {
                let legs = self.images(segment)?;
                self.mirror(segment, legs)
            }
            "raid0" | "raid0_meta" => {
                let legs = self.images(segment)?.into_iter().collect::<Result<Vec<_>, _>>()?;
                self.stripe(segment, legs)
            }
            "raid10" | "raid10_near" => {
                let copies = segment.body.number("data_copies").unwrap_or(2).min(255) as u32;
                let legs = self.images(segment)?;
                let chunk = self.chunk(segment)?;
                let member = legs.iter().flatten().map(|leg| leg.size()).min().unwrap_or(0);
                let failure = self.first_failure(segment, &legs);
                let legs = legs.into_iter().map(Result::ok).collect();
                // md's layout: far copies in the second byte, near ones in the first.
                let array = Raid10::new(legs, 0x100 | copies, chunk, member);
                let array = array.ok_or_else(|| self.bad(segment.volume, "RAID 10"))?;
                if !array.complete() {
                    return Err(failure);
                }
                self.cut(segment, Arc::new(array))
            }
            kind => match raid_layout(kind) {
                Some(layout) => self.parity(segment, layout),
                None => Err(self.unsupported(segment.volume, &format!("segment type {kind}"))),
            },
        }
    }

    fn striped(&mut self, segment: &Segment<'_>) -> Made {
        let count = segment.body.number("stripe_count").unwrap_or(0);
        let bad = || self.bad(segment.volume, "stripes");
        let each = segment.size.checked_div(count).ok_or_else(bad)?;
        let legs = self.areas(segment, "stripes", each)?;
        if legs.len() as u64 != count {
            return Err(self.bad(segment.volume, "stripes"));
        }
        let mut legs = legs.into_iter().collect::<Result<Vec<_>, _>>()?;
        match legs.pop() {
            Some(only) if legs.is_empty() => Ok(only),
            Some(last) => {
                legs.push(last);
                self.stripe(segment, legs)
            }
            None => Err(self.bad(segment.volume, "stripes")),
        }
    }

    fn stripe(&self, segment: &Segment<'_>, legs: Vec<SourceRef>) -> Made {
        let array = Striped::new(legs, self.chunk(segment)?, true);
        let array =
            array.filter(|array| !array.has_zones()).ok_or_else(|| self.bad(segment.volume, "stripes"))?;
        self.cut(segment, Arc::new(array))
    }

    fn mirror(&self, segment: &Segment<'_>, legs: Vec<Made>) -> Made {
        let failure = self.first_failure(segment, &legs);
        let legs: Vec<_> = legs.into_iter().flatten().filter(|leg| leg.size() >= segment.size).collect();
        if legs.is_empty() {
            return Err(failure);
        }
        Ok(Arc::new(Mirror::new(legs, segment.size)))
    }

    fn parity(&mut self, segment: &Segment<'_>, layout: Layout) -> Made {
        let legs = self.images(segment)?;
        let chunk = self.chunk(segment)?;
        let failure = self.first_failure(segment, &legs);
        let gone = legs.iter().filter(|leg| leg.is_err()).count();
        if gone > layout.parities() {
            return Err(failure);
        }
        let member = legs.iter().flatten().map(|leg| leg.size()).min().unwrap_or(0);
        let legs = legs.into_iter().map(Result::ok).collect();
        let array =
            Parity::new(legs, layout, chunk, member).ok_or_else(|| self.bad(segment.volume, "RAID"))?;
        self.cut(segment, Arc::new(array))
    }

    fn first_failure(&self, segment: &Segment<'_>, legs: &[Made]) -> Failure {
        let first = legs.iter().find_map(|leg| leg.as_ref().err().cloned());
        first.unwrap_or_else(|| self.bad(segment.volume, "no devices"))
    }

    fn chunk(&self, segment: &Segment<'_>) -> Result<u64, Failure> {
        let chunk = segment.body.number("stripe_size").and_then(|sectors| sectors.checked_mul(SECTOR));
        chunk.filter(|chunk| *chunk > 0).ok_or_else(|| self.bad(segment.volume, "stripe size"))
    }

    /// The first bytes of `source`, as many as the segment has.
    fn cut(&self, segment: &Segment<'_>, source: SourceRef) -> Made {
        if source.size() == segment.size {
            return Ok(source);
        }
        let window = Window::new(source, 0, segment.size);
        Ok(Arc::new(window.map_err(|_| self.bad(segment.volume, "devices too small"))?))
    }

    /// `size` bytes at each of the places in the list `key`: name and extent in turn.
    fn areas(&mut self, segment: &Segment<'_>, key: &str, size: u64) -> Result<Vec<Made>, Failure> {
        let list = segment.body.list(key).filter(|list| list.len() <= 2 * MAX_DEVICES);
        let list = list.ok_or_else(|| self.bad(segment.volume, "no list of devices"))?;
        let mut legs = Vec::new();
        for pair in list.chunks(2) {
            let [Value::Text(name), Value::Number(extent)] = pair else {
                return Err(self.bad(segment.volume, "list of devices"));
            };
            let start = u64::try_from(*extent).ok().and_then(|extent| extent.checked_mul(self.extent));
            let start = start.ok_or_else(|| self.bad(segment.volume, "place on a device"))?;
            legs.push(self.area(segment, name, start, size));
        }
        Ok(legs)
    }

    fn area(&mut self, segment: &Segment<'_>, name: &str, start: u64, size: u64) -> Made {
        let (source, start) = match self.physical.get(name) {
            Some((body, Some(disk))) => {
                let data = body.number("pe_start").and_then(|sectors| sectors.checked_mul(SECTOR));
                let start = data.and_then(|data| data.checked_add(start));
                (disk.clone(), start.ok_or_else(|| self.bad(segment.volume, "place on a device"))?)
            }
            Some((body, None)) => {
                let id = body.text("id").unwrap_or(name);
                return Err(Failure::Missing(format!("physical volume {id} of volume group {}", self.name)));
            }
            None => (self.volume(name)?, start),
        };
        let window = Window::new(source, start, size);
        Ok(Arc::new(window.map_err(|_| self.bad(segment.volume, &format!("{name} is too small")))?))
    }

    /// The devices of a RAID segment without their metadata; those that failed are errors.
    fn images(&mut self, segment: &Segment<'_>) -> Result<Vec<Made>, Failure> {
        let names = |key| segment.body.list(key);
        let (list, pairs) = match (names("raids"), names("raid0_lvs")) {
            (Some(list), _) => (list, true),
            (None, Some(list)) => (list, false),
            _ => return Err(self.bad(segment.volume, "no list of devices")),
        };
        if list.len() > 2 * MAX_DEVICES {
            return Err(self.bad(segment.volume, "too many devices"));
        }
        let mut legs = Vec::new();
        let mut newest = (0, 0);
        for pair in list.chunks(if pairs { 2 } else { 1 }) {
            let (Some(Value::Text(image)), true) = (pair.last(), pair.len() == if pairs { 2 } else { 1 })
            else {
                return Err(self.bad(segment.volume, "list of devices"));
            };
            legs.push(self.volume(image));
            if let [Value::Text(meta), _] = pair
                && let Ok(meta) = self.volume(meta)
            {
                newest = newest.max(raid_state(&meta));
            }
        }
        // The newest superblock knows which devices failed.
        for (n, leg) in legs.iter_mut().enumerate().take(64) {
            if newest.1 >> n & 1 != 0 {
                *leg = Err(Failure::Missing(format!(
                    "logical volume {}/{}: device {n}",
                    self.name, segment.volume
                )));
            }
        }
        Ok(legs)
    }
}

/// Number of events and failed devices of a RAID superblock; zeros without one.
fn raid_state(meta: &SourceRef) -> (u64, u64) {
    let Ok(bytes) = meta.read_vec(0, SECTOR as usize) else { return (0, 0) };
    if bytes.u32_at(0) != Some(RAID_MAGIC) {
        return (0, 0);
    }
    (bytes.u64_at(16).unwrap_or(0), bytes.u64_at(24).unwrap_or(0))
}

/// Layouts by LVM's names (lvmraid(7)), in md's numbers.
fn raid_layout(kind: &str) -> Option<Layout> {
    let (level, number) = match kind {
        // Unlike md's RAID 4, device mapper's has its parity on the first device.
        "raid4" => (5, 4),
        "raid5_la" => (5, 0),
        "raid5_ra" => (5, 1),
        "raid5" | "raid5_ls" => (5, 2),
        "raid5_rs" => (5, 3),
        "raid5_n" => (5, 5),
        "raid6" | "raid6_zr" => (6, 8),
        "raid6_nr" => (6, 9),
        "raid6_nc" => (6, 10),
        "raid6_la_6" => (6, 16),
        "raid6_ra_6" => (6, 17),
        "raid6_ls_6" => (6, 18),
        "raid6_rs_6" => (6, 19),
        "raid6_0_6" => (6, 20),
        "raid6_n_6" => (6, 5),
        _ => return None,
    };
    Layout::md(level, number)
}
