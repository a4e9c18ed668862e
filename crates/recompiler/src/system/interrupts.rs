//! Delivery of interrupts and exceptions (Intel SDM vol. 3, chapter 6; vol. 2, INT n), and the
//! instructions that raise them.

use engine::{Segment, reg, seg};
use iced_x86::{Instruction, Mnemonic};

use super::gate::{
    Saved, Stack, check_offset, enter, inner_stack, interrupt_stack_pointer, long_stack_pointer, restoring,
};
use super::segments::{
    Descriptor, fault, is_null, kind, null, read_descriptor, real_segment, virtual_8086_segment,
};
use super::{Flow, Outcome, task};
use crate::cpu::{Activity, Cpu, control, flag};
use crate::exception::{Exception, Exec, vector};
use crate::mmu::AccessMode;

/// Where an event comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A maskable interrupt.
    External,
    /// A non-maskable interrupt.
    Nmi,
    /// An exception. RIP is that of the faulting instruction, for traps that of the next one.
    Exception,
    /// INT n.
    SoftwareInt,
    /// INT1.
    Int1,
    /// INT3.
    Int3,
    /// INTO.
    Into,
}

impl Kind {
    /// INT n, INT3 and INTO need a gate of their privilege.
    fn needs_privilege(self) -> bool {
        matches!(self, Self::SoftwareInt | Self::Int3 | Self::Into)
    }
}

/// Something to deliver at CS:RIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Vector.
    pub vector: u8,
    /// Error code, for the exceptions that have one.
    pub error: Option<u32>,
    /// Linear address that goes into CR2, for page faults.
    pub address: Option<u64>,
    /// Where it comes from.
    pub kind: Kind,
}

impl Event {
    /// A maskable interrupt.
    pub const fn external(vector: u8) -> Self {
        Self { vector, error: None, address: None, kind: Kind::External }
    }

    /// A non-maskable interrupt.
    pub const fn nmi() -> Self {
        Self { vector: vector::NMI, error: None, address: None, kind: Kind::Nmi }
    }
}

impl From<Exception> for Event {
    fn from(e: Exception) -> Self {
        Self { vector: e.vector, error: e.error, address: e.address, kind: Kind::Exception }
    }
}

/// How exceptions combine (Intel SDM vol. 3, table 6-4).
#[derive(PartialEq, Eq)]
enum Severity {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

fn severity(event: &Event) -> Severity {
    match event.vector {
        _ if event.kind != Kind::Exception => Severity::Benign,
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Severity::Contributory,
        vector::PF => Severity::PageFault,
        vector::DF => Severity::DoubleFault,
        _ => Severity::Benign,
    }
}

/// What is delivered when delivering `first` raises `second`; `None`: shutdown.
fn combine(first: &Event, second: Exception) -> Option<Event> {
    use Severity::{Benign, Contributory, DoubleFault, PageFault};
    let second = Event::from(second);
    match (severity(first), severity(&second)) {
        (DoubleFault, Contributory | PageFault | DoubleFault) => None,
        (Contributory, Contributory) | (PageFault, Contributory | PageFault) => {
            Some(Event { vector: vector::DF, error: Some(0), address: second.address, kind: Kind::Exception })
        }
        (Benign | Contributory | PageFault | DoubleFault, _) => Some(second),
    }
}

/// Delivers `event`: afterwards the vCPU is at the first instruction of a handler, or shut down.
/// What delivery itself raises is delivered instead, as the architecture has it.
pub fn deliver(cpu: &mut Cpu, event: Event) {
    let mut event = event;
    // Each round follows a fault of the one before; the third at the latest that is no benign
    // exception shuts down, and benign ones do not come out of delivery.
    loop {
        let raised = match attempt(cpu, &event) {
            Ok(None) => break,
            Ok(Some(raised)) | Err(raised) => raised,
        };
        let Some(next) = combine(&event, raised) else {
            cpu.activity = Activity::Shutdown;
            return;
        };
        event = next;
    }
    if cpu.activity == Activity::Halted {
        cpu.activity = Activity::Running;
    }
}

/// Delivers an exception that an instruction raised.
pub fn deliver_exception(cpu: &mut Cpu, exception: Exception) {
    deliver(cpu, exception.into());
}

/// Tries to deliver. `Err`: registers are as before. `Ok(Some)`: a task switch was made, and this
/// was raised in the new task.
fn attempt(cpu: &mut Cpu, event: &Event) -> Exec<Option<Exception>> {
    if let Some(address) = event.address {
        cpu.cr2 = address;
    }
    let result = restoring(cpu, |cpu| {
        cpu.shadow = false;
        if !cpu.protected() {
            real_mode(cpu, event.vector, cpu.idtr.base, cpu.rflags).map(|()| None)
        } else if cpu.long_mode() {
            long_mode(cpu, event).map(|()| None)
        } else {
            protected_mode(cpu, event)
        }
    });
    if result.is_ok() && event.kind == Kind::Nmi {
        cpu.nmi_blocked = true;
    }
    result
        .map_err(|raised| external(event.kind, raised))
        .map(|raised| raised.map(|r| external(event.kind, r)))
}

/// Sets EXT in a selector error code of what an event from outside the program raised (Intel SDM
/// vol. 3, 6.13).
fn external(kind: Kind, raised: Exception) -> Exception {
    let selector = matches!(raised.vector, vector::TS | vector::NP | vector::SS | vector::GP);
    if kind.needs_privilege() || !selector {
        return raised;
    }
    Exception { error: raised.error.map(|e| e | 1), ..raised }
}

/// RFLAGS as the handler's frame has it: faults set RF, so that an instruction breakpoint does
/// not strike again (Intel SDM vol. 3, 18.3.1.1).
fn saved_flags(cpu: &Cpu, event: &Event) -> u64 {
    let fault =
        event.kind == Kind::Exception && !matches!(event.vector, vector::DB | vector::BP | vector::OF);
    cpu.rflags | if fault { flag::RF } else { 0 }
}

/// Real mode, and virtual-8086 mode where CR4.VME redirects: through the vector table at `table`.
fn real_mode(cpu: &mut Cpu, vector: u8, table: u64, image: u64) -> Exec<()> {
    let (entry, redirected) = (u64::from(vector) * 4, cpu.virtual_8086());
    if !redirected && entry + 3 > u64::from(cpu.idtr.limit) {
        return Err(Exception::gp(0));
    }
    let mode = if redirected { AccessMode::Current } else { AccessMode::Supervisor };
    let target = cpu.read_value(table.wrapping_add(entry), mode, 4)?;
    let mut stack = Stack::current(cpu);
    stack.push(cpu, 2, image)?;
    stack.push(cpu, 2, u64::from(cpu.segments[seg::CS].selector))?;
    stack.push(cpu, 2, cpu.rip)?;
    stack.move_pointer(cpu);
    let selector = (target >> 16) as u16;
    cpu.segments[seg::CS] = if redirected {
        virtual_8086_segment(selector)
    } else {
        real_segment(&cpu.segments[seg::CS], selector, 0x9b)
    };
    cpu.rip = target & 0xffff;
    if !redirected {
        cpu.rflags &= !(flag::IF | flag::AC);
    }
    cpu.rflags &= !(flag::TF | flag::RF);
    Ok(())
}

/// INT n in virtual-8086 mode (Intel SDM vol. 3, 21.3). Whether it was delivered.
fn virtual_8086_software(cpu: &mut Cpu, number: u8) -> Exec<bool> {
    let trusted = cpu.iopl() == 3;
    if cpu.cr4 & control::CR4_VME != 0 && !redirection_bit(cpu, number)? {
        let interrupts = if trusted { flag::IF } else { flag::VIF };
        let mut image = cpu.rflags;
        if !trusted {
            image = image & !flag::IF | flag::IOPL;
            image |= if cpu.rflags & flag::VIF != 0 { flag::IF } else { 0 };
        }
        real_mode(cpu, number, 0, image)?;
        cpu.rflags &= !interrupts;
        return Ok(true);
    }
    if trusted { Ok(false) } else { Err(Exception::gp(0)) }
}

/// The bit for vector `number` in the TSS's redirection bitmap, the 32 bytes below the I/O
/// bitmap; set where there is none.
fn redirection_bit(cpu: &mut Cpu, number: u8) -> Exec<bool> {
    let tss = cpu.segments[seg::TR];
    let limit = u64::from(tss.limit);
    if tss.access & 15 & !kind::BUSY != kind::TSS32 || limit < 0x67 {
        return Ok(true);
    }
    let map = cpu.read_value(tss.base.wrapping_add(0x66), AccessMode::Supervisor, 2)?;
    let Some(at) = (map + u64::from(number / 8)).checked_sub(32) else { return Ok(true) };
    if at > limit {
        return Ok(true);
    }
    let bits = cpu.read_value(tss.base.wrapping_add(at), AccessMode::Supervisor, 1)?;
    Ok(bits >> (number % 8) & 1 != 0)
}

/// Checks what legacy and IA-32e mode gates have in common.
fn check_gate(cpu: &Cpu, event: &Event, gate: &Descriptor, types: &[u32]) -> Exec<()> {
    // Bit 1 of the error code: it names an entry of the IDT.
    let index = u32::from(event.vector) * 8 + 2;
    let known = gate.system().is_some_and(|t| types.contains(&t));
    if !known || event.kind.needs_privilege() && gate.dpl() < cpu.cpl {
        return Err(Exception::gp(index));
    }
    if gate.present() { Ok(()) } else { Err(Exception::with(vector::NP, index)) }
}

/// The handler's code segment and privilege level.
fn handler_code(cpu: &mut Cpu, gate: &Descriptor) -> Exec<(Descriptor, u8)> {
    let selector = (gate.raw >> 16) as u16;
    if is_null(selector) {
        return Err(Exception::gp(0));
    }
    let code = read_descriptor(cpu, selector, vector::GP)?;
    let mode = Segment::LONG | Segment::BIG;
    let fits = !cpu.long_mode() || code.access() & mode == Segment::LONG;
    if !code.is_code() || code.dpl() > cpu.cpl || !fits {
        return Err(fault(vector::GP, selector));
    }
    if !code.present() {
        return Err(fault(vector::NP, selector));
    }
    let level = if code.is_conforming() { cpu.cpl } else { code.dpl() };
    Ok((code, level))
}

/// Reads the first eight bytes of the event's gate, which has `size`.
fn read_gate(cpu: &mut Cpu, event: &Event, size: u64) -> Exec<Descriptor> {
    let offset = u64::from(event.vector) * size;
    if offset + size - 1 > u64::from(cpu.idtr.limit) {
        return Err(Exception::gp(u32::from(event.vector) * 8 + 2));
    }
    let address = cpu.idtr.base.wrapping_add(offset);
    let raw = cpu.read_value(address, AccessMode::Supervisor, 8)?;
    Ok(Descriptor { raw, upper: 0, address, selector: 0 })
}

fn protected_mode(cpu: &mut Cpu, event: &Event) -> Exec<Option<Exception>> {
    use kind::{INTERRUPT_GATE16, INTERRUPT_GATE32, TASK_GATE, TRAP_GATE16, TRAP_GATE32};
    if cpu.virtual_8086() && event.kind == Kind::SoftwareInt && virtual_8086_software(cpu, event.vector)? {
        return Ok(None);
    }
    let gate = read_gate(cpu, event, 8)?;
    let types = [TASK_GATE, INTERRUPT_GATE16, TRAP_GATE16, INTERRUPT_GATE32, TRAP_GATE32];
    check_gate(cpu, event, &gate, &types)?;
    let kind = gate.system().unwrap_or_default();
    if kind == TASK_GATE {
        let flags = saved_flags(cpu, event);
        return task::interrupt(cpu, (gate.raw >> 16) as u16, event.error, flags);
    }
    let size = if kind & 8 != 0 { 4 } else { 2 };
    let (code, level) = handler_code(cpu, &gate)?;
    let from_8086 = cpu.virtual_8086();
    if from_8086 && level != 0 {
        return Err(fault(vector::GP, code.selector));
    }
    let offset = gate.raw & 0xffff | if size == 4 { gate.raw >> 32 & 0xffff_0000 } else { 0 };
    let flags = saved_flags(cpu, event);
    let (old_ss, old_sp) = (cpu.segments[seg::SS].selector, cpu.gpr[reg::RSP]);
    let inner = level < cpu.cpl;
    let mut stack = if inner { inner_stack(cpu, level)? } else { Stack::current(cpu) };
    check_offset(cpu, &code, offset)?;
    if from_8086 {
        for number in [seg::GS, seg::FS, seg::DS, seg::ES] {
            stack.push(cpu, size, u64::from(cpu.segments[number].selector))?;
        }
    }
    if inner {
        stack.push(cpu, size, u64::from(old_ss))?;
        stack.push(cpu, size, old_sp)?;
    }
    push_frame(cpu, &mut stack, size, flags, event.error)?;
    enter(cpu, code, level, offset)?;
    if from_8086 {
        for number in [seg::GS, seg::FS, seg::DS, seg::ES] {
            cpu.segments[number] = null(0);
        }
    }
    if inner {
        stack.load(cpu);
    } else {
        stack.move_pointer(cpu);
    }
    clear_flags(cpu, kind);
    Ok(None)
}

/// Flags, return address and error code.
fn push_frame(cpu: &mut Cpu, stack: &mut Stack, size: usize, flags: u64, error: Option<u32>) -> Exec<()> {
    stack.push(cpu, size, flags)?;
    stack.push(cpu, size, u64::from(cpu.segments[seg::CS].selector))?;
    stack.push(cpu, size, cpu.rip)?;
    error.map_or(Ok(()), |error| stack.push(cpu, size, u64::from(error)))
}

/// RFLAGS at the start of a handler behind a gate of type `gate`.
fn clear_flags(cpu: &mut Cpu, gate: u32) {
    cpu.rflags &= !(flag::TF | flag::NT | flag::RF | flag::VM);
    if matches!(gate, kind::INTERRUPT_GATE16 | kind::INTERRUPT_GATE32) {
        cpu.rflags &= !flag::IF;
    }
}

/// IA-32e mode (Intel SDM vol. 3, 6.14).
fn long_mode(cpu: &mut Cpu, event: &Event) -> Exec<()> {
    let gate = read_gate(cpu, event, 16)?;
    check_gate(cpu, event, &gate, &[kind::INTERRUPT_GATE32, kind::TRAP_GATE32])?;
    let upper = cpu.read_value(gate.address.wrapping_add(8), AccessMode::Supervisor, 4)?;
    let offset = gate.raw & 0xffff | gate.raw >> 32 & 0xffff_0000 | upper << 32;
    let (code, level) = handler_code(cpu, &gate)?;
    let (old_ss, old_sp, flags) =
        (cpu.segments[seg::SS].selector, cpu.gpr[reg::RSP], saved_flags(cpu, event));
    let inner = level < cpu.cpl;
    let pointer = match gate.raw >> 32 & 7 {
        0 if inner => long_stack_pointer(cpu, level)?,
        0 => old_sp,
        number => interrupt_stack_pointer(cpu, number)?,
    };
    let segment = if inner { null(u16::from(level)) } else { cpu.segments[seg::SS] };
    check_offset(cpu, &code, offset)?;
    let mut stack = Stack::long(segment, pointer & !15, level);
    stack.push(cpu, 8, u64::from(old_ss))?;
    stack.push(cpu, 8, old_sp)?;
    push_frame(cpu, &mut stack, 8, flags, event.error)?;
    enter(cpu, code, level, offset)?;
    stack.load(cpu);
    clear_flags(cpu, gate.system().unwrap_or_default());
    Ok(())
}

/// Executes INT n, INT1, INT3 and INTO.
pub fn execute(cpu: &mut Cpu, insn: &Instruction) -> Outcome {
    let (number, kind) = match insn.mnemonic() {
        Mnemonic::Int => (insn.immediate8(), Kind::SoftwareInt),
        Mnemonic::Int1 => (vector::DB, Kind::Int1),
        Mnemonic::Int3 => (vector::BP, Kind::Int3),
        Mnemonic::Into if cpu.rflags & flag::OF == 0 => return Some(Ok(Flow::Next)),
        Mnemonic::Into => (vector::OF, Kind::Into),
        _ => return None,
    };
    let before = Saved::of(cpu);
    cpu.rip = cpu.next_rip(insn);
    Some(match attempt(cpu, &Event { vector: number, error: None, address: None, kind }) {
        Ok(None) => Ok(Flow::Jump),
        Ok(Some(raised)) => {
            deliver_exception(cpu, raised);
            Ok(Flow::Jump)
        }
        Err(raised) => {
            before.restore(cpu);
            Err(raised)
        }
    })
}
