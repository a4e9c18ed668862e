//! Effective addresses.

use std::mem::{offset_of, size_of};

use engine::{Segment, seg};
use iced_x86::{Instruction, Register};

use super::block::Translator;
use super::emit::{Mem, R10, R11};
use super::mode::Mode;
use crate::cache::Stubs;
use crate::cpu::Cpu;

/// How to compute a linear address into R10, leaving flags alone.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    base: Option<u8>,
    index: Option<(u8, u8)>,
    disp: i64,
    /// Segment whose base is added (FS or GS).
    segment: Option<usize>,
    /// Bits of the effective address: 16, 32 or 64.
    width: u32,
    /// Add the value of `jit.spill` times 2^this (the byte offset of a bit string).
    spill_scale: Option<u8>,
}

impl Address {
    /// The memory operand of `insn`.
    pub fn of(insn: &Instruction, mode: Mode) -> Self {
        let segment = match insn.memory_segment() {
            Register::FS => Some(seg::FS),
            Register::GS => Some(seg::GS),
            _ => None,
        };
        let gpr = |r: Register| r.is_gpr().then(|| r.number() as u8);
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let width = if base.is_gpr() || index.is_gpr() {
            8 * base.size().max(index.size()) as u32
        } else if base == Register::EIP {
            32
        } else if base == Register::RIP {
            64
        } else {
            match insn.memory_displ_size() {
                2 => 16,
                4 => 32,
                8 => 64,
                _ => mode.bitness(),
            }
        };
        let scale = insn.memory_index_scale().trailing_zeros() as u8;
        Self {
            base: gpr(base),
            index: gpr(index).map(|r| (r, scale)),
            disp: insn.memory_displacement64() as i64,
            segment,
            width,
            spill_scale: None,
        }
    }

    /// `disp` bytes from the stack pointer.
    pub fn stack(register: u8, disp: i64, mode: Mode) -> Self {
        Self {
            base: Some(register),
            index: None,
            disp,
            segment: None,
            width: mode.bitness(),
            spill_scale: None,
        }
    }

    /// Without the segment base: what LEA computes.
    pub fn offset_only(self) -> Self {
        Self { segment: None, ..self }
    }

    /// The linear address, where it does not depend on registers.
    pub fn constant(&self) -> Option<u64> {
        if self.base.is_some() || self.index.is_some() || self.segment.is_some() || self.spill_scale.is_some()
        {
            return None;
        }
        Some(truncate(self.disp as u64, self.width))
    }

    /// Whether it reads a displaced register or a constant: then no bit offset can be added.
    pub fn uses_scratch(&self) -> bool {
        let scratch = |r: u8| r == R10 || r == R11;
        self.base.is_some_and(scratch) || self.index.is_some_and(|(r, _)| scratch(r))
    }

    /// Moved by `size` times the value of `jit.spill`.
    pub fn moved(self, size: u32) -> Self {
        Self { spill_scale: Some(size.trailing_zeros() as u8), ..self }
    }

    /// Whether a segment base is added.
    pub fn has_segment(&self) -> bool {
        self.segment.is_some()
    }

    /// Bits of the effective address.
    pub fn width(&self) -> u32 {
        self.width
    }
}

fn truncate(value: u64, bits: u32) -> u64 {
    if bits == 64 { value } else { value & ((1 << bits) - 1) }
}

/// The base field of segment register `n`.
fn segment_base(n: usize) -> Mem {
    Mem::field(offset_of!(Cpu, segments) + n * size_of::<Segment>() + offset_of!(Segment, base))
}

impl Translator<'_> {
    /// Computes `address` into R10. Uses R11, leaves flags alone.
    pub fn address(&mut self, address: &Address) {
        if let Some(value) = address.constant() {
            self.code.mov_imm(R10, value);
            return;
        }
        if let Some(scale) = address.spill_scale {
            self.address(&Address { spill_scale: None, ..*address });
            self.code.load(R11, Stubs::jit(std::mem::offset_of!(crate::cpu::Jit, spill)));
            let wide = address.width == 64;
            self.code.lea(wide, R10, Mem { gs: false, base: Some(R10), index: Some((R11, scale)), disp: 0 });
            return;
        }
        let disp = address.disp as i32;
        let plain = address.base.is_none() && address.index.is_none();
        if plain {
            if let Some(segment) = address.segment {
                // FS or GS plus a constant, as per-CPU data is addressed.
                let value = truncate(address.disp as u64, address.width);
                if let Ok(disp) = i32::try_from(value as i64) {
                    self.code.load(R10, segment_base(segment));
                    self.code.lea(true, R10, Mem::at(R10, disp));
                } else {
                    self.code.mov_imm(R10, value);
                    self.code.load(R11, segment_base(segment));
                    self.code.lea(
                        true,
                        R10,
                        Mem { gs: false, base: Some(R10), index: Some((R11, 0)), disp: 0 },
                    );
                }
            }
            return;
        }
        for r in [address.base, address.index.map(|(r, _)| r)].into_iter().flatten() {
            self.load_displaced(r);
        }
        match (address.base, address.index, disp, address.width) {
            (Some(base), None, 0, 64) => {
                if base != R10 {
                    self.code.mov(R10, base);
                }
            }
            (base, index, disp, width) => {
                self.code.lea(width == 64, R10, Mem { gs: false, base, index, disp });
            }
        }
        if address.width == 16 {
            // movzx r10d, r10w
            self.code.raw(&[0x45, 0x0f, 0xb7, 0xd2]);
        }
        if let Some(segment) = address.segment {
            self.code.load(R11, segment_base(segment));
            self.code.lea(true, R10, Mem { gs: false, base: Some(R10), index: Some((R11, 0)), disp: 0 });
        }
    }

    /// Loads a displaced guest register into its host namesake.
    pub fn load_displaced(&mut self, register: u8) {
        if register == R10 || register == R11 {
            self.code.load(register, Stubs::home(register));
        }
    }
}
