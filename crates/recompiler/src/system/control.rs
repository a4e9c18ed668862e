//! Control and debug registers, flags that are privileged, time stamps, caches and HLT.

use engine::reg;
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::features::{canonical, feature};
use super::{Flow, Outcome, cpuid, msr};
use crate::apic::host_tsc;
use crate::cpu::{Cpu, control, flag};
use crate::exception::{Exception, Exec, vector};
use crate::mmu::read_pdptes;

/// Executes this topic's instructions.
pub fn execute(cpu: &mut Cpu, insn: &Instruction) -> Outcome {
    use Mnemonic as M;
    let register = |op: u32| insn.op_count() > op && insn.op_kind(op) == OpKind::Register;
    Some(match insn.mnemonic() {
        M::Mov if register(0) && insn.op0_register().is_cr() => mov_to_cr(cpu, insn),
        M::Mov if register(1) && insn.op1_register().is_cr() => mov_from_cr(cpu, insn),
        M::Mov if register(0) && insn.op0_register().is_dr() => mov_to_dr(cpu, insn),
        M::Mov if register(1) && insn.op1_register().is_dr() => mov_from_dr(cpu, insn),
        M::Lmsw => lmsw(cpu, insn),
        M::Smsw => smsw(cpu, insn),
        M::Clts => clts(cpu),
        M::Invlpg => invlpg(cpu, insn),
        M::Invd | M::Wbinvd | M::Wbnoinvd => privileged(cpu).map(|()| Flow::Next),
        M::Hlt => privileged(cpu).map(|()| Flow::Halt),
        M::Cli => cli(cpu),
        M::Sti => sti(cpu),
        M::Clac => alignment_check(cpu, false),
        M::Stac => alignment_check(cpu, true),
        M::Pushf | M::Pushfd | M::Pushfq => pushf(cpu, insn),
        M::Popf | M::Popfd | M::Popfq => popf(cpu, insn),
        M::Rdtsc => rdtsc(cpu),
        M::Rdtscp => rdtscp(cpu),
        M::Rdpid => rdpid(cpu, insn),
        M::Rdpmc => Err(Exception::gp(0)),
        M::Rdmsr => msr::rdmsr(cpu),
        M::Wrmsr => msr::wrmsr(cpu),
        M::Cpuid => cpuid::cpuid(cpu),
        M::Xgetbv => xgetbv(cpu),
        M::Xsetbv => xsetbv(cpu),
        M::Clflush | M::Clflushopt | M::Clwb => flush_line(cpu, insn),
        _ => return None,
    })
}

/// #GP unless at CPL 0 (real mode runs at 0, virtual-8086 mode at 3).
pub fn privileged(cpu: &Cpu) -> Exec<()> {
    if cpu.cpl == 0 { Ok(()) } else { Err(Exception::gp(0)) }
}

/// The guest's time-stamp counter.
pub fn guest_tsc(cpu: &Cpu) -> u64 {
    host_tsc().wrapping_add(cpu.tsc_offset)
}

/// Bits of CR0 that exist.
const CR0_KNOWN: u64 = 0xe005_003f;

/// A control register that exists, or #UD; then the privilege.
fn control_register(cpu: &Cpu, register: Register) -> Exec<Register> {
    match register {
        Register::CR0 | Register::CR2 | Register::CR3 | Register::CR4 | Register::CR8 => {
            privileged(cpu).map(|()| register)
        }
        _ => Err(Exception::ud()),
    }
}

fn mov_to_cr(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let register = control_register(cpu, insn.op0_register())?;
    let value = cpu.register(insn.op1_register());
    match register {
        Register::CR0 => set_cr0(cpu, value)?,
        Register::CR2 => cpu.cr2 = value,
        Register::CR3 => set_cr3(cpu, value)?,
        Register::CR4 => set_cr4(cpu, value)?,
        _ => {
            if value > 15 {
                return Err(Exception::gp(0));
            }
            cpu.apic.set_cr8(value);
        }
    }
    Ok(Flow::Next)
}

fn mov_from_cr(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let value = match control_register(cpu, insn.op1_register())? {
        Register::CR0 => cpu.cr0,
        Register::CR2 => cpu.cr2,
        Register::CR3 => cpu.cr3,
        Register::CR4 => cpu.cr4,
        _ => cpu.apic.cr8(),
    };
    cpu.set_register(insn.op0_register(), value);
    Ok(Flow::Next)
}

/// Writes CR0 with all that follows from it (Intel SDM vol. 3, 2.5, 4.1.2 and 10.8.5).
pub fn set_cr0(cpu: &mut Cpu, value: u64) -> Exec<()> {
    use control::{CR0_CD, CR0_ET, CR0_NW, CR0_PE, CR0_PG, CR0_WP};
    let invalid = value >> 32 != 0
        || value & CR0_PG != 0 && value & CR0_PE == 0
        || value & CR0_NW != 0 && value & CR0_CD == 0;
    if invalid {
        return Err(Exception::gp(0));
    }
    let new = value & CR0_KNOWN | CR0_ET;
    let turned_on = new & CR0_PG != 0 && cpu.cr0 & CR0_PG == 0;
    let turned_off = new & CR0_PG == 0 && cpu.cr0 & CR0_PG != 0;
    if turned_on && cpu.efer & control::EFER_LME != 0 {
        if cpu.cr4 & control::CR4_PAE == 0
            || cpu.segments[engine::seg::CS].access & engine::Segment::LONG != 0
        {
            return Err(Exception::gp(0));
        }
        cpu.efer |= control::EFER_LMA;
    }
    if turned_off {
        if cpu.code64() {
            return Err(Exception::gp(0));
        }
        cpu.efer &= !control::EFER_LMA;
    }
    let changed = new ^ cpu.cr0;
    let pae = new & CR0_PG != 0 && cpu.cr4 & control::CR4_PAE != 0 && !cpu.long_mode();
    if pae && changed & (CR0_PG | CR0_CD | CR0_NW) != 0 {
        cpu.pdptes = read_pdptes(cpu, cpu.cr3).ok_or(Exception::gp(0))?;
    }
    cpu.cr0 = new;
    if changed & (CR0_PG | CR0_WP | CR0_PE) != 0 {
        cpu.tlb.flush_all();
    }
    Ok(())
}

fn set_cr3(cpu: &mut Cpu, value: u64) -> Exec<()> {
    // Bit 63 only has a meaning with PCIDs, which this processor does not have.
    let reserved = if cpu.long_mode() { !cpu.physical_mask() } else { 0 };
    if value & reserved != 0 {
        return Err(Exception::gp(0));
    }
    let pae = cpu.cr0 & control::CR0_PG != 0 && cpu.cr4 & control::CR4_PAE != 0 && !cpu.long_mode();
    if pae {
        cpu.pdptes = read_pdptes(cpu, value).ok_or(Exception::gp(0))?;
    }
    cpu.cr3 = value;
    cpu.tlb.flush_non_global();
    Ok(())
}

/// CR4 bits that the guest's processor has.
fn cr4_known(cpu: &Cpu) -> u64 {
    use control::*;
    let always = CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_PCE;
    let conditional = [
        (feature::FXSR, CR4_OSFXSR),
        (feature::SSE, CR4_OSXMMEXCPT),
        (feature::UMIP, CR4_UMIP),
        (feature::FSGSBASE, CR4_FSGSBASE),
        (feature::XSAVE, CR4_OSXSAVE),
        (feature::SMEP, CR4_SMEP),
        (feature::SMAP, CR4_SMAP),
    ];
    conditional.into_iter().filter(|(f, _)| cpu.has(*f)).fold(always, |known, (_, bit)| known | bit)
}

fn set_cr4(cpu: &mut Cpu, value: u64) -> Exec<()> {
    use control::{CR0_PG, CR4_PAE, CR4_PGE, CR4_PSE, CR4_SMAP, CR4_SMEP};
    if value & !cr4_known(cpu) != 0 || cpu.long_mode() && value & CR4_PAE == 0 {
        return Err(Exception::gp(0));
    }
    let changed = value ^ cpu.cr4;
    let paging = CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP | CR4_SMAP;
    let pae = cpu.cr0 & CR0_PG != 0 && value & CR4_PAE != 0 && !cpu.long_mode();
    if pae && changed & paging != 0 {
        cpu.pdptes = read_pdptes(cpu, cpu.cr3).ok_or(Exception::gp(0))?;
    }
    cpu.cr4 = value;
    if changed & paging != 0 {
        cpu.tlb.flush_all();
    }
    Ok(())
}

/// DR7.GD, and DR6.BD that tells of it (Intel SDM vol. 3, 17.2).
const DR7_GD: u64 = 1 << 13;
const DR6_BD: u64 = 1 << 13;

/// Number of the debug register, after the checks of every access to one. DR4 and DR5 are DR6 and
/// DR7 unless CR4.DE is set.
fn debug_register(cpu: &mut Cpu, register: Register) -> Exec<usize> {
    let number = register.number();
    if matches!(number, 4 | 5) && cpu.cr4 & control::CR4_DE != 0 || number > 7 {
        return Err(Exception::ud());
    }
    privileged(cpu)?;
    if cpu.dr[7] & DR7_GD != 0 {
        cpu.dr[6] |= DR6_BD;
        cpu.dr[7] &= !DR7_GD;
        return Err(Exception::plain(vector::DB));
    }
    Ok(if matches!(number, 4 | 5) { number + 2 } else { number })
}

fn mov_to_dr(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let number = debug_register(cpu, insn.op0_register())?;
    let value = cpu.register(insn.op1_register());
    if number >= 6 && value >> 32 != 0 {
        return Err(Exception::gp(0));
    }
    cpu.dr[number] = match number {
        6 => value & 0xe00f | 0xffff_0ff0,
        7 => value & 0xffff_2bff | 0x400,
        _ => value,
    };
    Ok(Flow::Next)
}

fn mov_from_dr(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let number = debug_register(cpu, insn.op1_register())?;
    let value = cpu.dr[number];
    cpu.set_register(insn.op0_register(), value);
    Ok(Flow::Next)
}

fn lmsw(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    privileged(cpu)?;
    let value = cpu.operand(insn, 0, 2)?;
    // PE can be set but not cleared; MP, EM and TS follow.
    let new = cpu.cr0 & !0xe | value & 0xf | cpu.cr0 & control::CR0_PE;
    set_cr0(cpu, new)?;
    Ok(Flow::Next)
}

/// SMSW, SGDT and their like at CPL 3 with CR4.UMIP (Intel SDM vol. 3, 2.5).
fn user_mode_prevented(cpu: &Cpu) -> Exec<()> {
    if cpu.cpl == 3 && cpu.cr4 & control::CR4_UMIP != 0 { Err(Exception::gp(0)) } else { Ok(()) }
}

fn smsw(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    user_mode_prevented(cpu)?;
    let value = cpu.cr0;
    cpu.set_operand(insn, 0, 2, value)?;
    Ok(Flow::Next)
}

fn clts(cpu: &mut Cpu) -> Exec<Flow> {
    privileged(cpu)?;
    cpu.cr0 &= !control::CR0_TS;
    Ok(Flow::Next)
}

fn invlpg(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    privileged(cpu)?;
    let place = cpu.place(insn, 0);
    let base = if cpu.code64() && place.seg < engine::seg::FS { 0 } else { cpu.segments[place.seg].base };
    let mut linear = base.wrapping_add(place.offset);
    if !cpu.code64() {
        linear &= 0xffff_ffff;
    }
    cpu.tlb.flush_page(linear);
    Ok(Flow::Next)
}

fn cli(cpu: &mut Cpu) -> Exec<Flow> {
    change_if(cpu, false)?;
    Ok(Flow::Next)
}

fn sti(cpu: &mut Cpu) -> Exec<Flow> {
    let before = cpu.rflags & flag::IF;
    change_if(cpu, true)?;
    // Interrupts stay off for one more instruction if they were off.
    if before == 0 && cpu.rflags & flag::IF != 0 {
        cpu.shadow = true;
    }
    Ok(Flow::Next)
}

/// CLI and STI with their virtual forms (Intel SDM vol. 2, CLI, table 3-6).
fn change_if(cpu: &mut Cpu, on: bool) -> Exec<()> {
    let set = |flags: u64, bit: u64| if on { flags | bit } else { flags & !bit };
    if !cpu.protected() || cpu.iopl() >= cpu.cpl {
        cpu.rflags = set(cpu.rflags, flag::IF);
        return Ok(());
    }
    let virtual_if = if cpu.virtual_8086() {
        cpu.cr4 & control::CR4_VME != 0
    } else {
        cpu.cpl == 3 && cpu.cr4 & control::CR4_PVI != 0
    };
    if !virtual_if || on && cpu.rflags & flag::VIP != 0 {
        return Err(Exception::gp(0));
    }
    cpu.rflags = set(cpu.rflags, flag::VIF);
    Ok(())
}

fn alignment_check(cpu: &mut Cpu, on: bool) -> Exec<Flow> {
    if cpu.cpl != 0 || !cpu.has(feature::SMAP) {
        return Err(Exception::ud());
    }
    cpu.rflags = if on { cpu.rflags | flag::AC } else { cpu.rflags & !flag::AC };
    Ok(Flow::Next)
}

fn flags_size(insn: &Instruction) -> usize {
    match insn.code() {
        Code::Pushfw | Code::Popfw => 2,
        Code::Pushfd | Code::Popfd => 4,
        _ => 8,
    }
}

fn pushf(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let size = flags_size(insn);
    let mut value = cpu.rflags & !(flag::VM | flag::RF);
    if cpu.virtual_8086() && cpu.iopl() < 3 {
        if cpu.cr4 & control::CR4_VME == 0 || size != 2 {
            return Err(Exception::gp(0));
        }
        // IF shows VIF, IOPL shows 3.
        let shown = if value & flag::VIF != 0 { flag::IF } else { 0 };
        value = value & !flag::IF | shown | flag::IOPL;
    }
    cpu.push(size, value)?;
    Ok(Flow::Next)
}

/// Flags that POPF may change at any privilege.
const POPF_USER: u64 = crate::cpu::ARITHMETIC_FLAGS | flag::TF | flag::DF | flag::NT | flag::AC | flag::ID;

fn popf(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let size = flags_size(insn);
    let vme = cpu.virtual_8086() && cpu.iopl() < 3;
    if vme && (cpu.cr4 & control::CR4_VME == 0 || size != 2) {
        return Err(Exception::gp(0));
    }
    let value = cpu.peek(0, size)?;
    if vme {
        if value & flag::IF != 0 && cpu.rflags & flag::VIP != 0 || value & flag::TF != 0 {
            return Err(Exception::gp(0));
        }
        let keep = !(POPF_USER & 0xffff) | flag::IF | flag::IOPL;
        let virtual_if = if value & flag::IF != 0 { flag::VIF } else { 0 };
        cpu.rflags = cpu.rflags & keep & !flag::VIF | value & !keep & 0xffff | virtual_if;
    } else {
        let mut mask = POPF_USER;
        if cpu.cpl == 0 || !cpu.protected() {
            mask |= flag::IOPL | flag::IF;
        } else if cpu.iopl() >= cpu.cpl {
            mask |= flag::IF;
        }
        if size == 2 {
            mask &= 0xffff;
        }
        cpu.rflags = cpu.rflags & !mask & !flag::RF | value & mask | 2;
    }
    cpu.pop(size)?;
    Ok(Flow::Next)
}

fn tsc_allowed(cpu: &Cpu) -> Exec<()> {
    if cpu.cr4 & control::CR4_TSD != 0 && cpu.cpl != 0 { Err(Exception::gp(0)) } else { Ok(()) }
}

fn set_edx_eax(cpu: &mut Cpu, value: u64) {
    cpu.gpr[reg::RAX] = value & 0xffff_ffff;
    cpu.gpr[reg::RDX] = value >> 32;
}

fn rdtsc(cpu: &mut Cpu) -> Exec<Flow> {
    tsc_allowed(cpu)?;
    let value = guest_tsc(cpu);
    set_edx_eax(cpu, value);
    Ok(Flow::Next)
}

fn rdtscp(cpu: &mut Cpu) -> Exec<Flow> {
    if !cpu.has(feature::RDTSCP) {
        return Err(Exception::ud());
    }
    rdtsc(cpu)?;
    cpu.gpr[reg::RCX] = cpu.msr.tsc_aux & 0xffff_ffff;
    Ok(Flow::Next)
}

fn rdpid(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    if !cpu.has(feature::RDPID) {
        return Err(Exception::ud());
    }
    let value = cpu.msr.tsc_aux & 0xffff_ffff;
    cpu.set_register(insn.op0_register(), value);
    Ok(Flow::Next)
}

fn xgetbv(cpu: &mut Cpu) -> Exec<Flow> {
    if cpu.cr4 & control::CR4_OSXSAVE == 0 {
        return Err(Exception::ud());
    }
    let value = match cpu.gpr[reg::RCX] as u32 {
        0 => cpu.xcr0,
        // Which components are not in their initial state; saying "all" is allowed.
        1 if cpu.has(feature::XGETBV1) => cpu.xcr0,
        _ => return Err(Exception::gp(0)),
    };
    set_edx_eax(cpu, value);
    Ok(Flow::Next)
}

fn xsetbv(cpu: &mut Cpu) -> Exec<Flow> {
    if cpu.cr4 & control::CR4_OSXSAVE == 0 {
        return Err(Exception::ud());
    }
    privileged(cpu)?;
    let value = cpu.gpr[reg::RDX] << 32 | cpu.gpr[reg::RAX] & 0xffff_ffff;
    let leaf = cpu.cpuid_leaf(0xd, 0);
    let known = u64::from(leaf.edx) << 32 | u64::from(leaf.eax);
    // x87 is always on; AVX needs SSE (Intel SDM vol. 1, 13.3).
    let valid = value & !known == 0 && value & 1 != 0 && value & 6 != 4;
    if cpu.gpr[reg::RCX] as u32 != 0 || !valid {
        return Err(Exception::gp(0));
    }
    cpu.xcr0 = value;
    Ok(Flow::Next)
}

/// Cache-line flushes only check the address: the host's caches are coherent.
fn flush_line(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let place = cpu.place(insn, 0);
    let linear = cpu.linear_address(place.seg, place.offset, 1, false)?;
    if cpu.code64() && !canonical(linear) {
        return Err(Exception::gp(0));
    }
    cpu.probe_linear(linear, crate::mmu::AccessMode::Current, 1, false)?;
    Ok(Flow::Next)
}
