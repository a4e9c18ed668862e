//! The PCI devices that the tree asks for.

use config::{Error as ConfigError, Key, Tree, nearest};
use devices::pci::PciBus;
use devices::{BuildContext, DeviceEntry};

use crate::{Error, Result};

/// Devices of bhyve that this version does not have; naming one is not a typing error.
const NOT_YET: [&str; 10] =
    ["e1000", "fbuf", "hda", "nvme", "passthru", "uart", "virtio-9p", "virtio-input", "virtio-scsi", "xhci"];

/// The declarations of a device's keys, for [`config::validate`]. `None`: there is no such device.
pub fn device_keys(device: &str) -> Option<&'static [Key]> {
    devices::keys(device)
}

/// What `-s help` prints: the PCI devices, each with its keys.
pub fn device_help() -> String {
    devices::help()
}

/// Refuses devices that do not exist, each in the words of the option that asks for it.
pub fn check_devices(tree: &Tree) -> std::result::Result<(), ConfigError> {
    for (address, node) in tree.pci_functions()? {
        entry(tree, &address.key(), &node.require("device")?)?;
    }
    Ok(())
}

fn entry(tree: &Tree, path: &str, name: &str) -> std::result::Result<&'static DeviceEntry, ConfigError> {
    if let Some(entry) = devices::find(name) {
        return Ok(entry);
    }
    let key = format!("{path}.device");
    if NOT_YET.contains(&name) {
        return Err(tree.error(&key, format!("device {name} is not implemented yet")));
    }
    let known = devices::registry().iter().map(|entry| entry.name);
    let hint = nearest(name, known).map_or_else(String::new, |n| format!(" (did you mean {n}?)"));
    Err(tree.error(&key, format!("unknown device {name}{hint}")))
}

/// Makes the devices in the order of their addresses and puts them on the bus. `context` is what
/// they share; its address is replaced.
pub fn populate(tree: &Tree, pci: &PciBus, context: &BuildContext) -> Result<()> {
    for (address, node) in tree.pci_functions()? {
        let entry = entry(tree, &address.key(), &node.require("device")?)?;
        let context = BuildContext { address, ..context.clone() };
        let function = (entry.build)(&context, &node.clone().declared(entry.keys)).map_err(|e| match e {
            devices::BuildError::Config(e) => Error::Config(e),
            e => node.error("device", e.to_string()).into(),
        })?;
        pci.add(function).map_err(|e| node.error("device", e.to_string()))?;
    }
    Ok(())
}

/// Where the LPC bridge is.
pub fn lpc(tree: &Tree) -> Result<Option<config::PciAddress>> {
    for (address, node) in tree.pci_functions()? {
        if node.get("device")?.as_deref() == Some("lpc") {
            return Ok(Some(address));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_that_are_not_there_are_refused_by_name() {
        let refuse = |device: &str| {
            let mut tree = Tree::new();
            tree.set("pci.0.4.0.device", device).unwrap();
            check_devices(&tree).unwrap_err().to_string()
        };
        let error = refuse("nvme");
        assert_eq!(error, "pci.0.4.0.device=nvme: device nvme is not implemented yet");
        let error = refuse("hostbridg");
        assert!(error.ends_with("unknown device hostbridg (did you mean hostbridge?)"), "{error}");
    }

    #[test]
    fn the_lpc_bridge_is_found() {
        let mut tree = Tree::new();
        assert_eq!(lpc(&tree).unwrap(), None);
        tree.set("pci.0.0.0.device", "hostbridge").unwrap();
        tree.set("pci.0.31.0.device", "lpc").unwrap();
        assert_eq!(lpc(&tree).unwrap().map(|a| a.slot), Some(31));
        assert!(check_devices(&tree).is_ok());
    }
}
