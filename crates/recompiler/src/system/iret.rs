//! IRET in all modes (Intel SDM vol. 2, IRET/IRETD/IRETQ).

use engine::seg;
use iced_x86::{Instruction, Mnemonic};

use super::gate::{Stack, check_offset, enter, restoring, return_code, return_stack, return_to};
use super::segments::{real_segment, virtual_8086_segment};
use super::{Flow, Outcome, interrupts, task};
use crate::cpu::{ARITHMETIC_FLAGS, Cpu, control, flag};
use crate::exception::{Exception, Exec};

/// Flags that every IRET loads.
const ALWAYS: u64 = ARITHMETIC_FLAGS | flag::TF | flag::DF | flag::NT;
/// Flags that only 32- and 64-bit forms load.
const WIDE: u64 = flag::RF | flag::AC | flag::ID;

/// Executes IRET, IRETD and IRETQ.
pub fn execute(cpu: &mut Cpu, insn: &Instruction) -> Outcome {
    let size = match insn.mnemonic() {
        Mnemonic::Iret => 2,
        Mnemonic::Iretd => 4,
        Mnemonic::Iretq => 8,
        _ => return None,
    };
    // NMIs are let in again even if the IRET faults (Intel SDM vol. 3, 26.3).
    cpu.nmi_blocked = false;
    let next = cpu.next_rip(insn);
    Some(restoring(cpu, |cpu| {
        if cpu.virtual_8086() {
            virtual_8086(cpu, size)?;
        } else if !cpu.protected() {
            real(cpu, size, flag::IF | flag::IOPL)?;
        } else if cpu.rflags & flag::NT != 0 {
            if cpu.long_mode() {
                return Err(Exception::gp(0));
            }
            if let Some(raised) = task::return_to_link(cpu, next)? {
                interrupts::deliver_exception(cpu, raised);
            }
        } else {
            protected(cpu, size)?;
        }
        Ok(Flow::Jump)
    }))
}

fn set_flags(cpu: &mut Cpu, value: u64, size: usize, extra: u64) {
    let mask = ALWAYS | extra | if size == 2 { 0 } else { WIDE };
    let mask = if size == 2 { mask & 0xffff } else { mask };
    cpu.rflags = cpu.rflags & !mask | value & mask | 2;
}

/// Real mode, and virtual-8086 mode with IOPL 3.
fn real(cpu: &mut Cpu, size: usize, extra: u64) -> Exec<()> {
    let mut stack = Stack::current(cpu);
    let rip = stack.pop(cpu, size)?;
    let selector = stack.pop(cpu, size)? as u16;
    let flags = stack.pop(cpu, size)?;
    if rip > u64::from(cpu.segments[seg::CS].limit) {
        return Err(Exception::gp(0));
    }
    stack.move_pointer(cpu);
    let old = cpu.segments[seg::CS];
    cpu.segments[seg::CS] =
        if cpu.virtual_8086() { virtual_8086_segment(selector) } else { real_segment(&old, selector, 0x9b) };
    cpu.rip = rip;
    set_flags(cpu, flags, size, extra);
    Ok(())
}

fn virtual_8086(cpu: &mut Cpu, size: usize) -> Exec<()> {
    if cpu.iopl() == 3 {
        return real(cpu, size, flag::IF);
    }
    if cpu.cr4 & control::CR4_VME == 0 || size != 2 {
        return Err(Exception::gp(0));
    }
    // IF of the image becomes VIF.
    let flags = {
        let mut stack = Stack::current(cpu);
        stack.skip(4);
        stack.pop(cpu, 2)?
    };
    let pending = cpu.rflags & flag::VIP != 0 && flags & flag::IF != 0;
    if pending || flags & flag::TF != 0 {
        return Err(Exception::gp(0));
    }
    real(cpu, size, 0)?;
    cpu.rflags = cpu.rflags & !flag::VIF | if flags & flag::IF != 0 { flag::VIF } else { 0 };
    Ok(())
}

fn protected(cpu: &mut Cpu, size: usize) -> Exec<()> {
    let mut stack = Stack::current(cpu);
    let rip = stack.pop(cpu, size)?;
    let selector = stack.pop(cpu, size)? as u16;
    let flags = stack.pop(cpu, size)?;
    if flags & flag::VM != 0 && cpu.cpl == 0 && size == 4 && !cpu.long_mode() {
        return to_virtual_8086(cpu, stack, rip, selector, flags);
    }
    let code = return_code(cpu, selector)?;
    let mut extra = 0;
    if cpu.cpl <= cpu.iopl() {
        extra |= flag::IF;
    }
    if cpu.cpl == 0 {
        extra |= flag::IOPL | if size == 2 { 0 } else { flag::VIF | flag::VIP };
    }
    let level = selector as u8 & 3;
    // In 64-bit mode the stack is always popped, whatever the operand size.
    if level > cpu.cpl || cpu.code64() {
        let pointer = stack.pop(cpu, size)?;
        let stack_selector = stack.pop(cpu, size)? as u16;
        let new = return_stack(cpu, stack_selector, &code, level)?;
        check_offset(cpu, &code, rip)?;
        return_to(cpu, code, rip, new, pointer)?;
    } else {
        check_offset(cpu, &code, rip)?;
        enter(cpu, code, level, rip)?;
        stack.move_pointer(cpu);
    }
    set_flags(cpu, flags, size, extra);
    Ok(())
}

fn to_virtual_8086(cpu: &mut Cpu, mut stack: Stack, rip: u64, selector: u16, flags: u64) -> Exec<()> {
    let pointer = stack.pop(cpu, 4)?;
    for number in [seg::SS, seg::ES, seg::DS, seg::FS, seg::GS] {
        let selector = stack.pop(cpu, 4)? as u16;
        cpu.segments[number] = virtual_8086_segment(selector);
    }
    cpu.segments[seg::CS] = virtual_8086_segment(selector);
    cpu.gpr[engine::reg::RSP] = pointer;
    cpu.rip = rip & 0xffff;
    cpu.cpl = 3;
    set_flags(cpu, flags, 4, flag::IF | flag::IOPL | flag::VM | flag::VIF | flag::VIP);
    Ok(())
}
