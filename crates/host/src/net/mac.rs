//! Ethernet addresses.

use std::fmt;

use md5::{Digest, Md5};

/// The FreeBSD Foundation's OUI, which bhyve gives to guests.
const OUI: [u8; 3] = [0x58, 0x9c, 0xfc];

/// The address of one network interface: never multicast, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress([u8; 6]);

/// Not an address for an interface.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MacError {
    /// A multicast or broadcast address.
    #[error("is a multicast address")]
    Multicast,
    /// All zeros.
    #[error("is the zero address")]
    Zero,
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

impl TryFrom<[u8; 6]> for MacAddress {
    type Error = MacError;

    fn try_from(bytes: [u8; 6]) -> Result<Self, MacError> {
        match bytes {
            [0, 0, 0, 0, 0, 0] => Err(MacError::Zero),
            // The first bit on the wire (IEEE 802, 8.2) is the group bit.
            [first, ..] if first & 1 != 0 => Err(MacError::Multicast),
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
    fn only_addresses_of_one_station() {
        let mac = |bytes: [u8; 6]| MacAddress::try_from(bytes);
        assert_eq!(mac([0x58, 0x9c, 0xfc, 0, 1, 2]).unwrap().to_string(), "58:9c:fc:00:01:02");
        assert_eq!(mac([0; 6]), Err(MacError::Zero));
        assert_eq!(mac([1, 0, 0x5e, 0, 0, 1]), Err(MacError::Multicast));
        assert_eq!(mac([0xff; 6]), Err(MacError::Multicast));
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
