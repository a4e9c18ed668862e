//! Rock Ridge (IEEE P1282, RRIP 1.12) in system use fields (IEEE P1281, SUSP 1.12).

use super::zisofs::Packed;
use super::{KIND, SECTOR, Volume, record};
use crate::{Error, Fields, Kind, Result};

/// Most continuation areas of one record.
const MAX_AREAS: usize = 64;
/// Largest continuation area that is read.
const MAX_AREA: u64 = 16 * SECTOR;
/// Longest name, as Linux's; the specification knows no limit.
const MAX_NAME: usize = 1024;
/// Longest symbolic link, as Linux's PATH_MAX.
const MAX_LINK: usize = 4096;

/// What Rock Ridge says of a file.
#[derive(Debug, Default)]
pub(super) struct Rock {
    pub(super) name: Option<Vec<u8>>,
    pub(super) kind: Option<Kind>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) modified: Option<i64>,
    /// Block of the directory that was moved elsewhere and belongs here.
    pub(super) child: Option<u32>,
    /// A directory that belongs elsewhere.
    pub(super) relocated: bool,
    pub(super) zisofs: Option<Packed>,
    /// The last component of the link goes on.
    link_open: bool,
}

/// How many bytes to skip in each record, if this is the system use field of a root directory whose
/// volume uses SUSP (5.3). The fields of a CD-ROM XA record, 14 bytes, may come first.
pub(super) fn marker(area: &[u8]) -> Option<usize> {
    [0, 14].into_iter().find_map(|at| {
        let field = area.get(at..at + 7)?;
        let found = field.starts_with(b"SP\x07\x01\xbe\xef");
        found.then(|| field.u8_at(6).map(usize::from))?
    })
}

impl Rock {
    /// Reads a system use field and its continuation areas.
    pub(super) fn parse(volume: &Volume, area: &[u8]) -> Result<Self> {
        let mut rock = Self::default();
        let mut next = rock.area(area)?;
        for _ in 0..MAX_AREAS {
            let Some((block, offset, len)) = next else { return Ok(rock) };
            next = rock.area(&continuation(volume, block, offset, len)?)?;
        }
        if next.is_some() {
            return Err(Error::corrupt(KIND, format!("more than {MAX_AREAS} continuation areas")));
        }
        Ok(rock)
    }

    /// Takes what an area says. Returns block, offset and length of the next one.
    fn area(&mut self, mut area: &[u8]) -> Result<Option<(u32, u32, u32)>> {
        let mut next = None;
        while let Some(len) = area.u8_at(2).map(usize::from) {
            let Some((field, rest)) = area.split_at_checked(len).filter(|_| len >= 4) else { break };
            match &field[..2] {
                b"CE" => next = field.u32_at(4).zip(field.u32_at(12)).zip(field.u32_at(20)),
                b"ST" => break,
                b"NM" => self.name(field)?,
                b"PX" => self.kind = field.u32_at(4).map(mode_kind),
                b"SL" => self.link(field)?,
                b"TF" => self.times(field),
                b"CL" => self.child = field.u32_at(4),
                b"RE" => self.relocated = true,
                b"ZF" => self.zisofs = Packed::parse(field),
                _ => {}
            }
            area = rest;
        }
        Ok(next.map(|((block, offset), len)| (block, offset, len)))
    }

    /// RRIP 4.1.4. Bits 1 and 2 stand for `.` and `..`.
    fn name(&mut self, field: &[u8]) -> Result<()> {
        let name = self.name.get_or_insert_default();
        if field.u8_at(4).is_some_and(|flags| flags & 6 == 0) {
            name.extend_from_slice(field.get(5..).unwrap_or_default());
        }
        if name.len() > MAX_NAME {
            return Err(Error::TooLarge(format!("a name of more than {MAX_NAME} bytes")));
        }
        Ok(())
    }

    /// RRIP 4.1.3: a list of components.
    fn link(&mut self, field: &[u8]) -> Result<()> {
        let link = self.link.get_or_insert_default();
        let mut rest = field.get(5..).unwrap_or_default();
        while let Some((flags, len)) = rest.u8_at(0).zip(rest.u8_at(1)) {
            let Some(text) = rest.get(2..2 + usize::from(len)) else { break };
            rest = rest.get(2 + text.len()..).unwrap_or_default();
            if !self.link_open && !link.is_empty() && !link.ends_with(b"/") {
                link.push(b'/');
            }
            match flags & 0xe {
                2 => link.push(b'.'),
                4 => link.extend_from_slice(b".."),
                8 => {
                    link.clear();
                    link.push(b'/');
                }
                _ => link.extend_from_slice(text),
            }
            self.link_open = flags & 1 != 0;
        }
        if link.len() > MAX_LINK {
            return Err(Error::TooLarge(format!("a symbolic link of more than {MAX_LINK} bytes")));
        }
        Ok(())
    }

    /// RRIP 4.1.6: bit 0 creation, bit 1 modification; bit 7 selects the long form.
    fn times(&mut self, field: &[u8]) {
        let Some(flags) = field.u8_at(4).filter(|flags| flags & 2 != 0) else { return };
        let before = usize::from(flags & 1);
        self.modified = if flags & 0x80 == 0 {
            field.array(5 + 7 * before).and_then(record::short_date)
        } else {
            field.array(5 + 17 * before).and_then(|date| record::long_date(&date))
        };
    }
}

/// The kind in a POSIX mode.
fn mode_kind(mode: u32) -> Kind {
    match mode & 0o170_000 {
        0o040_000 => Kind::Directory,
        0o100_000 => Kind::File,
        0o120_000 => Kind::Symlink,
        _ => Kind::Other,
    }
}

/// The bytes of a continuation area (SUSP 5.1).
fn continuation(volume: &Volume, block: u32, offset: u32, len: u32) -> Result<Vec<u8>> {
    let len = u64::from(len);
    if len > MAX_AREA {
        return Err(Error::TooLarge(format!("a continuation area of {len} bytes")));
    }
    let mut at = u64::from(block) * volume.block + u64::from(offset);
    let end = at + len;
    let mut bytes = Vec::with_capacity(len as usize);
    // Records near each other have their areas in the same sector.
    while at < end {
        let sector = volume.areas.get(at / SECTOR)?;
        let within = (at % SECTOR) as usize;
        let part = (sector.len().saturating_sub(within) as u64).min(end - at) as usize;
        if part == 0 {
            return Err(Error::corrupt(KIND, format!("a continuation area past the end, at {at}")));
        }
        bytes.extend_from_slice(sector.get(within..within + part).unwrap_or_default());
        at += part as u64;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn components(rock: &mut Rock, parts: &[(u8, &[u8])]) {
        let mut field = b"SL\x00\x01\x00".to_vec();
        for (flags, text) in parts {
            field.extend([*flags, text.len() as u8]);
            field.extend_from_slice(text);
        }
        rock.link(&field).unwrap();
    }

    #[test]
    fn links_are_put_together() {
        let mut rock = Rock::default();
        components(&mut rock, &[(4, b""), (2, b""), (0, b"usr"), (1, b"lo")]);
        components(&mut rock, &[(0, b"ng"), (0, b"end")]);
        assert_eq!(rock.link.unwrap(), b".././usr/long/end");
        let mut rock = Rock::default();
        components(&mut rock, &[(8, b""), (0, b"boot")]);
        assert_eq!(rock.link.unwrap(), b"/boot");
    }

    #[test]
    fn the_marker_may_follow_xa() {
        assert_eq!(marker(b"SP\x07\x01\xbe\xef\x05"), Some(5));
        let mut xa = vec![0; 14];
        xa.extend_from_slice(b"SP\x07\x01\xbe\xef\x0e");
        assert_eq!(marker(&xa), Some(14));
        assert_eq!(marker(b"RR\x05\x01\x81"), None);
    }
}
