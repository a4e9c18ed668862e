use std::time::Duration;

use host::net::{PairPeer, pair};

use super::super::feature::{EVENT_IDX, VERSION_1};
use super::super::test_driver::{Driver, Owner, ram};
use super::features::{CSUM, GUEST_CSUM, MRG_RXBUF};
use super::*;

const BUFFERS: u64 = 1 << 20;
const TIMEOUT: Duration = Duration::from_secs(20);
const ALL: Offloads = Offloads { checksum: true, tso4: true, tso6: true, ecn: true, ufo: true };

struct Bench {
    device: VirtioNet,
    peer: PairPeer,
    receive: Driver,
    transmit: Driver,
    header: usize,
}

impl Bench {
    fn new(features: u64, size: u16) -> Self {
        let (backend, peer) = pair(ALL).unwrap();
        let mac = MacAddress::try_from([2, 0, 0, 0, 0, 1]).unwrap();
        let device = VirtioNet::new(Arc::new(backend), mac, None).unwrap();
        let (ram, owner) = (ram(), Arc::new(Owner::default()));
        device.attach(owner.clone());
        let receive = Driver::new(&ram, &owner, 0, size, features);
        let transmit = Driver::new(&ram, &Arc::new(Owner::default()), 1, size, features);
        device.activate(features, vec![Some(receive.queue.clone()), Some(transmit.queue.clone())]);
        device.notify(0);
        device.notify(1);
        let header = if features & (VERSION_1 | MRG_RXBUF) == 0 { 10 } else { 12 };
        Self { device, peer, receive, transmit, header }
    }

    fn kick(&mut self, index: u16) {
        let driver = if index == 0 { &mut self.receive } else { &mut self.transmit };
        if driver.must_kick() {
            self.device.notify(index);
        }
    }

    /// Gives the device a receive buffer of `len` bytes in place `n`.
    fn add_buffer(&mut self, n: u64, len: u32) -> u16 {
        let head = self.receive.add(&[], &[(BUFFERS + n * 0x1000, len)]);
        self.kick(0);
        head
    }

    fn send(&mut self, n: u64, payload: &[u8]) {
        let at = BUFFERS + (4 << 20) + n * 0x1000;
        self.transmit.ram.fill(at, 0, self.header as u64).unwrap();
        self.transmit.ram.write(at + self.header as u64, payload).unwrap();
        // The header in a descriptor of its own, as old drivers have it.
        self.transmit.add(&[(at, self.header as u32), (at + self.header as u64, payload.len() as u32)], &[]);
        self.kick(1);
    }
}

fn payload(n: u32, len: usize) -> Vec<u8> {
    let mut data = vec![n as u8; len];
    data[..4].copy_from_slice(&n.to_le_bytes());
    data
}

#[test]
fn frames_go_both_ways_with_either_header() {
    for features in [0, MRG_RXBUF, VERSION_1, VERSION_1 | MRG_RXBUF, VERSION_1 | MRG_RXBUF | EVENT_IDX] {
        let mut bench = Bench::new(features, 64);
        assert_eq!(bench.peer.header_len(), bench.header);
        bench.send(0, &payload(1, 60));
        let sent = bench.peer.receive(TIMEOUT).unwrap();
        assert_eq!((sent.len(), &sent[bench.header..]), (60 + bench.header, &payload(1, 60)[..]));
        assert_eq!(bench.transmit.wait_used().1, 0);

        let head = bench.add_buffer(0, 1526);
        let mut frame = vec![0; bench.header];
        frame.extend(payload(2, 100));
        bench.peer.send(&frame).unwrap();
        assert_eq!(bench.receive.wait_used(), (head, frame.len() as u32));
        if bench.header == 12 {
            frame[10] = 1;
        }
        assert_eq!(bench.receive.bytes(BUFFERS, frame.len()), frame);
    }
}

#[test]
fn a_long_frame_fills_several_buffers_that_appear_together() {
    let features = VERSION_1 | MRG_RXBUF | CSUM | GUEST_CSUM;
    let mut bench = Bench::new(features, 64);
    for n in 0..4 {
        bench.add_buffer(n, 600);
    }
    let mut frame = vec![0; 12];
    frame.extend((0..1500).map(|i| i as u8));
    bench.peer.send(&frame).unwrap();
    let lens: Vec<u32> = (0..3).map(|_| bench.receive.wait_used().1).collect();
    assert_eq!(lens, [600, 600, 312]);
    frame[10] = 3;
    let got: Vec<u8> =
        (0..3).flat_map(|n| bench.receive.bytes(BUFFERS + n * 0x1000, lens[n as usize] as usize)).collect();
    assert_eq!(got, frame);
}

#[test]
fn offloads_follow_the_driver() {
    let bench = Bench::new(VERSION_1, 64);
    assert_eq!(bench.peer.offloads(), Offloads::default());
    let features = bench.device.features();
    bench.device.reset();
    bench.device.activate(features, vec![]);
    assert_eq!(bench.peer.offloads(), ALL);
    bench.device.reset();
    assert_eq!(bench.peer.offloads(), Offloads::default());
}

/// Both directions at full speed with short rings, sleeping whenever the device lets us: a lost
/// notification or interrupt makes this stop.
#[test]
fn no_wake_up_is_lost() {
    const FRAMES: u32 = 20_000;
    for features in [VERSION_1 | MRG_RXBUF, VERSION_1 | MRG_RXBUF | EVENT_IDX] {
        let Bench { device, peer, mut receive, mut transmit, header } = Bench::new(features, 8);
        let (device, peer) = (&device, &peer);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for n in 0..FRAMES {
                    let mut frame = vec![0; header];
                    frame.extend(payload(n, 64));
                    peer.send(&frame).unwrap();
                }
            });
            scope.spawn(move || {
                for n in 0..FRAMES {
                    let frame = peer.receive(TIMEOUT).unwrap();
                    assert_eq!(frame[header..], payload(n, 64));
                }
            });
            scope.spawn(move || {
                for n in 0..FRAMES {
                    while transmit.free() < 2 {
                        transmit.wait_used();
                    }
                    let at = BUFFERS + (4 << 20) + u64::from(n % 8) * 0x1000;
                    // The slot is free: at most four chains of two fit the ring.
                    transmit.ram.write(at, &vec![0; header]).unwrap();
                    transmit.ram.write(at + header as u64, &payload(n, 64)).unwrap();
                    transmit.add(&[(at, 20), (at + 20, header as u32 + 44)], &[]);
                    if transmit.must_kick() {
                        device.notify(TRANSMIT);
                    }
                }
            });
            scope.spawn(move || {
                let mut places = vec![0; 8];
                let mut add = |receive: &mut Driver, place: u64| {
                    let head = receive.add(&[], &[(BUFFERS + place * 0x1000, 200)]);
                    places[usize::from(head)] = place;
                    if receive.must_kick() {
                        device.notify(RECEIVE);
                    }
                    places.clone()
                };
                let mut now = Vec::new();
                for place in 0..8 {
                    now = add(&mut receive, place);
                }
                for n in 0..FRAMES {
                    let (head, len) = receive.wait_used();
                    let place = now[usize::from(head)];
                    assert_eq!(len as usize, header + 64);
                    let data = receive.bytes(BUFFERS + place * 0x1000 + header as u64, 64);
                    assert_eq!(data, payload(n, 64));
                    now = add(&mut receive, place);
                }
            });
        });
    }
}

#[test]
fn hostile_chains_stop_the_queue_only() {
    let mut bench = Bench::new(VERSION_1 | MRG_RXBUF, 64);
    bench.transmit.add(&[(BUFFERS, 11)], &[]);
    bench.kick(1);
    while bench.transmit.queue.alive() {
        std::thread::yield_now();
    }
    assert!(bench.transmit.owner.faults()[0].contains("without a header"));
    // The other direction goes on.
    let head = bench.add_buffer(0, 1526);
    bench.peer.send(&[0; 100]).unwrap();
    assert_eq!(bench.receive.wait_used(), (head, 100));
    bench.add_buffer(1, 11);
    while bench.receive.queue.alive() {
        std::thread::yield_now();
    }
    assert!(bench.receive.owner.faults()[0].contains("without room"));
    bench.device.reset();
}

#[test]
fn draining_gives_unused_buffers_back() {
    let mut bench = Bench::new(VERSION_1 | MRG_RXBUF, 64);
    for n in 0..4 {
        bench.add_buffer(n, 1526);
    }
    // The thread has taken buffers to wait with.
    while bench.receive.queue.position().is_some() {
        std::thread::yield_now();
    }
    bench.receive.queue.pause(true);
    bench.device.drain();
    assert_eq!(bench.receive.queue.position().map(|p| (p.next_avail, p.next_used)), Some((0, 0)));
    bench.receive.queue.pause(false);
    bench.device.notify(0);
    bench.peer.send(&[0; 100]).unwrap();
    assert_eq!(bench.receive.wait_used().1, 100);
}

#[test]
fn the_tree_says_which_back_end_address_and_mtu() {
    let open = |pairs: &[(&str, &str)]| {
        let mut tree = config::Tree::new();
        for (key, value) in pairs {
            tree.set(&format!("pci.0.2.0.{key}"), value).unwrap();
        }
        VirtioNet::open(&tree.node("pci.0.2.0"), 2, 0, "vm").err().unwrap().to_string()
    };
    assert!(open(&[]).contains("backend is missing"));
    assert!(open(&[("backend", "slirp")]).contains("slirp is not available"));
    assert!(open(&[("backend", "tap0"), ("mac", "01:00:00:00:00:00")]).contains("multicast"));
    assert!(open(&[("backend", "tap0"), ("mtu", "67")]).contains("68 to 65535"));
}
