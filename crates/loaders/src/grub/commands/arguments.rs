//! Options of commands.

use crate::grub::error::{Error, Outcome};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    No,
    Required,
    Optional,
}

/// An option that a command has.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    name: &'static str,
    short: Option<char>,
    value: Value,
}

impl Flag {
    /// `--name`
    pub const fn plain(name: &'static str) -> Self {
        Self { name, short: None, value: Value::No }
    }

    /// `--name=VALUE` or `--name VALUE`
    pub const fn value(name: &'static str) -> Self {
        Self { name, short: None, value: Value::Required }
    }

    /// As [`Flag::value`], more than once.
    pub const fn many(name: &'static str) -> Self {
        Self::value(name)
    }

    /// `--name` or `--name=VALUE`
    pub const fn optional(name: &'static str) -> Self {
        Self { name, short: None, value: Value::Optional }
    }

    /// The same with a short name.
    pub const fn short(self, short: char) -> Self {
        Self { short: Some(short), ..self }
    }
}

/// Arguments, sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    flags: Vec<(&'static str, Option<String>)>,
    /// What is no option.
    pub rest: Vec<String>,
}

impl Parsed {
    /// Whether an option is there.
    pub fn has(&self, name: &str) -> bool {
        self.flags.iter().any(|(n, _)| *n == name)
    }

    /// The value of an option; the last one counts.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.flags.iter().rev().find(|(n, _)| *n == name).and_then(|(_, v)| v.as_deref())
    }

    /// All values of an option.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.flags.iter().filter(move |(n, _)| *n == name).filter_map(|(_, v)| v.as_deref())
    }

    /// The only argument that is no option.
    pub fn one(&self, what: &str) -> Outcome<&str> {
        match self.rest.as_slice() {
            [one] => Ok(one),
            [] => Err(Error::expected(what)),
            [_, extra, ..] => Err(Error::argument(format!("unexpected argument `{extra}'"))),
        }
    }

    /// An error if there are arguments that are no options.
    pub fn none(&self) -> Outcome {
        match self.rest.first() {
            None => Ok(()),
            Some(extra) => Err(Error::argument(format!("unexpected argument `{extra}'"))),
        }
    }
}

/// Sorts arguments. Options may stand anywhere before `--`.
pub fn parse(flags: &[Flag], arguments: &[String]) -> Outcome<Parsed> {
    let mut parsed = Parsed::default();
    let mut arguments = arguments.iter();
    let unknown = |what: &str| Error::argument(format!("unknown argument `{what}'"));
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            parsed.rest.extend(arguments.cloned());
            break;
        }
        let found: Vec<(&Flag, Option<&str>)> = if let Some(long) = argument.strip_prefix("--") {
            let (name, value) = long.split_once('=').map_or((long, None), |(n, v)| (n, Some(v)));
            vec![(flags.iter().find(|f| f.name == name).ok_or_else(|| unknown(argument))?, value)]
        } else if argument.len() > 1 && argument.starts_with('-') {
            short(flags, argument.get(1..).unwrap_or_default()).ok_or_else(|| unknown(argument))?
        } else {
            parsed.rest.push(argument.clone());
            continue;
        };
        for (flag, value) in found {
            let value = match (flag.value, value) {
                (Value::No, Some(_)) => {
                    return Err(Error::argument(format!("a value was assigned to `{}'", flag.name)));
                }
                (Value::Required, None) => match arguments.next() {
                    Some(value) => Some(value.clone()),
                    None => {
                        return Err(Error::argument(format!("missing mandatory option for `{argument}'")));
                    }
                },
                (_, value) => value.map(str::to_owned),
            };
            parsed.flags.push((flag.name, value));
        }
    }
    Ok(parsed)
}

/// Options of one letter each; what follows one with a value is its value.
fn short<'f, 't>(flags: &'f [Flag], text: &'t str) -> Option<Vec<(&'f Flag, Option<&'t str>)>> {
    let mut found = Vec::new();
    let chars = text.char_indices();
    for (at, c) in chars {
        let flag = flags.iter().find(|f| f.short == Some(c))?;
        if flag.value == Value::No {
            found.push((flag, None));
            continue;
        }
        let rest = text.get(at + c.len_utf8()..).filter(|r| !r.is_empty());
        found.push((flag, rest.map(|r| r.strip_prefix('=').unwrap_or(r))));
        break;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[Flag] = &[
        Flag::plain("long").short('l'),
        Flag::plain("all").short('a'),
        Flag::many("hint"),
        Flag::optional("set").short('s'),
        Flag::value("label").short('L'),
    ];

    fn run(text: &str) -> Outcome<Parsed> {
        let arguments: Vec<String> = text.split(' ').map(str::to_owned).collect();
        parse(FLAGS, &arguments)
    }

    #[test]
    fn options_are_found() {
        let parsed = run("-la x --hint=a --hint b --set y --set=root -- -z").unwrap();
        assert!(parsed.has("long") && parsed.has("all"));
        assert_eq!(parsed.values("hint").collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((parsed.value("set"), parsed.rest.join(" ")), (Some("root"), "x y -z".to_owned()));
        let parsed = run("-lLname -sroot -").unwrap();
        assert_eq!((parsed.value("label"), parsed.value("set")), (Some("name"), Some("root")));
        assert_eq!(parsed.one("x"), Ok("-"));
        assert!(run("--set x").unwrap().has("set"));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, what) in [
            ("-z", "`-z'"),
            ("--x=1", "`--x=1'"),
            ("--hint", "`--hint'"),
            ("--long=1", "`long'"),
            ("-lz", "`-lz'"),
        ] {
            assert!(run(text).unwrap_err().message.contains(what), "{text}");
        }
    }
}
