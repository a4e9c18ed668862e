//! Words to arguments: variables, and wildcards in names of devices and files.

use std::ops::ControlFlow;

use media::{Kind, resolve};

use super::Session;
use super::error::{Error, Outcome, code};
use super::files;
use super::script::{Piece, Word};

/// Most bytes of the arguments of one command, and most arguments.
const MAX_BYTES: usize = 1 << 20;
const MAX_ARGUMENTS: usize = 1 << 16;
/// Most wildcards in an argument: with more it is taken as it is.
const MAX_WILD: usize = 64;
/// What looking through folders counts for, in bytes.
const LISTING: usize = 16 << 10;
/// Most names that a wildcard stands for.
const MAX_MATCHES: usize = 10_000;

/// An argument in the making.
#[derive(Default)]
struct Field {
    text: String,
    /// Bytes of `text` that are wildcards.
    wild: Vec<usize>,
    /// It is an argument even if it is empty.
    quoted: bool,
}

impl Field {
    fn push(&mut self, text: &str, wild: bool) {
        if wild {
            let at = self.text.len();
            self.wild.extend(text.match_indices(['*', '?']).map(|(n, _)| at + n));
        }
        self.text.push_str(text);
    }
}

impl Session<'_> {
    /// The arguments that words stand for.
    pub(super) fn expand(&mut self, words: &[Word]) -> Outcome<Vec<String>> {
        let mut arguments = Vec::new();
        let mut bytes = 0usize;
        for word in words {
            for field in self.fields(word) {
                if field.text.is_empty() && !field.quoted {
                    continue;
                }
                if !field.wild.is_empty() {
                    self.charge(LISTING);
                }
                let new = self.wildcards(field);
                bytes = new.iter().fold(bytes, |n, argument| n.saturating_add(argument.len() + 1));
                arguments.extend(new);
                if bytes > MAX_BYTES || arguments.len() > MAX_ARGUMENTS {
                    self.charge(bytes);
                    return Err(Error::new(code::OUT_OF_MEMORY, "out of memory: too many arguments"));
                }
            }
        }
        self.charge(bytes);
        Ok(arguments)
    }

    fn fields(&self, word: &Word) -> Vec<Field> {
        let mut done = Vec::new();
        let mut now = Field::default();
        for piece in &word.pieces {
            match piece {
                Piece::Text(text) => now.push(text, true),
                Piece::Quoted(text) => {
                    now.push(text, false);
                    now.quoted = true;
                }
                Piece::Variable(name) => {
                    let values = self.values(name, false);
                    for (n, value) in values.iter().enumerate() {
                        if n > 0 {
                            done.push(std::mem::take(&mut now));
                        }
                        split(value, &mut now, &mut done);
                    }
                }
                Piece::QuotedVariable(name) => {
                    // "$@" without arguments is no argument.
                    let values = self.values(name, true);
                    now.quoted |= name != "@";
                    for (n, value) in values.iter().enumerate() {
                        if n > 0 {
                            done.push(std::mem::take(&mut now));
                        }
                        now.push(value, false);
                        now.quoted = true;
                    }
                }
            }
        }
        done.push(now);
        done
    }

    /// The value of a variable; of `$@` one for each argument.
    fn values(&self, name: &str, quoted: bool) -> Vec<String> {
        let arguments = self.arguments();
        match name {
            "#" => vec![arguments.len().to_string()],
            "?" => vec![self.status().to_string()],
            "@" => arguments.to_vec(),
            "*" if quoted => vec![arguments.join(" ")],
            "*" => arguments.to_vec(),
            _ => match name.parse::<usize>() {
                Ok(0) => Vec::new(),
                Ok(n) => arguments.get(n - 1).cloned().into_iter().collect(),
                Err(_) => self.env.get(name).map(str::to_owned).into_iter().collect(),
            },
        }
    }

    /// What a field with wildcards stands for; itself if for nothing.
    fn wildcards(&self, field: Field) -> Vec<String> {
        if field.wild.is_empty() || field.wild.len() > MAX_WILD || !field.text.starts_with(['(', '/']) {
            return vec![field.text];
        }
        let found = self.matches(&field);
        if found.is_empty() { vec![field.text] } else { found }
    }

    fn matches(&self, field: &Field) -> Vec<String> {
        let text = field.text.as_str();
        let (device, path_start) = match text.find(')') {
            Some(end) if text.starts_with('(') => (text.get(1..end), end + 1),
            _ => (None, 0),
        };
        let pattern = |from: usize, to: usize| Pattern::new(text, from, to, &field.wild);
        let mut starts: Vec<Option<String>> = match device {
            Some(device) if field.wild.iter().any(|n| *n < path_start) => {
                let pattern = pattern(1, 1 + device.len());
                self.disks.names().into_iter().filter(|name| pattern.matches(name)).map(Some).collect()
            }
            Some(device) => vec![Some(device.to_owned())],
            None => vec![None],
        };
        starts.truncate(MAX_MATCHES);
        let mut found = Vec::new();
        for device in starts {
            let shown = device.as_ref().map(|d| format!("({d})")).unwrap_or_default();
            if path_start == text.len() {
                found.push(shown);
                continue;
            }
            self.paths(&shown, text, path_start, &field.wild, &mut found);
        }
        found
    }

    /// Goes through the components of a path.
    fn paths(&self, device: &str, text: &str, start: usize, wild: &[usize], found: &mut Vec<String>) {
        let Some(rest) = text.get(start..).filter(|r| r.starts_with('/')) else { return };
        let mut ways = vec![String::new()];
        let mut at = start;
        for component in rest.split('/').skip(1) {
            at += 1;
            let end = at + component.len();
            let last = end == text.len();
            if wild.iter().any(|n| (at..end).contains(n)) {
                let pattern = Pattern::new(text, at, end, wild);
                let mut next = Vec::new();
                for way in &ways {
                    for name in self.names_in(&format!("{device}{way}/"), &pattern, !last) {
                        next.push(format!("{way}/{name}"));
                    }
                }
                next.truncate(MAX_MATCHES);
                ways = next;
            } else {
                for way in &mut ways {
                    way.push('/');
                    way.push_str(component);
                }
            }
            at = end;
        }
        ways.retain(|way| files::node(self.disks, &format!("{device}{way}"), self.env.get("root")).is_ok());
        found.extend(ways.into_iter().map(|way| format!("{device}{way}")));
        found.truncate(MAX_MATCHES);
    }

    /// Names in a folder, in alphabetical order.
    fn names_in(&self, folder: &str, pattern: &Pattern, folders: bool) -> Vec<String> {
        let Ok(node) = files::node(self.disks, folder, self.env.get("root")) else { return Vec::new() };
        let hidden = pattern.0.first() == Some(&Item::Char('.'));
        let mut names = Vec::new();
        // What can't be read doesn't match.
        let _ = node.entries(&mut |entry| {
            if let Ok(name) = String::from_utf8(entry.name)
                && (hidden || !name.starts_with('.'))
                && !(folders && entry.kind == Some(Kind::File))
                && pattern.matches(&name)
            {
                names.push(name);
            }
            if names.len() < MAX_MATCHES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        names.sort();
        names
    }

    /// Whether there is such a file or folder.
    pub(super) fn exists(&self, name: &str) -> bool {
        let Ok(place) = files::place(name, self.env.get("root")) else { return false };
        let Ok(fs) = self.disks.filesystem(&place.device) else { return false };
        resolve(fs.as_ref(), place.path.as_bytes()).is_ok()
    }
}

/// Adds a value, split at blanks.
fn split(value: &str, now: &mut Field, done: &mut Vec<Field>) {
    let blank = |c: char| matches!(c, ' ' | '\t' | '\n');
    for (n, part) in value.split(blank).enumerate() {
        if n > 0 && (now.quoted || !now.text.is_empty()) {
            done.push(std::mem::take(now));
        }
        now.push(part, true);
    }
}

#[derive(PartialEq, Eq)]
enum Item {
    Char(char),
    One,
    Many,
}

/// Text with wildcards.
struct Pattern(Vec<Item>);

impl Pattern {
    fn new(text: &str, from: usize, to: usize, wild: &[usize]) -> Self {
        let part = text.get(from..to).unwrap_or_default();
        let item = |(at, c): (usize, char)| match c {
            '*' if wild.contains(&(from + at)) => Item::Many,
            '?' if wild.contains(&(from + at)) => Item::One,
            c => Item::Char(c),
        };
        Self(part.char_indices().map(item).collect())
    }

    /// Takes at most as many steps as the product of the lengths.
    fn matches(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        let (mut p, mut n) = (0, 0);
        // Where the last `*` was, and up to where it has swallowed the name.
        let mut star: Option<(usize, usize)> = None;
        while n < name.len() {
            match self.0.get(p) {
                Some(Item::Many) => {
                    star = Some((p, n));
                    p += 1;
                }
                Some(Item::One) => (p, n) = (p + 1, n + 1),
                Some(Item::Char(c)) if name.get(n) == Some(c) => (p, n) = (p + 1, n + 1),
                _ => match star {
                    Some((at, swallowed)) => {
                        star = Some((at, swallowed + 1));
                        (p, n) = (at + 1, swallowed + 1);
                    }
                    None => return false,
                },
            }
        }
        self.0.iter().skip(p).all(|item| *item == Item::Many)
    }
}
