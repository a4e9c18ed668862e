//! Zstandard files (RFC 8878): any number of frames, checked.

use std::io::{self, Read};

use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::ZSTD_MAGIC;
use super::input::{Input, bad};
use crate::Fields;

/// Largest window: that of `zstd --ultra -21`.
const MAX_WINDOW: u64 = 64 << 20;
/// Decoded at once.
const STEP: usize = 256 << 10;
/// Magic numbers of frames to be skipped, without their low four bits (RFC 8878, 3.1.2).
const SKIPPABLE: u32 = 0x184D_2A50;

/// Unpacks a Zstandard file.
pub struct Zstd {
    input: Input,
    decoder: FrameDecoder,
    inside: bool,
}

impl Zstd {
    /// From the start of `input`.
    pub fn new(input: Input) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_WINDOW);
        Self { input, decoder, inside: false }
    }

    /// Begins the next frame, if there is one.
    fn header(&mut self) -> io::Result<bool> {
        while let Some(start) = self.input.peek::<8>()? {
            let magic = start.u32_at(0).unwrap_or_default();
            if magic & !15 == SKIPPABLE {
                self.input.skip(8 + u64::from(start.u32_at(4).unwrap_or_default()))?;
                continue;
            }
            if start.array(0) != Some(ZSTD_MAGIC) {
                return Err(bad("something else follows a frame"));
            }
            self.decoder.reset(&mut self.input).map_err(|error| bad(&error.to_string()))?;
            self.inside = true;
            return Ok(true);
        }
        if self.input.available()?.is_empty() { Ok(false) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

impl Read for Zstd {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if to.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.inside && !self.header()? {
                return Ok(0);
            }
            if self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.input, BlockDecodingStrategy::UptoBytes(STEP))
                    .map_err(|error| bad(&error.to_string()))?;
            }
            let len = self.decoder.read(to)?;
            if self.decoder.is_finished() && self.decoder.can_collect() == 0 {
                let sum = self.decoder.get_checksum_from_data();
                if sum.is_some() && sum != self.decoder.get_calculated_checksum() {
                    return Err(bad("checksum differs"));
                }
                self.inside = false;
            }
            if len > 0 {
                return Ok(len);
            }
        }
    }
}
