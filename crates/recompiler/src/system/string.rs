//! MOVS, STOS, LODS, SCAS and CMPS with all repeat forms.
//!
//! Repeated forms go page by page with one host instruction where both operands are RAM (SCAS and
//! CMPS only upwards); everything else goes element by element. RCX, RSI and RDI always stand at the element that is next, so faults and interrupts
//! can come between any two.

use std::sync::atomic::Ordering;

use engine::{reg, seg};
use iced_x86::{Instruction, Mnemonic, OpKind};
use memory::PAGE_SIZE;

use super::operand::{mask, segment_number};
use super::{Flow, Outcome};
use crate::cpu::{ARITHMETIC_FLAGS, Cpu, flag};
use crate::exception::Exec;
use crate::mmu::{AccessMode, Span};

/// Most rounds (elements or pages) before interrupts are looked at.
const BATCH: u32 = 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Move,
    Store,
    Load,
    Scan,
    Compare,
}

/// One decoded string instruction.
struct Form {
    operation: Operation,
    size: usize,
    address: usize,
    /// Segment of the source.
    segment: usize,
    /// REP, REPE (true) or REPNE (false).
    repeat: Option<bool>,
}

/// Executes this topic's instructions.
pub fn execute(cpu: &mut Cpu, insn: &Instruction) -> Outcome {
    use Mnemonic as M;
    use Operation::{Compare, Load, Move, Scan, Store};
    let (operation, size) = match insn.mnemonic() {
        M::Movsb => (Move, 1),
        M::Movsw => (Move, 2),
        // The SSE instruction of the same name has register or explicit memory operands.
        M::Movsd if implicit(insn) => (Move, 4),
        M::Movsq => (Move, 8),
        M::Stosb => (Store, 1),
        M::Stosw => (Store, 2),
        M::Stosd => (Store, 4),
        M::Stosq => (Store, 8),
        M::Lodsb => (Load, 1),
        M::Lodsw => (Load, 2),
        M::Lodsd => (Load, 4),
        M::Lodsq => (Load, 8),
        M::Scasb => (Scan, 1),
        M::Scasw => (Scan, 2),
        M::Scasd => (Scan, 4),
        M::Scasq => (Scan, 8),
        M::Cmpsb => (Compare, 1),
        M::Cmpsw => (Compare, 2),
        M::Cmpsd if implicit(insn) => (Compare, 4),
        M::Cmpsq => (Compare, 8),
        _ => return None,
    };
    let repeat = match (insn.has_repne_prefix(), insn.has_rep_prefix()) {
        (true, _) => Some(false),
        (_, true) => Some(true),
        _ => None,
    };
    let form = Form {
        operation,
        size,
        address: address_size(insn),
        segment: segment_number(insn.memory_segment()),
        repeat,
    };
    Some(run(cpu, &form))
}

fn implicit(insn: &Instruction) -> bool {
    !matches!(insn.op0_kind(), OpKind::Register | OpKind::Memory)
        || matches!(insn.op1_kind(), OpKind::MemorySegSI | OpKind::MemorySegESI | OpKind::MemorySegRSI)
}

/// Address size in bytes.
fn address_size(insn: &Instruction) -> usize {
    (0..insn.op_count())
        .find_map(|i| match insn.op_kind(i) {
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => Some(2),
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => Some(4),
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => Some(8),
            _ => None,
        })
        .unwrap_or(8)
}

impl Form {
    fn offset(&self, cpu: &Cpu, register: usize) -> u64 {
        cpu.gpr[register] & mask(self.address)
    }

    /// Adds to a register in the address size: 32-bit results clear the upper half.
    fn advance(&self, cpu: &mut Cpu, register: usize, by: u64) {
        let m = mask(self.address);
        let new = cpu.gpr[register].wrapping_add(by) & m;
        cpu.gpr[register] = if self.address == 2 { cpu.gpr[register] & !m | new } else { new };
    }

    fn count(&self, cpu: &Cpu) -> u64 {
        cpu.gpr[reg::RCX] & mask(self.address)
    }
}

fn run(cpu: &mut Cpu, form: &Form) -> Exec<Flow> {
    let Some(equal) = form.repeat else {
        element(cpu, form)?;
        return Ok(Flow::Next);
    };
    let compares = matches!(form.operation, Operation::Scan | Operation::Compare);
    for _ in 0..BATCH {
        let count = form.count(cpu);
        if count == 0 {
            return Ok(Flow::Next);
        }
        if let Some(stop) = bulk(cpu, form, count, equal) {
            if stop {
                return Ok(Flow::Next);
            }
        } else {
            element(cpu, form)?;
            form.advance(cpu, reg::RCX, u64::MAX);
            if compares && (cpu.rflags & flag::ZF != 0) != equal {
                return Ok(Flow::Next);
            }
        }
        if cpu.attention.load(Ordering::Relaxed) != 0 {
            break;
        }
    }
    if form.count(cpu) == 0 { Ok(Flow::Next) } else { Ok(Flow::Again) }
}

/// One element; registers move only when nothing has faulted.
fn element(cpu: &mut Cpu, form: &Form) -> Exec<()> {
    let size = form.size;
    let step = if cpu.rflags & flag::DF != 0 { (size as u64).wrapping_neg() } else { size as u64 };
    let (si, di) = (form.offset(cpu, reg::RSI), form.offset(cpu, reg::RDI));
    let mut moves = [false, false];
    match form.operation {
        Operation::Move => {
            let value = cpu.read_seg(form.segment, si, size)?;
            cpu.write_seg(seg::ES, di, size, value)?;
            moves = [true, true];
        }
        Operation::Store => {
            let value = cpu.gpr[reg::RAX] & mask(size);
            cpu.write_seg(seg::ES, di, size, value)?;
            moves[1] = true;
        }
        Operation::Load => {
            let value = cpu.read_seg(form.segment, si, size)?;
            let old = cpu.gpr[reg::RAX];
            cpu.gpr[reg::RAX] = if size >= 4 { value } else { old & !mask(size) | value };
            moves[0] = true;
        }
        Operation::Scan => {
            let value = cpu.read_seg(seg::ES, di, size)?;
            compare(cpu, cpu.gpr[reg::RAX] & mask(size), value, size);
            moves[1] = true;
        }
        Operation::Compare => {
            let left = cpu.read_seg(form.segment, si, size)?;
            let right = cpu.read_seg(seg::ES, di, size)?;
            compare(cpu, left, right, size);
            moves = [true, true];
        }
    }
    for (moved, register) in moves.into_iter().zip([reg::RSI, reg::RDI]) {
        if moved {
            form.advance(cpu, register, step);
        }
    }
    Ok(())
}

/// Flags of CMP (Intel SDM vol. 1, appendix A).
fn compare(cpu: &mut Cpu, left: u64, right: u64, size: usize) {
    let m = mask(size);
    let sign = (m >> 1) + 1;
    let result = left.wrapping_sub(right) & m;
    let mut flags = 0;
    let mut set = |bit: u64, on: bool| flags |= if on { bit } else { 0 };
    set(flag::CF, left < right);
    set(flag::ZF, result == 0);
    set(flag::SF, result & sign != 0);
    set(flag::OF, (left ^ right) & (left ^ result) & sign != 0);
    set(flag::AF, (left ^ right ^ result) & 0x10 != 0);
    set(flag::PF, (result as u8).count_ones().is_multiple_of(2));
    cpu.rflags = cpu.rflags & !ARITHMETIC_FLAGS | flags;
}

/// Elements of an operand, `count` at most, that lie on its page in the direction of the
/// instruction, before its offset wraps. 0: the first one crosses a page or may not be accessed.
fn on_page(cpu: &Cpu, form: &Form, operand: Operand, count: u64, down: bool) -> u64 {
    let size = form.size as u64;
    let Operand { segment, offset, write } = operand;
    let Ok(linear) = cpu.linear_address(segment, offset, size, write) else { return 0 };
    let at = linear % PAGE_SIZE;
    if at + size > PAGE_SIZE {
        return 0;
    }
    let (page, space) = if down {
        (at / size + 1, offset / size + 1)
    } else {
        ((PAGE_SIZE - at) / size, ((mask(form.address) - offset) / size).saturating_add(1))
    };
    count.min(page).min(space)
}

/// An operand of a string instruction.
#[derive(Clone, Copy)]
struct Operand {
    segment: usize,
    offset: u64,
    write: bool,
}

/// The RAM of `count` elements of an operand that [`on_page`] knows.
fn span(cpu: &mut Cpu, form: &Form, operand: Operand, count: u64, down: bool) -> Option<Span> {
    let bytes = count * form.size as u64;
    let Operand { segment, offset, write } = operand;
    let low = if down { offset.checked_sub(bytes - form.size as u64)? } else { offset };
    let linear = cpu.linear_address(segment, low, bytes, write).ok()?;
    cpu.ram_at(linear, AccessMode::Current, bytes as usize, write).ok()?
}

/// Executes as many elements as lie in one page of each operand with one host instruction. `None`
/// where that can't be: the element at hand goes the slow way, which also finds its fault. True: a
/// comparison ended the instruction.
fn bulk(cpu: &mut Cpu, form: &Form, count: u64, equal: bool) -> Option<bool> {
    let down = cpu.rflags & flag::DF != 0;
    let source = Operand { segment: form.segment, offset: form.offset(cpu, reg::RSI), write: false };
    let stores = matches!(form.operation, Operation::Move | Operation::Store);
    let target = Operand { segment: seg::ES, offset: form.offset(cpu, reg::RDI), write: stores };
    let uses_source = matches!(form.operation, Operation::Move | Operation::Compare);
    if form.operation == Operation::Load || down && !stores {
        return None;
    }
    let mut elements = on_page(cpu, form, target, count, down);
    if uses_source {
        elements = on_page(cpu, form, source, elements, down);
    }
    if elements < 2 {
        return None;
    }
    let from = if uses_source { Some(span(cpu, form, source, elements, down)?) } else { None };
    let to = span(cpu, form, target, elements, down)?;
    let accumulator = cpu.gpr[reg::RAX];
    let compared = match (form.operation, from) {
        (Operation::Move, Some(from)) => {
            to.copy(&from, form.size, down);
            None
        }
        (Operation::Compare, Some(from)) => Some(from.compare(&to, form.size, equal)),
        (Operation::Scan, _) => Some(to.scan(accumulator, form.size, equal)),
        _ => {
            to.fill(accumulator, form.size);
            None
        }
    };
    let mut stop = false;
    if let Some(compared) = compared {
        elements = compared.done;
        cpu.rflags = cpu.rflags & !ARITHMETIC_FLAGS | compared.flags;
        stop = (compared.flags & flag::ZF != 0) != equal;
    }
    let bytes = elements * form.size as u64;
    let step = if down { bytes.wrapping_neg() } else { bytes };
    if uses_source {
        form.advance(cpu, reg::RSI, step);
    }
    form.advance(cpu, reg::RDI, step);
    form.advance(cpu, reg::RCX, elements.wrapping_neg());
    Some(stop)
}
