//! Files of lzop. The layout is that of its `doc` and of `lzop.c`: numbers are big-endian.

use std::io::{self, Read};

use flate2::Crc;

use super::input::{Input, bad};
use super::lzo1x;

/// What a file begins with.
pub const MAGIC: [u8; 9] = [0x89, b'L', b'Z', b'O', 0, 0x0d, 0x0a, 0x1a, 0x0a];

/// Flags of the header.
const ADLER32_PLAIN: u32 = 1;
const ADLER32_PACKED: u32 = 1 << 1;
const EXTRA_FIELD: u32 = 1 << 6;
const CRC32_PLAIN: u32 = 1 << 8;
const CRC32_PACKED: u32 = 1 << 9;
const MULTIPART: u32 = 1 << 10;
const FILTER: u32 = 1 << 11;
const HEADER_CRC32: u32 = 1 << 12;

/// The version from which headers name a needed version, a level and a long time.
const LONG_HEADER: u16 = 0x940;
/// Largest block here; lzop writes 256 KiB.
const MAX_BLOCK: u32 = 32 << 20;

/// Unpacks an lzop file.
pub struct Lzop {
    input: Input,
    /// The flags of the file whose blocks are next.
    flags: Option<u32>,
    files: u64,
    block: Vec<u8>,
    /// How much of the block was handed out.
    used: usize,
}

/// Reads numbers of the header and sums them up.
struct Header<'a> {
    input: &'a mut Input,
    bytes: Vec<u8>,
}

impl Header<'_> {
    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let bytes = self.input.array()?;
        self.bytes.extend(bytes);
        Ok(bytes)
    }
}

impl Lzop {
    /// From the start of `input`.
    pub fn new(input: Input) -> Self {
        Self { input, flags: None, files: 0, block: Vec::new(), used: 0 }
    }

    /// Reads the header of a file, if there is one more.
    fn header(&mut self) -> io::Result<Option<u32>> {
        match self.input.peek()? {
            Some(MAGIC) => {}
            _ if self.files > 0 => return Ok(None),
            _ => return Err(bad("no header")),
        }
        self.input.skip(MAGIC.len() as u64)?;
        let mut header = Header { input: &mut self.input, bytes: Vec::new() };
        let version = u16::from_be_bytes(header.array()?);
        header.array::<2>()?;
        let long = version >= LONG_HEADER;
        if long {
            header.array::<2>()?;
        }
        let [method] = header.array()?;
        // LZO1X-1, LZO1X-1(15), LZO1X-999: one decoder for all.
        if !(1..=3).contains(&method) {
            return Err(bad("unknown compression method"));
        }
        if long {
            header.array::<1>()?;
        }
        let flags = u32::from_be_bytes(header.array()?);
        if flags & (MULTIPART | FILTER) != 0 {
            return Err(bad("files in several parts and filtered ones are not supported"));
        }
        // Mode and time.
        header.array::<8>()?;
        if long {
            header.array::<4>()?;
        }
        let [name] = header.array()?;
        for _ in 0..name {
            header.array::<1>()?;
        }
        let bytes = header.bytes;
        let sum = if flags & HEADER_CRC32 != 0 { crc32(&bytes) } else { adler32(&bytes) };
        if u32::from_be_bytes(self.input.array()?) != sum {
            return Err(bad("checksum of the header differs"));
        }
        if flags & EXTRA_FIELD != 0 {
            let len = u32::from_be_bytes(self.input.array()?);
            self.input.skip(u64::from(len) + 4)?;
        }
        self.files += 1;
        Ok(Some(flags))
    }

    /// Reads a block; false at the end of a file.
    fn block(&mut self, flags: u32) -> io::Result<bool> {
        let plain = u32::from_be_bytes(self.input.array()?);
        if plain == 0 {
            return Ok(false);
        }
        let packed = u32::from_be_bytes(self.input.array()?);
        if plain > MAX_BLOCK || packed > plain {
            return Err(bad("impossible size of a block"));
        }
        let adler = self.sum(flags & ADLER32_PLAIN != 0)?;
        let crc = self.sum(flags & CRC32_PLAIN != 0)?;
        // A block that did not become smaller is stored as it is, and has one set of sums.
        self.sum(packed < plain && flags & ADLER32_PACKED != 0)?;
        self.sum(packed < plain && flags & CRC32_PACKED != 0)?;
        let mut bytes = Vec::new();
        (&mut self.input).take(packed.into()).read_to_end(&mut bytes)?;
        if bytes.len() < packed as usize {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if packed < plain {
            bytes = lzo1x(&bytes, plain as usize).map_err(|error| bad(&error.to_string()))?;
        }
        if bytes.len() != plain as usize
            || adler.is_some_and(|sum| sum != adler32(&bytes))
            || crc.is_some_and(|sum| sum != crc32(&bytes))
        {
            return Err(bad("checksum differs"));
        }
        (self.block, self.used) = (bytes, 0);
        Ok(true)
    }

    fn sum(&mut self, there: bool) -> io::Result<Option<u32>> {
        Ok(if there { Some(u32::from_be_bytes(self.input.array()?)) } else { None })
    }
}

impl Read for Lzop {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.used >= self.block.len() {
            let Some(flags) = (match self.flags {
                None => self.header()?,
                flags => flags,
            }) else {
                return Ok(0);
            };
            self.flags = self.block(flags)?.then_some(flags);
        }
        let from = self.block.get(self.used..).unwrap_or_default();
        let len = from.len().min(to.len());
        if let (Some(to), Some(from)) = (to.get_mut(..len), from.get(..len)) {
            to.copy_from_slice(from);
        }
        self.used += len;
        Ok(len)
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Adler-32 (RFC 1950, 8.2).
fn adler32(bytes: &[u8]) -> u32 {
    const BASE: u32 = 65521;
    let (mut a, mut b) = (1u32, 0u32);
    // So many bytes can be added before `b` overflows.
    for piece in bytes.chunks(5552) {
        for byte in piece {
            a += u32::from(*byte);
            b += a;
        }
        a %= BASE;
        b %= BASE;
    }
    b << 16 | a
}
