//! Declarations of keys: every key is described once, and help, defaults and validation come from that.

use crate::value;

/// What values a key takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A boolean in one of the spellings of bhyve_config(5).
    Bool,
    /// An integer in any base of strtol(3), within bounds (both included).
    Integer {
        /// Smallest value.
        min: i64,
        /// Largest value.
        max: i64,
    },
    /// A number of bytes with an optional suffix, as expand_number(3).
    Size,
    /// A guest memory size: as `Size`, but a bare number below 1 MiB counts MiB.
    MemorySize,
    /// Text of at most so many bytes, not empty.
    Text(usize),
    /// Text that may be empty, such as a kernel command line.
    FreeText,
    /// The name of a file of the host.
    Path,
    /// One of a few words.
    Choice(&'static [&'static str]),
    /// The MAC address of a station.
    Mac,
    /// A UUID.
    Uuid,
    /// `logical[/physical]` sector sizes.
    SectorSize,
    /// Host CPUs: numbers and ranges between commas.
    CpuSet,
}

impl Kind {
    /// Checks a value; the error says what would be taken instead.
    pub fn check(&self, text: &str) -> Result<(), String> {
        let (good, expected) = match *self {
            Self::Bool => (value::parse_bool(text).is_some(), "expected true or false".to_owned()),
            Self::Integer { min, max } => (
                value::parse_integer(text).is_some_and(|n| (min..=max).contains(&n)),
                if (min, max) == (i64::MIN, i64::MAX) {
                    "expected an integer".to_owned()
                } else {
                    format!("expected an integer from {min} to {max}")
                },
            ),
            Self::Size => {
                (value::parse_size(text).is_some(), "expected a size such as 64K, 512M or 4G".to_owned())
            }
            Self::MemorySize => (
                value::parse_memory_size(text).is_some_and(|n| n != 0),
                "expected a memory size such as 512M or 4G".to_owned(),
            ),
            Self::Text(max) => {
                ((1..=max).contains(&text.len()), format!("expected text of 1 to {max} characters"))
            }
            Self::FreeText => (true, String::new()),
            Self::Path => (!text.is_empty(), "expected the name of a file".to_owned()),
            Self::Choice(words) => (words.contains(&text), format!("expected one of {}", words.join(", "))),
            Self::Mac => (
                value::parse_mac(text).is_some_and(value::is_station_mac),
                "expected a unicast MAC address such as 58:9c:fc:00:00:01".to_owned(),
            ),
            Self::Uuid => (
                value::parse_uuid(text).is_some(),
                "expected a UUID such as 2a1f8c6e-5f0b-4d3c-9d8e-7b6a5c4d3e2f".to_owned(),
            ),
            Self::SectorSize => (
                value::parse_sector_size(text).is_some(),
                "expected logical[/physical], powers of two from 512 on, logical not above physical"
                    .to_owned(),
            ),
            Self::CpuSet => (
                value::parse_cpuset(text).is_some(),
                "expected host CPUs such as 0,2-3 (0 to 1023)".to_owned(),
            ),
        };
        if good { Ok(()) } else { Err(expected) }
    }

    /// Whether two values of this kind say the same (`yes` and `true`, `0x10` and `16`).
    pub fn same(&self, a: &str, b: &str) -> bool {
        a == b
            || match self {
                Self::Bool => {
                    matches!((value::parse_bool(a), value::parse_bool(b)), (Some(a), Some(b)) if a == b)
                }
                Self::Integer { .. } => {
                    matches!((value::parse_integer(a), value::parse_integer(b)), (Some(a), Some(b)) if a == b)
                }
                Self::Size => {
                    matches!((value::parse_size(a), value::parse_size(b)), (Some(a), Some(b)) if a == b)
                }
                Self::MemorySize => {
                    matches!((value::parse_memory_size(a), value::parse_memory_size(b)), (Some(a), Some(b)) if a == b)
                }
                _ => false,
            }
    }

    /// The form of the values in a word, for help texts.
    pub fn form(&self) -> String {
        match *self {
            Self::Bool => "bool".into(),
            Self::Integer { .. } => "integer".into(),
            Self::Size | Self::MemorySize => "size".into(),
            Self::Text(_) | Self::FreeText => "string".into(),
            Self::Path => "path".into(),
            Self::Choice(words) => words.join("|"),
            Self::Mac => "MAC address".into(),
            Self::Uuid => "UUID".into(),
            Self::SectorSize => "logical[/physical]".into(),
            Self::CpuSet => "CPU set".into(),
        }
    }
}

/// The declaration of a key.
///
/// Devices declare theirs as `pub static KEYS: &[Key]`, with names relative to the device's node:
///
/// ```
/// use config::{Key, Kind};
/// static KEYS: &[Key] = &[
///     Key::new("path", Kind::Path, "image file or block device"),
///     Key::new("ro", Kind::Bool, "refuse writes").default("false"),
///     Key::new("port.*.name", Kind::Text(64), "name of the port that the guest sees"),
/// ];
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Dotted name; a `*` stands for any one component.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// The value it has when it is not set.
    pub default: Option<&'static str>,
    /// One line for the user.
    pub help: &'static str,
    /// Whether any part of the program acts on it. A key that is known but not implemented may only be
    /// set to its default.
    pub supported: bool,
}

impl Key {
    /// A key without a default.
    pub const fn new(name: &'static str, kind: Kind, help: &'static str) -> Self {
        Self { name, kind, default: None, help, supported: true }
    }

    /// The same key with a default.
    #[must_use]
    pub const fn default(mut self, value: &'static str) -> Self {
        self.default = Some(value);
        self
    }

    /// The same key, known from bhyve but not implemented here.
    #[must_use]
    pub const fn unsupported(mut self) -> Self {
        self.supported = false;
        self
    }

    /// Whether this declaration is about the key `name`.
    pub fn matches(&self, name: &str) -> bool {
        let (mut pattern, mut parts) = (self.name.split('.'), name.split('.'));
        loop {
            match (pattern.next(), parts.next()) {
                (None, None) => return true,
                (Some("*"), Some(_)) => {}
                (Some(a), Some(b)) if a == b => {}
                _ => return false,
            }
        }
    }

    /// The declaration of `name` in a list.
    pub fn find<'a>(keys: &'a [Key], name: &str) -> Option<&'a Key> {
        keys.iter().find(|key| key.matches(name))
    }
}

/// The candidate that looks most like `name`, if any is close enough to be a slip of the fingers.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Edit distance in which swapping two neighbours counts as one edit.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let at = |row: &[usize], column: usize| row.get(column).copied().unwrap_or(usize::MAX / 2);
            let mut best =
                (at(&last, j + 1) + 1).min(at(&row, j) + 1).min(at(&last, j) + usize::from(x != y));
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(y) && b.get(j - 1) == Some(x);
            if swapped {
                best = best.min(at(&before, j - 1) + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_match_one_component() {
        let key = Key::new("port.*.path", Kind::Path, "");
        assert!(key.matches("port.0.path") && key.matches("port.15.path"));
        assert!(!key.matches("port.path") && !key.matches("port.0.1.path") && !key.matches("port.0"));
        assert!(!key.matches("port.0.path.x"));
    }

    #[test]
    fn edit_distances() {
        for (a, b, expected) in [
            ("", "", 0),
            ("abc", "", 3),
            ("", "ab", 2),
            ("memory", "memroy", 1),
            ("cpus", "cups", 1),
            ("a", "b", 1),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
        assert_eq!(nearest("virito-blk", ["virtio-net", "virtio-blk"]), Some("virtio-blk"));
        assert_eq!(nearest("something", ["virtio-net", "virtio-blk"]), None);
        assert_eq!(nearest("kernel.cmdlin", ["kernel.path", "kernel.cmdline"]), Some("kernel.cmdline"));
    }

    #[test]
    fn kinds_check_and_compare() {
        let percent = Kind::Integer { min: 0, max: 100 };
        assert!(
            percent.check("0x64").is_ok() && percent.check("101").is_err() && percent.check("-1").is_err()
        );
        assert!(Kind::Text(3).check("abc").is_ok() && Kind::Text(3).check("abcd").is_err());
        assert!(Kind::Text(3).check("").is_err() && Kind::FreeText.check("").is_ok());
        assert!(Kind::Choice(&["a", "b"]).check("b").is_ok());
        assert_eq!(Kind::Choice(&["a", "b"]).check("c"), Err("expected one of a, b".into()));
        assert!(Kind::Mac.check("01:00:00:00:00:01").is_err());
        assert!(Kind::MemorySize.check("0").is_err() && Kind::Size.check("0").is_ok());
        assert!(
            Kind::Bool.same("yes", "true") && !Kind::Bool.same("yes", "false") && !Kind::Bool.same("x", "y")
        );
        assert!(percent.same("0x10", "16") && Kind::MemorySize.same("256", "256M"));
    }
}
