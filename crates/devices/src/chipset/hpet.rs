//! The high precision event timer (IA-PC HPET specification 1.0a) at FED00000: a 64-bit counter at
//! 2^24 Hz and eight comparators, all periodic and FSB capable.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bus::{
    Bus, BusDevice, ClaimError, Clock, Device, IrqLine, IrqSink, Msi, MsiSink, SavedState, StateError, Timer,
    Timers,
};
use serde::{Deserialize, Serialize};

use super::access::{read_registers, write_registers};

/// Where the registers are.
pub const HPET_BASE: u64 = 0xfed0_0000;
/// The counter's frequency.
pub const HPET_HZ: u64 = 1 << 24;
/// Number of comparators.
pub const HPET_TIMERS: usize = 8;
/// The low half of the capabilities register, which the ACPI HPET table repeats: vendor 8086,
/// legacy replacement, 64-bit counter, number of timers, revision 1.
pub const HPET_ID: u32 = 0x8086 << 16 | 1 << 15 | 1 << 13 | (HPET_TIMERS as u32 - 1) << 8 | 1;

const VERSION: u32 = 1;
const WINDOW: u64 = 0x400;
const FEMTOSECONDS: u64 = 1_000_000_000_000_000;
/// I/O APIC inputs that a timer may be routed to: 20–23.
const ROUTES: u32 = 0x00f0_0000;

const CAPABILITIES: u64 = 0x000;
const CONFIG: u64 = 0x010;
const STATUS: u64 = 0x020;
const COUNTER: u64 = 0x0f0;
const TIMERS: u64 = 0x100;
const TIMER_STRIDE: u64 = 0x20;

// General configuration.
const ENABLE: u64 = 1 << 0;
const LEGACY: u64 = 1 << 1;

// Timer configuration.
const LEVEL: u64 = 1 << 1;
const INTERRUPT: u64 = 1 << 2;
const PERIODIC: u64 = 1 << 3;
const PERIODIC_CAPABLE: u64 = 1 << 4;
const SIZE_CAPABLE: u64 = 1 << 5;
const VALUE_SET: u64 = 1 << 6;
const MODE_32: u64 = 1 << 8;
const ROUTE_SHIFT: u32 = 9;
const ROUTE: u64 = 0x1f << ROUTE_SHIFT;
const FSB: u64 = 1 << 14;
const FSB_CAPABLE: u64 = 1 << 15;
const TIMER_WRITABLE: u64 = LEVEL | INTERRUPT | PERIODIC | VALUE_SET | MODE_32 | ROUTE | FSB;
const TIMER_FIXED: u64 = (ROUTES as u64) << 32 | FSB_CAPABLE | SIZE_CAPABLE | PERIODIC_CAPABLE;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Comparator {
    config: u64,
    /// Next match, as the guest sees it.
    value: u64,
    period: u64,
    fsb: u64,
    /// The counter value of the next match, `None` if it has passed or there is none.
    next: Option<u64>,
}

impl Comparator {
    fn mask(&self) -> u64 {
        if self.config & MODE_32 != 0 { 0xffff_ffff } else { u64::MAX }
    }

    /// Finds the next match after a change at `counter`.
    fn schedule(&mut self, counter: u64) {
        let distance = self.value.wrapping_sub(counter) & self.mask();
        self.next = counter.checked_add(distance);
    }

    /// Whether a match has passed at `counter`; goes on to the one after.
    fn expire(&mut self, counter: u64) -> bool {
        let Some(next) = self.next.filter(|next| *next <= counter) else { return false };
        if self.config & PERIODIC == 0 {
            // A 32-bit timer matches again each time the low half comes round.
            let again = if self.config & MODE_32 == 0 { None } else { next.checked_add(1 << 32) };
            self.next = again.filter(|n| *n > counter).or_else(|| again.map(|_| counter | 0xffff_ffff));
            return true;
        }
        let period = self.period & self.mask();
        if period == 0 {
            self.next = None;
            return true;
        }
        // What was missed is one interrupt; the rhythm stays.
        let steps = (counter - next) / period + 1;
        self.next = period.checked_mul(steps).and_then(|way| next.checked_add(way));
        self.value = self.next.unwrap_or(0) & self.mask();
        true
    }

    fn write_config(&mut self, value: u64, mask: u64) {
        let mask = mask & TIMER_WRITABLE;
        let old = self.config;
        self.config = old & !mask | value & mask;
        let route = (self.config & ROUTE) >> ROUTE_SHIFT;
        if ROUTES >> route & 1 == 0 {
            // A route that does not exist does not stick, which is how software finds out.
            self.config = self.config & !ROUTE | old & ROUTE;
        }
        if self.config & MODE_32 != 0 {
            self.value &= 0xffff_ffff;
            self.period &= 0xffff_ffff;
        }
    }

    fn write_value(&mut self, value: u64, mask: u64) {
        let mask = mask & self.mask();
        if self.config & PERIODIC != 0 {
            self.period = self.period & !mask | value & mask;
            if self.config & VALUE_SET == 0 {
                return;
            }
            self.config &= !VALUE_SET;
        }
        self.value = self.value & !mask | value & mask;
    }
}

/// What a timer does on a match.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    Message(Msi),
    Pulse(u32),
    Raise(u32),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    config: u64,
    status: u64,
    /// Counter value at `start`, or the counter while it stands.
    counter: u64,
    /// Clock time at which the counter was started (wrapping).
    start: u64,
    timers: [Comparator; HPET_TIMERS],
}

impl State {
    fn enabled(&self) -> bool {
        self.config & ENABLE != 0
    }

    fn count(&self, now: u64) -> u64 {
        if !self.enabled() {
            return self.counter;
        }
        self.counter.wrapping_add(Clock::ticks(now.wrapping_sub(self.start), HPET_HZ))
    }

    fn reschedule(&mut self, now: u64) {
        let counter = self.count(now);
        self.timers.iter_mut().for_each(|t| t.schedule(counter));
    }

    /// The GSI that timer `n` drives: IRQ 0 and 8 in legacy mode, else its route.
    fn gsi(&self, n: usize) -> u32 {
        match (self.config & LEGACY != 0, n) {
            (true, 0) => 0,
            (true, 1) => 8,
            _ => self.timers.get(n).map_or(0, |t| ((t.config & ROUTE) >> ROUTE_SHIFT) as u32),
        }
    }

    /// Matches that have passed, as interrupts to send.
    fn expire(&mut self, now: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        if !self.enabled() {
            return actions;
        }
        let counter = self.count(now);
        for n in 0..HPET_TIMERS {
            let gsi = self.gsi(n);
            let Some(timer) = self.timers.get_mut(n) else { break };
            if !timer.expire(counter) {
                continue;
            }
            let level = timer.config & LEVEL != 0;
            if level {
                self.status |= 1 << n;
            }
            if timer.config & INTERRUPT == 0 {
                continue;
            }
            actions.push(if timer.config & FSB != 0 {
                Action::Message(Msi { address: timer.fsb >> 32, data: timer.fsb as u32 })
            } else if level {
                Action::Raise(gsi)
            } else {
                Action::Pulse(gsi)
            });
        }
        actions
    }

    /// When the next match of a timer that interrupts or shows its status comes.
    fn deadline(&self) -> Option<u64> {
        if !self.enabled() {
            return None;
        }
        let watched = self.timers.iter().filter(|t| t.config & (INTERRUPT | LEVEL) != 0);
        let next = watched.filter_map(|t| t.next).min()?;
        Some(self.start.saturating_add(Clock::nanos(next.saturating_sub(self.counter), HPET_HZ)))
    }

    /// GSIs that level-triggered timers hold up.
    fn raised(&self) -> u32 {
        (0..HPET_TIMERS).fold(0, |set, n| {
            let config = self.timers.get(n).map_or(0, |t| t.config);
            let on = self.status & 1 << n != 0 && config & INTERRUPT != 0 && config & (LEVEL | FSB) == LEVEL;
            if on { set | 1 << self.gsi(n) } else { set }
        })
    }

    fn timer_register(register: u64) -> Option<(usize, u64)> {
        let offset = register.checked_sub(TIMERS)?;
        let n = usize::try_from(offset / TIMER_STRIDE).ok().filter(|n| *n < HPET_TIMERS)?;
        Some((n, offset % TIMER_STRIDE))
    }

    fn read(&self, register: u64, now: u64) -> u64 {
        match register {
            CAPABILITIES => (FEMTOSECONDS / HPET_HZ) << 32 | u64::from(HPET_ID),
            CONFIG => self.config,
            STATUS => self.status,
            COUNTER => self.count(now),
            _ => match Self::timer_register(register).and_then(|(n, r)| Some((self.timers.get(n)?, r))) {
                Some((timer, 0x00)) => timer.config | TIMER_FIXED,
                Some((timer, 0x08)) => timer.value,
                Some((timer, 0x10)) => timer.fsb,
                _ => 0,
            },
        }
    }

    fn write(&mut self, register: u64, value: u64, mask: u64, now: u64) {
        match register {
            CONFIG => {
                let counter = self.count(now);
                self.config = (self.config & !mask | value & mask) & (ENABLE | LEGACY);
                (self.counter, self.start) = (counter, now);
                self.reschedule(now);
            }
            STATUS => self.status &= !(value & mask),
            COUNTER => {
                let counter = self.count(now) & !mask | value & mask;
                (self.counter, self.start) = (counter, now);
                self.reschedule(now);
            }
            _ => {
                let counter = self.count(now);
                let Some((n, register)) = Self::timer_register(register) else { return };
                let Some(timer) = self.timers.get_mut(n) else { return };
                match register {
                    0x00 => {
                        timer.write_config(value, mask);
                        timer.schedule(counter);
                    }
                    0x08 => {
                        timer.write_value(value, mask);
                        timer.schedule(counter);
                    }
                    0x10 => timer.fsb = timer.fsb & !mask | value & mask,
                    _ => {}
                }
            }
        }
    }

    fn valid(&self) -> bool {
        let known = |t: &Comparator| {
            let route = (t.config & ROUTE) >> ROUTE_SHIFT;
            t.config & !TIMER_WRITABLE == 0 && (route == 0 || ROUTES >> route & 1 != 0)
        };
        self.config & !(ENABLE | LEGACY) == 0
            && self.status >> HPET_TIMERS == 0
            && self.timers.iter().all(known)
    }
}

/// Cuts the PIT and the RTC off their interrupts while the HPET replaces them.
struct LegacyGate {
    replaced: Arc<AtomicBool>,
    line: IrqLine,
}

impl IrqSink for LegacyGate {
    fn set_irq(&self, _: u32, level: bool) {
        self.line.set(level && !self.replaced.load(Ordering::Relaxed));
    }
}

/// The event timer block.
pub struct Hpet {
    state: Mutex<State>,
    clock: Clock,
    /// Line of each GSI that a timer can drive.
    lines: Vec<IrqLine>,
    messages: Arc<dyn MsiSink>,
    replaced: Arc<AtomicBool>,
    timer: Timer,
}

impl Hpet {
    /// A block after power-on. `line` makes an input of a GSI; FSB messages go to `messages`.
    pub fn new(timers: &Timers, line: impl Fn(u32) -> IrqLine, messages: Arc<dyn MsiSink>) -> Arc<Self> {
        let gsis = (0..32).filter(|gsi| matches!(gsi, 0 | 8) || ROUTES >> gsi & 1 != 0);
        let lines = gsis.map(line).collect();
        Arc::new_cyclic(|me: &Weak<Self>| {
            let me = me.clone();
            let timer = timers.timer(move || {
                if let Some(hpet) = me.upgrade() {
                    hpet.settle(&mut hpet.lock());
                }
            });
            let clock = timers.clock();
            Self { state: Mutex::default(), clock, lines, messages, replaced: Arc::default(), timer }
        })
    }

    /// Claims the registers.
    pub fn claim(self: &Arc<Self>, bus: &Bus) -> Result<(), ClaimError> {
        bus.claim_memory(HPET_BASE..HPET_BASE + WINDOW, self.clone())
    }

    /// `line`, for a device that must be silent while legacy replacement is on (PIT, RTC).
    pub fn replaceable(&self, line: IrqLine) -> IrqLine {
        let gsi = line.gsi();
        IrqLine::new(Arc::new(LegacyGate { replaced: self.replaced.clone(), line }), gsi)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what is due, sets the lines and arms the timer.
    fn settle(&self, state: &mut State) {
        self.replaced.store(state.config & (ENABLE | LEGACY) == ENABLE | LEGACY, Ordering::Relaxed);
        for action in state.expire(self.clock.now()) {
            match action {
                Action::Message(msi) => self.messages.signal_msi(msi),
                Action::Pulse(gsi) => {
                    if let Some(line) = self.lines.iter().find(|l| l.gsi() == gsi) {
                        line.pulse();
                    }
                }
                Action::Raise(_) => {}
            }
        }
        let raised = state.raised();
        for line in &self.lines {
            line.set(raised >> line.gsi() & 1 != 0);
        }
        match state.deadline() {
            Some(deadline) => self.timer.arm(deadline),
            None => self.timer.disarm(),
        }
    }
}

impl BusDevice for Hpet {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let (state, now) = (self.lock(), self.clock.now());
        read_registers(offset, data, 8, |register| state.read(register, now));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (mut state, now) = (self.lock(), self.clock.now());
        write_registers(offset, data, 8, |register, value, mask| state.write(register, value, mask, now));
        self.settle(&mut state);
    }
}

impl Device for Hpet {
    fn name(&self) -> String {
        "hpet".into()
    }

    fn reset(&self) {
        let mut state = self.lock();
        *state = State::default();
        self.settle(&mut state);
    }

    fn save(&self) -> Result<SavedState, StateError> {
        let mut state = self.lock().clone();
        state.start = state.start.wrapping_sub(self.clock.now());
        SavedState::encode(VERSION, &state)
    }

    fn restore(&self, saved: &SavedState) -> Result<(), StateError> {
        self.reset();
        let mut new: State = saved.decode(VERSION)?;
        if !new.valid() {
            return Err(StateError::Invalid("event timer"));
        }
        // The counter starts again from where it was; the clock here may be younger than it.
        let (now, start) = (self.clock.now(), new.start);
        if new.enabled() {
            new.counter = new.counter.wrapping_add(Clock::ticks(0u64.wrapping_sub(start), HPET_HZ));
        }
        new.start = now;
        let mut state = self.lock();
        *state = new;
        self.settle(&mut state);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::access::testing::{Probe, hammer};
    use super::*;

    fn at(ticks: u64) -> u64 {
        Clock::nanos(ticks, HPET_HZ)
    }

    fn set(state: &mut State, register: u64, value: u64, now: u64) {
        state.write(register, value, u64::MAX, now);
    }

    fn hpet() -> (Arc<Hpet>, Arc<Probe>) {
        let timers = Timers::start(Clock::new()).unwrap();
        let probe = Arc::new(Probe::default());
        let hpet = Hpet::new(&timers, |gsi| IrqLine::new(probe.clone(), gsi), probe.clone());
        // The tests drive the state by hand; no service is needed.
        drop(timers);
        (hpet, probe)
    }

    #[test]
    fn identity() {
        let s = State::default();
        let caps = s.read(CAPABILITIES, 0);
        assert_eq!(caps as u32, 0x8086_a701);
        assert_eq!(caps >> 32, 59_604_644);
        assert_eq!(s.read(TIMERS + 7 * TIMER_STRIDE, 0), 0x00f0_0000_0000_8030);
        assert_eq!(s.read(TIMERS + 8 * TIMER_STRIDE, 0), 0);
    }

    #[test]
    fn the_counter_runs_only_while_enabled() {
        // Whole seconds are whole ticks.
        const SECOND: u64 = 1_000_000_000;
        let mut s = State::default();
        set(&mut s, COUNTER, 1000, 0);
        assert_eq!(s.read(COUNTER, SECOND), 1000);
        set(&mut s, CONFIG, ENABLE, 2 * SECOND);
        assert_eq!(s.read(COUNTER, 3 * SECOND), 1000 + HPET_HZ);
        set(&mut s, CONFIG, 0, 4 * SECOND);
        assert_eq!(s.read(COUNTER, 9 * SECOND), 1000 + 2 * HPET_HZ);
        s.write(COUNTER, 5 << 32, 0xffff_ffff << 32, 9 * SECOND);
        assert_eq!(s.read(COUNTER, 0), 5 << 32 | (1000 + 2 * HPET_HZ));
    }

    #[test]
    fn one_shot_fires_once() {
        let mut s = State::default();
        set(&mut s, CONFIG, ENABLE | LEGACY, 0);
        set(&mut s, TIMERS, INTERRUPT, 0);
        set(&mut s, TIMERS + 8, 1000, 0);
        assert_eq!(s.deadline(), Some(at(1000)));
        assert!(s.expire(at(999)).is_empty());
        assert_eq!(s.expire(at(1000)), [Action::Pulse(0)]);
        assert!(s.expire(at(5000)).is_empty());
        assert_eq!(s.deadline(), None);
    }

    #[test]
    fn a_32_bit_one_shot_comes_round() {
        let mut s = State::default();
        set(&mut s, CONFIG, ENABLE, 0);
        set(&mut s, TIMERS, INTERRUPT | MODE_32 | 20 << ROUTE_SHIFT, at(5000));
        set(&mut s, TIMERS + 8, 1000, at(5000));
        assert_eq!(s.deadline(), Some(at((1 << 32) + 1000)));
        assert_eq!(s.expire(at((1 << 32) + 1000)), [Action::Pulse(20)]);
        assert_eq!(s.deadline(), Some(at((2 << 32) + 1000)));
    }

    #[test]
    fn periodic_keeps_its_rhythm_over_missed_matches() {
        let mut s = State::default();
        set(&mut s, CONFIG, ENABLE | LEGACY, 0);
        set(&mut s, TIMERS, INTERRUPT | PERIODIC | VALUE_SET, 0);
        set(&mut s, TIMERS + 8, 500, 0);
        assert_eq!(s.read(TIMERS, 0) & VALUE_SET, 0);
        set(&mut s, TIMERS + 8, 100, 0);
        assert_eq!(s.read(TIMERS + 8, 0), 500);
        assert_eq!(s.expire(at(500)).len(), 1);
        assert_eq!(s.read(TIMERS + 8, 0), 600);
        assert_eq!(s.expire(at(935)).len(), 1, "four matches, one interrupt");
        assert_eq!(s.deadline(), Some(at(1000)));
    }

    #[test]
    fn levels_hold_until_the_status_is_cleared() {
        let mut s = State::default();
        set(&mut s, CONFIG, ENABLE, 0);
        set(&mut s, TIMERS + 0x40, INTERRUPT | LEVEL | 21 << ROUTE_SHIFT, 0);
        set(&mut s, TIMERS + 0x48, 10, 0);
        assert_eq!(s.expire(at(10)), [Action::Raise(21)]);
        assert_eq!((s.read(STATUS, 0), s.raised()), (4, 1 << 21));
        set(&mut s, STATUS, 4, 0);
        assert_eq!((s.read(STATUS, 0), s.raised()), (0, 0));
    }

    #[test]
    fn fsb_messages_and_routes_that_do_not_exist() {
        let mut s = State::default();
        set(&mut s, CONFIG, ENABLE, 0);
        set(&mut s, TIMERS + 0x20, INTERRUPT | FSB, 0);
        set(&mut s, TIMERS + 0x30, 0xfee0_1000_0000_0041, 0);
        set(&mut s, TIMERS + 0x28, 10, 0);
        assert_eq!(s.expire(at(10)), [Action::Message(Msi { address: 0xfee0_1000, data: 0x41 })]);
        set(&mut s, TIMERS + 0x20, 22 << ROUTE_SHIFT, 0);
        set(&mut s, TIMERS + 0x20, 5 << ROUTE_SHIFT, 0);
        assert_eq!((s.read(TIMERS + 0x20, 0) & ROUTE) >> ROUTE_SHIFT, 22);
    }

    #[test]
    fn legacy_replacement_silences_the_devices_it_replaces() {
        let (hpet, probe) = hpet();
        let line = hpet.replaceable(IrqLine::new(probe.clone(), 0));
        probe.take_irqs();
        line.pulse();
        assert_eq!(probe.take_irqs(), [(0, true), (0, false)]);
        hpet.write(CONFIG, &[3]);
        probe.take_irqs();
        line.pulse();
        assert!(probe.take_irqs().iter().all(|(_, level)| !level));
    }

    #[test]
    fn a_timer_interrupts_in_real_time() {
        let timers = Timers::start(Clock::new()).unwrap();
        let probe = Arc::new(Probe::default());
        let hpet = Hpet::new(&timers, |gsi| IrqLine::new(probe.clone(), gsi), probe.clone());
        hpet.write(CONFIG, &ENABLE.to_le_bytes());
        hpet.write(TIMERS, &(INTERRUPT | FSB | PERIODIC | VALUE_SET).to_le_bytes());
        hpet.write(TIMERS + 8, &10_000u64.to_le_bytes());
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while probe.msis.lock().unwrap().len() < 10 && std::time::Instant::now() < end {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(probe.take_msis().len() >= 10);
    }

    #[test]
    fn state_survives_and_hostile_accesses_do_no_harm() {
        let (hpet, _) = hpet();
        hpet.write(TIMERS + 0x20, &(INTERRUPT | LEVEL | 23 << ROUTE_SHIFT).to_le_bytes());
        hpet.write(COUNTER, &77u64.to_le_bytes());
        let strip = |s: SavedState| State { start: 0, ..s.decode(VERSION).unwrap() };
        let saved = hpet.save().unwrap();
        hpet.reset();
        hpet.restore(&saved).unwrap();
        assert_eq!(strip(hpet.save().unwrap()), strip(saved));
        hammer(&*hpet, &*hpet, WINDOW);
    }
}
