//! Far JMP, CALL and RET, directly and through gates (Intel SDM vol. 2; vol. 3, 5.8).

use engine::{Segment, reg, seg};
use iced_x86::{Instruction, Mnemonic, OpKind};

use super::gate::{
    Stack, both_sizes, check_offset, enter, inner_stack, long_stack, restoring, return_code, return_stack,
    return_to,
};
use super::segments::{
    Descriptor, fault, is_null, kind, read_descriptor, read_wide_descriptor, real_segment,
    virtual_8086_segment,
};
use super::task::Cause;
use super::{Flow, Outcome, interrupts, task};
use crate::cpu::Cpu;
use crate::exception::{Exception, Exec, vector};

/// A far JMP or CALL.
#[derive(Clone, Copy)]
struct Transfer {
    selector: u16,
    offset: u64,
    /// Operand size in bytes.
    size: usize,
    call: bool,
    /// Offset of the next instruction.
    next: u64,
}

/// Executes far JMP, CALL and RET.
pub fn execute(cpu: &mut Cpu, insn: &Instruction) -> Outcome {
    let jump = insn.is_jmp_far() || insn.is_jmp_far_indirect();
    let call = insn.is_call_far() || insn.is_call_far_indirect();
    if jump || call {
        return Some(restoring(cpu, |cpu| {
            let transfer = transfer(cpu, insn, call)?;
            if let Some(raised) = go(cpu, transfer)? {
                interrupts::deliver_exception(cpu, raised);
            }
            Ok(Flow::Jump)
        }));
    }
    if insn.mnemonic() != Mnemonic::Retf {
        return None;
    }
    let release = if insn.op_count() == 1 { u64::from(insn.immediate16()) } else { 0 };
    // The increment counts the two values and what is released.
    let size = (insn.stack_pointer_increment() as u64).wrapping_sub(release) / 2;
    Some(restoring(cpu, |cpu| {
        ret(cpu, size as usize, release)?;
        Ok(Flow::Jump)
    }))
}

/// Finds out the target.
fn transfer(cpu: &mut Cpu, insn: &Instruction, call: bool) -> Exec<Transfer> {
    let next = cpu.next_rip(insn);
    let (selector, offset, size) = match insn.op0_kind() {
        OpKind::FarBranch16 => (insn.far_branch_selector(), u64::from(insn.far_branch16()), 2),
        OpKind::FarBranch32 => (insn.far_branch_selector(), u64::from(insn.far_branch32()), 4),
        _ => {
            let size = insn.memory_size().size().saturating_sub(2).min(8);
            let place = cpu.place(insn, 0);
            let mut data = [0; 10];
            cpu.read_seg_bytes(place.seg, place.offset, &mut data[..size + 2])?;
            let (offset, selector) = data[..size + 2].split_at(size);
            let value = |bytes: &[u8]| bytes.iter().rev().fold(0, |v, &b| v << 8 | u64::from(b));
            (value(selector) as u16, value(offset), size)
        }
    };
    Ok(Transfer { selector, offset, size, call, next })
}

/// Makes the transfer. `Some`: a task switch was made, and this was raised in the new task.
fn go(cpu: &mut Cpu, to: Transfer) -> Exec<Option<Exception>> {
    if !cpu.protected() || cpu.virtual_8086() {
        return real(cpu, to).map(|()| None);
    }
    if is_null(to.selector) {
        return Err(Exception::gp(0));
    }
    let descriptor = read_descriptor(cpu, to.selector, vector::GP)?;
    match descriptor.system() {
        None => to_code(cpu, to, descriptor).map(|()| None),
        Some(kind::CALL_GATE32) => through_gate(cpu, to, 4).map(|()| None),
        Some(kind::CALL_GATE16) if !cpu.long_mode() => through_gate(cpu, to, 2).map(|()| None),
        Some(kind::TASK_GATE | kind::TSS16 | kind::TSS32) if !cpu.long_mode() => to_task(cpu, to, descriptor),
        Some(_) => Err(fault(vector::GP, to.selector)),
    }
}

fn real(cpu: &mut Cpu, to: Transfer) -> Exec<()> {
    if to.offset > u64::from(cpu.segments[seg::CS].limit) {
        return Err(Exception::gp(0));
    }
    if to.call {
        let mut stack = Stack::current(cpu);
        stack.push(cpu, to.size, u64::from(cpu.segments[seg::CS].selector))?;
        stack.push(cpu, to.size, to.next)?;
        stack.move_pointer(cpu);
    }
    set_real_code(cpu, to.selector, to.offset);
    Ok(())
}

fn set_real_code(cpu: &mut Cpu, selector: u16, offset: u64) {
    let old = cpu.segments[seg::CS];
    cpu.segments[seg::CS] =
        if cpu.virtual_8086() { virtual_8086_segment(selector) } else { real_segment(&old, selector, 0x9b) };
    cpu.rip = offset;
}

/// Directly to a code segment, which never changes the privilege level.
fn to_code(cpu: &mut Cpu, to: Transfer, code: Descriptor) -> Exec<()> {
    let (level, rpl) = (cpu.cpl, to.selector as u8 & 3);
    let fits = if code.is_conforming() { code.dpl() <= level } else { rpl <= level && code.dpl() == level };
    if !code.is_code() || !fits || both_sizes(cpu, &code) {
        return Err(fault(vector::GP, to.selector));
    }
    if !code.present() {
        return Err(fault(vector::NP, to.selector));
    }
    check_offset(cpu, &code, to.offset)?;
    if !to.call {
        return enter(cpu, code, level, to.offset);
    }
    let mut stack = Stack::current(cpu);
    stack.push(cpu, to.size, u64::from(cpu.segments[seg::CS].selector))?;
    stack.push(cpu, to.size, to.next)?;
    enter(cpu, code, level, to.offset)?;
    stack.move_pointer(cpu);
    Ok(())
}

/// Privilege and presence of a gate or TSS that is used as a target.
fn check_target(cpu: &Cpu, descriptor: &Descriptor) -> Exec<()> {
    let selector = descriptor.selector;
    if descriptor.dpl() < cpu.cpl.max(selector as u8 & 3) {
        return Err(fault(vector::GP, selector));
    }
    if descriptor.present() { Ok(()) } else { Err(fault(vector::NP, selector)) }
}

fn to_task(cpu: &mut Cpu, to: Transfer, descriptor: Descriptor) -> Exec<Option<Exception>> {
    check_target(cpu, &descriptor)?;
    let is_gate = descriptor.system() == Some(kind::TASK_GATE);
    let selector = if is_gate { task::gate_target(&descriptor) } else { to.selector };
    let cause = if to.call { Cause::Nested } else { Cause::Jump };
    let flags = cpu.rflags;
    task::switch(cpu, selector, cause, to.next, flags)
}

/// Through the call gate that the selector names, whose entries have `size` bytes outside of
/// IA-32e mode.
fn through_gate(cpu: &mut Cpu, to: Transfer, size: usize) -> Exec<()> {
    let long = cpu.long_mode();
    let gate = read_wide_descriptor(cpu, to.selector, vector::GP)?;
    // The type field of the upper half must be 0 (Intel SDM vol. 3, 5.8.3.1).
    if long && gate.upper >> 40 & 0x1f != 0 {
        return Err(fault(vector::GP, to.selector));
    }
    check_target(cpu, &gate)?;
    let mut offset = gate.raw & 0xffff;
    if size == 4 {
        offset |= gate.raw >> 32 & 0xffff_0000 | gate.upper << 32;
    }
    let code = gate_code(cpu, (gate.raw >> 16) as u16, to.call)?;
    let size = if long { 8 } else { size };
    if !to.call {
        check_offset(cpu, &code, offset)?;
        return enter(cpu, code, cpu.cpl, offset);
    }
    if !code.is_conforming() && code.dpl() < cpu.cpl {
        return call_inner(cpu, to, &gate, code, offset, size);
    }
    check_offset(cpu, &code, offset)?;
    let mut stack = if long {
        Stack::long(cpu.segments[seg::SS], cpu.gpr[reg::RSP], cpu.cpl)
    } else {
        Stack::current(cpu)
    };
    stack.push(cpu, size, u64::from(cpu.segments[seg::CS].selector))?;
    stack.push(cpu, size, to.next)?;
    enter(cpu, code, cpu.cpl, offset)?;
    stack.move_pointer(cpu);
    Ok(())
}

/// The code segment in a call gate.
fn gate_code(cpu: &mut Cpu, selector: u16, call: bool) -> Exec<Descriptor> {
    if is_null(selector) {
        return Err(Exception::gp(0));
    }
    let code = read_descriptor(cpu, selector, vector::GP)?;
    let same = call || code.is_conforming() || code.dpl() == cpu.cpl;
    let size = Segment::LONG | Segment::BIG;
    let fits = !cpu.long_mode() || code.access() & size == Segment::LONG;
    if !code.is_code() || code.dpl() > cpu.cpl || !same || !fits {
        return Err(fault(vector::GP, selector));
    }
    if code.present() { Ok(code) } else { Err(fault(vector::NP, selector)) }
}

/// CALL to a more privileged level: switches stacks and copies the parameters.
fn call_inner(
    cpu: &mut Cpu,
    to: Transfer,
    gate: &Descriptor,
    code: Descriptor,
    offset: u64,
    size: usize,
) -> Exec<()> {
    let level = code.dpl();
    let (old_ss, old_sp) = (cpu.segments[seg::SS].selector, cpu.gpr[reg::RSP]);
    let count = if cpu.long_mode() { 0 } else { (gate.raw >> 32 & 0x1f) as usize };
    let mut parameters = [0; 31];
    let mut from = Stack::current(cpu);
    for parameter in parameters.iter_mut().take(count) {
        *parameter = from.pop(cpu, size)?;
    }
    let mut stack = if cpu.long_mode() { long_stack(cpu, level)? } else { inner_stack(cpu, level)? };
    check_offset(cpu, &code, offset)?;
    stack.push(cpu, size, u64::from(old_ss))?;
    stack.push(cpu, size, old_sp)?;
    for &parameter in parameters.iter().take(count).rev() {
        stack.push(cpu, size, parameter)?;
    }
    stack.push(cpu, size, u64::from(cpu.segments[seg::CS].selector))?;
    stack.push(cpu, size, to.next)?;
    enter(cpu, code, level, offset)?;
    stack.load(cpu);
    Ok(())
}

fn ret(cpu: &mut Cpu, size: usize, release: u64) -> Exec<()> {
    let mut stack = Stack::current(cpu);
    let rip = stack.pop(cpu, size)?;
    let selector = stack.pop(cpu, size)? as u16;
    if !cpu.protected() || cpu.virtual_8086() {
        if rip > u64::from(cpu.segments[seg::CS].limit) {
            return Err(Exception::gp(0));
        }
        stack.skip(release);
        stack.move_pointer(cpu);
        set_real_code(cpu, selector, rip);
        return Ok(());
    }
    let code = return_code(cpu, selector)?;
    let level = selector as u8 & 3;
    stack.skip(release);
    if level == cpu.cpl {
        check_offset(cpu, &code, rip)?;
        enter(cpu, code, level, rip)?;
        stack.move_pointer(cpu);
        return Ok(());
    }
    let pointer = stack.pop(cpu, size)?;
    let stack_selector = stack.pop(cpu, size)? as u16;
    let new = return_stack(cpu, stack_selector, &code, level)?;
    check_offset(cpu, &code, rip)?;
    return_to(cpu, code, rip, new, pointer.wrapping_add(release))
}
