//! The text in which LVM2 keeps its metadata: sections, and keys with numbers, strings and lists.

use crate::{Error, Result};

/// Deepest section or list.
const MAX_DEPTH: usize = 16;
const KIND: &str = "lvm";

/// What a key has.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Whole number. Fractions, which nothing here uses, lose their digits behind the point.
    Number(i64),
    /// String.
    Text(String),
    /// List.
    List(Vec<Value>),
    /// Section.
    Section(Section),
}

/// Keys in the order of the text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Section(pub Vec<(String, Value)>);

impl Section {
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// A section within.
    pub fn section(&self, key: &str) -> Option<&Self> {
        match self.get(key)? {
            Value::Section(section) => Some(section),
            _ => None,
        }
    }

    /// All sections within.
    pub fn sections(&self) -> impl Iterator<Item = (&str, &Self)> {
        self.0.iter().filter_map(|(name, value)| match value {
            Value::Section(section) => Some((name.as_str(), section)),
            _ => None,
        })
    }

    /// A number that isn't negative.
    pub fn number(&self, key: &str) -> Option<u64> {
        match self.get(key)? {
            Value::Number(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// A string.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A list.
    pub fn list(&self, key: &str) -> Option<&[Value]> {
        match self.get(key)? {
            Value::List(list) => Some(list),
            _ => None,
        }
    }

    /// Whether the list `key` has a string.
    pub fn has(&self, key: &str, wanted: &str) -> bool {
        self.list(key).is_some_and(|list| list.iter().any(|v| matches!(v, Value::Text(t) if t == wanted)))
    }
}

/// Understands a text.
pub fn parse(text: &[u8]) -> Result<Section> {
    let mut parser = Parser { text, at: 0 };
    parser.section(0)
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn bad(&self, what: &str) -> Error {
        Error::corrupt(KIND, format!("metadata, byte {}: {what}", self.at))
    }

    fn peek(&mut self) -> Option<u8> {
        loop {
            match *self.text.get(self.at)? {
                // The text ends with a zero.
                0 => return None,
                b'#' => {
                    let rest = self.text.get(self.at..)?;
                    self.at += rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
                }
                c if c.is_ascii_whitespace() => self.at += 1,
                c => return Some(c),
            }
        }
    }

    fn accept(&mut self, wanted: u8) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.at += 1;
        }
        found
    }

    /// Up to the brace that ends it, or the end of the text at the top.
    fn section(&mut self, depth: usize) -> Result<Section> {
        if depth > MAX_DEPTH {
            return Err(self.bad("too deep"));
        }
        let mut section = Section::default();
        loop {
            match self.peek() {
                None if depth == 0 => return Ok(section),
                Some(b'}') if depth > 0 => {
                    self.at += 1;
                    return Ok(section);
                }
                None => return Err(self.bad("a section does not end")),
                Some(_) => {}
            }
            let key = self.word()?;
            let value = if self.accept(b'{') {
                Value::Section(self.section(depth + 1)?)
            } else if self.accept(b'=') {
                self.value(depth + 1)?
            } else {
                return Err(self.bad("neither = nor {"));
            };
            section.0.push((key, value));
        }
    }

    fn word(&mut self) -> Result<String> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let ends = |b: &u8| {
            b.is_ascii_whitespace() || matches!(b, b'=' | b'{' | b'}' | b'[' | b']' | b',' | b'"' | 0)
        };
        let len = rest.iter().position(ends).unwrap_or(rest.len());
        let word = rest.get(..len).unwrap_or_default();
        if word.is_empty() {
            return Err(self.bad("no name"));
        }
        self.at += len;
        Ok(String::from_utf8_lossy(word).into_owned())
    }

    fn value(&mut self, depth: usize) -> Result<Value> {
        if depth > MAX_DEPTH {
            return Err(self.bad("too deep"));
        }
        match self.peek() {
            Some(b'"') => {
                self.at += 1;
                self.string().map(Value::Text)
            }
            Some(b'[') => {
                self.at += 1;
                let mut list = Vec::new();
                while !self.accept(b']') {
                    list.push(self.value(depth + 1)?);
                    if !self.accept(b',') && self.peek() != Some(b']') {
                        return Err(self.bad("a list does not end"));
                    }
                }
                Ok(Value::List(list))
            }
            _ => {
                let word = self.word()?;
                let whole = word.split('.').next().unwrap_or_default();
                whole.parse().map(Value::Number).map_err(|_| self.bad("no number"))
            }
        }
    }

    fn string(&mut self) -> Result<String> {
        let mut bytes = Vec::new();
        loop {
            let byte = self.text.get(self.at).copied().ok_or_else(|| self.bad("a string does not end"))?;
            self.at += 1;
            match byte {
                b'"' => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
                b'\\' => {
                    bytes.extend(self.text.get(self.at));
                    self.at += 1;
                }
                byte => bytes.push(byte),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_kinds_of_values() {
        let text = b"# made by\nvg {\n id = \"a\\\"b\\\\\"\n n=-3 f = 2.5\n l=[\"x\", 7,]\n e = []\n s { k = 1 }\n}\n\0junk {";
        let parsed = parse(text).unwrap();
        let vg = parsed.section("vg").unwrap();
        assert_eq!(vg.text("id"), Some("a\"b\\"));
        assert_eq!((vg.number("n"), vg.number("f"), vg.number("id")), (None, Some(2), None));
        assert_eq!(vg.list("l").unwrap(), [Value::Text("x".into()), Value::Number(7)]);
        assert_eq!(vg.list("e").unwrap(), []);
        assert!(vg.has("l", "x") && !vg.has("l", "y"));
        assert_eq!(vg.section("s").unwrap().number("k"), Some(1));
    }

    #[test]
    fn what_does_not_end_is_an_error() {
        for text in ["a {", "a = [1", "a = \"x", "a", "a = ", "}", "a = [1 2]", "= 3", "a = x"] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        let deep = "a { ".repeat(100_000);
        assert!(parse(deep.as_bytes()).unwrap_err().to_string().contains("too deep"));
        let deep = format!("a = {}", "[".repeat(100_000));
        assert!(parse(deep.as_bytes()).unwrap_err().to_string().contains("too deep"));
    }
}
