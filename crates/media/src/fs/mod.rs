//! One folder or file for each file system; this is the list of them.

use std::sync::Arc;

use crate::{Error, FileSystem, Result, SourceRef};

pub mod btrfs;
pub mod cpio;
pub mod exfat;
pub mod ext;
pub mod fat;
pub mod host;
pub mod iso9660;
pub mod ntfs;
mod runs;
pub mod squashfs;
mod support;
pub mod tar;
pub mod ufs;
pub mod xfs;
pub mod zfs;

/// Opens the file system on a source. `Ok(None)`: it is of another kind. The second argument holds
/// all the disks and partitions that exist, for file systems that span several.
pub type Open = fn(&SourceRef, &[SourceRef]) -> Result<Option<Arc<dyn FileSystem>>>;

/// All readers that look at devices, in the order in which they are asked.
pub const READERS: &[(&str, Open)] = &[
    ("ext2", ext::open),
    ("xfs", xfs::open),
    ("btrfs", btrfs::open),
    ("squash4", squashfs::open),
    ("zfs", zfs::open),
    ("ufs", ufs::open),
    ("ntfs", ntfs::open),
    ("exfat", exfat::open),
    ("fat", fat::open),
    ("iso9660", iso9660::open),
    ("tar", tar::open),
    ("cpio", cpio::open),
];

/// The file system on `source`. A reader that knows its own file system but can't read this one
/// has the last word only if no other reader can.
pub fn probe(source: &SourceRef, peers: &[SourceRef]) -> Result<Arc<dyn FileSystem>> {
    let mut refusal = Error::UnknownFileSystem;
    for (_, open) in READERS {
        match open(source, peers) {
            Ok(Some(fs)) => return Ok(fs),
            Ok(None) => {}
            Err(error) if matches!(refusal, Error::UnknownFileSystem) => refusal = error,
            Err(_) => {}
        }
    }
    Err(refusal)
}
