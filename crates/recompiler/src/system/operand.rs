//! Operands of instructions that Rust executes.

use engine::seg;
use iced_x86::{Instruction, OpKind, Register};

use crate::cpu::Cpu;
use crate::exception::Exec;

/// A memory operand before segmentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Segment register ([`engine::seg`]).
    pub seg: usize,
    /// Offset, cut to the address size.
    pub offset: u64,
}

/// Number of a segment register as in [`engine::seg`].
pub fn segment_number(register: Register) -> usize {
    match register {
        Register::ES => seg::ES,
        Register::CS => seg::CS,
        Register::SS => seg::SS,
        Register::FS => seg::FS,
        Register::GS => seg::GS,
        _ => seg::DS,
    }
}

/// Encoding number of a general register and how far up its bits sit (8 for AH–BH).
fn gpr_place(register: Register) -> (usize, u32) {
    let number = register.full_register().number() & 15;
    let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
    (number, if high { 8 } else { 0 })
}

/// Bits that a value of `size` bytes has.
pub const fn mask(size: usize) -> u64 {
    if size >= 8 { u64::MAX } else { (1 << (size * 8)) - 1 }
}

impl Cpu {
    /// Value of a general register of any size, zero-extended. Other registers read 0.
    pub fn register(&self, register: Register) -> u64 {
        if !register.is_gpr() {
            return 0;
        }
        let (number, shift) = gpr_place(register);
        self.gpr.get(number).map_or(0, |v| v >> shift & mask(register.size()))
    }

    /// Sets a general register: 32-bit writes clear the upper half, shorter ones keep the rest.
    pub fn set_register(&mut self, register: Register, value: u64) {
        if !register.is_gpr() {
            return;
        }
        let (number, shift) = gpr_place(register);
        let keep = match register.size() {
            1 => !(0xff << shift),
            2 => !0xffff,
            _ => 0,
        };
        if let Some(r) = self.gpr.get_mut(number) {
            *r = *r & keep | (value & mask(register.size())) << shift;
        }
    }

    /// Where memory operand number `op` lies.
    pub fn place(&self, insn: &Instruction, op: u32) -> Place {
        let seg = match insn.op_kind(op) {
            OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI => seg::ES,
            _ => segment_number(insn.memory_segment()),
        };
        // With segment bases taken as 0 the "virtual address" is the offset.
        let offset = insn.virtual_address(op, 0, |register, _, _| {
            Some(if register.is_segment_register() { 0 } else { self.register(register) })
        });
        Place { seg, offset: offset.unwrap_or(0) }
    }

    /// Value of operand `op` (general register, immediate, or memory of `size` bytes, at most 8).
    pub fn operand(&mut self, insn: &Instruction, op: u32, size: usize) -> Exec<u64> {
        match insn.op_kind(op) {
            OpKind::Register => Ok(self.register(insn.op_register(op)) & mask(size)),
            OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8_2nd
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => Ok(insn.immediate(op) & mask(size)),
            _ => {
                let place = self.place(insn, op);
                self.read_seg(place.seg, place.offset, size)
            }
        }
    }

    /// Writes operand `op`: a general register with its own size, or memory of `size` bytes.
    pub fn set_operand(&mut self, insn: &Instruction, op: u32, size: usize, value: u64) -> Exec<()> {
        if insn.op_kind(op) == OpKind::Register {
            self.set_register(insn.op_register(op), value);
            return Ok(());
        }
        let place = self.place(insn, op);
        self.write_seg(place.seg, place.offset, size, value)
    }

    /// Offset of the instruction after `insn`, which is at RIP.
    pub fn next_rip(&self, insn: &Instruction) -> u64 {
        let next = self.rip.wrapping_add(insn.len() as u64);
        match self.bitness() {
            64 => next,
            // A block decoded at a 16-bit offset may run past 64 KiB only to fault there.
            32 => next & 0xffff_ffff,
            _ => next & 0xffff,
        }
    }
}
