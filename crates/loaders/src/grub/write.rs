//! The only thing that is ever written to an image: a new environment block in the place of the old.
//!
//! File systems are read here, never written, and don't say where a file's bytes are. So the file is
//! read once more through a source that notes what is asked of the image; the old block must be
//! among that. Before anything is written it must turn out, on a copy in memory, that the file then
//! reads as wanted.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use media::disks::{Disks, SECTOR};
use media::{FileSource, Source, SourceRef, resolve};

use super::ImagePaths;
use super::error::{Error, Outcome, code};
use super::files::{Place, device_error};

/// File systems that keep no checksums of what is in files, nor copies of it.
const WRITABLE: [&str; 6] = ["ext2", "xfs", "fat", "exfat", "ntfs", "ufs"];
/// How much of an image is searched at most.
const MAX_SEARCHED: u64 = 256 << 20;

/// Notes what is read.
struct Noted {
    source: SourceRef,
    ranges: Mutex<Vec<(u64, u64)>>,
}

impl Source for Noted {
    fn size(&self) -> u64 {
        self.source.size()
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> media::Result<()> {
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        ranges.push((offset, offset.saturating_add(to.len() as u64)));
        drop(ranges);
        self.source.read_at(offset, to)
    }
}

/// An image in which some bytes are others.
struct Changed {
    source: SourceRef,
    at: u64,
    bytes: Vec<u8>,
}

impl Source for Changed {
    fn size(&self) -> u64 {
        self.source.size()
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> media::Result<()> {
        self.source.read_at(offset, to)?;
        for (byte, at) in self.bytes.iter().zip(self.at..) {
            if let Some(target) = at.checked_sub(offset).and_then(|n| to.get_mut(usize::try_from(n).ok()?)) {
                *target = *byte;
            }
        }
        Ok(())
    }
}

/// Replaces the bytes of a file, which are `before`, by as many others.
pub(super) fn replace(
    disks: &Disks,
    images: &ImagePaths,
    place: &Place,
    before: &[u8],
    after: &[u8],
) -> Outcome {
    let refuse = |why: &str| {
        Error::new(code::WRITE_ERROR, format!("`({}){}' can't be written: {why}", place.device, place.path))
    };
    let (device, disk) = match disks.device(&place.device) {
        Ok(device) => (device.name, device.disk),
        Err(error) if place.device != "host" => return Err(device_error(&place.device, &error)),
        Err(_) => return Err(refuse("files of the host are not changed")),
    };
    let path = images.get(&disk).ok_or_else(|| refuse("it is not directly in a disk image"))?;
    let io = |error: std::io::Error| refuse(&format!("{}: {error}", path.display()));
    let file = File::options().read(true).write(true).open(path).map_err(io)?;
    let source: SourceRef = Arc::new(FileSource::open(path).map_err(|e| refuse(&e.to_string()))?);
    let found = find(&source, &disk, &device, &place.path, before)
        .and_then(|places| {
            let right = |at: &u64| reads_as(&source, *at, &disk, &device, &place.path, after);
            places.into_iter().find(right)
        })
        .ok_or_else(|| refuse("the place of its bytes is not clear"))?;
    write(&file, found, before, after).map_err(io)
}

/// Where on the disk the bytes of the file may be.
fn find(source: &SourceRef, disk: &str, device: &str, path: &str, before: &[u8]) -> Option<Vec<u64>> {
    let noted = Arc::new(Noted { source: source.clone(), ranges: Mutex::default() });
    if content(noted.clone(), disk, device, path)? != before {
        return None;
    }
    let mut ranges = noted.ranges.lock().unwrap_or_else(PoisonError::into_inner).clone();
    ranges.sort_unstable();
    let (mut places, mut searched, mut done) = (Vec::new(), 0, 0);
    for (start, end) in ranges {
        let mut at = start.max(done).next_multiple_of(SECTOR);
        done = done.max(end);
        while at < end && searched < MAX_SEARCHED {
            if let Ok(bytes) = source.read_vec(at, before.len())
                && bytes == before
            {
                places.push(at);
            }
            at += SECTOR;
            searched += SECTOR;
        }
    }
    Some(places)
}

/// Whether the file is as wanted once the bytes are written.
fn reads_as(source: &SourceRef, at: u64, disk: &str, device: &str, path: &str, after: &[u8]) -> bool {
    let changed = Changed { source: source.clone(), at, bytes: after.to_vec() };
    content(Arc::new(changed), disk, device, path).is_some_and(|now| now == after)
}

/// The content of a file on an image, if its file system lets itself be written.
fn content(image: SourceRef, disk: &str, device: &str, path: &str) -> Option<Vec<u8>> {
    let disks = Disks::new();
    disks.add_disk(disk, image).ok()?;
    let fs = disks.filesystem(device).ok()?;
    if !WRITABLE.contains(&fs.kind()) {
        return None;
    }
    let node = resolve(fs.as_ref(), path.as_bytes()).ok()?;
    media::read_all(node.as_ref(), 1 << 20).ok()
}

fn write(file: &File, at: u64, before: &[u8], after: &[u8]) -> std::io::Result<()> {
    let mut now = vec![0; before.len()];
    file.read_exact_at(&mut now, at)?;
    if now != before {
        return Err(std::io::Error::other("somebody else has changed it"));
    }
    file.write_all_at(after, at)?;
    file.sync_data()
}
