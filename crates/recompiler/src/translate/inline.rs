//! System instructions that kernels execute all the time, in line: the interrupt flag, pushing and
//! popping flags, the time stamp. Whatever is out of the ordinary goes to the system side, before
//! anything has changed.

use std::mem::offset_of;

use engine::{Segment, seg};
use iced_x86::{Code as Op, Instruction, Mnemonic};

use super::address::Address;
use super::block::{Cold, Translator};
use super::check::Flags;
use super::classify::Unit;
use super::emit::{Mem, R10, R11, RCX, RSP};
use crate::cache::Stubs;
use crate::cpu::{ARITHMETIC_FLAGS, Cpu, Jit, SystemMsrs, flag};

const RAX: u8 = 0;
const RDX: u8 = 2;
const JNE: u8 = 5;
const JE: u8 = 4;

/// Whether there is an in-line form at all.
pub fn known(insn: &Instruction) -> bool {
    matches!(
        insn.mnemonic(),
        Mnemonic::Rdtsc
            | Mnemonic::Rdtscp
            | Mnemonic::Cli
            | Mnemonic::Sti
            | Mnemonic::Pushfq
            | Mnemonic::Popfq
            | Mnemonic::Swapgs
            | Mnemonic::Ldmxcsr
            | Mnemonic::Vldmxcsr
    )
}

/// Whether the in-line form only replaces all arithmetic flags, so that none is live before it.
pub fn kills_flags(insn: &Instruction) -> bool {
    insn.code() == Op::Popfq
}

fn rflags() -> Mem {
    Mem::field(offset_of!(Cpu, rflags))
}

/// Whether the in-line form neither reads nor changes arithmetic flags.
pub fn ignores_flags(insn: &Instruction) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Rdtsc | Mnemonic::Rdtscp | Mnemonic::Swapgs)
}

impl Translator<'_> {
    /// Emits the in-line form. False: not here; nothing was emitted. `last`: nothing follows in
    /// this block.
    pub fn inline(&mut self, insn: &Instruction, live: bool, last: bool) -> bool {
        match insn.code() {
            Op::Rdtsc if self.mode.reads_tsc() => self.time_stamp(false),
            Op::Rdtscp if self.mode.reads_tsc() => self.time_stamp(true),
            Op::Cli if self.mode.kernel64() => self.interrupt_flag(insn, false, live),
            // The instruction after STI must be in the same block: interrupts come at its end.
            Op::Sti if self.mode.kernel64() && !last && !self.mode.step() => {
                self.interrupt_flag(insn, true, live);
            }
            Op::Pushfq if self.mode.is64() => self.push_flags(),
            Op::Popfq if self.mode.is64() && !self.mode.step() => self.pop_flags(insn),
            Op::Swapgs if self.mode.kernel64() => self.swap_gs(),
            Op::Ldmxcsr_m32 | Op::VEX_Vldmxcsr_m32 => return self.load_mxcsr(insn, live),
            _ => return false,
        }
        true
    }

    /// SWAPGS at CPL 0; leaves flags alone.
    fn swap_gs(&mut self) {
        let base = Mem::field(
            offset_of!(Cpu, segments) + seg::GS * size_of::<Segment>() + offset_of!(Segment, base),
        );
        let other = Mem::field(offset_of!(Cpu, msr) + offset_of!(SystemMsrs, kernel_gs_base));
        self.code.load(R10, base);
        self.code.load(R11, other);
        self.code.store(base, R11);
        self.code.store(other, R10);
    }

    /// LDMXCSR of a value without reserved bits; the host's MXCSR is the guest's.
    fn load_mxcsr(&mut self, insn: &Instruction, live: bool) -> bool {
        let unit = if insn.code() == Op::Ldmxcsr_m32 { Unit::Sse } else { Unit::Avx };
        let address = Address::of(insn, self.mode);
        if !self.mode.is64() || !self.mode.allows(unit) {
            return false;
        }
        let start = self.code.here();
        if live {
            self.save_flags();
        }
        let flags = if live { Flags::Saved } else { Flags::Dead };
        let disp = self.check(start, &address, 4, false, flags);
        // test dword [r10 + disp], imm32
        self.code.rm(None, false, &[0xf7], 0, Mem::at(R10, disp));
        self.code.raw(&0xffff_0000u32.to_le_bytes());
        let reserved = self.code.jcc(JNE);
        let number = self.system_number(insn);
        self.cold.push(Cold::System { jumps: vec![reserved], restore_flags: live, number });
        if live {
            self.restore_flags();
        }
        self.code.rm(None, false, &[0x0f, 0xae], 2, Mem::at(R10, disp));
        true
    }

    /// RDTSC and RDTSCP: the host's counter plus the offset; leaves flags alone.
    fn time_stamp(&mut self, with_aux: bool) {
        self.code.raw(if with_aux { &[0x0f, 0x01, 0xf9] } else { &[0x0f, 0x31] });
        self.rotate_by_32(R10, RDX);
        self.code.lea(true, R10, Mem { gs: false, base: Some(R10), index: Some((RAX, 0)), disp: 0 });
        self.code.load(R11, Mem::field(offset_of!(Cpu, tsc_offset)));
        self.code.lea(true, R10, Mem { gs: false, base: Some(R10), index: Some((R11, 0)), disp: 0 });
        self.code.rr(false, &[0x8b], RAX, R10);
        self.rotate_by_32(RDX, R10);
        self.code.rr(false, &[0x8b], RDX, RDX);
        if with_aux {
            self.code.load32(RCX, Mem::field(offset_of!(Cpu, msr) + offset_of!(SystemMsrs, tsc_aux)));
        }
    }

    /// `rorx to, from, 32` (VEX.LZ.F2.0F3A.W1 F0 /r ib).
    fn rotate_by_32(&mut self, to: u8, from: u8) {
        let not = |high: u8| (high ^ 1) & 1;
        let r = not(to >> 3) << 7 | 1 << 6 | not(from >> 3) << 5 | 3;
        self.code.raw(&[0xc4, r, 0xfb, 0xf0, 0xc0 | (to & 7) << 3 | from & 7, 32]);
    }

    /// CLI and STI at CPL 0.
    fn interrupt_flag(&mut self, insn: &Instruction, on: bool, live: bool) {
        if live {
            self.save_flags();
        }
        if on {
            // An interrupt that waits is taken after the next instruction: by the system side.
            self.code.cmp_mem_imm(Mem::field(offset_of!(Cpu, jit) + offset_of!(Jit, waiting)), 0);
            let waiting = self.code.jcc(JNE);
            let system = self.system_number(insn);
            self.cold.push(Cold::System { jumps: vec![waiting], restore_flags: live, number: system });
        }
        // or / and dword rflags, imm32
        let (reg, value) = if on { (1, flag::IF as u32) } else { (4, !flag::IF as u32) };
        self.code.rm(None, false, &[0x81], reg, rflags());
        self.code.raw(&value.to_le_bytes());
        if live {
            self.restore_flags();
        }
    }

    fn push_flags(&mut self) {
        let start = self.code.here();
        let disp = self.check(start, &Address::stack(RSP, -8, self.mode), 8, true, Flags::Live);
        self.code.store(Stubs::jit(offset_of!(Jit, spill)), RAX);
        // lahf; seto al: also what restores the flags below.
        self.code.raw(&[0x9f, 0x0f, 0x90, 0xc0]);
        self.code.store_sized(Stubs::jit(offset_of!(Jit, flags)), RAX, 4);
        // movzx r11d, al; shl r11d, 11; movzx eax, ah; or r11d, eax
        self.code.raw(&[0x44, 0x0f, 0xb6, 0xd8, 0x41, 0xc1, 0xe3, 11, 0x0f, 0xb6, 0xc4, 0x41, 0x09, 0xc3]);
        self.code.load32(RAX, rflags());
        // and eax, imm32; or r11d, eax
        let kept = !(ARITHMETIC_FLAGS | flag::VM | flag::RF) as u32;
        self.code.raw(&[0x25]);
        self.code.raw(&kept.to_le_bytes());
        self.code.raw(&[0x41, 0x09, 0xc3]);
        self.code.store(Mem::at(R10, disp), R11);
        self.code.load32(RAX, Stubs::jit(offset_of!(Jit, flags)));
        // add al, 7fh; sahf
        self.code.raw(&[0x04, 0x7f, 0x9e]);
        self.code.load(RAX, Stubs::jit(offset_of!(Jit, spill)));
        self.adjust_stack(-8, 8);
    }

    /// POPFQ where only arithmetic flags and, at CPL 0, IF change.
    fn pop_flags(&mut self, insn: &Instruction) {
        let start = self.code.here();
        let disp = self.check(start, &Address::stack(RSP, 0, self.mode), 8, false, Flags::Dead);
        self.code.load32(R11, Mem::at(R10, disp));
        self.code.load32(R10, rflags());
        // xor r10d, r11d; test r10d, imm32
        self.code.raw(&[0x45, 0x31, 0xda, 0x41, 0xf7, 0xc2]);
        let mut ordinary = ARITHMETIC_FLAGS;
        if self.mode.kernel64() {
            ordinary |= flag::IF;
        }
        self.code.raw(&(!ordinary as u32).to_le_bytes());
        let mut jumps = vec![self.code.jcc(JNE)];
        if self.mode.kernel64() {
            // test r11d, IF; je over: nothing to wait for with interrupts off
            self.code.raw(&[0x41, 0xf7, 0xc3]);
            self.code.raw(&(flag::IF as u32).to_le_bytes());
            let off = self.code.jcc(JE);
            self.code.cmp_mem_imm(Mem::field(offset_of!(Cpu, jit) + offset_of!(Jit, waiting)), 0);
            jumps.push(self.code.jcc(JNE));
            let here = self.code.here();
            self.code.fix(off, here);
        }
        let number = self.system_number(insn);
        self.cold.push(Cold::System { jumps, restore_flags: false, number });
        self.code.store_sized(rflags(), R11, 4);
        self.code.store(Stubs::jit(offset_of!(Jit, spill)), RAX);
        // movzx eax, r11b; shl eax, 8; shr r11d, 11; and r11d, 1; or eax, r11d
        self.code.raw(&[0x41, 0x0f, 0xb6, 0xc3, 0xc1, 0xe0, 8, 0x41, 0xc1, 0xeb, 11, 0x41, 0x83, 0xe3, 1]);
        self.code.raw(&[0x44, 0x09, 0xd8]);
        self.code.raw(&[0x04, 0x7f, 0x9e]);
        self.code.load(RAX, Stubs::jit(offset_of!(Jit, spill)));
        self.adjust_stack(8, 8);
    }
}
