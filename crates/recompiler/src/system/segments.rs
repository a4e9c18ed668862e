//! Descriptors, and what loads data and stack segment registers and their bases (Intel SDM vol.
//! 3, chapter 3 and 5; vol. 2, MOV, POP, LDS, SWAPGS, RDFSBASE).

use engine::{Segment, seg};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::features::canonical;
use super::operand::segment_number;
use super::{Flow, Outcome};
use crate::cpu::{Cpu, control};
use crate::exception::{Exception, Exec, vector};
use crate::mmu::AccessMode;

/// Types of system descriptors (Intel SDM vol. 3, table 3-2).
pub mod kind {
    #![allow(missing_docs)]
    pub const TSS16: u32 = 1;
    pub const LDT: u32 = 2;
    pub const CALL_GATE16: u32 = 4;
    pub const TASK_GATE: u32 = 5;
    pub const INTERRUPT_GATE16: u32 = 6;
    pub const TRAP_GATE16: u32 = 7;
    pub const TSS32: u32 = 9;
    pub const CALL_GATE32: u32 = 12;
    pub const INTERRUPT_GATE32: u32 = 14;
    pub const TRAP_GATE32: u32 = 15;
    /// Set in the type of a busy TSS.
    pub const BUSY: u32 = 2;
}

/// Limit of a 4 GiB segment.
const FLAT: u32 = 0xffff_ffff;

/// An entry of a descriptor table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The (first) eight bytes.
    pub raw: u64,
    /// Bytes 8–15 of the 16-byte system descriptors of IA-32e mode.
    pub upper: u64,
    /// Where it lies.
    pub address: u64,
    /// By which selector it was found.
    pub selector: u16,
}

impl Descriptor {
    /// Segment base, 32 bits.
    pub fn base(&self) -> u64 {
        self.raw >> 16 & 0xff_ffff | self.raw >> 56 << 24
    }

    /// Segment limit in bytes.
    pub fn limit(&self) -> u32 {
        let limit = (self.raw & 0xffff | self.raw >> 32 & 0xf_0000) as u32;
        if self.access() & Segment::GRANULAR != 0 { limit << 12 | 0xfff } else { limit }
    }

    /// Access rights as in [`Segment::access`].
    pub fn access(&self) -> u32 {
        (self.raw >> 40) as u32 & 0xf0ff
    }

    /// DPL.
    pub fn dpl(&self) -> u8 {
        (self.access() >> 5 & 3) as u8
    }

    /// P.
    pub fn present(&self) -> bool {
        self.access() & Segment::PRESENT != 0
    }

    /// A code segment.
    pub fn is_code(&self) -> bool {
        self.access() & 0x18 == 0x18
    }

    /// A conforming code segment.
    pub fn is_conforming(&self) -> bool {
        self.access() & 0x1c == 0x1c
    }

    /// A writable data segment.
    pub fn is_writable(&self) -> bool {
        self.access() & 0x1a == 0x12
    }

    /// A data segment or a readable code segment.
    pub fn is_readable(&self) -> bool {
        self.access() & 0x18 == 0x10 || self.access() & 0x1a == 0x1a
    }

    /// The type, if this is a system descriptor.
    pub fn system(&self) -> Option<u32> {
        (self.access() & Segment::NON_SYSTEM == 0).then_some(self.access() & 15)
    }

    /// The hidden part that a segment register gets.
    pub fn segment(&self) -> Segment {
        Segment { base: self.base(), limit: self.limit(), access: self.access(), selector: self.selector }
    }
}

/// The exception `vector` with `selector` as error code.
pub fn fault(vector: u8, selector: u16) -> Exception {
    Exception::with(vector, u32::from(selector & 0xfffc))
}

/// Whether a selector is null.
pub fn is_null(selector: u16) -> bool {
    selector & 0xfffc == 0
}

/// A segment register that holds a null selector.
pub fn null(selector: u16) -> Segment {
    Segment { base: 0, limit: 0, access: Segment::UNUSABLE | u32::from(selector & 3) << 5, selector }
}

/// A flat code segment of privilege `level` as SYSCALL and its relatives load it.
pub fn flat_code(selector: u16, level: u8, size: u32) -> Segment {
    let access = 0x9b | Segment::GRANULAR | u32::from(level) << 5 | size;
    Segment { base: 0, limit: FLAT, access, selector }
}

/// A flat stack segment of privilege `level`.
pub fn flat_stack(selector: u16, level: u8) -> Segment {
    let access = 0x93 | Segment::GRANULAR | Segment::BIG | u32::from(level) << 5;
    Segment { base: 0, limit: FLAT, access, selector }
}

/// Linear address of the descriptor of `size` bytes that a selector names; `vector` if it lies
/// outside of its table.
fn descriptor_address(cpu: &Cpu, selector: u16, size: u64, vector: u8) -> Exec<u64> {
    let (base, limit) = if selector & 4 == 0 {
        (cpu.gdtr.base, u64::from(cpu.gdtr.limit))
    } else {
        let ldt = &cpu.segments[seg::LDTR];
        if ldt.access & Segment::UNUSABLE != 0 {
            return Err(fault(vector, selector));
        }
        (ldt.base, u64::from(ldt.limit))
    };
    let offset = u64::from(selector & 0xfff8);
    if offset + size - 1 > limit { Err(fault(vector, selector)) } else { Ok(base.wrapping_add(offset)) }
}

/// Reads the descriptor that a selector names; `vector` if it lies outside of its table.
pub fn read_descriptor(cpu: &mut Cpu, selector: u16, vector: u8) -> Exec<Descriptor> {
    let address = descriptor_address(cpu, selector, 8, vector)?;
    let raw = cpu.read_value(address, AccessMode::Supervisor, 8)?;
    Ok(Descriptor { raw, upper: 0, address, selector })
}

/// [`read_descriptor`] for descriptors that have 16 bytes in IA-32e mode.
pub fn read_wide_descriptor(cpu: &mut Cpu, selector: u16, vector: u8) -> Exec<Descriptor> {
    let mut descriptor = read_descriptor(cpu, selector, vector)?;
    if cpu.long_mode() {
        let address = descriptor_address(cpu, selector, 16, vector)?;
        descriptor.upper = cpu.read_value(address.wrapping_add(8), AccessMode::Supervisor, 8)?;
    }
    Ok(descriptor)
}

/// Changes the type and the like in a descriptor in memory.
pub fn update_access(cpu: &mut Cpu, descriptor: &mut Descriptor, set: u32, clear: u32) -> Exec<()> {
    let new = (descriptor.access() | set) & !clear;
    if new != descriptor.access() {
        let address = descriptor.address.wrapping_add(5);
        cpu.write_value(address, AccessMode::Supervisor, 1, u64::from(new))?;
        descriptor.raw = descriptor.raw & !(0xff << 40) | u64::from(new & 0xff) << 40;
    }
    Ok(())
}

/// Sets the accessed bit of a code or data segment.
pub fn mark_accessed(cpu: &mut Cpu, descriptor: &mut Descriptor) -> Exec<()> {
    update_access(cpu, descriptor, Segment::ACCESSED, 0)
}

/// The descriptor for SS at privilege `level`; `vector` if it does not fit.
pub fn stack_descriptor(cpu: &mut Cpu, selector: u16, level: u8, vector: u8) -> Exec<Descriptor> {
    if is_null(selector) {
        return Err(Exception::with(vector, 0));
    }
    let mut descriptor = read_descriptor(cpu, selector, vector)?;
    let fits = selector as u8 & 3 == level && descriptor.dpl() == level && descriptor.is_writable();
    if !fits {
        return Err(fault(vector, selector));
    }
    if !descriptor.present() {
        return Err(fault(vector::SS, selector));
    }
    mark_accessed(cpu, &mut descriptor)?;
    Ok(descriptor)
}

/// The descriptor for a data segment register at privilege `level`, `None` for a null selector;
/// `vector` if it does not fit.
pub fn data_descriptor(cpu: &mut Cpu, selector: u16, level: u8, vector: u8) -> Exec<Option<Descriptor>> {
    if is_null(selector) {
        return Ok(None);
    }
    let mut descriptor = read_descriptor(cpu, selector, vector)?;
    let effective = level.max(selector as u8 & 3);
    if !descriptor.is_readable() || !descriptor.is_conforming() && effective > descriptor.dpl() {
        return Err(fault(vector, selector));
    }
    if !descriptor.present() {
        return Err(fault(vector::NP, selector));
    }
    mark_accessed(cpu, &mut descriptor)?;
    Ok(Some(descriptor))
}

/// What a register holds after loading `selector` in virtual-8086 mode.
pub fn virtual_8086_segment(selector: u16) -> Segment {
    Segment { base: u64::from(selector) << 4, limit: 0xffff, access: 0xf3, selector }
}

/// What a register that held `old` has after loading `selector` in real mode, where the limit and
/// size stay ("unreal mode").
pub fn real_segment(old: &Segment, selector: u16, access: u32) -> Segment {
    let unusable = old.access & Segment::UNUSABLE != 0;
    let kept = if unusable { 0 } else { old.access & (Segment::BIG | Segment::GRANULAR) };
    let limit = if unusable { 0xffff } else { old.limit };
    Segment { base: u64::from(selector) << 4, limit, access: access | kept, selector }
}

/// Loads ES, SS, DS, FS or GS by the rules of the current mode.
pub fn load(cpu: &mut Cpu, number: usize, selector: u16) -> Exec<()> {
    let new = if cpu.virtual_8086() {
        virtual_8086_segment(selector)
    } else if !cpu.protected() {
        real_segment(&cpu.segments[number], selector, 0x93)
    } else if number == seg::SS {
        // 64-bit mode allows a null SS outside of CPL 3.
        if is_null(selector) && cpu.code64() && cpu.cpl < 3 && selector as u8 == cpu.cpl {
            null(selector)
        } else {
            stack_descriptor(cpu, selector, cpu.cpl, vector::GP)?.segment()
        }
    } else {
        data_descriptor(cpu, selector, cpu.cpl, vector::GP)?.map_or(null(selector), |d| d.segment())
    };
    cpu.segments[number] = new;
    Ok(())
}

/// Takes away the data segments that the code at the current level, just entered from an inner
/// one, may not use.
pub fn drop_privileged(cpu: &mut Cpu) {
    let level = cpu.cpl;
    for number in [seg::ES, seg::DS, seg::FS, seg::GS] {
        let segment = &mut cpu.segments[number];
        let conforming = segment.access & 0x1c == 0x1c;
        if segment.access & Segment::UNUSABLE == 0 && segment.dpl() < level && !conforming {
            *segment = null(0);
        }
    }
}

/// Executes what loads or stores ES, SS, DS, FS and GS and the bases of FS and GS.
pub fn execute(cpu: &mut Cpu, insn: &Instruction) -> Outcome {
    let segment_at = |op: u32| {
        insn.op_count() > op
            && insn.op_kind(op) == OpKind::Register
            && insn.op_register(op).is_segment_register()
    };
    Some(match insn.mnemonic() {
        Mnemonic::Mov if segment_at(0) => mov_to(cpu, insn),
        Mnemonic::Mov if segment_at(1) => mov_from(cpu, insn),
        Mnemonic::Push if segment_at(0) => push(cpu, insn),
        Mnemonic::Pop if segment_at(0) => pop(cpu, insn),
        Mnemonic::Lds => load_far(cpu, insn, seg::DS),
        Mnemonic::Les => load_far(cpu, insn, seg::ES),
        Mnemonic::Lfs => load_far(cpu, insn, seg::FS),
        Mnemonic::Lgs => load_far(cpu, insn, seg::GS),
        Mnemonic::Lss => load_far(cpu, insn, seg::SS),
        Mnemonic::Swapgs => swapgs(cpu),
        Mnemonic::Rdfsbase => read_base(cpu, insn, seg::FS),
        Mnemonic::Rdgsbase => read_base(cpu, insn, seg::GS),
        Mnemonic::Wrfsbase => write_base(cpu, insn, seg::FS),
        Mnemonic::Wrgsbase => write_base(cpu, insn, seg::GS),
        _ => return None,
    })
}

fn mov_to(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let register = insn.op_register(0);
    if register == Register::CS {
        return Err(Exception::ud());
    }
    let selector = cpu.operand(insn, 1, 2)? as u16;
    load(cpu, segment_number(register), selector)?;
    if register == Register::SS {
        cpu.shadow = true;
    }
    Ok(Flow::Next)
}

fn mov_from(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let selector = cpu.segments[segment_number(insn.op_register(1))].selector;
    cpu.set_operand(insn, 0, 2, u64::from(selector))?;
    Ok(Flow::Next)
}

fn push(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let selector = cpu.segments[segment_number(insn.op_register(0))].selector;
    let size = insn.stack_pointer_increment().unsigned_abs() as usize;
    cpu.push(size, u64::from(selector))?;
    Ok(Flow::Next)
}

fn pop(cpu: &mut Cpu, insn: &Instruction) -> Exec<Flow> {
    let number = segment_number(insn.op_register(0));
    let size = insn.stack_pointer_increment().unsigned_abs() as usize;
    let selector = cpu.peek(0, 2)? as u16;
    let old = cpu.gpr;
    // The stack that is popped is the old one, even if SS changes.
    cpu.set_stack_pointer(cpu.stack_pointer().wrapping_add(size as u64));
    if let Err(fault) = load(cpu, number, selector) {
        cpu.gpr = old;
        return Err(fault);
    }
    if number == seg::SS {
        cpu.shadow = true;
    }
    Ok(Flow::Next)
}

fn load_far(cpu: &mut Cpu, insn: &Instruction, number: usize) -> Exec<Flow> {
    let size = insn.op0_register().size();
    let place = cpu.place(insn, 1);
    let mut data = [0; 10];
    let data = &mut data[..size + 2];
    cpu.read_seg_bytes(place.seg, place.offset, data)?;
    let value = |bytes: &[u8]| bytes.iter().rev().fold(0, |v, &b| v << 8 | u64::from(b));
    let (offset, selector) = data.split_at(size);
    let (offset, selector) = (value(offset), value(selector) as u16);
    load(cpu, number, selector)?;
    cpu.set_register(insn.op0_register(), offset);
    Ok(Flow::Next)
}

fn swapgs(cpu: &mut Cpu) -> Exec<Flow> {
    if !cpu.code64() {
        return Err(Exception::ud());
    }
    if cpu.cpl != 0 {
        return Err(Exception::gp(0));
    }
    std::mem::swap(&mut cpu.segments[seg::GS].base, &mut cpu.msr.kernel_gs_base);
    Ok(Flow::Next)
}

fn check_base_access(cpu: &Cpu) -> Exec<()> {
    let allowed = cpu.code64() && cpu.cr4 & control::CR4_FSGSBASE != 0;
    if allowed { Ok(()) } else { Err(Exception::ud()) }
}

fn read_base(cpu: &mut Cpu, insn: &Instruction, number: usize) -> Exec<Flow> {
    check_base_access(cpu)?;
    cpu.set_register(insn.op0_register(), cpu.segments[number].base);
    Ok(Flow::Next)
}

fn write_base(cpu: &mut Cpu, insn: &Instruction, number: usize) -> Exec<Flow> {
    check_base_access(cpu)?;
    let base = cpu.register(insn.op0_register());
    if !canonical(base) {
        return Err(Exception::gp(0));
    }
    cpu.segments[number].base = base;
    Ok(Flow::Next)
}
