//! Name-value lists in the XDR encoding (RFC 4506), which labels and the pool's configuration have.

use crate::{Error, Fields, Result};

use super::KIND;

/// Deepest nesting of lists: a label has four levels.
const MAX_DEPTH: usize = 12;

/// A list of names with values.
#[derive(Clone, Debug, Default)]
pub struct Nvlist(Vec<(String, Value)>);

/// The kinds of value that matter to us.
#[derive(Clone, Debug)]
enum Value {
    Number(u64),
    Text(String),
    List(Nvlist),
    Lists(Vec<Nvlist>),
    Other,
}

impl Nvlist {
    /// Parses a packed list with its header.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        // Encoding 1 is XDR; the byte after it is the writer's byte order, which XDR doesn't depend on.
        if bytes.u8_at(0) != Some(1) {
            return Err(bad());
        }
        let mut reader = Reader { bytes, at: 4 };
        reader.list(0).ok_or_else(bad)
    }

    /// The number called `name`.
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.get(name)? {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// The text called `name`.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The list called `name`.
    pub fn list(&self, name: &str) -> Option<&Self> {
        match self.get(name)? {
            Value::List(list) => Some(list),
            _ => None,
        }
    }

    /// The lists called `name`; none if there is no such array.
    pub fn lists(&self, name: &str) -> &[Self] {
        match self.get(name) {
            Some(Value::Lists(lists)) => lists,
            _ => &[],
        }
    }

    /// Whether there is anything called `name`.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }
}

fn bad() -> Error {
    Error::corrupt(KIND, "a name-value list")
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn word(&mut self) -> Option<u32> {
        let word = self.bytes.u32_be(self.at)?;
        self.at += 4;
        Some(word)
    }

    fn long(&mut self) -> Option<u64> {
        let long = self.bytes.u64_be(self.at)?;
        self.at += 8;
        Some(long)
    }

    /// A string: its length, its bytes, zeros up to a multiple of four.
    fn text(&mut self) -> Option<String> {
        let len = self.word()? as usize;
        let text = self.bytes.get(self.at..self.at.checked_add(len)?)?;
        self.at = self.at.checked_add(len.checked_next_multiple_of(4)?)?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    /// Version and flags, then pairs up to one of size 0.
    fn list(&mut self, depth: usize) -> Option<Nvlist> {
        if depth > MAX_DEPTH || self.word()? != 0 {
            return None;
        }
        self.word()?;
        let mut pairs = Vec::new();
        loop {
            let start = self.at;
            let encoded = self.word()? as usize;
            let decoded = self.word()?;
            if encoded == 0 && decoded == 0 {
                return Some(Nvlist(pairs));
            }
            let end = start.checked_add(encoded)?;
            let inner = self.bytes.get(..end)?;
            let mut pair = Reader { bytes: inner, at: self.at };
            let name = pair.text()?;
            let value = pair.value(depth)?;
            if end <= self.at {
                return None;
            }
            self.at = end;
            pairs.push((name, value));
        }
    }

    /// A type, a number of elements, the elements. The types are those of `data_type_t` in libnvpair.
    fn value(&mut self, depth: usize) -> Option<Value> {
        let kind = self.word()?;
        let count = self.word()? as usize;
        Some(match kind {
            // INT32, UINT32, BOOLEAN_VALUE; the smaller integers take four bytes as well.
            3..=6 | 21 => Value::Number(self.word()?.into()),
            // INT64, UINT64
            7 | 8 => Value::Number(self.long()?),
            // STRING
            9 => Value::Text(self.text()?),
            // NVLIST
            19 => Value::List(self.list(depth + 1)?),
            // NVLIST_ARRAY
            20 => {
                let mut lists = Vec::new();
                for _ in 0..count {
                    lists.push(self.list(depth + 1)?);
                }
                Value::Lists(lists)
            }
            _ => Value::Other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, kind: u32, count: u32, value: &[u8]) -> Vec<u8> {
        let mut body = (name.len() as u32).to_be_bytes().to_vec();
        body.extend_from_slice(name.as_bytes());
        body.resize(body.len().next_multiple_of(4), 0);
        body.extend_from_slice(&kind.to_be_bytes());
        body.extend_from_slice(&count.to_be_bytes());
        body.extend_from_slice(value);
        let mut pair = (body.len() as u32 + 8).to_be_bytes().to_vec();
        pair.extend_from_slice(&1u32.to_be_bytes());
        pair.extend_from_slice(&body);
        pair
    }

    fn list(pairs: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 0, 0, 0, 0, 0, 1];
        bytes.extend(pairs.iter().flatten());
        bytes.extend_from_slice(&[0; 8]);
        bytes
    }

    fn packed(pairs: &[Vec<u8>]) -> Vec<u8> {
        [&[1, 1, 0, 0][..], &list(pairs)].concat()
    }

    #[test]
    fn values_are_found_by_name() {
        let inner = list(&[pair("guid", 8, 1, &7u64.to_be_bytes())]);
        let bytes = packed(&[
            pair("skipped", 11, 3, &[0; 12]),
            pair("name", 9, 1, b"\0\0\0\x04tank"),
            pair("tree", 19, 1, &inner),
            pair("children", 20, 2, &[inner.clone(), inner.clone()].concat()),
            pair("flag", 1, 0, &[]),
        ]);
        let list = Nvlist::parse(&bytes).unwrap();
        assert_eq!(list.text("name"), Some("tank"));
        assert_eq!(list.list("tree").unwrap().number("guid"), Some(7));
        assert_eq!(list.lists("children").len(), 2);
        assert_eq!(list.number("name"), None);
        assert_eq!(list.names().last(), Some("flag"));
        for len in 0..bytes.len() {
            assert!(Nvlist::parse(&bytes[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn nesting_and_sizes_are_bounded() {
        let mut nested = list(&[]);
        for _ in 0..40 {
            nested = list(&[pair("in", 19, 1, &nested)]);
        }
        assert!(Nvlist::parse(&[&[1, 1, 0, 0][..], &nested].concat()).is_err());
        let mut endless = packed(&[pair("a", 1, 0, &[])]);
        endless[12..16].copy_from_slice(&[0; 4]);
        assert!(Nvlist::parse(&endless).is_err());
        assert!(Nvlist::parse(&packed(&[pair("many", 20, u32::MAX, &[])])).is_err());
    }
}
