//! The menu: what is in it, what is chosen, and what then runs.

mod draw;
mod edit;

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::commands::arguments::{Flag, parse};
use super::error::{Error, Outcome, code};
use super::{Session, Stop};
use crate::console::{Input, Key};

/// Most entries, and most bytes of all entries together.
const MAX_ENTRIES: usize = 10_000;
const MAX_BYTES: usize = 32 << 20;
/// How deeply menus may be nested.
const MAX_NESTED: usize = 16;

/// An entry.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub title: String,
    pub id: String,
    /// Who may run it besides superusers; `None`: everybody.
    pub users: Option<String>,
    pub hotkey: Option<Key>,
    pub body: Rc<str>,
    /// `$1` and so on in the body.
    pub arguments: Vec<String>,
    pub submenu: bool,
}

/// Entries in their order.
#[derive(Default)]
pub(super) struct Menu {
    pub entries: Vec<Entry>,
    bytes: usize,
    /// Titles of the menus around this one.
    path: String,
    nested: usize,
}

impl Menu {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds an entry.
    pub fn add(&mut self, entry: Entry) -> Outcome {
        let bytes = entry.title.len() + entry.id.len() + entry.body.len() + 200;
        let bytes = entry.arguments.iter().fold(bytes, |n, a| n + a.len());
        if self.entries.len() >= MAX_ENTRIES || self.bytes + bytes > MAX_BYTES {
            return Err(Error::new(code::OUT_OF_MEMORY, "out of memory: too many menu entries"));
        }
        self.bytes += bytes;
        self.entries.push(entry);
        Ok(())
    }

    /// The entry that a value of `default` or `fallback` names: number, title or id.
    fn find(&self, name: &str) -> Option<usize> {
        if let Ok(number) = name.parse::<usize>() {
            return (number < self.entries.len()).then_some(number);
        }
        self.entries.iter().position(|e| e.title == name || e.id == name)
    }
}

/// Splits `a>b` into the entry and what is meant in its submenu; `>>` is a `>` of a title.
fn split_default(text: &str) -> (String, &str) {
    let mut first = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('>') {
        first.push_str(rest.get(..at).unwrap_or_default());
        rest = rest.get(at + 1..).unwrap_or_default();
        match rest.strip_prefix('>') {
            Some(more) => {
                first.push('>');
                rest = more;
            }
            None => return (first, rest),
        }
    }
    first.push_str(rest);
    (first, "")
}

/// The key that `--hotkey` names.
pub(super) fn hotkey(name: &str) -> Option<Key> {
    let mut chars = name.chars();
    if let (Some(c), None) = (chars.next(), chars.next()) {
        return Some(Key::Char(c));
    }
    Some(match name {
        "backspace" => Key::Backspace,
        "tab" => Key::Tab,
        "delete" => Key::Delete,
        "insert" => Key::Insert,
        _ => Key::Function(name.strip_prefix('f')?.parse().ok().filter(|n| (1..=12).contains(n))?),
    })
}

/// What the user chose.
enum Choice {
    Run(usize),
    /// Run it because time is up.
    Auto(usize),
    Leave,
}

impl Session<'_> {
    /// `menuentry` and `submenu`.
    pub(super) fn add_entry(&mut self, arguments: &[String], body: &Rc<str>, submenu: bool) -> Outcome {
        const FLAGS: &[Flag] = &[
            Flag::many("class"),
            Flag::value("users"),
            Flag::value("hotkey"),
            Flag::value("source"),
            Flag::value("id"),
            Flag::plain("unrestricted"),
        ];
        let parsed = parse(FLAGS, arguments)?;
        let Some((title, rest)) = parsed.rest.split_first() else {
            return Err(Error::argument("menuentry definition error: the title is missing"));
        };
        let body = match parsed.value("source") {
            Some(source) => Rc::from(source),
            None => Rc::clone(body),
        };
        let users =
            (!parsed.has("unrestricted")).then(|| parsed.value("users").unwrap_or_default().to_owned());
        self.menu_mut().add(Entry {
            title: title.replace('\n', " "),
            id: parsed.value("id").unwrap_or(title).to_owned(),
            users,
            hotkey: parsed.value("hotkey").and_then(hotkey),
            body,
            arguments: rest.to_vec(),
            submenu,
        })
    }

    /// Shows the menu until the user leaves it (if there is something around it) or the session ends.
    pub(super) fn show_menu(&mut self, nested: bool) {
        let mut timeout = self.take_timeout();
        let mut current = None;
        while self.stop.is_none() {
            match self.choose(timeout.take(), current, nested) {
                Choice::Leave => return,
                Choice::Run(index) => {
                    current = Some(index);
                    self.automatic = false;
                    self.run_entry(index, "");
                }
                Choice::Auto(index) => {
                    current = Some(index);
                    self.run_default(index);
                }
            }
        }
    }

    /// The time limit of this menu. It holds once: who comes back wants to choose.
    fn take_timeout(&mut self) -> Option<Duration> {
        let seconds: i64 = self.env.get("timeout")?.trim().parse().ok()?;
        self.env.unset("timeout");
        Some(Duration::from_secs(u64::try_from(seconds).ok()?))
    }

    /// The entry that `default` names, and what it says of a submenu.
    fn default_entry(&self) -> (usize, String) {
        let default = match self.env.get("default") {
            Some("saved") => self.env.get("saved_entry"),
            other => other,
        };
        let default = default.unwrap_or("0");
        // A title may hold a > that nobody has doubled.
        if let Some(index) = self.menu.find(default) {
            return (index, String::new());
        }
        let (first, rest) = split_default(default);
        (self.menu.find(&first).unwrap_or(0), rest.to_owned())
    }

    /// Runs the default entry, and if nothing comes of it those that `fallback` names.
    fn run_default(&mut self, index: usize) {
        let (default, rest) = self.default_entry();
        let rest = if default == index { rest } else { String::new() };
        self.automatic = true;
        self.run_entry(index, &rest);
        let fallback = self.env.get("fallback").unwrap_or_default().to_owned();
        for name in fallback.split_whitespace() {
            if self.stop.is_some() {
                return;
            }
            let (first, rest) = split_default(name);
            if let Some(index) = self.menu.find(&first) {
                let title = self.menu.entries.get(index).map(|e| e.title.clone()).unwrap_or_default();
                self.print(&format!("\n  Falling back to `{title}'\n\n"));
                self.run_entry(index, rest);
            }
        }
        if self.stop.is_none() && self.complaints > self.read_complaints {
            self.wait_after_error();
        }
    }

    /// Runs an entry; `rest` is what `default` says of its submenu.
    fn run_entry(&mut self, index: usize, rest: &str) {
        let Some(entry) = self.menu.entries.get(index).cloned() else { return };
        self.read_complaints = self.complaints;
        self.refill();
        if let Some(users) = &entry.users
            && let Err(error) = self.authenticate(users)
        {
            self.complain(&error);
            self.wait_after_error();
            return;
        }
        let chosen = match self.menu.path.as_str() {
            "" => entry.id.clone(),
            path => format!("{path}>{}", entry.id),
        };
        self.set_exported("chosen", &chosen);
        if entry.submenu {
            self.run_submenu(&entry, &chosen, rest);
        } else {
            if self.console.is_terminal() {
                self.console.write("\x1b[H\x1b[2J");
            }
            self.column = 0;
            self.print(&format!("  Booting `{}'\n\n", entry.title));
            let _ = self.env.set("default", &chosen);
            self.run_body(&entry.body, entry.arguments);
        }
        // What runs by itself goes on to the next fallback first.
        if self.stop.is_none() && self.complaints > self.read_complaints && !entry.submenu && !self.automatic
        {
            self.wait_after_error();
        }
    }

    fn run_submenu(&mut self, entry: &Entry, chosen: &str, rest: &str) {
        let nested = self.menu.nested + 1;
        if nested > MAX_NESTED {
            self.complain(&Error::argument("menus are nested too deeply"));
            return;
        }
        if let Err(error) = self.env.push() {
            self.complain(&error);
            return;
        }
        let menu = Menu { path: chosen.to_owned(), nested, ..Menu::default() };
        let around = std::mem::replace(&mut self.menu, menu);
        if self.automatic {
            let _ = self.env.set("timeout", "0");
            let _ = self.env.set("default", if rest.is_empty() { "0" } else { rest });
        }
        self.arguments.push(entry.arguments.clone());
        self.run_text(&entry.body, None);
        self.arguments.pop();
        if self.stop.is_none() && !self.menu.is_empty() {
            self.show_menu(true);
        }
        self.menu = around;
        self.env.pop();
    }

    /// Gives the user time to read an error before the menu hides it.
    pub(super) fn wait_after_error(&mut self) {
        self.read_complaints = self.complaints;
        if !self.console.is_terminal() {
            return;
        }
        self.print("\nPress any key to continue...");
        if self.console.key(Some(Duration::from_secs(10))) == Input::End {
            self.stop = Some(Stop::InputEnd);
        }
        self.print("\n");
    }

    /// Lets the user choose.
    fn choose(&mut self, timeout: Option<Duration>, current: Option<usize>, nested: bool) -> Choice {
        let start = current.unwrap_or_else(|| self.default_entry().0);
        if timeout == Some(Duration::ZERO) && self.timeout_style() != Style::Hidden {
            return Choice::Auto(start);
        }
        if !self.console.is_terminal() {
            return self.choose_plainly(timeout, start, nested, current.is_some());
        }
        let mut deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        if deadline.is_some() && self.timeout_style() != Style::Menu {
            if let Some(choice) = self.wait_hidden(deadline, start) {
                return choice;
            }
            deadline = None;
        }
        self.choose_from_list(deadline, start, nested)
    }

    fn timeout_style(&self) -> Style {
        match self.env.get("timeout_style") {
            Some("hidden") => Style::Hidden,
            Some("countdown") => Style::Countdown,
            _ => Style::Menu,
        }
    }

    /// Waits with the menu hidden. `None`: the user wants to see it.
    fn wait_hidden(&mut self, deadline: Option<Instant>, start: usize) -> Option<Choice> {
        let countdown = self.timeout_style() == Style::Countdown;
        loop {
            let left = deadline.map_or(Duration::ZERO, |d| d.saturating_duration_since(Instant::now()));
            if countdown {
                self.console.write(&format!("\r{} ", left.as_secs_f64().ceil()));
            }
            match self.console.key(Some(left.min(tick(left)))) {
                Input::Key(Key::Escape | Key::Function(4)) => return None,
                Input::Key(key) => {
                    if let Some(index) = self.hotkey_entry(key) {
                        return Some(Choice::Run(index));
                    }
                    if countdown {
                        return None;
                    }
                }
                Input::End => {
                    self.stop = Some(Stop::InputEnd);
                    return Some(Choice::Leave);
                }
                Input::Timeout if left.is_zero() => return Some(Choice::Auto(start)),
                Input::Timeout => {}
            }
        }
    }

    fn hotkey_entry(&self, key: Key) -> Option<usize> {
        self.menu.entries.iter().position(|e| e.hotkey == Some(key))
    }

    /// Without a terminal: the list as lines, and a number or title as answer.
    fn choose_plainly(
        &mut self,
        timeout: Option<Duration>,
        start: usize,
        nested: bool,
        again: bool,
    ) -> Choice {
        let mut text = String::new();
        for (index, entry) in self.menu.entries.iter().enumerate() {
            let mark = if index == start { '*' } else { ' ' };
            let more = if entry.submenu { " ->" } else { "" };
            text.push_str(&format!("{mark}{index}  {}{more}\n", entry.title));
        }
        self.print(&text);
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut answer = String::new();
        loop {
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            match self.console.key(left) {
                Input::Key(Key::Enter) => match answer.trim() {
                    "" => return Choice::Run(start),
                    "c" => {
                        self.print("\n");
                        self.menu_prompt();
                        return if self.stop.is_some() { Choice::Leave } else { Choice::Run(start) };
                    }
                    name => {
                        if let Some(index) = self.menu.find(name) {
                            return Choice::Run(index);
                        }
                        self.complain(&Error::argument(format!("there is no entry `{name}'")));
                        answer.clear();
                    }
                },
                Input::Key(Key::Char(c)) if answer.len() < 1000 => answer.push(c),
                Input::Key(Key::Escape) if nested => return Choice::Leave,
                Input::Key(_) => {}
                Input::End if again => {
                    self.stop = Some(Stop::InputEnd);
                    return Choice::Leave;
                }
                // Nobody will choose: it is as if time were up.
                Input::Timeout | Input::End => return Choice::Auto(start),
            }
        }
    }

    /// `c`: the prompt, for those who may.
    fn menu_prompt(&mut self) {
        match self.authenticate("") {
            Ok(()) => self.prompt(true),
            Err(error) => {
                self.complain(&error);
                self.wait_after_error();
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Menu,
    Countdown,
    Hidden,
}

/// How long until the number of seconds left changes.
fn tick(left: Duration) -> Duration {
    match left.subsec_nanos() {
        0 => Duration::from_secs(1),
        nanos => Duration::from_nanos(u64::from(nanos)) + Duration::from_millis(1),
    }
}
