//! Keys out of the bytes that a terminal sends.

use std::collections::VecDeque;

/// A key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A character.
    Char(char),
    /// Ctrl and a lower-case letter or one of `@[\]^_`.
    Ctrl(char),
    /// Alt (or Escape before) and a character.
    Alt(char),
    /// Return.
    Enter,
    /// Tabulator.
    Tab,
    /// Erases to the left.
    Backspace,
    /// Erases under the cursor.
    Delete,
    /// Insert.
    Insert,
    /// Escape alone.
    Escape,
    /// Cursor up.
    Up,
    /// Cursor down.
    Down,
    /// Cursor left.
    Left,
    /// Cursor right.
    Right,
    /// Start of line.
    Home,
    /// End of line.
    End,
    /// Page up.
    PageUp,
    /// Page down.
    PageDown,
    /// F1 to F12.
    Function(u8),
    /// A sequence that means nothing here.
    Unknown,
}

/// Longest control sequence that is waited for.
const MAX_SEQUENCE: usize = 16;
const ESCAPE: u8 = 0x1b;

/// Turns bytes into keys. Bytes of an unfinished key wait for more.
#[derive(Default)]
pub struct Decoder {
    bytes: VecDeque<u8>,
    after_return: bool,
}

/// What the first bytes are.
enum Found {
    /// A key of so many bytes.
    Key(Key, usize),
    /// The start of something.
    More,
}

impl Decoder {
    /// Adds bytes from the terminal.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// Whether an unfinished key waits.
    pub fn is_pending(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Removes a Ctrl-C with all that was typed before it.
    pub fn take_interrupt(&mut self) -> bool {
        match self.bytes.iter().rposition(|b| *b == 3) {
            Some(at) => {
                self.bytes.drain(..=at);
                true
            }
            None => false,
        }
    }

    /// The next key. With `flush`, nothing more comes soon: an unfinished sequence is an Escape
    /// with characters after it.
    pub fn next(&mut self, flush: bool) -> Option<Key> {
        loop {
            let bytes: Vec<u8> = self.bytes.iter().copied().take(MAX_SEQUENCE).collect();
            let first = *bytes.first()?;
            // CR LF is one Enter.
            if first == b'\n' && std::mem::take(&mut self.after_return) {
                self.bytes.pop_front();
                continue;
            }
            self.after_return = first == b'\r';
            let (key, used) = match decode(&bytes) {
                Found::Key(key, used) => (key, used),
                Found::More if !flush && bytes.len() < MAX_SEQUENCE => return None,
                Found::More if first == ESCAPE => (Key::Escape, 1),
                Found::More => (Key::Char(char::REPLACEMENT_CHARACTER), 1),
            };
            self.bytes.drain(..used);
            return Some(key);
        }
    }
}

fn decode(bytes: &[u8]) -> Found {
    let Some(&first) = bytes.first() else { return Found::More };
    match first {
        ESCAPE => escape(bytes),
        b'\r' | b'\n' => Found::Key(Key::Enter, 1),
        b'\t' => Found::Key(Key::Tab, 1),
        8 | 0x7f => Found::Key(Key::Backspace, 1),
        0..=0x1f => Found::Key(Key::Ctrl(char::from(first | 0x40).to_ascii_lowercase()), 1),
        _ => character(bytes),
    }
}

fn character(bytes: &[u8]) -> Found {
    let wanted = match bytes.first() {
        Some(0..=0x7f) => 1,
        Some(0xc2..=0xdf) => 2,
        Some(0xe0..=0xef) => 3,
        Some(0xf0..=0xf4) => 4,
        _ => return Found::Key(Key::Char(char::REPLACEMENT_CHARACTER), 1),
    };
    let have = bytes.get(..wanted.min(bytes.len())).unwrap_or_default();
    match std::str::from_utf8(have) {
        Ok(text) => match text.chars().next() {
            Some(c) => Found::Key(Key::Char(c), wanted),
            None => Found::More,
        },
        Err(error) if error.error_len().is_none() => Found::More,
        Err(error) => Found::Key(Key::Char(char::REPLACEMENT_CHARACTER), error.error_len().unwrap_or(1)),
    }
}

/// Sequences as xterm, the Linux console and VT220 send them.
fn escape(bytes: &[u8]) -> Found {
    match bytes.get(1) {
        None => Found::More,
        Some(b'[') => match bytes.get(2) {
            // The Linux console's F1 to F5.
            Some(b'[') => match bytes.get(3) {
                Some(c @ b'A'..=b'E') => Found::Key(Key::Function(c - b'A' + 1), 4),
                Some(_) => Found::Key(Key::Unknown, 4),
                None => Found::More,
            },
            _ => control_sequence(bytes),
        },
        Some(b'O') => match bytes.get(2) {
            None => Found::More,
            Some(c @ b'P'..=b'S') => Found::Key(Key::Function(c - b'P' + 1), 3),
            Some(b'M') => Found::Key(Key::Enter, 3),
            Some(c) => Found::Key(letter(*c), 3),
        },
        Some(&ESCAPE) => Found::Key(Key::Escape, 1),
        Some(b'\r' | b'\n') => Found::Key(Key::Escape, 1),
        Some(8 | 0x7f) => Found::Key(Key::Alt('\u{8}'), 2),
        Some(0..=0x1f) => Found::Key(Key::Escape, 1),
        Some(_) => match character(bytes.get(1..).unwrap_or_default()) {
            Found::Key(Key::Char(c), used) => Found::Key(Key::Alt(c), used + 1),
            other => other,
        },
    }
}

/// ECMA-48 5.4: parameters 30h to 3Fh, intermediates 20h to 2Fh, one final byte 40h to 7Eh.
fn control_sequence(bytes: &[u8]) -> Found {
    let rest = bytes.get(2..).unwrap_or_default();
    let Some(length) = rest.iter().position(|b| !(0x20..=0x3f).contains(b)) else { return Found::More };
    let used = 3 + length;
    let number = rest
        .iter()
        .take_while(|b| b.is_ascii_digit())
        .try_fold(0u16, |n, b| n.checked_mul(10)?.checked_add(u16::from(b - b'0')));
    let key = match rest.get(length) {
        Some(b'~') => match number {
            Some(1 | 7) => Key::Home,
            Some(2) => Key::Insert,
            Some(3) => Key::Delete,
            Some(4 | 8) => Key::End,
            Some(5) => Key::PageUp,
            Some(6) => Key::PageDown,
            Some(n @ 11..=15) => Key::Function((n - 10) as u8),
            Some(n @ 17..=21) => Key::Function((n - 11) as u8),
            Some(n @ 23..=24) => Key::Function((n - 12) as u8),
            _ => Key::Unknown,
        },
        Some(c @ 0x40..=0x7e) => letter(*c),
        // Not a sequence after all; what breaks it off is looked at anew.
        _ => return Found::Key(Key::Unknown, 2 + length),
    };
    Found::Key(key, used)
}

fn letter(c: u8) -> Key {
    match c {
        b'A' => Key::Up,
        b'B' => Key::Down,
        b'C' => Key::Right,
        b'D' => Key::Left,
        b'H' => Key::Home,
        b'F' => Key::End,
        _ => Key::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut decoder = Decoder::default();
        decoder.push(bytes);
        std::iter::from_fn(|| decoder.next(true)).collect()
    }

    #[test]
    fn sequences() {
        let cases: &[(&[u8], Key)] = &[
            (b"\x1b[A", Key::Up),
            (b"\x1bOB", Key::Down),
            (b"\x1b[1;5C", Key::Right),
            (b"\x1b[3~", Key::Delete),
            (b"\x1b[H", Key::Home),
            (b"\x1b[4~", Key::End),
            (b"\x1bOP", Key::Function(1)),
            (b"\x1b[[B", Key::Function(2)),
            (b"\x1b[21~", Key::Function(10)),
            (b"\x1b[24~", Key::Function(12)),
            (b"\x1bb", Key::Alt('b')),
            (b"\x18", Key::Ctrl('x')),
            (b"\x00", Key::Ctrl('@')),
            (b"\x7f", Key::Backspace),
            (b"\r\n", Key::Enter),
            (b"\x1b", Key::Escape),
            ("\u{4e2d}".as_bytes(), Key::Char('\u{4e2d}')),
            (b"\xff", Key::Char('\u{fffd}')),
            (b"\x1b[999999999999~", Key::Unknown),
        ];
        for (bytes, key) in cases {
            assert_eq!(keys(bytes), [*key], "{bytes:?}");
        }
    }

    #[test]
    fn pieces_wait_for_the_rest() {
        let mut decoder = Decoder::default();
        for piece in [&b"\x1b"[..], b"[", b"1;"] {
            decoder.push(piece);
            assert_eq!(decoder.next(false), None);
        }
        decoder.push(b"5D\xe4");
        assert_eq!(decoder.next(false), Some(Key::Left));
        assert_eq!(decoder.next(false), None);
        decoder.push(b"\xb8\xad");
        assert_eq!(decoder.next(false), Some(Key::Char('\u{4e2d}')));
        assert!(!decoder.is_pending());
    }

    #[test]
    fn a_sequence_without_end_does_not_wait_for_ever() {
        let mut decoder = Decoder::default();
        decoder.push(&[b"\x1b[".as_slice(), &[b'1'; 100]].concat());
        assert_eq!(decoder.next(false), Some(Key::Escape));
    }

    #[test]
    fn an_interrupt_drops_what_was_typed_before() {
        let mut decoder = Decoder::default();
        decoder.push(b"abc\x03de");
        assert!(decoder.take_interrupt() && !decoder.take_interrupt());
        assert_eq!(decoder.next(true), Some(Key::Char('d')));
    }
}
