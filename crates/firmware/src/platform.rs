//! What the tables describe.

use crate::{Error, MemoryMap};

/// A PCI function's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciAddress {
    /// Bus.
    pub bus: u8,
    /// Slot, 0–31.
    pub slot: u8,
    /// Function, 0–7.
    pub function: u8,
}

/// Where one interrupt pin of a PCI slot goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciRoute {
    /// Bus.
    pub bus: u8,
    /// Slot, 0–31.
    pub slot: u8,
    /// 0–3 for INTA–INTD.
    pub pin: u8,
    /// Global system interrupt (I/O APIC pin).
    pub gsi: u32,
    /// PIRQ register of the LPC bridge, 0–7 for A–H, that routes the pin to the 8259 pair.
    pub pirq: u8,
}

/// A PCI root bridge and the windows that it decodes, as (first, last) addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootBus {
    /// Its bus number.
    pub bus: u8,
    /// Port windows.
    pub io: Vec<(u16, u16)>,
    /// Memory windows, each wholly below or above 4 GiB.
    pub memory: Vec<(u64, u64)>,
}

/// Memory-mapped configuration space of segment 0 (PCI Firmware 3.2, 4.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ecam {
    /// Address of bus 0; below 4 GiB.
    pub base: u32,
    /// Last bus that it reaches.
    pub last_bus: u8,
}

/// A serial port on the LPC bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComPort {
    /// 1 for COM1.
    pub number: u8,
    /// First of its eight ports.
    pub port: u16,
    /// ISA interrupt.
    pub irq: u8,
}

/// Texts of the SMBIOS tables. The defaults are bhyve's.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct SystemInfo {
    pub bios_vendor: String,
    pub bios_version: String,
    /// MM/DD/YYYY.
    pub bios_release_date: String,
    pub system_manufacturer: String,
    pub system_product_name: String,
    pub system_version: String,
    pub system_serial_number: String,
    pub system_sku: String,
    pub system_family_name: String,
    pub board_manufacturer: String,
    pub board_product_name: String,
    pub board_version: String,
    pub board_serial_number: String,
    pub board_asset_tag: String,
    pub board_location: String,
    pub chassis_manufacturer: String,
    pub chassis_version: String,
    pub chassis_serial_number: String,
    pub chassis_asset_tag: String,
    pub chassis_sku: String,
    /// Big-endian bytes, in the order in which a UUID is written.
    pub uuid: [u8; 16],
}

impl Default for SystemInfo {
    fn default() -> Self {
        let none = || String::from("None");
        Self {
            bios_vendor: "BHYVE".into(),
            bios_version: "14.0".into(),
            bios_release_date: "10/17/2021".into(),
            system_manufacturer: "FreeBSD".into(),
            system_product_name: "BHYVE".into(),
            system_version: "1.0".into(),
            system_serial_number: none(),
            system_sku: none(),
            system_family_name: "Virtual Machine".into(),
            board_manufacturer: "FreeBSD".into(),
            board_product_name: "BHYVE".into(),
            board_version: "1.0".into(),
            board_serial_number: none(),
            board_asset_tag: none(),
            board_location: none(),
            chassis_manufacturer: "FreeBSD".into(),
            chassis_version: "1.0".into(),
            chassis_serial_number: none(),
            chassis_asset_tag: none(),
            chassis_sku: none(),
            uuid: [0; 16],
        }
    }
}

/// The machine that the tables describe.
#[derive(Clone, Debug)]
pub struct Platform {
    /// APIC ids of the processors, the bootstrap processor first.
    pub apic_ids: Vec<u32>,
    /// Sockets.
    pub sockets: u32,
    /// Cores in a socket.
    pub cores: u32,
    /// Threads in a core.
    pub threads: u32,
    /// CPUID leaf 1, EAX.
    pub cpu_signature: u32,
    /// CPUID leaf 1, EDX.
    pub cpu_features: u32,
    /// RAM.
    pub memory: MemoryMap,
    /// Memory-mapped PCI configuration space.
    pub ecam: Ecam,
    /// Root bridges; the first is bus 0.
    pub roots: Vec<RootBus>,
    /// The LPC bridge, on bus 0, if there is one.
    pub lpc: Option<PciAddress>,
    /// Where interrupt pins of PCI slots go.
    pub routes: Vec<PciRoute>,
    /// Serial ports that the operating system is told of.
    pub com_ports: Vec<ComPort>,
    /// The I/O APIC's id.
    pub ioapic_id: u8,
    /// Low half of the HPET's capability register, if there is an HPET.
    pub hpet: Option<u32>,
    /// Whether there is a VGA device.
    pub vga: bool,
    /// Whether to write ACPI tables.
    pub acpi: bool,
    /// Whether to write an MP table.
    pub mptable: bool,
    /// SMBIOS texts.
    pub system: SystemInfo,
}

impl Platform {
    /// Refuses what the tables can't say.
    pub(crate) fn check(&self) -> Result<(), Error> {
        // Processor devices in the DSDT have three hexadecimal digits.
        if self.apic_ids.is_empty() || self.apic_ids.len() > 0x1000 {
            return Err(Error::Platform("no processor, or more than 4096"));
        }
        if self.roots.first().is_none_or(|r| r.bus != 0) {
            return Err(Error::Platform("the first root bridge is not bus 0"));
        }
        if self.lpc.is_some_and(|a| a.bus != 0 || a.slot > 31 || a.function > 7) {
            return Err(Error::Platform("the LPC bridge is not on bus 0"));
        }
        if self.routes.iter().any(|r| r.slot > 31 || r.pin > 3 || r.pirq > 7) {
            return Err(Error::Platform("a PCI interrupt route has a slot, pin or PIRQ out of range"));
        }
        let memory_ok = |&(first, last): &(u64, u64)| {
            let low = u32::try_from(last).is_ok();
            first > 0 && first <= last && (low || first > u64::from(u32::MAX))
        };
        let windows_ok = |root: &RootBus| {
            root.io.iter().all(|(first, last)| first <= last && (*first > 0 || *last < u16::MAX))
                && root.memory.iter().all(memory_ok)
        };
        if !self.roots.iter().all(windows_ok) {
            return Err(Error::Platform("a PCI window is empty, all of its space or crosses 4 GiB"));
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod example {
    use super::*;

    /// A machine with a bit of everything.
    pub fn platform(cpus: u32) -> Platform {
        Platform {
            apic_ids: (0..cpus).collect(),
            sockets: cpus,
            cores: 1,
            threads: 1,
            cpu_signature: 0x306a9,
            cpu_features: 0x1783_fbff,
            memory: MemoryMap::new(6 << 30),
            ecam: Ecam { base: 0xe000_0000, last_bus: 255 },
            roots: vec![
                RootBus {
                    bus: 0,
                    io: vec![(0, 0xcf7), (0xd00, 0xffff)],
                    memory: vec![(0xc000_0000, 0xdeff_ffff), (32 << 30, (64 << 30) - 1)],
                },
                RootBus { bus: 5, io: vec![], memory: vec![(0xdf00_0000, 0xdfff_ffff)] },
            ],
            lpc: Some(PciAddress { bus: 0, slot: 31, function: 0 }),
            routes: (0..4)
                .map(|pin| PciRoute { bus: 0, slot: 3, pin, gsi: 16 + u32::from(pin), pirq: pin })
                .chain([PciRoute { bus: 5, slot: 1, pin: 0, gsi: 31, pirq: 7 }])
                .collect(),
            com_ports: vec![
                ComPort { number: 1, port: 0x3f8, irq: 4 },
                ComPort { number: 2, port: 0x2f8, irq: 3 },
            ],
            ioapic_id: 0,
            hpet: Some(0x8086_a701),
            vga: false,
            acpi: true,
            mptable: true,
            system: SystemInfo::default(),
        }
    }

    #[test]
    fn what_tables_cannot_say_is_refused() {
        assert!(platform(1).check().is_ok());
        let bad = |change: fn(&mut Platform)| {
            let mut p = platform(1);
            change(&mut p);
            p.check().is_err()
        };
        assert!(bad(|p| p.apic_ids.clear()));
        assert!(bad(|p| p.roots.clear()));
        assert!(bad(|p| p.routes[0].pin = 4));
        assert!(bad(|p| p.roots[0].memory = vec![(0xffff_0000, 0x1_0000_0000)]));
        assert!(bad(|p| p.roots[0].io = vec![(5, 4)]));
    }
}
