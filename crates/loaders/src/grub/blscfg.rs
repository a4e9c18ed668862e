//! `blscfg`: menu entries out of files by the Boot Loader Specification, as Fedora has them.

use std::cmp::Ordering;
use std::ops::ControlFlow;
use std::rc::Rc;

use super::Session;
use super::error::{Error, Outcome, code};
use super::files;
use super::menu::Entry;

/// Most files, and the largest.
const MAX_FILES: usize = 1000;
const MAX_FILE: u64 = 64 << 10;
/// Where the files are: on a boot partition, or below /boot of the root partition.
const FOLDERS: [&str; 2] = ["/loader/entries", "/boot/loader/entries"];

/// Whether a name is one of an entry.
fn is_entry(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, extension)| extension == "conf")
}

/// A file.
#[derive(Debug, Default, PartialEq, Eq)]
struct Snippet {
    id: String,
    fields: Vec<(String, String)>,
}

impl Snippet {
    fn parse(id: &str, text: &str) -> Self {
        let mut fields = Vec::new();
        for line in text.lines() {
            let line = line.trim();
            if let Some((key, value)) = line.split_once([' ', '\t'])
                && !line.starts_with('#')
            {
                fields.push((key.to_owned(), value.trim().to_owned()));
            }
        }
        Self { id: id.to_owned(), fields }
    }

    fn all(&self, key: &str) -> impl Iterator<Item = &str> {
        self.fields.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    fn one(&self, key: &str) -> Option<&str> {
        self.all(key).next()
    }

    fn joined(&self, key: &str) -> String {
        self.all(key).collect::<Vec<_>>().join(" ")
    }

    /// The commands of the entry; `None` without a kernel.
    fn body(&self, session: &Session) -> Option<String> {
        let kernel = self.one("linux")?;
        let mut body = String::from("\n");
        if session.functions.contains_key("load_video") {
            body.push_str("load_video\n");
        }
        body.push_str("set gfxpayload=keep\ninsmod gzio\n");
        let options = match self.joined("options") {
            options if options.is_empty() => {
                let fallback =
                    ["default_kernelopts", "kernelopts"].into_iter().find_map(|name| session.env.get(name));
                fallback.unwrap_or_default().to_owned()
            }
            options => options,
        };
        body.push_str(format!("linux {} {}", guard(kernel), guard(&options)).trim_end());
        body.push('\n');
        let folder = kernel.rsplit_once('/').map_or("", |(folder, _)| folder);
        let early = session.env.get("early_initrd").unwrap_or_default();
        let mut initrds: Vec<String> =
            early.split_whitespace().map(|name| guard(&format!("{folder}/{name}"))).collect();
        initrds.extend(self.all("initrd").map(guard));
        if !initrds.is_empty() {
            body.push_str(&format!("initrd {}\n", initrds.join(" ")));
        }
        Some(body)
    }

    fn entry(&self, session: &Session) -> Option<Entry> {
        let body = self.body(session)?;
        let title = self.one("title").map_or_else(
            || {
                format!(
                    "{} {}",
                    self.one("linux").unwrap_or_default(),
                    self.one("version").unwrap_or_default()
                )
            },
            str::to_owned,
        );
        let hotkey = self.one("grub_hotkey").and_then(super::menu::hotkey);
        Some(Entry {
            title: title.trim().to_owned(),
            id: self.id.clone(),
            users: self.one("grub_users").map(str::to_owned),
            hotkey,
            body: Rc::from(body),
            arguments: self.joined("grub_arg").split_whitespace().map(str::to_owned).collect(),
            submenu: false,
        })
    }
}

/// The file is data, though its values may name variables: signs of the shell get a backslash.
fn guard(text: &str) -> String {
    let mut out = String::new();
    let mut quote = None;
    let mut chars = text.chars().peekable();
    let mut start = true;
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', _) => {
                out.push(c);
                out.extend(chars.next());
            }
            (c, Some(q)) => {
                if c == q {
                    quote = None;
                }
                out.push(c);
            }
            ('\'' | '"', None) => {
                quote = Some(c);
                out.push(c);
            }
            ('$', None) => match chars.peek() {
                Some('{') => {
                    out.push(c);
                    for c in chars.by_ref() {
                        out.push(c);
                        if c == '}' {
                            break;
                        }
                    }
                }
                Some(c) if c.is_ascii_alphanumeric() || *c == '_' => out.push('$'),
                _ => out.push_str("\\$"),
            },
            (';' | '{' | '}' | '|' | '&' | '<' | '>', None) => {
                out.push('\\');
                out.push(c);
            }
            ('#', None) if start => out.push_str("\\#"),
            (c, None) => out.push(c),
        }
        start = c == ' ' || c == '\t';
    }
    // A quote that nothing ends would swallow the rest of the entry.
    if let Some(q) = quote {
        out.push(q);
    }
    out
}

/// Compares names with versions in them, number by number, as RPM does.
fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let skip = |text: &mut &[u8]| {
            while let Some((first, rest)) = text.split_first()
                && !first.is_ascii_alphanumeric()
                && *first != b'~'
            {
                *text = rest;
            }
        };
        skip(&mut a);
        skip(&mut b);
        // A tilde sorts before everything, the end too.
        match (a.first() == Some(&b'~'), b.first() == Some(&b'~')) {
            (true, true) => {
                a = a.get(1..).unwrap_or_default();
                b = b.get(1..).unwrap_or_default();
                continue;
            }
            (true, false) => return Ordering::Less,
            (false, true) => return Ordering::Greater,
            (false, false) => {}
        }
        let (Some(x), Some(y)) = (a.first(), b.first()) else { return a.len().min(1).cmp(&b.len().min(1)) };
        let digits = x.is_ascii_digit();
        if digits != y.is_ascii_digit() {
            return if digits { Ordering::Greater } else { Ordering::Less };
        }
        let segment = |text: &mut &[u8]| {
            let whole = *text;
            let len = whole
                .iter()
                .take_while(|c| c.is_ascii_alphanumeric() && c.is_ascii_digit() == digits)
                .count();
            let (part, rest) = whole.split_at(len);
            *text = rest;
            if digits { part.iter().skip_while(|c| **c == b'0').copied().collect() } else { part.to_vec() }
        };
        let (x, y): (Vec<u8>, Vec<u8>) = (segment(&mut a), segment(&mut b));
        let order = if digits { x.len().cmp(&y.len()).then_with(|| x.cmp(&y)) } else { x.cmp(&y) };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// The command.
pub(super) fn run(session: &mut Session, arguments: &[String]) -> Outcome {
    let mut only_default = None;
    let mut target = None;
    for argument in arguments {
        match argument.as_str() {
            "default" => only_default = Some(true),
            "non-default" => only_default = Some(false),
            path => target = Some(path.to_owned()),
        }
    }
    let mut snippets = match target {
        Some(file) if is_entry(&file) => vec![read(session, &file)?],
        Some(folder) => folder_of(session, &folder)?,
        None => default_folder(session)?,
    };
    // The newest first.
    snippets.sort_by(|a, b| compare(&b.id, &a.id));
    let default = session.env.get("default").unwrap_or_default().to_owned();
    for snippet in snippets {
        let is_default = snippet.id == default;
        if only_default.is_some_and(|wanted| wanted != is_default) {
            continue;
        }
        if let Some(entry) = snippet.entry(session) {
            session.menu_mut().add(entry)?;
        }
    }
    Ok(())
}

fn default_folder(session: &Session) -> Outcome<Vec<Snippet>> {
    if let Some(folder) = session.env.get("blsdir") {
        return folder_of(session, folder);
    }
    let there = FOLDERS.into_iter().find(|folder| session.exists(folder));
    let folder = there.ok_or_else(|| Error::file_not_found(FOLDERS[0]))?;
    folder_of(session, folder)
}

fn folder_of(session: &Session, folder: &str) -> Outcome<Vec<Snippet>> {
    let node = files::node(session.disks, folder, session.env.get("root"))?;
    let mut names = Vec::new();
    let listed = node.entries(&mut |entry| {
        if let Ok(name) = String::from_utf8(entry.name)
            && is_entry(&name)
        {
            names.push(name);
        }
        if names.len() <= MAX_FILES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    listed.map_err(|error| Error::media(folder, &error))?;
    if names.len() > MAX_FILES {
        return Err(Error::new(code::OUT_OF_MEMORY, format!("more than {MAX_FILES} entries in `{folder}'")));
    }
    // A file that can't be read costs its entry, not the others.
    Ok(names.iter().filter_map(|name| read(session, &format!("{folder}/{name}")).ok()).collect())
}

fn read(session: &Session, file: &str) -> Outcome<Snippet> {
    let source = session.open_as_it_is(file)?;
    let text = files::read(&source, file, MAX_FILE)?;
    let id = file.rsplit('/').next().unwrap_or(file).trim_end_matches(".conf");
    Ok(Snippet::parse(id, &String::from_utf8_lossy(&text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_in_order() {
        let cases = [
            ("abc-6.1.9-1", "abc-6.1.10-1", Ordering::Less),
            ("abc-0-rescue", "abc-6.1.10-1", Ordering::Less),
            ("a-1.0~rc1", "a-1.0", Ordering::Less),
            ("a-1.0a", "a-1.0", Ordering::Greater),
            ("a-007", "a-7", Ordering::Equal),
            ("a-5.14.0-362.el9", "a-5.14.0-70.el9", Ordering::Greater),
        ];
        for (a, b, order) in cases {
            assert_eq!((compare(a, b), compare(b, a)), (order, order.reverse()), "{a} {b}");
        }
    }

    #[test]
    fn values_are_no_commands() {
        for (text, guarded) in [
            ("ro root=UUID=1 $kernelopts ${tuned}", "ro root=UUID=1 $kernelopts ${tuned}"),
            ("a;reboot", "a\\;reboot"),
            ("a \"b;c\" d", "a \"b;c\" d"),
            ("#x a#b $", "\\#x a#b \\$"),
            ("a='b", "a='b'"),
        ] {
            assert_eq!(guard(text), guarded);
        }
    }

    #[test]
    fn files_of_fedora() {
        let text = "title Fedora Linux (6.8.5) 40\nversion 6.8.5\nlinux /vmlinuz-6.8.5\ninitrd /a.img $tuned\n\
                    # note\noptions root=UUID=x ro\noptions rhgb\ngrub_users $grub_users\ngrub_class fedora\n";
        let snippet = Snippet::parse("id", text);
        assert_eq!(snippet.one("linux"), Some("/vmlinuz-6.8.5"));
        assert_eq!(snippet.joined("options"), "root=UUID=x ro rhgb");
    }
}
