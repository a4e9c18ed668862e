//! What the firmware tables say of this machine.

use config::{Topology, Tree};
use devices::chipset::{COM_PORTS, HPET_ID};
use devices::pci::PciBus;
use engine::CpuidTable;
use firmware::{ComPort, Ecam, Installed, MemoryMap, PciAddress, PciRoute, Platform, RootBus};
use memory::GuestMemory;

use crate::{Result, system};

/// Memory-mapped configuration space: all 256 buses at E0000000, as the PCI bus claims it.
const ECAM: Ecam = Ecam { base: 0xe000_0000, last_bus: 255 };

/// What the tables depend on.
pub struct Described<'a> {
    pub tree: &'a Tree,
    pub topology: Topology,
    pub cpuid: &'a CpuidTable,
    pub map: MemoryMap,
    /// After BARs were assigned.
    pub pci: &'a PciBus,
    pub lpc: Option<config::PciAddress>,
}

/// Writes the tables into guest memory.
pub fn install(described: &Described, memory: &GuestMemory) -> Result<Installed> {
    Ok(firmware::install(&platform(described)?, memory)?)
}

fn platform(d: &Described) -> Result<Platform> {
    let version = d.cpuid.leaf(1, 0).unwrap_or_default();
    let roots = d.pci.windows().into_iter().map(|w| RootBus { bus: w.bus, io: w.io, memory: w.memory });
    let route =
        |r: devices::pci::Route| PciRoute { bus: r.bus, slot: r.slot, pin: r.pin, gsi: r.gsi, pirq: r.pirq };
    let com = |(number, (port, irq)): (u8, &(u16, u32))| ComPort { number, port: *port, irq: *irq as u8 };
    Ok(Platform {
        apic_ids: (0..d.topology.cpus).map(|index| d.cpuid.topology.apic_id(index)).collect(),
        sockets: d.topology.sockets,
        cores: d.topology.cores,
        threads: d.topology.threads,
        cpu_signature: version.eax,
        cpu_features: version.edx,
        memory: d.map,
        ecam: ECAM,
        roots: roots.collect(),
        lpc: d.lpc.map(|a| PciAddress { bus: a.bus, slot: a.slot, function: a.function }),
        routes: d.pci.routes().into_iter().map(route).collect(),
        // All ports exist, with or without a back end; but only on an LPC bridge.
        com_ports: if d.lpc.is_some() { (1..).zip(COM_PORTS.iter()).map(com).collect() } else { Vec::new() },
        ioapic_id: 0,
        hpet: Some(HPET_ID),
        vga: false,
        acpi: d.tree.flag("acpi_tables")? && d.tree.flag("acpi_tables_in_memory")?,
        mptable: d.tree.flag("x86.mptable")?,
        system: system::info(d.tree)?,
    })
}
