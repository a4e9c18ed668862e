//! Small kernels for the tests.

use std::path::{Path, PathBuf};

use memory::{Backing, GuestMemory};

use crate::{Image, MapEntry, Request};

/// A directory that goes away with its value.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("boot-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn memory(size: u64) -> GuestMemory {
    GuestMemory::new(&[(0, size)], &Backing::Anonymous).unwrap()
}

pub const MAP: [MapEntry; 2] =
    [MapEntry { base: 0, len: 0xa_0000, kind: 1 }, MapEntry { base: 0x10_0000, len: 0x30_0000, kind: 1 }];

pub fn request<'a>(memory: &'a GuestMemory, kernel: &'a Path) -> Request<'a> {
    Request { memory, kernel, initrd: None, cmdline: "", map: &MAP, rsdp: None }
}

/// Bytes as a file called `name`.
pub fn image(name: &str, bytes: Vec<u8>) -> Image {
    Image::new(name, std::sync::Arc::new(media::Bytes(bytes)))
}

/// `N` bytes of guest memory.
pub fn at<const N: usize>(memory: &GuestMemory, gpa: u64) -> [u8; N] {
    let mut bytes = [0; N];
    memory.read(gpa, &mut bytes).unwrap();
    bytes
}

/// A 32-bit word of guest memory.
pub fn word(memory: &GuestMemory, gpa: u64) -> u32 {
    u32::from_le_bytes(at(memory, gpa))
}

/// A 64-bit word of guest memory.
pub fn long(memory: &GuestMemory, gpa: u64) -> u64 {
    u64::from_le_bytes(at(memory, gpa))
}

/// Four setup sectors and a payload that starts with "KRNL"; needs 8 MiB at 16 MiB.
pub fn bzimage(version: u16, xloadflags: u16) -> Vec<u8> {
    let mut b = vec![0; 0xa00 + 0x3000];
    let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[4]);
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &version.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[1, 21]);
    put(0x236, &xloadflags.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x80_0000u32.to_le_bytes());
    put(0xa00, b"KRNL");
    b
}

/// One segment at `paddr`, 100h bytes of file and 3000h of memory, and a PVH note for `entry`.
pub fn elf(long: bool, paddr: u64, entry: Option<u64>) -> Vec<u8> {
    let mut note = Vec::new();
    let desc = entry.unwrap_or(0).to_le_bytes();
    let desc = if long { &desc[..] } else { &desc[..4] };
    for word in [4, desc.len() as u32, if entry.is_some() { 18 } else { 6 }] {
        note.extend_from_slice(&word.to_le_bytes());
    }
    note.extend_from_slice(b"Xen\0");
    note.extend_from_slice(desc);

    let mut b = vec![0; 0x200];
    let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF");
    put(4, &[if long { 2 } else { 1 }, 1, 1]);
    put(0x10, &[2, 0, if long { 62 } else { 3 }, 0, 1]);
    let headers: [(u32, [u64; 6]); 2] = [
        (1, [0x200, paddr, paddr, 0x100, 0x3000, 0x1000]),
        (4, [0x300, 0, 0, note.len() as u64, note.len() as u64, 4]),
    ];
    if long {
        put(0x20, &0x40u64.to_le_bytes());
        put(0x36, &[56, 0, 2, 0]);
        for (n, (kind, words)) in headers.iter().enumerate() {
            put(0x40 + 56 * n, &kind.to_le_bytes());
            for (i, word) in words.iter().enumerate() {
                put(0x48 + 56 * n + 8 * i, &word.to_le_bytes());
            }
        }
    } else {
        put(0x1c, &0x34u32.to_le_bytes());
        put(0x2a, &[32, 0, 2, 0]);
        for (n, (kind, [offset, vaddr, paddr, file, mem, align])) in headers.iter().enumerate() {
            let words = [u64::from(*kind), *offset, *vaddr, *paddr, *file, *mem, 0, *align];
            for (i, word) in words.iter().enumerate() {
                put(0x34 + 32 * n + 4 * i, &(*word as u32).to_le_bytes());
            }
        }
    }
    b.extend_from_slice(b"SEGMENT!");
    b.resize(0x300, 0x11);
    b.extend_from_slice(&note);
    b
}
