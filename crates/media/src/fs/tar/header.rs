//! Headers: one block of text fields (POSIX.1-2024, pax, "ustar Interchange Format").

use crate::Fields;

/// Everything comes in blocks of this size.
pub const BLOCK: u64 = 512;

/// What a header says.
pub struct Header {
    pub name: Vec<u8>,
    pub target: Vec<u8>,
    pub kind: u8,
    pub size: u64,
    pub modified: Option<i64>,
    /// All of it, for the extensions of GNU.
    pub block: Vec<u8>,
}

/// Whether the header has the magic word.
pub fn is_ustar(block: &[u8]) -> bool {
    block.array(257) == Some(*b"ustar")
}

/// Whether the checksum is right: the sum of all bytes, with its own taken for spaces.
pub fn is_sound(block: &[u8]) -> bool {
    let own = 148..156;
    let Some(sum) = block.get(own.clone()).and_then(number) else { return false };
    let of = |signed: bool| -> i64 {
        let bytes = block.iter().enumerate();
        let bytes = bytes.map(|(at, byte)| if own.contains(&at) { b' ' } else { *byte });
        bytes.map(|byte| if signed { i64::from(byte as i8) } else { i64::from(byte) }).sum()
    };
    // Some old programs summed signed bytes.
    [of(false), of(true)].contains(&(sum as i64))
}

/// A field up to its first NUL.
pub fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// An octal number between spaces and NULs, or a binary one after a byte of 0x80 (GNU).
pub fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // 0xff would be negative.
        let start = u64::from(first & 0x7f);
        return rest.iter().try_fold(start, |sum, byte| sum.checked_mul(256)?.checked_add((*byte).into()));
    }
    let digits = text(field).trim_ascii();
    digits.iter().try_fold(0u64, |sum, byte| match byte {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

impl Header {
    /// Parses a block whose checksum is right.
    pub fn parse(block: &[u8]) -> Option<Self> {
        let mut name = text(block.get(..100)?).to_vec();
        // GNU's own format writes "ustar  " and has other things where ustar has a prefix.
        if block.array(257) == Some(*b"ustar\0") {
            let prefix = text(block.get(345..500)?);
            if !prefix.is_empty() {
                name = [prefix, &b"/"[..], &name].concat();
            }
        }
        Some(Self {
            name,
            target: text(block.get(157..257)?).to_vec(),
            kind: block.u8_at(156)?,
            size: number(block.get(124..136)?)?,
            modified: number(block.get(136..148)?).and_then(|time| i64::try_from(time).ok()),
            block: block.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number(b"0000755\0"), Some(0o755));
        assert_eq!(number(b"   17 \0 "), Some(0o17));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"00008\0"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1]), Some(0x2_0000_0001));
        assert_eq!(number(&[0xff; 12]), None);
        assert_eq!(number(b""), None);
    }
}
