//! Symbolic links and other special files: reparse points (MS-FSCC 2.1.2), and the system files
//! that Services for Unix and ntfs-3g use.

use super::{units, utf8};
use crate::Fields;

/// Largest file that may stand for a link.
pub(super) const MAX_INTERIX: u64 = 8 + 2 * 4096;

/// What a special file is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Special {
    /// A symbolic link and its target.
    Link(Vec<u8>),
    /// A device, pipe or socket.
    Other,
    /// A file whose content is elsewhere or in another form: what it is.
    Unknown(String),
}

/// The value of a reparse point.
pub(super) fn parse(bytes: &[u8]) -> Special {
    let tag = bytes.u32_at(0).unwrap_or_default();
    let link = match tag {
        // Substitute and print name, from these places on.
        0xa000_000c => windows(bytes, 20),
        0xa000_0003 => windows(bytes, 16),
        // Subsystem for Linux: a version, then UTF-8.
        0xa000_001d => {
            bytes.get(12..8 + usize::from(bytes.u16_at(4).unwrap_or_default())).map(<[u8]>::to_vec)
        }
        // Sockets, pipes, character and block devices of the same.
        0x8000_0023..=0x8000_0026 => return Special::Other,
        _ => None,
    };
    match (link, tag) {
        (Some(target), _) => Special::Link(target),
        (None, 0x8000_0017) => Special::Unknown("a file compressed by Windows' overlay filter".into()),
        (None, 0x8000_0013) => Special::Unknown("a deduplicated file".into()),
        (None, tag) => Special::Unknown(format!("a reparse point of kind {tag:#010x}")),
    }
}

/// The target of a link as Windows makes it, with slashes, and without a drive.
fn windows(bytes: &[u8], names: usize) -> Option<Vec<u8>> {
    let start = names + usize::from(bytes.u16_at(8)?);
    let target = bytes.get(start..start + usize::from(bytes.u16_at(10)?))?;
    let target = String::from_utf8(utf8(units(target))).ok()?.replace('\\', "/");
    // `\??\C:\Windows` is the native form of `C:\Windows`.
    let target = target.strip_prefix("/??/").unwrap_or(&target);
    let target = match target.as_bytes() {
        [letter, b':', ..] if letter.is_ascii_alphabetic() => target.get(2..)?,
        _ => target,
    };
    Some(target.as_bytes().to_vec())
}

/// A system file that stands for a link or a device, by its first eight bytes.
pub(super) fn interix(bytes: &[u8]) -> Option<Special> {
    match bytes.get(..8)? {
        b"IntxLNK\x01" => Some(Special::Link(utf8(units(bytes.get(8..)?)))),
        b"IntxCHR\0" | b"IntxBLK\0" => Some(Special::Other),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(tag: u32, names: usize, target: &str) -> Vec<u8> {
        let target: Vec<u8> = target.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let mut bytes = tag.to_le_bytes().to_vec();
        bytes.resize(names, 0);
        bytes[10..12].copy_from_slice(&(target.len() as u16).to_le_bytes());
        bytes.extend(target);
        bytes
    }

    #[test]
    fn links_lose_backslashes_and_drives() {
        let link = |target: &str| Special::Link(target.as_bytes().to_vec());
        assert_eq!(parse(&point(0xa000_000c, 20, "..\\boot\\grüb")), link("../boot/grüb"));
        assert_eq!(parse(&point(0xa000_0003, 16, "\\??\\C:\\Users")), link("/Users"));
        let wsl = [&0xa000_001du32.to_le_bytes()[..], &[7, 0, 0, 0, 2, 0, 0, 0], b"a/b"].concat();
        assert_eq!(parse(&wsl), link("a/b"));
        assert!(
            matches!(parse(&point(0x8000_0017, 16, "")), Special::Unknown(why) if why.contains("overlay"))
        );
        assert!(matches!(parse(&0xa000_000cu32.to_le_bytes()), Special::Unknown(_)));
        assert_eq!(parse(&0x8000_0024u32.to_le_bytes()), Special::Other);
    }
}
