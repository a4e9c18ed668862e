//! The grammar of loader.conf(5).

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Something about a module: its name there, what, and the value as written.
    Module(String, Property, String),
    /// `exec="command"`.
    Exec(String),
    /// A variable; its value is not expanded yet.
    Variable(String, String),
}

/// What a line says about a module: the last part of the variable's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property {
    /// Whether to load it.
    Load,
    /// Its file.
    Name,
    /// The type of a file that is no module.
    Type,
    /// Its arguments.
    Flags,
    /// A command before it is loaded.
    Before,
    /// A command after it is loaded.
    After,
    /// A command if it can't be loaded.
    Error,
}

const PROPERTIES: [(&str, Property); 7] = [
    ("_load", Property::Load),
    ("_name", Property::Name),
    ("_type", Property::Type),
    ("_flags", Property::Flags),
    ("_before", Property::Before),
    ("_after", Property::After),
    ("_error", Property::Error),
];

/// Reads a file: what its lines say or what is wrong with them, by line number.
pub fn parse(text: &str) -> Vec<(usize, Result<Setting, String>)> {
    let lines = text.lines().enumerate();
    lines.filter_map(|(n, line)| parse_line(line).transpose().map(|setting| (n + 1, setting))).collect()
}

fn parse_line(line: &str) -> Result<Option<Setting>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let malformed = |what: &str| format!("malformed line ({what}): {line}");
    let (name, rest) = line.split_once('=').ok_or_else(|| malformed("no ="))?;
    let (name, rest) = (name.trim_end(), rest.trim_start());
    let valid = |c: char| c.is_ascii_alphanumeric() || "-_.:[]".contains(c);
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') || !name.chars().all(valid) {
        return Err(malformed("bad name"));
    }
    let (value, behind) = if let Some(quoted) = rest.strip_prefix('"') {
        let end = closing_quote(quoted).ok_or_else(|| malformed("no closing quote"))?;
        (quoted.get(..end).unwrap_or_default(), quoted.get(end + 1..).unwrap_or_default())
    } else {
        let word = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let end = rest.find(|c| !word(c)).unwrap_or(rest.len());
        if end == 0 {
            return Err(malformed("no value"));
        }
        (rest.get(..end).unwrap_or_default(), rest.get(end..).unwrap_or_default())
    };
    let behind = behind.trim();
    if !behind.is_empty() && !behind.starts_with('#') {
        return Err(malformed("text behind the value"));
    }
    if name == "exec" {
        return Ok(Some(Setting::Exec(value.into())));
    }
    let module = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    for (suffix, property) in PROPERTIES {
        if let Some(of) = name.strip_suffix(suffix)
            && !of.is_empty()
            && of.chars().all(module)
        {
            return Ok(Some(Setting::Module(of.into(), property, value.into())));
        }
    }
    Ok(Some(Setting::Variable(name.into(), value.into())))
}

/// Where the quote is that ends a value; a backslash takes the next character's meaning away.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            '"' if !escaped => return Some(at),
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    None
}

/// What is known about a module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Module {
    /// Whether to load it.
    pub load: bool,
    /// Whether the user wants it, black list or not.
    pub force: bool,
    /// Its file.
    pub name: Option<String>,
    /// The type of a file that is no module.
    pub kind: Option<String>,
    /// Its arguments.
    pub flags: Option<String>,
    /// A command before it is loaded.
    pub before: Option<String>,
    /// A command after it is loaded.
    pub after: Option<String>,
    /// A command if it can't be loaded.
    pub error: Option<String>,
}

/// The modules, in the order in which they were first named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Modules(pub Vec<(String, Module)>);

/// Most modules that are remembered.
const MAX_MODULES: usize = 4096;

impl Modules {
    /// What is known about a module, if there is room for one more.
    pub fn entry(&mut self, name: &str) -> Option<&mut Module> {
        let at = match self.0.iter().position(|(n, _)| n == name) {
            Some(at) => at,
            None if self.0.len() < MAX_MODULES => {
                self.0.push((name.into(), Module::default()));
                self.0.len() - 1
            }
            None => return None,
        };
        self.0.get_mut(at).map(|(_, module)| module)
    }

    /// Takes a line's word about a module.
    pub fn set(&mut self, name: &str, property: Property, value: &str) {
        let Some(module) = self.entry(name) else { return };
        let text = Some(value.to_owned());
        match property {
            Property::Load => module.load = value.eq_ignore_ascii_case("yes"),
            Property::Name => module.name = text,
            Property::Type => module.kind = text,
            Property::Flags => module.flags = text,
            Property::Before => module.before = text,
            Property::After => module.after = text,
            Property::Error => module.error = text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<Option<Setting>, String> {
        parse_line(text)
    }

    #[test]
    fn lines_of_real_files() {
        let variable = |name: &str, value: &str| Ok(Some(Setting::Variable(name.into(), value.into())));
        let module = |name: &str, p, value: &str| Ok(Some(Setting::Module(name.into(), p, value.into())));
        let table = [
            ("kernel=\"kernel\"\t\t# /boot sub-directory", variable("kernel", "kernel")),
            ("  autoboot_delay = 3", variable("autoboot_delay", "3")),
            ("hint.uart.0.at=\"isa\"", variable("hint.uart.0.at", "isa")),
            ("vfs.root.mountfrom=\"ufs:/dev/vtbd0p2\"", variable("vfs.root.mountfrom", "ufs:/dev/vtbd0p2")),
            ("#prompt=\"x\"", Ok(None)),
            ("zfs_load=YES", module("zfs", Property::Load, "YES")),
            ("if_tap_load=\"YES\" # tap", module("if_tap", Property::Load, "YES")),
            ("bitmap_name=\"splash.bmp\"", module("bitmap", Property::Name, "splash.bmp")),
            ("a-b_before=\"echo \\\"x\\\"\"", module("a-b", Property::Before, "echo \\\"x\\\"")),
            ("hint.x_load=\"YES\"", variable("hint.x_load", "YES")),
            ("exec=\"echo Loading\"", Ok(Some(Setting::Exec("echo Loading".into())))),
            ("", Ok(None)),
        ];
        for (text, expected) in table {
            assert_eq!(line(text), expected, "{text}");
        }
    }

    #[test]
    fn bad_lines_say_why() {
        let table = [
            ("kernel", "no ="),
            ("kernel=\"a", "no closing quote"),
            ("kernel=\"a\" b", "text behind the value"),
            ("kernel=a b", "text behind the value"),
            ("ker nel=\"a\"", "bad name"),
            ("=x", "bad name"),
            ("x=", "no value"),
            ("x=/boot", "no value"),
        ];
        for (text, why) in table {
            assert_eq!(line(text).unwrap_err(), format!("malformed line ({why}): {text}"));
        }
        let found = parse("a=1\n\n# c\nb\nc=\"3\"\n");
        assert_eq!(
            found.iter().map(|(n, s)| (*n, s.is_ok())).collect::<Vec<_>>(),
            [(1, true), (4, false), (5, true)]
        );
    }

    #[test]
    fn modules_keep_their_order() {
        let mut modules = Modules::default();
        modules.set("zfs", Property::Load, "YES");
        modules.set("a", Property::Name, "/x");
        modules.set("a", Property::Load, "yes");
        modules.set("zfs", Property::Load, "NO");
        let names: Vec<_> = modules.0.iter().map(|(n, m)| (n.as_str(), m.load)).collect();
        assert_eq!(names, [("zfs", false), ("a", true)]);
    }

    #[test]
    fn any_text_ends() {
        let pieces = [
            "kernel", "=", "\"", "\\", "#", "$", "{", "}", " ", "\n", "_load", "exec", "é", "\0", "YES", ".",
        ];
        let mut seed = 7u64;
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..12 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                text.push_str(pieces[(seed >> 40) as usize % pieces.len()]);
            }
            let env = crate::freebsd::environment::Environment::default();
            for (_, setting) in parse(&text) {
                if let Ok(Setting::Variable(_, value) | Setting::Exec(value)) = setting {
                    let _ = crate::freebsd::words::expand(&value, &env);
                    let _ = crate::freebsd::words::split(&value, &env);
                }
            }
        }
    }
}
