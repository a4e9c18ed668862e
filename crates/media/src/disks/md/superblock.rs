//! Superblocks 1.x (`include/uapi/linux/raid/md_p.h`, `struct mdp_superblock_1`), and what is
//! common to all versions.

use std::fmt::Write;

use super::super::SECTOR;
use crate::{Fields, SourceRef};

/// At the start of every superblock.
pub const MAGIC: u32 = 0xa92b_4efc;
/// Where the roles of the devices begin.
const ROLES: usize = 256;
/// Most roles: a superblock has 4 KiB.
const MAX_ROLES: u32 = 1920;
/// Roles from here on mean that the device is a spare, faulty or a journal.
const NO_PLACE: u16 = 0xfd00;

// Feature bits.
const REBUILDING: u32 = 1 << 1;
const RESHAPING: u32 = 1 << 2;
const REPLACEMENT: u32 = 1 << 4;
const JOURNAL: u32 = 1 << 9;
/// Bitmap, bad blocks, backwards, new offset, recovery bitmap, versioned bitmap, partial parity
/// logs, RAID 0 layout: none changes where data is.
const HARMLESS: u32 = 0x1de9;

/// What a superblock says. Sizes and places are in bytes.
#[derive(Clone, Debug)]
pub struct Superblock {
    /// The array's.
    pub uuid: [u8; 16],
    /// Name without the host before it.
    pub name: String,
    /// -4 multipath, -1 linear, 0, 1, 4, 5, 6, 10.
    pub level: i32,
    /// Meaning depends on the level.
    pub layout: u32,
    /// Used on each device; 0 if each has its own size.
    pub size: u64,
    /// Bytes of a chunk.
    pub chunk: u64,
    /// How many devices make the array.
    pub devices: usize,
    /// Where the data of this device begins.
    pub data_start: u64,
    /// Data on this device.
    pub data_size: u64,
    /// Which device this is.
    pub number: u32,
    /// Grows with every change of the array.
    pub events: u64,
    /// The place of each device.
    pub roles: Vec<Option<u16>>,
    /// Whether this device is not complete yet.
    pub rebuilding: bool,
    /// Whether this device stands in for another.
    pub replacement: bool,
    /// A feature that we don't know.
    pub refused: Option<String>,
    /// Whether it has version 0.90.
    pub is_old: bool,
}

impl Superblock {
    /// The place in the array of the device with a number.
    pub fn role(&self, number: u32) -> Option<usize> {
        self.roles.get(number as usize).copied().flatten().map(usize::from)
    }

    /// GRUB's name.
    pub fn device_name(&self) -> String {
        format!("md/{}", self.name)
    }

    /// Other names: `md0`, and `md/0` for GRUB's `md/md0`.
    pub fn aliases(&self) -> Vec<String> {
        match self.name.strip_prefix("md") {
            Some(number) if self.is_old => vec![format!("md/{number}"), self.name.clone()],
            _ => vec![format!("md{}", self.name)],
        }
    }

    /// Hexadecimal digits of the UUID.
    pub fn uuid_text(&self) -> String {
        let mut text = String::new();
        for byte in self.uuid {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }
}

/// The superblock of version 1.0 (near the end), 1.1 (at the start) or 1.2 (at 4 KiB).
pub fn read(source: &SourceRef) -> Option<Superblock> {
    let sectors = source.size() / SECTOR;
    // Version 1.0: at least 8 KiB from the end, on a boundary of 4 KiB.
    let end = sectors.checked_sub(16)? & !7;
    [8, 0, end].into_iter().find_map(|sector| at(source, sector))
}

fn at(source: &SourceRef, sector: u64) -> Option<Superblock> {
    let head = source.read_vec(sector * SECTOR, ROLES).ok()?;
    if head.u32_at(0)? != MAGIC || head.u32_at(4)? != 1 || head.u64_at(144)? != sector {
        return None;
    }
    let roles = head.u32_at(220)?;
    if roles > MAX_ROLES {
        return None;
    }
    let bytes = source.read_vec(sector * SECTOR, ROLES + 2 * roles as usize).ok()?;
    if checksum(&bytes) != head.u32_at(216)? {
        return None;
    }
    parse(&head, &bytes)
}

fn parse(head: &[u8], bytes: &[u8]) -> Option<Superblock> {
    let features = head.u32_at(8)?;
    let places =
        bytes.get(ROLES..)?.chunks_exact(2).map(|role| role.u16_at(0).filter(|role| *role < NO_PLACE));
    let name: &[u8] = &head.array::<32>(32)?;
    let name = String::from_utf8_lossy(name.split(|b| *b == 0).next()?).into_owned();
    let name = name.split_once(':').map_or(name.as_str(), |(_, name)| name).to_owned();
    let refused = if features & RESHAPING != 0 {
        Some("an array that is being reshaped".to_owned())
    } else if features & JOURNAL != 0 {
        Some("an array with a journal".to_owned())
    } else {
        let unknown = features & !(HARMLESS | REBUILDING | REPLACEMENT);
        (unknown != 0).then(|| format!("feature {unknown:#x}"))
    };
    Some(Superblock {
        uuid: head.array(16)?,
        name,
        level: head.u32_at(72)? as i32,
        layout: head.u32_at(76)?,
        size: head.u64_at(80)?.checked_mul(SECTOR)?,
        chunk: u64::from(head.u32_at(88)?) * SECTOR,
        devices: head.u32_at(92)? as usize,
        data_start: head.u64_at(128)?.checked_mul(SECTOR)?,
        data_size: head.u64_at(136)?.checked_mul(SECTOR)?,
        number: head.u32_at(160)?,
        events: head.u64_at(200)?,
        roles: places.collect(),
        rebuilding: features & REBUILDING != 0,
        replacement: features & REPLACEMENT != 0,
        refused,
        is_old: false,
    })
}

/// The sum of all words without the field itself, its high half added to the low one.
fn checksum(bytes: &[u8]) -> u32 {
    let mut sum = 0u64;
    for (n, word) in bytes.chunks(4).enumerate() {
        let value = word.u32_at(0).or_else(|| word.u16_at(0).map(u32::from)).unwrap_or(0);
        if n != 216 / 4 {
            sum += u64::from(value);
        }
    }
    ((sum & 0xffff_ffff) + (sum >> 32)) as u32
}
