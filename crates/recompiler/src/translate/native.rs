//! Re-encoding an instruction as itself.

use std::mem::offset_of;

use iced_x86::{Code as Op, Instruction, InstructionInfo, OpAccess, OpKind, Register};

use super::address::Address;
use super::block::{Tools, Translator};
use super::check::Flags;
use super::classify::displaced;
use super::emit::{Code, Mem, R10, R11};
use crate::cache::{FaultPoint, Stubs};
use crate::cpu::{Cpu, Jit};

/// Registers that an instruction may borrow if it does not use them.
const BORROWED: [(Register, u8); 6] = [
    (Register::RAX, 0),
    (Register::RBX, 3),
    (Register::RSI, 6),
    (Register::RDI, 7),
    (Register::RDX, 2),
    (Register::RCX, 1),
];

/// A guest register that lives in the vCPU structure and stands in a host register for one
/// instruction.
#[derive(Clone, Copy)]
struct StandIn {
    guest: u8,
    host: u8,
    load: bool,
    store: bool,
}

/// Where the memory operand goes.
#[derive(Clone, Copy)]
pub enum Operand {
    /// The instruction has none.
    None,
    /// Host memory at R10 plus a displacement.
    Host(i32),
    /// The bounce buffer, at this offset of the vCPU structure.
    Bounce(u32),
}

/// An instruction form that the 64-bit encoder takes, where the guest used one that it does not.
fn portable(insn: &mut Instruction) {
    let code = match insn.code() {
        Op::Inc_r16 => Op::Inc_rm16,
        Op::Inc_r32 => Op::Inc_rm32,
        Op::Dec_r16 => Op::Dec_rm16,
        Op::Dec_r32 => Op::Dec_rm32,
        Op::Mov_AL_moffs8 => Op::Mov_r8_rm8,
        Op::Mov_AX_moffs16 => Op::Mov_r16_rm16,
        Op::Mov_EAX_moffs32 => Op::Mov_r32_rm32,
        Op::Mov_RAX_moffs64 => Op::Mov_r64_rm64,
        Op::Mov_moffs8_AL => Op::Mov_rm8_r8,
        Op::Mov_moffs16_AX => Op::Mov_rm16_r16,
        Op::Mov_moffs32_EAX => Op::Mov_rm32_r32,
        Op::Mov_moffs64_RAX => Op::Mov_rm64_r64,
        _ => return,
    };
    insn.set_code(code);
}

fn has_memory(insn: &Instruction) -> bool {
    insn.op_kinds().any(|k| k == OpKind::Memory)
}

/// Whether one of the operands is AH, CH, DH or BH, which no REX prefix may accompany.
fn high_byte(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|i| {
        insn.op_kind(i) == OpKind::Register
            && matches!(insn.op_register(i), Register::AH | Register::CH | Register::DH | Register::BH)
    })
}

/// The register `number` in the size of `like`.
fn resized(like: Register, number: u8) -> Register {
    let base = match like.size() {
        1 => return BYTE[number as usize],
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    };
    base + u32::from(number)
}

const BYTE: [Register; 16] = [
    Register::AL,
    Register::CL,
    Register::DL,
    Register::BL,
    Register::SPL,
    Register::BPL,
    Register::SIL,
    Register::DIL,
    Register::R8L,
    Register::R9L,
    Register::R10L,
    Register::R11L,
    Register::R12L,
    Register::R13L,
    Register::R14L,
    Register::R15L,
];

/// Rewrites and emits one instruction.
pub struct Rewrite<'a> {
    /// Where to.
    pub code: &'a mut Code,
    /// Encoder and instruction information.
    pub tools: &'a mut Tools,
    /// Offset of `code` in the region.
    pub base: usize,
}

impl Rewrite<'_> {
    /// Emits `insn` with its memory operand at `operand`. Returns where a host exception belongs,
    /// or `None` if the instruction can't be encoded.
    pub fn emit(&mut self, insn: &Instruction, operand: Operand) -> Option<(u32, Option<u8>)> {
        let mut new = *insn;
        portable(&mut new);
        let info = self.tools.info.info(insn).clone();
        let mut free: &[u8] = match operand {
            Operand::Host(_) => &[R11],
            _ => &[R10, R11],
        };
        let mut borrowed = None;
        let mut stand_ins: [Option<StandIn>; 2] = [None, None];
        for i in 0..new.op_count() {
            if new.op_kind(i) != OpKind::Register || !displaced(new.op_register(i)) {
                continue;
            }
            let register = new.op_register(i);
            let guest = register.full_register().number() as u8;
            let access = info.op_access(i);
            let slot = stand_ins.iter_mut().find(|s| s.is_none_or(|s| s.guest == guest))?;
            let host = match slot {
                Some(s) => s.host,
                None => match free {
                    [first, rest @ ..] => {
                        free = rest;
                        *first
                    }
                    [] => *borrowed.get_or_insert(borrow(&info)?),
                },
            };
            let (load, store) = needs(access, register.size());
            let merged = slot.get_or_insert(StandIn { guest, host, load: false, store: false });
            merged.load |= load;
            merged.store |= store;
            new.set_op_register(i, resized(register, host));
        }
        let mut base = R10;
        if high_byte(insn) && matches!(operand, Operand::Host(_)) {
            base = borrow(&info)?;
            borrowed = Some(base);
        }
        rewrite_memory(&mut new, operand, base);
        self.emit_around(&new, stand_ins, borrowed, (base != R10).then_some(base))
    }

    /// Emits loads of stand-ins, the instruction, and stores.
    fn emit_around(
        &mut self,
        new: &Instruction,
        stand_ins: [Option<StandIn>; 2],
        borrowed: Option<u8>,
        base: Option<u8>,
    ) -> Option<(u32, Option<u8>)> {
        if let Some(r) = borrowed {
            self.code.store(Stubs::jit(offset_of!(Jit, spill)), r);
        }
        if let Some(r) = base {
            self.code.mov(r, R10);
        }
        for s in stand_ins.iter().flatten().filter(|s| s.load) {
            self.code.load(s.host, Stubs::home(s.guest));
        }
        let at = (self.base + self.code.here()) as u32;
        self.tools.encode(self.code, new)?;
        for s in stand_ins.iter().flatten().filter(|s| s.store) {
            self.code.store(Stubs::home(s.guest), s.host);
        }
        if let Some(r) = borrowed {
            self.code.load(r, Stubs::jit(offset_of!(Jit, spill)));
        }
        Some((at, borrowed))
    }
}

/// Whether a stand-in has to be loaded before and stored after an access.
fn needs(access: OpAccess, size: usize) -> (bool, bool) {
    match access {
        OpAccess::Read | OpAccess::CondRead => (true, false),
        // A write of 4 or 8 bytes replaces the whole register.
        OpAccess::Write => (size < 4, true),
        _ => (true, true),
    }
}

/// A register that the instruction does not use.
fn borrow(info: &InstructionInfo) -> Option<u8> {
    BORROWED
        .into_iter()
        .find(|(r, _)| !info.used_registers().iter().any(|u| u.register().full_register() == *r))
        .map(|(_, number)| number)
}

fn rewrite_memory(new: &mut Instruction, operand: Operand, base: u8) {
    let (segment, base, disp) = match operand {
        Operand::None => return,
        Operand::Host(disp) => (Register::None, Register::RAX + u32::from(base), disp),
        Operand::Bounce(offset) => (Register::GS, Register::None, offset as i32),
    };
    new.set_segment_prefix(segment);
    new.set_memory_base(base);
    new.set_memory_index(Register::None);
    new.set_memory_index_scale(1);
    new.set_memory_displacement64(disp as i64 as u64);
    new.set_memory_displ_size(match (base, disp) {
        (Register::None, _) => 8,
        (_, 0) => 0,
        (_, d) if i8::try_from(d).is_ok() => 1,
        _ => 8,
    });
}

/// Whether the access to the memory operand stores.
pub fn writes(info: &InstructionInfo) -> bool {
    info.used_memory().iter().any(|m| {
        !matches!(m.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess | OpAccess::None)
    })
}

/// Code for `insn` with its memory operand in the bounce buffer at `offset`; falls through at its
/// end. Returns where a host exception belongs.
#[allow(clippy::option_option)] // Outer: whether it could be encoded.
pub fn bounce_code(
    code: &mut Code,
    tools: &mut Tools,
    base: usize,
    insn: &Instruction,
    offset: usize,
) -> Option<Option<u8>> {
    let field = offset_of!(Cpu, jit) + offset_of!(Jit, bounce) + offset;
    let operand = if has_memory(insn) { Operand::Bounce(field as u32) } else { Operand::None };
    Rewrite { code, tools, base }.emit(insn, operand).map(|(_, spilled)| spilled)
}

impl Translator<'_> {
    /// An ordinary instruction, with `live` arithmetic flags before it. False: it needs the bounce
    /// buffer or can't be encoded, and nothing was emitted.
    pub fn native(&mut self, insn: &Instruction, live: bool) -> bool {
        let start = self.code.here();
        let mut operand = Operand::None;
        let sites = self.new.sites.len();
        let cold = self.cold.len();
        if has_memory(insn) {
            let address = Address::of(insn, self.mode);
            let fs_or_gs = matches!(insn.memory_segment(), Register::FS | Register::GS);
            if !self.mode.inline_memory() || address.width() == 16 || (fs_or_gs && !self.mode.is64()) {
                return false;
            }
            let write = writes(self.tools.info.info(insn));
            let size = insn.memory_size().size() as u32;
            let flags = if live { Flags::Live } else { Flags::Dead };
            operand = Operand::Host(self.check(start, &address, size, write, flags));
        }
        let rewrite =
            Rewrite { code: &mut self.code, tools: self.tools, base: self.base }.emit(insn, operand);
        let Some((host, spilled)) = rewrite else {
            self.code.truncate(start);
            self.new.sites.truncate(sites);
            self.cold.truncate(cold);
            return false;
        };
        self.new.faults.push(FaultPoint { host, rip: self.rip, spilled });
        true
    }

    /// `lea`.
    pub fn lea(&mut self, insn: &Instruction) {
        let address = Address::of(insn, self.mode).offset_only();
        let to = insn.op0_register();
        let number = to.number() as u8;
        let size = to.size() as u32;
        self.address(&address);
        if displaced(to) {
            match size {
                8 => self.code.store(Stubs::home(number), R10),
                4 => {
                    self.code.rr(false, &[0x8b], R10, R10);
                    self.code.store(Stubs::home(number), R10);
                }
                _ => self.code.store_sized(Stubs::home(number), R10, 2),
            }
        } else if size == 2 {
            self.code.raw(&[0x66]);
            self.code.rr(false, &[0x8b], number, R10);
        } else {
            self.code.rr(size == 8, &[0x8b], number, R10);
        }
    }

    /// Bit test with a register bit offset: the offset moves the address. False as for `native`.
    pub fn bit_string(&mut self, insn: &Instruction, live: bool) -> bool {
        let address = Address::of(insn, self.mode);
        let fs_or_gs = matches!(insn.memory_segment(), Register::FS | Register::GS);
        let size = insn.op1_register().size() as u32;
        if !self.mode.inline_memory()
            || address.width() == 16
            || fs_or_gs
            || size == 2
            || address.uses_scratch()
        {
            return false;
        }
        let start = self.code.here();
        let flags = if live { Flags::Saved } else { Flags::Dead };
        if live {
            self.save_flags();
        }
        let bits = insn.op1_register().number() as u8;
        let field = Stubs::jit(offset_of!(Jit, spill));
        self.load_displaced(bits);
        // movsxd r11, bits32 / mov r11, bits64; then the byte offset of its word.
        self.code.rr(true, if size == 8 { &[0x8b] } else { &[0x63] }, R11, bits);
        let shift = if size == 8 { 6 } else { 5 };
        self.code.raw(&[0x49, 0xc1, 0xfb, shift]);
        self.code.store(field, R11);
        let moved = address.moved(size);
        let disp = self.check(start, &moved, size, insn.mnemonic() != iced_x86::Mnemonic::Bt, flags);
        self.load_displaced_into(R11, bits);
        // and r11d, 8*size - 1
        self.code.raw(&[0x41, 0x83, 0xe3, (8 * size - 1) as u8]);
        if live {
            self.restore_flags();
        }
        let mut new = *insn;
        new.set_op1_register(resized(insn.op1_register(), R11));
        rewrite_memory(&mut new, Operand::Host(disp), R10);
        if self.tools.encode(&mut self.code, &new).is_none() {
            unreachable!("bit tests of a register and memory are encodable");
        }
        true
    }

    /// Copies guest register `from`, wherever it lives, to host register `to`.
    pub fn load_displaced_into(&mut self, to: u8, from: u8) {
        if from == R10 || from == R11 {
            self.code.load(to, Stubs::home(from));
        } else {
            self.code.mov(to, from);
        }
    }

    /// Stores host register `from` to guest register `to`, wherever it lives.
    pub fn store_guest(&mut self, to: u8, from: Mem, size: u32) {
        if to == R10 || to == R11 {
            if size == 8 {
                self.code.load(R11, from);
            } else {
                self.code.load32(R11, from);
            }
            self.code.store(Stubs::home(to), R11);
        } else if size == 8 {
            self.code.load(to, from);
        } else {
            self.code.load32(to, from);
        }
    }
}
