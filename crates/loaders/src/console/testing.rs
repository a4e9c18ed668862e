//! A user made of text.

use std::time::Duration;

use super::{Console, Decoder, Input};

/// A console whose keys are known beforehand. Where they end, so does its input.
pub struct Script {
    decoder: Decoder,
    terminal: bool,
    size: (usize, usize),
    /// All that was written.
    pub output: String,
    /// How often a wait with a time limit shall end without a key before the next key comes.
    pub timeouts: usize,
    /// The next question for an interrupt is answered with yes.
    pub interrupt: bool,
}

impl Script {
    /// A terminal on which these bytes are typed.
    pub fn terminal(columns: usize, rows: usize, typed: &str) -> Self {
        let mut decoder = Decoder::default();
        decoder.push(typed.as_bytes());
        let size = (columns, rows);
        Self { decoder, terminal: true, size, output: String::new(), timeouts: 0, interrupt: false }
    }

    /// A pipe with this text.
    pub fn pipe(text: &str) -> Self {
        Self { terminal: false, ..Self::terminal(80, 24, text) }
    }

    /// Types more.
    pub fn type_in(&mut self, text: &str) {
        self.decoder.push(text.as_bytes());
    }

    /// What a terminal would show, one line each: knows CR, LF, backspace, cursor movement and
    /// erasure.
    pub fn screen(&self) -> Vec<String> {
        screen(&self.output, self.size)
    }
}

impl Console for Script {
    fn write(&mut self, text: &str) {
        self.output.push_str(text);
    }

    fn key(&mut self, timeout: Option<Duration>) -> Input {
        if timeout.is_some() && self.timeouts > 0 {
            self.timeouts -= 1;
            return Input::Timeout;
        }
        self.decoder.next(true).map_or(Input::End, Input::Key)
    }

    fn interrupted(&mut self) -> bool {
        std::mem::take(&mut self.interrupt)
    }

    fn is_terminal(&self) -> bool {
        self.terminal
    }

    fn size(&self) -> (usize, usize) {
        self.size
    }
}

/// The rows of a screen after `output`.
pub fn screen(output: &str, (columns, rows): (usize, usize)) -> Vec<String> {
    let mut cells: Vec<Vec<char>> = vec![Vec::new()];
    let (mut row, mut column, mut top) = (0usize, 0usize, 0usize);
    let mut chars = output.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' => (row, column) = (row + 1, 0),
            '\r' => column = 0,
            '\u{8}' => column = column.saturating_sub(1),
            '\u{1b}' => {
                assert_eq!(chars.next(), Some('['), "only CSI is known");
                let mut parameters = String::new();
                let last = loop {
                    match chars.next().unwrap() {
                        c if c.is_ascii_alphabetic() => break c,
                        c => parameters.push(c),
                    }
                };
                let numbers: Vec<usize> = parameters.split(';').map(|n| n.parse().unwrap_or(0)).collect();
                let first = numbers[0];
                while cells.len() <= row {
                    cells.push(Vec::new());
                }
                match last {
                    'A' => row = row.saturating_sub(first.max(1)).max(top),
                    'B' => row += first.max(1),
                    'C' => column += first.max(1),
                    'D' => column = column.saturating_sub(first.max(1)),
                    'H' => {
                        row = top + first.max(1) - 1;
                        column = numbers.get(1).copied().unwrap_or(1).max(1) - 1;
                    }
                    'J' if first == 2 => {
                        // What was there scrolls away.
                        top = cells.len();
                        row = top;
                    }
                    'J' => {
                        cells.truncate(row + 1);
                        cells[row].truncate(column);
                    }
                    'K' => cells[row].truncate(column),
                    'm' | 'h' | 'l' => {}
                    other => panic!("CSI {parameters}{other}"),
                }
            }
            c if super::char_width(c) == 0 => {}
            c => {
                let width = super::char_width(c);
                if column + width > columns {
                    (row, column) = (row + 1, 0);
                }
                while cells.len() <= row {
                    cells.push(Vec::new());
                }
                let line = &mut cells[row];
                line.resize(line.len().max(column + width), ' ');
                line[column] = c;
                if width == 2 {
                    line[column + 1] = '\0';
                }
                column += width;
            }
        }
        while cells.len() <= row {
            cells.push(Vec::new());
        }
        top = top.max((row + 1).saturating_sub(rows));
    }
    cells[top..]
        .iter()
        .map(|line| line.iter().filter(|c| **c != '\0').collect::<String>().trim_end().to_owned())
        .collect()
}
