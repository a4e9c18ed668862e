use std::sync::Mutex;

use bus::{Device, Msi, SavedState, StateError};

use super::*;
use crate::pci::{BarKind, FunctionBuilder, FunctionCore, Identity};
use crate::registry::BuildContext;
use crate::testing::{Random, Rig};

/// A function with one BAR of each kind that notes what reaches it.
struct Test {
    core: FunctionCore,
    writes: Mutex<Vec<(u8, u64, Vec<u8>)>>,
    moves: Mutex<Vec<(u8, Option<u64>)>>,
    calls: Mutex<Vec<(&'static str, bool)>>,
}

impl Test {
    fn new(context: &BuildContext) -> Arc<Self> {
        let identity = Identity { vendor: 0x1234, device: 0x5678, ..Identity::default() };
        let core = FunctionBuilder::new(&identity)
            .bar(0, BarKind::Io, 32)
            .and_then(|b| b.bar(1, BarKind::Memory32, 0x1000))
            .and_then(|b| b.bar(2, BarKind::Memory64 { prefetchable: true }, 0x10000))
            .and_then(|b| b.msix(3, 4))
            .unwrap()
            .intx()
            .build(context);
        Arc::new(Self { core, writes: Mutex::default(), moves: Mutex::default(), calls: Mutex::default() })
    }

    fn take_writes(&self) -> Vec<(u8, u64, Vec<u8>)> {
        std::mem::take(&mut self.writes.lock().unwrap())
    }

    fn take_moves(&self) -> Vec<(u8, Option<u64>)> {
        std::mem::take(&mut self.moves.lock().unwrap())
    }

    fn note(&self, what: &'static str) {
        self.calls.lock().unwrap().push((what, self.core.dma().enabled()));
    }
}

impl Device for Test {
    fn name(&self) -> String {
        self.core.name()
    }
    fn reset(&self) {
        self.core.reset();
    }
    fn drain(&self) {
        self.note("drain");
    }
    fn resume(&self) {
        self.note("resume");
    }
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::encode(1, &self.core.save())
    }
    fn restore(&self, state: &SavedState) -> Result<(), StateError> {
        self.core.restore(&state.decode(1)?)
    }
}

impl PciFunction for Test {
    fn core(&self) -> &FunctionCore {
        &self.core
    }
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(bar << 4 | offset as u8 & 0xf);
    }
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        self.writes.lock().unwrap().push((bar, offset, data.to_vec()));
    }
    fn bar_moved(&self, bar: u8, address: Option<u64>) {
        self.moves.lock().unwrap().push((bar, address));
    }
}

fn read(rig: &Rig, gpa: u64) -> u8 {
    let mut data = [0];
    rig.bus.memory_read(gpa, &mut data);
    data[0]
}

#[test]
fn the_address_register_takes_whole_accesses_only() {
    let rig = Rig::new();
    rig.pci.add(Test::new(&rig.at(3, 0))).unwrap();
    let mut data = [0; 4];
    rig.bus.port_write(0xcf8, &0x8000_1801u32.to_le_bytes());
    rig.bus.port_read(0xcf8, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x8000_1800);
    rig.bus.port_write(0xcf8, &[0xff]);
    rig.bus.port_write(0xcf9, &[0xff]);
    rig.bus.port_write(0xcfa, &[0xff, 0xff]);
    rig.bus.port_read(0xcfc, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x5678_1234);
    rig.bus.port_read(0xcfe, &mut data[..2]);
    assert_eq!(data[..2], [0x78, 0x56]);
    rig.bus.port_read(0xcfd, &mut data[..1]);
    assert_eq!(data[0], 0x12);
    rig.bus.port_read(0xcf8, &mut data[..2]);
    assert_eq!(data[..2], [0xff, 0xff]);
    // Without the enable bit nothing answers.
    rig.bus.port_write(0xcf8, &0x1800u32.to_le_bytes());
    rig.bus.port_read(0xcfc, &mut data);
    assert_eq!(data, [0xff; 4]);
    assert_eq!(rig.config_read(4, 0, 4), 0xffff_ffff);
}

#[test]
fn both_mechanisms_reach_the_same_registers() {
    let rig = Rig::new();
    let function = Test::new(&rig.at(3, 0));
    rig.pci.add(function).unwrap();
    let ecam = 0xe000_0000 + (3 << 15);
    rig.bus.memory_write(ecam + 0x3c, &[0x5a]);
    assert_eq!(rig.config_read(3, 0x3c, 1), 0x5a);
    rig.config_write(3, 0x0c, &[0x10, 0x20]);
    let mut data = [0; 16];
    rig.bus.memory_read(ecam, &mut data);
    assert_eq!((data[0], data[3], data[0xc], data[0xd]), (0x34, 0x56, 0x10, 0x20));
    rig.bus.memory_read(ecam + 0xffc, &mut data[..8]);
    // No extended capabilities here, and nobody at the next function.
    assert_eq!(data[..8], [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    rig.bus.memory_read(ecam + (5 << 20), &mut data[..4]);
    assert_eq!(data[..4], [0xff; 4]);
}

#[test]
fn bars_follow_their_registers() {
    let rig = Rig::new();
    let function = Test::new(&rig.at(3, 0));
    rig.pci.add(function.clone()).unwrap();
    rig.pci.assign(crate::testing::RAM).unwrap();
    let old = rig.bar(3, 1);
    assert_eq!(rig.bar(3, 0), 0x2000);
    assert_eq!(read(&rig, old + 5), 0x15);
    assert_eq!(function.take_moves().len(), 4);
    // Sizing with the decoder on, as some software does.
    rig.config_write(3, 0x14, &[0xff; 4]);
    assert_eq!(rig.config_read(3, 0x14, 4), 0xffff_f000);
    rig.config_write(3, 0x14, &0xd000_0000u32.to_le_bytes());
    assert_eq!((read(&rig, old), read(&rig, 0xd000_0003)), (0xff, 0x13));
    assert_eq!(function.take_moves().last(), Some(&(1, Some(0xd000_0000))));
    rig.bus.memory_write(0xd000_0ffc, &[1, 2, 3, 4]);
    rig.bus.port_write(0x2010, &[7, 8]);
    assert_eq!(function.take_writes(), [(1, 0xffc, vec![1, 2, 3, 4]), (0, 16, vec![7, 8])]);
    // Memory off, ports on.
    rig.config_write(3, 4, &[1, 0]);
    assert_eq!(read(&rig, 0xd000_0000), 0xff);
    let mut data = [0];
    assert!(rig.bus.port_read(0x2001, &mut data));
    rig.config_write(3, 4, &[0, 0]);
    assert!(!rig.bus.port_read(0x2001, &mut data));
    assert_eq!(function.take_moves().len(), 4);
}

#[test]
fn wide_bars_go_above_4g() {
    let rig = Rig::new();
    let function = Test::new(&rig.at(3, 0));
    rig.pci.add(function).unwrap();
    rig.config_write(3, 0x18, &0x8000_0000u32.to_le_bytes());
    rig.config_write(3, 0x1c, &0x12u32.to_le_bytes());
    rig.config_write(3, 4, &[2, 0]);
    assert_eq!(read(&rig, 0x12_8000_0001), 0x21);
    // The very end of the address space overflows and is nowhere.
    rig.config_write(3, 0x18, &[0xff; 8]);
    assert_eq!(read(&rig, 0x12_8000_0001), 0xff);
    assert_eq!(read(&rig, 0xffff_ffff_ffff_0000), 0xff);
}

#[test]
fn overlaps_are_not_mapped_until_there_is_room() {
    let rig = Rig::new();
    let (a, b) = (Test::new(&rig.at(3, 0)), Test::new(&rig.at(4, 0)));
    rig.pci.add(a).unwrap();
    rig.pci.add(b.clone()).unwrap();
    for slot in [3, 4] {
        rig.config_write(slot, 0x14, &0xd000_0000u32.to_le_bytes());
        rig.config_write(slot, 4, &[2, 0]);
    }
    rig.bus.memory_write(0xd000_0000, &[1]);
    assert!(b.take_writes().is_empty());
    rig.config_write(3, 0x14, &0xd000_1000u32.to_le_bytes());
    rig.bus.memory_write(0xd000_0000, &[1]);
    assert_eq!(b.take_writes().len(), 1);
    // Over RAM, over the ECAM window, at 0: nowhere.
    for base in [0x10_0000u32, 0xe000_0000, 0] {
        rig.config_write(4, 0x14, &base.to_le_bytes());
        assert!(!b.take_moves().contains(&(1, Some(u64::from(base)))), "{base:#x}");
    }
    assert!(rig.pci.add(Test::new(&rig.at(4, 0))).is_err());
}

#[test]
fn dma_ends_only_when_the_function_is_drained() {
    let rig = Rig::new();
    let function = Test::new(&rig.at(3, 0));
    rig.pci.add(function.clone()).unwrap();
    let dma = function.core.dma().clone();
    assert!(dma.write(0, &[1]).is_err());
    rig.config_write(3, 4, &[4, 0]);
    assert!(dma.write(0, &[1]).is_ok());
    rig.config_write(3, 4, &[0, 0]);
    assert!(dma.write(0, &[1]).is_err());
    rig.config_write(3, 4, &[4, 0]);
    let calls = std::mem::take(&mut *function.calls.lock().unwrap());
    assert_eq!(calls, [("resume", true), ("drain", true), ("resume", true)]);
    rig.pci.reset();
    assert!(dma.write(0, &[1]).is_err());
}

#[test]
fn interrupts_take_the_way_that_is_on() {
    let rig = Rig::with(true);
    let function = Test::new(&rig.at(3, 0));
    rig.pci.add(function.clone()).unwrap();
    rig.pci.assign(crate::testing::RAM).unwrap();
    let interrupts = function.core.interrupts().clone();
    let status = |rig: &Rig| rig.config_read(3, 6, 1) & 8 != 0;
    // Slot 3, INTA, with firmware: input 16 + (4 + 3 + 0) % 8.
    assert_eq!(rig.pci.routes()[0].gsi, 23);
    assert_eq!(rig.config_read(3, 0x3d, 1), 1);
    interrupts.raise(1);
    assert!(rig.probe.line(23) && status(&rig));
    rig.config_write(3, 5, &[4]);
    assert!(!rig.probe.line(23) && status(&rig));
    rig.config_write(3, 5, &[0]);
    assert!(rig.probe.line(23));
    interrupts.lower();
    assert!(!rig.probe.line(23) && !status(&rig));

    // MSI-X through its BAR, which firmware has mapped.
    rig.config_write(3, 4, &[3, 0]);
    let table = rig.bar(3, 4);
    let msix = rig.capability(3, 0x11, 0).unwrap();
    assert_eq!(rig.config_read(3, msix + 2, 2), 2);
    rig.bus.memory_write(table + 16, &0xfee0_2000u64.to_le_bytes());
    rig.bus.memory_write(table + 24, &0x51u32.to_le_bytes());
    rig.config_write(3, msix + 2, &0x8000u16.to_le_bytes());
    interrupts.raise(1);
    let pending = |rig: &Rig| read(rig, table + 0x800);
    assert_eq!((rig.probe.take_msis().len(), pending(&rig)), (0, 2));
    rig.bus.memory_write(table + 28, &0u32.to_le_bytes());
    assert_eq!(rig.probe.take_msis(), [Msi { address: 0xfee0_2000, data: 0x51 }]);
    assert_eq!(pending(&rig), 0);
    interrupts.raise(1);
    assert_eq!(rig.probe.take_msis().len(), 1);
    // All masked, then unmasked through the function mask.
    rig.config_write(3, msix + 2, &0xc000u16.to_le_bytes());
    interrupts.raise(1);
    assert_eq!((rig.probe.take_msis().len(), pending(&rig)), (0, 2));
    rig.config_write(3, msix + 2, &0x8000u16.to_le_bytes());
    assert_eq!(rig.probe.take_msis().len(), 1);
    // A message to RAM is not one.
    rig.bus.memory_write(table + 16, &0x1000u64.to_le_bytes());
    interrupts.raise(1);
    assert!(rig.probe.take_msis().is_empty() && !rig.probe.any_line());
    // The table survives save and restore.
    let saved = function.save().unwrap();
    rig.pci.reset();
    assert!(!interrupts.msix_enabled());
    function.restore(&saved).unwrap();
    rig.pci.refresh();
    assert!(interrupts.msix_enabled());
    assert_eq!(read(&rig, table + 24), 0x51);
}

#[test]
fn functions_of_a_slot_and_their_pins() {
    let rig = Rig::new();
    for function in [0, 1] {
        rig.pci.add(Test::new(&rig.at(5, function))).unwrap();
    }
    assert_eq!(rig.config_read(5, 0x0e, 1), 0x80);
    let routes = rig.pci.routes();
    assert_eq!(routes.iter().map(|r| (r.slot, r.pin)).collect::<Vec<_>>(), [(5, 0), (5, 1)]);
    assert_ne!(routes[0].gsi, routes[1].gsi);
}

#[test]
fn the_bridge_routes_pirqs() {
    let rig = Rig::new();
    let lpc = rig.build(1, "lpc", &[]).unwrap();
    let user = Test::new(&rig.at(3, 0));
    rig.pci.add(lpc).unwrap();
    rig.pci.add(user).unwrap();
    assert_eq!(rig.config_read(1, 0, 4), 0x7000_8086);
    assert_eq!(rig.config_read(1, 0x60, 4), 0x8080_8080);
    rig.pci.assign(crate::testing::RAM).unwrap();
    // The first input is on PIRQA; no firmware runs, so it is routed.
    let irq = rig.config_read(3, 0x3c, 1);
    assert_eq!((rig.config_read(1, 0x60, 1), irq), (11, 11));
    assert_eq!(rig.probe.pirqs.lock().unwrap()[..2], [Some(11), None]);
    rig.config_write(1, 0x61, &[5]);
    rig.config_write(1, 0x68, &[0x0a, 0x08, 0xff, 0x80]);
    let pirqs = *rig.probe.pirqs.lock().unwrap();
    // 8 belongs to the clock.
    assert_eq!(pirqs, [Some(11), Some(5), None, None, Some(10), None, None, None]);
    rig.pci.reset();
    assert_eq!(*rig.probe.pirqs.lock().unwrap(), [None; 8]);
}

#[test]
fn host_bridges() {
    let rig = Rig::new();
    let ids = |keys: &[(&str, &str)], name: &str, slot: u8| {
        rig.pci.add(rig.build(slot, name, keys).unwrap()).unwrap();
        rig.config_read(slot, 0, 4)
    };
    assert_eq!(ids(&[], "hostbridge", 0), 0x1275_1275);
    assert_eq!(ids(&[], "amd_hostbridge", 1), 0x7432_1022);
    assert_eq!(ids(&[("pcireg.vendor", "0x8086"), ("devid", "0x1237")], "hostbridge", 2), 0x1237_8086);
    assert_eq!(rig.config_read(0, 8, 4) >> 16, 0x0600);
    // Root port, version 2.
    let express = rig.capability(0, 0x10, 0).unwrap();
    assert_eq!(rig.config_read(0, express + 2, 2), 0x42);
    assert!(rig.build(3, "hostbridge", &[("pcireg.vendor", "0x10000")]).is_err());
}

#[test]
fn the_latch_is_saved() {
    let rig = Rig::new();
    rig.bus.port_write(0xcf8, &0x8000_1804u32.to_le_bytes());
    let saved = rig.pci.save().unwrap();
    rig.pci.reset();
    rig.pci.restore(&saved).unwrap();
    let mut data = [0; 4];
    rig.bus.port_read(0xcf8, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x8000_1804);
}

#[test]
fn random_configuration_writes_do_no_harm() {
    let rig = Rig::new();
    let functions: Vec<_> = (3..6).map(|slot| Test::new(&rig.at(slot, 0))).collect();
    for function in &functions {
        rig.pci.add(function.clone()).unwrap();
    }
    rig.pci.assign(crate::testing::RAM).unwrap();
    let mut random = Random(42);
    for _ in 0..20_000 {
        let slot = 3 + (random.next() % 3) as u8;
        let register = (random.next() % 0x80) as u8;
        let value = random.next() as u32 & if random.next() & 1 == 0 { 0xe000_ffff } else { !0 };
        let size = (1usize << (random.next() % 3)).min(4 - usize::from(register % 4));
        rig.config_write(slot, register, &value.to_le_bytes()[..size]);
    }
    assert_eq!(rig.config_read(3, 0, 4), 0x5678_1234);
    // What is mapped is what the registers say: off means nothing answers.
    for slot in 3..6 {
        rig.config_write(slot, 4, &[0, 0]);
    }
    let mapped = rig.pci.mapped.lock().unwrap().len();
    assert_eq!(mapped, 0);
    for slot in 3..6 {
        rig.config_write(slot, 0x14, &(0xd000_0000 | u32::from(slot) << 16).to_le_bytes());
        rig.config_write(slot, 4, &[2, 0]);
        assert_eq!(read(&rig, 0xd000_0002 | u64::from(slot) << 16), 0x12);
    }
}
