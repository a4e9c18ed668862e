//! Host string instructions on guest RAM.

use std::arch::asm;

use crate::cpu::ARITHMETIC_FLAGS;

/// A piece of guest RAM inside one page that the current access rights allow to use directly.
#[derive(Clone, Copy)]
pub struct Span {
    host: *mut u8,
    len: usize,
}

/// What a repeated comparison came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compared {
    /// Elements compared, the one that ended it included.
    pub done: u64,
    /// Arithmetic flags of the last comparison.
    pub flags: u64,
}

/// One of four host instructions by element size.
macro_rules! by_size {
    ($size:expr, $run:ident, $prefix:literal) => {
        match $size {
            1 => $run!(concat!($prefix, "b")),
            2 => $run!(concat!($prefix, "w")),
            4 => $run!(concat!($prefix, "d")),
            _ => $run!(concat!($prefix, "q")),
        }
    };
}

impl Span {
    /// # Safety
    /// `host` must point to `len` bytes of guest RAM, to which no Rust reference exists, for as
    /// long as the span is used.
    pub(super) const unsafe fn new(host: *mut u8, len: usize) -> Self {
        Self { host, len }
    }

    /// Copies `source`, of the same length, here as MOVS of `size`-byte elements does, overlaps
    /// included: upwards, or downwards from the last element.
    pub fn copy(&self, source: &Self, size: usize, down: bool) {
        let count = self.len.min(source.len) / size;
        if down {
            let last = count.saturating_sub(1) * size;
            macro_rules! run {
                ($insn:expr) => {
                    // SAFETY: the elements from the last one down lie in the spans, which are
                    // guest RAM (`new`); the direction flag is clear again as the ABI has it.
                    unsafe {
                        asm!("std", $insn, "cld", inout("rcx") count => _,
                            inout("rsi") source.host.add(last) => _,
                            inout("rdi") self.host.add(last) => _, options(nostack));
                    }
                };
            }
            by_size!(size, run, "rep movs");
        } else {
            macro_rules! run {
                ($insn:expr) => {
                    // SAFETY: count * size bytes are in both spans, which are guest RAM (`new`);
                    // the direction flag is clear as the ABI has it.
                    unsafe {
                        asm!($insn, inout("rcx") count => _, inout("rsi") source.host => _,
                            inout("rdi") self.host => _, options(nostack, preserves_flags));
                    }
                };
            }
            by_size!(size, run, "rep movs");
        }
    }

    /// Fills with the low `size` bytes of `value`.
    pub fn fill(&self, value: u64, size: usize) {
        let count = self.len / size;
        macro_rules! run {
            ($insn:expr) => {
                // SAFETY: as in `copy`.
                unsafe {
                    asm!($insn, inout("rcx") count => _, inout("rdi") self.host => _, in("rax") value,
                        options(nostack, preserves_flags));
                }
            };
        }
        by_size!(size, run, "rep stos");
    }

    /// Compares with `right` element by element, upwards, as CMPS does, while they are `equal` (or
    /// not). The spans are not empty.
    pub fn compare(&self, right: &Self, size: usize, equal: bool) -> Compared {
        let count = self.len.min(right.len) / size;
        let (left, flags): (usize, u64);
        macro_rules! run {
            ($insn:expr) => {
                // SAFETY: as in `copy`; the flags are read through the stack, which is declared.
                unsafe {
                    asm!($insn, "pushfq", "pop {flags}", flags = out(reg) flags, inout("rcx") count => left,
                        inout("rsi") self.host => _, inout("rdi") right.host => _)
                }
            };
        }
        if equal {
            by_size!(size, run, "repe cmps");
        } else {
            by_size!(size, run, "repne cmps");
        }
        Compared { done: (count - left) as u64, flags: flags & ARITHMETIC_FLAGS }
    }

    /// Compares `value` with the elements, upwards, as SCAS does, while they are `equal` (or not).
    /// The span is not empty.
    pub fn scan(&self, value: u64, size: usize, equal: bool) -> Compared {
        let count = self.len / size;
        let (left, flags): (usize, u64);
        macro_rules! run {
            ($insn:expr) => {
                // SAFETY: as in `compare`.
                unsafe {
                    asm!($insn, "pushfq", "pop {flags}", flags = out(reg) flags, inout("rcx") count => left,
                        inout("rdi") self.host => _, in("rax") value)
                }
            };
        }
        if equal {
            by_size!(size, run, "repe scas");
        } else {
            by_size!(size, run, "repne scas");
        }
        Compared { done: (count - left) as u64, flags: flags & ARITHMETIC_FLAGS }
    }
}
