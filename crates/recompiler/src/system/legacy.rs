//! Stack, near control flow and old arithmetic: generic forms of what is mostly native, for the
//! modes and operands where it is not, and instructions that 64-bit mode does not have.

use engine::{reg, seg};
use iced_x86::{Instruction, Mnemonic, OpKind};

use super::operand::mask;
use super::{Flow, Outcome};
use crate::cpu::{ARITHMETIC_FLAGS, Cpu, flag};
use crate::exception::{Exception, Exec, vector};

/// Executes this topic's instructions.
pub fn execute(cpu: &mut Cpu, insn: &Instruction) -> Outcome {
    use Mnemonic as M;
    Some(match insn.mnemonic() {
        M::Push => push(cpu, insn),
        M::Pop => pop(cpu, insn),
        M::Pusha | M::Pushad => push_all(cpu, insn),
        M::Popa | M::Popad => pop_all(cpu, insn),
        M::Enter => enter(cpu, insn),
        M::Leave => leave(cpu, insn),
        M::Call if !insn.is_call_far() && !insn.is_call_far_indirect() => call(cpu, insn),
        M::Jmp if !insn.is_jmp_far() && !insn.is_jmp_far_indirect() => near_jump(cpu, insn),
        M::Ret => ret(cpu, insn),
        M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz | M::Jrcxz => counted(cpu, insn),
        M::Xlatb => xlat(cpu, insn),
        M::Bound => bound(cpu, insn),
        M::Aaa => Ok(adjust(cpu, true)),
        M::Aas => Ok(adjust(cpu, false)),
        M::Daa => Ok(decimal(cpu, true)),
        M::Das => Ok(decimal(cpu, false)),
        M::Aam => aam(cpu, insn),
        M::Aad => Ok(aad(cpu, insn)),
        M::Salc => {
            let value = if cpu.rflags & flag::CF != 0 { 0xff } else { 0 };
            set_low(cpu, reg::RAX, value, 1);
            Ok(Flow::Next)
        }
        M::Lea => {
            let place = cpu.place(insn, 1);
            cpu.set_register(insn.op0_register(), place.offset);
            Ok(Flow::Next)
        }
        _ if insn.is_jcc_short_or_near() => {
            if condition(cpu, insn) {
                near_jump(cpu, insn)
            } else {
                Ok(Flow::Next)
            }
        }
        _ => return None,
    })
}

/// Sets the low `size` bytes of a register.
fn set_low(cpu: &mut Cpu, register: usize, value: u64, size: usize) {
    let m = mask(size);
    cpu.gpr[register] = if size == 4 { value & m } else { cpu.gpr[register] & !m | value & m };
}

fn stack_size(insn: &Instruction) -> usize {
    insn.stack_pointer_increment().unsigned_abs() as usize
}

fn push(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let size = stack_size(insn);
    let value = cpu.operand(insn, 0, size)?;
    cpu.push(size, value)?;
    Ok(Flow::Next)
}

fn pop(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let size = stack_size(insn);
    let value = cpu.peek(0, size)?;
    let before = cpu.stack_pointer();
    // A memory operand addressed by the stack pointer sees it after the increment.
    cpu.set_stack_pointer(before.wrapping_add(size as u64));
    if let Err(fault) = cpu.set_operand(insn, 0, size, value) {
        cpu.set_stack_pointer(before);
        return Err(fault);
    }
    Ok(Flow::Next)
}

/// Operand size of PUSHA and POPA.
fn all_size(insn: &Instruction) -> usize {
    if matches!(insn.mnemonic(), Mnemonic::Pushad | Mnemonic::Popad) { 4 } else { 2 }
}

fn push_all(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let size = all_size(insn);
    let (values, before) = (cpu.gpr, cpu.stack_pointer());
    for value in &values[..8] {
        if let Err(fault) = cpu.push(size, value & mask(size)) {
            cpu.set_stack_pointer(before);
            return Err(fault);
        }
    }
    Ok(Flow::Next)
}

fn pop_all(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let size = all_size(insn);
    let mut values = [0; 8];
    for (n, value) in values.iter_mut().enumerate() {
        *value = cpu.peek((n * size) as u64, size)?;
    }
    let sp = cpu.stack_pointer().wrapping_add(8 * size as u64);
    cpu.set_stack_pointer(sp);
    for (n, value) in values.into_iter().enumerate() {
        // The stack pointer's own value is skipped.
        if 7 - n != reg::RSP {
            set_low(cpu, 7 - n, value, size);
        }
    }
    Ok(Flow::Next)
}

/// ENTER (Intel SDM vol. 2).
fn enter(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    use iced_x86::Code as C;
    let size = match insn.code() {
        C::Enterw_imm16_imm8 => 2,
        C::Enterd_imm16_imm8 => 4,
        _ => 8,
    };
    let level = insn.immediate8_2nd() % 32;
    let before = cpu.gpr;
    let restore = |cpu: &mut Cpu, fault| {
        cpu.gpr = before;
        Err(fault)
    };
    if let Err(fault) = cpu.push(size, before[reg::RBP] & mask(size)) {
        return restore(cpu, fault);
    }
    let frame = cpu.stack_pointer();
    for n in 1..level {
        let at = before[reg::RBP].wrapping_sub(u64::from(n) * size as u64) & cpu.stack_mask();
        let copied = cpu.read_seg(seg::SS, at, size).and_then(|v| cpu.push(size, v));
        if let Err(fault) = copied {
            return restore(cpu, fault);
        }
    }
    if level > 0
        && let Err(fault) = cpu.push(size, frame & mask(size))
    {
        return restore(cpu, fault);
    }
    let sp = cpu.stack_pointer().wrapping_sub(u64::from(insn.immediate16()));
    // The new top must be writable, as if something were pushed there.
    let top = sp & cpu.stack_mask();
    let probe = cpu
        .linear_address(seg::SS, top, size as u64, true)
        .and_then(|linear| cpu.probe_linear(linear, crate::mmu::AccessMode::Current, size, true));
    if let Err(fault) = probe {
        return restore(cpu, fault);
    }
    cpu.set_stack_pointer(sp);
    set_low(cpu, reg::RBP, frame, size);
    Ok(Flow::Next)
}

fn leave(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    use iced_x86::Code as C;
    let size = match insn.code() {
        C::Leavew => 2,
        C::Leaved => 4,
        _ => 8,
    };
    let frame = cpu.gpr[reg::RBP] & cpu.stack_mask();
    let value = cpu.read_seg(seg::SS, frame, size)?;
    cpu.set_stack_pointer(frame.wrapping_add(size as u64));
    set_low(cpu, reg::RBP, value, size);
    Ok(Flow::Next)
}

/// Bytes of the target of a near jump, call or return.
fn branch_size(insn: &Instruction) -> usize {
    match insn.op0_kind() {
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 => 4,
        OpKind::NearBranch64 => 8,
        OpKind::Register => insn.op0_register().size(),
        _ => insn.memory_size().size(),
    }
}

fn branch_target(cpu: &mut Cpu, insn: &Instruction) -> Exec<u64> {
    match insn.op0_kind() {
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => Ok(insn.near_branch_target()),
        _ => cpu.operand(insn, 0, branch_size(insn)),
    }
}

/// Checks a near target: canonical in 64-bit mode, inside CS otherwise.
fn checked_target(cpu: &Cpu, target: u64) -> Exec<u64> {
    let good = if cpu.code64() {
        super::features::canonical(target)
    } else {
        target <= u64::from(cpu.segments[seg::CS].limit)
    };
    if good { Ok(target) } else { Err(Exception::gp(0)) }
}

fn near_jump(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let target = branch_target(cpu, insn)?;
    cpu.rip = checked_target(cpu, target)?;
    Ok(Flow::Jump)
}

fn call(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let target = branch_target(cpu, insn)?;
    let target = checked_target(cpu, target)?;
    let size = branch_size(insn);
    let next = cpu.next_rip(insn) & mask(size);
    cpu.push(size, next)?;
    cpu.rip = target;
    Ok(Flow::Jump)
}

fn ret(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    use iced_x86::Code as C;
    let size = match insn.code() {
        C::Retnw | C::Retnw_imm16 => 2,
        C::Retnd | C::Retnd_imm16 => 4,
        _ => 8,
    };
    let target = cpu.peek(0, size)?;
    let target = checked_target(cpu, target)?;
    let extra = if insn.op_count() > 0 { u64::from(insn.immediate16()) } else { 0 };
    let sp = cpu.stack_pointer().wrapping_add(size as u64 + extra);
    cpu.set_stack_pointer(sp);
    cpu.rip = target;
    Ok(Flow::Jump)
}

/// Whether the condition of a Jcc holds.
fn condition(cpu: &Cpu, insn: &Instruction) -> bool {
    let f = |bit: u64| cpu.rflags & bit != 0;
    // Conditions in opcode order; odd ones are the negation of the one before.
    let number = insn.condition_code() as u8 - 1;
    let holds = match number / 2 {
        0 => f(flag::OF),
        1 => f(flag::CF),
        2 => f(flag::ZF),
        3 => f(flag::CF) || f(flag::ZF),
        4 => f(flag::SF),
        5 => f(flag::PF),
        6 => f(flag::SF) != f(flag::OF),
        _ => f(flag::ZF) || f(flag::SF) != f(flag::OF),
    };
    holds != (number % 2 == 1)
}

/// LOOP, LOOPE, LOOPNE and JCXZ with their address sizes.
fn counted(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    use Mnemonic as M;
    use iced_x86::Code as C;
    let size = match insn.code() {
        C::Loop_rel8_16_CX
        | C::Loop_rel8_32_CX
        | C::Loope_rel8_16_CX
        | C::Loope_rel8_32_CX
        | C::Loopne_rel8_16_CX
        | C::Loopne_rel8_32_CX
        | C::Jcxz_rel8_16
        | C::Jcxz_rel8_32 => 2,
        C::Loop_rel8_16_RCX
        | C::Loop_rel8_64_RCX
        | C::Loope_rel8_16_RCX
        | C::Loope_rel8_64_RCX
        | C::Loopne_rel8_16_RCX
        | C::Loopne_rel8_64_RCX
        | C::Jrcxz_rel8_16
        | C::Jrcxz_rel8_64 => 8,
        _ => 4,
    };
    let count = cpu.gpr[reg::RCX] & mask(size);
    if matches!(insn.mnemonic(), M::Jcxz | M::Jecxz | M::Jrcxz) {
        return if count == 0 { near_jump(cpu, insn) } else { Ok(Flow::Next) };
    }
    let left = count.wrapping_sub(1) & mask(size);
    let zero = cpu.rflags & flag::ZF != 0;
    let taken = left != 0
        && match insn.mnemonic() {
            M::Loope => zero,
            M::Loopne => !zero,
            _ => true,
        };
    let flow = if taken { near_jump(cpu, insn)? } else { Flow::Next };
    set_low(cpu, reg::RCX, left, size);
    Ok(flow)
}

fn xlat(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let place = cpu.place(insn, 0);
    let value = cpu.read_seg(place.seg, place.offset, 1)?;
    set_low(cpu, reg::RAX, value, 1);
    Ok(Flow::Next)
}

fn bound(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let size = insn.op0_register().size();
    let place = cpu.place(insn, 1);
    let signed = |v: u64| if size == 2 { i64::from(v as i16) } else { i64::from(v as i32) };
    let low = signed(cpu.read_seg(place.seg, place.offset, size)?);
    let high = signed(cpu.read_seg(place.seg, place.offset.wrapping_add(size as u64), size)?);
    let index = signed(cpu.register(insn.op0_register()));
    if index < low || index > high { Err(Exception::plain(vector::BR)) } else { Ok(Flow::Next) }
}

/// Replaces the arithmetic flags in `mask` by `value`.
fn set_flags(cpu: &mut Cpu, mask: u64, value: u64) {
    cpu.rflags = cpu.rflags & !mask | value & mask;
}

/// SF, ZF and PF of a byte.
fn byte_flags(value: u8) -> u64 {
    let mut flags = 0;
    if value == 0 {
        flags |= flag::ZF;
    }
    if value & 0x80 != 0 {
        flags |= flag::SF;
    }
    if value.count_ones().is_multiple_of(2) {
        flags |= flag::PF;
    }
    flags
}

/// AAA and AAS.
fn adjust(cpu: &mut Cpu, add: bool) -> Flow {
    let ax = cpu.gpr[reg::RAX] as u16;
    let carry = ax & 0xf > 9 || cpu.rflags & flag::AF != 0;
    let new = match (carry, add) {
        (true, true) => ax.wrapping_add(0x106),
        (true, false) => ax.wrapping_sub(0x106),
        _ => ax,
    } & 0xff0f;
    set_low(cpu, reg::RAX, u64::from(new), 2);
    let both = flag::AF | flag::CF;
    set_flags(cpu, ARITHMETIC_FLAGS, if carry { both } else { 0 } | byte_flags(new as u8));
    Flow::Next
}

/// DAA and DAS.
fn decimal(cpu: &mut Cpu, add: bool) -> Flow {
    let old = cpu.gpr[reg::RAX] as u8;
    let (old_cf, af) = (cpu.rflags & flag::CF != 0, cpu.rflags & flag::AF != 0);
    let (mut al, mut flags) = (old, 0);
    let step = |al: u8, by: u8| if add { al.overflowing_add(by) } else { al.overflowing_sub(by) };
    if old & 0xf > 9 || af {
        let (new, carried) = step(al, 6);
        al = new;
        flags |= flag::AF;
        if old_cf || carried {
            flags |= flag::CF;
        }
    }
    if old > 0x99 || old_cf {
        al = step(al, 0x60).0;
        flags |= flag::CF;
    } else if add {
        flags &= !flag::CF;
    }
    set_low(cpu, reg::RAX, u64::from(al), 1);
    set_flags(cpu, ARITHMETIC_FLAGS, flags | byte_flags(al));
    Flow::Next
}

fn aam(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let base = insn.immediate8();
    if base == 0 {
        return Err(Exception::plain(vector::DE));
    }
    let al = cpu.gpr[reg::RAX] as u8;
    let (high, low) = (al / base, al % base);
    set_low(cpu, reg::RAX, u64::from(high) << 8 | u64::from(low), 2);
    set_flags(cpu, ARITHMETIC_FLAGS, byte_flags(low));
    Ok(Flow::Next)
}

fn aad(cpu: &mut Cpu, insn: &Instruction) -> Flow {
    let ax = cpu.gpr[reg::RAX] as u16;
    let al = (ax as u8).wrapping_add(((ax >> 8) as u8).wrapping_mul(insn.immediate8()));
    set_low(cpu, reg::RAX, u64::from(al), 2);
    set_flags(cpu, ARITHMETIC_FLAGS, byte_flags(al));
    Flow::Next
}
