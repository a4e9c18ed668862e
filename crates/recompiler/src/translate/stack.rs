//! Near push, pop and leave.

use std::mem::offset_of;

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::address::Address;
use super::block::Translator;
use super::check::Flags;
use super::emit::{Mem, R10, R11, RSP};
use crate::cache::Stubs;
use crate::cpu::Jit;

const RBP: u8 = 5;

impl Translator<'_> {
    /// Push, pop or leave. False: not a native form here; nothing was emitted.
    pub fn stack(&mut self, insn: &Instruction, live: bool) -> bool {
        let flags = if live { Flags::Live } else { Flags::Dead };
        let width = self.mode.bitness() / 8;
        if !self.mode.inline_stack() || Self::operand_size(insn) != width {
            return false;
        }
        match insn.mnemonic() {
            Mnemonic::Leave => {
                let start = self.code.here();
                let disp = self.check(start, &Address::stack(RBP, 0, self.mode), width, false, flags);
                self.code.lea(width == 8, RSP, Mem::at(RBP, width as i32));
                self.store_guest(RBP, Mem::at(R10, disp), width);
                true
            }
            Mnemonic::Push => self.push(insn, width, flags),
            _ => self.pop(insn, width, flags),
        }
    }

    /// Bytes that the instruction pushes or pops.
    fn operand_size(insn: &Instruction) -> u32 {
        if insn.mnemonic() == Mnemonic::Leave {
            return match insn.code() {
                iced_x86::Code::Leaveq => 8,
                iced_x86::Code::Leaved => 4,
                _ => 2,
            };
        }
        insn.stack_pointer_increment().unsigned_abs()
    }

    fn push(&mut self, insn: &Instruction, width: u32, flags: Flags) -> bool {
        let to = Address::stack(RSP, -i64::from(width), self.mode);
        match insn.op0_kind() {
            OpKind::Register => {
                let from = insn.op0_register().number() as u8;
                let start = self.code.here();
                let disp = self.check(start, &to, width, true, flags);
                let mut host = from;
                if from == R10 || from == R11 {
                    self.code.load(R11, Stubs::home(from));
                    host = R11;
                }
                self.code.store_sized(Mem::at(R10, disp), host, width);
            }
            OpKind::Memory => {
                if !self.load_operand(insn, width, flags) {
                    return false;
                }
                let start = self.code.here();
                let disp = self.check(start, &to, width, true, flags);
                self.code.load(R11, Stubs::jit(offset_of!(Jit, spill)));
                self.code.store_sized(Mem::at(R10, disp), R11, width);
            }
            _ => {
                let start = self.code.here();
                let disp = self.check(start, &to, width, true, flags);
                self.store_constant(disp, insn.immediate(0), width);
            }
        }
        self.adjust_stack(-(width as i32), width);
        true
    }

    /// Stores a constant at R10 plus `disp`.
    pub fn store_constant(&mut self, disp: i32, value: u64, width: u32) {
        if width == 4 {
            self.code.store_imm32(Mem::at(R10, disp), value as u32);
        } else if let Ok(short) = i32::try_from(value as i64) {
            self.code.store_simm32(Mem::at(R10, disp), short);
        } else {
            self.code.mov_imm(R11, value);
            self.code.store(Mem::at(R10, disp), R11);
        }
    }

    /// Moves the stack pointer, leaving flags alone.
    pub fn adjust_stack(&mut self, by: i32, width: u32) {
        self.code.lea(width == 8, RSP, Mem::at(RSP, by));
    }

    /// Loads the memory operand into `jit.spill`. False: not here; nothing was emitted.
    pub fn load_operand(&mut self, insn: &Instruction, width: u32, flags: Flags) -> bool {
        let address = Address::of(insn, self.mode);
        if address.width() == 16 || (address.has_segment() && !self.mode.is64()) {
            return false;
        }
        let start = self.code.here();
        let disp = self.check(start, &address, width, false, flags);
        if width == 8 {
            self.code.load(R11, Mem::at(R10, disp));
        } else {
            self.code.load32(R11, Mem::at(R10, disp));
        }
        self.code.store(Stubs::jit(offset_of!(Jit, spill)), R11);
        true
    }

    fn pop(&mut self, insn: &Instruction, width: u32, flags: Flags) -> bool {
        let from = Address::stack(RSP, 0, self.mode);
        if insn.op0_kind() != OpKind::Register {
            return false;
        }
        let to = insn.op0_register().number() as u8;
        let start = self.code.here();
        let disp = self.check(start, &from, width, false, flags);
        if to == RSP {
            self.store_guest(RSP, Mem::at(R10, disp), width);
            return true;
        }
        self.store_guest(to, Mem::at(R10, disp), width);
        self.adjust_stack(width as i32, width);
        true
    }
}
