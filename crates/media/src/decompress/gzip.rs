//! gzip files (RFC 1952): any number of members, checked, then perhaps something else.

use std::io::{self, Read};

use flate2::{Crc, Decompress, FlushDecompress, Status};

use super::input::{Input, bad};
use crate::Fields;

/// ID1, ID2 and the only compression method (RFC 1952, 2.3.1).
pub const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];

/// Flags (RFC 1952, 2.3.1).
const FHCRC: u8 = 1 << 1;
const FEXTRA: u8 = 1 << 2;
const FNAME: u8 = 1 << 3;
const FCOMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0xe0;

/// Unpacks a gzip file.
pub struct Gzip {
    input: Input,
    state: Decompress,
    crc: Crc,
    /// Whether a member has begun.
    inside: bool,
    members: u64,
}

impl Gzip {
    /// From the start of `input`.
    pub fn new(input: Input) -> Self {
        Self { input, state: Decompress::new(false), crc: Crc::new(), inside: false, members: 0 }
    }

    /// Reads the header of a member, if there is one more. As gzip itself does, anything else
    /// after a member is left alone.
    fn header(&mut self) -> io::Result<bool> {
        if self.members > 0 && self.input.peek()? != Some(MAGIC) {
            return Ok(false);
        }
        let header: [u8; 10] = self.input.array()?;
        let flags = header[3];
        if header.array(0) != Some(MAGIC) || flags & RESERVED != 0 {
            return Err(bad("the header has unknown flags"));
        }
        if flags & FEXTRA != 0 {
            let len = u16::from_le_bytes(self.input.array()?);
            self.input.skip(len.into())?;
        }
        for text in [FNAME, FCOMMENT] {
            while flags & text != 0 && self.input.array::<1>()? != [0] {}
        }
        if flags & FHCRC != 0 {
            self.input.skip(2)?;
        }
        self.state.reset(false);
        self.crc.reset();
        self.inside = true;
        self.members += 1;
        Ok(true)
    }

    fn trailer(&mut self) -> io::Result<()> {
        self.inside = false;
        let (crc, len) = (self.input.array()?, self.input.array()?);
        if u32::from_le_bytes(crc) != self.crc.sum() || u32::from_le_bytes(len) != self.crc.amount() {
            return Err(bad("checksum differs"));
        }
        Ok(())
    }
}

impl Read for Gzip {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if to.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.inside && !self.header()? {
                return Ok(0);
            }
            let from = self.input.available()?;
            let ends = from.is_empty();
            let (before_in, before_out) = (self.state.total_in(), self.state.total_out());
            let status = self.state.decompress(from, to, FlushDecompress::None)?;
            let len = (self.state.total_out() - before_out) as usize;
            self.input.consume((self.state.total_in() - before_in) as usize);
            self.crc.update(to.get(..len).unwrap_or_default());
            if status == Status::StreamEnd {
                self.trailer()?;
            } else if len == 0 && ends {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if len > 0 {
                return Ok(len);
            }
        }
    }
}
