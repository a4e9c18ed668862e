//! Descriptor table registers, and instructions that look at descriptors (Intel SDM vol. 2).

use engine::{Segment, TableRegister, seg};
use iced_x86::{Instruction, Mnemonic};

use super::features::canonical;
use super::segments::{
    Descriptor, fault, is_null, kind, null, read_descriptor, read_wide_descriptor, update_access,
};
use super::{Flow, Outcome};
use crate::cpu::{Cpu, control, flag};
use crate::exception::{Exception, Exec, vector};

/// Executes what loads, stores or looks up descriptor tables and descriptors.
pub fn execute(cpu: &mut Cpu, insn: &Instruction) -> Outcome {
    Some(match insn.mnemonic() {
        Mnemonic::Lgdt => load_table(cpu, insn).map(|table| {
            cpu.gdtr = table;
            Flow::Next
        }),
        Mnemonic::Lidt => load_table(cpu, insn).map(|table| {
            cpu.idtr = table;
            Flow::Next
        }),
        Mnemonic::Sgdt => store_table(cpu, insn, cpu.gdtr),
        Mnemonic::Sidt => store_table(cpu, insn, cpu.idtr),
        Mnemonic::Lldt => lldt(cpu, insn),
        Mnemonic::Ltr => ltr(cpu, insn),
        Mnemonic::Sldt => store_selector(cpu, insn, seg::LDTR),
        Mnemonic::Str => store_selector(cpu, insn, seg::TR),
        Mnemonic::Lar => lar(cpu, insn),
        Mnemonic::Lsl => lsl(cpu, insn),
        Mnemonic::Verr => verify(cpu, insn, false),
        Mnemonic::Verw => verify(cpu, insn, true),
        Mnemonic::Arpl => arpl(cpu, insn),
        _ => return None,
    })
}

fn privileged(cpu: &Cpu) -> Exec<()> {
    if cpu.cpl == 0 { Ok(()) } else { Err(Exception::gp(0)) }
}

/// Most of these do not exist in real and virtual-8086 mode.
fn protected_only(cpu: &Cpu) -> Exec<()> {
    if cpu.protected() && !cpu.virtual_8086() { Ok(()) } else { Err(Exception::ud()) }
}

/// CR4.UMIP hides system registers from programs.
fn not_hidden(cpu: &Cpu) -> Exec<()> {
    if cpu.cr4 & control::CR4_UMIP != 0 { privileged(cpu) } else { Ok(()) }
}

fn load_table(cpu: &mut Cpu, insn: &Instruction) -> Exec<TableRegister> {
    privileged(cpu)?;
    let place = cpu.place(insn, 0);
    let mut data = [0; 10];
    let size = if cpu.code64() { 10 } else { 6 };
    cpu.read_seg_bytes(place.seg, place.offset, &mut data[..size])?;
    let [a, b, base @ ..] = data;
    let mut base = u64::from_le_bytes(base);
    if matches!(insn.code(), iced_x86::Code::Lgdt_m1632_16 | iced_x86::Code::Lidt_m1632_16) {
        base &= 0xff_ffff;
    }
    if !canonical(base) {
        return Err(Exception::gp(0));
    }
    Ok(TableRegister { base, limit: u16::from_le_bytes([a, b]) })
}

fn store_table(cpu: &mut Cpu, insn: &Instruction, table: TableRegister) -> Exec<Flow> {
    not_hidden(cpu)?;
    let place = cpu.place(insn, 0);
    let mut data = [0; 10];
    data[..2].copy_from_slice(&table.limit.to_le_bytes());
    data[2..].copy_from_slice(&table.base.to_le_bytes());
    let size = if cpu.code64() { 10 } else { 6 };
    cpu.write_seg_bytes(place.seg, place.offset, &data[..size])?;
    Ok(Flow::Next)
}

fn store_selector(cpu: &mut Cpu, insn: &Instruction, number: usize) -> Exec<Flow> {
    protected_only(cpu)?;
    not_hidden(cpu)?;
    let selector = u64::from(cpu.segments[number].selector);
    cpu.set_operand(insn, 0, 2, selector)?;
    Ok(Flow::Next)
}

/// A system segment for LDTR or TR: 64-bit base in IA-32e mode.
fn system_segment(cpu: &Cpu, descriptor: &Descriptor) -> Exec<Segment> {
    let mut segment = descriptor.segment();
    if cpu.long_mode() {
        segment.base |= descriptor.upper << 32;
        // The upper half has its own type field, which must be 0.
        if !canonical(segment.base) || descriptor.upper >> 40 & 0x1f != 0 {
            return Err(fault(vector::GP, descriptor.selector));
        }
    }
    Ok(segment)
}

fn lldt(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    protected_only(cpu)?;
    privileged(cpu)?;
    let selector = cpu.operand(insn, 0, 2)? as u16;
    if is_null(selector) {
        cpu.segments[seg::LDTR] = null(selector);
        return Ok(Flow::Next);
    }
    if selector & 4 != 0 {
        return Err(fault(vector::GP, selector));
    }
    let descriptor = read_wide_descriptor(cpu, selector, vector::GP)?;
    if descriptor.system() != Some(kind::LDT) {
        return Err(fault(vector::GP, selector));
    }
    if !descriptor.present() {
        return Err(fault(vector::NP, selector));
    }
    cpu.segments[seg::LDTR] = system_segment(cpu, &descriptor)?;
    Ok(Flow::Next)
}

fn ltr(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    protected_only(cpu)?;
    privileged(cpu)?;
    let selector = cpu.operand(insn, 0, 2)? as u16;
    if is_null(selector) || selector & 4 != 0 {
        return Err(fault(vector::GP, selector));
    }
    let mut descriptor = read_wide_descriptor(cpu, selector, vector::GP)?;
    let available = match descriptor.system() {
        Some(kind::TSS32) => true,
        Some(kind::TSS16) => !cpu.long_mode(),
        _ => false,
    };
    if !available {
        return Err(fault(vector::GP, selector));
    }
    if !descriptor.present() {
        return Err(fault(vector::NP, selector));
    }
    system_segment(cpu, &descriptor)?;
    update_access(cpu, &mut descriptor, kind::BUSY, 0)?;
    cpu.segments[seg::TR] = system_segment(cpu, &descriptor)?;
    Ok(Flow::Next)
}

fn set_zero(cpu: &mut Cpu, zero: bool) {
    cpu.rflags = cpu.rflags & !flag::ZF | if zero { flag::ZF } else { 0 };
}

/// The descriptor that operand `op` names, if its privilege allows looking at it.
fn visible(cpu: &mut Cpu, insn: &Instruction, op: u32) -> Exec<Option<Descriptor>> {
    protected_only(cpu)?;
    let selector = cpu.operand(insn, op, 2)? as u16;
    if is_null(selector) {
        return Ok(None);
    }
    let descriptor = match read_descriptor(cpu, selector, vector::GP) {
        // Outside of the table; a page fault goes on.
        Err(Exception { vector: vector::GP, .. }) => return Ok(None),
        other => other?,
    };
    let level = cpu.cpl.max(selector as u8 & 3);
    Ok((descriptor.is_conforming() || descriptor.dpl() >= level).then_some(descriptor))
}

/// Writes what LAR or LSL found to operand 0, and ZF.
fn answer(cpu: &mut Cpu, insn: &Instruction, found: Option<u32>) {
    if let Some(value) = found {
        cpu.set_register(insn.op0_register(), u64::from(value));
    }
    set_zero(cpu, found.is_some());
}

fn lar(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let long = cpu.long_mode();
    // Table 3-53 of the manual: interrupt and trap gates have no access rights to show.
    let shown =
        |kind: u32| if long { matches!(kind, 2 | 9 | 11 | 12) } else { matches!(kind, 1..=5 | 9 | 11 | 12) };
    let found = visible(cpu, insn, 1)?
        .filter(|d| d.system().is_none_or(shown))
        .map(|d| (d.raw >> 32) as u32 & 0x00f0_ff00);
    answer(cpu, insn, found);
    Ok(Flow::Next)
}

fn lsl(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let long = cpu.long_mode();
    let limited = |kind: u32| if long { matches!(kind, 2 | 9 | 11) } else { matches!(kind, 1..=3 | 9 | 11) };
    let found = visible(cpu, insn, 1)?.filter(|d| d.system().is_none_or(limited)).map(|d| d.limit());
    answer(cpu, insn, found);
    Ok(Flow::Next)
}

fn verify(cpu: &mut Cpu, insn: &Instruction, write: bool) -> Exec<Flow> {
    let found = visible(cpu, insn, 0)?;
    let allowed = found.is_some_and(|d| if write { d.is_writable() } else { d.is_readable() });
    set_zero(cpu, allowed);
    Ok(Flow::Next)
}

fn arpl(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    protected_only(cpu)?;
    let (selector, level) = (cpu.operand(insn, 0, 2)?, cpu.operand(insn, 1, 2)? & 3);
    let lower = selector & 3 < level;
    if lower {
        cpu.set_operand(insn, 0, 2, selector & !3 | level)?;
    }
    set_zero(cpu, lower);
    Ok(Flow::Next)
}
