//! pax records: `LENGTH KEY=VALUE` lines (POSIX.1-2024, pax, "pax Extended Header").

use super::bad;
use crate::Result;

/// Most numbers of a map.
const MAX_MAP: usize = 1 << 20;

/// What the records in force say.
#[derive(Default)]
pub struct Records {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub modified: Option<i64>,
    /// Name of a file with holes; the member has another one.
    pub sparse_name: Option<Vec<u8>>,
    /// Its size with the holes.
    pub real_size: Option<u64>,
    /// Version of the format: 0 with `map` and 1 with the map before the data.
    pub sparse_major: Option<u64>,
    /// Offsets and lengths, by turns.
    pub map: Vec<u64>,
}

fn decimal(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

impl Records {
    /// Whether the member is a file with holes.
    pub fn is_sparse(&self) -> bool {
        self.sparse_major.is_some() || !self.map.is_empty() || self.real_size.is_some()
    }

    /// Adds the records of a header.
    pub fn add(&mut self, text: &[u8]) -> Result<()> {
        let mut rest = text;
        while !rest.is_empty() && rest.first() != Some(&0) {
            let damaged = || bad("a pax record");
            let space = rest.iter().position(|byte| *byte == b' ').ok_or_else(damaged)?;
            let len = rest.get(..space).and_then(decimal).ok_or_else(damaged)?;
            // The line's end belongs to the length.
            let line = usize::try_from(len).ok().and_then(|len| rest.get(space + 1..len.checked_sub(1)?));
            let line = line.ok_or_else(damaged)?;
            rest = rest.get(len as usize..).unwrap_or_default();
            let equals = line.iter().position(|byte| *byte == b'=').ok_or_else(damaged)?;
            let (key, value) = (&line[..equals], &line[equals + 1..]);
            self.record(key, value).ok_or_else(|| bad(format!("pax record {}", key.escape_ascii())))?;
        }
        Ok(())
    }

    /// One record; an empty value takes back an earlier one.
    fn record(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let text = || (!value.is_empty()).then(|| value.to_vec());
        let number = || if value.is_empty() { Some(None) } else { decimal(value).map(Some) };
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.link = text(),
            b"size" => self.size = number()?,
            b"mtime" => {
                // Seconds with a fraction.
                let whole = value.split(|byte| *byte == b'.').next().unwrap_or_default();
                self.modified = std::str::from_utf8(whole).ok().and_then(|whole| whole.parse().ok());
            }
            b"GNU.sparse.name" => self.sparse_name = text(),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.real_size = number()?,
            b"GNU.sparse.major" => self.sparse_major = number()?,
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                if self.map.len() >= MAX_MAP {
                    return None;
                }
                self.map.push(decimal(value)?);
            }
            b"GNU.sparse.map" => {
                self.map = value.split(|byte| *byte == b',').map(decimal).collect::<Option<_>>()?;
            }
            _ => {}
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        let mut records = Records::default();
        records.add("18 path=gr\u{fc}\u{df}e/a\n19 mtime=1234.5678\n11 size=77\n".as_bytes()).unwrap();
        assert_eq!(records.path.as_deref(), Some("gr\u{fc}\u{df}e/a".as_bytes()));
        assert_eq!((records.size, records.modified), (Some(77), Some(1234)));
        records.add(b"8 path=\n29 GNU.sparse.map=0,10,200,5\n").unwrap();
        assert_eq!((records.path.as_ref(), &records.map[..]), (None, &[0, 10, 200, 5][..]));
        for wrong in [&b"99 path=x\n"[..], b"x path=y\n", b"0 a=b\n", b"3 \n", b"9 abcdef\n", b"11 size=-1\n"]
        {
            assert!(Records::default().add(wrong).is_err(), "{}", wrong.escape_ascii());
        }
    }
}
