//! One instruction with its memory operand in a buffer: for device registers, accesses that cross
//! pages, stores to translated code, and segmented modes. One path for every instruction.

use std::sync::{Mutex, PoisonError};

use iced_x86::{Instruction, Mnemonic, OpAccess, OpKind};

use super::SoftVcpu;
use crate::cache::ExitKind;
use crate::exception::{Exception, Exec};
use crate::mmu::AccessMode;
use crate::translate::bounce_code;
use crate::translate::emit::Code;

/// Locked instructions here exclude each other. Against accesses that go straight to RAM they are
/// not atomic: only split locks and locked accesses to device registers come this way.
static SPLIT_LOCK: Mutex<()> = Mutex::new(());

/// The operand and how it is used.
struct Operand {
    linear: u64,
    size: usize,
    read: bool,
    write: bool,
}

impl SoftVcpu {
    /// Executes `insn` at CS:RIP and advances RIP.
    pub(super) fn bounce(&mut self, insn: &Instruction) -> Exec<()> {
        let _guard = (insn.has_lock_prefix() || insn.mnemonic() == Mnemonic::Xchg)
            .then(|| SPLIT_LOCK.lock().unwrap_or_else(PoisonError::into_inner));
        self.cpu.counters.count(engine::Event::Emulated);
        let next = self.cpu.next_rip(insn);
        let bit_string = insn.op1_kind() == OpKind::Register
            && matches!(insn.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
            && insn.op0_kind() == OpKind::Memory;
        let rewritten = if bit_string { self.plain_bit_test(insn) } else { *insn };
        let operand = self.memory_operand(insn)?;
        let offset = operand.as_ref().map_or(0, |o| o.linear as usize % 64);
        if let Some(o) = &operand {
            if o.write {
                self.cpu.probe_linear(o.linear, AccessMode::Current, o.size, true)?;
            }
            if o.read {
                let mut data = [0; 64];
                let data = data.get_mut(..o.size).ok_or(Exception::ud())?;
                self.cpu.read_linear(o.linear, AccessMode::Current, data)?;
                self.cpu.jit.bounce.0[offset..offset + o.size].copy_from_slice(data);
            }
        }
        self.run_bounced(&rewritten, offset)?;
        if let Some(o) = operand.filter(|o| o.write) {
            let mut data = [0; 64];
            let data = data.get_mut(..o.size).ok_or(Exception::ud())?;
            data.copy_from_slice(&self.cpu.jit.bounce.0[offset..offset + o.size]);
            self.cpu.write_linear(o.linear, AccessMode::Current, data)?;
        }
        self.cpu.rip = next;
        Ok(())
    }

    fn memory_operand(&mut self, insn: &Instruction) -> Exec<Option<Operand>> {
        let Some(index) = (0..insn.op_count()).find(|&i| insn.op_kind(i) == OpKind::Memory) else {
            return Ok(None);
        };
        let access = self.tools.info.info(insn).op_access(index);
        let read = !matches!(access, OpAccess::Write | OpAccess::CondWrite);
        let write = !matches!(access, OpAccess::Read | OpAccess::CondRead);
        let size = insn.memory_size().size();
        let mut place = self.cpu.place(insn, index);
        if insn.op1_kind() == OpKind::Register && is_bit_test(insn) {
            place.offset = self.bit_address(insn, place.offset, size);
        }
        let linear = self.cpu.linear_address(place.seg, place.offset, size as u64, write)?;
        Ok(Some(Operand { linear, size, read, write }))
    }

    /// The offset of the word that a register bit offset selects (Intel SDM vol. 2, BT).
    fn bit_address(&self, insn: &Instruction, offset: u64, size: usize) -> u64 {
        let raw = self.cpu.register(insn.op1_register());
        let bit = match size {
            2 => raw as u16 as i16 as i64,
            4 => raw as u32 as i32 as i64,
            _ => raw as i64,
        };
        let bits = 8 * size as i64;
        let moved = offset.wrapping_add((bit.div_euclid(bits) * size as i64) as u64);
        match insn.memory_base().size().max(insn.memory_index().size()) {
            2 => moved & 0xffff,
            4 => moved & 0xffff_ffff,
            _ => moved,
        }
    }

    /// The bit test with an immediate bit number inside its word.
    fn plain_bit_test(&self, insn: &Instruction) -> Instruction {
        use iced_x86::Code as C;
        let mut new = *insn;
        let code = match insn.code() {
            C::Bt_rm16_r16 => C::Bt_rm16_imm8,
            C::Bt_rm32_r32 => C::Bt_rm32_imm8,
            C::Bt_rm64_r64 => C::Bt_rm64_imm8,
            C::Bts_rm16_r16 => C::Bts_rm16_imm8,
            C::Bts_rm32_r32 => C::Bts_rm32_imm8,
            C::Bts_rm64_r64 => C::Bts_rm64_imm8,
            C::Btr_rm16_r16 => C::Btr_rm16_imm8,
            C::Btr_rm32_r32 => C::Btr_rm32_imm8,
            C::Btr_rm64_r64 => C::Btr_rm64_imm8,
            C::Btc_rm16_r16 => C::Btc_rm16_imm8,
            C::Btc_rm32_r32 => C::Btc_rm32_imm8,
            _ => C::Btc_rm64_imm8,
        };
        let bit = self.cpu.register(insn.op1_register()) % (8 * insn.memory_size().size() as u64);
        new.set_code(code);
        new.set_op1_kind(OpKind::Immediate8);
        new.set_immediate8(bit as u8);
        new
    }

    /// Runs the instruction on the bounce buffer.
    fn run_bounced(&mut self, insn: &Instruction, offset: usize) -> Exec<()> {
        let stub = self.cache.stubs().exit(ExitKind::Done);
        let mut spilled = None;
        let tools = &mut self.tools;
        let mut encoded = true;
        let at = self.cache.scratch(|code: &mut Code, base| {
            match bounce_code(code, tools, base, insn, offset) {
                Some(s) => spilled = s,
                None => encoded = false,
            }
            let jump = code.jmp();
            code.fix_to(jump, i64::from(stub) - base as i64);
        });
        if !encoded {
            return Err(Exception::ud());
        }
        let rip = self.cpu.rip;
        self.enter(self.cache.address(at));
        if self.cpu.jit.exit_kind == ExitKind::Done as u32 {
            return Ok(());
        }
        let exception = self.fault(self.cpu.jit.exit_arg);
        self.cpu.rip = rip;
        if let Some(register) = spilled {
            self.cpu.gpr[usize::from(register)] = self.cpu.jit.spill;
        }
        Err(exception)
    }
}

fn is_bit_test(insn: &Instruction) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
}
