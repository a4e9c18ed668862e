//! Spelling of device names.

use super::partition::Partition;
use crate::{Error, Result};

/// The host's file system.
pub const HOST: &str = "host";
/// Longest name of a device that a user may add.
const MAX_NAME: usize = 128;

/// The name without the parentheses around it.
pub fn bare(name: &str) -> &str {
    name.strip_prefix('(').and_then(|n| n.strip_suffix(')')).unwrap_or(name)
}

/// Whether a new device may have this name.
pub fn check_new(name: &str) -> Result<()> {
    let bad = name.is_empty()
        || name.len() > MAX_NAME
        || name == HOST
        || name.contains(|c: char| matches!(c, ',' | '(' | ')' | '/') || c.is_control());
    if bad {
        return Err(Error::Unsupported { kind: "device", what: format!("the name {name:?}") });
    }
    Ok(())
}

/// The disk and the partitions within it: `hd0,msdos1,bsd1` is `hd0` and `msdos1,bsd1`. A comma
/// that belongs to the disk's name is written `\,`.
pub fn split(name: &str) -> (String, Option<&str>) {
    let mut disk = String::new();
    let mut chars = name.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' if chars.peek().is_some_and(|(_, next)| *next == ',') => {
                disk.push(',');
                chars.next();
            }
            ',' => return (disk, name.get(at + 1..)),
            _ => disk.push(c),
        }
    }
    (disk, None)
}

/// Finds the partition that `wanted` (`msdos1,bsd1`, `1`, `bsd1`) names.
pub fn find<'a>(partitions: &'a [Partition], wanted: &str) -> Option<&'a Partition> {
    let mut within: Option<&Partition> = None;
    for part in wanted.split(',') {
        let digits = part.find(|c: char| !c.is_ascii_alphabetic())?;
        let (map, number) = part.split_at(digits);
        let number: u32 = number.parse().ok()?;
        let fits = |p: &&Partition| p.number == number && (map.is_empty() || p.map.name() == map);
        let parent = within.map(|p| p.name.as_str());
        let direct = partitions.iter().find(|p| p.parent() == parent && fits(p));
        // A label inside the first slice that has one: `hd0,bsd1` for `hd0,msdos1,bsd1`.
        within = Some(match direct {
            Some(found) => found,
            None if parent.is_none() && !map.is_empty() => partitions.iter().find(fits)?,
            None => return None,
        });
    }
    within
}
