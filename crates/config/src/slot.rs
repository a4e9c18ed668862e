//! Addresses of PCI functions, on the command line and in keys.

use std::fmt;

use crate::error::Error;
use crate::tree::{Node, Tree};

/// The place of a PCI function. Its keys are below `pci.BUS.SLOT.FUNCTION`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// Bus, 0 to 255.
    pub bus: u8,
    /// Slot (device) on the bus, 0 to 31.
    pub slot: u8,
    /// Function in the slot, 0 to 7.
    pub function: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.bus, self.slot, self.function)
    }
}

impl PciAddress {
    fn new(bus: u32, slot: u32, function: u32) -> Result<Self, String> {
        let narrow = |name: &str, number: u32, max: u8| {
            u8::try_from(number)
                .ok()
                .filter(|n| *n <= max)
                .ok_or_else(|| format!("{name} {number} is not in the range 0 to {max}"))
        };
        Ok(Self {
            bus: narrow("bus", bus, 255)?,
            slot: narrow("slot", slot, 31)?,
            function: narrow("function", function, 7)?,
        })
    }

    /// Reads `SLOT`, `SLOT:FUNCTION` or `BUS:SLOT:FUNCTION`, as `-s` takes them.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = || format!("invalid slot {text:?}: expected slot, slot:function or bus:slot:function");
        let numbers =
            text.split(':').map(|part| decimal(part).ok_or_else(bad)).collect::<Result<Vec<u32>, _>>()?;
        match *numbers.as_slice() {
            [slot] => Self::new(0, slot, 0),
            [slot, function] => Self::new(0, slot, function),
            [bus, slot, function] => Self::new(bus, slot, function),
            _ => Err(bad()),
        }
    }

    /// The key of the function's node.
    pub fn key(&self) -> String {
        format!("pci.{}.{}.{}", self.bus, self.slot, self.function)
    }

    /// Splits a key below `pci` into the address and the key below the function's node.
    pub(crate) fn split_key(key: &str) -> Result<(Self, &str), String> {
        let bad = || format!("key {key} is not of the form pci.bus.slot.function.name");
        let mut parts = key.splitn(5, '.').skip(1);
        let mut number = || {
            let part = parts.next().ok_or_else(bad)?;
            decimal(part).filter(|n| n.to_string() == part).ok_or_else(bad)
        };
        let address =
            Self::new(number()?, number()?, number()?).map_err(|message| format!("key {key}: {message}"))?;
        Ok((address, parts.next().ok_or_else(bad)?))
    }
}

/// A plain decimal number: digits only, no sign.
fn decimal(text: &str) -> Option<u32> {
    if text.bytes().all(|c| c.is_ascii_digit()) { text.parse().ok() } else { None }
}

impl Tree {
    /// All PCI functions in the order of their addresses, each with its node.
    pub fn pci_functions(&self) -> Result<Vec<(PciAddress, Node<'_>)>, Error> {
        let mut functions: Vec<(PciAddress, Node<'_>)> = Vec::new();
        for (key, _) in self.iter().filter(|(key, _)| key.starts_with("pci.")) {
            let (address, _) = PciAddress::split_key(&key).map_err(|message| self.error(&key, message))?;
            if functions.last().is_none_or(|(last, _)| *last != address) {
                functions.push((address, self.node(&address.key())));
            }
        }
        Ok(functions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_forms() {
        for (text, bus, slot, function) in [
            ("3", 0, 3, 0),
            ("31:7", 0, 31, 7),
            ("255:0:0", 255, 0, 0),
            ("0:29:1", 0, 29, 1),
            ("03", 0, 3, 0),
        ] {
            assert_eq!(PciAddress::parse(text), Ok(PciAddress { bus, slot, function }), "{text}");
        }
        for text in
            ["", ":", "3:", "a", "-1", "+1", "32", "0:8", "256:0:0", "0:0:0:0", "1.0", " 1", "4294967296"]
        {
            assert!(PciAddress::parse(text).is_err(), "{text}");
        }
        assert_eq!(PciAddress::parse("0:8"), Err("function 8 is not in the range 0 to 7".into()));
    }

    #[test]
    fn functions_of_a_tree() {
        let mut tree = Tree::new();
        for key in
            ["pci.0.10.0.device", "pci.0.2.0.path", "pci.0.2.0.device", "pci.0.2.1.device", "pci.1.0.0.a.b"]
        {
            tree.set(key, "x").unwrap();
        }
        let functions: Vec<String> = tree
            .pci_functions()
            .unwrap()
            .iter()
            .map(|(address, node)| format!("{address} {}", node.path()))
            .collect();
        assert_eq!(functions, ["0:2:0 pci.0.2.0", "0:2:1 pci.0.2.1", "0:10:0 pci.0.10.0", "1:0:0 pci.1.0.0"]);
        for key in ["pci.0.02.0.device", "pci.0.32.0.device", "pci.0.3.0", "pci.x.0.0.device"] {
            let mut tree = Tree::new();
            tree.set(key, "x").unwrap();
            assert!(tree.pci_functions().is_err(), "{key}");
        }
    }
}
