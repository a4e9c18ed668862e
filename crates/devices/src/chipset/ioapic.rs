//! The I/O APIC (Intel 82093AA datasheet) at FEC00000, with 32 inputs instead of 24.
//!
//! Version 0x11 has no EOI register; software that wants to end one interrupt by hand flips the
//! entry to edge and back, which clears its remote IRR.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::{Bus, BusDevice, ClaimError, Device, Msi, SavedState, StateError};
use serde::{Deserialize, Serialize};

use super::access::{read_registers, write_registers};

/// Where the registers are.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// Number of inputs.
pub const IOAPIC_PINS: u32 = 32;
/// The version register's low byte.
pub const IOAPIC_VERSION: u8 = 0x11;

const VERSION: u32 = 1;
const WINDOW: u64 = 0x1000;

// Memory-mapped registers.
const SELECT: u64 = 0x00;
const DATA: u64 = 0x10;

// Indirect registers.
const REG_ID: u8 = 0;
const REG_VERSION: u8 = 1;
const REG_ARBITRATION: u8 = 2;
const REG_TABLE: u8 = 0x10;

// Redirection entry.
const VECTOR: u64 = 0xff;
const DELIVERY_SHIFT: u32 = 8;
const LOGICAL: u64 = 1 << 11;
const DELIVERY_STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const WRITABLE: u64 = 0xff00_0000_0001_ffff & !(DELIVERY_STATUS | REMOTE_IRR);

const DELIVERY_LOWEST: u64 = 1;
/// Delivery mode of an 8259 behind an input. No input has one: the pair drives LINT0.
const DELIVERY_EXTINT: u64 = 7;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    id: u8,
    select: u8,
    lines: u32,
    table: [u64; IOAPIC_PINS as usize],
}

/// What an entry sends (Intel SDM vol. 3, 11.11: the message that a bus write carries).
fn message(entry: u64) -> Msi {
    let delivery = entry >> DELIVERY_SHIFT & 7;
    let mut address = 0xfee0_0000 | (entry >> 56) << 12;
    if entry & LOGICAL != 0 {
        address |= 1 << 2;
    }
    if delivery == DELIVERY_LOWEST {
        // Redirection hint.
        address |= 1 << 3;
    }
    let mut data = (entry & VECTOR) | delivery << 8;
    if entry & LEVEL != 0 {
        // Level-triggered, assert.
        data |= 1 << 15 | 1 << 14;
    }
    Msi { address, data: data as u32 }
}

impl State {
    fn new() -> Self {
        Self { id: 0, select: 0, lines: 0, table: [MASKED; IOAPIC_PINS as usize] }
    }

    /// Sends `pin`'s message if it may go now.
    fn deliver(&mut self, pin: u32) -> Option<Msi> {
        let entry = self.table.get_mut(pin as usize)?;
        if *entry & (MASKED | REMOTE_IRR) != 0 || *entry >> DELIVERY_SHIFT & 7 == DELIVERY_EXTINT {
            return None;
        }
        let msi = message(*entry);
        if *entry & LEVEL != 0 {
            *entry |= REMOTE_IRR;
        }
        Some(msi)
    }

    fn set_line(&mut self, pin: u32, level: bool) -> Option<Msi> {
        let bit = 1u32.checked_shl(pin)?;
        let rose = level && self.lines & bit == 0;
        if level {
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
        // An edge that comes while the entry is masked is lost, as on the real part.
        if rose { self.deliver(pin) } else { None }
    }

    /// A level entry whose line is high asks again after unmasking or EOI.
    fn retry(&mut self, pin: u32) -> Option<Msi> {
        let level = self.table.get(pin as usize).is_some_and(|e| e & LEVEL != 0);
        let high = self.lines & 1u32.checked_shl(pin)? != 0;
        if level && high { self.deliver(pin) } else { None }
    }

    fn end_of_interrupt(&mut self, vector: u8) -> Vec<Msi> {
        let mut again = Vec::new();
        for pin in 0..IOAPIC_PINS {
            let Some(entry) = self.table.get_mut(pin as usize) else { break };
            if *entry & REMOTE_IRR != 0 && *entry & VECTOR == u64::from(vector) {
                *entry &= !REMOTE_IRR;
                again.extend(self.retry(pin));
            }
        }
        again
    }

    /// The table entry of an indirect register, and how far its half is shifted.
    fn entry(register: u8) -> Option<(usize, u32)> {
        let index = register.checked_sub(REG_TABLE)?;
        let pin = usize::from(index / 2);
        (pin < IOAPIC_PINS as usize).then_some((pin, u32::from(index & 1) * 32))
    }

    fn read(&self) -> u32 {
        match self.select {
            REG_ID | REG_ARBITRATION => u32::from(self.id) << 24,
            REG_VERSION => (IOAPIC_PINS - 1) << 16 | u32::from(IOAPIC_VERSION),
            register => Self::entry(register)
                .and_then(|(pin, shift)| self.table.get(pin).map(|e| (e >> shift) as u32))
                .unwrap_or(0),
        }
    }

    fn write(&mut self, value: u32) -> Option<Msi> {
        if self.select == REG_ID {
            self.id = (value >> 24) as u8 & 0xf;
        }
        let (pin, shift) = Self::entry(self.select)?;
        let entry = self.table.get_mut(pin)?;
        let writable = WRITABLE & 0xffff_ffff << shift;
        *entry = *entry & !writable | u64::from(value) << shift & writable;
        if *entry & LEVEL == 0 {
            *entry &= !REMOTE_IRR;
        }
        self.retry(pin as u32)
    }
}

type Deliver = Box<dyn Fn(Msi) + Send + Sync>;
type RouteHook = Box<dyn Fn(u32, Option<Msi>) + Send + Sync>;

/// The I/O APIC.
pub struct Ioapic {
    state: Mutex<State>,
    deliver: Deliver,
    routes: Mutex<Vec<RouteHook>>,
}

impl Ioapic {
    /// An I/O APIC after power-on that sends its messages through `deliver`. No lock of the I/O
    /// APIC is held while it is called.
    pub fn new(deliver: impl Fn(Msi) + Send + Sync + 'static) -> Self {
        Self { state: Mutex::new(State::new()), deliver: Box::new(deliver), routes: Mutex::default() }
    }

    /// Claims the registers.
    pub fn claim(self: &Arc<Self>, bus: &Bus) -> Result<(), ClaimError> {
        bus.claim_memory(IOAPIC_BASE..IOAPIC_BASE + WINDOW, self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, messages: impl IntoIterator<Item = Msi>) {
        for msi in messages {
            (self.deliver)(msi);
        }
    }

    /// Sets the level of input `pin`.
    pub fn set_pin(&self, pin: u32, level: bool) {
        let msi = self.lock().set_line(pin, level);
        self.send(msi);
    }

    /// A local APIC's EOI of a level-triggered `vector`.
    pub fn end_of_interrupt(&self, vector: u8) {
        let again = self.lock().end_of_interrupt(vector);
        self.send(again);
    }

    /// What `pin` sends, `None` while it is masked.
    pub fn route(&self, pin: u32) -> Option<Msi> {
        let entry = *self.lock().table.get(pin as usize)?;
        (entry & MASKED == 0).then(|| message(entry))
    }

    /// Calls `hook` with pin and message after each change of an entry, for engines that must
    /// know which vectors come from level-triggered inputs (KVM's EOI exits).
    pub fn on_route(&self, hook: impl Fn(u32, Option<Msi>) + Send + Sync + 'static) {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(hook));
    }

    fn tell_route(&self, pin: u32) {
        let hooks = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if !hooks.is_empty() {
            let route = self.route(pin);
            hooks.iter().for_each(|hook| hook(pin, route));
        }
    }

    fn tell_routes(&self) {
        (0..IOAPIC_PINS).for_each(|pin| self.tell_route(pin));
    }

    /// Writes the selected register. The engine hears of a new route before its first message.
    fn write_data(&self, value: u64, mask: u64) {
        let (msi, pin) = {
            let mut state = self.lock();
            let new = u64::from(state.read()) & !mask | value & mask;
            let pin = State::entry(state.select).map(|(pin, _)| pin as u32);
            (state.write(new as u32), pin)
        };
        if let Some(pin) = pin {
            self.tell_route(pin);
        }
        self.send(msi);
    }
}

impl BusDevice for Ioapic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        read_registers(offset, data, 4, |register| match register {
            SELECT => u64::from(state.select),
            DATA => u64::from(state.read()),
            _ => 0,
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        write_registers(offset, data, 4, |register, value, mask| match register {
            SELECT if mask & 0xff != 0 => self.lock().select = value as u8,
            DATA => self.write_data(value, mask),
            _ => {}
        });
    }
}

impl Device for Ioapic {
    fn name(&self) -> String {
        "ioapic".into()
    }

    fn reset(&self) {
        {
            let mut state = self.lock();
            *state = State { lines: state.lines, ..State::new() };
        }
        self.tell_routes();
    }

    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::encode(VERSION, &*self.lock())
    }

    fn restore(&self, saved: &SavedState) -> Result<(), StateError> {
        self.reset();
        let state: State = saved.decode(VERSION)?;
        let known = WRITABLE | REMOTE_IRR;
        if state.id > 0xf || state.table.iter().any(|e| e & !known != 0) {
            return Err(StateError::Invalid("I/O APIC"));
        }
        *self.lock() = state;
        self.tell_routes();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::access::testing::{Probe, hammer};
    use super::*;
    use bus::MsiSink;

    fn ioapic() -> (Ioapic, Arc<Probe>) {
        let probe = Arc::new(Probe::default());
        let to = probe.clone();
        (Ioapic::new(move |msi| to.signal_msi(msi)), probe)
    }

    fn read(io: &Ioapic, register: u8) -> u32 {
        io.write(SELECT, &[register]);
        let mut data = [0; 4];
        io.read(DATA, &mut data);
        u32::from_le_bytes(data)
    }

    fn set_entry(io: &Ioapic, pin: u8, entry: u64) {
        for half in 0..2u8 {
            io.write(SELECT, &u32::from(0x10 + pin * 2 + (1 - half)).to_le_bytes());
            io.write(DATA, &((entry >> ((1 - half) * 32)) as u32).to_le_bytes());
        }
    }

    #[test]
    fn identity_and_power_on_state() {
        let (io, _) = ioapic();
        assert_eq!(read(&io, 1), 0x001f_0011);
        for pin in 0..32 {
            assert_eq!((read(&io, 0x10 + pin * 2), read(&io, 0x11 + pin * 2)), (0x10000, 0));
        }
        assert_eq!(read(&io, 0x50), 0);
        io.write(SELECT, &[0]);
        io.write(DATA, &[0, 0, 0, 5]);
        assert_eq!(read(&io, 2), 0x0500_0000);
    }

    #[test]
    fn edges_go_once_and_only_unmasked() {
        let (io, probe) = ioapic();
        io.set_pin(2, true);
        io.set_pin(2, false);
        set_entry(&io, 2, 0x0300_0000_0000_0030);
        assert!(probe.take_msis().is_empty());
        io.set_pin(2, true);
        io.set_pin(2, true);
        assert_eq!(probe.take_msis(), [Msi { address: 0xfee0_3000, data: 0x30 }]);
        set_entry(&io, 2, 0x0f00_0000_0000_0930);
        io.set_pin(2, false);
        io.set_pin(2, true);
        assert_eq!(probe.take_msis(), [Msi { address: 0xfee0_f00c, data: 0x130 }]);
    }

    #[test]
    fn levels_wait_for_eoi_and_come_again_while_high() {
        let (io, probe) = ioapic();
        set_entry(&io, 31, 0x8055);
        io.set_pin(31, true);
        assert_eq!(probe.take_msis(), [Msi { address: 0xfee0_0000, data: 0xc055 }]);
        assert_eq!(read(&io, 0x10 + 62), 0xc055, "remote IRR");
        io.set_pin(31, false);
        io.set_pin(31, true);
        assert!(probe.take_msis().is_empty());
        io.end_of_interrupt(0x54);
        assert!(probe.take_msis().is_empty());
        io.end_of_interrupt(0x55);
        assert_eq!(probe.take_msis().len(), 1);
        io.set_pin(31, false);
        io.end_of_interrupt(0x55);
        assert!(probe.take_msis().is_empty());
        assert_eq!(read(&io, 0x10 + 62), 0x8055);
    }

    #[test]
    fn unmasking_a_high_level_input_delivers_and_edge_mode_clears_remote_irr() {
        let (io, probe) = ioapic();
        io.set_pin(9, true);
        set_entry(&io, 9, 0x18066);
        assert!(probe.take_msis().is_empty());
        set_entry(&io, 9, 0x8066);
        assert_eq!(probe.take_msis().len(), 1);
        set_entry(&io, 9, 0x10066);
        set_entry(&io, 9, 0x18066);
        assert_eq!(read(&io, 0x22), 0x18066);
    }

    #[test]
    fn route_hooks_see_changes() {
        let (io, _) = ioapic();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let to = seen.clone();
        io.on_route(move |pin, route| to.lock().unwrap().push((pin, route.map(|m| m.data))));
        set_entry(&io, 4, 0x8041);
        assert_eq!(seen.lock().unwrap().last(), Some(&(4, Some(0xc041))));
        io.reset();
        assert_eq!(seen.lock().unwrap().last(), Some(&(31, None)));
    }

    #[test]
    fn state_survives_and_hostile_accesses_do_no_harm() {
        let (io, _) = ioapic();
        set_entry(&io, 5, 0x0100_0000_0000_8042);
        io.set_pin(5, true);
        let saved = io.save().unwrap();
        io.reset();
        io.restore(&saved).unwrap();
        assert_eq!(io.save().unwrap(), saved);
        hammer(&io, &io, 0x48);
    }
}
