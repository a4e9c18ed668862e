//! The ISA bridge, a PIIX3 by its id (Intel 82371SB datasheet), with the registers that route
//! PCI interrupts to the 8259 pair.

use std::sync::Arc;

use bus::{Device, SavedState, StateError};
use config::{Node, Tree};

use super::assign::PIRQS;
use super::config_space::Identity;
use super::function::{CoreState, FunctionBuilder, FunctionCore, PciFunction};
use crate::registry::{BuildContext, BuildError, DeviceEntry};

const VENDOR: u16 = 0x8086;
const DEVICE_ID: u16 = 0x7000;
/// ISA bridge (PCI 3.0, appendix D).
const CLASS: [u8; 3] = [0x06, 0x01, 0x00];
/// PIRQA–PIRQD (82371SB, 2.2.6), and PIRQE–PIRQH where later bridges of the family have them.
const PIRQ_LOW: u16 = 0x60;
const PIRQ_HIGH: u16 = 0x68;
/// Routing disabled; the other bits are the IRQ.
const PIRQ_DISABLED: u8 = 0x80;
const PIRQ_IRQ: u8 = 0x0f;
/// IRQs that a PIRQ may be routed to: not timer, keyboard, cascade, clock, coprocessor.
const PERMITTED: u16 = 0xdef8;
const VERSION: u32 = 1;

/// The ISA bridge. Its keys are below `lpc`, not below the slot.
pub const DEVICE: DeviceEntry = DeviceEntry {
    name: "lpc",
    aliases: &[],
    help: "ISA bridge with the serial ports, boot ROM and other LPC devices (see -l help)",
    keys: &[],
    build,
};

/// Takes the routing of PIRQs to the 8259 pair.
pub trait PirqRouter: Send + Sync {
    /// Routes PIRQ `pirq` (0–7 for A–H) to `irq`, or to nothing.
    fn set_pirq(&self, pirq: u8, irq: Option<u8>);
}

/// The register of PIRQ `pirq`.
pub(super) fn pirq_register(pirq: u8) -> u16 {
    let register = u16::from(pirq % PIRQS);
    if register < 4 { PIRQ_LOW + register } else { PIRQ_HIGH + register - 4 }
}

/// Whether a function is this bridge.
pub(super) fn is_bridge(core: &FunctionCore) -> bool {
    let [class, subclass, interface] = CLASS;
    (core.config_byte(0x0b), core.config_byte(0x0a), core.config_byte(0x09)) == (class, subclass, interface)
}

fn id(tree: &Tree, name: &str, default: u16) -> Result<u16, BuildError> {
    let key = format!("lpc.pcireg.{name}");
    match tree.get(&key)? {
        None => Ok(default),
        Some(value) if value == "host" => host_id(name)
            .ok_or_else(|| tree.error(&key, "the host has no ISA bridge to take the id from").into()),
        Some(_) => {
            let value = tree.integer(&key)?.and_then(|value| u16::try_from(value).ok());
            Ok(value.ok_or_else(|| tree.error(&key, "a PCI id has 16 bits"))?)
        }
    }
}

/// The host's own value, from the first ISA bridge in sysfs.
fn host_id(name: &str) -> Option<u16> {
    let file = match name {
        "revid" => "revision",
        "subvendor" => "subsystem_vendor",
        "subdevice" => "subsystem_device",
        other => other,
    };
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).ok();
    let mut folders: Vec<_> = std::fs::read_dir("/sys/bus/pci/devices").ok()?.flatten().collect();
    folders.sort_by_key(std::fs::DirEntry::file_name);
    let isa = |path: &std::path::Path| read(path.join("class")).is_some_and(|c| c.starts_with("0x0601"));
    let bridge = folders.into_iter().map(|entry| entry.path()).find(|path| isa(path))?;
    let text = read(bridge.join(file))?;
    u16::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
}

fn build(context: &BuildContext, node: &Node<'_>) -> Result<Arc<dyn PciFunction>, BuildError> {
    let tree = node.tree();
    let revision = id(tree, "revid", 0)?;
    let identity = Identity {
        vendor: id(tree, "vendor", VENDOR)?,
        device: id(tree, "device", DEVICE_ID)?,
        revision: u8::try_from(revision)
            .map_err(|_| tree.error("lpc.pcireg.revid", "a PCI revision has 8 bits"))?,
        class: CLASS,
        subsystem_vendor: id(tree, "subvendor", 0)?,
        subsystem: id(tree, "subdevice", 0)?,
    };
    let mask = [PIRQ_DISABLED | PIRQ_IRQ; 4];
    let core = FunctionBuilder::new(&identity)
        .registers(PIRQ_LOW, &[PIRQ_DISABLED; 4], &mask)
        .registers(PIRQ_HIGH, &[PIRQ_DISABLED; 4], &mask)
        .build(context);
    Ok(Arc::new(Lpc { core, router: context.pirq.clone() }))
}

struct Lpc {
    core: FunctionCore,
    router: Arc<dyn PirqRouter>,
}

impl Lpc {
    fn route(&self) {
        for pirq in 0..PIRQS {
            let register = self.core.config_byte(pirq_register(pirq));
            let irq = register & PIRQ_IRQ;
            let good = register & PIRQ_DISABLED == 0 && PERMITTED >> irq & 1 != 0;
            self.router.set_pirq(pirq, good.then_some(irq));
        }
    }
}

impl Device for Lpc {
    fn name(&self) -> String {
        self.core.name()
    }

    fn reset(&self) {
        self.core.reset();
        self.route();
    }

    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::encode(VERSION, &self.core.save())
    }

    fn restore(&self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        self.core.restore(&state.decode::<CoreState>(VERSION)?)?;
        self.route();
        Ok(())
    }
}

impl PciFunction for Lpc {
    fn core(&self) -> &FunctionCore {
        &self.core
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.core.config_write(offset, data);
        let end = usize::from(offset) + data.len();
        if end > usize::from(PIRQ_LOW) && offset < PIRQ_HIGH + 4 {
            self.route();
        }
    }
}
