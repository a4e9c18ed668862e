//! Guest memory as system instructions and slow paths see it: linear, segmented, stack, code and
//! physical accesses.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use engine::{Segment, reg, seg};
use memory::{CodeMap, PAGE_SIZE};

use super::walk::{Access, Translation, translate};
use super::{Span, TlbClass};
use crate::cpu::{Cpu, control, flag};
use crate::exception::{Exception, Exec, vector};
use crate::system::features::canonical;
use crate::system::operand::mask;

/// With which privilege an access is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessMode {
    /// The current privilege level's.
    Current,
    /// An implicit access to a system structure (descriptor tables, TSS): supervisor at any CPL,
    /// and SMAP holds whatever RFLAGS.AC says (Intel SDM vol. 3, 4.6.1).
    Supervisor,
    /// An explicit access at this privilege level, which is about to be entered.
    Level(u8),
}

/// What [`fill_tlb`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// RAM: the TLB entry is there. Its write tag may be missing (clean page, translated code).
    Ram,
    /// Not RAM; nothing was filled. The access goes to this guest-physical address.
    NotRam(u64),
}

/// What [`fetch`] got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Bytes got.
    pub len: usize,
    /// Why there are no more, if that is not for the buffer's size.
    pub fault: Option<Exception>,
}

/// The part of `len` bytes at `address` that its page holds.
fn within_page(address: u64, len: usize) -> usize {
    len.min((PAGE_SIZE - address % PAGE_SIZE) as usize)
}

/// Little-endian value of up to 8 bytes.
fn value_of(data: &[u8]) -> u64 {
    data.iter().rev().fold(0, |v, &b| v << 8 | u64::from(b))
}

/// The TLB class of accesses with `mode`.
fn class(cpu: &Cpu, mode: AccessMode) -> TlbClass {
    let explicit = |cpl: u8| {
        let override_smap = cpu.rflags & flag::AC != 0 || cpu.cr4 & control::CR4_SMAP == 0;
        match cpl {
            3 => TlbClass::User,
            _ if override_smap => TlbClass::SupervisorUser,
            _ => TlbClass::Supervisor,
        }
    };
    match mode {
        AccessMode::Current => explicit(cpu.cpl),
        AccessMode::Level(cpl) => explicit(cpl),
        AccessMode::Supervisor if cpu.cr4 & control::CR4_SMAP == 0 => TlbClass::SupervisorUser,
        AccessMode::Supervisor => TlbClass::Supervisor,
    }
}

fn walk(cpu: &mut Cpu, linear: u64, write: bool, class: TlbClass) -> Exec<Translation> {
    let user = class == TlbClass::User;
    translate(
        cpu,
        linear,
        Access { write, fetch: false, user, smap_override: class == TlbClass::SupervisorUser },
    )
}

/// Translates `linear` for an access of `class` and puts it into the TLB. The write tag is only
/// set where stores need no further look: the page is dirty, may be written and holds no
/// translated code.
pub fn fill_tlb(cpu: &mut Cpu, linear: u64, write: bool, class: TlbClass) -> Exec<Filled> {
    let found = walk(cpu, linear, write, class)?;
    let page = found.gpa & !(PAGE_SIZE - 1);
    let memory = &cpu.shared.services.memory;
    let host = match memory.host(page, PAGE_SIZE) {
        Some(host) if cpu.apic.mmio_page() != Some(page) => host.as_ptr() as u64,
        _ => return Ok(Filled::NotRam(found.gpa)),
    };
    cpu.tlb.make_room();
    let may_write = found.writable && found.dirty;
    if may_write {
        // Before the look at the mask ([`super::Written`]).
        cpu.tlb.written.note(page);
    }
    let code = memory.code().mask(page).is_some_and(|m| m.load(Ordering::SeqCst) != 0);
    let writable = may_write && !code;
    cpu.tlb.fill(class, linear, host, page, writable, found.global);
    Ok(Filled::Ram)
}

/// Where the bytes of one access within a page lie.
#[derive(Clone, Copy)]
enum Target {
    /// Host address of RAM that may be accessed right away.
    Host(*mut u8),
    /// Guest-physical.
    Physical(u64),
}

/// Finds the bytes at `linear`, which do not leave the page.
fn target(cpu: &mut Cpu, linear: u64, len: usize, write: bool, class: TlbClass) -> Exec<Target> {
    let hit = |cpu: &Cpu| {
        let entry = cpu.tlb.entry(class, linear);
        let offset = linear.wrapping_sub(if write { entry.write } else { entry.read });
        let fits = offset <= PAGE_SIZE - len as u64;
        fits.then(|| Target::Host((entry.host + offset) as *mut u8))
    };
    if let Some(found) = hit(cpu) {
        return Ok(found);
    }
    match fill_tlb(cpu, linear, write, class)? {
        Filled::NotRam(gpa) => Ok(Target::Physical(gpa)),
        Filled::Ram => {
            let entry = cpu.tlb.entry(class, linear);
            Ok(hit(cpu).unwrap_or(Target::Physical(entry.gpa | (linear % PAGE_SIZE))))
        }
    }
}

/// Copies from guest RAM; aligned scalars in one access.
///
/// # Safety
/// `host` must point to `to.len()` bytes of guest RAM.
unsafe fn copy_in(host: *mut u8, to: &mut [u8]) {
    let at = host as usize;
    // SAFETY: the caller vouches for the range; alignment is checked in each guard. Guest RAM is
    // only ever accessed as shared memory.
    unsafe {
        match to.len() {
            2 if at.is_multiple_of(2) => {
                to.copy_from_slice(&AtomicU16::from_ptr(host.cast()).load(Ordering::Acquire).to_ne_bytes());
            }
            4 if at.is_multiple_of(4) => {
                to.copy_from_slice(&AtomicU32::from_ptr(host.cast()).load(Ordering::Acquire).to_ne_bytes());
            }
            8 if at.is_multiple_of(8) => {
                to.copy_from_slice(&AtomicU64::from_ptr(host.cast()).load(Ordering::Acquire).to_ne_bytes());
            }
            len => std::ptr::copy_nonoverlapping(host, to.as_mut_ptr(), len),
        }
    }
}

/// Copies to guest RAM; aligned scalars in one access.
///
/// # Safety
/// `host` must point to `from.len()` bytes of guest RAM.
unsafe fn copy_out(host: *mut u8, from: &[u8]) {
    let at = host as usize;
    // SAFETY: as in `copy_in`.
    unsafe {
        match *from {
            [a, b] if at.is_multiple_of(2) => {
                AtomicU16::from_ptr(host.cast()).store(u16::from_ne_bytes([a, b]), Ordering::Release);
            }
            [a, b, c, d] if at.is_multiple_of(4) => {
                AtomicU32::from_ptr(host.cast()).store(u32::from_ne_bytes([a, b, c, d]), Ordering::Release);
            }
            [a, b, c, d, e, f, g, h] if at.is_multiple_of(8) => {
                let value = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
                AtomicU64::from_ptr(host.cast()).store(value, Ordering::Release);
            }
            _ => std::ptr::copy_nonoverlapping(from.as_ptr(), host, from.len()),
        }
    }
}

/// Fetches instruction bytes at `linear` with the current privilege. CS limits are the caller's.
pub fn fetch(cpu: &mut Cpu, linear: u64, buffer: &mut [u8]) -> Fetched {
    let access = Access { fetch: true, user: cpu.cpl == 3, ..Access::default() };
    let mut len = 0;
    while len < buffer.len() {
        let at = cpu.wrap(linear.wrapping_add(len as u64), AccessMode::Current);
        if cpu.code64() && !canonical(at) {
            return Fetched { len, fault: Some(Exception::gp(0)) };
        }
        let gpa = match translate(cpu, at, access) {
            Ok(found) => found.gpa,
            Err(fault) => return Fetched { len, fault: Some(fault) },
        };
        let part = within_page(at, buffer.len() - len);
        if let Some(bytes) = buffer.get_mut(len..len + part) {
            cpu.load_physical(gpa, bytes);
        }
        len += part;
    }
    Fetched { len, fault: None }
}

/// Physical accesses.
impl Cpu {
    /// Reads guest-physical memory: RAM, the local APIC's page, or the bus.
    pub fn load_physical(&self, gpa: u64, data: &mut [u8]) {
        let mut done = 0;
        while done < data.len() {
            let at = gpa.wrapping_add(done as u64);
            let part = within_page(at, data.len() - done);
            let Some(bytes) = data.get_mut(done..done + part) else { return };
            if self.apic.mmio_page() == Some(at & !(PAGE_SIZE - 1)) {
                self.apic.mmio_read(at % PAGE_SIZE, bytes);
            } else if let Some(host) = self.shared.services.memory.host(at, part as u64) {
                // SAFETY: `host` found that many bytes of RAM there.
                unsafe { copy_in(host.as_ptr(), bytes) };
            } else {
                self.shared.services.bus.memory_read(at, bytes);
            }
            done += part;
        }
    }

    /// Writes guest-physical memory, and drops translated code that it overwrites.
    pub fn store_physical(&mut self, gpa: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let at = gpa.wrapping_add(done as u64);
            let part = within_page(at, data.len() - done);
            let Some(bytes) = data.get(done..done + part) else { return };
            if self.apic.mmio_page() == Some(at & !(PAGE_SIZE - 1)) {
                self.apic.mmio_write(at % PAGE_SIZE, bytes);
            } else if let Some(host) = self.shared.services.memory.host(at, part as u64) {
                // SAFETY: `host` found that many bytes of RAM there.
                unsafe { copy_out(host.as_ptr(), bytes) };
                self.note_store(at, part as u64);
            } else {
                self.shared.services.bus.memory_write(at, bytes);
            }
            done += part;
        }
    }

    /// After a store of `len` bytes to one page of RAM by this vCPU: drops translated code there.
    pub fn note_store(&mut self, gpa: u64, len: u64) {
        let lines = CodeMap::lines(gpa % PAGE_SIZE, len);
        let code = self.shared.services.memory.code();
        if code.mask(gpa).is_some_and(|m| m.load(Ordering::SeqCst) & lines != 0) {
            self.code_written(gpa, len);
        }
    }
}

/// Linear accesses.
impl Cpu {
    /// Cuts a linear address to what the mode has. System structures may lie anywhere in IA-32e
    /// mode, even while compatibility code runs.
    fn wrap(&self, linear: u64, mode: AccessMode) -> u64 {
        let wide = self.code64() || self.long_mode() && mode != AccessMode::Current;
        if wide { linear } else { linear & 0xffff_ffff }
    }

    /// Reads `data.len()` bytes at `linear`. Both pages are looked up before anything is read.
    pub fn read_linear(&mut self, linear: u64, mode: AccessMode, data: &mut [u8]) -> Exec<()> {
        let class = class(self, mode);
        let mut at = self.wrap(linear, mode);
        // Two pages at a time at most, which is all that an instruction's operand can touch.
        for chunk in data.chunks_mut(PAGE_SIZE as usize) {
            let part = within_page(at, chunk.len());
            let first = target(self, at, part, false, class)?;
            let (head, tail) = chunk.split_at_mut(part);
            let next = self.wrap(at.wrapping_add(part as u64), mode);
            let second =
                if tail.is_empty() { None } else { Some(target(self, next, tail.len(), false, class)?) };
            self.read_target(first, head);
            if let Some(second) = second {
                self.read_target(second, tail);
            }
            at = self.wrap(at.wrapping_add(PAGE_SIZE), mode);
        }
        Ok(())
    }

    /// Writes `data` at `linear`. Both pages are looked up before anything is written.
    pub fn write_linear(&mut self, linear: u64, mode: AccessMode, data: &[u8]) -> Exec<()> {
        let class = class(self, mode);
        let mut at = self.wrap(linear, mode);
        for chunk in data.chunks(PAGE_SIZE as usize) {
            let part = within_page(at, chunk.len());
            let first = target(self, at, part, true, class)?;
            let (head, tail) = chunk.split_at(part);
            let next = self.wrap(at.wrapping_add(part as u64), mode);
            let second =
                if tail.is_empty() { None } else { Some(target(self, next, tail.len(), true, class)?) };
            self.write_target(first, head);
            if let Some(second) = second {
                self.write_target(second, tail);
            }
            at = self.wrap(at.wrapping_add(PAGE_SIZE), mode);
        }
        Ok(())
    }

    /// Whether `len` bytes at `linear` may be written (or read): the page fault if not.
    pub fn probe_linear(&mut self, linear: u64, mode: AccessMode, len: usize, write: bool) -> Exec<()> {
        let class = class(self, mode);
        let mut done = 0;
        while done < len {
            let at = self.wrap(linear.wrapping_add(done as u64), mode);
            let part = within_page(at, len - done);
            target(self, at, part, write, class)?;
            done += part;
        }
        Ok(())
    }

    fn read_target(&self, target: Target, data: &mut [u8]) {
        match target {
            // SAFETY: the TLB holds pages of RAM only, and the access does not leave its page.
            Target::Host(host) => unsafe { copy_in(host, data) },
            Target::Physical(gpa) => self.load_physical(gpa, data),
        }
    }

    fn write_target(&mut self, target: Target, data: &[u8]) {
        match target {
            // SAFETY: as above; a write tag means that the page holds no translated code.
            Target::Host(host) => unsafe { copy_out(host, data) },
            Target::Physical(gpa) => self.store_physical(gpa, data),
        }
    }

    /// Reads a little-endian value of 1 to 8 bytes.
    pub fn read_value(&mut self, linear: u64, mode: AccessMode, size: usize) -> Exec<u64> {
        let mut data = [0; 8];
        let data = &mut data[..size.min(8)];
        self.read_linear(linear, mode, data)?;
        Ok(value_of(data))
    }

    /// Writes a little-endian value of 1 to 8 bytes.
    pub fn write_value(&mut self, linear: u64, mode: AccessMode, size: usize, value: u64) -> Exec<()> {
        self.write_linear(linear, mode, &value.to_le_bytes()[..size.min(8)])
    }
}

/// Segmented accesses.
impl Cpu {
    /// The linear address of `size` bytes at `offset` in segment register `number`, if the access
    /// is allowed. `offset` is cut to the address size already.
    pub fn linear_address(&self, number: usize, offset: u64, size: u64, write: bool) -> Exec<u64> {
        let mut segment = self.segments.get(number).copied().unwrap_or_default();
        let long = self.code64();
        if long && !matches!(number, seg::FS | seg::GS) {
            segment.base = 0;
        }
        let fault = if number == seg::SS { vector::SS } else { vector::GP };
        self.segment_address(&segment, offset, size, write, long).ok_or(Exception::with(fault, 0))
    }

    /// [`Cpu::linear_address`] for any segment; `long`: by the rules of 64-bit mode, where there
    /// is no limit. `None`: not allowed.
    pub(crate) fn segment_address(
        &self,
        segment: &Segment,
        offset: u64,
        size: u64,
        write: bool,
        long: bool,
    ) -> Option<u64> {
        let beyond = size.max(1) - 1;
        if long {
            let linear = segment.base.wrapping_add(offset);
            return (canonical(linear) && canonical(linear.wrapping_add(beyond))).then_some(linear);
        }
        if self.protected() && !self.virtual_8086() && !may_access(segment.access, write) {
            return None;
        }
        let last = offset.checked_add(beyond)?;
        within_limit(segment, offset, last).then_some(segment.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// Reads a value of 1 to 8 bytes.
    pub fn read_seg(&mut self, number: usize, offset: u64, size: usize) -> Exec<u64> {
        let linear = self.linear_address(number, offset, size as u64, false)?;
        self.read_value(linear, AccessMode::Current, size)
    }

    /// Writes a value of 1 to 8 bytes.
    pub fn write_seg(&mut self, number: usize, offset: u64, size: usize, value: u64) -> Exec<()> {
        let linear = self.linear_address(number, offset, size as u64, true)?;
        self.write_value(linear, AccessMode::Current, size, value)
    }

    /// Reads bytes.
    pub fn read_seg_bytes(&mut self, number: usize, offset: u64, data: &mut [u8]) -> Exec<()> {
        let linear = self.linear_address(number, offset, data.len() as u64, false)?;
        self.read_linear(linear, AccessMode::Current, data)
    }

    /// Writes bytes.
    pub fn write_seg_bytes(&mut self, number: usize, offset: u64, data: &[u8]) -> Exec<()> {
        let linear = self.linear_address(number, offset, data.len() as u64, true)?;
        self.write_linear(linear, AccessMode::Current, data)
    }
}

/// Whether a protected-mode segment with these access rights can be read or written (Intel SDM
/// vol. 3, table 3-1).
fn may_access(access: u32, write: bool) -> bool {
    let (code, rw) = (access & 8 != 0, access & 2 != 0);
    if access & Segment::UNUSABLE != 0 {
        return false;
    }
    if write { !code && rw } else { !code || rw }
}

/// Whether offsets from `first` to `last` are in the segment.
fn within_limit(segment: &Segment, first: u64, last: u64) -> bool {
    let limit = u64::from(segment.limit);
    // Type bits 3 and 2: data that expands down.
    if segment.access & 0xc == 4 {
        let top = if segment.access & Segment::BIG != 0 { 0xffff_ffff } else { 0xffff };
        return first > limit && last <= top;
    }
    last <= limit
}

/// The current stack.
impl Cpu {
    /// Bits of RSP that the stack uses.
    pub fn stack_mask(&self) -> u64 {
        if self.code64() {
            u64::MAX
        } else if self.segments[seg::SS].access & Segment::BIG != 0 {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    /// The stack pointer, cut to the stack size.
    pub fn stack_pointer(&self) -> u64 {
        self.gpr[reg::RSP] & self.stack_mask()
    }

    /// Sets as much of RSP as the stack uses; a 32-bit stack clears the upper half.
    pub fn set_stack_pointer(&mut self, value: u64) {
        let used = self.stack_mask();
        let kept = if used == 0xffff { self.gpr[reg::RSP] & !used } else { 0 };
        self.gpr[reg::RSP] = kept | value & used;
    }

    /// Pushes `size` bytes.
    pub fn push(&mut self, size: usize, value: u64) -> Exec<()> {
        let pointer = self.stack_pointer().wrapping_sub(size as u64) & self.stack_mask();
        self.write_seg(seg::SS, pointer, size, value)?;
        self.set_stack_pointer(pointer);
        Ok(())
    }

    /// Value of `size` bytes that is `above` bytes up the stack.
    pub fn peek(&mut self, above: u64, size: usize) -> Exec<u64> {
        let pointer = self.stack_pointer().wrapping_add(above) & self.stack_mask();
        self.read_seg(seg::SS, pointer, size)
    }

    /// Pops `size` bytes.
    pub fn pop(&mut self, size: usize) -> Exec<u64> {
        let value = self.peek(0, size)?;
        self.set_stack_pointer(self.stack_pointer().wrapping_add(size as u64));
        Ok(value & mask(size))
    }
}

impl Cpu {
    /// `len` bytes at `linear`, which lie in one page, if they are RAM that may be used directly
    /// (for writes: no translated code). Faults as an access would.
    pub fn ram_at(&mut self, linear: u64, mode: AccessMode, len: usize, write: bool) -> Exec<Option<Span>> {
        let class = class(self, mode);
        Ok(match target(self, linear, len, write, class)? {
            // SAFETY: the TLB holds pages of RAM only, and the range does not leave its page.
            Target::Host(host) => Some(unsafe { Span::new(host, len) }),
            Target::Physical(_) => None,
        })
    }
}
