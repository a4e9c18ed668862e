//! Port input and output.

use std::sync::atomic::Ordering;

use engine::{reg, seg};
use iced_x86::{Instruction, Mnemonic, OpKind};

use super::operand::{mask, segment_number};
use super::{Flow, Outcome};
use crate::cpu::{Cpu, flag};
use crate::exception::{Exception, Exec};
use crate::mmu::AccessMode;

/// Most elements of a string instruction before interrupts are looked at.
const BATCH: u64 = 4096;

/// Executes IN, OUT, INS and OUTS.
pub fn execute(cpu: &mut Cpu, insn: &Instruction) -> Outcome {
    Some(match insn.mnemonic() {
        Mnemonic::In => input(cpu, insn),
        Mnemonic::Out => output(cpu, insn),
        Mnemonic::Insb => string(cpu, insn, 1, false),
        Mnemonic::Insw => string(cpu, insn, 2, false),
        Mnemonic::Insd => string(cpu, insn, 4, false),
        Mnemonic::Outsb => string(cpu, insn, 1, true),
        Mnemonic::Outsw => string(cpu, insn, 2, true),
        Mnemonic::Outsd => string(cpu, insn, 4, true),
        _ => return None,
    })
}

/// Offset of the I/O map base in a 32- or 64-bit TSS (Intel SDM vol. 3, 8.2.1).
const IO_MAP_BASE: u64 = 0x66;
/// Types of a TSS that has one: available and busy 32/64-bit.
const TSS_TYPES: [u32; 2] = [9, 11];

/// Whether the current task may use `size` ports from `port` (Intel SDM vol. 1, 19.5.2).
fn allowed(cpu: &mut Cpu, port: u16, size: usize) -> Exec<()> {
    if !cpu.protected() || !cpu.virtual_8086() && cpu.cpl <= cpu.iopl() {
        return Ok(());
    }
    let tr = cpu.segments[seg::TR];
    let denied = Err(Exception::gp(0));
    if !TSS_TYPES.contains(&(tr.access & 0x1f)) || u64::from(tr.limit) < IO_MAP_BASE + 1 {
        return denied;
    }
    let base = cpu.read_value(tr.base.wrapping_add(IO_MAP_BASE), AccessMode::Supervisor, 2)?;
    let at = base + u64::from(port / 8);
    if at + 1 > u64::from(tr.limit) {
        return denied;
    }
    let bits = cpu.read_value(tr.base.wrapping_add(at), AccessMode::Supervisor, 2)?;
    let wanted = ((1 << size) - 1) << (port % 8);
    if bits & wanted == 0 { Ok(()) } else { denied }
}

/// Port and size in bytes of an IN or OUT; `port` and `data` are operand numbers.
fn operands(cpu: &mut Cpu, insn: &Instruction, port: u32, data: u32) -> Exec<(u16, usize)> {
    let number = match insn.op_kind(port) {
        OpKind::Register => cpu.gpr[reg::RDX] as u16,
        _ => u16::from(insn.immediate8()),
    };
    let size = insn.op_register(data).size();
    allowed(cpu, number, size)?;
    Ok((number, size))
}

fn input(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let (port, size) = operands(cpu, insn, 1, 0)?;
    let mut data = [0; 4];
    let bus = cpu.shared.services.bus.clone();
    if !bus.port_read(port, &mut data[..size]) && cpu.shared.config.strict_io {
        return Ok(Flow::UnclaimedPort { port, write: false, size: size as u8 });
    }
    cpu.set_register(insn.op0_register(), u64::from(u32::from_le_bytes(data)));
    Ok(Flow::Next)
}

fn output(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let (port, size) = operands(cpu, insn, 0, 1)?;
    let data = (cpu.gpr[reg::RAX] as u32).to_le_bytes();
    let bus = cpu.shared.services.bus.clone();
    if !bus.port_write(port, &data[..size]) && cpu.shared.config.strict_io {
        return Ok(Flow::UnclaimedPort { port, write: true, size: size as u8 });
    }
    Ok(Flow::Next)
}

/// Address size of a string instruction in bytes.
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

/// Adds to a register in the address size: 32-bit results clear the upper half.
fn advance(cpu: &mut Cpu, register: usize, by: u64, address: usize) {
    let m = mask(address);
    let new = cpu.gpr[register].wrapping_add(by) & m;
    cpu.gpr[register] = if address == 2 { cpu.gpr[register] & !m | new } else { new };
}

fn string(cpu: &mut Cpu, insn: &Instruction, size: usize, out: bool) -> Exec<Flow> {
    let port = cpu.gpr[reg::RDX] as u16;
    allowed(cpu, port, size)?;
    let address = address_size(insn);
    let repeated = insn.has_rep_prefix() || insn.has_repne_prefix();
    let step = if cpu.rflags & flag::DF != 0 { (size as u64).wrapping_neg() } else { size as u64 };
    let (segment, index) =
        if out { (segment_number(insn.memory_segment()), reg::RSI) } else { (seg::ES, reg::RDI) };
    let bus = cpu.shared.services.bus.clone();
    for _ in 0..BATCH {
        if repeated && cpu.gpr[reg::RCX] & mask(address) == 0 {
            return Ok(Flow::Next);
        }
        let offset = cpu.gpr[index] & mask(address);
        let mut data = [0; 4];
        let claimed;
        if out {
            let value = cpu.read_seg(segment, offset, size)?;
            data = (value as u32).to_le_bytes();
            claimed = bus.port_write(port, &data[..size]);
        } else {
            // The store must not fault after the port has given its data away.
            let linear = cpu.linear_address(segment, offset, size as u64, true)?;
            cpu.probe_linear(linear, AccessMode::Current, size, true)?;
            claimed = bus.port_read(port, &mut data[..size]);
            cpu.write_linear(linear, AccessMode::Current, &data[..size])?;
        }
        if !claimed && cpu.shared.config.strict_io {
            return Ok(Flow::UnclaimedPort { port, write: out, size: size as u8 });
        }
        advance(cpu, index, step, address);
        if !repeated {
            return Ok(Flow::Next);
        }
        advance(cpu, reg::RCX, u64::MAX, address);
        if cpu.attention.load(Ordering::SeqCst) != 0 {
            break;
        }
    }
    Ok(Flow::Again)
}
