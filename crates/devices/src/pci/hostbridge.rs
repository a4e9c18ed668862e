//! The host bridge: an identity that firmware and operating systems look for, and nothing else.

use std::sync::Arc;

use bus::{Device, SavedState, StateError};
use config::{Key, Kind, Node};

use super::config_space::Identity;
use super::function::{CoreState, ExpressKind, FunctionBuilder, FunctionCore, PciFunction};
use crate::registry::{BuildContext, BuildError, DeviceEntry};

/// Vendor and device id that bhyve has made up.
const BHYVE: (u16, u16) = (0x1275, 0x1275);
/// Those of the alias.
const AMD: (u16, u16) = (0x1022, 0x7432);
/// Host bridge (PCI 3.0, appendix D).
const CLASS: [u8; 3] = [0x06, 0x00, 0x00];
const VERSION: u32 = 1;

const ID: Kind = Kind::Integer { min: 0, max: 0xffff };

/// The host bridge.
pub const DEVICE: DeviceEntry = DeviceEntry {
    name: "hostbridge",
    aliases: &["amd_hostbridge"],
    help: "host bridge",
    keys: &[
        Key::new("pcireg.vendor", ID, "vendor id (0x1275)"),
        Key::new("pcireg.device", ID, "device id (0x1275)"),
        Key::new("vendor", ID, "older name of pcireg.vendor"),
        Key::new("devid", ID, "older name of pcireg.device"),
    ],
    build,
};

/// A 16-bit id under its present name, else under its older one, else the default.
fn id(node: &Node<'_>, name: &str, older: &str, default: u16) -> Result<u16, BuildError> {
    let value = match node.integer(name)? {
        None => node.integer(older)?,
        value => value,
    };
    let Some(value) = value else { return Ok(default) };
    Ok(u16::try_from(value).map_err(|_| node.error(name, "a PCI id has 16 bits"))?)
}

fn build(context: &BuildContext, node: &Node<'_>) -> Result<Arc<dyn PciFunction>, BuildError> {
    let amd = node.get("device")?.is_some_and(|device| DEVICE.aliases.contains(&device.as_str()));
    let (vendor, device) = if amd { AMD } else { BHYVE };
    let identity = Identity {
        vendor: id(node, "pcireg.vendor", "vendor", vendor)?,
        device: id(node, "pcireg.device", "devid", device)?,
        class: CLASS,
        ..Identity::default()
    };
    let core = FunctionBuilder::new(&identity).express(ExpressKind::RootPort)?.build(context);
    Ok(Arc::new(HostBridge { core }))
}

struct HostBridge {
    core: FunctionCore,
}

impl Device for HostBridge {
    fn name(&self) -> String {
        self.core.name()
    }

    fn reset(&self) {
        self.core.reset();
    }

    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::encode(VERSION, &self.core.save())
    }

    fn restore(&self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        self.core.restore(&state.decode::<CoreState>(VERSION)?)
    }
}

impl PciFunction for HostBridge {
    fn core(&self) -> &FunctionCore {
        &self.core
    }
}
