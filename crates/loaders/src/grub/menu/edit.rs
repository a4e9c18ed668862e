//! `e`: changes the commands of an entry for this time.

use super::Session;
use crate::console::{Complete, Input, Key, char_width};
use crate::grub::Stop;
use crate::grub::complete::Completer;

/// Most characters of an entry that is edited.
const MAX_TEXT: usize = 1 << 20;

/// The text with a cursor in it.
struct Text {
    lines: Vec<Vec<char>>,
    row: usize,
    column: usize,
    /// The first line that is shown.
    top: usize,
}

impl Text {
    fn new(text: &str) -> Self {
        let mut lines: Vec<Vec<char>> =
            text.trim_matches('\n').lines().map(|l| l.replace('\t', "    ").chars().collect()).collect();
        if lines.is_empty() {
            lines.push(Vec::new());
        }
        Self { lines, row: 0, column: 0, top: 0 }
    }

    fn text(&self) -> String {
        let lines: Vec<String> = self.lines.iter().map(|l| l.iter().collect()).collect();
        lines.join("\n")
    }

    fn line(&self) -> &[char] {
        self.lines.get(self.row).map(Vec::as_slice).unwrap_or_default()
    }

    fn insert(&mut self, c: char) {
        let length: usize = self.lines.iter().map(|l| l.len() + 1).sum();
        let column = self.column;
        if length < MAX_TEXT
            && let Some(line) = self.lines.get_mut(self.row)
        {
            line.insert(column.min(line.len()), c);
            self.column += 1;
        }
    }

    fn split(&mut self) {
        let column = self.column;
        if let Some(line) = self.lines.get_mut(self.row) {
            let rest = line.split_off(column.min(line.len()));
            self.lines.insert(self.row + 1, rest);
            (self.row, self.column) = (self.row + 1, 0);
        }
    }

    /// Removes the character under the cursor, or the end of the line.
    fn delete(&mut self) {
        let (row, column) = (self.row, self.column);
        if column < self.line().len() {
            if let Some(line) = self.lines.get_mut(row) {
                line.remove(column);
            }
        } else if row + 1 < self.lines.len() {
            let next = self.lines.remove(row + 1);
            if let Some(line) = self.lines.get_mut(row) {
                line.extend(next);
            }
        }
    }

    fn left(&mut self) -> bool {
        if self.column > 0 {
            self.column -= 1;
        } else if self.row > 0 {
            self.row -= 1;
            self.column = self.line().len();
        } else {
            return false;
        }
        true
    }

    fn vertical(&mut self, row: usize) {
        self.row = row.min(self.lines.len() - 1);
        self.column = self.column.min(self.line().len());
    }

    /// Changes the text as the key says. False: the key is not for that.
    fn key(&mut self, key: Key) -> bool {
        match key {
            Key::Char(c) => self.insert(c),
            Key::Enter => self.split(),
            Key::Backspace | Key::Ctrl('h') => {
                if self.left() {
                    self.delete();
                }
            }
            Key::Delete | Key::Ctrl('d') => self.delete(),
            Key::Left | Key::Ctrl('b') => drop(self.left()),
            Key::Right | Key::Ctrl('f') => {
                if self.column < self.line().len() {
                    self.column += 1;
                } else if self.row + 1 < self.lines.len() {
                    (self.row, self.column) = (self.row + 1, 0);
                }
            }
            Key::Up | Key::Ctrl('p') => self.vertical(self.row.saturating_sub(1)),
            Key::Down | Key::Ctrl('n') => self.vertical(self.row + 1),
            Key::PageUp => self.vertical(self.row.saturating_sub(10)),
            Key::PageDown => self.vertical(self.row + 10),
            Key::Home | Key::Ctrl('a') => self.column = 0,
            Key::End | Key::Ctrl('e') => self.column = self.line().len(),
            Key::Ctrl('k') => {
                if self.column == self.line().len() {
                    self.delete();
                } else if let Some(line) = self.lines.get_mut(self.row) {
                    line.truncate(self.column);
                }
            }
            Key::Ctrl('u') => {
                let column = std::mem::take(&mut self.column);
                if let Some(line) = self.lines.get_mut(self.row) {
                    line.drain(..column.min(line.len()));
                }
            }
            _ => return false,
        }
        true
    }

    /// The rows of a line on a screen, and where the cursor is in them.
    fn wrap(line: &[char], width: usize, cursor: usize) -> (Vec<String>, (usize, usize)) {
        let mut rows = vec![String::new()];
        let (mut column, mut at) = (0, (0, 0));
        for (n, c) in line.iter().chain([&' ']).enumerate() {
            let c = if c.is_control() { '?' } else { *c };
            if column + char_width(c) > width {
                rows.push(String::new());
                column = 0;
            }
            if n == cursor {
                at = (rows.len() - 1, column);
            }
            if n < line.len()
                && let Some(row) = rows.last_mut()
            {
                row.push(c);
            }
            column += char_width(c);
        }
        (rows, at)
    }

    /// The screen between heading and help.
    fn draw(&mut self, width: usize, height: usize) -> (Vec<String>, (usize, usize)) {
        self.top = self.top.min(self.row);
        loop {
            let mut rows = Vec::new();
            let mut cursor = None;
            for (n, line) in self.lines.iter().enumerate().skip(self.top) {
                let (wrapped, at) = Self::wrap(line, width, self.column);
                if n == self.row {
                    cursor = Some((rows.len() + at.0, at.1));
                }
                rows.extend(wrapped);
                if rows.len() >= height && cursor.is_some() {
                    break;
                }
            }
            match cursor {
                Some(at) if at.0 < height || self.top == self.row => {
                    // A single line that is larger than the screen: its end counts.
                    let skip = (at.0 + 1).saturating_sub(height);
                    let rows = rows.into_iter().skip(skip).take(height).collect();
                    return (rows, (at.0 - skip, at.1));
                }
                _ => self.top += 1,
            }
        }
    }
}

impl Session<'_> {
    /// Lets the user edit and run the entry.
    pub(super) fn edit_entry(&mut self, index: usize) {
        let Some(entry) = self.menu.entries.get(index).cloned() else { return };
        if let Err(error) = self.authenticate("") {
            self.complain(&error);
            self.wait_after_error();
            return;
        }
        let mut text = Text::new(&entry.body);
        loop {
            self.draw_editor(&mut text);
            let key = match self.console.key(None) {
                Input::Key(key) => key,
                Input::Timeout => continue,
                Input::End => {
                    self.stop = Some(Stop::InputEnd);
                    return;
                }
            };
            match key {
                Key::Escape => return,
                Key::Ctrl('c') | Key::Function(2) => {
                    self.leave_screen();
                    self.prompt(true);
                    if self.stop.is_some() {
                        return;
                    }
                }
                Key::Ctrl('x') | Key::Function(10) => {
                    self.leave_screen();
                    let complaints = self.complaints;
                    self.print("  Booting a command list\n\n");
                    self.run_body(&text.text(), entry.arguments.clone());
                    if self.stop.is_some() {
                        return;
                    }
                    if self.complaints > complaints {
                        self.wait_after_error();
                    }
                }
                Key::Tab => self.complete_in(&mut text),
                key => drop(text.key(key)),
            }
        }
    }

    /// Completes as far as there is only one way.
    fn complete_in(&self, text: &mut Text) {
        let before: String = text.line().iter().take(text.column).collect();
        let mut completer = Completer { disks: self.disks, root: self.env.get("root") };
        let found = completer.complete(&before);
        let typed = before.get(found.start..).unwrap_or_default();
        let Some(first) = found.candidates.first() else { return };
        let mut common = first.text.as_str();
        for candidate in &found.candidates {
            let shared = common.chars().zip(candidate.text.chars()).take_while(|(a, b)| a == b);
            common = common.get(..shared.map(|(c, _)| c.len_utf8()).sum()).unwrap_or_default();
        }
        let rest = common.strip_prefix(typed).unwrap_or_default();
        let suffix = if found.candidates.len() == 1 { first.suffix } else { "" };
        rest.chars().chain(suffix.chars()).for_each(|c| text.insert(c));
    }

    fn draw_editor(&mut self, text: &mut Text) {
        let (columns, rows) = self.console.size();
        let inner = columns.saturating_sub(4).max(1);
        let height = rows.saturating_sub(7).max(1);
        let (shown, cursor) = text.draw(inner, height);
        let border = format!(" +{}+\n", "-".repeat(inner));
        let mut out = format!("\x1b[0m\x1b[H\x1b[2J\n{border}");
        for row in 0..height {
            let line = shown.get(row).map(String::as_str).unwrap_or_default();
            let pad = inner.saturating_sub(crate::console::text_width(line));
            out.push_str(&format!(" |{line}{:pad$}|\n", ""));
        }
        out.push_str(&border);
        out.push_str("  Ctrl-x or F10 runs the commands, Ctrl-c or F2 gives a prompt,\n");
        out.push_str("  ESC goes back and forgets the changes.");
        out.push_str(&format!("\x1b[{};{}H", cursor.0 + 3, cursor.1 + 3));
        self.console.write(&out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn editing() {
        let mut text = Text::new("\n\tlinux /vmlinuz\n\tinitrd /i\n");
        assert_eq!(text.text(), "    linux /vmlinuz\n    initrd /i");
        for key in [Key::End, Key::Char(' '), Key::Char('x'), Key::Down, Key::End, Key::Backspace] {
            assert!(text.key(key));
        }
        assert_eq!(text.text(), "    linux /vmlinuz x\n    initrd /");
        for key in [Key::Home, Key::Backspace, Key::Enter, Key::Up, Key::Ctrl('k')] {
            text.key(key);
        }
        assert_eq!(text.text(), "\n    initrd /");
        text.key(Key::Ctrl('k'));
        assert_eq!(text.text(), "    initrd /");
        assert!(!text.key(Key::Ctrl('x')));
    }

    #[test]
    fn long_lines_wrap_and_the_cursor_stays_on_the_screen() {
        let mut text = Text::new(&format!("{}\nb\nc", "x".repeat(25)));
        assert_eq!(
            text.draw(10, 4),
            (["xxxxxxxxxx", "xxxxxxxxxx", "xxxxx", "b"].map(String::from).to_vec(), (0, 0))
        );
        text.key(Key::PageDown);
        assert_eq!(text.draw(10, 4), (["b", "c"].map(String::from).to_vec(), (1, 0)));
        text.key(Key::PageUp);
        text.key(Key::End);
        let (rows, cursor) = text.draw(10, 2);
        assert_eq!((rows, cursor), (["xxxxxxxxxx", "xxxxx"].map(String::from).to_vec(), (1, 5)));
    }
}
