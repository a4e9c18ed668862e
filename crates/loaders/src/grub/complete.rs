//! TAB: commands, devices and files.

use std::ops::ControlFlow;

use media::Kind;
use media::disks::Disks;

use super::{commands, files};
use crate::console::{Candidate, Complete, Completion};

/// Most names of a folder that are looked at.
const MAX_NAMES: usize = 10_000;

/// Knows how a command line goes on.
pub(super) struct Completer<'a> {
    pub disks: &'a Disks,
    pub root: Option<&'a str>,
}

impl Complete for Completer<'_> {
    fn complete(&mut self, before: &str) -> Completion {
        let start = word_start(before);
        let word = before.get(start..).unwrap_or_default();
        let earlier = before.get(..start).unwrap_or_default().trim_end();
        let first = earlier.is_empty() || earlier.ends_with([';', '{']) || ends_with_keyword(earlier);
        if first && !word.starts_with(['(', '/']) {
            return Completion { start, title: "commands", candidates: command_names(word) };
        }
        // `root=(hd0,1)`, `--set=…`: what follows the sign is completed.
        let skip = match word.find(['(', '/']) {
            Some(at) if word.get(..at).is_some_and(|w| w.ends_with('=')) => at,
            _ => 0,
        };
        let start = start + skip;
        let word = word.get(skip..).unwrap_or_default();
        match word.strip_prefix('(') {
            Some(device) if !device.contains(')') => {
                let title = if device.contains(',') { "partitions" } else { "devices" };
                Completion { start, title, candidates: self.devices(device) }
            }
            _ => {
                let name_start = word.rfind('/').map(|n| n + 1);
                let candidates = name_start.map(|at| self.files(word, at)).unwrap_or_default();
                Completion { start: start + name_start.unwrap_or(0), title: "files", candidates }
            }
        }
    }
}

/// Where the word before the cursor starts; blanks after a backslash or in quotes are part of it.
fn word_start(text: &str) -> usize {
    let (mut start, mut quote, mut escaped) = (0, None, false);
    for (at, c) in text.char_indices() {
        match (c, quote) {
            _ if escaped => escaped = false,
            ('\\', None | Some('"')) => escaped = true,
            (c, Some(q)) if c == q => quote = None,
            ('\'' | '"', None) => quote = Some(c),
            (' ' | '\t' | ';' | '{' | '\n', None) => start = at + c.len_utf8(),
            _ => {}
        }
    }
    start
}

fn ends_with_keyword(text: &str) -> bool {
    let last = text.rsplit([' ', '\t', ';', '\n']).next().unwrap_or_default();
    matches!(last, "if" | "then" | "else" | "elif" | "while" | "until" | "do" | "!")
}

fn command_names(word: &str) -> Vec<Candidate> {
    let names = commands::names().into_iter().filter(|name| name.starts_with(word));
    names.map(|name| Candidate { text: name.into(), shown: name.into(), suffix: " " }).collect()
}

impl Completer<'_> {
    fn devices(&self, word: &str) -> Vec<Candidate> {
        let mut found = Vec::new();
        let (wants_partition, names) = (word.contains(','), self.disks.names());
        for name in &names {
            if !name.starts_with(word) || (!wants_partition && name.contains(',')) {
                continue;
            }
            // A disk with partitions may go on with either.
            let has_parts =
                names.iter().any(|n| n.strip_prefix(name.as_str()).is_some_and(|r| r.starts_with(',')));
            let (text, suffix) = if has_parts { (format!("({name}"), "") } else { (format!("({name})"), "") };
            found.push(Candidate { text, shown: format!("({name})"), suffix });
        }
        found
    }

    fn files(&self, word: &str, name_start: usize) -> Vec<Candidate> {
        let unquote = |text: &str| text.replace(['\\', '\'', '"'], "");
        let folder = unquote(word.get(..name_start).unwrap_or_default());
        let typed = word.get(name_start..).unwrap_or_default();
        let begins = unquote(typed);
        let Ok(node) = files::node(self.disks, &folder, self.root) else { return Vec::new() };
        let mut found = Vec::new();
        let mut seen = 0;
        // What can't be read is not offered.
        let _ = node.entries(&mut |entry| {
            seen += 1;
            if let Ok(name) = String::from_utf8(entry.name)
                && name.starts_with(&begins)
                && (!name.starts_with('.') || begins.starts_with('.'))
            {
                found.push((name, entry.kind));
            }
            if seen < MAX_NAMES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        found.sort_by(|a, b| a.0.cmp(&b.0));
        let only = found.len() == 1;
        let candidate = |(name, kind): (String, Option<Kind>)| {
            let folder = match kind {
                Some(kind) if kind != Kind::Symlink || !only => kind == Kind::Directory,
                _ => is_folder(self.disks, &format!("{folder}{name}"), self.root),
            };
            Candidate {
                text: quote(&name),
                shown: if folder { format!("{name}/") } else { name },
                suffix: if folder { "/" } else { " " },
            }
        };
        found.into_iter().map(candidate).collect()
    }
}

fn is_folder(disks: &Disks, name: &str, root: Option<&str>) -> bool {
    files::node(disks, name, root)
        .and_then(|n| n.metadata().map_err(|e| super::Error::media(name, &e)))
        .is_ok_and(|m| m.kind == Kind::Directory)
}

/// Puts a backslash before what the shell would take for something else.
fn quote(name: &str) -> String {
    let special = |c: char| " \t'\"\\$;{}|&<>*?#".contains(c);
    name.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}
