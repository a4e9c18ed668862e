//! Every virtio device of the registry is brought up by a driver that does what Linux's
//! `virtio_pci` does, in its order and with its checks: first the modern way, then the legacy one.
#![allow(clippy::unwrap_used)]

mod rig;

use std::ops::Range;

use devices::registry;
use rig::{Board, Rig};

// Status bits (VIRTIO 1.2, 2.1).
const ACKNOWLEDGE: u64 = 1;
const DRIVER: u64 = 2;
const DRIVER_OK: u64 = 4;
const FEATURES_OK: u64 = 8;
const VERSION_1: u64 = 1 << 32;

/// A structure in a BAR.
#[derive(Clone, Debug)]
struct Structure(Range<u64>);

impl Structure {
    fn at(&self, offset: u64, len: u64) -> u64 {
        assert!(self.0.start + offset + len <= self.0.end, "{self:?} has no {offset}+{len}");
        self.0.start + offset
    }
}

/// The modern driver.
struct Modern<'a> {
    rig: &'a Rig,
    common: Structure,
    isr: Structure,
    notify: Structure,
    multiplier: u64,
    device: Option<Structure>,
}

/// Capabilities in configuration space: (offset, id).
fn capabilities(rig: &Rig) -> Vec<(u16, u8)> {
    let mut found = Vec::new();
    let mut at = u16::from(rig.config8(0x34));
    assert_ne!(rig.config(4) >> 16 & 0x10, 0, "the status register denies that there is a list");
    while at != 0 {
        assert!(at >= 0x40 && at % 4 == 0 && found.len() < 48, "a bad capability list");
        found.push((at, rig.config8(at)));
        at = u16::from(rig.config8(at + 1));
    }
    found
}

/// Finds a structure as `virtio_pci_find_capability` and `vp_modern_map_capability` do: with a
/// length that is not 0 and within its BAR.
fn find(rig: &Rig, kind: u8) -> Option<(u16, Structure)> {
    let found = capabilities(rig)
        .into_iter()
        .find(|(at, id)| *id == 9 && rig.config8(at + 3) == kind && rig.config8(at + 4) < 6);
    let (at, _) = found?;
    let (bar, offset, len) = (rig.config8(at + 4), rig.config(at + 8), rig.config(at + 12));
    let (base, size) = (rig.bar(bar), bar_size(rig, bar));
    assert_ne!(len, 0, "structure {kind} is empty");
    assert!(u64::from(offset) + u64::from(len) <= size, "structure {kind} leaves its BAR");
    let start = base + u64::from(offset);
    Some((at, Structure(start..start + u64::from(len))))
}

/// Sizes a BAR as Linux does: decoding off, all bits 1, then everything back.
fn bar_size(rig: &Rig, bar: u8) -> u64 {
    let register = 0x10 + 4 * u16::from(bar);
    let (command, low) = (rig.config(4) as u16, rig.config(register));
    rig.set_config(4, &(command & !3).to_le_bytes());
    rig.set_config(register, &[0xff; 4]);
    let size = !(rig.config(register) & if low & 1 != 0 { !3 } else { !0xf }) + 1;
    rig.set_config(register, &low.to_le_bytes());
    rig.set_config(4, &command.to_le_bytes());
    assert!(size.is_power_of_two());
    u64::from(size)
}

impl<'a> Modern<'a> {
    fn probe(rig: &'a Rig) -> Self {
        let command = rig.config(4) as u16;
        let common = find(rig, 1).expect("common configuration").1;
        let isr = find(rig, 3).expect("ISR").1;
        let (at, notify) = find(rig, 2).expect("notifications");
        let device = find(rig, 4).map(|(_, structure)| structure);
        assert_eq!(rig.config(4) as u16, command);
        let multiplier = u64::from(rig.config(at + 16));
        Self { rig, common, isr, notify, multiplier, device }
    }

    fn get(&self, offset: u64, len: usize) -> u64 {
        self.rig.read(self.common.at(offset, len as u64), len)
    }

    fn set(&self, offset: u64, len: usize, value: u64) {
        self.rig.write(self.common.at(offset, len as u64), len, value);
    }

    fn reset(&self) {
        self.set(0x14, 1, 0);
        assert_eq!(self.get(0x14, 1), 0);
    }

    fn add_status(&self, bit: u64) {
        self.set(0x14, 1, self.get(0x14, 1) | bit);
    }

    fn negotiate(&self) -> u64 {
        let mut offered = 0;
        for half in 0..2 {
            self.set(0, 4, half);
            offered |= self.get(4, 4) << (32 * half);
        }
        assert_ne!(offered & VERSION_1, 0);
        for half in 0..2 {
            self.set(8, 4, half);
            self.set(12, 4, offered >> (32 * half) & 0xffff_ffff);
        }
        self.add_status(FEATURES_OK);
        assert_ne!(self.get(0x14, 1) & FEATURES_OK, 0, "all that was offered is refused");
        offered
    }

    /// Sets up all queues with `vector(queue)`, their rings a page each from 1 MiB on.
    fn queues(&self, vector: impl Fn(u64) -> u64) -> u64 {
        let count = self.get(0x12, 2);
        for queue in 0..count {
            self.set(0x16, 2, queue);
            let size = self.get(0x18, 2);
            assert!(size.is_power_of_two() && self.get(0x1c, 2) == 0, "queue {queue}");
            // A ring of 64 entries is enough for everything here.
            let size = size.min(64);
            self.set(0x18, 2, size);
            for (part, register) in [0x20, 0x28, 0x30].into_iter().enumerate() {
                self.set(register, 4, ring(queue, part as u64));
                self.set(register + 4, 4, 0);
            }
            self.set(0x1a, 2, vector(queue));
            assert_eq!(self.get(0x1a, 2), vector(queue), "vector of queue {queue}");
            // The notification register must exist.
            self.bell(queue);
        }
        for queue in 0..count {
            self.set(0x16, 2, queue);
            self.set(0x1c, 2, 1);
            assert_eq!(self.get(0x1c, 2), 1);
        }
        self.set(0x16, 2, count);
        assert_eq!(self.get(0x18, 2), 0, "there are more queues than it says");
        count
    }

    fn bell(&self, queue: u64) -> u64 {
        self.set(0x16, 2, queue);
        self.notify.at(self.get(0x1e, 2) * self.multiplier, 2)
    }

    fn kick(&self, queue: u64) {
        self.rig.write(self.bell(queue), 2, queue);
    }
}

/// Guest-physical address of descriptors (0), available ring (1) or used ring (2) of a queue.
fn ring(queue: u64, part: u64) -> u64 {
    (1 << 20) + (queue * 3 + part) * 0x1000
}

/// Makes one buffer available that the device writes; the index must be that of the ring.
fn offer(rig: &Rig, desc: u64, avail: u64, index: u16, gpa: u64, len: u32) {
    use std::sync::atomic::Ordering::Release;
    let m = &rig.memory;
    m.store_u64(desc, gpa, Release).unwrap();
    m.store_u32(desc + 8, len, Release).unwrap();
    m.store_u32(desc + 12, 2, Release).unwrap();
    m.store_u16(avail + 4 + 2 * u64::from(index % 64), 0, Release).unwrap();
    // With the event index: interrupt for this one.
    m.store_u16(avail + 4 + 2 * 64, index, Release).unwrap();
    m.store_u16(avail + 2, index + 1, Release).unwrap();
}

fn used_index(rig: &Rig, used: u64) -> u16 {
    rig.memory.load_u16(used + 2, std::sync::atomic::Ordering::Acquire).unwrap()
}

fn virtio() -> impl Iterator<Item = &'static str> {
    registry().iter().map(|entry| entry.name).filter(|name| name.starts_with("virtio-"))
}

/// The MSI-X table: BAR and offset, from the capability at `at`.
fn table(rig: &Rig, at: u16) -> u64 {
    let table = rig.config(at + 4);
    rig.bar((table & 7) as u8) + u64::from(table & !7)
}

fn enable_msix(rig: &Rig, vectors: u64) -> u16 {
    let at = capabilities(rig).into_iter().find(|(_, id)| *id == 0x11).expect("MSI-X").0;
    let control = (rig.config(at) >> 16) as u16;
    assert!(u64::from(control & 0x7ff) + 1 >= vectors);
    // Enabled with everything masked, then the table, then unmasked: `msix_capability_init`.
    rig.set_config(at + 2, &(control | 0xc000).to_le_bytes());
    for vector in 0..vectors {
        let entry = table(rig, at) + 16 * vector;
        for (offset, value) in [(0, 0xfee0_0000), (4, 0), (8, 0x40 + vector), (12, 0)] {
            rig.write(entry + offset, 4, value);
        }
    }
    rig.set_config(at + 2, &(control | 0x8000).to_le_bytes());
    at
}

fn master(rig: &Rig) {
    let command = rig.config(4) as u16 | 4;
    rig.set_config(4, &command.to_le_bytes());
}

#[test]
fn every_virtio_device_comes_up_the_modern_way() {
    for name in virtio() {
        println!("{name}");
        let (rig, _) = Rig::with(name, true);
        let driver = Modern::probe(&rig);
        master(&rig);
        driver.reset();
        driver.add_status(ACKNOWLEDGE);
        driver.add_status(DRIVER);
        driver.negotiate();
        let count = driver.get(0x12, 2);
        enable_msix(&rig, count + 1);
        driver.set(0x10, 2, 0);
        assert_eq!(driver.get(0x10, 2), 0);
        driver.queues(|queue| queue + 1);
        if let Some(device) = &driver.device {
            let generation = driver.get(0x15, 1);
            for at in 0..device.0.end - device.0.start {
                rig.read(device.at(at, 1), 1);
            }
            assert_eq!(driver.get(0x15, 1), generation);
        }
        driver.add_status(DRIVER_OK);
        assert_eq!(driver.get(0x14, 1), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        (0..count).for_each(|queue| driver.kick(queue));
        assert_eq!(driver.get(0x14, 1), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        // A bad vector reads back as none.
        driver.set(0x10, 2, count + 1);
        assert_eq!(driver.get(0x10, 2), 0xffff);
        driver.reset();
        driver.set(0x16, 2, 0);
        assert_eq!((driver.get(0x1c, 2), driver.get(0x10, 2)), (0, 0xffff));
    }
}

#[test]
fn every_virtio_device_comes_up_the_legacy_way() {
    for name in virtio() {
        println!("{name}");
        let (rig, _) = Rig::with(name, true);
        master(&rig);
        let base = rig.bar(0) as u16;
        assert_ne!(rig.config(0x10) & 1, 0, "BAR 0 is in port space");
        let get = |offset: u16, len: usize| rig.port_in(base + offset, len);
        let set = |offset: u16, len: usize, value: u32| rig.port_out(base + offset, len, value);
        set(18, 1, 0);
        assert_eq!(get(18, 1), 0);
        set(18, 1, 1);
        set(18, 1, 3);
        let offered = get(0, 4);
        set(4, 4, offered);
        assert_eq!(get(4, 4), offered);
        let (mut queue, mut page) = (0, 0x200);
        loop {
            set(14, 2, queue);
            let size = get(12, 2);
            if size == 0 {
                break;
            }
            assert!(size.is_power_of_two() && get(8, 4) == 0);
            set(8, 4, page);
            assert_eq!(get(8, 4), page);
            page += (26 * size).div_ceil(4096) + 2;
            queue += 1;
        }
        assert_ne!(queue, 0);
        set(18, 1, 7);
        assert_eq!(get(18, 1), 7);
        for queue in 0..queue {
            set(16, 2, u32::from(queue as u16));
        }
        assert_eq!(get(18, 1), 7, "{name} is not content");
        set(18, 1, 0);
        set(14, 2, 0);
        assert_eq!(get(8, 4), 0);
    }
}

/// What `board` got, as vectors.
fn vectors(board: &Board) -> Vec<u32> {
    board.take_messages().iter().map(|msi| msi.data).collect()
}

#[test]
fn interrupts_by_msix_are_masked_noted_and_sent_later() {
    let (rig, _) = Rig::with("virtio-rnd", true);
    let driver = Modern::probe(&rig);
    master(&rig);
    driver.reset();
    driver.add_status(ACKNOWLEDGE);
    driver.add_status(DRIVER);
    driver.negotiate();
    let msix = enable_msix(&rig, 2);
    driver.queues(|_| 1);
    driver.add_status(DRIVER_OK);
    let (desc, avail, used) = (ring(0, 0), ring(0, 1), ring(0, 2));
    offer(&rig, desc, avail, 0, 0x8000, 32);
    driver.kick(0);
    assert_eq!((used_index(&rig, used), vectors(&rig.board)), (1, vec![0x41]));
    // Masked: pending, sent on unmasking, once.
    let entry = table(&rig, msix) + 16;
    rig.write(entry + 12, 4, 1);
    offer(&rig, desc, avail, 1, 0x8000, 32);
    driver.kick(0);
    assert_eq!((used_index(&rig, used), vectors(&rig.board)), (2, vec![]));
    let pending = rig.config(msix + 8);
    let pending = rig.bar((pending & 7) as u8) + u64::from(pending & !7);
    assert_eq!(rig.read(pending, 4), 2);
    rig.write(entry + 12, 4, 0);
    assert_eq!(vectors(&rig.board), [0x41]);
    assert_eq!(rig.read(pending, 4), 0);
    // All masked at once.
    let control = (rig.config(msix) >> 16) as u16;
    rig.set_config(msix + 2, &(control | 0x4000).to_le_bytes());
    offer(&rig, desc, avail, 2, 0x8000, 32);
    driver.kick(0);
    assert!(vectors(&rig.board).is_empty());
    rig.set_config(msix + 2, &control.to_le_bytes());
    assert_eq!(vectors(&rig.board), [0x41]);
}

#[test]
fn intx_stays_up_until_the_isr_is_read() {
    let (rig, _) = Rig::with("virtio-rnd", true);
    let gsi = rig.pci.routes()[0].gsi;
    let driver = Modern::probe(&rig);
    master(&rig);
    driver.reset();
    driver.add_status(ACKNOWLEDGE);
    driver.add_status(DRIVER);
    driver.negotiate();
    driver.queues(|_| 0xffff);
    driver.add_status(DRIVER_OK);
    offer(&rig, ring(0, 0), ring(0, 1), 0, 0x8000, 32);
    driver.kick(0);
    assert!(rig.board.line(gsi) && rig.board.take_messages().is_empty());
    assert_eq!(rig.config(4) >> 19 & 1, 1, "the status register shows the interrupt");
    assert_eq!(rig.read(driver.isr.at(0, 1), 1), 1);
    assert!(!rig.board.line(gsi));
    assert_eq!(rig.read(driver.isr.at(0, 1), 1), 0);
}

#[test]
fn without_bus_mastering_nothing_moves_until_it_is_on() {
    let (rig, _) = Rig::with("virtio-rnd", true);
    let driver = Modern::probe(&rig);
    driver.reset();
    driver.add_status(ACKNOWLEDGE);
    driver.add_status(DRIVER);
    driver.negotiate();
    driver.queues(|_| 0xffff);
    driver.add_status(DRIVER_OK);
    offer(&rig, ring(0, 0), ring(0, 1), 0, 0x8000, 32);
    driver.kick(0);
    assert_eq!(used_index(&rig, ring(0, 2)), 0);
    master(&rig);
    assert_eq!(used_index(&rig, ring(0, 2)), 1);
    assert_eq!(driver.get(0x14, 1) & 64, 0);
}

#[test]
fn a_broken_ring_needs_a_reset_and_no_more() {
    let (rig, _) = Rig::with("virtio-rnd", true);
    let driver = Modern::probe(&rig);
    master(&rig);
    let start = || {
        driver.reset();
        driver.add_status(ACKNOWLEDGE);
        driver.add_status(DRIVER);
        driver.negotiate();
        enable_msix(&rig, 2);
        driver.set(0x10, 2, 0);
        driver.queues(|_| 1);
        driver.add_status(DRIVER_OK);
    };
    start();
    offer(&rig, ring(0, 0), ring(0, 1), 0, u64::MAX - 8, 32);
    driver.kick(0);
    assert_eq!(driver.get(0x14, 1) & 64, 64, "NEEDS_RESET");
    assert_eq!(vectors(&rig.board), [0x40], "a configuration interrupt says so");
    rig.memory.fill(ring(0, 0), 0, 0x3000).unwrap();
    start();
    offer(&rig, ring(0, 0), ring(0, 1), 0, 0x8000, 32);
    driver.kick(0);
    assert_eq!((used_index(&rig, ring(0, 2)), vectors(&rig.board)), (1, vec![0x41]));
}
