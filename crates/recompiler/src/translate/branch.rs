//! Near jumps, calls and returns.

use std::mem::offset_of;

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::address::Address;
use super::block::{Cold, Translator};
use super::check::Flags;
use super::emit::{Mem, R10, R11, RCX, RSP};
use crate::cache::{ExitKind, Stubs};
use crate::cpu::{Cpu, Jit, JumpCache};

impl Translator<'_> {
    /// Ends the block with the branch `insn`. False: not a native form here; nothing was emitted.
    pub fn branch(&mut self, insn: &Instruction, live: bool) -> bool {
        let flags = if live { Flags::Live } else { Flags::Dead };
        let direct =
            matches!(insn.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64)
                && insn.op_count() == 1;
        let width = self.mode.bitness() / 8;
        let full_width = match insn.op0_kind() {
            OpKind::NearBranch16 => width == 2,
            OpKind::NearBranch32 => width == 4,
            OpKind::NearBranch64 => width == 8,
            _ => true,
        };
        if !full_width {
            return false;
        }
        let target = insn.near_branch_target();
        match insn.mnemonic() {
            Mnemonic::Jmp if direct => self.direct_exit(None, target),
            Mnemonic::Jmp => {
                if !self.mode.inline_memory() || !self.indirect_target(insn, width, flags) {
                    return false;
                }
                self.code.load(R10, Stubs::jit(offset_of!(Jit, spill)));
                self.indirect_exit();
            }
            Mnemonic::Call => {
                if !self.mode.inline_stack() || (!direct && !self.indirect_target(insn, width, flags)) {
                    return false;
                }
                self.push_return(insn.next_ip(), width, flags);
                if direct {
                    self.direct_exit(None, target);
                } else {
                    self.code.load(R10, Stubs::jit(offset_of!(Jit, spill)));
                    self.indirect_exit();
                }
            }
            Mnemonic::Ret => {
                if !self.mode.inline_stack() || insn.stack_pointer_increment().unsigned_abs() < width {
                    return false;
                }
                if !Self::return_width_is(insn, width) {
                    return false;
                }
                let start = self.code.here();
                let disp = self.check(start, &Address::stack(RSP, 0, self.mode), width, false, flags);
                self.store_return(disp, width);
                self.adjust_stack(insn.stack_pointer_increment(), width);
                self.indirect_exit();
            }
            _ => {
                let condition = insn.condition_code() as u8 - 1;
                self.direct_exit(Some(condition), target);
                self.direct_exit(None, self.truncated(insn.next_ip()));
            }
        }
        true
    }

    /// The instruction pointer cut to the code size.
    pub fn truncated(&self, rip: u64) -> u64 {
        match self.mode.bitness() {
            16 => rip & 0xffff,
            32 => rip & 0xffff_ffff,
            _ => rip,
        }
    }

    fn return_width_is(insn: &Instruction, width: u32) -> bool {
        use iced_x86::Code as C;
        match insn.code() {
            C::Retnq | C::Retnq_imm16 => width == 8,
            C::Retnd | C::Retnd_imm16 => width == 4,
            _ => false,
        }
    }

    fn store_return(&mut self, disp: i32, width: u32) {
        if width == 8 {
            self.code.load(R10, Mem::at(R10, disp));
        } else {
            self.code.load32(R10, Mem::at(R10, disp));
        }
    }

    /// Puts the target of an indirect jump or call into `jit.spill`.
    fn indirect_target(&mut self, insn: &Instruction, width: u32, flags: Flags) -> bool {
        match insn.op0_kind() {
            OpKind::Register if insn.op0_register().size() as u32 == width => {
                let from = insn.op0_register().number() as u8;
                let host = if from == R10 || from == R11 {
                    self.code.load(R10, Stubs::home(from));
                    R10
                } else {
                    from
                };
                if width == 4 {
                    // 32-bit code leaves the upper half undefined.
                    self.code.rr(false, &[0x8b], R10, host);
                    self.code.store(Stubs::jit(offset_of!(Jit, spill)), R10);
                } else {
                    self.code.store(Stubs::jit(offset_of!(Jit, spill)), host);
                }
                true
            }
            OpKind::Memory if insn.memory_size().size() as u32 == width => {
                self.load_operand(insn, width, flags)
            }
            _ => false,
        }
    }

    fn push_return(&mut self, next: u64, width: u32, flags: Flags) {
        let start = self.code.here();
        let to = Address::stack(RSP, -i64::from(width), self.mode);
        let disp = self.check(start, &to, width, true, flags);
        self.store_constant(disp, next, width);
        self.adjust_stack(-(width as i32), width);
    }

    /// Leaves the block to `target`, if `condition` holds.
    pub fn direct_exit(&mut self, condition: Option<u8>, target: u64) {
        let patch = match condition {
            Some(c) => self.code.jcc(c),
            None => self.code.jmp(),
        };
        let exit = self.numbers.exit + self.exits;
        self.exits += 1;
        self.cold.push(Cold::Exit { patch, exit, target });
    }

    /// Leaves the block to the linear address in R10: through the jump cache, or to the run loop.
    /// A tag is minus (address + mode), so address + mode + tag is 0 on a hit.
    fn indirect_exit(&mut self) {
        let jumps = offset_of!(Cpu, jumps);
        self.code.store(Stubs::jit(offset_of!(Jit, saved_rcx)), RCX);
        // movzx r11d, r10w
        self.code.raw(&[0x45, 0x0f, 0xb7, 0xda]);
        self.code.load(RCX, Mem::indexed_field(jumps + offset_of!(JumpCache, tags), R11, 3));
        let mode = i32::from(self.mode.0);
        self.code.lea(true, RCX, Mem { gs: false, base: Some(RCX), index: Some((R10, 0)), disp: mode });
        let hit = self.code.jrcxz();
        self.code.load(RCX, Stubs::jit(offset_of!(Jit, saved_rcx)));
        self.jump_to_stub(ExitKind::Indirect);
        self.code.fix8(hit);
        self.code.load(RCX, Stubs::jit(offset_of!(Jit, saved_rcx)));
        self.code.jmp_mem(Mem::indexed_field(jumps + offset_of!(JumpCache, hosts), R11, 3));
    }
}
