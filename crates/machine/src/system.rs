//! SMBIOS texts from the key tree.

use config::{Tree, value};
use firmware::SystemInfo;
use md5::{Digest, Md5};

use crate::Result;

/// Reads the `bios`, `system`, `board` and `chassis` keys and the UUID.
pub fn info(tree: &Tree) -> Result<SystemInfo> {
    let text = |key: &str| -> Result<String> { Ok(tree.get(key)?.unwrap_or_default()) };
    let uuid = match tree.node("").read("uuid", "expected a UUID", value::parse_uuid)? {
        Some(uuid) => uuid,
        None => derived_uuid(&host_name(), &text("name")?),
    };
    Ok(SystemInfo {
        bios_vendor: text("bios.vendor")?,
        bios_version: text("bios.version")?,
        bios_release_date: text("bios.release_date")?,
        system_manufacturer: text("system.manufacturer")?,
        system_product_name: text("system.product_name")?,
        system_version: text("system.version")?,
        system_serial_number: text("system.serial_number")?,
        system_sku: text("system.sku")?,
        system_family_name: text("system.family_name")?,
        board_manufacturer: text("board.manufacturer")?,
        board_product_name: text("board.product_name")?,
        board_version: text("board.version")?,
        board_serial_number: text("board.serial_number")?,
        board_asset_tag: text("board.asset_tag")?,
        board_location: text("board.location")?,
        chassis_manufacturer: text("chassis.manufacturer")?,
        chassis_version: text("chassis.version")?,
        chassis_serial_number: text("chassis.serial_number")?,
        chassis_asset_tag: text("chassis.asset_tag")?,
        chassis_sku: text("chassis.sku")?,
        uuid,
    })
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim_end().to_owned()
}

/// The same for the same VM on the same host: a name-based UUID (RFC 9562, 5.3).
fn derived_uuid(host: &str, vm: &str) -> [u8; 16] {
    let mut hash = Md5::new();
    hash.update(vm.as_bytes());
    hash.update(host.as_bytes());
    let mut uuid: [u8; 16] = hash.finalize().into();
    uuid[6] = uuid[6] & 0x0f | 0x30;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_bhyves_and_keys_win() {
        let mut tree = Tree::new();
        let defaults = SystemInfo { uuid: info(&tree).unwrap().uuid, ..SystemInfo::default() };
        assert_eq!(info(&tree).unwrap(), defaults);
        tree.set("system.sku", "S-1").unwrap();
        tree.set("uuid", "00112233-4455-6677-8899-aabbccddeeff").unwrap();
        let info = info(&tree).unwrap();
        assert_eq!((info.system_sku.as_str(), info.uuid[0], info.uuid[15]), ("S-1", 0, 0xff));
    }

    #[test]
    fn the_uuid_depends_on_host_and_vm() {
        let a = derived_uuid("host", "vm");
        assert_eq!(a, derived_uuid("host", "vm"));
        assert_ne!(a, derived_uuid("host", "vm2"));
        assert_ne!(a, derived_uuid("host2", "vm"));
        assert_eq!((a[6] >> 4, a[8] >> 6), (3, 2));
    }
}
