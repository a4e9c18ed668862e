//! The options of a disk, as in bhyve(8): `path[,nocache][,sync|direct][,ro][,sectorsize=L[/P]]…`.

use std::str::FromStr;

/// Logical and physical sector size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectorSize {
    /// Smallest unit of a request.
    pub logical: u32,
    /// Unit the disk writes at once.
    pub physical: u32,
}

/// A value that an option does not take.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OptionError {
    /// No `path`.
    #[error("no path given")]
    NoPath,
    /// Not a sector size.
    #[error(
        "sectorsize={0}: must be LOGICAL[/PHYSICAL], powers of two from 512 on, LOGICAL not above PHYSICAL"
    )]
    SectorSize(String),
    /// Not a truth value.
    #[error("{key}={value}: must be true or false")]
    Flag {
        /// The option.
        key: &'static str,
        /// What it was set to.
        value: String,
    },
    /// Not a serial.
    #[error("ser={0}: must be at most 20 printable ASCII characters")]
    Serial(String),
    /// Not a boot index.
    #[error("bootindex={0}: must be a number")]
    BootIndex(String),
}

impl FromStr for SectorSize {
    type Err = OptionError;

    fn from_str(s: &str) -> Result<Self, OptionError> {
        let bad = || OptionError::SectorSize(s.to_string());
        let one = |text: &str| {
            text.parse::<u32>().ok().filter(|n| *n >= 512 && n.is_power_of_two()).ok_or_else(bad)
        };
        let (logical, physical) = match s.split_once('/') {
            Some((logical, physical)) => (one(logical)?, one(physical)?),
            None => (one(s)?, one(s)?),
        };
        if logical > physical {
            return Err(bad());
        }
        Ok(Self { logical, physical })
    }
}

/// How to open a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockOptions {
    /// File or block device.
    pub path: String,
    /// Bypass the host's page cache (`O_DIRECT`).
    pub nocache: bool,
    /// Every write is durable when it completes (`O_SYNC`; keys `sync` and `direct`).
    pub sync: bool,
    /// Never write.
    pub read_only: bool,
    /// Sector sizes to show instead of the host's.
    pub sector_size: Option<SectorSize>,
    /// Offer no discard.
    pub no_delete: bool,
    /// Serial number instead of the one made from the path.
    pub serial: Option<String>,
    /// Place in the firmware's boot order.
    pub boot_index: Option<u32>,
}

impl BlockOptions {
    /// A disk at `path` with default options.
    pub fn new(path: impl Into<String>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    /// Takes the options from a key tree node; `get` gives the value of a key of the node. Flags
    /// are set by an empty value or `true`.
    pub fn from_keys(get: impl Fn(&str) -> Option<String>) -> Result<Self, OptionError> {
        let flag = |key: &'static str| match get(key).as_deref() {
            None => Ok(false),
            Some("" | "true" | "on" | "yes" | "1") => Ok(true),
            Some("false" | "off" | "no" | "0") => Ok(false),
            Some(value) => Err(OptionError::Flag { key, value: value.to_string() }),
        };
        let serial = match get("ser").or_else(|| get("serial")) {
            Some(s) if s.len() > 20 || !s.bytes().all(|b| (0x20..0x7f).contains(&b)) => {
                return Err(OptionError::Serial(s));
            }
            other => other,
        };
        let boot_index = match get("bootindex") {
            None => None,
            Some(s) => Some(s.parse().map_err(|_| OptionError::BootIndex(s))?),
        };
        Ok(Self {
            path: get("path").filter(|p| !p.is_empty()).ok_or(OptionError::NoPath)?,
            nocache: flag("nocache")?,
            sync: flag("sync")? | flag("direct")?,
            read_only: flag("ro")?,
            sector_size: get("sectorsize").map(|s| s.parse()).transpose()?,
            no_delete: flag("nodelete")?,
            serial,
            boot_index,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<BlockOptions, OptionError> {
        BlockOptions::from_keys(|key| pairs.iter().find(|(k, _)| *k == key).map(|(_, v)| (*v).to_string()))
    }

    #[test]
    fn sector_sizes() {
        let size = |s: &str| s.parse::<SectorSize>().map(|s| (s.logical, s.physical));
        assert_eq!(size("512"), Ok((512, 512)));
        assert_eq!(size("512/4096"), Ok((512, 4096)));
        for bad in
            ["", "0", "256", "1000", "4096/512", "512/", "/512", "512/4096/8192", "-512", "99999999999"]
        {
            assert_eq!(size(bad), Err(OptionError::SectorSize(bad.into())));
        }
    }

    #[test]
    fn keys_set_the_options_and_wrong_values_are_refused() {
        let all = parse(&[
            ("path", "d"),
            ("nocache", "true"),
            ("direct", ""),
            ("ro", "on"),
            ("sectorsize", "4096"),
            ("nodelete", "true"),
            ("serial", "abc"),
            ("bootindex", "3"),
        ])
        .unwrap();
        assert!(all.nocache && all.sync && all.read_only && all.no_delete);
        assert_eq!(all.sector_size, Some(SectorSize { logical: 4096, physical: 4096 }));
        assert_eq!((all.serial.as_deref(), all.boot_index), (Some("abc"), Some(3)));
        assert_eq!(parse(&[("path", "d")]).unwrap(), BlockOptions::new("d"));
        assert_eq!(parse(&[]), Err(OptionError::NoPath));
        assert!(parse(&[("path", "d"), ("ro", "maybe")]).is_err());
        assert!(parse(&[("path", "d"), ("ser", "123456789012345678901")]).is_err());
        assert!(parse(&[("path", "d"), ("bootindex", "-1")]).is_err());
    }
}
