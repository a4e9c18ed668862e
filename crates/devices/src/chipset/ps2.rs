//! A PS/2 keyboard and a PS/2 mouse with wheel and five buttons, as the wire sees them (IBM PS/2
//! technical reference; Microsoft's IntelliMouse extension).

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Bytes that a device keeps while the host does not take them.
const QUEUE: usize = 256;
/// A keyboard stops collecting keys here, so that answers to commands still fit.
const KEYS: usize = 64;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_OK: u8 = 0xaa;

/// Scan code set 2 to set 1, as the controller translates what the keyboard sends (index: set 2
/// make code; the break prefix F0 sets bit 7 of the next code).
#[rustfmt::skip]
const SET_2_TO_1: [u8; 0x80] = [
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59,
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b,
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d,
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f,
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61,
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76,
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f,
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54,
];

/// The controller's translation of one byte other than F0.
pub(super) fn translate(code: u8) -> u8 {
    match code {
        0x83 => 0x41,
        0x84 => 0x54,
        _ => SET_2_TO_1.get(usize::from(code)).copied().unwrap_or(code),
    }
}

/// The set 2 make code of a set 1 make code.
fn set_2(code: u8) -> Option<u8> {
    match code {
        0x41 => Some(0x83),
        0x54 => Some(0x84),
        _ => SET_2_TO_1.iter().position(|c| *c == code).map(|i| i as u8),
    }
}

fn push(queue: &mut VecDeque<u8>, bytes: &[u8]) {
    for byte in bytes {
        if queue.len() < QUEUE {
            queue.push_back(*byte);
        }
    }
}

/// The keyboard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Keyboard {
    pub queue: VecDeque<u8>,
    enabled: bool,
    set: u8,
    leds: u8,
    typematic: u8,
    /// The command whose parameter is awaited.
    command: Option<u8>,
    last: u8,
}

impl Keyboard {
    pub fn new() -> Self {
        let queue = VecDeque::new();
        Self { queue, enabled: true, set: 2, leds: 0, typematic: 0x2b, command: None, last: 0 }
    }

    fn defaults(&mut self) {
        *self = Self { queue: VecDeque::new(), last: self.last, ..Self::new() };
    }

    /// LEDs as the host set them: bit 0 scroll, 1 number, 2 capitals lock.
    pub fn leds(&self) -> u8 {
        self.leds
    }

    /// Takes the next byte for the host.
    pub fn pop(&mut self) -> Option<u8> {
        let byte = self.queue.pop_front()?;
        self.last = byte;
        Some(byte)
    }

    /// A key goes down or up; `code` is its set 1 make code, with E0 in the high byte for the
    /// grey keys, and E11D for Pause.
    pub fn key(&mut self, code: u16, down: bool) {
        if !self.enabled || self.queue.len() > KEYS {
            return;
        }
        let [make, prefix] = code.to_le_bytes();
        if prefix == 0xe1 {
            // Pause has no break code: it sends all at once.
            let bytes: &[u8] = match self.set {
                1 => &[0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5],
                _ => &[0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77],
            };
            if down {
                push(&mut self.queue, bytes);
            }
            return;
        }
        let make = make & 0x7f;
        let Some(other) = set_2(make) else { return };
        if prefix == 0xe0 {
            push(&mut self.queue, &[0xe0]);
        }
        match (self.set, down) {
            (1, true) => push(&mut self.queue, &[make]),
            (1, false) => push(&mut self.queue, &[make | 0x80]),
            (_, true) => push(&mut self.queue, &[other]),
            (_, false) => push(&mut self.queue, &[0xf0, other]),
        }
    }

    /// A byte from the host.
    pub fn write(&mut self, value: u8) {
        if let Some(command) = self.command.take()
            && value < 0xed
        {
            self.parameter(command, value);
            return;
        }
        let answer: &[u8] = match value {
            0xed | 0xf0 | 0xf3 => {
                self.command = Some(value);
                &[ACK]
            }
            0xee => &[0xee],
            0xf2 => &[ACK, 0xab, 0x83],
            0xf4 => {
                self.queue.clear();
                self.enabled = true;
                &[ACK]
            }
            0xf5 => {
                self.defaults();
                self.enabled = false;
                &[ACK]
            }
            0xf6 => {
                self.defaults();
                &[ACK]
            }
            // Make/break/typematic of all keys: only set 3 has the choice.
            0xf7..=0xfa => &[ACK],
            0xfe => {
                push(&mut self.queue, &[self.last]);
                return;
            }
            0xff => {
                self.defaults();
                &[ACK, SELF_TEST_OK]
            }
            _ => &[RESEND],
        };
        push(&mut self.queue, answer);
    }

    fn parameter(&mut self, command: u8, value: u8) {
        let answer: &[u8] = match (command, value) {
            (0xed, _) => {
                self.leds = value & 7;
                &[ACK]
            }
            (0xf3, _) => {
                self.typematic = value & 0x7f;
                &[ACK]
            }
            (_, 0) => &[ACK, self.set],
            (_, 1 | 2) => {
                self.set = value;
                &[ACK]
            }
            // Set 3 is refused, as by keyboards that lack it.
            _ => &[RESEND],
        };
        push(&mut self.queue, answer);
    }

    pub fn valid(&self) -> bool {
        self.queue.len() <= QUEUE && matches!(self.set, 1 | 2)
    }
}

/// Mouse buttons, as in [`Mouse::pointer`].
pub mod button {
    /// Left.
    pub const LEFT: u8 = 1 << 0;
    /// Right.
    pub const RIGHT: u8 = 1 << 1;
    /// Middle.
    pub const MIDDLE: u8 = 1 << 2;
    /// Fourth (back).
    pub const FOURTH: u8 = 1 << 3;
    /// Fifth (forward).
    pub const FIFTH: u8 = 1 << 4;
}

/// The mouse.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mouse {
    pub queue: VecDeque<u8>,
    enabled: bool,
    remote: bool,
    wrap: bool,
    double_scale: bool,
    resolution: u8,
    rate: u8,
    /// The last three rates: certain sequences switch the protocol.
    rates: [u8; 3],
    /// 0 standard, 3 with wheel, 4 with wheel and five buttons.
    id: u8,
    command: Option<u8>,
    buttons: u8,
    moved: [i32; 3],
    last: u8,
}

impl Mouse {
    pub fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            enabled: false,
            remote: false,
            wrap: false,
            double_scale: false,
            resolution: 2,
            rate: 100,
            rates: [0; 3],
            id: 0,
            command: None,
            buttons: 0,
            moved: [0; 3],
            last: 0,
        }
    }

    fn defaults(&mut self) {
        *self = Self { last: self.last, id: self.id, buttons: self.buttons, ..Self::new() };
    }

    pub fn pop(&mut self) -> Option<u8> {
        let byte = self.queue.pop_front()?;
        self.last = byte;
        Some(byte)
    }

    /// The pointer moved (right, up and wheel towards the user are positive) or buttons changed.
    pub fn pointer(&mut self, dx: i32, dy: i32, dz: i32, buttons: u8) {
        for (sum, by) in self.moved.iter_mut().zip([dx, dy, dz]) {
            *sum = sum.saturating_add(by);
        }
        let changed = std::mem::replace(&mut self.buttons, buttons & 0x1f) != self.buttons;
        if !self.enabled || self.remote || self.wrap {
            self.moved = [0; 3];
            return;
        }
        // While the host is slow, movements add up in `moved`.
        let mut first = changed;
        while (first || self.moved != [0; 3]) && self.queue.len() < KEYS {
            first = false;
            self.packet();
        }
    }

    /// Queues one packet and takes from `moved` what it tells.
    fn packet(&mut self) {
        let [dx, dy, dz] = &mut self.moved;
        let (x, y) = ((*dx).clamp(-256, 255), (*dy).clamp(-256, 255));
        *dx = dx.saturating_sub(x);
        *dy = dy.saturating_sub(y);
        let z = (*dz).clamp(-8, 7);
        *dz = if self.id == 0 { 0 } else { dz.saturating_sub(z) };
        let signs = if x < 0 { 0x10 } else { 0 } | if y < 0 { 0x20 } else { 0 };
        push(&mut self.queue, &[0x08 | signs | self.buttons & 7, x as u8, y as u8]);
        match self.id {
            3 => push(&mut self.queue, &[z as u8]),
            4 => push(&mut self.queue, &[z as u8 & 0x0f | (self.buttons & 0x18) << 1]),
            _ => {}
        }
    }

    /// A byte from the host.
    pub fn write(&mut self, value: u8) {
        if self.wrap && !matches!(value, 0xec | 0xff) {
            push(&mut self.queue, &[value]);
            return;
        }
        if let Some(command) = self.command.take() {
            self.parameter(command, value);
            return;
        }
        if value != RESEND {
            self.queue.clear();
        }
        match value {
            0xe8 | 0xf3 => self.command = Some(value),
            0xe6 => self.double_scale = false,
            0xe7 => self.double_scale = true,
            0xea => self.remote = false,
            0xec => self.wrap = false,
            0xee => self.wrap = true,
            0xf0 => self.remote = true,
            0xf4 => self.enabled = true,
            0xf5 => self.enabled = false,
            0xf6 | 0xff => {
                self.defaults();
                if value == 0xff {
                    self.id = 0;
                    push(&mut self.queue, &[ACK, SELF_TEST_OK, 0]);
                    return;
                }
            }
            0xe9 | 0xeb | 0xf2 => {}
            0xfe => {
                push(&mut self.queue, &[self.last]);
                return;
            }
            _ => {
                push(&mut self.queue, &[RESEND]);
                return;
            }
        }
        push(&mut self.queue, &[ACK]);
        match value {
            0xe9 => {
                let mode = u8::from(self.remote) << 6
                    | u8::from(self.enabled) << 5
                    | u8::from(self.double_scale) << 4;
                let [left, right, middle] = [self.buttons & 1, self.buttons >> 1 & 1, self.buttons >> 2 & 1];
                push(&mut self.queue, &[mode | left << 2 | middle << 1 | right, self.resolution, self.rate]);
            }
            0xeb => self.packet(),
            0xf2 => push(&mut self.queue, &[self.id]),
            _ => {}
        }
    }

    fn parameter(&mut self, command: u8, value: u8) {
        if command == 0xe8 {
            self.resolution = value & 3;
        } else {
            self.rate = value;
            let [_, second, third] = self.rates;
            self.rates = [second, third, value];
            match self.rates {
                [200, 100, 80] => self.id = 3,
                [200, 200, 80] => self.id = 4,
                _ => {}
            }
        }
        push(&mut self.queue, &[ACK]);
    }

    pub fn valid(&self) -> bool {
        self.queue.len() <= QUEUE && matches!(self.id, 0 | 3 | 4) && self.buttons < 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(keyboard: &mut Keyboard, bytes: &[u8]) -> Vec<u8> {
        for byte in bytes {
            keyboard.write(*byte);
        }
        keyboard.queue.drain(..).collect()
    }

    fn tell(mouse: &mut Mouse, bytes: &[u8]) -> Vec<u8> {
        let mut answers = Vec::new();
        for byte in bytes {
            mouse.write(*byte);
            answers.extend(mouse.queue.drain(..));
        }
        answers
    }

    #[test]
    fn the_translation_is_one_to_one() {
        // 02 and 7F stand in the table for the real 83 and 84.
        for code in (1..0x7f).filter(|c| *c != 2) {
            assert_eq!(set_2(translate(code)), Some(code), "{code:#x}");
        }
        assert_eq!(
            (translate(0x1c), translate(0x76), translate(0x83), translate(0xfa)),
            (0x1e, 1, 0x41, 0xfa)
        );
    }

    #[test]
    fn keyboard_probe() {
        let mut k = Keyboard::new();
        assert_eq!(ask(&mut k, &[0xff]), [0xfa, 0xaa]);
        assert_eq!(ask(&mut k, &[0xf2]), [0xfa, 0xab, 0x83]);
        assert_eq!(ask(&mut k, &[0xed, 0x07]), [0xfa, 0xfa]);
        assert_eq!(k.leds(), 7);
        assert_eq!(ask(&mut k, &[0xf0, 0x00]), [0xfa, 0xfa, 2]);
        assert_eq!(ask(&mut k, &[0xf0, 0x03]), [0xfa, 0xfe]);
        assert_eq!(ask(&mut k, &[0xf3, 0x00]), [0xfa, 0xfa]);
        assert_eq!(ask(&mut k, &[0xf5, 0xf4]), [0xfa]);
        assert_eq!(ask(&mut k, &[0xee, 0x12]), [0xee, 0xfe]);
        assert_eq!(ask(&mut k, &[0xed, 0xf4]), [0xfa], "a command takes the parameter's place");
    }

    #[test]
    fn keys_in_both_sets() {
        let mut k = Keyboard::new();
        k.key(0x1e, true);
        k.key(0x1e, false);
        k.key(0xe048, true);
        k.key(0xe11d, true);
        assert_eq!(
            ask(&mut k, &[]),
            [0x1c, 0xf0, 0x1c, 0xe0, 0x75, 0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77]
        );
        ask(&mut k, &[0xf0, 1]);
        k.key(0xe048, false);
        assert_eq!(ask(&mut k, &[]), [0xe0, 0xc8]);
        ask(&mut k, &[0xf5]);
        k.key(0x1e, true);
        assert!(k.queue.is_empty());
    }

    #[test]
    fn mouse_probe() {
        let mut m = Mouse::new();
        assert_eq!(tell(&mut m, &[0xff]), [0xfa, 0xaa, 0]);
        assert_eq!(tell(&mut m, &[0xf2]), [0xfa, 0]);
        assert_eq!(tell(&mut m, &[0xf3, 200, 0xf3, 100, 0xf3, 80, 0xf2]).last(), Some(&3));
        assert_eq!(tell(&mut m, &[0xf3, 200, 0xf3, 200, 0xf3, 80, 0xf2]).last(), Some(&4));
        assert_eq!(tell(&mut m, &[0xe8, 3, 0xe7, 0xf4, 0xe9]), [0xfa, 0xfa, 0xfa, 0xfa, 0xfa, 0x30, 3, 80]);
        assert_eq!(tell(&mut m, &[0xe1]), [0xfe]);
        assert_eq!(tell(&mut m, &[0xee, 0x55, 0xec]), [0xfa, 0x55, 0xfa]);
    }

    #[test]
    fn mouse_packets() {
        let mut m = Mouse::new();
        m.pointer(1, 1, 0, 0);
        assert!(m.queue.is_empty(), "not enabled");
        tell(&mut m, &[0xf4]);
        m.pointer(-3, 300, 0, button::LEFT);
        assert_eq!(m.queue.drain(..).collect::<Vec<_>>(), [0x19, 0xfd, 255, 0x09, 0, 45]);
        tell(&mut m, &[0xf3, 200, 0xf3, 200, 0xf3, 80]);
        m.pointer(0, 0, -1, button::FIFTH);
        assert_eq!(m.queue.drain(..).collect::<Vec<_>>(), [0x08, 0, 0, 0x2f]);
        tell(&mut m, &[0xf0]);
        assert_eq!(tell(&mut m, &[0xeb]), [0xfa, 0x08, 0, 0, 0x20]);
        for _ in 0..1000 {
            m.pointer(100_000, 0, 0, 0);
        }
        assert!(m.valid());
    }
}
