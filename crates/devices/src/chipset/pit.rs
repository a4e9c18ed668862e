//! The 8254 timer (Intel 8254 datasheet) at ports 40–43, and port 61 with its gate and speaker.
//!
//! Counters are functions of the clock, so they neither drift nor cost anything while nobody
//! looks. Only channel 0 has a timer behind it, at the rising edges of its output.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::{Bus, ClaimError, Clock, Device, IrqLine, SavedState, StateError, Timer, Timers};
use serde::{Deserialize, Serialize};

use super::access::{BytePorts, claim_ports};

/// Input clock of all three channels.
pub const PIT_HZ: u64 = 1_193_182;

const VERSION: u32 = 1;
/// Ticks of channel 0 that came late are made up for, up to this many; what is older is gone.
const MAX_BACKLOG: u64 = 1000;
/// Period of the refresh request that port 61 bit 4 shows (18 input clocks).
const REFRESH_NS: u64 = 15_085;

// Port 61.
const GATE2: u8 = 1 << 0;
const PORT61_WRITABLE: u8 = 0x0f;
const REFRESH: u8 = 1 << 4;
const OUT2: u8 = 1 << 5;

/// Which byte of a 16-bit count comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Access {
    Low,
    High,
    Both,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Channel {
    mode: u8,
    bcd: bool,
    access: Access,
    /// Next access of a low/high pair is the high byte.
    write_high: bool,
    read_high: bool,
    low_byte: u8,
    /// No count has been written since the control word.
    null_count: bool,
    /// 1 to 65536 (or 10000 in BCD).
    reload: u32,
    /// Time at which counting began (wrapping); `None` before a trigger or count.
    start: Option<u64>,
    /// Ticks that had passed when the gate stopped the counter.
    stopped: Option<u64>,
    gate: bool,
    count_latch: Option<u16>,
    status_latch: Option<u8>,
}

fn from_bcd(value: u16) -> u32 {
    (0..4).rev().fold(0, |sum, digit| sum * 10 + u32::from(value >> (digit * 4) & 0xf))
}

fn to_bcd(value: u32) -> u16 {
    (0..4).fold((0, value), |(bcd, rest), digit| (bcd | ((rest % 10) as u16) << (digit * 4), rest / 10)).0
}

/// Mode 3 counts each half of the wave down by twos; an odd count makes the high half one longer.
fn square_count(reload: u64, elapsed: u64) -> u64 {
    let (phase, high) = (elapsed % reload, reload.div_ceil(2));
    let step = if phase < high { phase } else { phase - high };
    (reload & !1).saturating_sub(2 * step).max(reload & 1 ^ 1)
}

impl Channel {
    fn new(gate: bool) -> Self {
        Self {
            mode: 3,
            bcd: false,
            access: Access::Both,
            write_high: false,
            read_high: false,
            low_byte: 0,
            null_count: true,
            reload: 0x1_0000,
            start: None,
            stopped: None,
            gate,
            count_latch: None,
            status_latch: None,
        }
    }

    fn modulus(&self) -> u64 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    fn periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// Ticks since counting began, `None` while it has not.
    fn elapsed(&self, now: u64) -> Option<u64> {
        let start = self.start?;
        Some(self.stopped.unwrap_or_else(|| Clock::ticks(now.wrapping_sub(start), PIT_HZ)))
    }

    fn begin(&mut self, now: u64) {
        self.start = Some(now);
        // Modes 1 and 5 use the gate as trigger only.
        self.stopped = if self.gate || matches!(self.mode, 1 | 5) { None } else { Some(0) };
    }

    /// The counting element.
    fn count(&self, now: u64) -> u16 {
        let reload = u64::from(self.reload);
        let value = match (self.elapsed(now), self.mode) {
            (None, _) => reload,
            (Some(t), 2) => reload - t % reload,
            (Some(t), 3) => square_count(reload, t),
            (Some(t), _) => (reload + self.modulus() - t % self.modulus()) % self.modulus(),
        };
        let value = (value % self.modulus()) as u32;
        if self.bcd { to_bcd(value) } else { value as u16 }
    }

    /// The OUT pin.
    fn output(&self, now: u64) -> bool {
        let reload = u64::from(self.reload);
        let Some(t) = self.elapsed(now) else { return self.mode != 0 };
        match self.mode {
            0 | 1 => t >= reload,
            2 => self.stopped.is_some() || t % reload != reload - 1,
            3 => self.stopped.is_some() || t % reload < reload.div_ceil(2),
            _ => t != reload,
        }
    }

    /// How many rising edges OUT has had since counting began.
    fn edges(&self, now: u64) -> u64 {
        let reload = u64::from(self.reload);
        match (self.elapsed(now), self.mode) {
            (None, _) => 0,
            (Some(t), 2 | 3) => t / reload,
            (Some(t), 0 | 1) => u64::from(t >= reload),
            (Some(t), _) => u64::from(t > reload),
        }
    }

    /// When edge number `edge` (from 1) comes.
    fn edge_time(&self, edge: u64) -> Option<u64> {
        let start = self.start.filter(|_| self.stopped.is_none())?;
        let reload = u64::from(self.reload);
        let ticks = match self.mode {
            2 | 3 => reload.checked_mul(edge)?,
            _ if edge > 1 => return None,
            0 | 1 => reload,
            _ => reload + 1,
        };
        Some(start.wrapping_add(Clock::nanos(ticks, PIT_HZ)))
    }

    fn control(&mut self, word: u8) {
        self.access = match word >> 4 & 3 {
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        // Modes 6 and 7 are 2 and 3.
        self.mode = match word >> 1 & 7 {
            mode @ 0..6 => mode,
            mode => mode - 4,
        };
        self.bcd = word & 1 != 0;
        self.write_high = false;
        self.read_high = false;
        self.null_count = true;
        self.reload = self.modulus() as u32;
        self.start = None;
        self.stopped = None;
        self.count_latch = None;
        self.status_latch = None;
    }

    fn load(&mut self, count: u16, now: u64) {
        let count = if self.bcd { from_bcd(count) } else { u32::from(count) };
        // 0 is the largest count; digits above 9 can make a BCD one larger still.
        let largest = self.modulus() as u32;
        let count = if count == 0 { largest } else { count.min(largest) };
        // A count of 1 is not allowed in modes 2 and 3.
        self.reload = if self.periodic() { count.max(2) } else { count };
        self.null_count = false;
        if !matches!(self.mode, 1 | 5) {
            self.begin(now);
        }
    }

    fn write(&mut self, value: u8, now: u64) {
        match (self.access, self.write_high) {
            (Access::Low, _) => self.load(u16::from(value), now),
            (Access::High, _) => self.load(u16::from(value) << 8, now),
            (Access::Both, false) => {
                self.low_byte = value;
                self.write_high = true;
                if self.mode == 0 {
                    // The first byte stops counting and takes OUT low.
                    self.start = None;
                }
            }
            (Access::Both, true) => {
                self.write_high = false;
                self.load(u16::from_le_bytes([self.low_byte, value]), now);
            }
        }
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.status_latch.take() {
            return status;
        }
        let count = self.count_latch.unwrap_or_else(|| self.count(now));
        let [low, high] = count.to_le_bytes();
        let (byte, done) = match (self.access, self.read_high) {
            (Access::Low, _) => (low, true),
            (Access::High, _) => (high, true),
            (Access::Both, false) => (low, false),
            (Access::Both, true) => (high, true),
        };
        self.read_high = !done;
        if done {
            self.count_latch = None;
        }
        byte
    }

    fn latch_count(&mut self, now: u64) {
        if self.count_latch.is_none() {
            self.count_latch = Some(self.count(now));
        }
    }

    fn latch_status(&mut self, now: u64) {
        if self.status_latch.is_none() {
            let access = match self.access {
                Access::Low => 1,
                Access::High => 2,
                Access::Both => 3,
            };
            self.status_latch = Some(
                u8::from(self.output(now)) << 7
                    | u8::from(self.null_count) << 6
                    | access << 4
                    | self.mode << 1
                    | u8::from(self.bcd),
            );
        }
    }

    fn set_gate(&mut self, gate: bool, now: u64) {
        if gate == self.gate {
            return;
        }
        self.gate = gate;
        match (self.mode, gate) {
            (1 | 5, true) if !self.null_count => self.begin(now),
            (2 | 3, true) if self.start.is_some() => self.begin(now),
            (0 | 4, true) => {
                if let (Some(_), Some(ticks)) = (self.start, self.stopped.take()) {
                    self.start = Some(now.wrapping_sub(Clock::nanos(ticks, PIT_HZ)));
                }
            }
            (0 | 2 | 3 | 4, false) => self.stopped = self.elapsed(now),
            _ => {}
        }
    }

    fn valid(&self) -> bool {
        self.mode < 6
            && (1..=0x1_0000).contains(&self.reload)
            && (!self.periodic() || self.reload >= 2)
            && u64::from(self.reload) <= self.modulus()
    }

    /// Moves times to or from a clock that starts at 0.
    fn shift(&mut self, by: u64) {
        self.start = self.start.map(|start| start.wrapping_sub(by));
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    channels: [Channel; 3],
    port61: u8,
    /// Edges of channel 0 that have been signalled.
    signalled: u64,
    /// Edges that came too late to be signalled in their time.
    backlog: u64,
}

impl State {
    fn new() -> Self {
        let channels = [Channel::new(true), Channel::new(true), Channel::new(false)];
        Self { channels, port61: 0, signalled: 0, backlog: 0 }
    }

    fn control(&mut self, word: u8, now: u64) {
        let select = word >> 6;
        if select == 3 {
            for (i, channel) in self.channels.iter_mut().enumerate() {
                if word & 2 << i != 0 {
                    if word & 1 << 5 == 0 {
                        channel.latch_count(now);
                    }
                    if word & 1 << 4 == 0 {
                        channel.latch_status(now);
                    }
                }
            }
        } else if let Some(channel) = self.channels.get_mut(usize::from(select)) {
            if word >> 4 & 3 == 0 {
                channel.latch_count(now);
            } else {
                channel.control(word);
            }
        }
    }

    fn write(&mut self, port: u16, value: u8, now: u64) {
        match port {
            0x40..0x43 => {
                if let Some(channel) = self.channels.get_mut(usize::from(port - 0x40)) {
                    channel.write(value, now);
                }
            }
            0x43 => self.control(value, now),
            0x61 => {
                self.port61 = value & PORT61_WRITABLE;
                let [_, _, speaker] = &mut self.channels;
                speaker.set_gate(value & GATE2 != 0, now);
            }
            _ => {}
        }
        let programs_timer = port == 0x40 || (port == 0x43 && value >> 6 == 0 && value >> 4 & 3 != 0);
        if programs_timer {
            (self.signalled, self.backlog) = (0, 0);
        }
    }

    fn read(&mut self, port: u16, now: u64) -> u8 {
        let [_, _, speaker] = &self.channels;
        match port {
            0x61 => {
                let refresh = if now / REFRESH_NS % 2 == 1 { REFRESH } else { 0 };
                let out = if speaker.output(now) { OUT2 } else { 0 };
                self.port61 | refresh | out
            }
            _ => match self.channels.get_mut(usize::from(port.wrapping_sub(0x40))) {
                Some(channel) => channel.read(now),
                None => 0xff,
            },
        }
    }

    /// Whether an interrupt is due now, and when to look again. Late edges are made up for one by
    /// one in the middle between regular ones, so the rate never more than doubles.
    fn tick(&mut self, now: u64) -> (bool, Option<u64>) {
        let [timer, ..] = &self.channels;
        let edges = timer.edges(now);
        let new = edges.saturating_sub(self.signalled);
        self.signalled = edges;
        let fire = if new > 0 {
            self.backlog = (self.backlog + new - 1).min(MAX_BACKLOG);
            true
        } else if self.backlog > 0 {
            self.backlog -= 1;
            true
        } else {
            false
        };
        let Some(next) = timer.edge_time(edges + 1) else { return (fire, None) };
        let half = Clock::nanos(u64::from(timer.reload) / 2, PIT_HZ);
        let between = next.saturating_sub(half);
        let next = if self.backlog > 0 && between > now { between } else { next };
        (fire, Some(next))
    }

    /// When to look at channel 0 next, without signalling anything.
    fn deadline(&self) -> Option<u64> {
        let [timer, ..] = &self.channels;
        timer.edge_time(self.signalled + 1)
    }

    fn shift(&mut self, by: u64) {
        self.channels.iter_mut().for_each(|c| c.shift(by));
    }
}

/// The timer chip.
pub struct Pit {
    state: Mutex<State>,
    clock: Clock,
    irq: IrqLine,
    timer: Timer,
}

impl Pit {
    /// A timer after power-on; channel 0 pulses `irq`.
    pub fn new(timers: &Timers, irq: IrqLine) -> Arc<Self> {
        Arc::new_cyclic(|me: &std::sync::Weak<Self>| {
            let me = me.clone();
            let timer = timers.timer(move || {
                if let Some(pit) = me.upgrade() {
                    pit.tick();
                }
            });
            Self { state: Mutex::new(State::new()), clock: timers.clock(), irq, timer }
        })
    }

    /// Claims the ports.
    pub fn claim(self: &Arc<Self>, bus: &Bus) -> Result<(), ClaimError> {
        claim_ports(bus, 0x40..0x44, self)?;
        claim_ports(bus, 0x61..0x62, self)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arm(&self, deadline: Option<u64>) {
        match deadline {
            Some(deadline) => self.timer.arm(deadline),
            None => self.timer.disarm(),
        }
    }

    fn tick(&self) {
        let mut state = self.lock();
        let (fire, next) = state.tick(self.clock.now());
        if fire {
            self.irq.pulse();
        }
        self.arm(next);
    }
}

impl BytePorts for Pit {
    fn read_port(&self, port: u16) -> u8 {
        self.lock().read(port, self.clock.now())
    }

    fn write_port(&self, port: u16, value: u8) {
        let mut state = self.lock();
        state.write(port, value, self.clock.now());
        if matches!(port, 0x40 | 0x43) {
            self.arm(state.deadline());
        }
    }
}

impl Device for Pit {
    fn name(&self) -> String {
        "pit".into()
    }

    fn reset(&self) {
        let mut state = self.lock();
        *state = State::new();
        self.timer.disarm();
    }

    fn save(&self) -> Result<SavedState, StateError> {
        let mut state = self.lock().clone();
        state.shift(self.clock.now());
        SavedState::encode(VERSION, &state)
    }

    fn restore(&self, saved: &SavedState) -> Result<(), StateError> {
        self.reset();
        let mut new: State = saved.decode(VERSION)?;
        if !new.channels.iter().all(Channel::valid) || new.backlog > MAX_BACKLOG {
            return Err(StateError::Invalid("timer chip"));
        }
        let mut state = self.lock();
        new.shift(0u64.wrapping_sub(self.clock.now()));
        *state = new;
        self.arm(state.deadline());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::access::testing::{Probe, as_range, hammer};
    use super::*;

    /// Nanoseconds at which `ticks` have just passed.
    fn at(ticks: u64) -> u64 {
        Clock::nanos(ticks, PIT_HZ)
    }

    fn program(state: &mut State, channel: u16, control: u8, count: u16, now: u64) {
        state.write(0x43, (channel as u8) << 6 | control, now);
        for byte in count.to_le_bytes() {
            state.write(0x40 + channel, byte, now);
        }
    }

    fn count(state: &mut State, channel: u16, now: u64) -> u16 {
        state.write(0x43, (channel as u8) << 6, now);
        let low = state.read(0x40 + channel, now);
        u16::from_le_bytes([low, state.read(0x40 + channel, now)])
    }

    #[test]
    fn mode_0_counts_down_once() {
        let mut s = State::new();
        program(&mut s, 0, 0x30, 100, 0);
        assert_eq!(count(&mut s, 0, at(1)), 99);
        assert_eq!(count(&mut s, 0, at(101)), 0xffff);
        assert!(!s.channels[0].output(at(99)) && s.channels[0].output(at(100)));
        assert_eq!(s.tick(at(99)), (false, Some(at(100))));
        assert_eq!(s.tick(at(100)), (true, None));
        assert_eq!(s.tick(at(70_000)), (false, None));
    }

    #[test]
    fn mode_2_repeats_without_drift() {
        let mut s = State::new();
        program(&mut s, 0, 0x34, 1193, 0);
        assert_eq!(count(&mut s, 0, at(1192)), 1);
        assert_eq!(count(&mut s, 0, at(1193)), 1193);
        assert!(!s.channels[0].output(at(1192)));
        for n in 1..5000 {
            assert_eq!(s.tick(at(1193 * n)), (true, Some(at(1193 * (n + 1)))));
        }
    }

    #[test]
    fn mode_3_is_a_square_wave_counting_by_two() {
        let mut s = State::new();
        program(&mut s, 0, 0x36, 1000, 0);
        assert_eq!(count(&mut s, 0, at(10)), 980);
        assert_eq!(count(&mut s, 0, at(510)), 980);
        assert!(s.channels[0].output(at(499)) && !s.channels[0].output(at(500)));
        assert_eq!(s.tick(at(1000)), (true, Some(at(2000))));
    }

    #[test]
    fn mode_4_strobes_after_the_count() {
        let mut s = State::new();
        program(&mut s, 0, 0x38, 50, 0);
        assert!(s.channels[0].output(at(49)) && !s.channels[0].output(at(50)));
        assert_eq!(s.tick(at(51)), (true, None));
    }

    #[test]
    fn late_ticks_are_made_up_for_at_twice_the_rate() {
        let mut s = State::new();
        program(&mut s, 0, 0x34, 1000, 0);
        let (fire, next) = s.tick(at(4000));
        assert!(fire);
        let mut fired = 1;
        let mut now = next.unwrap();
        assert!(now > at(4000) && now < at(5000));
        while now < at(10_500) {
            let (fire, next) = s.tick(now);
            fired += u32::from(fire);
            now = next.unwrap();
        }
        assert_eq!(fired, 10);
        s.tick(at(1_000_000_000_000));
        assert_eq!(s.backlog, MAX_BACKLOG);
    }

    #[test]
    fn port_61_gates_channel_2_and_shows_its_output() {
        let mut s = State::new();
        s.write(0x61, 0, 0);
        program(&mut s, 2, 0x30, 1000, 0);
        assert_eq!(s.read(0x61, at(5000)) & OUT2, 0, "the gate is closed");
        s.write(0x61, 1, at(5000));
        assert_eq!(s.read(0x61, at(5990)) & OUT2, 0);
        assert_eq!(s.read(0x61, at(6001)) & (OUT2 | GATE2), OUT2 | GATE2);
        assert_ne!(s.read(0x61, 0) & REFRESH, s.read(0x61, REFRESH_NS) & REFRESH);
        program(&mut s, 2, 0x32, 100, at(7000));
        assert!(s.channels[2].output(at(9000)), "mode 1 waits for its trigger");
        s.write(0x61, 0, at(9000));
        s.write(0x61, 1, at(9000));
        assert!(!s.channels[2].output(at(9099)) && s.channels[2].output(at(9101)));
    }

    #[test]
    fn read_back_latches_status_and_count() {
        let mut s = State::new();
        program(&mut s, 0, 0x34, 500, 0);
        s.write(0x43, 0xc2, at(100));
        assert_eq!(s.read(0x40, at(300)), 0xb4);
        assert_eq!((s.read(0x40, at(300)), s.read(0x40, at(300))), (0x90, 0x01));
        s.write(0x43, 0x34, at(300));
        s.write(0x43, 0xe2, at(300));
        assert_eq!(s.read(0x40, at(300)) & 0x40, 0x40, "null count");
    }

    #[test]
    fn bcd_counts_in_tens() {
        let mut s = State::new();
        program(&mut s, 0, 0x31, 0x1000, 0);
        assert_eq!(count(&mut s, 0, at(1)), 0x0999);
        program(&mut s, 0, 0x31, 0, 0);
        assert_eq!(count(&mut s, 0, at(1)), 0x9999);
    }

    #[test]
    fn low_byte_only_access() {
        let mut s = State::new();
        s.write(0x43, 0x10, 0);
        s.write(0x40, 80, 0);
        assert_eq!(s.read(0x40, at(10)), 70);
        assert_eq!(s.read(0x40, at(20)), 60);
    }

    #[test]
    fn interrupts_come_on_time_and_state_survives() {
        let timers = Timers::start(Clock::new()).unwrap();
        let probe = Arc::new(Probe::default());
        let pit = Pit::new(&timers, IrqLine::new(probe.clone(), 0));
        for (port, value) in [(0x43, 0x34), (0x40, 0xa9), (0x40, 0x04)] {
            pit.write_port(port, value);
        }
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while probe.irqs.lock().unwrap().len() < 20 && std::time::Instant::now() < end {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        assert!(probe.take_irqs().len() >= 20);
        let saved = pit.save().unwrap();
        pit.reset();
        pit.restore(&saved).unwrap();
        let mut before: State = saved.decode(VERSION).unwrap();
        let mut after: State = pit.save().unwrap().decode(VERSION).unwrap();
        for state in [&mut before, &mut after] {
            // Both hold the distance to their own moment of saving; the rest is equal.
            state.channels.iter_mut().for_each(|c| c.start = c.start.map(|_| 0));
            (state.signalled, state.backlog) = (0, 0);
        }
        assert_eq!(before, after);
        hammer(&*pit, &as_range(0x40, &pit), 4);
        hammer(&*pit, &as_range(0x61, &pit), 1);
    }
}
