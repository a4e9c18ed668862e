//! From GRUB's spelling of devices and files to their bytes.

use std::sync::Arc;

use media::disks::{Disks, SECTOR};
use media::{FileSystem, Kind, NodeRef, NodeSource, Source, SourceRef, Window, resolve};

use super::error::{Error, Outcome, code};

/// A path, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The device, without parentheses.
    pub device: String,
    /// What follows it; empty for the device itself.
    pub path: String,
}

/// Takes `(device)path` apart; without a device it is `root`.
pub fn place(name: &str, root: Option<&str>) -> Outcome<Place> {
    if let Some(rest) = name.strip_prefix('(') {
        let (device, path) =
            rest.split_once(')').ok_or_else(|| Error::new(code::BAD_FILENAME, "missing `)'"))?;
        return Ok(Place { device: device.to_owned(), path: path.to_owned() });
    }
    let root = root.unwrap_or_default();
    let root = root.strip_prefix('(').and_then(|r| r.strip_suffix(')')).unwrap_or(root);
    if root.is_empty() {
        return Err(Error::new(code::UNKNOWN_DEVICE, "variable `root' isn't set"));
    }
    Ok(Place { device: root.to_owned(), path: name.to_owned() })
}

/// The file system of a device.
pub fn filesystem(disks: &Disks, device: &str) -> Outcome<Arc<dyn FileSystem>> {
    disks.filesystem(device).map_err(|error| device_error(device, &error))
}

/// A file or folder.
pub fn node(disks: &Disks, name: &str, root: Option<&str>) -> Outcome<NodeRef> {
    let place = place(name, root)?;
    if !place.path.starts_with('/') {
        return Err(Error::new(code::BAD_FILENAME, format!("invalid file name `{name}'")));
    }
    let fs = filesystem(disks, &place.device)?;
    resolve(fs.as_ref(), place.path.as_bytes()).map_err(|error| Error::media(&place.path, &error))
}

/// The bytes of a file, a device, or the blocks of one (`(hd0)0+1`).
pub fn open(disks: &Disks, name: &str, root: Option<&str>) -> Outcome<SourceRef> {
    let place = place(name, root)?;
    if place.path.starts_with('/') {
        let node = node(disks, name, root)?;
        let error = |error| Error::media(&place.path, &error);
        let kind = node.metadata().map_err(error)?.kind;
        if kind != Kind::File {
            return Err(Error::new(code::BAD_FILE_TYPE, format!("`{}' is not a regular file", place.path)));
        }
        return Ok(Arc::new(NodeSource::new(node).map_err(error)?));
    }
    let source = disks.source(&place.device).map_err(|error| device_error(&place.device, &error))?;
    if place.path.is_empty() && name.starts_with('(') {
        return Ok(source);
    }
    let blocks = || Error::new(code::BAD_FILENAME, format!("invalid file name `{name}'"));
    Blocks::new(&source, &place.path).ok_or_else(blocks)?.map(|b| Arc::new(b) as SourceRef)
}

/// A whole file, of at most `limit` bytes.
pub fn read(source: &SourceRef, name: &str, limit: u64) -> Outcome<Vec<u8>> {
    if source.size() > limit {
        let message = format!("`{name}' has {} bytes, more than {limit}", source.size());
        return Err(Error::new(code::OUT_OF_MEMORY, message));
    }
    source.read_vec(0, source.size() as usize).map_err(|error| Error::media(name, &error))
}

/// What is wrong with a device.
pub fn device_error(device: &str, error: &media::Error) -> Error {
    match error {
        media::Error::NotFound(_) => {
            let what = if device.contains(',') { "partition" } else { "device" };
            Error::new(code::UNKNOWN_DEVICE, format!("no such {what}: {device}"))
        }
        error => Error::media(device, error),
    }
}

/// Blocks of a device, as in `0+1,100+50`.
struct Blocks {
    pieces: Vec<Window>,
    size: u64,
}

impl Blocks {
    /// `None`: not a list of blocks.
    fn new(source: &SourceRef, list: &str) -> Option<Outcome<Self>> {
        let mut blocks = Self { pieces: Vec::new(), size: 0 };
        for piece in list.split(',') {
            let (start, count) = piece.split_once('+')?;
            let start: u64 = if start.is_empty() { 0 } else { start.parse().ok()? };
            let count: u64 = count.parse().ok()?;
            let range = start.checked_mul(SECTOR).zip(count.checked_mul(SECTOR));
            let window = range.and_then(|(at, len)| Window::new(source.clone(), at, len).ok());
            let Some(window) = window else {
                return Some(Err(Error::new(
                    code::BAD_FILENAME,
                    format!("blocks {piece} are not on the device"),
                )));
            };
            blocks.size = blocks.size.checked_add(window.size())?;
            blocks.pieces.push(window);
        }
        Some(Ok(blocks))
    }
}

impl Source for Blocks {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> media::Result<()> {
        let (mut offset, mut to) = (offset, to);
        for piece in &self.pieces {
            if offset >= piece.size() {
                offset -= piece.size();
                continue;
            }
            let now = (piece.size() - offset).min(to.len() as u64) as usize;
            let (part, rest) = to.split_at_mut(now);
            piece.read_at(offset, part)?;
            (offset, to) = (0, rest);
            if to.is_empty() {
                return Ok(());
            }
        }
        match to.len() {
            0 => Ok(()),
            len => Err(media::Error::PastEnd { offset, len: len as u64, size: self.size }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use media::Bytes;

    #[test]
    fn names_come_apart() {
        let ok = |device: &str, path: &str| Ok(Place { device: device.into(), path: path.into() });
        assert_eq!(place("(hd0,msdos1)/a", None), ok("hd0,msdos1", "/a"));
        assert_eq!(place("/a", Some("(cd0)")), ok("cd0", "/a"));
        assert_eq!(place("/a", Some("lvm/a-b")), ok("lvm/a-b", "/a"));
        assert_eq!(place("(hd0", None).unwrap_err().message, "missing `)'");
        assert!(place("/a", None).is_err());
    }

    #[test]
    fn blocks() {
        let disks = Disks::new();
        let bytes: Vec<u8> = (0..4096u32).map(|n| (n / 512) as u8).collect();
        disks.add_disk("hd0", Arc::new(Bytes(bytes))).unwrap();
        let read = |name: &str| -> Outcome<Vec<u8>> {
            let source = open(&disks, name, Some("hd0"))?;
            Ok(read(&source, name, 1 << 20)?.chunks(512).map(|c| c[0]).collect())
        };
        assert_eq!(read("(hd0)+1").unwrap(), [0]);
        assert_eq!(read("(hd0)2+1,5+3").unwrap(), [2, 5, 6, 7]);
        assert_eq!(read("7+1").unwrap(), [7]);
        assert_eq!(read("(hd0)").unwrap().len(), 8);
        assert!(read("(hd0)7+2").is_err() && read("(hd0)x").is_err() && read("(hd1)+1").is_err());
        assert!(read("(hd0)18446744073709551615+1").is_err());
    }
}
