//! SYSCALL, SYSRET, SYSENTER and SYSEXIT (Intel SDM vol. 2; AMD APM vol. 2, 6.1).
//!
//! Intel has SYSCALL in 64-bit mode only and SYSENTER everywhere; AMD has SYSCALL everywhere and
//! SYSENTER outside of long mode only.

use engine::{Segment, reg, seg};
use iced_x86::{Instruction, Mnemonic, Register};

use super::features::canonical;
use super::segments::{flat_code, flat_stack};
use super::{Flow, Outcome};
use crate::cpu::{Cpu, control, flag};
use crate::exception::{Exception, Exec};

/// RFLAGS bits that SYSRET takes from R11.
const SYSRET_FLAGS: u64 = 0x003c_7fd7;

/// Executes SYSCALL, SYSRET, SYSENTER and SYSEXIT.
pub fn execute(cpu: &mut Cpu, insn: &Instruction) -> Outcome {
    Some(match insn.mnemonic() {
        Mnemonic::Syscall => syscall(cpu, cpu.next_rip(insn)),
        Mnemonic::Sysret => sysret(cpu, false),
        Mnemonic::Sysretq => sysret(cpu, true),
        Mnemonic::Sysenter => sysenter(cpu),
        Mnemonic::Sysexit => sysexit(cpu, false),
        Mnemonic::Sysexitq => sysexit(cpu, true),
        _ => return None,
    })
}

fn enter(cpu: &mut Cpu, code: Segment, stack: Segment, rip: u64) -> Flow {
    cpu.cpl = code.dpl();
    cpu.segments[seg::CS] = code;
    cpu.segments[seg::SS] = stack;
    cpu.rip = rip;
    Flow::Jump
}

fn syscall_enabled(cpu: &Cpu) -> Exec<()> {
    let everywhere = cpu.is_amd() && cpu.protected() && !cpu.virtual_8086();
    let enabled = cpu.efer & control::EFER_SCE != 0 && (cpu.code64() || everywhere);
    if enabled { Ok(()) } else { Err(Exception::ud()) }
}

fn syscall(cpu: &mut Cpu, next: u64) -> Exec<Flow> {
    syscall_enabled(cpu)?;
    let selector = (cpu.msr.star >> 32) as u16 & 0xfffc;
    let stack = flat_stack(selector.wrapping_add(8), 0);
    cpu.gpr[reg::RCX] = next;
    if !cpu.long_mode() {
        cpu.rflags &= !(flag::VM | flag::IF | flag::RF);
        return Ok(enter(cpu, flat_code(selector, 0, Segment::BIG), stack, cpu.msr.star & 0xffff_ffff));
    }
    let rip = if cpu.code64() { cpu.msr.lstar } else { cpu.msr.cstar };
    cpu.gpr[Register::R11.number()] = cpu.rflags & !flag::RF;
    cpu.rflags = cpu.rflags & !cpu.msr.fmask & !flag::RF | 2;
    Ok(enter(cpu, flat_code(selector, 0, Segment::LONG), stack, rip))
}

fn sysret(cpu: &mut Cpu, wide: bool) -> Exec<Flow> {
    syscall_enabled(cpu)?;
    if cpu.cpl != 0 {
        return Err(Exception::gp(0));
    }
    let base = (cpu.msr.star >> 48) as u16 | 3;
    let stack = flat_stack(base.wrapping_add(8) | 3, 3);
    let rip = cpu.gpr[reg::RCX];
    if wide && !canonical(rip) {
        return Err(Exception::gp(0));
    }
    if cpu.long_mode() {
        cpu.rflags = cpu.gpr[Register::R11.number()] & SYSRET_FLAGS | 2;
    } else {
        cpu.rflags |= flag::IF;
    }
    if wide {
        return Ok(enter(cpu, flat_code(base.wrapping_add(16) | 3, 3, Segment::LONG), stack, rip));
    }
    Ok(enter(cpu, flat_code(base, 3, Segment::BIG), stack, rip & 0xffff_ffff))
}

/// The selector base of SYSENTER and SYSEXIT, if they may be used at all.
fn sysenter_selector(cpu: &Cpu) -> Exec<u16> {
    if cpu.is_amd() && cpu.long_mode() {
        return Err(Exception::ud());
    }
    let selector = cpu.msr.sysenter[0] as u16;
    if !cpu.protected() || selector & 0xfffc == 0 { Err(Exception::gp(0)) } else { Ok(selector) }
}

fn sysenter(cpu: &mut Cpu) -> Exec<Flow> {
    let selector = sysenter_selector(cpu)? & 0xfffc;
    let [_, mut rsp, mut rip] = cpu.msr.sysenter;
    let size = if cpu.long_mode() {
        Segment::LONG
    } else {
        (rsp, rip) = (rsp & 0xffff_ffff, rip & 0xffff_ffff);
        Segment::BIG
    };
    cpu.rflags &= !(flag::VM | flag::IF | flag::RF);
    cpu.gpr[reg::RSP] = rsp;
    Ok(enter(cpu, flat_code(selector, 0, size), flat_stack(selector.wrapping_add(8), 0), rip))
}

fn sysexit(cpu: &mut Cpu, wide: bool) -> Exec<Flow> {
    let base = sysenter_selector(cpu)?;
    if cpu.cpl != 0 {
        return Err(Exception::gp(0));
    }
    let (rsp, rip) = (cpu.gpr[reg::RCX], cpu.gpr[reg::RDX]);
    if wide {
        if !canonical(rsp) || !canonical(rip) {
            return Err(Exception::gp(0));
        }
        cpu.gpr[reg::RSP] = rsp;
        let stack = flat_stack(base.wrapping_add(40) | 3, 3);
        return Ok(enter(cpu, flat_code(base.wrapping_add(32) | 3, 3, Segment::LONG), stack, rip));
    }
    cpu.gpr[reg::RSP] = rsp & 0xffff_ffff;
    let stack = flat_stack(base.wrapping_add(24) | 3, 3);
    Ok(enter(cpu, flat_code(base.wrapping_add(16) | 3, 3, Segment::BIG), stack, rip & 0xffff_ffff))
}
