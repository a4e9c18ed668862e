//! An AHCI 1.3.1 controller with ATA disks and ATAPI drives at its ports.
//!
//! Commands are asynchronous: a write to a port's CI register fetches them and submits them to
//! the disk, each answer ends its command. A port is never stopped by waiting: CR in its command
//! register says when the disk has let go.

mod ata;
mod atapi;
mod command;
mod drive;
mod fis;
mod identify;
mod irq;
mod port;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bus::{Device, SavedState, StateError};
use config::{Key, Kind, Node};
use host::block::{BlockOptions, FileDisk, default_serial};
use serde::{Deserialize, Serialize};

use self::drive::{Drive, Media};
use self::irq::Irq;
use self::port::{Port, Registers};
use crate::pci::{BarKind, FunctionBuilder, FunctionCore, Identity, PciFunction};
use crate::registry::{BuildContext, BuildError, DeviceEntry};
use crate::virtio::block::block_options;

/// Most ports (AHCI 1.3.1, 3.1.1), and how many are there at least, as bhyve's.
const MAX_PORTS: usize = 32;
const MIN_PORTS: usize = 6;
/// The registers' BAR.
const BAR: u8 = 5;
/// Where ports begin, and the length of one.
const PORTS_AT: u64 = 0x100;
const PORT_LEN: u64 = 0x80;
/// Intel's ICH8 controller in AHCI mode, as bhyve's.
const IDENTITY: Identity = Identity {
    vendor: 0x8086,
    device: 0x2821,
    revision: 0,
    class: [0x01, 0x06, 0x01],
    subsystem_vendor: 0,
    subsystem: 0,
};

/// Global registers (3.1).
mod register {
    pub const CAP: u64 = 0x00;
    pub const GHC: u64 = 0x04;
    pub const IS: u64 = 0x08;
    pub const PI: u64 = 0x0c;
    pub const VS: u64 = 0x10;
}

/// 64-bit addresses, queued commands, CLO, AHCI only, 6 Gbit/s, 32 slots (3.1.1).
const CAPABILITIES: u32 = 1 << 31 | 1 << 30 | 1 << 24 | 1 << 18 | 3 << 20 | 31 << 8;
/// Version 1.3.1 says 1.3.
const VERSION: u32 = 0x0001_0300;
/// GHC: reset, interrupts, AHCI (3.1.2).
const GHC_RESET: u32 = 1 << 0;
const GHC_INTERRUPTS: u32 = 1 << 1;
const GHC_AHCI: u32 = 1 << 31;

/// The controller.
pub const DEVICE: DeviceEntry = DeviceEntry {
    name: "ahci",
    aliases: &["ahci-hd", "ahci-cd"],
    help: "AHCI controller with disks (hd:PATH,...) and optical drives (cd:PATH,...)",
    keys: &[
        Key::new("port.*.type", Kind::Choice(&["hd", "cd"]), "disk or optical drive"),
        Key::new("port.*.path", Kind::Path, "image file or block device; an optical drive can be empty"),
        Key::new("port.*.nocache", Kind::Bool, "bypass the host's page cache (O_DIRECT)").default("false"),
        Key::new("port.*.sync", Kind::Bool, "write through to stable storage (O_SYNC)").default("false"),
        Key::new("port.*.direct", Kind::Bool, "the same as sync").default("false"),
        Key::new("port.*.ro", Kind::Bool, "refuse writes").default("false"),
        Key::new("port.*.sectorsize", Kind::SectorSize, "sector sizes that the guest sees"),
        Key::new("port.*.nodelete", Kind::Bool, "offer no TRIM").default("false"),
        Key::new(
            "port.*.bootindex",
            Kind::Integer { min: 0, max: 255 },
            "place in the firmware's boot order",
        )
        .unsupported(),
        Key::new("port.*.ser", Kind::Text(20), "serial number; made from the path by default"),
        Key::new("port.*.nmrr", Kind::Integer { min: 0, max: 0xfffe }, "nominal media rotation rate")
            .default("0"),
        Key::new("port.*.rev", Kind::Text(8), "revision").default("001"),
        Key::new("port.*.model", Kind::Text(40), "model"),
    ],
    build,
};

fn build(context: &BuildContext, node: &Node<'_>) -> Result<Arc<dyn PciFunction>, BuildError> {
    let mut drives: Vec<Option<Drive>> = Vec::new();
    drives.resize_with(MAX_PORTS, || None);
    let mut count = MIN_PORTS;
    for name in node.node("port").children() {
        let number = name.parse::<usize>().ok().filter(|n| *n < MAX_PORTS && n.to_string() == name);
        let Some(number) = number else {
            let key = format!("port.{name}.type");
            return Err(node.error(&key, format!("ports are 0 to {}", MAX_PORTS - 1)).into());
        };
        let drive = open(node, &name)?;
        count = count.max(number + 1);
        if let Some(place) = drives.get_mut(number) {
            *place = Some(drive);
        }
    }
    drives.truncate(count);
    Ok(Arc::new(Ahci::new(context, drives)?))
}

/// Opens what is at a port.
fn open(node: &Node<'_>, port: &str) -> Result<Drive, BuildError> {
    let key = |name: &str| format!("port.{port}.{name}");
    let media = match node.require(&key("type"))?.as_str() {
        "cd" => Media::Optical,
        _ => Media::Disk,
    };
    let text = |name: &str| -> Result<Option<String>, BuildError> { Ok(node.get(&key(name))?) };
    let number = |name: &str| -> Result<i64, BuildError> { Ok(node.integer(&key(name))?.unwrap_or(0)) };
    let path = text("path")?;
    let disk = if media == Media::Optical && path.is_none() {
        None
    } else {
        let mut options: BlockOptions = block_options(&node.node("port").node(port))?;
        options.read_only |= media == Media::Optical;
        let disk = FileDisk::open(&options).map_err(|e| node.error(&key("path"), e.to_string()))?;
        Some(Arc::new(disk) as Arc<dyn host::block::Disk>)
    };
    let model = match media {
        Media::Disk => "BHYVE SATA DISK",
        Media::Optical => "BHYVE SATA DVD ROM",
    };
    let serial = match &disk {
        Some(disk) => disk.info().serial,
        None => text("ser")?.unwrap_or_else(|| default_serial("")),
    };
    Ok(Drive {
        media,
        disk,
        model: text("model")?.unwrap_or_else(|| model.into()),
        revision: text("rev")?.unwrap_or_default(),
        serial,
        rotation: number("nmrr")? as u16,
    })
}

/// The controller.
struct Ahci {
    core: FunctionCore,
    irq: Arc<Irq>,
    ports: Vec<Arc<Port>>,
    /// A reset is not over while disks still have requests.
    resetting: AtomicBool,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    core: crate::pci::CoreState,
    interrupts: bool,
    status: u32,
    ports: Vec<Registers>,
}

const STATE_VERSION: u32 = 1;

impl Ahci {
    fn new(context: &BuildContext, drives: Vec<Option<Drive>>) -> Result<Self, BuildError> {
        let size = (PORTS_AT + PORT_LEN * drives.len() as u64).next_power_of_two().max(0x1000);
        let core =
            FunctionBuilder::new(&IDENTITY).bar(BAR, BarKind::Memory32, size)?.msi(1)?.intx().build(context);
        let irq = Arc::new(Irq::new(core.interrupts().clone()));
        let ports = (0..)
            .zip(drives)
            .map(|(index, drive)| Arc::new(Port::new(index, drive, irq.clone(), core.dma().clone())))
            .collect();
        Ok(Self { core, irq, ports, resetting: AtomicBool::new(false) })
    }

    fn port(&self, offset: u64) -> Option<(&Arc<Port>, u64)> {
        let offset = offset.checked_sub(PORTS_AT)?;
        Some((self.ports.get((offset / PORT_LEN) as usize)?, offset % PORT_LEN))
    }

    /// Reads the register at `offset`, a multiple of four.
    fn read(&self, offset: u64) -> u32 {
        if let Some((port, offset)) = self.port(offset) {
            return port.read(offset);
        }
        match offset {
            register::CAP => CAPABILITIES | (self.ports.len() as u32).saturating_sub(1),
            register::GHC => {
                let resetting = self.resetting.load(Ordering::Acquire);
                if resetting && !self.ports.iter().any(|port| port.busy()) {
                    self.resetting.store(false, Ordering::Release);
                }
                GHC_AHCI
                    | if self.irq.enabled() { GHC_INTERRUPTS } else { 0 }
                    | if self.resetting.load(Ordering::Acquire) { GHC_RESET } else { 0 }
            }
            register::IS => self.irq.status(),
            register::PI => u32::MAX >> 32usize.saturating_sub(self.ports.len()),
            register::VS => VERSION,
            _ => 0,
        }
    }

    fn write(&self, offset: u64, value: u32) {
        if let Some((port, offset)) = self.port(offset) {
            port.write(offset, value);
            return;
        }
        match offset {
            register::GHC if value & GHC_RESET != 0 => {
                self.resetting.store(true, Ordering::Release);
                self.reset_registers();
            }
            register::GHC => self.irq.enable(value & GHC_INTERRUPTS != 0),
            register::IS => self.irq.acknowledge(value),
            _ => {}
        }
    }

    fn reset_registers(&self) {
        for port in &self.ports {
            port.reset();
        }
        self.irq.reset();
    }
}

impl Device for Ahci {
    fn name(&self) -> String {
        self.core.name()
    }

    fn reset(&self) {
        self.reset_registers();
        self.drain();
        self.core.reset();
        self.resetting.store(false, Ordering::Release);
    }

    fn drain(&self) {
        for port in &self.ports {
            port.drain();
        }
    }

    fn resume(&self) {
        for port in &self.ports {
            port.pump();
        }
    }

    fn save(&self) -> Result<SavedState, StateError> {
        let ports: Option<Vec<_>> = self.ports.iter().map(|port| port.save()).collect();
        let saved = Saved {
            core: self.core.save(),
            interrupts: self.irq.enabled(),
            status: self.irq.status(),
            ports: ports.ok_or(StateError::Invalid("requests are in flight"))?,
        };
        SavedState::encode(STATE_VERSION, &saved)
    }

    fn restore(&self, state: &SavedState) -> Result<(), StateError> {
        self.reset();
        let saved: Saved = state.decode(STATE_VERSION)?;
        if saved.ports.len() != self.ports.len() {
            return Err(StateError::Invalid("number of AHCI ports"));
        }
        self.core.restore(&saved.core)?;
        self.irq.restore(saved.interrupts, saved.status);
        for (port, regs) in self.ports.iter().zip(saved.ports) {
            port.restore(regs);
        }
        Ok(())
    }
}

impl PciFunction for Ahci {
    fn core(&self) -> &FunctionCore {
        &self.core
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        if bar != BAR {
            data.fill(0xff);
            return;
        }
        // 3: registers are read as dwords; smaller pieces are cut out of them.
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let skip = (at % 4) as usize;
            let value = self.read(at & !3).to_le_bytes();
            let (now, later) = rest.split_at_mut(rest.len().min(4 - skip));
            now.iter_mut().zip(value.iter().skip(skip)).for_each(|(to, from)| *to = *from);
            at += now.len() as u64;
            rest = later;
        }
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        if bar != BAR || !offset.is_multiple_of(4) {
            return;
        }
        // Only whole dwords (3).
        for (at, dword) in (offset..).step_by(4).zip(data.as_chunks::<4>().0) {
            self.write(at, u32::from_le_bytes(*dword));
        }
    }
}
