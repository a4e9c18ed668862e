//! Blocks that are compressed one by one, as file systems store them.
//!
//! Each function takes the most bytes that the caller allows as output: more is an error, so that a
//! few bytes can't become gigabytes. Bytes after the end of the compressed data are ignored where
//! the format marks its end (all but LZ4, LZJB and ZLE), as file systems pad blocks.

use std::io::Read;

use flate2::{Decompress, FlushDecompress, Status};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use crate::{Error, Result};

/// Memory that an xz decoder may take, KiB: `xz -9` has a dictionary of 64 MiB.
pub(super) const XZ_MEMORY: u32 = 72 << 10;
/// Largest zstd window of a single block, where the output is smaller: 8 MiB, the window that every
/// decoder should support (RFC 8878, 3.1.1.1.2).
const ZSTD_WINDOW: usize = 8 << 20;
/// Decoded at once by zstd before it is counted.
const ZSTD_STEP: usize = 1 << 20;

fn too_much(kind: &'static str, max: usize) -> Error {
    Error::corrupt(kind, format!("a block holds more than {max} bytes"))
}

/// A zlib stream (RFC 1950); its Adler-32 is checked.
pub fn zlib(input: &[u8], max: usize) -> Result<Vec<u8>> {
    inflate("zlib", Decompress::new(true), input, max)
}

/// A raw deflate stream (RFC 1951).
pub fn deflate(input: &[u8], max: usize) -> Result<Vec<u8>> {
    inflate("deflate", Decompress::new(false), input, max)
}

fn inflate(kind: &'static str, mut state: Decompress, input: &[u8], max: usize) -> Result<Vec<u8>> {
    // One byte more than allowed tells "exactly" from "more".
    let mut output = vec![0; max.saturating_add(1)];
    let status = state.decompress(input, &mut output, FlushDecompress::Finish);
    let len = state.total_out() as usize;
    match status {
        _ if len > max => Err(too_much(kind, max)),
        Ok(Status::StreamEnd) => {
            output.truncate(len);
            Ok(output)
        }
        Ok(_) => Err(Error::corrupt(kind, "a block ends too early")),
        Err(error) => Err(Error::corrupt(kind, error.to_string())),
    }
}

/// One Zstandard frame (RFC 8878).
pub fn zstd(input: &[u8], max: usize) -> Result<Vec<u8>> {
    zstd_from(input, max)
}

/// One Zstandard frame without the magic number that frames begin with, as ZFS stores it.
pub fn zstd_magicless(input: &[u8], max: usize) -> Result<Vec<u8>> {
    zstd_from((&super::ZSTD_MAGIC[..]).chain(input), max)
}

fn zstd_from(mut input: impl Read, max: usize) -> Result<Vec<u8>> {
    let error =
        |error: ruzstd::decoding::errors::FrameDecoderError| Error::corrupt("zstd", error.to_string());
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(ZSTD_WINDOW.max(max.saturating_mul(2)) as u64);
    decoder.init(&mut input).map_err(error)?;
    let mut output = vec![0; max];
    let mut len = 0;
    loop {
        decoder.decode_blocks(&mut input, BlockDecodingStrategy::UptoBytes(ZSTD_STEP)).map_err(error)?;
        let to = output.get_mut(len..).unwrap_or_default();
        len += decoder.read(to).map_err(|error| Error::corrupt("zstd", error.to_string()))?;
        if decoder.can_collect() > 0 {
            return Err(too_much("zstd", max));
        }
        if decoder.is_finished() {
            break;
        }
    }
    if decoder.get_checksum_from_data().is_some_and(|sum| decoder.get_calculated_checksum() != Some(sum)) {
        return Err(Error::corrupt("zstd", "checksum differs"));
    }
    output.truncate(len);
    Ok(output)
}

/// One LZ4 block without any header. It ends where `input` ends.
pub fn lz4(input: &[u8], max: usize) -> Result<Vec<u8>> {
    let mut output = vec![0; max];
    let len = lz4_flex::block::decompress_into(input, &mut output)
        .map_err(|error| Error::corrupt("lz4", error.to_string()))?;
    output.truncate(len);
    Ok(output)
}

/// An xz stream with any of its filters.
pub fn xz(input: &[u8], max: usize) -> Result<Vec<u8>> {
    let mut output = Vec::new();
    lzma_rust2::XzReader::new_mem_limit(input, false, XZ_MEMORY)
        .take(max as u64 + 1)
        .read_to_end(&mut output)
        .map_err(|error| Error::corrupt("xz", error.to_string()))?;
    if output.len() > max {
        return Err(too_much("xz", max));
    }
    Ok(output)
}

/// An LZJB block. It ends where `input` ends or after `max` bytes of output: ZFS does not store the
/// length of what was compressed, only that of the sectors.
pub fn lzjb(input: &[u8], max: usize) -> Result<Vec<u8>> {
    let bad = || Error::corrupt("lzjb", "a block ends too early or points before its start");
    let mut output: Vec<u8> = Vec::with_capacity(max);
    let mut input = input.iter().copied();
    // Each control byte says of eight items whether they are copies.
    'all: while output.len() < max {
        let Some(control) = input.next() else { break };
        for bit in 0..8 {
            if output.len() >= max {
                break 'all;
            }
            let Some(first) = input.next() else { break 'all };
            if control >> bit & 1 == 0 {
                output.push(first);
                continue;
            }
            // Six bits of length less 3, ten bits of distance.
            let second = input.next().ok_or_else(bad)?;
            let len = (first >> 2) as usize + 3;
            let distance = (first as usize & 3) << 8 | second as usize;
            let len = len.min(max - output.len());
            if distance == 0 {
                return Err(bad());
            }
            copy_back(&mut output, distance, len).ok_or_else(bad)?;
        }
    }
    Ok(output)
}

/// A ZLE block of ZFS with its level of 64: runs of literals and of zeros.
pub fn zle(input: &[u8], max: usize) -> Result<Vec<u8>> {
    const LEVEL: usize = 64;
    let mut output = Vec::with_capacity(max);
    let mut rest = input;
    while output.len() < max {
        let Some((&first, after)) = rest.split_first() else { break };
        rest = after;
        let len = first as usize + 1;
        if len <= LEVEL {
            let len = len.min(max - output.len());
            let (literals, after) =
                rest.split_at_checked(len).ok_or_else(|| Error::corrupt("zle", "a block ends too early"))?;
            output.extend_from_slice(literals);
            rest = after;
        } else {
            let len = (len - LEVEL).min(max - output.len());
            output.resize(output.len() + len, 0);
        }
    }
    Ok(output)
}

/// Appends `len` bytes that begin `distance` before the end; they may overlap what they make.
pub(super) fn copy_back(output: &mut Vec<u8>, distance: usize, len: usize) -> Option<()> {
    let start = output.len().checked_sub(distance)?;
    if distance >= len {
        output.extend_from_within(start..start + len);
        return Some(());
    }
    for at in start..start + len {
        let byte = *output.get(at)?;
        output.push(byte);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::testing::Random;

    fn text(len: usize) -> Vec<u8> {
        b"It was the best of times, it was the worst of times. ".iter().copied().cycle().take(len).collect()
    }

    #[test]
    fn zlib_keeps_its_bound() {
        let plain = text(100_000);
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(&plain).unwrap();
        let mut packed = encoder.finish().unwrap();
        assert_eq!(zlib(&packed, 100_000).unwrap(), plain);
        assert!(zlib(&packed, 99_999).unwrap_err().to_string().contains("more than 99999 bytes"));
        assert!(zlib(&packed[..packed.len() - 5], 100_000).is_err());
        packed.extend([0; 100]);
        assert_eq!(zlib(&packed, 200_000).unwrap(), plain);
        let last = packed.len() - 102;
        packed[last] ^= 1;
        assert!(zlib(&packed, 100_000).is_err(), "the checksum is wrong");
    }

    #[test]
    fn zstd_keeps_its_bound() {
        let plain = text(300_000);
        let packed =
            ruzstd::encoding::compress_to_vec(&plain[..], ruzstd::encoding::CompressionLevel::Fastest);
        assert_eq!(zstd(&packed, 300_000).unwrap(), plain);
        assert_eq!(zstd_magicless(&packed[4..], 300_000).unwrap(), plain);
        assert!(zstd(&packed, 299_999).unwrap_err().to_string().contains("more than 299999 bytes"));
        assert!(zstd(&packed[..packed.len() - 9], 300_000).is_err());
        let padded = [packed, vec![0; 1000]].concat();
        assert_eq!(zstd(&padded, 300_000).unwrap(), plain);
    }

    #[test]
    fn lz4_keeps_its_bound() {
        let plain = text(100_000);
        let packed = lz4_flex::block::compress(&plain);
        assert_eq!(lz4(&packed, 100_000).unwrap(), plain);
        assert_eq!(lz4(&packed, 110_000).unwrap(), plain);
        assert!(lz4(&packed, 99_999).is_err());
    }

    #[test]
    fn the_small_formats_of_zfs() {
        // "abc", then 9 bytes from 3 back; the control byte marks the fourth item.
        let packed = [0b1000, b'a', b'b', b'c', 6 << 2, 3];
        assert_eq!(lzjb(&packed, 12).unwrap(), b"abcabcabcabc");
        assert_eq!(lzjb(&packed, 5).unwrap(), b"abcab");
        assert!(lzjb(&[1, 0, 1], 12).is_err());
        // Three literals, 5 zeros, one literal; padding after `max` bytes doesn't matter.
        let packed = [2, b'a', b'b', b'c', 68, 0, b'd', 0xff, 0xff];
        assert_eq!(zle(&packed, 9).unwrap(), b"abc\0\0\0\0\0d");
        assert!(zle(&[5, 1, 2], 100).is_err());
    }

    #[test]
    fn noise_is_no_panic() {
        let mut random = Random::new(5);
        for _ in 0..2000 {
            let len = random.below(300) as usize;
            let mut noise = random.bytes(len);
            let max = random.below(5000) as usize;
            let decoders =
                [zlib, deflate, zstd, zstd_magicless, lz4, xz, lzjb, zle, super::super::lzo::lzo1x];
            for decoder in decoders {
                assert!(decoder(&noise, max).map_or(0, |output| output.len()) <= max);
            }
            if let Some(start) = noise.get_mut(..4) {
                start.copy_from_slice(&super::super::ZSTD_MAGIC);
                assert!(zstd(&noise, max).map_or(0, |output| output.len()) <= max);
            }
        }
    }
}
