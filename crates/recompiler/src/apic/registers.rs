//! The registers of one local APIC and what they do, without locks, threads or other APICs.

use bus::Clock;

use super::timer::Timing;

/// Register numbers: offset in the xAPIC page / 16, also MSR number - 800h (Intel SDM vol. 3,
/// tables 11-1 and 11-6).
pub(super) mod index {
    pub const ID: usize = 0x02;
    pub const VERSION: usize = 0x03;
    pub const TPR: usize = 0x08;
    pub const APR: usize = 0x09;
    pub const PPR: usize = 0x0a;
    pub const EOI: usize = 0x0b;
    pub const RRD: usize = 0x0c;
    pub const LDR: usize = 0x0d;
    pub const DFR: usize = 0x0e;
    pub const SVR: usize = 0x0f;
    pub const ISR: usize = 0x10;
    pub const TMR: usize = 0x18;
    pub const IRR: usize = 0x20;
    pub const ESR: usize = 0x28;
    pub const ICR: usize = 0x30;
    pub const ICR_HIGH: usize = 0x31;
    pub const LVT: usize = 0x32;
    pub const INITIAL: usize = 0x38;
    pub const CURRENT: usize = 0x39;
    pub const DIVIDE: usize = 0x3e;
    pub const SELF_IPI: usize = 0x3f;
}

/// IA32_APIC_BASE bits (Intel SDM vol. 3, 11.4.4 and 11.12.1).
pub(super) mod base {
    pub const BOOTSTRAP: u64 = 1 << 8;
    pub const X2APIC: u64 = 1 << 10;
    pub const ENABLE: u64 = 1 << 11;
}

/// What waits for the vCPU: bits of [`super::Apic::pending`].
pub mod pending {
    /// A vector above the processor priority is requested.
    pub const FIXED: u32 = 1;
    /// The 8259 pair (or a message for it) asks for an interrupt-acknowledge cycle.
    pub const EXTINT: u32 = 1 << 1;
    /// An NMI is latched.
    pub const NMI: u32 = 1 << 2;
    /// An INIT is latched.
    pub const INIT: u32 = 1 << 3;
    /// A SIPI is latched.
    pub const SIPI: u32 = 1 << 4;
}

/// Entries of the local vector table, in register order from 320h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lvt {
    /// Timer.
    Timer = 0,
    /// Thermal sensor.
    Thermal = 1,
    /// Performance counters.
    Performance = 2,
    /// LINT0 pin.
    Lint0 = 3,
    /// LINT1 pin.
    Lint1 = 4,
    /// Error.
    Error = 5,
}

/// LVT and ICR mask bit.
const MASKED: u32 = 1 << 16;
/// Writable bits of each LVT entry (SDM vol. 3, figure 11-8); the timer's mode bit 18 only with
/// TSC-deadline.
const LVT_WRITABLE: [u32; 6] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
/// Read-only bits of each entry: delivery status, remote IRR.
const LVT_READ_ONLY: [u32; 6] = [0x1000, 0x1000, 0x1000, 0x5000, 0x5000, 0x1000];
/// Version 14h (integrated APIC) with 6 LVT entries.
const VERSION: u32 = 0x14 | 5 << 16;
/// Software enable in SVR.
const SVR_ENABLE: u32 = 1 << 8;
/// Writable bits of SVR: vector, enable, focus.
const SVR_WRITABLE: u32 = 0x3ff;
/// ESR: illegal vector received (bit 6), sent (5), illegal register (7).
pub(super) const ERROR_SENT: u32 = 1 << 5;
const ERROR_RECEIVED: u32 = 1 << 6;
const ERROR_REGISTER: u32 = 1 << 7;
/// ICR bits that do not exist in x2APIC mode (SDM vol. 3, figure 11-28), bit 12 excepted, which
/// older code writes back.
const ICR_RESERVED: u64 = 0xfff3_2000;

/// Delivery modes of LVT, ICR and messages (SDM vol. 3, 11.5.1, 11.6.1).
pub(super) mod mode {
    pub const FIXED: u32 = 0;
    pub const LOWEST: u32 = 1;
    pub const SMI: u32 = 2;
    pub const NMI: u32 = 4;
    pub const INIT: u32 = 5;
    pub const STARTUP: u32 = 6;
    pub const EXTINT: u32 = 7;
}

/// 256 bits, one a vector.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Vectors(pub [u32; 8]);

impl Vectors {
    pub fn set(&mut self, vector: u8, value: bool) {
        let bit = 1 << (vector & 31);
        if let Some(word) = self.0.get_mut(usize::from(vector >> 5)) {
            *word = if value { *word | bit } else { *word & !bit };
        }
    }

    pub fn get(&self, vector: u8) -> bool {
        self.0.get(usize::from(vector >> 5)).is_some_and(|w| w >> (vector & 31) & 1 != 0)
    }

    pub fn highest(&self) -> Option<u8> {
        let (index, word) = self.0.iter().enumerate().rev().find(|(_, w)| **w != 0)?;
        Some((index as u32 * 32 + word.ilog2()) as u8)
    }
}

/// What a register write asks of the world outside, to be done without the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    /// A level-triggered interrupt ended: tell the I/O APIC.
    EndOfInterrupt(u8),
    /// Send what the ICR says.
    Send(Command),
}

/// An interrupt command (SDM vol. 3, 11.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Command {
    /// Low half of ICR.
    pub low: u32,
    /// Destination.
    pub destination: u32,
    /// The destination has 32 bits (x2APIC); else 8.
    pub wide: bool,
}

/// A register that does not exist, or a value that it can't hold.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Illegal;

/// What the CPUID table says of the APIC.
#[derive(Clone, Copy, Debug)]
pub(super) struct Features {
    /// Leaf 1 ECX bit 21.
    pub x2apic: bool,
    /// Leaf 1 ECX bit 24.
    pub tsc_deadline: bool,
    /// Mask of valid physical address bits.
    pub physical_mask: u64,
}

/// One local APIC's registers.
pub(super) struct Registers {
    pub id: u32,
    pub features: Features,
    pub base: u64,
    pub tpr: u32,
    pub ldr: u32,
    pub dfr: u32,
    pub svr: u32,
    pub isr: Vectors,
    pub tmr: Vectors,
    pub irr: Vectors,
    pub esr: u32,
    /// Errors since ESR was last written.
    pub errors: u32,
    pub icr: u64,
    pub lvt: [u32; 6],
    pub timing: Timing,
    /// Level of the 8259 pair's INTR.
    pub intr: bool,
    /// An ExtINT message came.
    pub extint: bool,
    pub nmi: bool,
    pub init: bool,
    /// A SIPI would be taken.
    pub waiting: bool,
    pub sipi: Option<u8>,
}

impl Registers {
    /// The state after power-on.
    pub fn new(id: u32, bootstrap: bool, x2apic: bool, features: Features) -> Self {
        let mut base = 0xfee0_0000 | base::ENABLE;
        if bootstrap {
            base |= base::BOOTSTRAP;
        }
        if x2apic && features.x2apic {
            base |= base::X2APIC;
        }
        let mut new = Self {
            id,
            features,
            base,
            tpr: 0,
            ldr: 0,
            dfr: 0,
            svr: 0,
            isr: Vectors::default(),
            tmr: Vectors::default(),
            irr: Vectors::default(),
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [MASKED; 6],
            timing: Timing::default(),
            intr: false,
            extint: false,
            nmi: false,
            init: false,
            waiting: !bootstrap,
            sipi: None,
        };
        new.reset();
        new
    }

    /// What power-on, INIT and a switch-off by IA32_APIC_BASE do to the registers (SDM vol. 3,
    /// 11.4.7); IA32_APIC_BASE, pins and latched INIT and SIPI stay.
    pub fn reset(&mut self) {
        self.tpr = 0;
        self.dfr = u32::MAX;
        self.svr = 0xff;
        self.isr = Vectors::default();
        self.tmr = Vectors::default();
        self.irr = Vectors::default();
        self.esr = 0;
        self.errors = 0;
        self.icr = 0;
        self.lvt = [MASKED; 6];
        // Boards hand over in virtual wire mode (MP specification 1.4, 3.6.2.2). VMs without
        // firmware depend on it, and KVM does the same.
        if self.bootstrap() {
            self.lvt[Lvt::Lint0 as usize] = mode::EXTINT << 8;
        }
        self.timing = Timing { armed: self.timing.armed, ..Timing::default() };
        self.extint = false;
        self.nmi = false;
        self.ldr = if self.x2apic() { logical_id(self.id) } else { 0 };
    }

    pub fn enabled(&self) -> bool {
        self.base & base::ENABLE != 0
    }

    pub fn x2apic(&self) -> bool {
        self.base & base::X2APIC != 0
    }

    pub fn bootstrap(&self) -> bool {
        self.base & base::BOOTSTRAP != 0
    }

    pub fn software_enabled(&self) -> bool {
        self.enabled() && self.svr & SVR_ENABLE != 0
    }

    /// IA32_APIC_BASE is written (SDM vol. 3, 11.4.4 and figure 11-27).
    pub fn set_base(&mut self, value: u64) -> Result<(), Illegal> {
        let mut valid = base::BOOTSTRAP | base::ENABLE | self.features.physical_mask & !0xfff;
        if self.features.x2apic {
            valid |= base::X2APIC;
        }
        let mode = |v: u64| (v & base::ENABLE != 0, v & base::X2APIC != 0);
        // Not to x2APIC without "enabled", not back to xAPIC, not straight from off to x2APIC.
        let illegal = matches!(
            (mode(self.base), mode(value)),
            (_, (false, true)) | ((true, true), (true, false)) | ((false, _), (true, true))
        );
        if value & !valid != 0 || illegal {
            return Err(Illegal);
        }
        let (was, was_x2apic) = (self.enabled(), self.x2apic());
        self.base = value;
        if was && !self.enabled() {
            let nmi = self.nmi;
            self.reset();
            self.nmi = nmi;
        }
        if self.x2apic() && !was_x2apic {
            self.ldr = logical_id(self.id);
        }
        Ok(())
    }

    /// Class of the highest interrupt in service or the task priority (SDM vol. 3, 11.8.3.1).
    pub fn ppr(&self) -> u32 {
        let serving = u32::from(self.isr.highest().unwrap_or(0));
        if self.tpr & 0xf0 >= serving & 0xf0 { self.tpr } else { serving & 0xf0 }
    }

    /// The vector that would be delivered now.
    pub fn deliverable(&self) -> Option<u8> {
        let vector = self.irr.highest()?;
        (self.enabled() && u32::from(vector & 0xf0) > self.ppr() & 0xf0).then_some(vector)
    }

    /// Whether the 8259 pair's INTR reaches the processor (SDM vol. 3, 11.5.1; with the APIC off,
    /// LINT0 is the INTR pin: 11.4.3).
    fn takes_extint(&self) -> bool {
        let lint0 = self.lvt[Lvt::Lint0 as usize];
        !self.enabled() || (lint0 & MASKED == 0 && lint0 >> 8 & 7 == mode::EXTINT)
    }

    /// Bits of [`pending`].
    pub fn pending(&self) -> u32 {
        let bit = |on: bool, bit: u32| if on { bit } else { 0 };
        bit(self.deliverable().is_some(), pending::FIXED)
            | bit(self.extint || self.intr && self.takes_extint(), pending::EXTINT)
            | bit(self.nmi, pending::NMI)
            | bit(self.init, pending::INIT)
            | bit(self.sipi.is_some(), pending::SIPI)
    }

    /// An interrupt message arrives (SDM vol. 3, 11.8.4).
    pub fn accept(&mut self, vector: u8, level: bool) {
        if !self.software_enabled() {
            return;
        }
        if vector < 16 {
            self.error(ERROR_RECEIVED);
            return;
        }
        self.irr.set(vector, true);
        self.tmr.set(vector, level);
    }

    /// A message of any delivery mode arrives.
    pub fn message(&mut self, mode: u32, vector: u8, level: bool) {
        match mode {
            mode::FIXED | mode::LOWEST => self.accept(vector, level),
            mode::NMI => self.nmi = true,
            mode::INIT => {
                self.init = true;
                self.sipi = None;
                self.waiting = !self.bootstrap();
            }
            mode::STARTUP if self.waiting => {
                self.sipi = Some(vector);
                self.waiting = false;
            }
            mode::EXTINT => self.extint = true,
            // There is no system management mode.
            _ => {}
        }
    }

    /// A local interrupt source fires.
    pub fn local(&mut self, lvt: Lvt) {
        let entry = self.lvt[lvt as usize];
        if entry & MASKED != 0 || !self.enabled() {
            return;
        }
        match entry >> 8 & 7 {
            mode::FIXED => self.accept(entry as u8, false),
            // A pin in ExtINT mode is a level, which `intr` holds.
            mode::EXTINT => {}
            other => self.message(other, entry as u8, false),
        }
    }

    /// INTR changes its level.
    pub fn set_intr(&mut self, level: bool) {
        let rising = level && !self.intr;
        self.intr = level;
        if rising {
            self.local(Lvt::Lint0);
        }
    }

    /// Notes an error; the error interrupt comes with the first one after ESR was cleared.
    pub fn error(&mut self, bits: u32) {
        let new = bits & !self.errors;
        self.errors |= bits;
        if new != 0 {
            self.local(Lvt::Error);
        }
    }

    /// Ends the interrupt in service; the vector if the I/O APIC must hear of it.
    fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = self.isr.highest() else { return Effect::None };
        self.isr.set(vector, false);
        if self.tmr.get(vector) { Effect::EndOfInterrupt(vector) } else { Effect::None }
    }

    /// Value of a register, or `Illegal` where there is none.
    pub fn read(&self, register: usize, clock: &Clock) -> Result<u32, Illegal> {
        let x2apic = self.x2apic();
        Ok(match register {
            index::ID if x2apic => self.id,
            index::ID => self.id << 24,
            index::VERSION => VERSION,
            index::TPR => self.tpr,
            index::APR | index::RRD | index::EOI if !x2apic => 0,
            index::PPR => self.ppr(),
            index::LDR => self.ldr,
            index::DFR if !x2apic => self.dfr,
            index::SVR => self.svr,
            index::ISR..index::TMR => self.isr.0[register - index::ISR],
            index::TMR..index::IRR => self.tmr.0[register - index::TMR],
            index::IRR..index::ESR => self.irr.0[register - index::IRR],
            index::ESR => self.esr,
            index::ICR => self.icr as u32,
            index::ICR_HIGH if !x2apic => (self.icr >> 32) as u32,
            index::LVT..index::INITIAL => self.lvt[register - index::LVT],
            index::INITIAL => self.timing.initial,
            index::CURRENT => self.timing.current(clock.now()),
            index::DIVIDE => self.timing.divide,
            _ => return Err(Illegal),
        })
    }

    /// Writes a register in xAPIC mode: bits that do not exist are dropped.
    pub fn write(&mut self, register: usize, value: u32, clock: &Clock) -> Result<Effect, Illegal> {
        match register {
            index::TPR => self.tpr = value & 0xff,
            index::EOI => return Ok(self.end_of_interrupt()),
            index::LDR if !self.x2apic() => self.ldr = value & 0xff00_0000,
            index::DFR if !self.x2apic() => self.dfr = value | 0x0fff_ffff,
            index::SVR => {
                self.svr = value & SVR_WRITABLE;
                if !self.software_enabled() {
                    self.lvt.iter_mut().for_each(|entry| *entry |= MASKED);
                }
            }
            index::ESR => {
                self.esr = self.errors;
                self.errors = 0;
            }
            index::ICR => {
                self.icr = self.icr & !0xffff_ffff | u64::from(value & !ICR_RESERVED as u32 & !0x1000);
                let destination = (self.icr >> 56) as u32;
                return Ok(Effect::Send(Command { low: self.icr as u32, destination, wide: false }));
            }
            index::ICR_HIGH => self.icr = self.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32,
            index::LVT..index::INITIAL => self.write_lvt(register - index::LVT, value, clock.now()),
            index::INITIAL => self.timing.start(value, clock.now()),
            index::DIVIDE => self.timing.set_divide(value & 0xb, clock.now()),
            index::ID | index::VERSION | index::APR | index::PPR | index::RRD => {}
            index::ISR..index::ESR | index::CURRENT => {}
            _ => return Err(Illegal),
        }
        Ok(Effect::None)
    }

    fn write_lvt(&mut self, entry: usize, value: u32, now: u64) {
        let mut value = value & self.lvt_writable(entry);
        if !self.software_enabled() {
            value |= MASKED;
        }
        let old = std::mem::replace(&mut self.lvt[entry], value);
        if entry == Lvt::Timer as usize {
            self.timing.set_mode(value >> 17 & 3, now);
        } else if entry == Lvt::Lint0 as usize && self.intr && old != value {
            // An asserted pin is seen when its entry is unmasked.
            self.local(Lvt::Lint0);
        }
    }

    /// Loads saved values, without the effects of a write.
    pub fn load_svr_and_lvt(&mut self, svr: u32, lvt: &[u32]) {
        self.svr = svr & SVR_WRITABLE;
        for (entry, value) in lvt.iter().enumerate().take(self.lvt.len()) {
            self.lvt[entry] = value & self.lvt_writable(entry);
        }
    }

    fn lvt_writable(&self, entry: usize) -> u32 {
        let no_deadline = entry == 0 && !self.features.tsc_deadline;
        LVT_WRITABLE[entry] & if no_deadline { !(1 << 18) } else { u32::MAX }
    }

    /// Reads an x2APIC MSR by register number.
    pub fn read_msr(&self, register: usize, clock: &Clock) -> Result<u64, Illegal> {
        match register {
            index::ICR => Ok(self.icr),
            index::EOI | index::SELF_IPI => Err(Illegal),
            _ => self.read(register, clock).map(u64::from),
        }
    }

    /// Writes an x2APIC MSR by register number: bits that do not exist are refused (SDM vol. 3,
    /// 11.12.1.2).
    pub fn write_msr(&mut self, register: usize, value: u64, clock: &Clock) -> Result<Effect, Illegal> {
        let valid = match register {
            index::TPR | index::SELF_IPI => 0xff,
            index::EOI | index::ESR => 0,
            index::SVR => u64::from(SVR_WRITABLE),
            index::ICR => !ICR_RESERVED,
            index::LVT..index::INITIAL => {
                let entry = register - index::LVT;
                u64::from(self.lvt_writable(entry) | LVT_READ_ONLY[entry])
            }
            index::INITIAL => 0xffff_ffff,
            index::DIVIDE => 0xb,
            _ => return Err(Illegal),
        };
        if value & !valid != 0 {
            return Err(Illegal);
        }
        match register {
            index::ICR => {
                self.icr = value & !0x1000;
                let destination = (self.icr >> 32) as u32;
                Ok(Effect::Send(Command { low: self.icr as u32, destination, wide: true }))
            }
            index::SELF_IPI => {
                if value < 16 {
                    self.error(ERROR_SENT);
                }
                self.accept(value as u8, false);
                Ok(Effect::None)
            }
            _ => self.write(register, value as u32, clock),
        }
    }

    /// Whether a message to `destination` is for this APIC (SDM vol. 3, 11.6.2). `wide`: the
    /// destination has 32 bits, as from an x2APIC; else 8.
    pub fn matches(&self, destination: u32, logical: bool, wide: bool) -> bool {
        if !self.enabled() {
            return false;
        }
        if destination == if wide { u32::MAX } else { 0xff } {
            return true;
        }
        if !logical {
            return destination == self.id;
        }
        if self.x2apic() {
            return destination >> 16 == self.ldr >> 16 && destination & self.ldr & 0xffff != 0;
        }
        let (own, to) = (self.ldr >> 24, destination & 0xff);
        match self.dfr >> 28 {
            0xf => own & to != 0,
            0 => own >> 4 == to >> 4 && own & to & 0xf != 0,
            _ => false,
        }
    }

    /// Notes an access to a register that is not there.
    pub fn illegal_register(&mut self) {
        self.error(ERROR_REGISTER);
    }

    /// Takes the highest deliverable interrupt into service.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.deliverable()?;
        self.irr.set(vector, false);
        self.isr.set(vector, true);
        Some(vector)
    }
}

/// The logical id that x2APIC derives from the id (SDM vol. 3, 11.12.10.2).
pub(super) fn logical_id(id: u32) -> u32 {
    (id & !0xf) << 12 | 1 << (id & 0xf)
}
