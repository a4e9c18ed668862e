//! The menu on a terminal.

use std::time::{Duration, Instant};

use super::{Choice, Session, tick};
use crate::console::{Input, Key, clip, text_width};
use crate::grub::Stop;

/// Rows around the entries: heading, borders, help, countdown.
const AROUND: usize = 10;

/// What is on the screen.
struct View {
    selected: usize,
    /// The first entry that is shown.
    top: usize,
    columns: usize,
    /// Entries that fit.
    rows: usize,
}

impl View {
    /// Keeps the selected entry on the screen.
    fn scroll(&mut self) {
        if self.selected < self.top {
            self.top = self.selected;
        } else if self.selected >= self.top + self.rows {
            self.top = self.selected + 1 - self.rows;
        }
    }
}

/// GRUB's colours as SGR codes.
fn color(names: &str) -> Option<String> {
    const NAMES: [&str; 8] = ["black", "blue", "green", "cyan", "red", "magenta", "brown", "light-gray"];
    const BRIGHT: [&str; 8] = [
        "dark-gray",
        "light-blue",
        "light-green",
        "light-cyan",
        "light-red",
        "light-magenta",
        "yellow",
        "white",
    ];
    /// The PC's order of colours to that of ECMA-48.
    const CODES: [u8; 8] = [0, 4, 2, 6, 1, 5, 3, 7];
    let number = |name: &str| {
        let normal = NAMES.iter().position(|n| *n == name).map(|n| (n, false));
        let (n, bright) = normal.or_else(|| BRIGHT.iter().position(|n| *n == name).map(|n| (n, true)))?;
        Some((*CODES.get(n)?, bright))
    };
    let (front, back) = names.split_once('/')?;
    let ((front, bright), (back, _)) = (number(front)?, number(back)?);
    Some(format!("\x1b[0;{}3{front};4{back}m", if bright { "1;" } else { "" }))
}

impl Session<'_> {
    pub(super) fn choose_from_list(
        &mut self,
        mut deadline: Option<Instant>,
        start: usize,
        nested: bool,
    ) -> Choice {
        let mut view = View { selected: start, top: 0, columns: 0, rows: 1 };
        self.draw_menu(&mut view, nested);
        loop {
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            self.draw_countdown(&view, left);
            let last = self.menu.entries.len().saturating_sub(1);
            let before = view.selected;
            let key = match self.console.key(Some(left.map_or(Duration::from_secs(1), |l| l.min(tick(l))))) {
                Input::Key(key) => key,
                Input::Timeout if left.is_some_and(|l| l.is_zero()) => return Choice::Auto(start),
                Input::Timeout => {
                    // The window may have changed its size.
                    if self.console.size().0 != view.columns || self.rows() != view.rows {
                        self.draw_menu(&mut view, nested);
                    }
                    continue;
                }
                Input::End => {
                    self.stop = Some(Stop::InputEnd);
                    return Choice::Leave;
                }
            };
            deadline = None;
            self.draw_countdown(&view, None);
            match key {
                Key::Up | Key::Ctrl('p') | Key::Char('^') => view.selected = before.saturating_sub(1),
                Key::Down | Key::Ctrl('n') | Key::Char('v') if self.hotkey_entry(key).is_none() => {
                    view.selected = (before + 1).min(last);
                }
                Key::Home | Key::Ctrl('a') => view.selected = 0,
                Key::End | Key::Ctrl('e') => view.selected = last,
                Key::PageUp | Key::Ctrl('g') => view.selected = before.saturating_sub(view.rows),
                Key::PageDown => view.selected = (before + view.rows).min(last),
                Key::Enter | Key::Right | Key::Ctrl('f') => return Choice::Run(before),
                Key::Escape if nested && self.menu.nested > 0 => return Choice::Leave,
                Key::Char('c') if self.hotkey_entry(key).is_none() => {
                    self.leave_screen();
                    self.menu_prompt();
                    if self.stop.is_some() {
                        return Choice::Leave;
                    }
                    self.draw_menu(&mut view, nested);
                }
                Key::Char('e') if self.hotkey_entry(key).is_none() => {
                    self.leave_screen();
                    self.edit_entry(before);
                    if self.stop.is_some() {
                        return Choice::Leave;
                    }
                    self.draw_menu(&mut view, nested);
                }
                key => {
                    if let Some(index) = self.hotkey_entry(key) {
                        return Choice::Run(index);
                    }
                }
            }
            if view.selected != before {
                self.move_selection(&mut view, before, nested);
            }
        }
    }

    fn rows(&self) -> usize {
        self.console.size().1.saturating_sub(AROUND).max(1)
    }

    pub(super) fn leave_screen(&mut self) {
        self.console.write("\x1b[0m\x1b[H\x1b[2J");
        self.column = 0;
    }

    fn draw_menu(&mut self, view: &mut View, nested: bool) {
        view.columns = self.console.size().0;
        view.rows = self.rows();
        view.scroll();
        let inner = view.columns.saturating_sub(4).max(1);
        let heading = concat!("grub-bhyve ", env!("CARGO_PKG_VERSION"));
        let indent = view.columns.saturating_sub(heading.len()) / 2;
        let mut out = String::from("\x1b[0m\x1b[H\x1b[2J");
        out.push_str(&format!("{:indent$}{heading}\n\n", ""));
        let border = format!(" +{}+\n", "-".repeat(inner));
        out.push_str(&border);
        for row in 0..view.rows {
            out.push_str(&self.entry_line(view, view.top + row));
            out.push('\n');
        }
        out.push_str(&border);
        let leave = if nested && self.menu.nested > 0 { ", ESC goes back" } else { "" };
        let help = format!(
            "  Up and Down select an entry, Enter runs it,\n  `e' edits its commands, `c' gives a prompt{leave}.\n"
        );
        out.push_str(&help);
        self.console.write(&out);
    }

    /// One row of the list.
    fn entry_line(&self, view: &View, index: usize) -> String {
        let inner = view.columns.saturating_sub(4).max(1);
        let (text, selected) = match self.menu.entries.get(index) {
            Some(entry) if index == view.selected => (format!("*{}", entry.title), true),
            Some(entry) => (format!(" {}", entry.title), false),
            None => (String::new(), false),
        };
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let text = clip(&text, inner);
        let pad = inner - text_width(text).min(inner);
        let more = if index == view.top && view.top > 0 {
            "^"
        } else if index + 1 == view.top + view.rows && index + 1 < self.menu.entries.len() {
            "v"
        } else {
            ""
        };
        let variable = if selected { "menu_color_highlight" } else { "menu_color_normal" };
        let color = self
            .env
            .get(variable)
            .or_else(|| self.env.get(variable.trim_start_matches("menu_")))
            .and_then(color);
        let plain = if selected { "\x1b[7m" } else { "" };
        let color =
            if selected { color.unwrap_or_else(|| plain.to_owned()) } else { color.unwrap_or_default() };
        format!(" |{color}{text}{:pad$}\x1b[0m|{more}", "")
    }

    fn move_selection(&mut self, view: &mut View, before: usize, nested: bool) {
        let top = view.top;
        view.scroll();
        if view.top != top {
            self.draw_menu(view, nested);
            return;
        }
        let mut out = String::new();
        for index in [before, view.selected] {
            out.push_str(&format!("\x1b[{};1H", index - view.top + 4));
            out.push_str(&self.entry_line(view, index));
        }
        self.console.write(&out);
    }

    /// The line below the help.
    fn draw_countdown(&mut self, view: &View, left: Option<Duration>) {
        let row = view.rows + 7;
        let text = match left {
            Some(left) => {
                let seconds = left.as_secs_f64().ceil();
                format!("  The marked entry runs in {seconds} s.")
            }
            None => String::new(),
        };
        self.console.write(&format!("\x1b[{row};1H{}\x1b[K", clip(&text, view.columns.saturating_sub(1))));
    }
}
