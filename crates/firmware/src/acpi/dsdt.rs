//! The DSDT: what an operating system can't find by itself.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, Else, If, Memory32Fixed, PackageBuilder, Path, Return, Scope,
    Store, ZERO,
};

use super::Table;
use super::aml::*;
use super::link;
use crate::{PciRoute, Platform, RootBus};

/// SLP_TYP of the soft-off state (the PM1 control register takes it).
const SLP_TYP_S5: u8 = 5;

/// The processor devices' HID (ACPI 6.4, 8.4).
const PROCESSOR_HID: &str = "ACPI0007";

/// Path of the LPC bridge's device.
const ISA_PATH: &str = "\\_SB_.PC00.ISA_";

pub fn build(platform: &Platform) -> Vec<u8> {
    let mut sleep = PackageBuilder::new();
    sleep.add_element(&SLP_TYP_S5);
    sleep.add_element(&ZERO);
    let mut system = Vec::new();
    for root in &platform.roots {
        system.extend(root_bridge(platform, root).0);
    }
    system.extend(motherboard(platform).0);
    if platform.hpet.is_some() {
        let registers = code(&Memory32Fixed::new(true, 0xfed0_0000, 0x400));
        system.extend(device("HPET", &[hid("PNP0103"), name("_UID", &ZERO), crs(&[registers])]).0);
    }
    for uid in 0..platform.apic_ids.len() as u32 {
        system.extend(processor(uid).0);
    }

    let mut t = Table::new(*b"DSDT", 2, *b"BVDSDT  ");
    t.put(&name("_S5_", &sleep).0);
    // _PIC: 1 says that the system uses the I/O APIC.
    t.put(&name("PICM", &ZERO).0);
    let pic = code(&Store::new(&Path::new("PICM"), &Arg(0)));
    t.put(&method("_PIC", 1, false, &[pic]).0);
    t.put(&Scope::raw(Path::new("_SB_"), system));
    t.finish()
}

fn processor(uid: u32) -> Code {
    device(&format!("C{:03X}", uid & 0xfff), &[name("_HID", &PROCESSOR_HID), name("_UID", &uid)])
}

fn root_bridge(platform: &Platform, root: &RootBus) -> Code {
    let mut parts =
        vec![hid("PNP0A03"), name("_BBN", &root.bus), name("_UID", &root.bus), crs(&windows(root))];
    parts.extend(routing(platform, root.bus));
    if root.bus == 0 {
        parts.extend(isa(platform));
    }
    device(&format!("PC{:02X}", root.bus), &parts)
}

/// What the bridge decodes and, on bus 0, the configuration ports that it uses itself.
fn windows(root: &RootBus) -> Vec<Code> {
    let bus = u16::from(root.bus);
    let mut parts = vec![code(&AddressSpace::new_bus_number(bus, bus))];
    if root.bus == 0 {
        parts.push(ports(0xcf8, 8));
    }
    for (first, last) in &root.io {
        parts.push(code(&AddressSpace::new_io(*first, *last, None)));
    }
    for (first, last) in &root.memory {
        let kind = AddressSpaceCacheable::NotCacheable;
        parts.push(match (u32::try_from(*first), u32::try_from(*last)) {
            (Ok(first), Ok(last)) => code(&AddressSpace::new_memory(kind, true, first, last, None)),
            _ => code(&AddressSpace::new_memory(kind, true, *first, *last, None)),
        });
    }
    parts
}

/// `_PRT` (ACPI 6.4, 6.2.13): to the I/O APIC, and to the link devices where there is an LPC
/// bridge that has them.
fn routing(platform: &Platform, bus: u8) -> Vec<Code> {
    let routes: Vec<&PciRoute> = platform.routes.iter().filter(|r| r.bus == bus).collect();
    let table = |source: &dyn Fn(&PciRoute) -> (Code, u32)| {
        let mut package = PackageBuilder::new();
        for route in &routes {
            let (device, index) = source(route);
            let mut entry = PackageBuilder::new();
            entry.add_element(&(u32::from(route.slot) << 16 | 0xffff));
            entry.add_element(&route.pin);
            entry.add_element(&device);
            entry.add_element(&index);
            package.add_element(&entry);
        }
        package
    };
    let apic = table(&|route| (code(&ZERO), route.gsi));
    if platform.lpc.is_none() {
        return vec![name("_PRT", &apic)];
    }
    let path = |route: &PciRoute| format!("{ISA_PATH}.{}", link::link_name(route.pirq));
    let pic = table(&|route| (code(&Path::new(&path(route))), 0));
    let (apic_name, pic_name) = (Path::new("APRT"), Path::new("PPRT"));
    let choose = [
        code(&If::new(&Path::new("PICM"), vec![&Return::new(&apic_name)])),
        code(&Else::new(vec![&Return::new(&pic_name)])),
    ];
    vec![name("APRT", &apic), name("PPRT", &pic), method("_PRT", 0, false, &choose)]
}

/// Devices on the LPC bridge; without one they hang off the root bridge.
fn isa(platform: &Platform) -> Vec<Code> {
    let mut devices = vec![
        device("PIC_", &[hid("PNP0000"), crs(&[ports(0x20, 2), ports(0xa0, 2), isa_irq(2)])]),
        device("TIMR", &[hid("PNP0100"), crs(&[ports(0x40, 4), isa_irq(0)])]),
        device("RTC_", &[hid("PNP0B00"), crs(&[ports(0x70, 2), isa_irq(8)])]),
        device("KBD_", &[hid("PNP0303"), crs(&[ports(0x60, 1), ports(0x64, 1), isa_irq(1)])]),
        device("MOU_", &[hid("PNP0F13"), crs(&[isa_irq(12)])]),
    ];
    for com in &platform.com_ports {
        let resources = crs(&[ports(com.port, 8), isa_irq(com.irq)]);
        devices.push(device(
            &format!("COM{:X}", com.number & 0xf),
            &[hid("PNP0501"), name("_UID", &com.number), resources],
        ));
    }
    let Some(lpc) = platform.lpc else { return devices };
    let address = u32::from(lpc.slot) << 16 | u32::from(lpc.function);
    let mut parts = vec![name("_ADR", &address)];
    parts.extend(link::build());
    parts.append(&mut devices);
    vec![device("ISA_", &parts)]
}

/// Ranges that belong to no enumerable device: an operating system must not hand them out, and
/// takes ECAM only if it is reserved here (PCI Firmware 3.2, 4.1.2).
fn motherboard(platform: &Platform) -> Code {
    let ecam = platform.ecam;
    let len = (u32::from(ecam.last_bus) + 1) << 20;
    let ranges = [
        ports(0x61, 1),
        ports(0x72, 6),
        ports(0x80, 1),
        ports(0x84, 1),
        ports(0x92, 1),
        ports(0xb2, 2),
        ports(0x4d0, 2),
        ports(0x400, 0x10),
        code(&Memory32Fixed::new(true, ecam.base, len)),
        code(&Memory32Fixed::new(true, 0xfec0_0000, 0x1000)),
        code(&Memory32Fixed::new(true, 0xfee0_0000, 0x1000)),
    ];
    device("SIO_", &[hid("PNP0C02"), name("_UID", &ZERO), crs(&ranges)])
}
