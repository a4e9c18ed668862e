//! Apple partition map, as hybrid ISO images have it.

use super::{PartitionKind, Slot};
use crate::{Error, Fields, Result, SourceRef};

/// Signature of the driver descriptor in the first block.
const DRIVER: u16 = 0x4552;
/// Signature of an entry.
const ENTRY: u16 = 0x504d;
/// Most entries.
const MAX_ENTRIES: u32 = 256;

/// All entries; numbers count from 1 in the order of the map.
pub fn read(source: &SourceRef) -> Result<Vec<Slot>> {
    let bad = |what: &str| Error::corrupt("apple", what);
    let head = source.read_vec(0, 512)?;
    if head.u16_be(0) != Some(DRIVER) {
        return Err(bad("no map"));
    }
    let block = match head.u16_be(2) {
        Some(size @ (512 | 1024 | 2048 | 4096)) => u64::from(size),
        _ => return Err(bad("block size")),
    };
    let mut slots = Vec::new();
    let mut count = 1;
    let mut number = 1;
    while number <= count {
        let entry = source.read_vec(u64::from(number) * block, 512)?;
        if entry.u16_be(0) != Some(ENTRY) {
            break;
        }
        count = entry.u32_be(4).filter(|n| *n <= MAX_ENTRIES).ok_or_else(|| bad("number of entries"))?;
        let (Some(start), Some(size)) = (entry.u32_be(8), entry.u32_be(12)) else { break };
        slots.push(Slot {
            number,
            start: u64::from(start) * block,
            size: u64::from(size) * block,
            kind: PartitionKind::Apple(text(entry.get(48..80)).unwrap_or_default()),
            uuid: None,
            label: text(entry.get(16..48)),
            active: false,
        });
        number += 1;
    }
    Ok(slots)
}

fn text(bytes: Option<&[u8]>) -> Option<String> {
    let bytes = bytes?.split(|b| *b == 0).next()?;
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(bytes).into_owned())
}
