//! The forms that values have in bhyve_config(5).

/// Reads a boolean: `true`, `on`, `yes`, `1` or `false`, `off`, `no`, `0`, in any case.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "on" | "yes" | "1" => Some(true),
        "false" | "off" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// Splits `text` into its base (as strtol(3) with base 0 finds it) and the digits after the prefix.
fn split_base(text: &str) -> (u32, &str) {
    match text.as_bytes() {
        [b'0', b'x' | b'X', digit, ..] if digit.is_ascii_hexdigit() => {
            (16, text.get(2..).unwrap_or_default())
        }
        [b'0', b'0'..=b'9', ..] => (8, text.get(1..).unwrap_or_default()),
        _ => (10, text),
    }
}

fn parse_unsigned(text: &str) -> Option<u64> {
    let (base, digits) = split_base(text);
    // from_str_radix takes a sign; a second one is not ours to accept.
    digits.starts_with(|c: char| c.is_ascii_hexdigit()).then(|| u64::from_str_radix(digits, base).ok())?
}

/// Reads an integer in any base of strtol(3): `16`, `0x10`, `020`, each with an optional sign.
pub fn parse_integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, text.get(1..)?),
        b'+' => (false, text.get(1..)?),
        _ => (false, text),
    };
    let magnitude = i128::from(parse_unsigned(digits)?);
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

/// Reads a size as expand_number(3) does: a number in any base with one of the suffixes K, M, G, T, P, E.
pub fn parse_size(text: &str) -> Option<u64> {
    let (base, digits) = split_base(text);
    let prefix = text.len() - digits.len();
    let end = digits.find(|c: char| !c.is_digit(base)).unwrap_or(digits.len()) + prefix;
    let number = parse_unsigned(text.get(..end)?)?;
    let shift = match text.get(end..)? {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

/// Reads a guest memory size: as [`parse_size`], but a bare number below 1 MiB counts MiB.
pub fn parse_memory_size(text: &str) -> Option<u64> {
    const MIB: u64 = 1 << 20;
    let size = parse_size(text)?;
    let bare = text.ends_with(|c: char| c.is_ascii_digit()) || parse_unsigned(text).is_some();
    if bare && size < MIB { size.checked_mul(MIB) } else { Some(size) }
}

/// Reads a MAC address of six hexadecimal bytes between colons.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next()?;
        if part.is_empty() || part.len() > 2 || !part.bytes().all(|c| c.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// Whether a station may have this address: neither multicast nor all zero (bhyve refuses both).
pub fn is_station_mac(mac: [u8; 6]) -> bool {
    mac[0] & 1 == 0 && mac != [0; 6]
}

/// Reads a UUID in its 8-4-4-4-12 form; the bytes come in the order of the text.
pub fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];
    let mut digits = String::with_capacity(32);
    let mut groups = text.split('-');
    for length in GROUPS {
        let group = groups.next()?;
        if group.len() != length || !group.bytes().all(|c| c.is_ascii_hexdigit()) {
            return None;
        }
        digits.push_str(group);
    }
    if groups.next().is_some() {
        return None;
    }
    Some(u128::from_str_radix(&digits, 16).ok()?.to_be_bytes())
}

/// Reads `logical[/physical]` sector sizes: powers of two from 512 on, logical at most physical.
pub fn parse_sector_size(text: &str) -> Option<(u32, u32)> {
    let (logical, physical) = text.split_once('/').unwrap_or((text, text));
    let read =
        |part: &str| u32::try_from(parse_unsigned(part)?).ok().filter(|n| *n >= 512 && n.is_power_of_two());
    let (logical, physical) = (read(logical)?, read(physical)?);
    (logical <= physical).then_some((logical, physical))
}

/// Highest host CPU number that a set may name (`CPU_SETSIZE` of sched_setaffinity(2)).
pub const MAX_HOST_CPU: u32 = 1023;

/// Reads a CPU set: numbers and `a-b` ranges between commas. Sorted, without repeats.
pub fn parse_cpuset(text: &str) -> Option<Vec<u32>> {
    let read = |part: &str| u32::try_from(parse_unsigned(part)?).ok().filter(|cpu| *cpu <= MAX_HOST_CPU);
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (read(first)?, read(last)?);
        if first > last {
            return None;
        }
        cpus.extend(first..=last);
        cpus.sort_unstable();
        cpus.dedup();
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_in_any_base() {
        for (text, value) in [
            ("0", 0),
            ("16", 16),
            ("0x10", 16),
            ("0X1f", 31),
            ("020", 16),
            ("-5", -5),
            ("+7", 7),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(parse_integer(text), Some(value), "{text}");
        }
        for text in ["", "x", "0x", "1k", "08", " 1", "1 ", "--1", "+-1", "0x-1", "9223372036854775808"] {
            assert_eq!(parse_integer(text), None, "{text}");
        }
    }

    #[test]
    fn memory_sizes() {
        const M: u64 = 1 << 20;
        for (text, value) in [
            ("1024M", 1024 * M),
            ("1024m", 1024 * M),
            ("2G", 2048 * M),
            ("512", 512 * M),
            ("0x200", 512 * M),
            ("1048575", 1048575 * M),
            ("1048576", M),
            ("4096K", 4 * M),
            ("4096k", 4 * M),
            ("1t", 1 << 40),
            ("0", 0),
        ] {
            assert_eq!(parse_memory_size(text), Some(value), "{text}");
        }
        for text in ["", "M", "1X", "1MB", "-1", "1 G", "1.5G", "99999999999G", "0xg", "+1"] {
            assert_eq!(parse_memory_size(text), None, "{text}");
        }
    }

    #[test]
    fn booleans() {
        for text in ["true", "ON", "Yes", "1"] {
            assert_eq!(parse_bool(text), Some(true));
        }
        for text in ["false", "OFF", "No", "0"] {
            assert_eq!(parse_bool(text), Some(false));
        }
        for text in ["", "2", "y", "truee"] {
            assert_eq!(parse_bool(text), None);
        }
    }

    #[test]
    fn mac_uuid_sector_cpuset() {
        assert_eq!(parse_mac("58:9c:fc:0:a:FF"), Some([0x58, 0x9c, 0xfc, 0, 10, 255]));
        for text in ["", "58:9c:fc:00:0a", "58:9c:fc:00:0a:ff:00", "58:9c:fc:00:0a:fff", "58:9c:fc:00:0a:+1"]
        {
            assert_eq!(parse_mac(text), None, "{text}");
        }
        assert!(
            !is_station_mac([0; 6])
                && !is_station_mac([1, 0, 0, 0, 0, 0])
                && is_station_mac([2, 0, 0, 0, 0, 0])
        );
        assert_eq!(
            parse_uuid("00112233-4455-6677-8899-aAbBcCdDeEfF").map(|u| (u[0], u[4], u[15])),
            Some((0, 0x44, 0xff))
        );
        assert_eq!(parse_uuid("00112233-4455-6677-8899-aabbccddeef"), None);
        assert_eq!(parse_uuid("00112233-4455-6677-8899-aabbccddeeff-"), None);
        assert_eq!(parse_sector_size("512"), Some((512, 512)));
        assert_eq!(parse_sector_size("512/4096"), Some((512, 4096)));
        for text in ["256", "513", "4096/512", "512/", "/512", "a"] {
            assert_eq!(parse_sector_size(text), None, "{text}");
        }
        assert_eq!(parse_cpuset("0,2-4,3"), Some(vec![0, 2, 3, 4]));
        for text in ["", "3-1", "1-2-3", "1024", "0-", "a"] {
            assert_eq!(parse_cpuset(text), None, "{text}");
        }
    }
}
