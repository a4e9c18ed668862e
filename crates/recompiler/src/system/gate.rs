//! What all transfers of control between segments and privilege levels share.

use engine::{Segment, reg, seg};

use super::segments::{
    Descriptor, drop_privileged, fault, is_null, kind, mark_accessed, null, read_descriptor, stack_descriptor,
};
use crate::cpu::Cpu;
use crate::exception::{Exception, Exec, vector};
use crate::mmu::AccessMode;

/// What an instruction or delivery that faults half-way puts back.
pub struct Saved {
    gpr: [u64; 16],
    rip: u64,
    rflags: u64,
    segments: [Segment; 8],
    cpl: u8,
    shadow: bool,
}

impl Saved {
    /// The state now.
    pub fn of(cpu: &Cpu) -> Self {
        let Cpu { gpr, rip, rflags, segments, cpl, shadow, .. } = *cpu;
        Self { gpr, rip, rflags, segments, cpl, shadow }
    }

    /// Back to the state then.
    pub fn restore(self, cpu: &mut Cpu) {
        let Self { gpr, rip, rflags, segments, cpl, shadow } = self;
        (cpu.gpr, cpu.rip, cpu.rflags, cpu.segments) = (gpr, rip, rflags, segments);
        (cpu.cpl, cpu.shadow) = (cpl, shadow);
    }
}

/// Runs `action`; if it faults, the registers are as before.
pub fn restoring<T>(cpu: &mut Cpu, action: impl FnOnce(&mut Cpu) -> Exec<T>) -> Exec<T> {
    let before = Saved::of(cpu);
    let result = action(cpu);
    if result.is_err() {
        before.restore(cpu);
    }
    result
}

/// A stack that is filled or read before the registers point to it.
pub struct Stack {
    segment: Segment,
    pointer: u64,
    mask: u64,
    /// 64-bit rules: no limit, no base.
    long: bool,
    level: u8,
    /// What a lack of room raises.
    full: Exception,
}

impl Stack {
    /// The current stack, accessed by the rules of the current mode.
    pub fn current(cpu: &Cpu) -> Self {
        let full = Exception::with(vector::SS, 0);
        let (pointer, mask, long) = (cpu.stack_pointer(), cpu.stack_mask(), cpu.code64());
        Self { segment: cpu.segments[seg::SS], pointer, mask, long, level: cpu.cpl, full }
    }

    /// A stack of 64-bit mode at privilege `level`.
    pub fn long(segment: Segment, pointer: u64, level: u8) -> Self {
        Self { segment, pointer, mask: u64::MAX, long: true, level, full: Exception::with(vector::SS, 0) }
    }

    /// A stack of protected mode at privilege `level`; errors name its selector.
    pub fn inner(segment: Segment, pointer: u64, level: u8) -> Self {
        let mask = if segment.access & Segment::BIG != 0 { 0xffff_ffff } else { 0xffff };
        Self { segment, pointer, mask, long: false, level, full: fault(vector::SS, segment.selector) }
    }

    fn address(&self, cpu: &Cpu, pointer: u64, size: usize, write: bool) -> Exec<u64> {
        let mut segment = self.segment;
        if self.long {
            segment.base = 0;
        }
        // Whoever fills a stack from virtual-8086 mode has checked that it is writable data.
        cpu.segment_address(&segment, pointer, size as u64, write, self.long).ok_or(self.full)
    }

    /// Pushes `size` bytes.
    pub fn push(&mut self, cpu: &mut Cpu, size: usize, value: u64) -> Exec<()> {
        let pointer = self.pointer.wrapping_sub(size as u64) & self.mask;
        let linear = self.address(cpu, pointer, size, true)?;
        cpu.write_value(linear, AccessMode::Level(self.level), size, value)?;
        self.pointer = pointer;
        Ok(())
    }

    /// Pops `size` bytes.
    pub fn pop(&mut self, cpu: &mut Cpu, size: usize) -> Exec<u64> {
        let linear = self.address(cpu, self.pointer & self.mask, size, false)?;
        let value = cpu.read_value(linear, AccessMode::Level(self.level), size)?;
        self.skip(size as u64);
        Ok(value)
    }

    /// Passes over `bytes`.
    pub fn skip(&mut self, bytes: u64) {
        self.pointer = self.pointer.wrapping_add(bytes) & self.mask;
    }

    /// Makes it the current stack.
    pub fn load(self, cpu: &mut Cpu) {
        cpu.segments[seg::SS] = self.segment;
        self.move_pointer(cpu);
    }

    /// Sets RSP alone. A 16-bit stack leaves the upper part.
    pub fn move_pointer(self, cpu: &mut Cpu) {
        let kept = if self.mask == 0xffff { cpu.gpr[reg::RSP] & 0xffff_0000 } else { 0 };
        cpu.gpr[reg::RSP] = kept | self.pointer & self.mask;
    }
}

/// Reads `size` bytes at `offset` of the current TSS; #TS if they are not in it.
fn read_tss(cpu: &mut Cpu, offset: u64, size: usize) -> Exec<u64> {
    let tss = cpu.segments[seg::TR];
    if offset + size as u64 - 1 > u64::from(tss.limit) || tss.access & Segment::UNUSABLE != 0 {
        return Err(fault(vector::TS, tss.selector));
    }
    cpu.read_value(tss.base.wrapping_add(offset), AccessMode::Supervisor, size)
}

/// The stack that the TSS of legacy protected mode has for privilege `level` (Intel SDM vol. 3,
/// figures 8-2 and 8-10).
pub fn inner_stack(cpu: &mut Cpu, level: u8) -> Exec<Stack> {
    let (pointer, selector) = if cpu.segments[seg::TR].access & 15 & !kind::BUSY == kind::TSS16 {
        let offset = 2 + u64::from(level) * 4;
        (read_tss(cpu, offset, 2)?, read_tss(cpu, offset + 2, 2)?)
    } else {
        let offset = 4 + u64::from(level) * 8;
        (read_tss(cpu, offset, 4)?, read_tss(cpu, offset + 4, 2)?)
    };
    let descriptor = stack_descriptor(cpu, selector as u16, level, vector::TS)?;
    Ok(Stack::inner(descriptor.segment(), pointer, level))
}

/// The stack pointer that the TSS of IA-32e mode has for privilege `level` (figure 8-11).
pub fn long_stack_pointer(cpu: &mut Cpu, level: u8) -> Exec<u64> {
    read_tss(cpu, 4 + u64::from(level) * 8, 8)
}

/// The stack pointer in the TSS's interrupt stack table, `number` 1–7.
pub fn interrupt_stack_pointer(cpu: &mut Cpu, number: u64) -> Exec<u64> {
    read_tss(cpu, 0x24 + (number - 1) * 8, 8)
}

/// The stack for privilege `level` of IA-32e mode; SS becomes null.
pub fn long_stack(cpu: &mut Cpu, level: u8) -> Exec<Stack> {
    let pointer = long_stack_pointer(cpu, level)?;
    Ok(Stack::long(null(u16::from(level)), pointer, level))
}

/// Checks that `offset` is one in a code segment: #GP(0) if not.
pub fn check_offset(cpu: &Cpu, code: &Descriptor, offset: u64) -> Exec<()> {
    let long = cpu.long_mode() && code.access() & Segment::LONG != 0;
    let fits = if long { super::features::canonical(offset) } else { offset <= u64::from(code.limit()) };
    if fits { Ok(()) } else { Err(Exception::gp(0)) }
}

/// Loads CS with `code` for privilege `level`, and RIP.
pub fn enter(cpu: &mut Cpu, mut code: Descriptor, level: u8, rip: u64) -> Exec<()> {
    mark_accessed(cpu, &mut code)?;
    code.selector = code.selector & 0xfffc | u16::from(level);
    cpu.segments[seg::CS] = code.segment();
    cpu.cpl = level;
    cpu.rip = rip;
    Ok(())
}

/// The code segment that a far return or IRET goes to (Intel SDM vol. 3, 5.8.6). Its privilege
/// level is the selector's RPL.
pub fn return_code(cpu: &mut Cpu, selector: u16) -> Exec<Descriptor> {
    if is_null(selector) {
        return Err(Exception::gp(0));
    }
    let code = read_descriptor(cpu, selector, vector::GP)?;
    let level = selector as u8 & 3;
    let fits = if code.is_conforming() { code.dpl() <= level } else { code.dpl() == level };
    if !code.is_code() || level < cpu.cpl || !fits || both_sizes(cpu, &code) {
        return Err(fault(vector::GP, selector));
    }
    if code.present() { Ok(code) } else { Err(fault(vector::NP, selector)) }
}

/// Whether a code segment of IA-32e mode claims to be both 64- and 32-bit.
pub fn both_sizes(cpu: &Cpu, code: &Descriptor) -> bool {
    let both = Segment::LONG | Segment::BIG;
    cpu.long_mode() && code.access() & both == both
}

/// SS for a return to `code` at `level`; 64-bit code outside of CPL 3 may have a null one.
pub fn return_stack(cpu: &mut Cpu, selector: u16, code: &Descriptor, level: u8) -> Exec<Segment> {
    if is_null(selector) && cpu.long_mode() && code.access() & Segment::LONG != 0 && level != 3 {
        return Ok(null(selector));
    }
    Ok(stack_descriptor(cpu, selector, level, vector::GP)?.segment())
}

/// The end of a return with a stack switch: enters `code` at `level` with `stack`.
pub fn return_to(cpu: &mut Cpu, code: Descriptor, rip: u64, stack: Segment, pointer: u64) -> Exec<()> {
    let (level, from) = (code.selector as u8 & 3, cpu.cpl);
    enter(cpu, code, level, rip)?;
    cpu.segments[seg::SS] = stack;
    cpu.set_stack_pointer(pointer);
    if level > from {
        drop_privileged(cpu);
    }
    Ok(())
}
