//! Output that waits at the bottom of each screen.

use super::{Console, Input, Key, char_width};

const MORE: &str = "--MORE--";

/// Counts lines, and asks before a screen is lost.
#[derive(Default)]
pub struct Pager {
    /// Whether it asks at all.
    pub enabled: bool,
    lines: usize,
    column: usize,
    quiet: bool,
}

impl Pager {
    /// A pager that asks.
    pub fn asking() -> Self {
        Self { enabled: true, ..Self::default() }
    }

    /// A new screen starts: the user has just typed something.
    pub fn reset(&mut self) {
        *self = Self { enabled: self.enabled, ..Self::default() };
    }

    /// Writes text. False: the user has seen enough, and nothing is written until the next reset.
    pub fn write(&mut self, console: &mut dyn Console, text: &str) -> bool {
        if !self.enabled || !console.is_terminal() {
            console.write(text);
            return true;
        }
        let (columns, rows) = console.size();
        let mut from = 0;
        for (at, c) in text.char_indices() {
            if self.quiet {
                return false;
            }
            self.column += char_width(c);
            if c != '\n' && self.column <= columns {
                continue;
            }
            self.column = if c == '\n' { 0 } else { char_width(c) };
            self.lines += 1;
            if self.lines + 1 >= rows {
                let end = at + c.len_utf8();
                console.write(text.get(from..end).unwrap_or_default());
                from = end;
                self.ask(console, rows);
            }
        }
        if !self.quiet {
            console.write(text.get(from..).unwrap_or_default());
        }
        !self.quiet
    }

    fn ask(&mut self, console: &mut dyn Console, rows: usize) {
        console.write(MORE);
        self.lines = match console.key(None) {
            Input::Key(Key::Enter | Key::Down) => rows.saturating_sub(2),
            Input::Key(Key::Char('q') | Key::Ctrl('c') | Key::Escape) | Input::End => {
                self.quiet = true;
                0
            }
            _ => 0,
        };
        console.write("\r        \r");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::testing::Script;

    #[test]
    fn a_screen_at_a_time() {
        let mut console = Script::terminal(20, 4, "\r q");
        let mut pager = Pager::asking();
        assert!(!pager.write(&mut console, "1\n2\n3\n4\n5\n6\n7\n8\n9\n"));
        assert_eq!(console.output.matches(MORE).count(), 3);
        assert!(console.output.contains('7') && !console.output.contains('8'), "{}", console.output);
        pager.reset();
        assert!(pager.write(&mut console, "x\n"));
    }

    #[test]
    fn files_are_not_paged() {
        let mut console = Script::pipe("");
        let mut pager = Pager::asking();
        assert!(pager.write(&mut console, &"line\n".repeat(100)));
        assert_eq!(console.output.lines().count(), 100);
    }
}
