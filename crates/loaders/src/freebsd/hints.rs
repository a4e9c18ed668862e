//! linker.hints: which file has which module, as kldxref(8) writes it.

use boot::freebsd::Depend;
use media::Fields;

/// The version of the file (LINKER_HINTS_VERSION, sys/sys/linker.h), and its largest size.
const VERSION: u32 = 1;
pub const MAX_SIZE: u64 = 1 << 20;
/// A record that says which version of a module a file has (MDT_VERSION, sys/sys/module.h).
const MDT_VERSION: u32 = 3;

/// The file that has a module, the best that will do if there are several.
///
/// Behind the version the file is a list of records: length of what follows, type, then for a
/// version: length and text of the module's name, at the next multiple of 4 its version, length and
/// text of the file's name.
pub fn find(hints: &[u8], module: &str, wanted: &Depend) -> Option<String> {
    if hints.u32_at(0) != Some(VERSION) {
        return None;
    }
    let mut at = 4usize;
    let mut best: Option<(i32, String)> = None;
    // Every turn goes on by 4 at least.
    while let (Some(len), Some(kind)) = (hints.u32_at(at), hints.u32_at(at.saturating_add(4))) {
        if kind == MDT_VERSION
            && let Some((name, version, file)) = record(hints, at + 8)
            && name == module.as_bytes()
        {
            if version == wanted.preferred {
                return Some(file);
            }
            if wanted.takes(version) && best.as_ref().is_none_or(|(v, _)| version > *v) {
                best = Some((version, file));
            }
        }
        at = at.saturating_add(4).saturating_add(len as usize);
    }
    best.map(|(_, file)| file)
}

fn record(hints: &[u8], at: usize) -> Option<(&[u8], i32, String)> {
    let (name, at) = text(hints, at)?;
    let at = at.next_multiple_of(4);
    let version = hints.u32_at(at)? as i32;
    let (file, _) = text(hints, at + 4)?;
    Some((name, version, String::from_utf8(file.to_vec()).ok()?))
}

fn text(hints: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let end = at + 1 + usize::from(hints.u8_at(at)?);
    Some((hints.get(at + 1..end)?, end))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A file with these modules, versions and files.
    pub fn make(modules: &[(&str, i32, &str)]) -> Vec<u8> {
        let mut hints = VERSION.to_le_bytes().to_vec();
        for (module, version, file) in modules {
            let start = hints.len();
            hints.extend_from_slice(&[0; 4]);
            hints.extend_from_slice(&MDT_VERSION.to_le_bytes());
            hints.push(module.len() as u8);
            hints.extend_from_slice(module.as_bytes());
            hints.resize(hints.len().next_multiple_of(4), 0);
            hints.extend_from_slice(&version.to_le_bytes());
            hints.push(file.len() as u8);
            hints.extend_from_slice(file.as_bytes());
            hints.resize(hints.len().next_multiple_of(4), 0);
            let len = (hints.len() - start - 4) as u32;
            hints[start..start + 4].copy_from_slice(&len.to_le_bytes());
        }
        hints
    }

    #[test]
    fn the_best_version_is_taken() {
        let hints = make(&[("a", 1, "a1.ko"), ("b", 7, "b.ko"), ("a", 3, "a3.ko"), ("a", 2, "a2.ko")]);
        let wanted = |minimum, preferred, maximum| Depend { name: "a".into(), minimum, preferred, maximum };
        assert_eq!(find(&hints, "a", &wanted(1, 2, 3)).unwrap(), "a2.ko");
        assert_eq!(find(&hints, "a", &wanted(1, 9, 5)).unwrap(), "a3.ko");
        assert_eq!(find(&hints, "a", &wanted(4, 4, 5)), None);
        assert_eq!(find(&hints, "c", &wanted(0, 1, 9)), None);
        assert_eq!(find(&hints[..30], "b", &wanted(0, 1, 9)), None);
    }

    #[test]
    fn hostile_hints_end() {
        let wanted = Depend { name: "b".into(), minimum: 0, preferred: 9, maximum: 9 };
        for len in [0, 1, u32::MAX, 0x7fff_ffff] {
            let mut hints = make(&[("a", 1, "a.ko"), ("b", 1, "b.ko")]);
            hints[4..8].copy_from_slice(&len.to_le_bytes());
            let _ = find(&hints, "b", &wanted);
            let _ = find(&hints[..hints.len() - 3], "b", &wanted);
        }
        assert_eq!(find(&[], "a", &wanted), None);
        assert_eq!(find(&[2, 0, 0, 0], "a", &wanted), None);
    }
}
