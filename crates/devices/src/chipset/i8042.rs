//! The i8042 keyboard controller at ports 60 and 64, with a keyboard and a mouse (8042 as
//! programmed for the IBM PS/2; command and port bits from its technical reference).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::{Bus, ClaimError, Device, IrqLine, PowerEvent, PowerSwitch, SavedState, StateError};
use serde::{Deserialize, Serialize};

use super::access::{BytePorts, claim_ports};
use super::ps2::{Keyboard, Mouse, translate};

const VERSION: u32 = 1;
/// Answers of the controller itself that may wait.
const ANSWERS: usize = 16;

const DATA: u16 = 0x60;

// Status register.
const STATUS_FULL: u8 = 1 << 0;
const STATUS_SYSTEM: u8 = 1 << 2;
const STATUS_COMMAND: u8 = 1 << 3;
const STATUS_UNLOCKED: u8 = 1 << 4;
const STATUS_MOUSE: u8 = 1 << 5;

// Command byte.
const MODE_KEYBOARD_IRQ: u8 = 1 << 0;
const MODE_MOUSE_IRQ: u8 = 1 << 1;
const MODE_SYSTEM: u8 = 1 << 2;
const MODE_KEYBOARD_OFF: u8 = 1 << 4;
const MODE_MOUSE_OFF: u8 = 1 << 5;
const MODE_TRANSLATE: u8 = 1 << 6;

// Output port.
const OUTPUT_NO_RESET: u8 = 1 << 0;
const OUTPUT_A20: u8 = 1 << 1;
const OUTPUT_KEYBOARD: u8 = 1 << 4;
const OUTPUT_MOUSE: u8 = 1 << 5;

/// Input port: keyboard not locked.
const INPUT_PORT: u8 = 0x80;

/// Where a byte in the output buffer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Source {
    Keyboard,
    Mouse,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    mode: u8,
    memory: Vec<u8>,
    /// The last write was a command (status bit 3).
    command_last: bool,
    /// The command that awaits a byte at the data port.
    awaiting: Option<u8>,
    output: Option<(u8, Source)>,
    last_data: u8,
    answers: VecDeque<(u8, Source)>,
    a20: bool,
    /// The translator has seen F0.
    breaking: bool,
    keyboard: Keyboard,
    mouse: Mouse,
}

impl State {
    fn new() -> Self {
        Self {
            // As firmware leaves it: both interrupts on, translating.
            mode: MODE_KEYBOARD_IRQ | MODE_MOUSE_IRQ | MODE_SYSTEM | MODE_TRANSLATE,
            memory: vec![0; 32],
            command_last: false,
            awaiting: None,
            output: None,
            last_data: 0,
            answers: VecDeque::new(),
            a20: true,
            breaking: false,
            keyboard: Keyboard::new(),
            mouse: Mouse::new(),
        }
    }

    /// Fills the output buffer if it is empty.
    fn refill(&mut self) {
        if self.output.is_none() {
            self.output = self.answers.pop_front();
        }
        while self.output.is_none() && self.mode & MODE_KEYBOARD_OFF == 0 {
            let Some(byte) = self.keyboard.pop() else { break };
            if self.mode & MODE_TRANSLATE == 0 {
                self.output = Some((byte, Source::Keyboard));
            } else if byte == 0xf0 {
                self.breaking = true;
            } else {
                let release = if std::mem::take(&mut self.breaking) { 0x80 } else { 0 };
                self.output = Some((translate(byte) | release, Source::Keyboard));
            }
        }
        if self.output.is_none() && self.mode & MODE_MOUSE_OFF == 0 {
            self.output = self.mouse.pop().map(|byte| (byte, Source::Mouse));
        }
    }

    fn answer(&mut self, byte: u8, source: Source) {
        if self.answers.len() < ANSWERS {
            self.answers.push_back((byte, source));
        }
    }

    /// Levels of the keyboard's and the mouse's interrupt.
    fn interrupts(&self) -> (bool, bool) {
        match self.output {
            Some((_, Source::Keyboard)) => (self.mode & MODE_KEYBOARD_IRQ != 0, false),
            Some((_, Source::Mouse)) => (false, self.mode & MODE_MOUSE_IRQ != 0),
            None => (false, false),
        }
    }

    fn status(&self) -> u8 {
        let mut status = STATUS_UNLOCKED;
        match self.output {
            Some((_, Source::Keyboard)) => status |= STATUS_FULL,
            Some((_, Source::Mouse)) => status |= STATUS_FULL | STATUS_MOUSE,
            None => {}
        }
        if self.mode & MODE_SYSTEM != 0 {
            status |= STATUS_SYSTEM;
        }
        if self.command_last {
            status |= STATUS_COMMAND;
        }
        status
    }

    fn output_port(&self) -> u8 {
        let mut port = OUTPUT_NO_RESET;
        match self.output {
            Some((_, Source::Keyboard)) => port |= OUTPUT_KEYBOARD,
            Some((_, Source::Mouse)) => port |= OUTPUT_MOUSE,
            None => {}
        }
        port | if self.a20 { OUTPUT_A20 } else { 0 }
    }

    /// A command; true if it resets the machine.
    fn command(&mut self, command: u8) -> bool {
        self.command_last = true;
        self.awaiting = None;
        match command {
            0x20 => self.answer(self.mode, Source::Keyboard),
            0x21..=0x3f => {
                let byte = self.memory.get(usize::from(command & 0x1f)).copied().unwrap_or(0);
                self.answer(byte, Source::Keyboard);
            }
            0x60..=0x7f | 0xd1..=0xd4 => self.awaiting = Some(command),
            // No password is loaded.
            0xa4 => self.answer(0xf1, Source::Keyboard),
            0xa7 => self.mode |= MODE_MOUSE_OFF,
            0xa8 => self.mode &= !MODE_MOUSE_OFF,
            // Interface tests: no error.
            0xa9 | 0xab => self.answer(0, Source::Keyboard),
            0xaa => {
                self.mode |= MODE_SYSTEM;
                self.answer(0x55, Source::Keyboard);
            }
            0xad => self.mode |= MODE_KEYBOARD_OFF,
            0xae => self.mode &= !MODE_KEYBOARD_OFF,
            0xc0 => self.answer(INPUT_PORT, Source::Keyboard),
            0xd0 => self.answer(self.output_port(), Source::Keyboard),
            0xdd => self.a20 = false,
            0xdf => self.a20 = true,
            // Test inputs: both clock lines high.
            0xe0 => self.answer(3, Source::Keyboard),
            // Pulses the output lines whose bit is 0; line 0 is the processor's reset.
            0xf0..=0xff => return command & 1 == 0,
            _ => {}
        }
        false
    }

    /// A byte at the data port; true if it resets the machine.
    fn data(&mut self, value: u8) -> bool {
        self.command_last = false;
        match self.awaiting.take() {
            None => {
                // To talk to the keyboard turns it on.
                self.mode &= !MODE_KEYBOARD_OFF;
                self.keyboard.write(value);
            }
            Some(0x60) => self.mode = value & 0x77,
            Some(command @ 0x61..=0x7f) => {
                if let Some(byte) = self.memory.get_mut(usize::from(command & 0x1f)) {
                    *byte = value;
                }
            }
            Some(0xd1) => {
                self.a20 = value & OUTPUT_A20 != 0;
                return value & OUTPUT_NO_RESET == 0;
            }
            Some(0xd2) => self.answer(value, Source::Keyboard),
            Some(0xd3) => self.answer(value, Source::Mouse),
            Some(_) => {
                self.mode &= !MODE_MOUSE_OFF;
                self.mouse.write(value);
            }
        }
        false
    }

    fn read_data(&mut self) -> u8 {
        if let Some((byte, _)) = self.output.take() {
            self.last_data = byte;
        }
        self.last_data
    }

    fn valid(&self) -> bool {
        let command = self.awaiting.is_none_or(|c| matches!(c, 0x60..=0x7f | 0xd1..=0xd4));
        command
            && self.memory.len() == 32
            && self.answers.len() <= ANSWERS
            && self.keyboard.valid()
            && self.mouse.valid()
    }
}

/// The keyboard controller.
pub struct I8042 {
    state: Mutex<State>,
    keyboard_irq: IrqLine,
    mouse_irq: IrqLine,
    power: Arc<PowerSwitch>,
}

impl I8042 {
    /// A controller after power-on; the lines are IRQ 1 and IRQ 12.
    pub fn new(keyboard_irq: IrqLine, mouse_irq: IrqLine, power: Arc<PowerSwitch>) -> Self {
        Self { state: Mutex::new(State::new()), keyboard_irq, mouse_irq, power }
    }

    /// Claims the ports.
    pub fn claim(self: &Arc<Self>, bus: &Bus) -> Result<(), ClaimError> {
        claim_ports(bus, 0x60..0x61, self)?;
        claim_ports(bus, 0x64..0x65, self)
    }

    /// A key goes down or up: its set 1 make code, with E0 in the high byte for the grey keys
    /// (E048 is Up), and E11D for Pause.
    pub fn key(&self, code: u16, down: bool) {
        self.with(|s| s.keyboard.key(code, down));
    }

    /// The pointer moves (right, up and wheel towards the user are positive) or buttons change
    /// ([`super::button`]).
    pub fn pointer(&self, dx: i32, dy: i32, dz: i32, buttons: u8) {
        self.with(|s| s.mouse.pointer(dx, dy, dz, buttons));
    }

    /// The keyboard's LEDs: bit 0 scroll, 1 number, 2 capitals lock.
    pub fn leds(&self) -> u8 {
        self.lock().keyboard.leds()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `change`, refills the output buffer and sets the lines.
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        // What was read lets its line drop before the next byte raises it again: an edge each.
        let (keyboard, mouse) = state.interrupts();
        self.keyboard_irq.set(keyboard);
        self.mouse_irq.set(mouse);
        state.refill();
        let (keyboard, mouse) = state.interrupts();
        self.keyboard_irq.set(keyboard);
        self.mouse_irq.set(mouse);
        result
    }
}

impl BytePorts for I8042 {
    fn read_port(&self, port: u16) -> u8 {
        if port == DATA { self.with(State::read_data) } else { self.lock().status() }
    }

    fn write_port(&self, port: u16, value: u8) {
        let reset = self.with(|s| if port == DATA { s.data(value) } else { s.command(value) });
        if reset {
            self.power.request(PowerEvent::Reset);
        }
    }
}

impl Device for I8042 {
    fn name(&self) -> String {
        "i8042".into()
    }

    fn reset(&self) {
        self.with(|s| *s = State::new());
    }

    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::encode(VERSION, &*self.lock())
    }

    fn restore(&self, saved: &SavedState) -> Result<(), StateError> {
        self.reset();
        let state: State = saved.decode(VERSION)?;
        if !state.valid() {
            return Err(StateError::Invalid("keyboard controller"));
        }
        self.with(|s| *s = state);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::access::testing::{Probe, as_range, hammer};
    use super::*;

    const COMMAND: u16 = 0x64;

    fn controller() -> (Arc<I8042>, Arc<Probe>, Arc<PowerSwitch>) {
        let (probe, power) = (Arc::new(Probe::default()), Arc::new(PowerSwitch::default()));
        let line = |irq| IrqLine::new(probe.clone(), irq);
        (Arc::new(I8042::new(line(1), line(12), power.clone())), probe, power)
    }

    fn read(c: &I8042) -> Option<(u8, bool)> {
        let status = c.read_port(COMMAND);
        (status & STATUS_FULL != 0).then(|| (c.read_port(DATA), status & STATUS_MOUSE != 0))
    }

    fn command(c: &I8042, command: u8, data: &[u8]) -> Option<(u8, bool)> {
        c.write_port(COMMAND, command);
        for byte in data {
            c.write_port(DATA, *byte);
        }
        read(c)
    }

    #[test]
    fn the_driver_probe_succeeds() {
        let (c, ..) = controller();
        assert_eq!(read(&c), None);
        assert_eq!(command(&c, 0xaa, &[]), Some((0x55, false)));
        assert_eq!(command(&c, 0x20, &[]), Some((0x47, false)));
        assert_eq!(command(&c, 0x60, &[0x74]), None);
        assert_eq!(command(&c, 0x20, &[]), Some((0x74, false)));
        assert_eq!(command(&c, 0xd3, &[0xf0]), Some((0xf0, true)), "AUX loop");
        c.write_port(COMMAND, 0xa7);
        assert_eq!(command(&c, 0x20, &[]).unwrap().0 & MODE_MOUSE_OFF, MODE_MOUSE_OFF);
        c.write_port(COMMAND, 0xa8);
        assert_eq!(command(&c, 0x20, &[]).unwrap().0 & MODE_MOUSE_OFF, 0);
        assert_eq!(command(&c, 0xa9, &[]), Some((0, false)));
        assert_eq!(command(&c, 0xab, &[]), Some((0, false)));
        assert_eq!(command(&c, 0xd4, &[0xff]), Some((0xfa, true)));
        assert_eq!((read(&c), read(&c)), (Some((0xaa, true)), Some((0, true))));
        c.write_port(DATA, 0xf2);
        assert_eq!(
            (read(&c), read(&c), read(&c)),
            (Some((0xfa, false)), Some((0xab, false)), Some((0x41, false)))
        );
    }

    #[test]
    fn each_byte_is_an_edge() {
        let (c, probe, _) = controller();
        c.key(0x1e, true);
        c.key(0x1e, false);
        assert_eq!(read(&c), Some((0x1e, false)));
        assert_eq!(read(&c), Some((0x9e, false)));
        assert_eq!(read(&c), None);
        let edges = |irq| {
            let mut level = false;
            let mut count = 0;
            for (_, l) in probe.irqs.lock().unwrap().iter().filter(|i| i.0 == irq) {
                count += u32::from(*l && !level);
                level = *l;
            }
            count
        };
        assert_eq!((edges(1), edges(12)), (2, 0));
        command(&c, 0xd4, &[0xf4]);
        c.pointer(1, 0, 0, 0);
        assert_eq!(edges(12), 2);
    }

    #[test]
    fn disabled_devices_hold_their_bytes_and_untranslated_codes_pass() {
        let (c, ..) = controller();
        c.write_port(COMMAND, 0xad);
        c.key(0x1e, true);
        assert_eq!(read(&c), None);
        command(&c, 0x60, &[0x05]);
        assert_eq!(read(&c), None);
        c.key(0x1e, false);
        assert_eq!((read(&c), read(&c)), (Some((0xf0, false)), Some((0x1c, false))));
    }

    #[test]
    fn both_resets() {
        for sequence in [&[(COMMAND, 0xfe)][..], &[(COMMAND, 0xd1), (DATA, 0x02)]] {
            let (c, _, power) = controller();
            c.write_port(COMMAND, 0xff);
            command(&c, 0xd1, &[0x03]);
            assert_eq!(power.event(), None);
            for (port, value) in sequence {
                c.write_port(*port, *value);
            }
            assert_eq!(power.event(), Some(PowerEvent::Reset));
        }
    }

    #[test]
    fn address_line_20_reads_back() {
        let (c, ..) = controller();
        assert_eq!(command(&c, 0xd0, &[]).unwrap().0 & 3, 3);
        c.write_port(COMMAND, 0xdd);
        assert_eq!(command(&c, 0xd0, &[]).unwrap().0 & 3, 1);
    }

    #[test]
    fn state_survives_and_hostile_accesses_do_no_harm() {
        let (c, ..) = controller();
        c.key(0x1e, true);
        command(&c, 0x60, &[0x45]);
        c.write_port(COMMAND, 0xd4);
        let saved = c.save().unwrap();
        c.reset();
        c.restore(&saved).unwrap();
        assert_eq!(c.save().unwrap(), saved);
        hammer(&*c, &as_range(0x60, &c), 5);
    }
}
