//! Hardware task switches (Intel SDM vol. 3, chapter 8).

use engine::{Segment, reg, seg};

use super::gate::{Stack, check_offset, enter};
use super::segments::{
    Descriptor, data_descriptor, fault, is_null, kind, null, read_descriptor, stack_descriptor,
    update_access, virtual_8086_segment,
};
use crate::cpu::{Cpu, control, flag};
use crate::exception::{Exception, Exec, vector};
use crate::mmu::{AccessMode, read_pdptes};

/// What makes a task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Far JMP.
    Jump,
    /// Far CALL, interrupt or exception: the new task can return.
    Nested,
    /// IRET with NT set.
    Return,
}

/// Length of the 32-bit and 16-bit TSS (figures 8-2 and 8-10), and so their least limits plus 1.
const TSS32_LEN: usize = 0x68;
const TSS16_LEN: usize = 0x2c;
/// DR7.L0–L3 and LE, which a task switch clears (8.3).
const DR7_LOCAL: u64 = 0x155;
/// DR6.BT: the TSS's T flag is set.
const DR6_TASK: u64 = 1 << 15;
/// Segment registers in the order of the TSS, which is that of their numbers.
const ORDER: [usize; 6] = [seg::ES, seg::CS, seg::SS, seg::DS, seg::FS, seg::GS];

/// The registers that a TSS holds.
#[derive(Default)]
struct State {
    cr3: Option<u64>,
    rip: u64,
    flags: u64,
    gpr: [u64; 8],
    selectors: [u16; 6],
    ldt: u16,
    trap: bool,
}

fn is_32(kind: u32) -> bool {
    kind & 8 != 0
}

fn field(image: &[u8; TSS32_LEN], at: usize, size: usize) -> u64 {
    image.get(at..at + size).map_or(0, |bytes| bytes.iter().rev().fold(0, |v, &b| v << 8 | u64::from(b)))
}

impl State {
    fn parse(image: &[u8; TSS32_LEN], wide: bool) -> Self {
        let mut new = Self::default();
        if wide {
            new.cr3 = Some(field(image, 0x1c, 4));
            new.rip = field(image, 0x20, 4);
            new.flags = field(image, 0x24, 4);
            for (i, r) in new.gpr.iter_mut().enumerate() {
                *r = field(image, 0x28 + i * 4, 4);
            }
            for (i, s) in new.selectors.iter_mut().enumerate() {
                *s = field(image, 0x48 + i * 4, 2) as u16;
            }
            new.ldt = field(image, 0x60, 2) as u16;
            new.trap = field(image, 0x64, 2) & 1 != 0;
        } else {
            new.rip = field(image, 0x0e, 2);
            new.flags = field(image, 0x10, 2);
            for (i, r) in new.gpr.iter_mut().enumerate() {
                *r = 0xffff_0000 | field(image, 0x12 + i * 2, 2);
            }
            // FS and GS are not there: null.
            for (i, s) in new.selectors.iter_mut().take(4).enumerate() {
                *s = field(image, 0x22 + i * 2, 2) as u16;
            }
            new.ldt = field(image, 0x2a, 2) as u16;
        }
        new
    }
}

/// Stores the registers into the current TSS.
fn save(cpu: &mut Cpu, rip: u64, flags: u64) -> Exec<()> {
    let tss = cpu.segments[seg::TR];
    let mut values = [0; 16];
    let (gprs, rest) = values.split_at_mut(8);
    gprs.copy_from_slice(&cpu.gpr[..8]);
    for (value, number) in rest.iter_mut().zip(ORDER) {
        *value = u64::from(cpu.segments[number].selector);
    }
    // The dynamic part: from EIP to GS (32-bit) or DS (16-bit), fields of one size.
    let (start, size, segments) = if is_32(tss.access & 15) { (0x20, 4, 6) } else { (0x0e, 2, 4) };
    let mut image = Vec::with_capacity(64);
    for value in [rip, flags].iter().chain(values.iter().take(8 + segments)) {
        image.extend(value.to_le_bytes().iter().take(size));
    }
    let start = tss.base.wrapping_add(start);
    cpu.write_linear(start, AccessMode::Supervisor, &image)
}

/// The descriptor of the TSS to switch to.
fn tss_descriptor(cpu: &mut Cpu, selector: u16, cause: Cause) -> Exec<Descriptor> {
    let wrong = if cause == Cause::Return { vector::TS } else { vector::GP };
    if selector & 4 != 0 || is_null(selector) {
        return Err(fault(wrong, selector));
    }
    let descriptor = read_descriptor(cpu, selector, wrong)?;
    let busy = if cause == Cause::Return { kind::BUSY } else { 0 };
    let fits = descriptor.system().is_some_and(|t| t == kind::TSS16 | busy || t == kind::TSS32 | busy);
    if !fits {
        return Err(fault(wrong, selector));
    }
    if !descriptor.present() {
        return Err(fault(vector::NP, selector));
    }
    let least = if is_32(descriptor.access() & 15) { TSS32_LEN } else { TSS16_LEN } as u32 - 1;
    if descriptor.limit() < least { Err(fault(vector::TS, selector)) } else { Ok(descriptor) }
}

/// Sets or clears the busy bit of the descriptor of the TSS `selector`.
fn set_busy(cpu: &mut Cpu, selector: u16, busy: bool) -> Exec<()> {
    let mut descriptor = read_descriptor(cpu, selector, vector::TS)?;
    let (set, clear) = if busy { (kind::BUSY, 0) } else { (0, kind::BUSY) };
    update_access(cpu, &mut descriptor, set, clear)
}

/// Switches to the task of the TSS `selector`; the current one goes on at `rip` with `flags` when
/// it comes back. `Err`: nothing has changed. `Ok(Some)`: the switch was made, and this was raised
/// in the new task.
pub fn switch(cpu: &mut Cpu, selector: u16, cause: Cause, rip: u64, flags: u64) -> Exec<Option<Exception>> {
    let mut descriptor = tss_descriptor(cpu, selector, cause)?;
    let (wide, base) = (is_32(descriptor.access() & 15), descriptor.base());
    let len = if wide { TSS32_LEN } else { TSS16_LEN };
    let mut image = [0; TSS32_LEN];
    cpu.read_linear(base, AccessMode::Supervisor, &mut image[..len])?;
    let old = cpu.segments[seg::TR];
    if cause == Cause::Nested {
        cpu.probe_linear(base, AccessMode::Supervisor, 2, true)?;
    }
    let saved = if cause == Cause::Return { flags & !flag::NT } else { flags };
    save(cpu, rip, saved)?;
    // All that can fault in the old task has been tried but the descriptor table's writability,
    // which the first update of it shows.
    update_access(cpu, &mut descriptor, kind::BUSY, 0)?;
    if cause == Cause::Nested {
        cpu.write_value(base, AccessMode::Supervisor, 2, u64::from(old.selector))?;
    } else {
        set_busy(cpu, old.selector, false)?;
    }
    let mut new = State::parse(&image, wide);
    if cause == Cause::Nested {
        new.flags |= flag::NT;
    }
    cpu.segments[seg::TR] = descriptor.segment();
    Ok(load(cpu, &new, wide).err())
}

/// Loads the registers of the new task. What this raises is raised in the new task.
fn load(cpu: &mut Cpu, new: &State, wide: bool) -> Exec<()> {
    cpu.cr0 |= control::CR0_TS;
    cpu.dr[7] &= !DR7_LOCAL;
    for (register, value) in cpu.gpr.iter_mut().zip(new.gpr) {
        *register = value;
    }
    cpu.rip = new.rip;
    let allowed = if wide { 0x003f_7fd5 } else { 0x7fd5 };
    cpu.rflags = new.flags & allowed | 2;
    for (number, selector) in ORDER.into_iter().zip(new.selectors) {
        cpu.segments[number] = null(selector);
    }
    cpu.segments[seg::LDTR] = null(new.ldt);
    let code = new.selectors[seg::CS];
    cpu.cpl = if cpu.virtual_8086() { 3 } else { code as u8 & 3 };
    if let Some(cr3) = new.cr3
        && cpu.cr0 & control::CR0_PG != 0
    {
        load_cr3(cpu, cr3)?;
    }
    load_ldt(cpu, new.ldt)?;
    if cpu.virtual_8086() {
        for (number, selector) in ORDER.into_iter().zip(new.selectors) {
            cpu.segments[number] = virtual_8086_segment(selector);
        }
    } else {
        load_segments(cpu, new)?;
    }
    if new.trap {
        cpu.dr[6] |= DR6_TASK;
        return Err(Exception::plain(vector::DB));
    }
    Ok(())
}

/// CR3 of the new task; PAE paging loads its page-directory pointers with it.
fn load_cr3(cpu: &mut Cpu, cr3: u64) -> Exec<()> {
    if cpu.cr4 & control::CR4_PAE != 0 {
        cpu.pdptes = read_pdptes(cpu, cr3).ok_or(Exception::gp(0))?;
    }
    cpu.cr3 = cr3;
    cpu.tlb.flush_non_global();
    Ok(())
}

fn load_ldt(cpu: &mut Cpu, selector: u16) -> Exec<()> {
    if is_null(selector) {
        return Ok(());
    }
    if selector & 4 != 0 {
        return Err(fault(vector::TS, selector));
    }
    let descriptor = read_descriptor(cpu, selector, vector::TS)?;
    if descriptor.system() != Some(kind::LDT) || !descriptor.present() {
        return Err(fault(vector::TS, selector));
    }
    cpu.segments[seg::LDTR] = descriptor.segment();
    Ok(())
}

fn load_segments(cpu: &mut Cpu, new: &State) -> Exec<()> {
    let (selector, level) = (new.selectors[seg::CS], cpu.cpl);
    let code = read_code(cpu, selector, level)?;
    let stack = stack_descriptor(cpu, new.selectors[seg::SS], level, vector::TS)?;
    cpu.segments[seg::SS] = stack.segment();
    for number in [seg::ES, seg::DS, seg::FS, seg::GS] {
        let selector = new.selectors[number];
        if let Some(data) = data_descriptor(cpu, selector, level, vector::TS)? {
            cpu.segments[number] = data.segment();
        }
    }
    enter(cpu, code, level, new.rip)?;
    check_offset(cpu, &code, new.rip)
}

fn read_code(cpu: &mut Cpu, selector: u16, level: u8) -> Exec<Descriptor> {
    if is_null(selector) {
        return Err(fault(vector::TS, selector));
    }
    let code = read_descriptor(cpu, selector, vector::TS)?;
    let fits = if code.is_conforming() { code.dpl() <= level } else { code.dpl() == level };
    if !code.is_code() || !fits {
        return Err(fault(vector::TS, selector));
    }
    if code.present() { Ok(code) } else { Err(fault(vector::NP, selector)) }
}

/// The TSS selector in the task gate `gate`, whose privilege the caller has checked.
pub fn gate_target(gate: &Descriptor) -> u16 {
    (gate.raw >> 16) as u16
}

/// An interrupt or exception through a task gate to the TSS `selector`. RIP is what the old task
/// returns to, with `flags`.
pub fn interrupt(cpu: &mut Cpu, selector: u16, error: Option<u32>, flags: u64) -> Exec<Option<Exception>> {
    let rip = cpu.rip;
    let raised = switch(cpu, selector, Cause::Nested, rip, flags)?;
    let Some(error) = error.filter(|_| raised.is_none()) else { return Ok(raised) };
    let size = if is_32(cpu.segments[seg::TR].access & 15) { 4 } else { 2 };
    let mut stack = Stack::current(cpu);
    if let Err(raised) = stack.push(cpu, size, u64::from(error)) {
        return Ok(Some(raised));
    }
    stack.move_pointer(cpu);
    Ok(None)
}

/// IRET with NT set: back to the task that the current TSS's link names.
pub fn return_to_link(cpu: &mut Cpu, next: u64) -> Exec<Option<Exception>> {
    let tss: Segment = cpu.segments[seg::TR];
    let link = cpu.read_value(tss.base, AccessMode::Supervisor, 2)? as u16;
    let flags = cpu.rflags;
    switch(cpu, link, Cause::Return, next, flags)
}

/// RSP is among the registers of the TSS by the numbers of [`reg`].
const _: () = assert!(reg::RSP == 4 && reg::RDI == 7);
