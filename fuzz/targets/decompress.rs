//! Compressed files and blocks.
#![no_main]

use std::sync::Arc;

use media::{Bytes, decompress};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    const MAX: usize = 1 << 20;
    let _ = decompress::zlib(data, MAX);
    let _ = decompress::zstd(data, MAX);
    let _ = decompress::lz4(data, MAX);
    let _ = decompress::xz(data, MAX);
    let _ = decompress::lzo1x(data, MAX);
    let _ = decompress::lzjb(data, MAX);
    let _ = decompress::zle(data, MAX);
    if let Ok(Some(plain)) = decompress::open(Arc::new(Bytes(data.to_vec()))) {
        let mut bytes = vec![0; plain.size().min(MAX as u64) as usize];
        let _ = plain.read_at(0, &mut bytes);
        let _ = plain.read_at(plain.size().saturating_sub(16), &mut bytes[..16.min(plain.size() as usize)]);
    }
});
