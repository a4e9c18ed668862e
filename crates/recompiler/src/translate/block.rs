//! Translates one basic block.

use std::mem::offset_of;

use iced_x86::{
    Decoder, DecoderError, DecoderOptions, Encoder, Instruction, InstructionInfoFactory, Mnemonic,
};

use super::address::Address;
use super::check::Flags;
use super::classify::{Class, classify};
use super::emit::{Code, Mem, R11, RCX};
use super::flags::{self, live_before};
use super::inline;
use super::mode::Mode;
use crate::cache::{CodeCache, ExitKind, NewBlock, Numbers, Stubs, SystemSite};
use crate::cpu::{Cpu, Jit, flag};
use crate::mmu::Tlb;

/// Most instructions in a block.
const MAX_INSTRUCTIONS: usize = 32;
/// How far to look into a successor for the next writer of the flags.
const LOOK_AHEAD: usize = 8;

/// Decoding and encoding helpers, kept from block to block.
pub struct Tools {
    /// Operand accesses and registers.
    pub info: InstructionInfoFactory,
    encoder: Encoder,
}

impl Tools {
    /// Fresh helpers.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self { info: InstructionInfoFactory::new(), encoder: Encoder::new(64) }
    }

    /// Appends `insn`, which must not be relative to its place, to `code`.
    pub fn encode(&mut self, code: &mut Code, insn: &Instruction) -> Option<()> {
        let length = code.here();
        self.encoder.set_buffer(code.take());
        let result = self.encoder.encode(insn, 0);
        code.restore(self.encoder.take_buffer());
        if result.is_err() {
            code.truncate(length);
        }
        result.ok().map(|_| ())
    }
}

/// What to translate.
pub struct Input<'a> {
    /// Offset in CS of the block.
    pub rip: u64,
    /// Linear address of the block.
    pub linear: u64,
    /// Code page of the block.
    pub page: u32,
    /// The bytes there, at most up to the page's end, unless `second_page` is given.
    pub bytes: &'a [u8],
    /// Linear address and code page of the next page, where the first instruction continues there.
    pub second_page: Option<(u64, u32)>,
    /// The mode.
    pub mode: Mode,
}

/// Code that is put behind the block.
#[derive(Clone, Debug)]
pub enum Cold {
    /// A TLB miss.
    Miss {
        /// Jumps that come here.
        jumps: Vec<usize>,
        /// State of the flags.
        flags: Flags,
        /// The address.
        address: Address,
        /// Number of the site.
        site: u32,
    },
    /// A direct exit without a link.
    Exit {
        /// The rel32 that comes here.
        patch: usize,
        /// Number of the exit.
        exit: u32,
        /// Where it goes.
        target: u64,
    },
    /// An in-line system instruction whose case is not the ordinary one.
    System {
        /// Jumps that come here.
        jumps: Vec<usize>,
        /// The flags have to be restored.
        restore_flags: bool,
        /// Number of the system instruction.
        number: u32,
    },
    /// A failed entry check.
    Recheck {
        /// Jumps that come here.
        jumps: Vec<usize>,
        /// RCX has to be reloaded.
        restore_rcx: bool,
    },
}

/// State of one block's translation.
pub struct Translator<'a> {
    /// The block's code.
    pub code: Code,
    /// Its offset in the region.
    pub base: usize,
    /// What the cache is told of it.
    pub new: NewBlock,
    /// Numbers that its parts will get.
    pub numbers: Numbers,
    /// Direct exits so far.
    pub exits: u32,
    /// The mode.
    pub mode: Mode,
    /// Code to be put behind the block.
    pub cold: Vec<Cold>,
    /// Helpers.
    pub tools: &'a mut Tools,
    /// Offset in CS of the current instruction.
    pub rip: u64,
    stubs: &'a Stubs,
}

/// Translates a block into `cache` and returns its number. `None`: the bytes end inside the first
/// instruction, which continues on the next page.
pub fn translate(cache: &mut CodeCache, tools: &mut Tools, input: &Input) -> Option<u32> {
    let insns = decode(input)?;
    let mut live = successors_live(&insns, input);
    let lives: Vec<u32> = insns
        .iter()
        .rev()
        .map(|(insn, class)| {
            live = match class {
                Class::System => flags::ALL,
                // Even a form that stays in line may leave, with all flags.
                Class::Inline if inline::kills_flags(insn) => 0,
                Class::Inline if inline::ignores_flags(insn) => live,
                Class::Inline => flags::ALL,
                _ => live_before(insn, live),
            };
            live
        })
        .collect();
    let mut translator = Translator {
        code: Code::default(),
        base: cache.next(),
        new: NewBlock { rip: input.rip, page: input.page, ..NewBlock::default() },
        numbers: cache.next_numbers(),
        exits: 0,
        mode: input.mode,
        cold: Vec::new(),
        tools,
        rip: input.rip,
        stubs: cache.stubs(),
    };
    translator.new.second_page = input.second_page.map(|(_, page)| page);
    translator.new.flags_live = live != 0;
    translator.entry(input);
    let mut ended = false;
    for (n, ((insn, class), live)) in insns.iter().zip(lives.iter().rev()).enumerate() {
        translator.rip = insn.ip();
        let last = n + 1 == insns.len();
        ended = translator.instruction(insn, *class, *live != 0, last);
        if ended {
            break;
        }
    }
    if !ended && let Some((last, _)) = insns.last() {
        let next = translator.truncated(last.next_ip());
        translator.direct_exit(None, next);
    }
    translator.emit_cold();
    let Translator { code, new, .. } = translator;
    Some(cache.insert(&new, code.bytes()))
}

/// The block's instructions: at least one, up to the first that ends it.
fn decode(input: &Input) -> Option<Vec<(Instruction, Class)>> {
    let mut decoder = Decoder::with_ip(input.mode.bitness(), input.bytes, input.rip, DecoderOptions::NONE);
    let mut insns = Vec::with_capacity(MAX_INSTRUCTIONS);
    let limit = if input.second_page.is_some() || input.mode.step() { 1 } else { MAX_INSTRUCTIONS };
    while insns.len() < limit {
        let insn = decoder.decode();
        if insn.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes {
            if insns.is_empty() && input.second_page.is_none() {
                return None;
            }
            if !insns.is_empty() {
                break;
            }
        }
        let mut class = classify(&insn);
        if let Class::Native(unit) = class
            && !input.mode.allows(unit)
        {
            class = Class::System;
        }
        insns.push((insn, class));
        if class == Class::System && inline::known(&insn) {
            class = Class::Inline;
        }
        if let Some(last) = insns.last_mut() {
            *last = (insn, class);
        }
        if matches!(class, Class::System | Class::Branch) {
            break;
        }
    }
    Some(insns)
}

/// Flags that are live at the end of the block.
fn successors_live(insns: &[(Instruction, Class)], input: &Input) -> u32 {
    let Some((last, class)) = insns.last() else { return flags::ALL };
    match class {
        Class::Branch if last.is_jcc_short_or_near() => {
            live_at(last.near_branch_target(), input) | live_at(last.next_ip(), input)
        }
        Class::Branch
            if matches!(last.mnemonic(), Mnemonic::Jmp | Mnemonic::Call)
                && last.near_branch_target() != 0 =>
        {
            live_at(last.near_branch_target(), input)
        }
        Class::Branch | Class::System => flags::ALL,
        _ => live_at(last.next_ip(), input),
    }
}

/// Flags live at `rip`, as far as the bytes at hand tell.
fn live_at(rip: u64, input: &Input) -> u32 {
    let Some(bytes) = rip.checked_sub(input.rip).and_then(|at| input.bytes.get(at as usize..)) else {
        return flags::ALL;
    };
    let mut decoder = Decoder::with_ip(input.mode.bitness(), bytes, rip, DecoderOptions::NONE);
    let mut unknown = flags::ALL;
    let mut read = 0;
    for _ in 0..LOOK_AHEAD {
        let insn = decoder.decode();
        let system = matches!(classify(&insn), Class::System | Class::Inline);
        if insn.is_invalid() || system || !flags::transparent(&insn) {
            break;
        }
        read |= unknown & live_before(&insn, 0);
        unknown &= live_before(&insn, flags::ALL);
        if unknown == 0 {
            return read;
        }
    }
    read | unknown
}

impl Translator<'_> {
    /// Offset in the region of an offset in the block's code.
    pub fn absolute(&self, offset: usize) -> u32 {
        (self.base + offset) as u32
    }

    /// Jumps to the fixed code that leaves with `kind`.
    pub fn jump_to_stub(&mut self, kind: ExitKind) {
        let at = self.code.jmp();
        self.code.fix_to(at, i64::from(self.stubs.exit(kind)) - self.base as i64);
    }

    /// Leaves to the run loop.
    pub fn leave(&mut self, kind: ExitKind, argument: u32) {
        self.code.store_imm32(Stubs::jit(offset_of!(Jit, exit_arg)), argument);
        self.jump_to_stub(kind);
    }

    /// Both entries. The check: the page's number in the TLB is this block's, and nobody wants
    /// attention. Attention is 0 or 2^31, so page + attention = number only if both hold.
    fn entry(&mut self, input: &Input) {
        self.new.checked = self.absolute(0);
        let attention = Mem::field(offset_of!(Cpu, attention));
        let pages = [Some((input.linear, input.page)), input.second_page];
        let mut jumps = Vec::new();
        let live = self.new.flags_live;
        if live {
            self.code.store(Stubs::jit(offset_of!(Jit, saved_rcx)), RCX);
        }
        for (linear, page) in pages.into_iter().flatten() {
            let number = Mem::field(offset_of!(Cpu, tlb) + Tlb::exec_offset(linear));
            if live {
                self.code.load32(RCX, number);
                self.code.load32(R11, attention);
                let minus = -(page as i32);
                self.code.lea(
                    true,
                    RCX,
                    Mem { gs: false, base: Some(RCX), index: Some((R11, 0)), disp: minus },
                );
                let good = self.code.jrcxz();
                jumps.push(self.code.jmp());
                self.code.fix8(good);
            } else {
                self.code.cmp_mem_imm(number, page);
                jumps.push(self.code.jcc(JNE));
                self.code.cmp_mem_imm(attention, 0);
                jumps.push(self.code.jcc(JNE));
            }
        }
        if live {
            self.code.load(RCX, Stubs::jit(offset_of!(Jit, saved_rcx)));
        }
        self.cold.push(Cold::Recheck { jumps, restore_rcx: live });
        self.new.entry = self.absolute(self.code.here());
    }

    /// Emits one instruction. True: the block ends with it.
    fn instruction(&mut self, insn: &Instruction, class: Class, live: bool, last: bool) -> bool {
        let done = match class {
            Class::Nop => true,
            Class::Lea => {
                self.lea(insn);
                true
            }
            Class::Direction => {
                self.direction(insn.mnemonic() == Mnemonic::Std, live);
                true
            }
            Class::Native(_) => self.native(insn, live),
            Class::BitString => self.bit_string(insn, live),
            Class::Stack => self.stack(insn, live),
            Class::Inline => self.inline(insn, live, last),
            Class::Branch if self.branch(insn, live) => return true,
            Class::Branch | Class::System => false,
        };
        if done {
            return false;
        }
        let kind = match class {
            Class::Native(_) | Class::BitString => ExitKind::Bounce,
            _ => ExitKind::System,
        };
        let number = self.system_number(insn);
        self.leave(kind, number);
        true
    }

    /// Number of a system or bounced instruction.
    pub fn system_number(&mut self, insn: &Instruction) -> u32 {
        let disabled = matches!(classify(insn), Class::Native(unit) if !self.mode.allows(unit));
        self.new.system.push(SystemSite { rip: self.rip, insn: *insn, disabled, topic: None });
        self.numbers.system + self.new.system.len() as u32 - 1
    }

    /// CLD and STD: one bit of the stored RFLAGS.
    fn direction(&mut self, set: bool, live: bool) {
        if live {
            self.save_flags();
        }
        // or / and dword rflags, imm32
        let (reg, value) = if set { (1, flag::DF as u32) } else { (4, !flag::DF as u32) };
        self.code.rm(None, false, &[0x81], reg, Mem::field(offset_of!(Cpu, rflags)));
        self.code.raw(&value.to_le_bytes());
        if live {
            self.restore_flags();
        }
    }

    fn emit_cold(&mut self) {
        for cold in std::mem::take(&mut self.cold) {
            match cold {
                Cold::Miss { jumps, flags, address, site } => self.emit_miss(&jumps, flags, &address, site),
                Cold::Exit { patch, exit, target } => {
                    let here = self.code.here();
                    self.code.fix(patch, here);
                    self.new.exits.push((target, self.absolute(patch), self.absolute(here)));
                    self.leave(ExitKind::Chain, exit);
                }
                Cold::System { jumps, restore_flags, number } => {
                    let here = self.code.here();
                    for at in jumps {
                        self.code.fix(at, here);
                    }
                    if restore_flags {
                        self.restore_flags();
                    }
                    self.leave(ExitKind::System, number);
                }
                Cold::Recheck { jumps, restore_rcx } => {
                    let here = self.code.here();
                    for at in jumps {
                        self.code.fix(at, here);
                    }
                    if restore_rcx {
                        self.code.load(RCX, Stubs::jit(offset_of!(Jit, saved_rcx)));
                    }
                    self.leave(ExitKind::Recheck, self.numbers.block);
                }
            }
        }
    }
}

const JNE: u8 = 5;
