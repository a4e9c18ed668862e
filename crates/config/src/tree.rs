//! The key tree: dotted keys with text values, the order of which does not depend on how it was filled.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;

use crate::error::{Error, Origin, Problem};
use crate::global;
use crate::key::Key;
use crate::value;

/// Longest key, in bytes. Far above any that exists; it keeps error messages readable.
const MAX_KEY: usize = 256;
/// Longest value, in bytes, before and after expansion.
const MAX_VALUE: usize = 64 << 10;
/// Most references that the expansion of one value may follow.
const MAX_REFERENCES: usize = 1024;

/// One component of a key. Numbers sort as numbers, so that slot 10 comes after slot 2.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Component {
    Number(u64),
    Name(Box<str>),
}

impl Component {
    fn new(text: &str) -> Self {
        match text.parse::<u64>() {
            // Only the canonical spelling is the number: `03` stays a name of its own.
            Ok(number) if number.to_string() == text => Self::Number(number),
            _ => Self::Name(text.into()),
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Path(Vec<Component>);

impl Path {
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("empty key".into());
        }
        if text.len() > MAX_KEY {
            return Err(format!("key longer than {MAX_KEY} bytes"));
        }
        let allowed = |c: char| c.is_ascii_graphic() && !"=%()#".contains(c);
        if let Some(c) = text.chars().find(|c| !allowed(*c)) {
            return Err(format!("key {text:?} contains {c:?}"));
        }
        if text.split('.').any(str::is_empty) {
            return Err(format!("key {text:?} has an empty component"));
        }
        Ok(Self(text.split('.').map(Component::new).collect()))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, component) in self.0.iter().enumerate() {
            write!(f, "{}{component}", if index == 0 { "" } else { "." })?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone)]
struct Entry {
    value: String,
    origin: Origin,
}

/// All that the user asked for, as bhyve_config(5) keys. The machine is built from this alone.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    entries: BTreeMap<Path, Entry>,
}

/// Trees are equal when they hold the same values, wherever those came from.
impl PartialEq for Tree {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Tree {
    /// An empty tree: every key has its default.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key; the last setting wins. In error messages the setting is named `key=value`.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), Error> {
        self.set_from(key, value, &Origin::new(format!("{key}={value}")))
    }

    /// Sets a key on behalf of the option or file line `origin`.
    pub fn set_from(&mut self, key: &str, value: &str, origin: &Origin) -> Result<(), Error> {
        let invalid = |message: String| Error::new(origin, Problem::Invalid(message));
        let path = Path::parse(key).map_err(invalid)?;
        if value.len() > MAX_VALUE {
            return Err(invalid(format!("value of {key} is longer than {MAX_VALUE} bytes")));
        }
        if value.starts_with([' ', '\t']) {
            return Err(invalid(format!("value of {key} begins with a blank")));
        }
        if value.chars().any(|c| c.is_control() && c != '\t') {
            return Err(invalid(format!("value of {key} contains a control character")));
        }
        for length in 1..path.0.len() {
            let parent = Path(path.0.iter().take(length).cloned().collect());
            if self.entries.contains_key(&parent) {
                return Err(invalid(format!("{key} would be below {parent}, which has a value")));
            }
        }
        if self.below(&path).next().is_some() {
            return Err(invalid(format!("{key} can't have a value, there are keys below it")));
        }
        self.entries.insert(path, Entry { value: value.to_owned(), origin: origin.clone() });
        Ok(())
    }

    /// The value of a key as it was set, without expansion.
    pub fn raw(&self, key: &str) -> Option<&str> {
        self.entry(key).map(|entry| entry.value.as_str())
    }

    /// Who set a key. A key that is not set is named by itself.
    pub fn origin(&self, key: &str) -> Origin {
        self.entry(key).map_or_else(|| Origin::new(key), |entry| entry.origin.clone())
    }

    /// All keys that are set with their values as they were set, in the order of the dump.
    pub fn iter(&self) -> impl Iterator<Item = (String, &str)> {
        self.entries.iter().map(|(path, entry)| (path.to_string(), entry.value.as_str()))
    }

    /// Whether a key, or any key below it, is set.
    pub fn contains(&self, key: &str) -> bool {
        Path::parse(key)
            .is_ok_and(|path| self.entries.contains_key(&path) || self.below(&path).next().is_some())
    }

    /// The names directly below a key, in order: `children("pci.0")` are the slots of bus 0.
    pub fn children(&self, key: &str) -> Vec<String> {
        let Ok(path) = Path::parse(key) else { return Vec::new() };
        let mut names: Vec<String> =
            self.below(&path).filter_map(|p| p.0.get(path.0.len())).map(ToString::to_string).collect();
        names.dedup();
        names
    }

    /// The value of a key after expansion: what is set, else the default of a global key.
    pub fn get(&self, key: &str) -> Result<Option<String>, Error> {
        self.lookup(key, Key::find(global::KEYS, key))
    }

    /// A boolean; false when it is neither set nor has a default.
    pub fn flag(&self, key: &str) -> Result<bool, Error> {
        self.node("").flag(key)
    }

    /// An integer.
    pub fn integer(&self, key: &str) -> Result<Option<i64>, Error> {
        self.node("").integer(key)
    }

    /// A number of bytes.
    pub fn size(&self, key: &str) -> Result<Option<u64>, Error> {
        self.node("").size(key)
    }

    /// The keys below `path` as a tree of their own; `""` is the root.
    pub fn node(&self, path: &str) -> Node<'_> {
        Node { tree: self, path: path.to_owned(), keys: if path.is_empty() { global::KEYS } else { &[] } }
    }

    /// The text that `config.dump` prints; `-k` reads it back into the same tree.
    pub fn dump(&self) -> String {
        let mut text = String::new();
        for (key, value) in self.iter() {
            text.extend([key.as_str(), "=", value, "\n"]);
        }
        text
    }

    /// An error about a key, at the place where it was set.
    pub fn error(&self, key: &str, message: impl Into<String>) -> Error {
        Error::new(&self.origin(key), Problem::Invalid(message.into()))
    }

    /// The keys that values refer to by `%(key)`.
    pub(crate) fn references(&self) -> Vec<&str> {
        let mut names = Vec::new();
        for entry in self.entries.values() {
            let mut rest = entry.value.as_str();
            while let Some(start) = rest.find('%') {
                rest = rest.get(start + 1..).unwrap_or_default();
                if let Some(after) = rest.strip_prefix('%') {
                    rest = after;
                } else if let Some((name, after)) =
                    rest.strip_prefix('(').and_then(|text| text.split_once(')'))
                {
                    names.push(name);
                    rest = after;
                }
            }
        }
        names
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.get(&Path::parse(key).ok()?)
    }

    /// The keys strictly below `path`.
    fn below(&self, path: &Path) -> impl Iterator<Item = &Path> {
        let prefix = path.clone();
        self.entries
            .range((Bound::Excluded(path.clone()), Bound::Unbounded))
            .map(|(path, _)| path)
            .take_while(move |path| path.0.starts_with(&prefix.0))
    }

    fn lookup(&self, key: &str, declared: Option<&Key>) -> Result<Option<String>, Error> {
        match self.entry(key) {
            Some(entry) => {
                Expansion { tree: self, at: entry, open: vec![key], followed: 0 }.run(&entry.value).map(Some)
            }
            None => Ok(declared.and_then(|key| key.default).map(str::to_owned)),
        }
    }
}

/// One expansion under way.
struct Expansion<'a> {
    tree: &'a Tree,
    at: &'a Entry,
    /// The keys whose values are being expanded, outermost first.
    open: Vec<&'a str>,
    followed: usize,
}

impl<'a> Expansion<'a> {
    fn error(&self, message: String) -> Error {
        Error::new(&self.at.origin, Problem::Invalid(message))
    }

    fn run(&mut self, value: &'a str) -> Result<String, Error> {
        let mut result = String::new();
        let mut rest = value;
        while let Some((text, after)) = rest.split_once('%') {
            result.push_str(text);
            if let Some(after) = after.strip_prefix('%') {
                result.push('%');
                rest = after;
            } else if let Some((name, after)) = after.strip_prefix('(').and_then(|text| text.split_once(')'))
            {
                result.push_str(&self.follow(name)?);
                rest = after;
            } else {
                return Err(
                    self.error(format!("{value:?}: % begins neither %(key) nor %%, which means a plain %"))
                );
            }
            if result.len() > MAX_VALUE {
                return Err(self.error(format!("expands to more than {MAX_VALUE} bytes")));
            }
        }
        result.push_str(rest);
        Ok(result)
    }

    fn follow(&mut self, name: &'a str) -> Result<String, Error> {
        if self.open.contains(&name) {
            return Err(self.error(format!("%({name}) refers to itself")));
        }
        self.followed += 1;
        if self.followed > MAX_REFERENCES {
            return Err(self.error(format!("more than {MAX_REFERENCES} references")));
        }
        let Some(value) = self.tree.raw(name) else {
            return match Key::find(global::KEYS, name).and_then(|key| key.default) {
                Some(default) => Ok(default.to_owned()),
                None => Err(self.error(format!("%({name}): no such key is set"))),
            };
        };
        self.open.push(name);
        let result = self.run(value);
        self.open.pop();
        result
    }
}

/// The keys below one key, for example those of one device.
///
/// With [`Node::declared`] the getters know the defaults that the device declared.
#[derive(Debug, Clone)]
pub struct Node<'a> {
    tree: &'a Tree,
    path: String,
    keys: &'static [Key],
}

impl<'a> Node<'a> {
    /// The same node, whose keys have these declarations.
    #[must_use]
    pub fn declared(mut self, keys: &'static [Key]) -> Self {
        self.keys = keys;
        self
    }

    /// The key of this node, `pci.0.3.0`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tree that this node is in.
    pub fn tree(&self) -> &'a Tree {
        self.tree
    }

    /// The full key of `name` below this node.
    pub fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// A value after expansion: what is set, else the declared default.
    pub fn get(&self, name: &str) -> Result<Option<String>, Error> {
        self.tree.lookup(&self.key(name), Key::find(self.keys, name))
    }

    /// A value that must be there.
    pub fn require(&self, name: &str) -> Result<String, Error> {
        self.get(name)?.ok_or_else(|| self.error(name, format!("{} is missing", self.key(name))))
    }

    /// A boolean; false when it is neither set nor has a default.
    pub fn flag(&self, name: &str) -> Result<bool, Error> {
        Ok(self.read(name, "expected true or false", value::parse_bool)?.unwrap_or(false))
    }

    /// An integer.
    pub fn integer(&self, name: &str) -> Result<Option<i64>, Error> {
        self.read(name, "expected an integer", value::parse_integer)
    }

    /// A number of bytes.
    pub fn size(&self, name: &str) -> Result<Option<u64>, Error> {
        self.read(name, "expected a size", value::parse_size)
    }

    /// A value read by `parse`; `expected` tells the user what would be taken.
    pub fn read<T>(
        &self,
        name: &str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(text) = self.get(name)? else { return Ok(None) };
        match parse(&text) {
            Some(value) => Ok(Some(value)),
            None => Err(Error::new(
                &self.tree.origin(&self.key(name)),
                Problem::Value { key: self.key(name), value: text, expected: expected.to_owned() },
            )),
        }
    }

    /// The names directly below this node, in order.
    pub fn children(&self) -> Vec<String> {
        self.tree.children(&self.path)
    }

    /// The node `name` below this one. Declarations stay with the outer node.
    #[must_use]
    pub fn node(&self, name: &str) -> Node<'a> {
        self.tree.node(&self.key(name))
    }

    /// An error about the key `name`, at the place where it (or else the device) was set.
    pub fn error(&self, name: &str, message: impl Into<String>) -> Error {
        let key = self.key(name);
        let at = if self.tree.raw(&key).is_some() { key } else { self.key("device") };
        self.tree.error(&at, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(pairs: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::new();
        for (key, value) in pairs {
            tree.set(key, value).unwrap();
        }
        tree
    }

    #[test]
    fn last_setting_wins_and_numbers_sort_as_numbers() {
        let tree = tree(&[
            ("pci.0.10.0.device", "a"),
            ("pci.0.2.0.device", "b"),
            ("pci.0.2.0.device", "c"),
            ("pci.0.02.0.device", "d"),
            ("cpus", "2"),
        ]);
        assert_eq!(tree.children("pci.0"), ["2", "10", "02"]);
        assert_eq!(tree.dump(), "cpus=2\npci.0.2.0.device=c\npci.0.10.0.device=a\npci.0.02.0.device=d\n");
        assert!(tree.contains("pci.0.2") && !tree.contains("pci.0.3") && !tree.contains(""));
        assert!(tree.children("pci.1").is_empty() && tree.children("..").is_empty());
    }

    #[test]
    fn a_key_is_a_value_or_a_node() {
        let mut tree = tree(&[("a.b", "1"), ("c", "2")]);
        assert_eq!(tree.set("a", "1").unwrap_err().exit_code(), 4);
        let error = tree.set("c.d.e", "1").unwrap_err();
        assert!(error.to_string().contains("below c"), "{error}");
        tree.set("ab", "3").unwrap();
        for key in ["", ".", "a.", ".a", "a..b", "a b", "a=b", "ä", "a%b", &"x".repeat(300)] {
            assert!(tree.set(key, "v").is_err(), "{key}");
        }
        for value in [" v", "\tv", "a\nb", "a\rb", "a\0b", &"x".repeat(70_000)] {
            assert!(tree.set("v", value).is_err(), "{value:?}");
        }
        tree.set("v", "a\tb ").unwrap();
        tree.set("v", "").unwrap();
    }

    #[test]
    fn expansion() {
        let tree = tree(&[
            ("name", "vm"),
            ("dir", "/vm/%(name)"),
            ("path", "%(dir)/disk.img"),
            ("plain", "100%%"),
            ("cmd", "%(plain)%%(name)"),
            ("cpu", "%(cpus)"),
        ]);
        let get = |key: &str| tree.get(key).unwrap().unwrap();
        assert_eq!(get("path"), "/vm/vm/disk.img");
        assert_eq!(get("plain"), "100%");
        assert_eq!(get("cmd"), "100%%(name)");
        assert_eq!(get("cpu"), "1", "defaults can be referred to");
        assert_eq!(tree.raw("path"), Some("%(dir)/disk.img"));
        assert_eq!(tree.get("nothing").unwrap(), None);
        assert_eq!(tree.references(), ["plain", "cpus", "name", "dir"]);
    }

    #[test]
    fn expansion_refuses_loops_bombs_and_nonsense() {
        let mut tree = tree(&[("a", "%(b)"), ("b", "x%(a)"), ("self", "%(self)")]);
        for (key, value) in
            [("c", "%(nothing)"), ("d", "50%"), ("e", "%(open"), ("f", "%d"), ("g", "%()"), ("h", "%(a b)")]
        {
            tree.set(key, value).unwrap();
            assert!(tree.get(key).is_err(), "{key}");
        }
        assert!(tree.get("a").unwrap_err().to_string().contains("itself"));
        assert!(tree.get("self").is_err());
        for (level, leaf) in [("x", ""), ("y", "0123456789")] {
            tree.set(&format!("{level}0"), leaf).unwrap();
            for n in 1..60 {
                let value = format!("%({level}{0})%({level}{0})", n - 1);
                tree.set(&format!("{level}{n}"), &value).unwrap();
            }
            assert!(tree.get(&format!("{level}59")).is_err());
        }
    }

    #[test]
    fn typed_getters_and_defaults() {
        static KEYS: &[Key] = &[
            Key::new("ro", crate::Kind::Bool, "").default("yes"),
            Key::new("maxq", crate::Kind::Integer { min: 1, max: 64 }, "").default("0x10"),
        ];
        let tree = tree(&[
            ("pci.0.3.0.device", "nvme"),
            ("pci.0.3.0.qsz", "010"),
            ("pci.0.3.0.ram", "64M"),
            ("pci.0.3.0.bad", "maybe"),
            ("memory.wired", "ON"),
        ]);
        let node = tree.node("pci.0.3.0").declared(KEYS);
        assert!(node.flag("ro").unwrap() && !node.flag("sync").unwrap());
        assert_eq!(node.integer("maxq").unwrap(), Some(16));
        assert_eq!(node.integer("qsz").unwrap(), Some(8));
        assert_eq!(node.integer("none").unwrap(), None);
        assert_eq!(node.size("ram").unwrap(), Some(64 << 20));
        let error = node.flag("bad").unwrap_err();
        assert_eq!(error.to_string(), "pci.0.3.0.bad=maybe: pci.0.3.0.bad=maybe: expected true or false");
        assert_eq!(
            node.require("path").unwrap_err().to_string(),
            "pci.0.3.0.device=nvme: pci.0.3.0.path is missing"
        );
        assert!(tree.flag("memory.wired").unwrap() && tree.flag("x86.mptable").unwrap());
        assert_eq!(tree.get("memory.size").unwrap().as_deref(), Some("256M"));
        assert_eq!(node.children(), ["bad", "device", "qsz", "ram"]);
    }
}
