//! LZNT1 (MS-XCA 2.5).

use crate::Fields;

/// Bytes of a chunk, uncompressed.
const CHUNK: usize = 4096;

/// Unpacks a unit of `size` bytes; what isn't there is zeros.
pub(super) fn unpack(mut packed: &[u8], size: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        let head = match packed.u16_at(0) {
            // No more chunks.
            None | Some(0) => break,
            Some(head) => head,
        };
        let len = usize::from(head & 0xfff) + 1;
        let chunk = packed.get(2..2 + len)?;
        packed = packed.get(2 + len..).unwrap_or_default();
        let start = bytes.len();
        if head & 0x8000 == 0 {
            bytes.extend_from_slice(chunk);
        } else {
            unpack_chunk(chunk, &mut bytes)?;
        }
        if bytes.len() - start > CHUNK {
            return None;
        }
        bytes.resize(start + CHUNK, 0);
    }
    bytes.resize(size, 0);
    Some(bytes)
}

/// Appends a compressed chunk: groups of eight literals or copies.
fn unpack_chunk(mut chunk: &[u8], bytes: &mut Vec<u8>) -> Option<()> {
    let start = bytes.len();
    while let Some((flags, rest)) = chunk.split_first() {
        chunk = rest;
        for bit in 0..8 {
            if chunk.is_empty() {
                return Some(());
            }
            if flags >> bit & 1 == 0 {
                let (literal, rest) = chunk.split_first()?;
                bytes.push(*literal);
                chunk = rest;
                continue;
            }
            let token = usize::from(chunk.u16_at(0)?);
            chunk = chunk.get(2..)?;
            // The further in the chunk, the more bits has the distance (2.5.1.4.2).
            let done = bytes.len() - start;
            let mut shift = 12;
            while shift > 4 && done > 1 << (16 - shift) {
                shift -= 1;
            }
            let distance = (token >> shift) + 1;
            let len = (token & ((1 << shift) - 1)) + 3;
            if distance > done || done + len > CHUNK {
                return None;
            }
            for _ in 0..len {
                bytes.push(*bytes.get(bytes.len() - distance)?);
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_specification() {
        // MS-XCA 3.4.
        let packed = [
            0x38, 0xb0, 0x88, 0x46, 0x23, 0x20, 0x00, 0x20, 0x47, 0x20, 0x41, 0x00, 0x10, 0xa2, 0x47, 0x01,
            0xa0, 0x45, 0x20, 0x44, 0x00, 0x08, 0x45, 0x01, 0x50, 0x79, 0x00, 0xc0, 0x45, 0x20, 0x05, 0x24,
            0x13, 0x88, 0x05, 0xb4, 0x02, 0x4a, 0x44, 0xef, 0x03, 0x58, 0x02, 0x8c, 0x09, 0x16, 0x01, 0x48,
            0x45, 0x00, 0xbe, 0x00, 0x9e, 0x00, 0x04, 0x01, 0x18, 0x90, 0x00,
        ];
        let text = b"F# F# G A A G F# E D D E F# F# E E F# F# G A A G F# E D D E F# E D D E E F# D E F# G F# D E F# \
                     G F# E D E A F# F# G A A G F# E D D E F# E D D\0";
        let bytes = unpack(&packed, CHUNK).unwrap();
        assert_eq!(&bytes[..text.len()], text);
        assert!(bytes[text.len()..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn copies_from_before_the_chunk_are_refused() {
        assert!(unpack(&[0x02, 0xb0, 0x01, 0x00, 0x00], CHUNK).is_none());
        assert!(unpack(&[0x09, 0x30, 1], CHUNK).is_none());
        assert_eq!(unpack(&[1, 0x30, 5, 6], 8).unwrap(), [5, 6, 0, 0, 0, 0, 0, 0]);
    }
}
