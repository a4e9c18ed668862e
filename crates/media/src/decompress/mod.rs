//! Compressed files, seen as what they hold.
//!
//! [`open`] knows gzip, xz, Zstandard, LZ4, lzop and bzip2 files. The other functions unpack single
//! blocks for file systems.

mod block;
mod file;
mod gzip;
mod input;
mod lzo;
mod lzop;
mod zstd;

pub use block::{deflate, lz4, lzjb, xz, zle, zlib, zstd, zstd_magicless};
pub use file::open;
pub use lzo::lzo1x;

/// What a Zstandard frame begins with (RFC 8878, 3.1.1).
const ZSTD_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
