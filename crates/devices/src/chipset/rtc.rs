//! The MC146818A clock and CMOS memory (Motorola datasheet) at ports 70/71, with a second bank of
//! 128 bytes at 72/73.
//!
//! The time of day is the host's at start, carried on by the VM's clock, plus what the guest set.
//! Flags are worked out when somebody looks; a timer runs only for interrupts that are enabled.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use bus::{Bus, ClaimError, Clock, Device, IrqLine, SavedState, StateError, Timer, Timers};
use serde::{Deserialize, Serialize};

use super::access::{BytePorts, claim_ports};

const VERSION: u32 = 1;
const SECOND: i64 = 1_000_000_000;
const DAY: i64 = 86_400;
/// Update in progress rises this long before the time changes: 244 µs of warning, 1984 µs of
/// update.
const UPDATE_NS: i64 = 2_228_000;
const BANK: usize = 128;

// Registers.
const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const WEEKDAY: u8 = 0x06;
const MONTHDAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
/// Where the FADT says that the century is.
const CENTURY: u8 = 0x32;

// Register A.
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
const DIVIDER: u8 = 0x70;
const DIVIDER_32KHZ: u8 = 0x20;
const DIVIDER_RESET: u8 = 0x60;
const RATE: u8 = 0x0f;

// Registers B (enables) and C (flags): the same bits.
const PERIODIC: u8 = 1 << 6;
const ALARM: u8 = 1 << 5;
const UPDATE: u8 = 1 << 4;
const EVENTS: u8 = PERIODIC | ALARM | UPDATE;
const SET: u8 = 1 << 7;
const BINARY: u8 = 1 << 2;
const HOUR_24: u8 = 1 << 1;
const INTERRUPT: u8 = 1 << 7;

/// Register D: memory and time are valid.
const VALID: u8 = 1 << 7;
/// Hours register in 12-hour mode.
const PM: u8 = 1 << 7;
/// An alarm byte from here on matches everything.
const ANY: u8 = 0xc0;

/// What the machine tells the clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct RtcConfig {
    /// RAM below 4 GiB, in bytes, for CMOS 34/35.
    pub low_memory: u64,
    /// RAM above 4 GiB, in bytes, for CMOS 5B–5D.
    pub high_memory: u64,
    /// Seconds that the clock is ahead of UTC: 0, or the host's zone for local time.
    pub utc_offset: i64,
}

/// A moment in the proleptic Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Date {
    year: i64,
    month: i64,
    day: i64,
    /// 0 = Sunday.
    weekday: i64,
    second: i64,
}

impl Date {
    /// The date of a count of seconds since 1970. Years are counted from March, so that the leap
    /// day is the last of its year, in eras of 400 years.
    fn from_seconds(seconds: i64) -> Self {
        let days = seconds.div_euclid(DAY);
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * day_of_year + 2) / 153;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        Self {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month,
            day: day_of_year - (153 * from_march + 2) / 5 + 1,
            weekday: (days + 4).rem_euclid(7),
            second: seconds.rem_euclid(DAY),
        }
    }

    /// Seconds since 1970. Fields out of range (the guest's) carry over.
    fn seconds(&self) -> i64 {
        let month = self.month - 1;
        let year = self.year + month.div_euclid(12) - i64::from(month.rem_euclid(12) < 2);
        let from_march = (month.rem_euclid(12) + 10) % 12;
        let day_of_year = (153 * from_march + 2) / 5 + self.day - 1;
        let year_of_era = year.rem_euclid(400);
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        (year.div_euclid(400) * 146_097 + day_of_era - 719_468) * DAY + self.second
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    index: u8,
    extended_index: u8,
    memory: Vec<u8>,
    extended: Vec<u8>,
    status_a: u8,
    status_b: u8,
    status_c: u8,
    /// What the guest set, in ns relative to the host's time at start carried on.
    adjusted: i64,
    /// Time registers while they stand still (seconds to year, century); see [`State::halted`].
    frozen: [u8; 8],
    /// Fraction of the second to go on with, in ns.
    frozen_fraction: i64,
    /// Up to when events have been looked for (clock, relative when saved).
    seen: u64,
}

/// The time registers, in the order of [`State::frozen`].
const TIME_REGISTERS: [u8; 8] = [SECONDS, MINUTES, HOURS, WEEKDAY, MONTHDAY, MONTH, YEAR, CENTURY];

fn time_index(register: u8) -> Option<usize> {
    TIME_REGISTERS.iter().position(|r| *r == register)
}

impl State {
    fn new(config: &RtcConfig) -> Self {
        let mut memory = vec![0; BANK];
        // 64 KiB units above 16 MiB and above 4 GiB.
        let low = (config.low_memory.saturating_sub(16 << 20) >> 16).min(0xffff) as u16;
        let high = (config.high_memory >> 16).min(0xff_ffff) as u32;
        let ([low_0, low_1], [high_0, high_1, high_2, _]) = (low.to_le_bytes(), high.to_le_bytes());
        let sizes = [(0x34, low_0), (0x35, low_1), (0x5b, high_0), (0x5c, high_1), (0x5d, high_2)];
        for (register, value) in sizes {
            if let Some(byte) = memory.get_mut(register) {
                *byte = value;
            }
        }
        Self {
            index: 0,
            extended_index: 0,
            memory,
            extended: vec![0; BANK],
            // 32768 Hz crystal, 1024 Hz periodic rate: what firmware sets up.
            status_a: DIVIDER_32KHZ | 6,
            status_b: HOUR_24,
            status_c: 0,
            adjusted: 0,
            frozen: [0; 8],
            frozen_fraction: 0,
            seen: 0,
        }
    }

    /// The time stands: the guest sets it, or holds the divider.
    fn halted(&self) -> bool {
        self.status_b & SET != 0 || self.status_a & DIVIDER != DIVIDER_32KHZ
    }

    fn encode(&self, value: i64) -> u8 {
        if self.status_b & BINARY != 0 { value as u8 } else { ((value / 10) << 4 | (value % 10)) as u8 }
    }

    fn decode(&self, value: u8) -> i64 {
        if self.status_b & BINARY != 0 {
            i64::from(value)
        } else {
            i64::from(value >> 4) * 10 + i64::from(value & 15)
        }
    }

    fn encode_hour(&self, hour: i64) -> u8 {
        if self.status_b & HOUR_24 != 0 {
            return self.encode(hour);
        }
        self.encode((hour + 11) % 12 + 1) | if hour >= 12 { PM } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> i64 {
        if self.status_b & HOUR_24 != 0 {
            return self.decode(value);
        }
        self.decode(value & !PM) % 12 + if value & PM != 0 { 12 } else { 0 }
    }

    fn encode_date(&self, date: &Date) -> [u8; 8] {
        let second = date.second;
        [
            self.encode(second % 60),
            self.encode(second / 60 % 60),
            self.encode_hour(second / 3600),
            self.encode(date.weekday + 1),
            self.encode(date.day),
            self.encode(date.month),
            self.encode(date.year.rem_euclid(100)),
            self.encode(date.year.div_euclid(100).rem_euclid(100)),
        ]
    }

    fn decode_date(&self, [second, minute, hour, _, day, month, year, century]: [u8; 8]) -> Date {
        let second = self.decode(second) + 60 * self.decode(minute) + 3600 * self.decode_hour(hour);
        let year = self.decode(century) * 100 + self.decode(year);
        Date { year, month: self.decode(month), day: self.decode(day), weekday: 0, second }
    }

    /// The time of day in ns since 1970 at `host` (the host's, carried on).
    fn time(&self, host: i64) -> i64 {
        host.wrapping_add(self.adjusted)
    }

    fn freeze(&mut self, host: i64) {
        let time = self.time(host);
        self.frozen = self.encode_date(&Date::from_seconds(time.div_euclid(SECOND)));
        self.frozen_fraction = time.rem_euclid(SECOND);
    }

    fn thaw(&mut self, host: i64) {
        let time = self.decode_date(self.frozen).seconds().saturating_mul(SECOND);
        self.adjusted = time.saturating_add(self.frozen_fraction).wrapping_sub(host);
    }

    /// Changes register A or B, and stops or starts the time if that is what it means.
    fn set_control(&mut self, register: u8, value: u8, host: i64) {
        let before = self.halted();
        if register == STATUS_A {
            self.status_a = value & !UPDATE_IN_PROGRESS;
            if !before && self.halted() {
                self.freeze(host);
            }
            if value & DIVIDER_RESET == DIVIDER_RESET {
                // The first update comes half a second after the divider is let go.
                self.frozen_fraction = SECOND / 2;
            }
        } else if !before && value & SET != 0 {
            // The registers stand still in the format that they had; the guest now writes all.
            self.freeze(host);
            self.status_b = value;
        } else {
            // A change of format while the time stands converts nothing, as on the real part.
            self.status_b = value;
        }
        if self.status_b & SET != 0 {
            self.status_b &= !UPDATE;
        }
        if before && !self.halted() {
            self.thaw(host);
        }
    }

    fn read_register(&self, register: u8, host: i64) -> u8 {
        if let Some(i) = time_index(register) {
            let date = Date::from_seconds(self.time(host).div_euclid(SECOND));
            let fields = if self.halted() { self.frozen } else { self.encode_date(&date) };
            return fields.get(i).copied().unwrap_or(0);
        }
        match register {
            STATUS_A => {
                let updating = self.time(host).rem_euclid(SECOND) >= SECOND - UPDATE_NS;
                self.status_a | if !self.halted() && updating { UPDATE_IN_PROGRESS } else { 0 }
            }
            STATUS_B => self.status_b,
            STATUS_C => self.status_c,
            STATUS_D => VALID,
            _ => self.memory.get(usize::from(register)).copied().unwrap_or(0xff),
        }
    }

    fn write_register(&mut self, register: u8, value: u8, host: i64) {
        if let Some(i) = time_index(register) {
            let running = !self.halted();
            if running {
                self.freeze(host);
            }
            if let Some(field) = self.frozen.get_mut(i) {
                *field = value;
            }
            if running {
                self.thaw(host);
            }
            return;
        }
        match register {
            STATUS_A | STATUS_B => self.set_control(register, value, host),
            STATUS_C | STATUS_D => {}
            _ => {
                if let Some(byte) = self.memory.get_mut(usize::from(register)) {
                    *byte = value;
                }
            }
        }
    }

    /// Frequency of the periodic event.
    fn rate(&self) -> Option<u64> {
        match self.status_a & RATE {
            _ if self.status_a & DIVIDER != DIVIDER_32KHZ => None,
            0 => None,
            // The first two rates are those of a slower crystal.
            rate @ 1..3 => Some(512 >> rate),
            rate => Some(32_768 >> (rate - 1)),
        }
    }

    /// Whether an alarm byte matches.
    fn matches(&self, register: u8, value: i64) -> bool {
        let alarm = self.memory.get(usize::from(register)).copied().unwrap_or(0);
        let field = if register == HOURS_ALARM { self.decode_hour(alarm) } else { self.decode(alarm) };
        alarm >= ANY && (register != HOURS_ALARM || self.status_b & HOUR_24 != 0 || alarm >= 0xe0)
            || field == value
    }

    /// The first second after `time` (seconds since 1970) at which the alarm matches, within a
    /// day; whole hours and minutes that can't match are skipped.
    fn next_alarm(&self, time: i64) -> Option<i64> {
        let mut at = time + 1;
        let end = time + DAY;
        while at <= end {
            let second = at.rem_euclid(DAY);
            if !self.matches(HOURS_ALARM, second / 3600) {
                at += 3600 - second % 3600;
            } else if !self.matches(MINUTES_ALARM, second / 60 % 60) {
                at += 60 - second % 60;
            } else if !self.matches(SECONDS_ALARM, second % 60) {
                at += 1;
            } else {
                return Some(at);
            }
        }
        None
    }

    /// Sets the flags of what happened since the last call. `origin` is the host's time at clock
    /// 0.
    fn catch_up(&mut self, now: u64, origin: i64) {
        let seen = std::mem::replace(&mut self.seen, now);
        if now <= seen {
            return;
        }
        if let Some(rate) = self.rate()
            && Clock::ticks(now, rate) != Clock::ticks(seen, rate)
        {
            self.status_c |= PERIODIC;
        }
        if !self.halted() {
            let second = |clock: u64| self.time(origin.wrapping_add(clock as i64)).div_euclid(SECOND);
            let (before, after) = (second(seen), second(now));
            if after > before {
                self.status_c |= UPDATE;
                if self.next_alarm(before).is_some_and(|at| at <= after) {
                    self.status_c |= ALARM;
                }
            }
        }
        self.raise();
    }

    /// Sets the summary flag.
    fn raise(&mut self) {
        if self.status_b & self.status_c & EVENTS != 0 {
            self.status_c |= INTERRUPT;
        } else {
            self.status_c &= !INTERRUPT;
        }
    }

    /// When the next enabled event comes.
    fn deadline(&self, now: u64, origin: i64) -> Option<u64> {
        if self.status_c & INTERRUPT != 0 {
            // The line is up; the next event can only be seen after register C was read.
            return None;
        }
        let mut next = None;
        let mut sooner = |at: u64| next = Some(next.map_or(at, |n: u64| n.min(at)));
        if let Some(rate) = self.rate().filter(|_| self.status_b & PERIODIC != 0) {
            sooner(Clock::nanos(Clock::ticks(now, rate) + 1, rate));
        }
        if !self.halted() && self.status_b & (UPDATE | ALARM) != 0 {
            let time = self.time(origin.wrapping_add(now as i64));
            let second = time.div_euclid(SECOND);
            let target = if self.status_b & UPDATE != 0 { Some(second + 1) } else { self.next_alarm(second) };
            if let Some(target) = target {
                let wait = target.saturating_mul(SECOND).saturating_sub(time).max(0);
                sooner(now.saturating_add(wait as u64));
            }
        }
        next
    }

    fn read(&mut self, port: u16, host: i64) -> u8 {
        match port {
            0x70 => self.index,
            0x71 => {
                let register = self.index & 0x7f;
                let value = self.read_register(register, host);
                if register == STATUS_C {
                    self.status_c = 0;
                }
                value
            }
            0x72 => self.extended_index,
            _ => self.extended.get(usize::from(self.extended_index & 0x7f)).copied().unwrap_or(0xff),
        }
    }

    fn write(&mut self, port: u16, value: u8, host: i64) {
        match port {
            0x70 => self.index = value,
            0x71 => {
                self.write_register(self.index & 0x7f, value, host);
                self.raise();
            }
            0x72 => self.extended_index = value,
            _ => {
                if let Some(byte) = self.extended.get_mut(usize::from(self.extended_index & 0x7f)) {
                    *byte = value;
                }
            }
        }
    }

    fn valid(&self) -> bool {
        self.memory.len() == BANK
            && self.extended.len() == BANK
            && self.status_a & UPDATE_IN_PROGRESS == 0
            && self.status_c & !(EVENTS | INTERRUPT) == 0
            && (0..SECOND).contains(&self.frozen_fraction)
    }
}

/// The clock.
pub struct Rtc {
    state: Mutex<State>,
    clock: Clock,
    /// The host's time (with the zone) at clock 0, in ns since 1970.
    origin: i64,
    irq: IrqLine,
    timer: Timer,
}

impl Rtc {
    /// A clock set to the host's time; `irq` is IRQ 8.
    pub fn new(timers: &Timers, irq: IrqLine, config: &RtcConfig) -> Arc<Self> {
        let clock = timers.clock();
        let host = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
        let zone = config.utc_offset.saturating_mul(SECOND);
        let origin = host.saturating_add(zone).saturating_sub(clock.now() as i64);
        Arc::new_cyclic(|me: &Weak<Self>| {
            let me = me.clone();
            let timer = timers.timer(move || {
                if let Some(rtc) = me.upgrade() {
                    rtc.settle(&mut rtc.lock());
                }
            });
            Self { state: Mutex::new(State::new(config)), clock, origin, irq, timer }
        })
    }

    /// Claims the ports.
    pub fn claim(self: &Arc<Self>, bus: &Bus) -> Result<(), ClaimError> {
        claim_ports(bus, 0x70..0x74, self)
    }

    /// Reads CMOS memory of the first bank (not the clock's registers).
    pub fn cmos(&self, register: u8) -> u8 {
        self.lock().memory.get(usize::from(register)).copied().unwrap_or(0xff)
    }

    /// Writes CMOS memory of the first bank (not the clock's registers), for what firmware wants
    /// to find there.
    pub fn set_cmos(&self, register: u8, value: u8) {
        if let Some(byte) = self.lock().memory.get_mut(usize::from(register)) {
            *byte = value;
        }
    }

    /// The time that the guest reads, in seconds since 1970.
    pub fn seconds(&self) -> i64 {
        let state = self.lock();
        if state.halted() {
            return state.decode_date(state.frozen).seconds();
        }
        state.time(self.origin.wrapping_add(self.clock.now() as i64)).div_euclid(SECOND)
    }

    /// Sets the time that the guest reads.
    pub fn set_seconds(&self, seconds: i64) {
        let mut state = self.lock();
        let now = self.clock.now();
        state.catch_up(now, self.origin);
        if state.halted() {
            state.frozen = state.encode_date(&Date::from_seconds(seconds));
        } else {
            let host = self.origin.wrapping_add(now as i64);
            state.adjusted = seconds.saturating_mul(SECOND).wrapping_sub(host);
        }
        self.drive(&state, now);
    }

    /// Reads a register of the first bank as the guest would, but changes nothing.
    pub fn register(&self, register: u8) -> u8 {
        let state = self.lock();
        state.read_register(register & 0x7f, self.origin.wrapping_add(self.clock.now() as i64))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings flags, line and timer up to date; the moment.
    fn settle(&self, state: &mut State) {
        let now = self.clock.now();
        state.catch_up(now, self.origin);
        self.drive(state, now);
    }

    fn drive(&self, state: &State, now: u64) {
        self.irq.set(state.status_c & INTERRUPT != 0);
        match state.deadline(now, self.origin) {
            Some(deadline) => self.timer.arm(deadline),
            None => self.timer.disarm(),
        }
    }

    /// An access: events up to now come first.
    fn access<T>(&self, port: u16, act: impl FnOnce(&mut State, i64) -> T) -> T {
        let mut state = self.lock();
        let now = self.clock.now();
        state.catch_up(now, self.origin);
        let result = act(&mut state, self.origin.wrapping_add(now as i64));
        if port == 0x71 {
            self.drive(&state, now);
        }
        result
    }
}

impl BytePorts for Rtc {
    fn read_port(&self, port: u16) -> u8 {
        self.access(port, |state, host| state.read(port, host))
    }

    fn write_port(&self, port: u16, value: u8) {
        self.access(port, |state, host| state.write(port, value, host));
    }
}

impl Device for Rtc {
    fn name(&self) -> String {
        "rtc".into()
    }

    /// Time, alarm and memory are on the battery; only indices, enables and flags are reset.
    fn reset(&self) {
        let mut state = self.lock();
        if state.halted() {
            let host = self.origin.wrapping_add(self.clock.now() as i64);
            state.thaw(host);
        }
        (state.index, state.extended_index, state.status_c) = (0, 0, 0);
        state.status_a = DIVIDER_32KHZ | 6;
        state.status_b = state.status_b & BINARY | HOUR_24;
        self.settle(&mut state);
    }

    fn save(&self) -> Result<SavedState, StateError> {
        let mut state = self.lock();
        state.catch_up(self.clock.now(), self.origin);
        SavedState::encode(VERSION, &State { seen: 0, ..state.clone() })
    }

    /// The clock shows the host's present time, plus what the guest had set it apart.
    fn restore(&self, saved: &SavedState) -> Result<(), StateError> {
        self.reset();
        let mut new: State = saved.decode(VERSION)?;
        if !new.valid() {
            return Err(StateError::Invalid("clock"));
        }
        new.seen = self.clock.now();
        let mut state = self.lock();
        *state = new;
        self.settle(&mut state);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::access::testing::{Probe, as_range, hammer};
    use super::*;

    /// 2024-02-29 23:59:58 UTC, a Thursday.
    const LEAP: i64 = 1_709_251_198;

    fn state() -> State {
        State::new(&RtcConfig::default())
    }

    fn get(s: &mut State, register: u8, host: i64) -> u8 {
        s.write(0x70, register, host);
        s.read(0x71, host)
    }

    fn put(s: &mut State, register: u8, value: u8, host: i64) {
        s.write(0x70, register, host);
        s.write(0x71, value, host);
    }

    fn all(s: &mut State, host: i64) -> [u8; 8] {
        TIME_REGISTERS.map(|r| get(s, r, host))
    }

    #[test]
    fn dates_convert_both_ways() {
        for seconds in [0, LEAP, LEAP + 2, 951_782_400, 4_102_444_799, -1, 253_402_300_799] {
            assert_eq!(Date::from_seconds(seconds).seconds(), seconds);
        }
        let mut at = -3_000_000_000;
        while at < 20_000_000_000 {
            assert_eq!(Date::from_seconds(at).seconds(), at);
            at += 12_345_677;
        }
        let date = Date::from_seconds(LEAP);
        assert_eq!((date.year, date.month, date.day, date.weekday), (2024, 2, 29, 4));
    }

    #[test]
    fn time_reads_in_every_format() {
        let mut s = state();
        let host = LEAP * SECOND;
        assert_eq!(all(&mut s, host), [0x58, 0x59, 0x23, 5, 0x29, 2, 0x24, 0x20]);
        assert_eq!(all(&mut s, host + 2 * SECOND), [0, 0, 0, 6, 1, 3, 0x24, 0x20]);
        put(&mut s, STATUS_B, BINARY, host);
        assert_eq!(all(&mut s, host), [58, 59, 0x0b | PM, 5, 29, 2, 24, 20]);
        assert_eq!(get(&mut s, HOURS, host + 2 * SECOND), 12);
        assert_eq!(get(&mut s, STATUS_D, host), 0x80);
    }

    #[test]
    fn setting_the_time_stops_it_and_goes_on_from_there() {
        let mut s = state();
        let host = LEAP * SECOND;
        put(&mut s, STATUS_B, SET | HOUR_24, host);
        for (r, v) in TIME_REGISTERS.into_iter().zip([0x30, 0x15, 0x08, 1, 0x31, 0x12, 0x99, 0x19]) {
            put(&mut s, r, v, host + 5 * SECOND);
        }
        assert_eq!(get(&mut s, SECONDS, host + 100 * SECOND), 0x30);
        put(&mut s, STATUS_B, HOUR_24, host + 100 * SECOND);
        let later = host + 161 * SECOND;
        assert_eq!(all(&mut s, later), [0x31, 0x16, 0x08, 6, 0x31, 0x12, 0x99, 0x19]);
    }

    #[test]
    fn update_in_progress_comes_before_the_change() {
        let mut s = state();
        let host = LEAP * SECOND;
        assert_eq!(get(&mut s, STATUS_A, host), 0x26);
        assert_eq!(get(&mut s, STATUS_A, host + SECOND - 1000), 0xa6);
        assert_eq!(get(&mut s, STATUS_A, host + SECOND), 0x26);
    }

    #[test]
    fn register_c_collects_and_clears() {
        let mut s = state();
        let origin = LEAP * SECOND;
        s.catch_up(2 * SECOND as u64, origin);
        assert_eq!(get(&mut s, STATUS_C, origin), PERIODIC | UPDATE | ALARM, "alarm bytes 0 match midnight");
        assert_eq!(get(&mut s, STATUS_C, origin), 0);
        put(&mut s, STATUS_B, HOUR_24 | UPDATE, origin);
        assert_eq!(s.deadline(2 * SECOND as u64, origin), Some(3 * SECOND as u64));
        s.catch_up(3 * SECOND as u64, origin);
        assert_eq!(get(&mut s, STATUS_C, origin), INTERRUPT | PERIODIC | UPDATE);
    }

    #[test]
    fn alarms_match_with_wildcards() {
        let mut s = state();
        for (register, value) in [(SECONDS_ALARM, 0x30), (MINUTES_ALARM, 0xff), (HOURS_ALARM, 0xff)] {
            put(&mut s, register, value, 0);
        }
        assert_eq!(s.next_alarm(LEAP), Some(LEAP + 32));
        put(&mut s, HOURS_ALARM, 0x23, 0);
        put(&mut s, MINUTES_ALARM, 0x59, 0);
        assert_eq!(s.next_alarm(LEAP), Some(LEAP - 28 + DAY));
        put(&mut s, MINUTES_ALARM, 0x77, 0);
        assert_eq!(s.next_alarm(LEAP), None);
    }

    #[test]
    fn periodic_rates() {
        let mut s = state();
        assert_eq!(s.rate(), Some(1024));
        for (rate, hz) in [(1, 256), (2, 128), (3, 8192), (15, 2)] {
            put(&mut s, STATUS_A, DIVIDER_32KHZ | rate, 0);
            assert_eq!(s.rate(), Some(hz));
        }
        put(&mut s, STATUS_A, DIVIDER_RESET, 0);
        assert_eq!(s.rate(), None);
    }

    #[test]
    fn memory_sizes_and_the_second_bank() {
        let config = RtcConfig { low_memory: 3 << 30, high_memory: 5 << 30, utc_offset: 0 };
        let mut s = State::new(&config);
        let mut read = |r| get(&mut s, r, 0);
        assert_eq!((read(0x34), read(0x35)), (0x00, 0xbf));
        assert_eq!((read(0x5b), read(0x5c), read(0x5d)), (0x00, 0x40, 0x01));
        s.write(0x72, 0x34, 0);
        s.write(0x73, 0x99, 0);
        assert_eq!((s.read(0x73, 0), get(&mut s, 0x34, 0)), (0x99, 0));
    }

    #[test]
    fn the_time_can_be_set_from_outside() {
        let timers = Timers::start(Clock::new()).unwrap();
        let rtc = Rtc::new(&timers, IrqLine::new(Arc::new(Probe::default()), 8), &RtcConfig::default());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        assert!((rtc.seconds() - now).abs() <= 1);
        rtc.set_seconds(LEAP);
        assert!((0..60).contains(&(rtc.seconds() - LEAP)));
        assert_eq!((rtc.register(YEAR), rtc.register(STATUS_D)), (0x24, VALID));
        rtc.write_port(0x70, STATUS_B);
        rtc.write_port(0x71, HOUR_24 | SET);
        rtc.set_seconds(LEAP - DAY);
        assert_eq!((rtc.seconds(), rtc.register(MONTHDAY)), (LEAP - DAY, 0x28));
        rtc.write_port(0x71, HOUR_24);
        assert!((0..60).contains(&(rtc.seconds() - LEAP + DAY)));
    }

    #[test]
    fn interrupts_come_in_real_time_and_state_survives() {
        let timers = Timers::start(Clock::new()).unwrap();
        let probe = Arc::new(Probe::default());
        let config = RtcConfig { low_memory: 1 << 30, ..RtcConfig::default() };
        let rtc = Rtc::new(&timers, IrqLine::new(probe.clone(), 8), &config);
        let put = |register, value| {
            rtc.write_port(0x70, register);
            rtc.write_port(0x71, value);
        };
        put(STATUS_B, HOUR_24 | PERIODIC);
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let mut count = 0;
        while count < 5 && std::time::Instant::now() < end {
            if probe.take_irqs().contains(&(8, true)) {
                count += 1;
                rtc.write_port(0x70, STATUS_C);
                assert_ne!(rtc.read_port(0x71) & (INTERRUPT | PERIODIC), 0);
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(count, 5);
        put(STATUS_B, HOUR_24 | SET);
        put(0x50, 0x77);
        let strip = |s: SavedState| State { status_c: 0, ..s.decode(VERSION).unwrap() };
        let saved = rtc.save().unwrap();
        rtc.reset();
        rtc.restore(&saved).unwrap();
        assert_eq!(strip(rtc.save().unwrap()), strip(saved));
        assert_eq!(rtc.cmos(0x50), 0x77);
        hammer(&*rtc, &as_range(0x70, &rtc), 4);
    }
}
