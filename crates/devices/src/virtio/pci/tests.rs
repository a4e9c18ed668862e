use std::sync::atomic::{AtomicUsize, Ordering};

use super::guest::{BLOCKS, Block, Guest, MSI_ADDRESS, wait_for};
use super::*;
use crate::registry::DoorbellAddress;
use crate::testing::{RAM, Rig, hammer};
use crate::virtio::{Kind, Queues, Transport, VirtQueue, feature};

/// Answers with what it reads, reversed. Queue 1 holds its chains until `release`.
#[derive(Default)]
struct Mirror {
    config: Mutex<[u8; 12]>,
    queues: Mutex<Queues>,
    features: Mutex<u64>,
    held: Mutex<Vec<u16>>,
    transport: Mutex<Option<Arc<dyn Transport>>>,
    activations: AtomicUsize,
    resets: AtomicUsize,
    drains: AtomicUsize,
}

impl Mirror {
    fn queue(&self, index: u16) -> Option<Arc<VirtQueue>> {
        self.queues.lock().unwrap().get(usize::from(index)).cloned().flatten()
    }

    fn release(&self) {
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        for head in held {
            let _ = self.queue(1).unwrap().complete(head, 0);
        }
    }

    fn transport(&self) -> Arc<dyn Transport> {
        self.transport.lock().unwrap().clone().unwrap()
    }
}

impl VirtioDevice for Mirror {
    fn kind(&self) -> Kind {
        Kind { id: 2, pci_device: 0x1001, pci_class: [1, 0] }
    }
    fn features(&self) -> u64 {
        0b101 | 1 << 40
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16, 8]
    }
    fn config_len(&self) -> usize {
        12
    }
    fn config_read(&self, offset: usize, data: &mut [u8]) {
        data.copy_from_slice(&self.config.lock().unwrap()[offset..offset + data.len()]);
    }
    fn config_write(&self, offset: usize, data: &[u8], _: u64) {
        self.config.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
    }
    fn attach(&self, transport: Arc<dyn Transport>) {
        *self.transport.lock().unwrap() = Some(transport);
    }
    fn activate(&self, features: u64, queues: Queues) {
        if queues.iter().any(Option::is_some) {
            self.activations.fetch_add(1, Ordering::SeqCst);
        }
        *self.features.lock().unwrap() = features;
        *self.queues.lock().unwrap() = queues;
    }
    fn notify(&self, index: u16) {
        let Some(queue) = self.queue(index) else { return };
        while let Ok(Some(chain)) = queue.pop() {
            if index == 1 {
                self.held.lock().unwrap().push(chain.head);
                continue;
            }
            let mut data = chain.read_all(4096);
            data.reverse();
            let len = chain.write(0, &data);
            let _ = queue.complete(chain.head, len as u32);
        }
        let _ = queue.enable_notifications();
    }
    fn reset(&self) {
        self.release_all();
        self.queues.lock().unwrap().clear();
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
    fn drain(&self) {
        self.release_all();
        self.drains.fetch_add(1, Ordering::SeqCst);
    }
    fn save(&self) -> Result<SavedState, StateError> {
        SavedState::encode(1, &*self.config.lock().unwrap())
    }
    fn restore(&self, state: &SavedState) -> Result<(), StateError> {
        *self.config.lock().unwrap() = state.decode(1)?;
        Ok(())
    }
}

impl Mirror {
    fn release_all(&self) {
        if self.queue(1).is_some() {
            self.release();
        }
    }
}

fn guest_on(rig: Rig, block: Block) -> (Guest, Arc<Mirror>) {
    let device = Arc::new(Mirror::default());
    let function = function(&rig.context, device.clone()).unwrap();
    (Guest::new(rig, function, block), device)
}

fn guest(block: Block) -> (Guest, Arc<Mirror>) {
    guest_on(Rig::new(), block)
}

/// One request on queue 0, and whether the answer is right.
fn works(guest: &Guest, queue: &mut super::guest::Queue) -> bool {
    guest.rig.ram.write(0x10_0000, b"abcdef").unwrap();
    let len = queue.turn(guest, &[(0x10_0000, 2), (0x10_0002, 4)], &[(0x10_1000, 1), (0x10_1001, 9)]);
    let mut answer = [0; 6];
    guest.rig.ram.read(0x10_1000, &mut answer).unwrap();
    guest.rig.ram.fill(0x10_1000, 0, 16).unwrap();
    len == 6 && &answer == b"fedcba"
}

#[test]
fn identity_is_that_of_a_transitional_device() {
    let (guest, _) = guest(Block::Modern);
    let rig = &guest.rig;
    assert_eq!(rig.config_read(3, 0, 4), 0x1001_1af4);
    assert_eq!(rig.config_read(3, 8, 4), 0x0100_0000);
    assert_eq!(rig.config_read(3, 0x2c, 4), 0x0002_1af4);
    assert_eq!(rig.config_read(3, 0x10, 1) & 1, 1);
}

#[test]
fn both_blocks_bring_a_device_up() {
    for block in BLOCKS {
        let (guest, device) = guest(block);
        let offered = guest.offered();
        assert_eq!(offered & 5, 5);
        let legacy_only = feature::NOTIFY_ON_EMPTY | feature::ANY_LAYOUT;
        if block == Block::Legacy {
            assert_eq!(offered & legacy_only, legacy_only);
        } else {
            assert_eq!((offered & legacy_only, offered >> 40), (0, 1));
        }
        assert_eq!([0, 1, 2].map(|index| guest.queue_size(index)), [16, 8, 0]);
        guest.negotiate(4 | feature::EVENT_IDX);
        let mut queue = guest.enable(0, 0x20);
        guest.go();
        assert_eq!(*device.features.lock().unwrap() & 5, 4);
        assert!(device.queue(0).is_some() && device.queue(1).is_none());
        for _ in 0..100 {
            assert!(works(&guest, &mut queue));
        }
        // INTx until the ISR is read.
        assert!(guest.rig.probe.any_line());
        assert_eq!((guest.isr(), guest.isr()), (1, 0));
        assert!(!guest.rig.probe.any_line());
        assert!(guest.messages().is_empty());
        // The device is gone after reset, and comes back.
        guest.set_status(0);
        assert_eq!(device.resets.load(Ordering::SeqCst), 2);
        queue.add(&guest, &[(0x10_0000, 1)], &[]);
        guest.kick(0);
        assert_eq!(queue.used(&guest), None);
        guest.negotiate(0);
        let mut queue = guest.enable(0, 0x40);
        guest.go();
        assert!(works(&guest, &mut queue));
    }
}

#[test]
fn msix_vectors_are_assigned_and_used() {
    for block in BLOCKS {
        let (mut guest, device) = guest(block);
        guest.use_msix();
        guest.negotiate(0);
        assert_eq!(guest.set_config_vector(2), 2);
        assert_eq!(guest.set_queue_vector(0, 1), 1);
        // Three vectors, no fourth.
        assert_eq!(guest.set_queue_vector(1, 3), 0xffff);
        assert_eq!(guest.set_queue_vector(1, 0), 0);
        let mut queue = guest.enable(0, 0x20);
        let mut other = guest.enable(1, 0x28);
        guest.go();
        assert!(works(&guest, &mut queue));
        assert_eq!(guest.messages(), [0x41]);
        other.add(&guest, &[(0x10_0000, 1)], &[]);
        guest.kick(1);
        device.release();
        assert_eq!(guest.messages(), [0x40]);
        device.transport().config_changed();
        assert_eq!(guest.messages(), [0x42]);
        assert_eq!(guest.isr(), 0);
        // Without a vector there is silence.
        guest.set_queue_vector(0, 0xffff);
        assert!(works(&guest, &mut queue));
        assert!(guest.messages().is_empty() && !guest.rig.probe.any_line());
    }
}

#[test]
fn without_msix_there_is_msi() {
    let mut rig = Rig::new();
    rig.context.virtio_msix = false;
    let (guest, _) = guest_on(rig, Block::Legacy);
    assert_eq!(guest.rig.capability(3, 0x11, 0), None);
    let msi = guest.rig.capability(3, 5, 0).unwrap();
    guest.rig.config_write(3, msi + 4, &(MSI_ADDRESS as u32).to_le_bytes());
    guest.rig.config_write(3, msi + 12, &0x33u16.to_le_bytes());
    guest.rig.config_write(3, msi + 2, &[1]);
    guest.negotiate(0);
    let mut queue = guest.enable(0, 0x20);
    guest.go();
    assert!(works(&guest, &mut queue));
    assert_eq!((guest.messages(), guest.isr()), (vec![0x33], 1));
    assert!(!guest.rig.probe.any_line());
}

#[test]
fn configuration_space_and_its_generation() {
    for block in BLOCKS {
        let (mut guest, device) = guest(block);
        *device.config.lock().unwrap() = *b"0123456789ab";
        for msix in [false, true] {
            if msix {
                guest.use_msix();
            }
            assert_eq!(guest.config(0, 4).to_le_bytes(), *b"0123");
            assert_eq!(guest.config(10, 2) as u16, u16::from_le_bytes(*b"ab"));
            // Beyond the end there are 1s and nothing to write.
            assert_eq!(guest.config(10, 4) >> 16, 0xffff);
            guest.set_config(10, 0x6564_6362, 4);
            assert_eq!(guest.config(9, 1), u32::from(b'9'));
            assert_eq!(guest.config(10, 2) as u16, 0x6362);
            device.config.lock().unwrap()[10..].copy_from_slice(b"ab");
        }
    }
    let (guest, device) = guest(Block::Modern);
    let before = guest.generation();
    assert_eq!(guest.generation(), before);
    device.config.lock().unwrap()[3] = 7;
    assert_ne!(guest.generation(), before);
}

#[test]
fn features_are_agreed_on_or_refused() {
    let (guest, _) = guest(Block::Modern);
    for (features, good) in [
        (feature::VERSION_1, true),
        (feature::VERSION_1 | 1 << 40, true),
        (feature::VERSION_1 | 1 << 41, false),
        (feature::VERSION_1 | 2, false),
        (0, false),
        (5, false),
    ] {
        guest.set_status(0);
        guest.set_status(3);
        guest.accept(features);
        guest.set_status(0xb);
        assert_eq!(guest.status() & 8 != 0, good, "{features:#x}");
        if good {
            // Too late to change.
            guest.accept(0);
            guest.set_status(0xf);
            assert_eq!(guest.status(), 0xf);
        }
    }
    // Ready without agreement: broken.
    guest.set_status(0);
    guest.accept(feature::VERSION_1);
    guest.set_status(7);
    assert_eq!(guest.status(), 0x47);
}

#[test]
fn a_hostile_driver_breaks_only_its_device() {
    for block in BLOCKS {
        let (guest, device) = guest(block);
        guest.negotiate(0);
        let mut queue = guest.enable(0, 0x20);
        guest.go();
        let ring = queue.ring;
        queue.add(&guest, &[(0x10_0000, 4)], &[]);
        // A loop.
        guest.rig.ram.store_u16(ring.desc + 12, 1, Ordering::SeqCst).unwrap();
        guest.kick(0);
        assert_eq!(guest.status() & 0x40, 0x40);
        assert_eq!(guest.isr(), 2);
        assert!(!device.queue(0).unwrap().alive());
        guest.kick(0);
        assert_eq!((guest.isr(), queue.used(&guest)), (0, None));
        guest.negotiate(0);
        let mut queue = guest.enable(0, 0x20);
        guest.go();
        assert!(works(&guest, &mut queue));
        // Rings outside RAM.
        guest.negotiate(0);
        guest.enable(0, 0x20);
        if block == Block::Legacy {
            guest.rig.bus.port_write(guest.rig.bar(3, 0) as u16 + 8, &(RAM as u32 >> 12).to_le_bytes());
        } else {
            guest.rig.bus.memory_write(guest.rig.bar(3, 4) + 0x24, &1u32.to_le_bytes());
        }
        guest.go();
        assert_eq!(guest.status() & 0x40, 0x40);
    }
}

#[test]
fn bus_mastering_off_stops_and_on_goes_on() {
    for block in BLOCKS {
        let (guest, device) = guest(block);
        guest.negotiate(0);
        let mut queue = guest.enable(0, 0x20);
        let mut held = guest.enable(1, 0x28);
        guest.go();
        held.add(&guest, &[(0x10_0000, 1)], &[]);
        guest.kick(1);
        assert_eq!(held.used(&guest), None);
        guest.rig.config_write(3, 4, &[3]);
        // What was in flight has been finished first.
        assert!(held.used(&guest).is_some());
        assert_eq!(device.drains.load(Ordering::SeqCst), 1);
        queue.add(&guest, &[(0x10_0000, 4)], &[(0x10_1000, 4)]);
        guest.kick(0);
        assert_eq!(queue.used(&guest), None);
        assert_eq!(guest.status() & 0x40, 0);
        guest.rig.config_write(3, 4, &[7]);
        assert!(queue.used(&guest).is_some());
        assert!(works(&guest, &mut queue));
    }
}

#[test]
fn a_queue_in_use_can_not_be_moved_but_removed() {
    let (guest, device) = guest(Block::Legacy);
    guest.negotiate(0);
    let mut queue = guest.enable(0, 0x20);
    let mut held = guest.enable(1, 0x28);
    guest.go();
    held.add(&guest, &[(0x10_0000, 1)], &[]);
    guest.kick(1);
    let pfn = guest.rig.bar(3, 0) as u16 + 8;
    guest.queue_size(1);
    guest.rig.bus.port_write(pfn, &0x99u32.to_le_bytes());
    let mut data = [0; 4];
    guest.rig.bus.port_read(pfn, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x28);
    guest.rig.bus.port_write(pfn, &[0; 4]);
    assert!(held.used(&guest).is_some());
    assert!(!device.queue(1).unwrap().alive());
    assert!(works(&guest, &mut queue));
}

#[test]
fn the_window_in_configuration_space_reaches_the_registers() {
    let (guest, device) = guest(Block::Modern);
    let rig = &guest.rig;
    let window = (0..)
        .map_while(|nth| rig.capability(3, 9, nth))
        .find(|at| rig.config_read(3, at + 3, 1) == 5)
        .unwrap();
    let point = |bar: u8, offset: u32, len: u32| {
        rig.config_write(3, window + 4, &[bar]);
        rig.config_write(3, window + 8, &offset.to_le_bytes());
        rig.config_write(3, window + 12, &len.to_le_bytes());
    };
    *device.config.lock().unwrap() = *b"0123456789ab";
    point(4, 0x2004, 4);
    assert_eq!(rig.config_read(3, window + 16, 4).to_le_bytes(), *b"4567");
    rig.config_write(3, window + 16, b"wxyz");
    assert_eq!(*device.config.lock().unwrap(), *b"0123wxyz89ab");
    point(4, 0x14, 1);
    rig.config_write(3, window + 16, &[1]);
    assert_eq!(guest.status(), 1);
    // Places that do not exist.
    for (bar, offset, len) in
        [(1, 0, 4), (4, 0x4000, 4), (4, 0x3ffe, 4), (4, 0x2000, 3), (4, 1, 2), (9, 0, 1)]
    {
        point(bar, offset, len);
        rig.config_write(3, window + 16, &[0xff; 4]);
        rig.config_read(3, window + 16, 4);
    }
    assert_eq!(*device.config.lock().unwrap(), *b"0123wxyz89ab");
}

#[test]
fn saved_devices_go_on_elsewhere() {
    for block in BLOCKS {
        let (mut guest, device) = guest(block);
        guest.use_msix();
        guest.negotiate(4);
        guest.set_queue_vector(0, 1);
        let mut queue = guest.enable(0, 0x20);
        guest.go();
        for _ in 0..5 {
            assert!(works(&guest, &mut queue));
        }
        *device.config.lock().unwrap() = *b"0123456789ab";
        guest.function.drain();
        let (function_state, bus_state) = (guest.function.save().unwrap(), guest.rig.pci.save().unwrap());

        // The same machine, as another process would build it, with the RAM carried over.
        let (mut other, other_device) = self::guest(block);
        let mut ram = vec![0; 0x20_0000];
        guest.rig.ram.read(0, &mut ram).unwrap();
        other.rig.ram.write(0, &ram).unwrap();
        other.function.restore(&function_state).unwrap();
        other.rig.pci.restore(&bus_state).unwrap();
        other.use_msix();
        assert_eq!(*other_device.config.lock().unwrap(), *b"0123456789ab");
        assert_eq!(*other_device.features.lock().unwrap() & 5, 4);
        for _ in 0..20 {
            assert!(works(&other, &mut queue));
        }
        assert!(other.messages().contains(&0x41));
        // The first goes on too.
        guest.function.resume();
        assert!(queue.ring.size == 16 && guest.status() & 4 != 0);

        // Chains in flight can't be saved, damaged states not be taken.
        let mut bad = function_state.clone();
        bad.data.truncate(40);
        assert!(other.function.restore(&bad).is_err());
        assert_eq!(other.status(), 0);
    }
}

#[test]
fn what_is_in_flight_is_not_saved() {
    let (guest, device) = guest(Block::Legacy);
    guest.negotiate(0);
    let mut held = guest.enable(1, 0x28);
    guest.go();
    held.add(&guest, &[(0x10_0000, 1)], &[]);
    guest.kick(1);
    assert!(guest.function.save().is_err());
    device.release();
    assert!(guest.function.save().is_ok());
}

#[test]
fn doorbells_follow_the_bars() {
    for block in BLOCKS {
        let rig = Rig::new();
        *rig.probe.doorbells.lock().unwrap() = Some(Vec::new());
        let (guest, _) = guest_on(rig, block);
        guest.negotiate(0);
        let mut queue = guest.enable(0, 0x20);
        guest.go();
        let bell = |guest: &Guest| match block {
            Block::Legacy => {
                let port = guest.rig.bar(3, 0) as u16 + 16;
                DoorbellAddress::Port { port, size: 2, value: Some(0) }
            }
            Block::Modern => {
                let gpa = guest.rig.bar(3, 4) + 0x3000;
                DoorbellAddress::Memory { gpa, size: 2, value: None }
            }
        };
        let ring = |queue: &mut super::guest::Queue| {
            queue.add(&guest, &[(0x10_0000, 4)], &[(0x10_1000, 4)]);
            assert!(guest.rig.probe.ring(bell(&guest)));
            wait_for(|| queue.used(&guest));
        };
        ring(&mut queue);
        let old = bell(&guest);
        guest.rig.config_write(3, 0x10, &0x3000u32.to_le_bytes());
        guest.rig.config_write(3, 0x20, &0xd000_0000u32.to_le_bytes());
        assert!(!guest.rig.probe.ring(old));
        ring(&mut queue);
        // Two queues in two blocks; none while the spaces are off.
        let count = || guest.rig.probe.doorbells.lock().unwrap().as_ref().unwrap().len();
        assert_eq!(count(), 4);
        guest.rig.config_write(3, 4, &[0]);
        assert_eq!(count(), 0);
    }
}

#[test]
fn random_accesses_with_traffic() {
    let (guest, device) = guest(Block::Modern);
    hammer(&guest.rig, &guest.function, 1_000_000);
    // Chance alone brings the device up often enough to be a test.
    let activations = device.activations.load(Ordering::SeqCst);
    assert!(activations > 10, "{activations}");
    guest.function.reset();
    guest.rig.pci.assign(RAM).unwrap();
    guest.rig.config_write(3, 4, &[7]);
    let (function, rig) = (guest.function, guest.rig);
    let again = Guest::on(rig, function, Block::Modern);
    again.negotiate(0);
    let mut queue = again.enable(0, 0x20);
    again.go();
    assert!(works(&again, &mut queue));
}

#[test]
fn the_entropy_source_fills_buffers() {
    for block in BLOCKS {
        let rig = Rig::new();
        let function = rig.build(3, "virtio-rnd", &[]).unwrap();
        let guest = Guest::new(rig, function, block);
        assert_eq!((guest.rig.config_read(3, 2, 2), guest.queue_size(0)), (0x1005, 64));
        guest.negotiate(0);
        let mut queue = guest.enable(0, 0x20);
        guest.go();
        let mut draws = Vec::new();
        for _ in 0..2 {
            let len = queue.turn(&guest, &[], &[(0x10_0000, 16), (0x10_0800, 48)]);
            assert_eq!(len, 64);
            let mut bytes = [0; 48];
            guest.rig.ram.read(0x10_0800, &mut bytes).unwrap();
            draws.push(bytes);
        }
        assert_ne!(draws[0], draws[1]);
        assert_ne!(draws[0], [0; 48]);
        // Large requests get a part, requests without room are an error.
        assert_eq!(queue.turn(&guest, &[], &[(0x10_0000, 0x10_0000)]), 4096);
        queue.add(&guest, &[(0x10_0000, 4)], &[]);
        guest.kick(0);
        assert_eq!(guest.status() & 0x40, 0x40);
    }
}
