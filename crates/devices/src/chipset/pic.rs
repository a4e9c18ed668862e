//! The two cascaded 8259A interrupt controllers (Intel 8259A datasheet) with the edge/level control
//! registers of the PC (ports 20/21, A0/A1, 4D0/4D1).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::{Bus, ClaimError, Device, SavedState, StateError};
use serde::{Deserialize, Serialize};

use super::access::{BytePorts, claim_ports};

const VERSION: u32 = 1;

/// The input of the first controller that the second one drives.
const CASCADE: u8 = 2;
/// Inputs that may be level-triggered: not the timer, keyboard, cascade, RTC and FPU inputs.
const ELCR_MASKS: [u8; 2] = [0xf8, 0xde];
/// What a controller answers to an INTA cycle when no request is left.
const SPURIOUS: u8 = 7;

const ICW1_NEEDS_ICW4: u8 = 1 << 0;
const ICW1_SINGLE: u8 = 1 << 1;
const ICW1: u8 = 1 << 4;
const ICW4_AUTO_EOI: u8 = 1 << 1;
const ICW4_NESTED: u8 = 1 << 4;
const OCW3: u8 = 1 << 3;
const OCW3_POLL: u8 = 1 << 2;

/// The initialization word that the next write to the odd port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Expect {
    Mask,
    Icw2,
    Icw3,
    Icw4,
}

/// One controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Chip {
    second: bool,
    lines: u8,
    latched: u8,
    in_service: u8,
    mask: u8,
    elcr: u8,
    base: u8,
    /// The input of lowest priority; the one after it has the highest.
    lowest: u8,
    expect: Expect,
    icw1: u8,
    auto_eoi: bool,
    nested: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    poll: bool,
    read_in_service: bool,
}

impl Chip {
    fn new(second: bool) -> Self {
        Self {
            second,
            lines: 0,
            latched: 0,
            in_service: 0,
            mask: 0,
            elcr: 0,
            base: 0,
            lowest: 7,
            expect: Expect::Mask,
            icw1: 0,
            auto_eoi: false,
            nested: false,
            rotate_on_auto_eoi: false,
            special_mask: false,
            poll: false,
            read_in_service: false,
        }
    }

    /// Inputs whose request follows the level. The second controller holds its output until it
    /// has been served, so its input needs no edge.
    fn level(&self) -> u8 {
        if self.second { self.elcr } else { self.elcr | 1 << CASCADE }
    }

    /// The interrupt request register.
    fn requests(&self) -> u8 {
        (self.latched & !self.level()) | (self.lines & self.level())
    }

    fn set_line(&mut self, input: u8, level: bool) {
        let bit = 1 << (input & 7);
        if level {
            self.latched |= bit & !self.lines;
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
    }

    /// How many steps below the highest priority the highest of `inputs` is.
    fn rank(&self, inputs: u8) -> Option<u8> {
        (0..8).find(|step| inputs & 1 << self.input(*step) != 0)
    }

    /// The input at a rank.
    fn input(&self, rank: u8) -> u8 {
        (self.lowest + 1 + rank) & 7
    }

    /// The request that the output asks to serve.
    fn pending(&self) -> Option<u8> {
        let request = self.rank(self.requests() & !self.mask)?;
        let mut serving = self.in_service;
        if self.special_mask {
            serving &= !self.mask;
        }
        if self.nested && !self.second {
            serving &= !(1 << CASCADE);
        }
        match self.rank(serving) {
            Some(current) if current <= request => None,
            _ => Some(self.input(request)),
        }
    }

    /// Moves a request into service.
    fn serve(&mut self, input: u8) {
        let bit = 1 << input;
        self.latched &= !bit;
        if !self.auto_eoi {
            self.in_service |= bit;
        } else if self.rotate_on_auto_eoi {
            self.lowest = input;
        }
    }

    fn write_even(&mut self, value: u8) {
        if value & ICW1 != 0 {
            // The level-trigger bit of ICW1 has no effect in a PC: the ELCR replaces it.
            let (elcr, lines) = (self.elcr, self.lines);
            *self = Self { elcr, lines, icw1: value, expect: Expect::Icw2, ..Self::new(self.second) };
        } else if value & OCW3 != 0 {
            self.poll = value & OCW3_POLL != 0;
            match value & 3 {
                2 => self.read_in_service = false,
                3 => self.read_in_service = true,
                _ => {}
            }
            match value >> 5 & 3 {
                2 => self.special_mask = false,
                3 => self.special_mask = true,
                _ => {}
            }
        } else {
            self.end_or_rotate(value >> 5, value & 7);
        }
    }

    /// OCW2.
    fn end_or_rotate(&mut self, command: u8, level: u8) {
        match command {
            0 => self.rotate_on_auto_eoi = false,
            4 => self.rotate_on_auto_eoi = true,
            1 | 5 => {
                let serving = if self.special_mask { self.in_service & !self.mask } else { self.in_service };
                if let Some(rank) = self.rank(serving) {
                    let input = self.input(rank);
                    self.in_service &= !(1 << input);
                    if command == 5 {
                        self.lowest = input;
                    }
                }
            }
            3 => self.in_service &= !(1 << level),
            6 => self.lowest = level,
            7 => {
                self.in_service &= !(1 << level);
                self.lowest = level;
            }
            _ => {}
        }
    }

    fn write_odd(&mut self, value: u8) {
        let after_icw3 = if self.icw1 & ICW1_NEEDS_ICW4 != 0 { Expect::Icw4 } else { Expect::Mask };
        match self.expect {
            Expect::Mask => self.mask = value,
            Expect::Icw2 => {
                self.base = value & 0xf8;
                self.expect = if self.icw1 & ICW1_SINGLE != 0 { after_icw3 } else { Expect::Icw3 };
            }
            Expect::Icw3 => self.expect = after_icw3,
            Expect::Icw4 => {
                self.auto_eoi = value & ICW4_AUTO_EOI != 0;
                self.nested = value & ICW4_NESTED != 0;
                self.expect = Expect::Mask;
            }
        }
    }

    fn read(&mut self, odd: bool) -> u8 {
        if self.poll {
            self.poll = false;
            let pending = self.pending();
            if let Some(input) = pending {
                self.serve(input);
            }
            return pending.map_or(0, |input| 0x80 | input);
        }
        match (odd, self.read_in_service) {
            (true, _) => self.mask,
            (false, true) => self.in_service,
            (false, false) => self.requests(),
        }
    }

    fn valid(&self, second: bool) -> bool {
        self.second == second && self.lowest < 8 && self.base & 7 == 0
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    first: Chip,
    second: Chip,
}

impl State {
    fn new() -> Self {
        Self { first: Chip::new(false), second: Chip::new(true) }
    }

    /// Passes the second controller's output to the first; the level of INTR.
    fn settle(&mut self) -> bool {
        self.first.set_line(CASCADE, self.second.pending().is_some());
        self.first.pending().is_some()
    }

    /// The INTA cycles.
    fn acknowledge(&mut self) -> u8 {
        let Some(input) = self.first.pending() else { return self.first.base | SPURIOUS };
        self.first.serve(input);
        if input != CASCADE {
            return self.first.base | input;
        }
        let Some(input) = self.second.pending() else { return self.second.base | SPURIOUS };
        self.second.serve(input);
        self.second.base | input
    }
}

type OnIntr = Box<dyn Fn(bool) + Send + Sync>;

/// The interrupt controller pair.
pub struct Pic {
    state: Mutex<State>,
    on_intr: OnIntr,
}

impl Pic {
    /// Controllers after power-on. `on_intr` gets the level of the INTR output after each access
    /// and line change, in order; it must not come back here.
    pub fn new(on_intr: impl Fn(bool) + Send + Sync + 'static) -> Self {
        Self { state: Mutex::new(State::new()), on_intr: Box::new(on_intr) }
    }

    /// Claims the ports.
    pub fn claim(self: &Arc<Self>, bus: &Bus) -> Result<(), ClaimError> {
        for ports in [0x20..0x22, 0xa0..0xa2, 0x4d0..0x4d2] {
            claim_ports(bus, ports, self)?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `change` and drives the output, both under the lock so that levels keep their order.
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        let intr = state.settle();
        (self.on_intr)(intr);
        result
    }

    /// Sets the level of `irq` (0–15, not 2).
    pub fn set_irq(&self, irq: u8, level: bool) {
        if irq != CASCADE {
            self.with(|s| match irq {
                0..8 => s.first.set_line(irq, level),
                8..16 => s.second.set_line(irq - 8, level),
                _ => {}
            });
        }
    }

    /// The level of INTR.
    pub fn intr(&self) -> bool {
        self.lock().settle()
    }

    /// The INTA cycles, if INTR is high: the vector.
    pub fn acknowledge(&self) -> Option<u8> {
        self.with(|s| s.settle().then(|| s.acknowledge()))
    }

    /// The INTA cycles whatever INTR is: without a request the answer is the spurious vector, as
    /// the hardware gives it to a processor that saw INTR just before it went away.
    pub fn interrupt_acknowledge_cycle(&self) -> u8 {
        self.with(State::acknowledge)
    }
}

impl BytePorts for Pic {
    fn read_port(&self, port: u16) -> u8 {
        self.with(|s| match port {
            0x20 | 0x21 => s.first.read(port & 1 != 0),
            0xa0 | 0xa1 => s.second.read(port & 1 != 0),
            0x4d0 => s.first.elcr,
            0x4d1 => s.second.elcr,
            _ => 0xff,
        })
    }

    fn write_port(&self, port: u16, value: u8) {
        let [first, second] = ELCR_MASKS;
        self.with(|s| match port {
            0x20 => s.first.write_even(value),
            0x21 => s.first.write_odd(value),
            0xa0 => s.second.write_even(value),
            0xa1 => s.second.write_odd(value),
            0x4d0 => s.first.elcr = value & first,
            0x4d1 => s.second.elcr = value & second,
            _ => {}
        });
    }
}

impl Device for Pic {
    fn name(&self) -> String {
        "pic".into()
    }

    fn reset(&self) {
        self.with(|s| {
            let lines = (s.first.lines, s.second.lines);
            *s = State::new();
            (s.first.lines, s.second.lines) = lines;
        });
    }

    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::encode(VERSION, &*self.lock())
    }

    fn restore(&self, saved: &SavedState) -> Result<(), StateError> {
        self.reset();
        let state: State = saved.decode(VERSION)?;
        if !state.first.valid(false) || !state.second.valid(true) {
            return Err(StateError::Invalid("interrupt controller"));
        }
        self.with(|s| *s = state);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::access::testing::{as_range, hammer};
    use super::*;

    fn pic() -> (Arc<Pic>, Arc<Mutex<bool>>) {
        let level = Arc::new(Mutex::new(false));
        let copy = level.clone();
        let pic = Arc::new(Pic::new(move |l| *copy.lock().unwrap() = l));
        (pic, level)
    }

    /// The usual initialization: vectors 20 and 28, nothing masked.
    fn init(pic: &Pic, icw4: u8) {
        for (port, base, icw3) in [(0x20, 0x20, 4), (0xa0, 0x28, 2)] {
            pic.write_port(port, 0x11);
            pic.write_port(port + 1, base);
            pic.write_port(port + 1, icw3);
            pic.write_port(port + 1, icw4);
            pic.write_port(port + 1, 0);
        }
    }

    fn edge(pic: &Pic, irq: u8) {
        pic.set_irq(irq, true);
        pic.set_irq(irq, false);
    }

    #[test]
    fn priorities_nest_and_eoi_lets_the_next_through() {
        let (pic, intr) = pic();
        init(&pic, 1);
        edge(&pic, 4);
        edge(&pic, 12);
        assert!(*intr.lock().unwrap());
        assert_eq!(pic.acknowledge(), Some(0x2c), "the second controller sits on input 2");
        assert!(!*intr.lock().unwrap());
        edge(&pic, 1);
        assert_eq!(pic.acknowledge(), Some(0x21));
        assert_eq!(pic.acknowledge(), None);
        pic.write_port(0x20, 0x20);
        assert_eq!(pic.acknowledge(), None, "input 2 is still in service");
        pic.write_port(0xa0, 0x20);
        pic.write_port(0x20, 0x62);
        assert_eq!(pic.acknowledge(), Some(0x24));
        pic.write_port(0x20, 0x0b);
        assert_eq!(pic.read_port(0x20), 0x10);
    }

    #[test]
    fn masks_hold_back_but_keep_edges() {
        let (pic, intr) = pic();
        init(&pic, 1);
        pic.write_port(0x21, 0xff);
        edge(&pic, 0);
        assert!(!*intr.lock().unwrap());
        assert_eq!(pic.read_port(0x20), 1);
        pic.write_port(0x21, 0xfe);
        assert_eq!(pic.read_port(0x21), 0xfe);
        assert_eq!(pic.acknowledge(), Some(0x20));
    }

    #[test]
    fn level_inputs_follow_the_line() {
        let (pic, intr) = pic();
        init(&pic, 1);
        pic.write_port(0x4d1, 0xff);
        assert_eq!(pic.read_port(0x4d1), 0xde);
        pic.set_irq(11, true);
        pic.set_irq(11, false);
        assert!(!*intr.lock().unwrap());
        assert_eq!(pic.acknowledge(), None);
        assert_eq!(pic.interrupt_acknowledge_cycle(), 0x27);
        pic.set_irq(11, true);
        assert_eq!(pic.acknowledge(), Some(0x2b));
        pic.write_port(0xa0, 0x20);
        pic.write_port(0x20, 0x20);
        assert_eq!(pic.acknowledge(), Some(0x2b), "still high after EOI");
    }

    #[test]
    fn automatic_eoi_rotation_and_set_priority() {
        let (pic, _) = pic();
        init(&pic, 3);
        pic.write_port(0x20, 0x80);
        edge(&pic, 0);
        edge(&pic, 1);
        assert_eq!(pic.acknowledge(), Some(0x20));
        edge(&pic, 0);
        assert_eq!(pic.acknowledge(), Some(0x21), "0 went to the end");
        assert_eq!(pic.acknowledge(), Some(0x20));
        pic.write_port(0x20, 0xc4);
        edge(&pic, 4);
        edge(&pic, 5);
        assert_eq!(pic.acknowledge(), Some(0x25));
    }

    #[test]
    fn special_mask_mode_lets_lower_inputs_in() {
        let (pic, _) = pic();
        init(&pic, 1);
        edge(&pic, 3);
        assert_eq!(pic.acknowledge(), Some(0x23));
        edge(&pic, 6);
        assert_eq!(pic.acknowledge(), None);
        pic.write_port(0x21, 0x08);
        pic.write_port(0x20, 0x68);
        assert_eq!(pic.acknowledge(), Some(0x26));
    }

    #[test]
    fn polling_serves_a_request() {
        let (pic, intr) = pic();
        init(&pic, 1);
        edge(&pic, 5);
        pic.write_port(0x20, 0x0c);
        assert_eq!(pic.read_port(0x20), 0x85);
        assert!(!*intr.lock().unwrap());
        pic.write_port(0x20, 0x0c);
        assert_eq!(pic.read_port(0x20), 0);
    }

    #[test]
    fn state_survives_and_hostile_accesses_do_no_harm() {
        let (pic, _) = pic();
        init(&pic, 1);
        edge(&pic, 9);
        let saved = pic.save().unwrap();
        pic.reset();
        pic.restore(&saved).unwrap();
        assert_eq!(pic.save().unwrap(), saved);
        assert_eq!(pic.acknowledge(), Some(0x29));
        for base in [0x20, 0xa0, 0x4d0] {
            hammer(&*pic, &as_range(base, &pic), 2);
        }
    }
}
