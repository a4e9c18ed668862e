//! Checks of a whole tree against the declarations of its keys.

use std::collections::HashSet;

use crate::error::{Error, Problem};
use crate::global;
use crate::key::{Key, nearest};
use crate::legacy;
use crate::slot::PciAddress;
use crate::topology::Topology;
use crate::tree::Tree;

/// Longest name of a VM, in bytes.
pub const MAX_NAME: usize = 32;

/// Checks the name of a VM. It becomes the name of files, so it must be one component of a path.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        Err("the VM name is empty".into())
    } else if name.len() > MAX_NAME {
        Err(format!("VM name {name:?} is longer than {MAX_NAME} characters"))
    } else if name.contains('/') || name == "." || name == ".." {
        Err(format!("VM name {name:?} can't be the name of a file"))
    } else if name.starts_with('-') || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        Err(format!("VM name {name:?} begins with - or contains blanks"))
    } else {
        Ok(())
    }
}

/// Refuses a tree with unknown keys, devices or values; the error names the nearest known one.
///
/// `device_keys` gives the declarations of a device, `None` if there is no such device. A key that no
/// part knows is allowed if another value refers to it by `%(key)`: that is how users make variables.
pub fn validate(tree: &Tree, device_keys: impl Fn(&str) -> Option<&'static [Key]>) -> Result<(), Error> {
    let variables: HashSet<&str> = tree.references().into_iter().collect();
    let mut lpc = None;
    for (key, _) in tree.iter() {
        if key.starts_with("pci.") {
            check_device_key(tree, &key, &device_keys)?;
            continue;
        }
        match Key::find(global::KEYS, &key) {
            Some(declared) => check_value(tree, &key, declared)?,
            None if variables.contains(key.as_str()) => {}
            None => {
                let names: Vec<String> = global::KEYS.iter().map(|known| spell(known.name, &key)).collect();
                return Err(unknown_key(tree, &key, names.iter().map(String::as_str)));
            }
        }
    }
    for (address, node) in tree.pci_functions()? {
        if node.get("device")?.as_deref() == Some("lpc") {
            if address.bus != 0 {
                return Err(node.error("device", "the LPC bridge must be on bus 0"));
            }
            if let Some(other) = lpc.replace(address) {
                return Err(node.error("device", format!("there already is an LPC bridge, in slot {other}")));
            }
        }
    }
    if let Some(name) = tree.get("name")? {
        check_name(&name).map_err(|message| tree.error("name", message))?;
    }
    Topology::of(tree).map(drop)
}

/// What is set, differs from its default, and no part of the program acts on.
pub fn unsupported(tree: &Tree, device_keys: impl Fn(&str) -> Option<&'static [Key]>) -> Vec<Error> {
    let mut errors = Vec::new();
    for (key, raw) in tree.iter() {
        let declared = match PciAddress::split_key(&key) {
            Ok((address, name)) if key.starts_with("pci.") => {
                let device = tree.node(&address.key()).get("device").ok().flatten();
                device.and_then(|device| device_keys(&device)).and_then(|keys| Key::find(keys, name))
            }
            _ => Key::find(global::KEYS, &key),
        };
        let Some(declared) = declared.filter(|declared| !declared.supported) else { continue };
        let value = tree.get(&key).ok().flatten().unwrap_or_else(|| raw.to_owned());
        if declared.default.is_none_or(|default| !declared.kind.same(&value, default)) {
            errors.push(Error::new(
                &tree.origin(&key),
                Problem::Unsupported(format!("{key} ({})", declared.help)),
            ));
        }
    }
    errors
}

fn check_device_key(
    tree: &Tree,
    key: &str,
    device_keys: &impl Fn(&str) -> Option<&'static [Key]>,
) -> Result<(), Error> {
    let (address, name) = PciAddress::split_key(key).map_err(|message| tree.error(key, message))?;
    let node = tree.node(&address.key());
    let Some(device) = node.get("device")? else {
        return Err(
            tree.error(key, format!("slot {address} has no device ({} is not set)", node.key("device")))
        );
    };
    let Some(keys) = device_keys(&device) else {
        return Err(unknown_device(tree, &node.key("device"), device, device_keys));
    };
    match Key::find(keys, name) {
        Some(declared) => check_value(tree, key, declared),
        None if name == "device" => Ok(()),
        None => {
            let names: Vec<String> =
                keys.iter().map(|known| format!("{}.{}", node.path(), spell(known.name, name))).collect();
            Err(unknown_key(tree, key, names.iter().map(String::as_str)))
        }
    }
}

/// A declared name with its wildcards filled from the key that it is compared with.
fn spell(pattern: &str, key: &str) -> String {
    let mut parts = key.split('.');
    let spelled: Vec<&str> = pattern
        .split('.')
        .map(|component| match (component, parts.next()) {
            ("*", Some(part)) => part,
            _ => component,
        })
        .collect();
    spelled.join(".")
}

fn check_value(tree: &Tree, key: &str, declared: &Key) -> Result<(), Error> {
    let value = tree.get(key)?.unwrap_or_default();
    declared.kind.check(&value).map_err(|expected| {
        let problem = match key {
            // bhyve exits with EX_USAGE on a bad -m, wherever it was set.
            "memory.size" => Problem::Argument(format!("memory size {value:?}: {expected}")),
            _ => Problem::Value { key: key.to_owned(), value, expected },
        };
        Error::new(&tree.origin(key), problem)
    })
}

fn unknown_key<'a>(tree: &Tree, key: &str, known: impl Iterator<Item = &'a str>) -> Error {
    let nearest = nearest(key, known).map(str::to_owned);
    Error::new(&tree.origin(key), Problem::UnknownKey { key: key.to_owned(), nearest })
}

fn unknown_device(
    tree: &Tree,
    key: &str,
    device: String,
    device_keys: &impl Fn(&str) -> Option<&'static [Key]>,
) -> Error {
    let problem = if legacy::DEVICES.contains(&device.as_str()) {
        Problem::Unsupported(format!("device {device}"))
    } else {
        // Aliases are only for -s; in the tree the device goes by its own name.
        let names = legacy::DEVICES.iter().copied().filter(|name| device_keys(name).is_some());
        let nearest = match device.as_str() {
            "ahci-hd" | "ahci-cd" => Some("ahci"),
            "amd_hostbridge" => Some("hostbridge"),
            other => nearest(other, names),
        };
        Problem::UnknownDevice { nearest: nearest.map(str::to_owned), device }
    };
    Error::new(&tree.origin(key), problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    static BLOCK: &[Key] = &[
        Key::new("path", Kind::Path, ""),
        Key::new("ro", Kind::Bool, "").default("false"),
        Key::new("port.*.name", Kind::Text(9), ""),
        Key::new("old", Kind::Bool, "an old thing").default("no").unsupported(),
    ];

    fn keys(device: &str) -> Option<&'static [Key]> {
        match device {
            "virtio-blk" => Some(BLOCK),
            "lpc" | "hostbridge" => Some(&[]),
            _ => None,
        }
    }

    fn check(pairs: &[(&str, &str)]) -> Result<(), Error> {
        let mut tree = Tree::new();
        for (key, value) in pairs {
            tree.set(key, value).unwrap();
        }
        validate(&tree, keys)
    }

    #[test]
    fn good_trees() {
        check(&[]).unwrap();
        check(&[
            ("name", "vm"),
            ("cpus", "2"),
            ("disk", "/vm/%(name)"),
            ("pci.0.3.0.device", "virtio-blk"),
            ("pci.0.3.0.path", "%(disk).img"),
            ("pci.0.3.0.port.0.name", "a"),
            ("pci.0.31.0.device", "lpc"),
            ("lpc.com1.path", "stdio"),
            ("vcpu.0.cpuset", "0-1"),
        ])
        .unwrap();
    }

    #[test]
    fn refused_with_the_nearest_name() {
        for (pairs, message) in [
            (&[("memroy.size", "1G")][..], "unknown key memroy.size (did you mean memory.size?)"),
            (&[("disk", "/x")], "unknown key disk"),
            (&[("vcpu.0.cpusets", "1")], "did you mean vcpu.0.cpuset?"),
            (&[("cpus", "two")], "cpus=two: expected an integer from 1 to 65535"),
            (&[("engine", "kvn")], "expected one of auto, kvm, soft"),
            (&[("name", "a/b")], "can't be the name of a file"),
            (&[("pci.0.3.0.path", "x")], "slot 0:3:0 has no device"),
            (&[("pci.0.3.0.device", "virtio-blkk")], "unknown device virtio-blkk (did you mean virtio-blk?)"),
            (&[("pci.0.3.0.device", "ahci-cd")], "did you mean ahci?"),
            (&[("pci.0.3.0.device", "nvme")], "device nvme is not supported by this version"),
            (&[("pci.0.3.0.device", "virtio-blk"), ("pci.0.3.0.pth", "x")], "did you mean pci.0.3.0.path?"),
            (
                &[("pci.0.3.0.device", "virtio-blk"), ("pci.0.3.0.port.7.nme", "x")],
                "mean pci.0.3.0.port.7.name?",
            ),
            (
                &[("pci.0.3.0.device", "virtio-blk"), ("pci.0.3.0.ro", "x")],
                "pci.0.3.0.ro=x: expected true or false",
            ),
            (&[("pci.0.32.0.device", "virtio-blk")], "slot 32 is not in the range"),
            (&[("pci.0.3.0", "virtio-blk")], "not of the form"),
            (&[("pci", "x")], "unknown key pci"),
            (
                &[("pci.0.1.0.device", "lpc"), ("pci.0.2.0.device", "lpc")],
                "already is an LPC bridge, in slot 0:1:0",
            ),
            (&[("pci.1.1.0.device", "lpc")], "must be on bus 0"),
        ] {
            let error = check(pairs).unwrap_err();
            assert!(error.to_string().contains(message), "{pairs:?}: {error}");
            assert_eq!(error.exit_code(), 4, "{error}");
        }
        for size in ["0", "1x", "", "-1"] {
            assert_eq!(check(&[("memory.size", size)]).unwrap_err().exit_code(), 64, "{size}");
        }
    }

    #[test]
    fn unsupported_keys_may_have_their_default() {
        let mut tree = Tree::new();
        for (key, value) in [
            ("gdb.port", "0x0"),
            ("pci.0.3.0.device", "virtio-blk"),
            ("pci.0.3.0.old", "off"),
            ("pci.0.4.0.device", "virtio-blk"),
            ("pci.0.4.0.old", "on"),
            ("restore.path", "x"),
        ] {
            tree.set(key, value).unwrap();
        }
        let errors: Vec<String> = unsupported(&tree, keys).iter().map(ToString::to_string).collect();
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(errors[0].contains("pci.0.4.0.old (an old thing) is not supported"), "{errors:?}");
        assert!(errors[1].contains("restore.path"), "{errors:?}");
    }

    #[test]
    fn vm_names() {
        for name in ["a", "linuxguest", "a.b-c_d", &"x".repeat(32), "…"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "a/b", ".", "..", "-x", "a b", "a\n", &"x".repeat(33)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn every_default_is_a_value_of_its_kind() {
        for key in global::KEYS {
            if let Some(default) = key.default {
                assert!(key.kind.check(default).is_ok(), "{}", key.name);
            }
            assert!(!key.help.is_empty() && global::KEYS.iter().filter(|k| k.name == key.name).count() == 1);
        }
    }
}
