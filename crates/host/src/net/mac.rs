//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use md5::{Digest, Md5};

/// The FreeBSD Foundation's OUI, which bhyve gives to guests.
const OUI: [u8; 3] = [0x58, 0x9c, 0xfc];

/// The address of one network interface: never multicast, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress([u8; 6]);

/// Not an address for an interface.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MacError {
    /// Not six hexadecimal bytes.
    #[error("mac={0}: must be six hexadecimal bytes with colons between them")]
    Syntax(String),
    /// A multicast or broadcast address.
    #[error("mac={0}: is a multicast address")]
    Multicast(String),
    /// All zeros.
    #[error("mac={0}: is zero")]
    Zero(String),
}

impl MacAddress {
    /// The address of the device in `slot` and `function` of VM `name`, if it is given none: the
    /// same on each run, and different between VMs.
    pub fn default_for(slot: u8, function: u8, name: &str) -> Self {
        let [a, b, c, ..]: [u8; 16] = Md5::digest(format!("{slot}-{function}-{name}").as_bytes()).into();
        Self([OUI[0], OUI[1], OUI[2], a, b, c])
    }

    /// The six bytes.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = MacError;

    fn from_str(s: &str) -> Result<Self, MacError> {
        let syntax = || MacError::Syntax(s.to_string());
        let mut bytes = [0; 6];
        let mut parts = s.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|p| matches!(p.len(), 1 | 2)).ok_or_else(syntax)?;
            let digits = part.bytes().all(|b| b.is_ascii_hexdigit());
            *byte = u8::from_str_radix(part, 16).ok().filter(|_| digits).ok_or_else(syntax)?;
        }
        if parts.next().is_some() {
            return Err(syntax());
        }
        match bytes {
            [0, 0, 0, 0, 0, 0] => Err(MacError::Zero(s.to_string())),
            // The first bit on the wire (IEEE 802, 8.2) is the group bit.
            [first, ..] if first & 1 != 0 => Err(MacError::Multicast(s.to_string())),
            _ => Ok(Self(bytes)),
        }
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_and_print() {
        let parse = |s: &str| s.parse::<MacAddress>();
        assert_eq!(parse("58:9C:fc:0:1:2").unwrap().to_string(), "58:9c:fc:00:01:02");
        assert!(matches!(parse("00:00:00:00:00:00"), Err(MacError::Zero(_))));
        assert!(matches!(parse("01:00:5e:00:00:01"), Err(MacError::Multicast(_))));
        assert!(matches!(parse("ff:ff:ff:ff:ff:ff"), Err(MacError::Multicast(_))));
        for bad in
            ["", "2", "02:03:04:05:06", "02:03:04:05:06:07:08", "02:03:04:05:06:0g", "02:03:04:05:06:+7"]
        {
            assert!(matches!(parse(bad), Err(MacError::Syntax(_))), "{bad}");
        }
    }

    #[test]
    fn default_is_stable_and_differs_by_slot_function_and_name() {
        let mac = MacAddress::default_for(2, 0, "vm");
        // First three bytes of MD5("2-0-vm").
        let digest: [u8; 16] = Md5::digest(b"2-0-vm").into();
        assert_eq!(mac.bytes(), [0x58, 0x9c, 0xfc, digest[0], digest[1], digest[2]]);
        for other in [(3, 0, "vm"), (2, 1, "vm"), (2, 0, "wm")] {
            assert_ne!(MacAddress::default_for(other.0, other.1, other.2), mac);
        }
    }
}
