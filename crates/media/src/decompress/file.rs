//! A compressed file as a source of what it holds.
//!
//! The file is decoded once when it is opened: that finds its size and checks all of it. What came
//! out stays in memory if it is small; otherwise it is decoded again as it is read, from the start
//! if need be.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use lz4_flex::frame::FrameDecoder;

use super::block::XZ_MEMORY;
use super::gzip::{self, Gzip};
use super::input::Input;
use super::lzop::{self, Lzop};
use super::zstd::Zstd;
use crate::{Error, Fields, Result, Source, SourceRef};

/// Content is kept and found in pieces of this size.
const CHUNK: usize = 1 << 20;
/// Most content that stays in memory: decoders need up to 100 MiB of the 256 that a reader may take.
const KEEP: usize = 96;
/// Pieces kept of larger content.
const RECENT: usize = 8;
/// Most content of a file, so that a bomb goes off within seconds.
const MAX_SIZE: u64 = 4 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Gzip,
    Xz,
    Zstd,
    Lz4,
    Lzop,
    Bzip2,
}

impl Format {
    /// By the first bytes.
    fn of(start: &[u8]) -> Option<Self> {
        /// The start of xz files ("The .xz File Format", 2.1.1.1).
        const XZ: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];
        /// LZ4 frames, and those of `lz4 -l` ("LZ4 Frame Format Description").
        const LZ4: [u32; 2] = [0x184D_2204, 0x184C_2102];
        /// The first block of a bzip2 file, and the end of an empty one.
        const BZIP2: [[u8; 6]; 2] =
            [[0x31, 0x41, 0x59, 0x26, 0x53, 0x59], [0x17, 0x72, 0x45, 0x38, 0x50, 0x90]];
        if start.array(0) == Some(gzip::MAGIC) {
            return Some(Self::Gzip);
        }
        if start.array(0) == Some(XZ) {
            return Some(Self::Xz);
        }
        if start.array(0) == Some(super::ZSTD_MAGIC) {
            return Some(Self::Zstd);
        }
        if start.u32_at(0).is_some_and(|magic| LZ4.contains(&magic)) {
            return Some(Self::Lz4);
        }
        if start.array(0) == Some(lzop::MAGIC) {
            return Some(Self::Lzop);
        }
        let level = start.u8_at(3).is_some_and(|level| (b'1'..=b'9').contains(&level));
        let block = start.array(4).is_some_and(|block| BZIP2.contains(&block));
        (start.array(0) == Some(*b"BZh") && level && block).then_some(Self::Bzip2)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Lzop => "lzop",
            Self::Bzip2 => "bzip2",
        }
    }

    fn decoder(self, source: &SourceRef) -> Box<dyn Read + Send> {
        let input = Input::new(source.clone());
        match self {
            Self::Gzip => Box::new(Gzip::new(input)),
            Self::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(input, true, XZ_MEMORY)),
            Self::Zstd => Box::new(Zstd::new(input)),
            Self::Lz4 => Box::new(Lz4(FrameDecoder::new(input))),
            Self::Lzop => Box::new(Lzop::new(input)),
            Self::Bzip2 => Box::new(bzip2::read::MultiBzDecoder::new(input)),
        }
    }
}

/// All frames of an LZ4 file, one after the other.
struct Lz4(FrameDecoder<Input>);

impl Read for Lz4 {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        loop {
            let len = self.0.read(to)?;
            if len > 0 || to.is_empty() || self.0.get_mut().available()?.is_empty() {
                return Ok(len);
            }
        }
    }
}

/// What a compressed file holds. `None` if it is not compressed, by its first bytes.
pub fn open(source: SourceRef) -> Result<Option<SourceRef>> {
    let start = source.read_vec(0, source.size().min(16) as usize)?;
    let Some(format) = Format::of(&start) else { return Ok(None) };
    let mut content = Content {
        source,
        format,
        size: 0,
        kept: Vec::new(),
        stream: Mutex::new(Stream { decoder: None, next: 0, recent: VecDeque::new() }),
    };
    content.measure()?;
    Ok(Some(Arc::new(content)))
}

struct Content {
    source: SourceRef,
    format: Format,
    size: u64,
    /// All of the content, if it is small.
    kept: Vec<Vec<u8>>,
    stream: Mutex<Stream>,
}

/// A decoder at work.
struct Stream {
    decoder: Option<Box<dyn Read + Send>>,
    /// The number of the piece that comes out next.
    next: u64,
    recent: VecDeque<(u64, Arc<Vec<u8>>)>,
}

impl Content {
    fn error(&self, error: &io::Error) -> Error {
        let what = match error.kind() {
            io::ErrorKind::UnexpectedEof => "the file ends too early".to_string(),
            _ => error.to_string(),
        };
        Error::corrupt(self.format.name(), what)
    }

    fn chunk(&self, decoder: &mut dyn Read) -> Result<Vec<u8>> {
        let mut chunk = Vec::new();
        decoder.take(CHUNK as u64).read_to_end(&mut chunk).map_err(|error| self.error(&error))?;
        Ok(chunk)
    }

    fn measure(&mut self) -> Result<()> {
        let mut decoder = self.format.decoder(&self.source);
        let mut keep = true;
        loop {
            let chunk = self.chunk(&mut decoder)?;
            self.size += chunk.len() as u64;
            if self.size > MAX_SIZE {
                let (name, limit) = (self.format.name(), MAX_SIZE >> 30);
                return Err(Error::TooLarge(format!("the content of this {name} file (limit {limit} GiB)")));
            }
            let last = chunk.len() < CHUNK;
            if keep {
                self.kept.push(chunk);
            }
            if self.kept.len() > KEEP {
                keep = false;
                self.kept = Vec::new();
            }
            if last {
                return Ok(());
            }
        }
    }

    /// Piece `number` of content that isn't kept.
    fn find(&self, stream: &mut Stream, number: u64) -> Result<Arc<Vec<u8>>> {
        if let Some((_, chunk)) = stream.recent.iter().find(|(other, _)| *other == number) {
            return Ok(chunk.clone());
        }
        if number < stream.next {
            stream.decoder = None;
        }
        loop {
            // Taken out, so that it is gone if it fails.
            let mut decoder = stream.decoder.take().unwrap_or_else(|| {
                stream.next = 0;
                self.format.decoder(&self.source)
            });
            let chunk = Arc::new(self.chunk(&mut decoder)?);
            if chunk.is_empty() {
                return Err(Error::corrupt(self.format.name(), "the file has become shorter"));
            }
            stream.decoder = Some(decoder);
            let here = stream.next;
            stream.next += 1;
            if stream.recent.len() >= RECENT {
                stream.recent.pop_front();
            }
            stream.recent.push_back((here, chunk.clone()));
            if here == number {
                return Ok(chunk);
            }
        }
    }
}

impl Source for Content {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        crate::source::check(self.size, offset, to.len() as u64)?;
        let mut stream = None;
        let (mut offset, mut to) = (offset, to);
        while !to.is_empty() {
            let (number, start) = (offset / CHUNK as u64, (offset % CHUNK as u64) as usize);
            let found;
            let chunk = if let Some(chunk) = self.kept.get(number as usize) {
                chunk
            } else {
                let stream =
                    stream.get_or_insert_with(|| self.stream.lock().unwrap_or_else(PoisonError::into_inner));
                found = self.find(stream, number)?;
                &*found
            };
            let from = chunk.get(start..).unwrap_or_default();
            let len = from.len().min(to.len());
            let (now, later) = to.split_at_mut(len);
            let from = from.get(..len).filter(|from| !from.is_empty());
            now.copy_from_slice(from.ok_or_else(|| Error::corrupt(self.format.name(), "content changed"))?);
            offset += len as u64;
            to = later;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::testing::{Random, Scratch, have};
    use crate::{Bytes, FileSource};

    /// `plain` through a program, by files.
    fn pack(scratch: &Scratch, plain: &[u8], command: &[&str]) -> Option<Vec<u8>> {
        let (program, arguments) = command.split_first()?;
        if !have(program) {
            return None;
        }
        let input = scratch.join("plain");
        fs::write(&input, plain).unwrap();
        let output = scratch.join("packed");
        let status = Command::new(program)
            .args(arguments)
            .stdin(fs::File::open(&input).unwrap())
            .stdout(fs::File::create(&output).unwrap())
            .stderr(Stdio::null())
            .status();
        assert!(status.unwrap().success(), "{command:?}");
        Some(fs::read(&output).unwrap())
    }

    fn source(bytes: &[u8]) -> SourceRef {
        Arc::new(Bytes(bytes.to_vec()))
    }

    const PROGRAMS: &[&[&str]] = &[
        &["gzip", "-9c"],
        &["gzip", "-1c"],
        &["xz", "-c"],
        &["xz", "-cT2", "--block-size=200000", "--check=sha256"],
        &["xz", "-c", "--x86", "--lzma2=preset=3"],
        &["zstd", "-c"],
        &["zstd", "-19c"],
        &["zstd", "-c", "--long=25", "--no-check"],
        &["lz4", "-c"],
        &["lz4", "-lc"],
        &["lz4", "-9c", "-BD", "-B4"],
        &["lzop", "-c"],
        &["lzop", "-9c"],
        &["lzop", "-c", "--crc32"],
        &["bzip2", "-c"],
    ];

    #[test]
    fn every_program_is_understood() {
        let scratch = Scratch::new("packed");
        let mut random = Random::new(3);
        let mut plain = random.bytes(700_000);
        plain.extend(vec![0; 2_000_000]);
        plain.extend(b"A text that repeats itself. ".repeat(30_000));
        for content in [&plain[..], b"x", b""] {
            for command in PROGRAMS {
                let Some(packed) = pack(&scratch, content, command) else { continue };
                let opened = open(source(&packed)).unwrap_or_else(|error| panic!("{command:?}: {error}"));
                let opened = opened.unwrap_or_else(|| panic!("{command:?}: not recognized"));
                assert!(opened.read_vec(0, opened.size() as usize).unwrap() == content, "{command:?}");
                if content.len() > 1 {
                    let tail = opened.read_vec(opened.size() - 5000, 5000).unwrap();
                    assert!(tail == content[content.len() - 5000..], "{command:?}");
                    let cut = open(source(&packed[..packed.len() * 2 / 3]));
                    assert!(cut.is_err(), "{command:?}: a cut file");
                    if command.contains(&"-lc") {
                        // Nothing marks the end of a frame of this kind.
                        continue;
                    }
                    // Two files in one are one.
                    let both = open(source(&[&packed[..], &packed[..]].concat())).unwrap().unwrap();
                    assert_eq!(both.size(), 2 * content.len() as u64, "{command:?}");
                }
            }
        }
    }

    #[test]
    fn other_files_are_left_alone() {
        for bytes in [&b""[..], b"\x1f", b"BZhello, world", b"\x7fELF\x02\x01\x01", b"\x1f\x8b\x07 packed"] {
            assert!(open(source(bytes)).unwrap().is_none());
        }
    }

    #[test]
    fn a_wrong_byte_is_found() {
        let scratch = Scratch::new("wrong");
        let plain = Random::new(4).bytes(100_000);
        for command in PROGRAMS.iter().filter(|command| !command.contains(&"-lc")) {
            let Some(mut packed) = pack(&scratch, &plain, command) else { continue };
            let middle = packed.len() / 2;
            packed[middle] ^= 0x10;
            if !command.contains(&"--no-check") {
                assert!(open(source(&packed)).is_err(), "{command:?}");
            }
        }
    }

    #[test]
    fn large_content_is_decoded_again() {
        let scratch = Scratch::new("large");
        let piece = Random::new(9).bytes(1 << 20);
        let mut plain = Vec::new();
        for number in 0..100u64 {
            plain.extend(number.to_le_bytes());
            plain.extend_from_slice(&piece);
        }
        plain.extend(vec![7; 5_000_000]);
        let Some(packed) = pack(&scratch, &plain, &["lz4", "-c"]) else { return };
        let path = scratch.join("large.lz4");
        fs::write(&path, packed).unwrap();
        let opened = open(Arc::new(FileSource::open(&path).unwrap())).unwrap().unwrap();
        assert_eq!(opened.size(), plain.len() as u64);
        for offset in [0, 50_000_000, 49_000_001, 103_000_000, 12_345_678, 5, plain.len() - 3_000_000] {
            let ours = opened.read_vec(offset as u64, 3_000_000).unwrap();
            assert!(ours == plain[offset..offset + 3_000_000], "at {offset}");
        }
        assert!(opened.read_vec(plain.len() as u64, 1).is_err());
    }

    #[test]
    fn bombs_are_refused() {
        // Six bytes of a zstd block for each 128 KiB: a file of 100 KB would hold more than 4 GiB.
        let mut bomb = super::super::ZSTD_MAGIC.to_vec();
        // No checksum, no size, a window of 128 KiB (RFC 8878, 3.1.1.1).
        bomb.extend([0, 7 << 3]);
        for _ in 0..33_000 {
            let header = (128u32 << 10) << 3 | 1 << 1;
            bomb.extend(&header.to_le_bytes()[..3]);
            bomb.push(b'x');
        }
        bomb.extend([1, 0, 0]);
        let error = open(source(&bomb)).err().unwrap().to_string();
        assert_eq!(error, "the content of this zstd file (limit 4 GiB) is too large");
    }

    #[test]
    fn damage_is_no_panic() {
        let scratch = Scratch::new("damage");
        let plain = [Random::new(8).bytes(30_000), vec![0; 30_000]].concat();
        for command in PROGRAMS {
            let Some(packed) = pack(&scratch, &plain, command) else { continue };
            let mut random = Random::new(command.len() as u64);
            for _ in 0..100 {
                let mut damaged = packed.clone();
                for _ in 0..=random.below(4) {
                    let reach = if random.below(2) == 0 { 64 } else { damaged.len() as u64 };
                    let at = random.below(reach) as usize;
                    damaged[at] = random.word() as u8;
                }
                if random.below(4) == 0 {
                    damaged.truncate(random.below(damaged.len() as u64) as usize);
                }
                let _ = open(source(&damaged));
            }
        }
    }
}
