//! ACPI power management: the PM1 block, the PM timer, GPE0, the SMI command port and the reset
//! control register (ACPI 6.5, 4.8; register layout as bhyve's FADT gives it).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::{
    Bus, BusDevice, ClaimError, Clock, Device, IrqLine, PowerEvent, PowerSwitch, SavedState, StateError,
    Timers,
};
use serde::{Deserialize, Serialize};

use super::access::{BytePorts, claim_ports, read_registers, write_registers};
use crate::pci::ResetControl;

/// Where the block is unless firmware moves it.
pub const PM_BASE: u16 = 0x400;
/// Length of the block.
pub const PM_LENGTH: u16 = 0x0e;
/// The system control interrupt, level-triggered.
pub const SCI_IRQ: u32 = 9;
/// The PM timer's frequency (ACPI 6.5, 4.8.2.1).
pub const PM_TIMER_HZ: u64 = 3_579_545;
/// SMI command port, and the scratch byte after it.
pub const SMI_COMMAND: u16 = 0xb2;
/// Value for [`SMI_COMMAND`] that turns ACPI mode on.
pub const ACPI_ENABLE: u8 = 0xa0;
/// Value for [`SMI_COMMAND`] that turns ACPI mode off.
pub const ACPI_DISABLE: u8 = 0xa1;
/// Sleep type of S5 in PM1 control.
pub const SLEEP_TYPE_S5: u16 = 5;
/// Port of the reset control register, in the middle of the PCI configuration ports.
pub const RESET_CONTROL: u16 = 0xcf9;

const VERSION: u32 = 1;

// Registers of the block.
const PM1_STATUS: u64 = 0x0;
const PM1_ENABLE: u64 = 0x2;
const PM1_CONTROL: u64 = 0x4;
const PM_TIMER: u64 = 0x8;
const GPE0: u64 = 0xc;

// PM1 status and enable.
const GLOBAL: u16 = 1 << 5;
const POWER_BUTTON: u16 = 1 << 8;
const PM1_EVENTS: u16 = GLOBAL | POWER_BUTTON;

// PM1 control.
const SCI_ENABLE: u16 = 1 << 0;
const GLOBAL_RELEASE: u16 = 1 << 2;
const SLEEP_ENABLE: u16 = 1 << 13;

/// GPE0 events that exist: bit 0, the VM generation id changed.
const GPE_EVENTS: u8 = 1 << 0;

// Reset control.
const RESET_CPU: u8 = 1 << 2;
const RESET_WRITABLE: u8 = 0x0e;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u8,
    gpe_enable: u8,
    command: u8,
    scratch: u8,
    reset_control: u8,
    /// Clock time at which the PM timer was 0 (wrapping).
    timer_start: u64,
}

impl State {
    fn acpi(&self) -> bool {
        self.control & SCI_ENABLE != 0
    }

    fn sci(&self) -> bool {
        self.acpi() && (self.status & self.enable != 0 || self.gpe_status & self.gpe_enable != 0)
    }

    fn timer(&self, now: u64) -> u32 {
        Clock::ticks(now.wrapping_sub(self.timer_start), PM_TIMER_HZ) as u32
    }

    /// Reads one 16-bit register.
    fn read(&self, register: u64, now: u64) -> u16 {
        match register {
            PM1_STATUS => self.status,
            PM1_ENABLE => self.enable,
            PM1_CONTROL => self.control,
            PM_TIMER => self.timer(now) as u16,
            0xa => (self.timer(now) >> 16) as u16,
            GPE0 => u16::from_le_bytes([self.gpe_status, self.gpe_enable]),
            _ => 0,
        }
    }

    /// Writes one 16-bit register; true if this enters S5.
    fn write(&mut self, register: u64, value: u16, mask: u16) -> bool {
        match register {
            PM1_STATUS => self.status &= !value,
            PM1_ENABLE => self.enable = (self.enable & !mask | value) & PM1_EVENTS,
            PM1_CONTROL => {
                let value = self.control & !mask | value;
                if value & GLOBAL_RELEASE != 0 {
                    self.status |= GLOBAL;
                }
                // Write-only bits read as 0; only the SMI command changes the mode.
                let kept = !(SLEEP_ENABLE | GLOBAL_RELEASE | SCI_ENABLE);
                self.control = self.control & SCI_ENABLE | value & kept;
                return value & SLEEP_ENABLE != 0 && value >> 10 & 7 == SLEEP_TYPE_S5;
            }
            GPE0 => {
                let ([status, enable], [_, enables]) = (value.to_le_bytes(), mask.to_le_bytes());
                self.gpe_status &= !status;
                self.gpe_enable = (self.gpe_enable & !enables | enable) & GPE_EVENTS;
            }
            _ => {}
        }
        false
    }
}

/// The power management block.
pub struct Pm {
    state: Mutex<State>,
    clock: Clock,
    sci: IrqLine,
    power: Arc<PowerSwitch>,
}

impl Pm {
    /// A block after power-on. `sci` is usually [`SCI_IRQ`].
    pub fn new(timers: &Timers, sci: IrqLine, power: Arc<PowerSwitch>) -> Self {
        Self { state: Mutex::default(), clock: timers.clock(), sci, power }
    }

    /// Claims the SMI command ports.
    pub fn claim(self: &Arc<Self>, bus: &Bus) -> Result<(), ClaimError> {
        claim_ports(bus, SMI_COMMAND..SMI_COMMAND + 2, self)
    }

    /// Puts the register block at `base`.
    pub fn map(self: &Arc<Self>, bus: &Bus, base: u16) -> Result<(), ClaimError> {
        bus.claim_ports(base..base.saturating_add(PM_LENGTH), self.clone())
    }

    /// Takes the register block away from `base`.
    pub fn unmap(&self, bus: &Bus, base: u16) {
        bus.release_ports(&(base..base.saturating_add(PM_LENGTH)));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Presses the power button. Pressing again before the guest took notice does nothing.
    pub fn power_button(&self) {
        let mut state = self.lock();
        state.status |= POWER_BUTTON;
        self.sci.set(state.sci());
    }

    /// Raises GPE0 event `bit`, if it exists.
    pub fn general_event(&self, bit: u8) {
        let mut state = self.lock();
        state.gpe_status |= 1u8.checked_shl(u32::from(bit)).unwrap_or(0) & GPE_EVENTS;
        self.sci.set(state.sci());
    }

    /// Whether the guest has turned ACPI mode on: it then answers the power button.
    pub fn acpi_enabled(&self) -> bool {
        self.lock().acpi()
    }
}

impl ResetControl for Pm {
    fn read(&self) -> u8 {
        self.lock().reset_control
    }

    /// Bit 2 going up resets, in whatever way the other bits choose.
    fn write(&self, value: u8) {
        let rose = {
            let mut state = self.lock();
            let old = std::mem::replace(&mut state.reset_control, value & RESET_WRITABLE);
            value & RESET_CPU & !old != 0
        };
        if rose {
            self.power.request(PowerEvent::Reset);
        }
    }
}

impl BusDevice for Pm {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // One moment for the whole access: the timer's halves belong together.
        let (state, now) = (self.lock(), self.clock.now());
        read_registers(offset, data, 2, |register| u64::from(state.read(register, now)));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        let mut off = false;
        write_registers(offset, data, 2, |register, value, mask| {
            off |= state.write(register, value as u16, mask as u16);
        });
        self.sci.set(state.sci());
        drop(state);
        if off {
            self.power.request(PowerEvent::PowerOff);
        }
    }
}

impl BytePorts for Pm {
    fn read_port(&self, port: u16) -> u8 {
        let state = self.lock();
        if port == SMI_COMMAND { state.command } else { state.scratch }
    }

    fn write_port(&self, port: u16, value: u8) {
        let mut state = self.lock();
        if port != SMI_COMMAND {
            state.scratch = value;
            return;
        }
        state.command = value;
        match value {
            ACPI_ENABLE => state.control |= SCI_ENABLE,
            ACPI_DISABLE => state.control &= !SCI_ENABLE,
            _ => {}
        }
        self.sci.set(state.sci());
    }
}

impl Device for Pm {
    fn name(&self) -> String {
        "pm".into()
    }

    fn reset(&self) {
        let mut state = self.lock();
        // The timer free-runs over a reset; it has no defined start.
        *state = State { timer_start: state.timer_start, ..State::default() };
        self.sci.set(false);
    }

    fn save(&self) -> Result<SavedState, StateError> {
        let mut state = self.lock().clone();
        state.timer_start = state.timer_start.wrapping_sub(self.clock.now());
        SavedState::encode(VERSION, &state)
    }

    fn restore(&self, saved: &SavedState) -> Result<(), StateError> {
        self.reset();
        let mut new: State = saved.decode(VERSION)?;
        let control = !(SLEEP_ENABLE | GLOBAL_RELEASE);
        if new.status & !PM1_EVENTS != 0
            || new.enable & !PM1_EVENTS != 0
            || new.control & !control != 0
            || (new.gpe_status | new.gpe_enable) & !GPE_EVENTS != 0
            || new.reset_control & !RESET_WRITABLE != 0
        {
            return Err(StateError::Invalid("power management"));
        }
        new.timer_start = new.timer_start.wrapping_add(self.clock.now());
        let mut state = self.lock();
        *state = new;
        self.sci.set(state.sci());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::access::testing::{Probe, as_range, hammer};
    use super::*;

    fn pm() -> (Arc<Pm>, Arc<Probe>, Arc<PowerSwitch>) {
        let timers = Timers::start(Clock::new()).unwrap();
        let (probe, power) = (Arc::new(Probe::default()), Arc::new(PowerSwitch::default()));
        let pm = Arc::new(Pm::new(&timers, IrqLine::new(probe.clone(), SCI_IRQ), power.clone()));
        (pm, probe, power)
    }

    fn word(pm: &Pm, offset: u64) -> u16 {
        let mut data = [0; 2];
        BusDevice::read(pm, offset, &mut data);
        u16::from_le_bytes(data)
    }

    #[test]
    fn the_power_button_raises_sci_until_cleared() {
        let (pm, probe, _) = pm();
        BusDevice::write(&*pm, PM1_ENABLE, &0xffff_u16.to_le_bytes());
        assert_eq!(word(&pm, PM1_ENABLE), 0x120);
        pm.power_button();
        assert!(!pm.acpi_enabled() && probe.take_irqs().iter().all(|i| !i.1));
        pm.write_port(SMI_COMMAND, ACPI_ENABLE);
        assert!(pm.acpi_enabled());
        assert_eq!(probe.take_irqs(), [(9, true)]);
        assert_eq!(word(&pm, PM1_STATUS), 0x100);
        BusDevice::write(&*pm, PM1_STATUS, &0x100_u16.to_le_bytes());
        assert_eq!(probe.take_irqs(), [(9, false)]);
        pm.write_port(SMI_COMMAND, ACPI_DISABLE);
        assert!(!pm.acpi_enabled());
    }

    #[test]
    fn s5_powers_off_and_other_sleep_types_do_not() {
        let (pm, _, power) = pm();
        BusDevice::write(&*pm, PM1_CONTROL, &(1u16 << 13 | 1 << 10).to_le_bytes());
        assert_eq!(power.event(), None);
        assert_eq!(word(&pm, PM1_CONTROL), 1 << 10);
        BusDevice::write(&*pm, PM1_CONTROL, &(5u16 << 10).to_le_bytes());
        assert_eq!(power.event(), None);
        BusDevice::write(&*pm, PM1_CONTROL + 1, &[0x34]);
        assert_eq!(power.event(), Some(PowerEvent::PowerOff));
    }

    #[test]
    fn only_a_rising_bit_2_resets() {
        let (pm, _, power) = pm();
        ResetControl::write(&*pm, 0x02);
        assert_eq!((ResetControl::read(&*pm), power.event()), (0x02, None));
        ResetControl::write(&*pm, 0x06);
        assert_eq!(power.event(), Some(PowerEvent::Reset));
    }

    #[test]
    fn the_timer_counts_in_one_piece() {
        let (pm, ..) = pm();
        let read = || {
            let mut data = [0; 4];
            BusDevice::read(&*pm, PM_TIMER, &mut data);
            u32::from_le_bytes(data)
        };
        let before = read();
        std::thread::sleep(std::time::Duration::from_millis(40));
        let ticks = read() - before;
        assert!(ticks >= 143_000, "{ticks} ticks in 40 ms");
        let s = State { timer_start: 1u64.wrapping_neg(), ..State::default() };
        assert_eq!(s.timer(1_000_000_000 - 1), 3_579_545);
    }

    #[test]
    fn events_have_their_own_enable_bits() {
        let (pm, probe, _) = pm();
        pm.write_port(SMI_COMMAND, ACPI_ENABLE);
        BusDevice::write(&*pm, GPE0 + 1, &[0xff]);
        pm.general_event(0);
        pm.general_event(7);
        pm.general_event(200);
        assert_eq!(word(&pm, GPE0), 0x0101);
        assert!(probe.take_irqs().last().unwrap().1);
        BusDevice::write(&*pm, GPE0, &[1]);
        assert!(!probe.take_irqs().last().unwrap().1);
    }

    #[test]
    fn state_survives_and_hostile_accesses_do_no_harm() {
        let (pm, ..) = pm();
        pm.write_port(SMI_COMMAND, ACPI_ENABLE);
        BusDevice::write(&*pm, PM1_ENABLE, &[0x20, 1]);
        pm.power_button();
        let strip = |s: SavedState| State { timer_start: 0, ..s.decode(VERSION).unwrap() };
        let saved = pm.save().unwrap();
        pm.reset();
        pm.restore(&saved).unwrap();
        assert_eq!(strip(pm.save().unwrap()), strip(saved));
        hammer(&*pm, &*pm, u64::from(PM_LENGTH));
        hammer(&*pm, &as_range(SMI_COMMAND, &pm), 2);
    }
}
