//! A line editor with history and completion.

use super::{Console, Input, Key, Pager, char_width, text_width};

/// Longest line in characters; what comes after is dropped.
const MAX_LINE: usize = 16 << 10;
/// Lines that the history keeps.
const MAX_HISTORY: usize = 200;
/// Most candidates that are listed.
const MAX_LISTED: usize = 2000;
const BELL: &str = "\x07";

/// What the user answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A line, without its end.
    Text(String),
    /// Ctrl-C.
    Interrupted,
    /// Escape.
    Escape,
    /// There is no more input.
    End,
}

/// One way to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What stands in the line instead of what is there from [`Completion::start`] on.
    pub text: String,
    /// How it is listed.
    pub shown: String,
    /// What follows if nothing else is possible, such as a blank.
    pub suffix: &'static str,
}

/// All ways to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// Byte of the line from which on the candidates replace it, up to the cursor.
    pub start: usize,
    /// What they are: `commands`, `files`.
    pub title: &'static str,
    /// The candidates.
    pub candidates: Vec<Candidate>,
}

/// Knows how lines go on.
pub trait Complete {
    /// Ways to complete what stands before the cursor, all of the argument.
    fn complete(&mut self, before: &str) -> Completion;
}

/// Knows nothing.
pub struct NoCompletion;

impl Complete for NoCompletion {
    fn complete(&mut self, _: &str) -> Completion {
        Completion::default()
    }
}

/// Asks for lines, and remembers them.
#[derive(Default)]
pub struct LineEditor {
    history: Vec<String>,
    killed: Vec<char>,
}

/// A line that is being edited.
struct Edit<'a> {
    console: &'a mut dyn Console,
    prompt: &'a str,
    text: Vec<char>,
    cursor: usize,
    /// The screen row of the cursor, counted from the prompt's.
    row: usize,
}

/// What a key leads to.
enum Next {
    Go,
    Done(Line),
}

impl LineEditor {
    /// Remembers a line as if it had been typed.
    pub fn remember(&mut self, line: &str) {
        if line.trim().is_empty() || self.history.last().is_some_and(|last| last == line) {
            return;
        }
        if self.history.len() == MAX_HISTORY {
            self.history.remove(0);
        }
        self.history.push(line.to_owned());
    }

    /// Asks for a line.
    pub fn read(&mut self, console: &mut dyn Console, prompt: &str, complete: &mut dyn Complete) -> Line {
        self.edit(console, prompt, "", complete)
    }

    /// Asks for a line that starts as `text`.
    pub fn edit(
        &mut self,
        console: &mut dyn Console,
        prompt: &str,
        text: &str,
        complete: &mut dyn Complete,
    ) -> Line {
        console.write(prompt);
        if !console.is_terminal() {
            return plain(console);
        }
        let mut edit = Edit { console, prompt, text: Vec::new(), cursor: 0, row: 0 };
        edit.insert(&text.chars().collect::<Vec<_>>());
        // Where we are in the history, and the lines as they were changed on the way.
        let mut lines = self.history.clone();
        lines.push(text.to_owned());
        let mut at = lines.len() - 1;
        let mut tabs = 0;
        loop {
            let key = match edit.console.key(None) {
                Input::Key(key) => key,
                Input::Timeout => continue,
                Input::End => {
                    edit.finish();
                    // A line that the end cuts off is not run.
                    return Line::End;
                }
            };
            tabs = if key == Key::Tab { tabs + 1 } else { 0 };
            match key {
                Key::Tab => edit.complete(complete, tabs > 1),
                Key::Up | Key::Ctrl('p') if at > 0 => edit.swap(&mut lines, &mut at, |n| n - 1),
                Key::Down | Key::Ctrl('n') if at + 1 < lines.len() => {
                    edit.swap(&mut lines, &mut at, |n| n + 1);
                }
                Key::Up | Key::Down | Key::Ctrl('p' | 'n') => edit.console.write(BELL),
                key => match self.key(&mut edit, key) {
                    Next::Go => {}
                    Next::Done(line) => {
                        if let Line::Text(text) = &line {
                            self.remember(text);
                        }
                        return line;
                    }
                },
            }
        }
    }

    fn key(&mut self, edit: &mut Edit, key: Key) -> Next {
        match key {
            Key::Enter => {
                edit.finish();
                return Next::Done(Line::Text(edit.text.iter().collect()));
            }
            Key::Ctrl('c') => {
                edit.finish();
                return Next::Done(Line::Interrupted);
            }
            Key::Escape => {
                edit.finish();
                return Next::Done(Line::Escape);
            }
            Key::Char(c) => edit.insert(&[c]),
            Key::Left | Key::Ctrl('b') => edit.go(edit.cursor.saturating_sub(1)),
            Key::Right | Key::Ctrl('f') => edit.go(edit.cursor + 1),
            Key::Home | Key::Ctrl('a') => edit.go(0),
            Key::End | Key::Ctrl('e') => edit.go(edit.text.len()),
            Key::Alt('b') => edit.go(edit.word_left()),
            Key::Alt('f') => edit.go(edit.word_right()),
            Key::Backspace | Key::Ctrl('h') => drop(edit.remove(edit.cursor.saturating_sub(1), edit.cursor)),
            Key::Delete | Key::Ctrl('d') => drop(edit.remove(edit.cursor, edit.cursor + 1)),
            Key::Ctrl('k') => self.killed = edit.remove(edit.cursor, edit.text.len()),
            Key::Ctrl('u') => self.killed = edit.remove(0, edit.cursor),
            Key::Ctrl('w') | Key::Alt('\u{8}') => self.killed = edit.remove(edit.word_left(), edit.cursor),
            Key::Alt('d') => self.killed = edit.remove(edit.cursor, edit.word_right()),
            Key::Ctrl('y') => edit.insert(&self.killed),
            Key::Ctrl('l') => {
                edit.console.write("\x1b[H\x1b[2J");
                edit.row = 0;
                edit.draw();
            }
            _ => {}
        }
        Next::Go
    }
}

/// Reads a line from what is no terminal.
fn plain(console: &mut dyn Console) -> Line {
    let mut text = String::new();
    loop {
        match console.key(None) {
            Input::Key(Key::Enter) => return Line::Text(text),
            Input::Key(Key::Char(c)) if text.len() < MAX_LINE => text.push(c),
            Input::Key(Key::Tab) if text.len() < MAX_LINE => text.push('\t'),
            Input::Key(Key::Ctrl('c')) => return Line::Interrupted,
            Input::Key(_) | Input::Timeout => {}
            Input::End if text.is_empty() => return Line::End,
            // The last line of a script may lack its end.
            Input::End => return Line::Text(text),
        }
    }
}

/// Asks for something that is not shown. `None`: the user gave up.
pub fn secret(console: &mut dyn Console, prompt: &str) -> Option<String> {
    console.write(prompt);
    let mut text = String::new();
    let answer = loop {
        match console.key(None) {
            Input::Key(Key::Enter) => break Some(text),
            Input::Key(Key::Char(c)) if text.len() < MAX_LINE => text.push(c),
            Input::Key(Key::Backspace | Key::Ctrl('h')) => drop(text.pop()),
            Input::Key(Key::Ctrl('u')) => text.clear(),
            Input::Key(Key::Ctrl('c') | Key::Escape) => break None,
            Input::Key(_) | Input::Timeout => {}
            Input::End => break if text.is_empty() { None } else { Some(text) },
        }
    };
    console.write("\n");
    answer
}

impl Edit<'_> {
    /// Where the cursor is after `count` characters, and how to draw up to there.
    fn layout(&self, count: usize, columns: usize, drawn: &mut String) -> (usize, usize) {
        let (mut row, mut column) = (0, 0);
        for c in self.prompt.chars().chain(self.text.iter().copied().take(count)) {
            let width = width(c);
            if column + width > columns {
                drawn.push('\n');
                (row, column) = (row + 1, 0);
            }
            push(drawn, c);
            column += width;
        }
        // A full row: terminals differ in where the cursor is then.
        if column >= columns {
            drawn.push('\n');
            (row, column) = (row + 1, 0);
        }
        (row, column)
    }

    /// Draws prompt and line anew over what is there.
    fn draw(&mut self) {
        let columns = self.console.size().0.max(2);
        let mut out = String::new();
        up(&mut out, self.row);
        out.push_str("\r\x1b[J");
        let (end, _) = self.layout(self.text.len(), columns, &mut out);
        let (row, column) = self.layout(self.cursor, columns, &mut String::new());
        up(&mut out, end - row);
        out.push('\r');
        if column > 0 {
            out.push_str(&format!("\x1b[{column}C"));
        }
        self.row = row;
        self.console.write(&out);
    }

    fn insert(&mut self, new: &[char]) {
        let room = MAX_LINE.saturating_sub(self.text.len());
        let new = new.get(..new.len().min(room)).unwrap_or_default();
        if new.is_empty() {
            return;
        }
        let at_end = self.cursor == self.text.len();
        self.text.splice(self.cursor..self.cursor, new.iter().copied());
        self.cursor += new.len();
        let columns = self.console.size().0.max(2);
        let (row, column) = self.layout(self.cursor, columns, &mut String::new());
        // The common case costs one character on a slow line.
        if at_end && row == self.row && column > 0 && new.iter().all(|c| width(*c) > 0) {
            let mut out = String::new();
            for c in new {
                push(&mut out, *c);
            }
            self.console.write(&out);
        } else {
            self.draw();
        }
    }

    fn remove(&mut self, from: usize, to: usize) -> Vec<char> {
        let to = to.min(self.text.len());
        if from >= to {
            return Vec::new();
        }
        let removed = self.text.drain(from..to).collect();
        self.cursor = from;
        self.draw();
        removed
    }

    fn go(&mut self, to: usize) {
        let to = to.min(self.text.len());
        if to != self.cursor {
            self.cursor = to;
            self.draw();
        }
    }

    fn word_left(&self) -> usize {
        let mut at = self.cursor;
        let before = |at: usize| at.checked_sub(1).and_then(|n| self.text.get(n));
        while before(at).is_some_and(|c| c.is_whitespace()) {
            at -= 1;
        }
        while before(at).is_some_and(|c| !c.is_whitespace()) {
            at -= 1;
        }
        at
    }

    fn word_right(&self) -> usize {
        let mut at = self.cursor;
        while self.text.get(at).is_some_and(|c| c.is_whitespace()) {
            at += 1;
        }
        while self.text.get(at).is_some_and(|c| !c.is_whitespace()) {
            at += 1;
        }
        at
    }

    /// Takes another line of the history.
    fn swap(&mut self, lines: &mut [String], at: &mut usize, step: fn(usize) -> usize) {
        if let Some(line) = lines.get_mut(*at) {
            *line = self.text.iter().collect();
        }
        *at = step(*at);
        self.text = lines.get(*at).map(|l| l.chars().collect()).unwrap_or_default();
        self.cursor = self.text.len();
        self.draw();
    }

    /// Leaves the cursor under the line.
    fn finish(&mut self) {
        self.go(self.text.len());
        self.console.write("\n");
    }

    fn complete(&mut self, complete: &mut dyn Complete, list: bool) {
        let before: String = self.text.iter().take(self.cursor).collect();
        let found = complete.complete(&before);
        let Some(typed) = before.get(found.start..) else { return };
        let Some(first) = found.candidates.first() else {
            self.console.write(BELL);
            return;
        };
        let mut common = first.text.clone();
        for candidate in &found.candidates {
            let shared = common.chars().zip(candidate.text.chars()).take_while(|(a, b)| a == b);
            common.truncate(shared.map(|(a, _)| a.len_utf8()).sum());
        }
        let only = found.candidates.len() == 1;
        if only {
            common.push_str(first.suffix);
        }
        if common.len() > typed.len() || only {
            let start = self.cursor - typed.chars().count();
            let new: Vec<char> = common.chars().collect();
            if common.starts_with(typed) {
                self.insert(new.get(typed.chars().count()..).unwrap_or_default());
            } else {
                self.remove(start, self.cursor);
                self.insert(&new);
            }
        } else if list {
            self.list(&found);
        } else {
            self.console.write(BELL);
        }
    }

    fn list(&mut self, found: &Completion) {
        let at = self.cursor;
        self.finish();
        let shown: Vec<&str> = found.candidates.iter().take(MAX_LISTED).map(|c| c.shown.as_str()).collect();
        let width = shown.iter().map(|s| text_width(s)).max().unwrap_or(0) + 2;
        let per_row = (self.console.size().0.saturating_sub(1) / width).max(1);
        let mut out = format!("Possible {} are:\n\n", found.title);
        for row in shown.chunks(per_row) {
            let mut line = String::new();
            for text in row {
                line.push_str(text);
                line.extend(std::iter::repeat_n(' ', width - text_width(text)));
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        if found.candidates.len() > MAX_LISTED {
            out.push_str(&format!("… and {} more\n", found.candidates.len() - MAX_LISTED));
        }
        out.push('\n');
        let mut pager = Pager::asking();
        pager.write(self.console, &out);
        self.row = 0;
        self.cursor = at;
        self.draw();
    }
}

/// Control characters in a line are shown as `^X`.
fn width(c: char) -> usize {
    if c.is_control() { 2 } else { char_width(c) }
}

fn push(out: &mut String, c: char) {
    if c.is_control() {
        out.push('^');
        out.push(char::from_u32((u32::from(c) & 0x1f) | 0x40).unwrap_or('?'));
    } else {
        out.push(c);
    }
}

fn up(out: &mut String, rows: usize) {
    if rows > 0 {
        out.push_str(&format!("\x1b[{rows}A"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::testing::Script;

    fn typed(keys: &str) -> (Line, Script) {
        let mut console = Script::terminal(20, 10, keys);
        let line = LineEditor::default().read(&mut console, "> ", &mut NoCompletion);
        (line, console)
    }

    #[test]
    fn editing_keys() {
        let cases = [
            ("abc\r", "abc"),
            ("abc\x1b[D\x1b[DX\r", "aXbc"),
            ("abc\x01X\x05Y\r", "XabcY"),
            ("one two three\x17\x17X\r", "one X"),
            ("one two\x15\x19\x19\r", "one twoone two"),
            ("one two\x1bb\x0b\x01\x19\r", "twoone "),
            ("abc\x02\x02\x04\r", "ac"),
            ("abc\x08\x7f\r", "a"),
            ("abc\x1b[H\x1b[3~\r", "bc"),
            ("one two\x01\x1bfX\r", "oneX two"),
            ("one two\x01\x1bd\r", " two"),
            ("中文\x1b[DX\r", "中X文"),
            ("a\x0cb\r", "ab"),
        ];
        for (keys, expected) in cases {
            assert_eq!(typed(keys).0, Line::Text(expected.into()), "{keys:?}");
        }
        assert_eq!(typed("abc\x03").0, Line::Interrupted);
        assert_eq!(typed("abc\x1b").0, Line::Escape);
        assert_eq!(typed("abc").0, Line::End);
    }

    #[test]
    fn the_screen_shows_what_is_edited() {
        // Wraps at 20 columns, with the prompt's two; then is edited in the first row.
        let (line, console) = typed(&format!("{}\x01XY\r", "0123456789".repeat(3)));
        assert_eq!(line, Line::Text(format!("XY{}", "0123456789".repeat(3))));
        assert_eq!(console.screen(), ["> XY0123456789012345", "67890123456789", ""]);
        let (_, console) = typed("0123456789012345中文\x02\x02\x02Z\r");
        assert_eq!(console.screen(), ["> 012345678901234Z5", "中文", ""], "{:?}", console.output);
        let (_, console) = typed("0123456789012345678901\x15ab\r");
        assert_eq!(console.screen(), ["> ab", ""]);
        // Exactly one row.
        let (_, console) = typed("012345678901234567\r");
        assert_eq!(console.screen(), ["> 012345678901234567", "", ""]);
    }

    #[test]
    fn history_keeps_what_is_half_typed() {
        let mut console = Script::terminal(40, 10, "one\rtwo\rthr\x1b[A\x1b[A\x1b[A\x0e\x0eee\r\x10\x10\r");
        let mut editor = LineEditor::default();
        let mut read = || editor.read(&mut console, "> ", &mut NoCompletion);
        let lines = [read(), read(), read(), read()];
        assert_eq!(lines, ["one", "two", "three", "two"].map(|l| Line::Text(l.into())));
    }

    struct Words(&'static [&'static str]);

    impl Complete for Words {
        fn complete(&mut self, before: &str) -> Completion {
            let start = before.rfind(' ').map_or(0, |n| n + 1);
            let words = self.0.iter().filter(|w| w.starts_with(&before[start..]));
            let candidates =
                words.map(|w| Candidate { text: (*w).into(), shown: (*w).into(), suffix: " " }).collect();
            Completion { start, title: "words", candidates }
        }
    }

    #[test]
    fn completion() {
        let mut words = Words(&["initrd", "initrd16", "insmod", "ls"]);
        let mut console = Script::terminal(40, 20, "l\tx\r");
        let mut editor = LineEditor::default();
        assert_eq!(editor.read(&mut console, "> ", &mut words), Line::Text("ls x".into()));
        console.type_in("a ini\t\t\t\r");
        assert_eq!(editor.read(&mut console, "> ", &mut words), Line::Text("a initrd".into()));
        let screen = console.screen();
        let at = screen.iter().position(|l| l == "Possible words are:").unwrap();
        assert_eq!(screen[at + 2], "initrd    initrd16", "{screen:?}");
        assert_eq!(screen[at + 4], "> a initrd");
        console.type_in("zz\t\r");
        assert_eq!(editor.read(&mut console, "> ", &mut words), Line::Text("zz".into()));
    }

    #[test]
    fn a_pipe_is_read_as_it_is() {
        let mut console = Script::pipe("ls\nset a\tb\nlast");
        let mut editor = LineEditor::default();
        let mut read = || editor.read(&mut console, "> ", &mut NoCompletion);
        let lines = [read(), read(), read(), read()];
        let text = |t: &str| Line::Text(t.into());
        assert_eq!(lines, [text("ls"), text("set a\tb"), text("last"), Line::End]);
        assert_eq!(console.output, "> > > > ");
    }

    #[test]
    fn secrets_are_not_shown() {
        let mut console = Script::terminal(40, 10, "passx\x7f\r");
        assert_eq!(secret(&mut console, "Password: ").as_deref(), Some("pass"));
        assert_eq!(console.output, "Password: \n");
    }
}
