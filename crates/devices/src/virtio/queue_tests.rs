use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use memory::{Backing, GuestMemory};

use super::*;
use crate::testing::Random;
use crate::virtio::test_driver::{Driver, Owner, ram};

const ALL: u64 = feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC;

#[test]
fn chains_go_round_with_and_without_event_index() {
    for features in [0, feature::EVENT_IDX] {
        let (memory, owner) = (ram(), Arc::new(Owner::default()));
        let mut driver = Driver::new(&memory, &owner, 0, 8, features);
        // Far enough for all indices to wrap.
        for round in 0..70_000u32 {
            let at = 0x10_0000 + u64::from(round % 16) * 256;
            memory.write(at, &round.to_le_bytes()).unwrap();
            let head = driver.add(&[(at, 3), (at + 3, 5)], &[(at + 64, 2), (at + 66, 30)]);
            let chain = driver.queue.pop().unwrap().unwrap();
            assert_eq!((chain.head, chain.readable_len(), chain.writable_len()), (head, 8, 32));
            let mut word = [0; 4];
            assert_eq!(chain.read(0, &mut word), 4);
            assert_eq!(word, round.to_le_bytes());
            assert_eq!(chain.write(1, &word), 4);
            driver.queue.complete(chain.head, 5).unwrap();
            assert_eq!(driver.used(), Some((head, 5)));
            assert_eq!(driver.bytes(at + 65, 4), word);
            assert!(driver.queue.pop().unwrap().is_none());
        }
        assert_eq!(owner.faults(), Vec::<String>::new());
    }
}

#[test]
fn interrupts_are_sent_when_they_are_wanted() {
    let (memory, owner) = (ram(), Arc::new(Owner::default()));
    let count = |owner: &Owner| owner.interrupts.swap(0, Ordering::SeqCst);
    let mut driver = Driver::new(&memory, &owner, 0, 8, 0);
    let avail = RingConfig::legacy(8, 0).avail;
    let turn = |driver: &mut Driver| {
        driver.add(&[(0x10_0000, 1)], &[]);
        let head = driver.queue.pop().unwrap().unwrap().head;
        driver.queue.complete(head, 0).unwrap();
        driver.used().unwrap();
    };
    turn(&mut driver);
    assert_eq!(count(&owner), 1);
    memory.store_u16(avail, 1, Ordering::SeqCst).unwrap();
    turn(&mut driver);
    assert_eq!(count(&owner), 0);
    // Nothing new, nothing to say.
    memory.store_u16(avail, 0, Ordering::SeqCst).unwrap();
    driver.queue.signal().unwrap();
    assert_eq!(count(&owner), 0);

    // Event index: only when the used index passes it, over the wrap too.
    let mut driver = Driver::new(&memory, &owner, 1, 8, feature::EVENT_IDX);
    let event = RingConfig::legacy(8, 16).avail + 4 + 16;
    for wanted in (3..0x1_0008u32).step_by(5) {
        memory.store_u16(event, wanted as u16, Ordering::SeqCst).unwrap();
        while count(&owner) == 0 {
            turn(&mut driver);
        }
        let used = memory.load_u16(RingConfig::legacy(8, 16).used + 2, Ordering::SeqCst).unwrap();
        assert_eq!(used, (wanted as u16).wrapping_add(1));
    }
}

#[test]
fn a_batch_appears_at_once() {
    let (memory, owner) = (ram(), Arc::new(Owner::default()));
    let mut driver = Driver::new(&memory, &owner, 0, 8, 0);
    let done: Vec<_> = (0..3).map(|i| (driver.add(&[], &[(0x10_0000, 8)]), i)).collect();
    for _ in 0..3 {
        driver.queue.pop().unwrap().unwrap();
    }
    driver.queue.complete_all(&done).unwrap();
    assert_eq!(owner.interrupts.load(Ordering::SeqCst), 1);
    assert_eq!(
        [driver.used(), driver.used(), driver.used(), driver.used()].map(|u| u.map(|u| u.1)),
        [Some(0), Some(1), Some(2), None]
    );
}

#[test]
fn an_empty_ring_interrupts_a_legacy_driver_that_asked_for_it() {
    let (memory, owner) = (ram(), Arc::new(Owner::default()));
    let mut driver = Driver::new(&memory, &owner, 0, 8, feature::NOTIFY_ON_EMPTY);
    memory.store_u16(RingConfig::legacy(8, 0).avail, 1, Ordering::SeqCst).unwrap();
    driver.add(&[(0x10_0000, 1)], &[]);
    driver.add(&[(0x10_0000, 1)], &[]);
    let first = driver.queue.pop().unwrap().unwrap();
    driver.queue.complete(first.head, 0).unwrap();
    assert_eq!(owner.interrupts.load(Ordering::SeqCst), 0);
    let second = driver.queue.pop().unwrap().unwrap();
    driver.queue.complete(second.head, 0).unwrap();
    assert_eq!(owner.interrupts.load(Ordering::SeqCst), 1);
}

#[test]
fn rewound_chains_come_again_and_retired_queues_are_silent() {
    let (memory, owner) = (ram(), Arc::new(Owner::default()));
    let mut driver = Driver::new(&memory, &owner, 0, 8, 0);
    let heads: Vec<_> = (0..3).map(|_| driver.add(&[(0x10_0000, 1)], &[])).collect();
    for head in &heads {
        assert_eq!(driver.queue.pop().unwrap().unwrap().head, *head);
    }
    assert_eq!(driver.queue.position(), None);
    driver.queue.rewind(2);
    driver.queue.complete(heads[0], 0).unwrap();
    assert_eq!(driver.queue.position(), Some(RingPosition { next_avail: 1, next_used: 1 }));
    driver.queue.pause(true);
    assert!(driver.queue.pop().unwrap().is_none());
    assert!(!driver.queue.has_work().unwrap());
    driver.queue.pause(false);
    assert!(driver.queue.enable_notifications().unwrap());
    assert_eq!(driver.queue.pop().unwrap().unwrap().head, heads[1]);
    driver.queue.retire();
    driver.queue.complete(heads[1], 0).unwrap();
    assert!(driver.queue.pop().unwrap().is_none());
    assert_eq!(driver.used().map(|u| u.0), Some(heads[0]));
    assert_eq!(driver.used(), None);
    driver.queue.wait_idle();
}

#[test]
fn notifications_are_asked_for_and_not() {
    for features in [0, feature::EVENT_IDX] {
        let (memory, owner) = (ram(), Arc::new(Owner::default()));
        let mut driver = Driver::new(&memory, &owner, 0, 8, features);
        assert!(!driver.queue.enable_notifications().unwrap());
        driver.add(&[(0x10_0000, 1)], &[]);
        assert!(driver.must_kick());
        driver.queue.disable_notifications().unwrap();
        driver.add(&[(0x10_0000, 1)], &[]);
        assert!(!driver.must_kick());
        // There is work now, and the driver will say nothing of it.
        assert!(driver.queue.enable_notifications().unwrap());
    }
}

/// Writes one descriptor.
fn descriptor(memory: &GuestMemory, at: u64, address: u64, len: u32, flags: u16, next: u16) {
    memory.write(at, &address.to_le_bytes()).unwrap();
    memory.write(at + 8, &len.to_le_bytes()).unwrap();
    memory.write(at + 12, &flags.to_le_bytes()).unwrap();
    memory.write(at + 14, &next.to_le_bytes()).unwrap();
}

fn queue_at(memory: &GuestMemory, features: u64) -> (Arc<Owner>, VirtQueue, RingConfig) {
    let owner = Arc::new(Owner::default());
    let config = RingConfig { size: 8, desc: 0, avail: 0x1000, used: 0x2000 };
    let dma = DmaMemory::new(memory.clone());
    dma.set_enabled(true);
    let queue = VirtQueue::new(5, config, RingPosition::default(), features, dma, owner.clone()).unwrap();
    (owner, queue, config)
}

type Setup = fn(&GuestMemory);

#[test]
fn hostile_rings_break_the_queue_and_nothing_else() {
    let cases: &[(&str, Setup)] = &[
        ("loop of one", |m| descriptor(m, 0, 0x3000, 8, 1, 0)),
        ("loop of two", |m| {
            descriptor(m, 0, 0x3000, 8, 1, 1);
            descriptor(m, 16, 0x3000, 8, 1, 0);
        }),
        ("zero length", |m| descriptor(m, 0, 0x3000, 0, 0, 0)),
        ("past the end of RAM", |m| descriptor(m, 0, (16 << 20) - 4, 8, 0, 0)),
        ("the end of the address space", |m| descriptor(m, 0, u64::MAX - 3, 8, 2, 0)),
        ("longer than RAM", |m| descriptor(m, 0, 0, u32::MAX, 2, 0)),
        ("next that does not exist", |m| descriptor(m, 0, 0x3000, 8, 1, 8)),
        ("head that does not exist", |m| m.store_u16(0x1004, 8, Ordering::SeqCst).unwrap()),
        ("read after write", |m| {
            descriptor(m, 0, 0x3000, 8, 3, 1);
            descriptor(m, 16, 0x3000, 8, 0, 0);
        }),
        ("more available than there is room", |m| m.store_u16(0x1002, 9, Ordering::SeqCst).unwrap()),
        ("indirect and next", |m| descriptor(m, 0, 0x5000, 16, 5, 1)),
        ("indirect of odd length", |m| descriptor(m, 0, 0x5000, 24, 4, 0)),
        ("empty indirect", |m| descriptor(m, 0, 0x5000, 0, 4, 0)),
        ("huge indirect", |m| descriptor(m, 0, 0x5000, 16 * 2048, 4, 0)),
        ("indirect outside RAM", |m| descriptor(m, 0, 1 << 40, 16, 4, 0)),
        ("indirect in indirect", |m| {
            descriptor(m, 0, 0x5000, 32, 4, 0);
            descriptor(m, 0x5000, 0x6000, 16, 4, 0);
        }),
        ("loop in indirect", |m| {
            descriptor(m, 0, 0x5000, 32, 4, 0);
            descriptor(m, 0x5000, 0x6000, 16, 1, 1);
            descriptor(m, 0x5010, 0x6000, 16, 1, 0);
        }),
        ("next outside the indirect table", |m| {
            descriptor(m, 0, 0x5000, 32, 4, 0);
            descriptor(m, 0x5000, 0x6000, 16, 1, 2);
        }),
        ("more than 4 GiB in all", |m| {
            descriptor(m, 0, 0x5000, 16 * 512, 4, 0);
            for i in 0..512 {
                descriptor(m, 0x5000 + 16 * u64::from(i), 0, 16 << 20, 1, i + 1);
            }
        }),
    ];
    for (name, setup) in cases {
        let memory = ram();
        let (owner, queue, _) = queue_at(&memory, ALL);
        descriptor(&memory, 0, 0x3000, 8, 0, 0);
        memory.store_u16(0x1002, 1, Ordering::SeqCst).unwrap();
        setup(&memory);
        assert!(queue.pop().is_err(), "{name}");
        assert_eq!(owner.faults().len(), 1, "{name}");
        assert!(!queue.alive());
        // A dead queue says no more and takes nothing.
        assert!(queue.pop().unwrap().is_none());
        queue.complete(0, 1).unwrap();
        assert_eq!(memory.load_u16(0x2002, Ordering::SeqCst).unwrap(), 0);
        assert_eq!(owner.faults().len(), 1);
    }
}

#[test]
fn the_same_chain_again_and_again_is_bounded() {
    let memory = ram();
    let (owner, queue, _) = queue_at(&memory, ALL);
    descriptor(&memory, 0, 0x3000, 8, 0, 0);
    for round in 1..=8 {
        memory.store_u16(0x1002, round, Ordering::SeqCst).unwrap();
        assert!(queue.pop().unwrap().is_some());
    }
    memory.store_u16(0x1002, 9, Ordering::SeqCst).unwrap();
    assert!(matches!(queue.pop(), Err(QueueError::InFlight)));
    assert_eq!(owner.faults().len(), 1);
    // Giving back more than was taken is our own mistake, and harmless.
    let (_, queue, _) = queue_at(&memory, ALL);
    assert!(queue.complete(0, 0).is_err());
}

#[test]
fn indirect_tables_work_where_they_may_be() {
    let memory = ram();
    // After direct descriptors, and with the write flag, which has no meaning there (2.7.5.3.2).
    descriptor(&memory, 0, 0x3000, 8, 1, 1);
    descriptor(&memory, 16, 0x5000, 48, 6, 0);
    descriptor(&memory, 0x5000, 0x3100, 4, 1, 2);
    descriptor(&memory, 0x5020, 0x3200, 6, 2, 0);
    memory.store_u16(0x1002, 1, Ordering::SeqCst).unwrap();
    let (_, queue, _) = queue_at(&memory, ALL);
    let chain = queue.pop().unwrap().unwrap();
    let places = |slices: &[GuestSlice]| slices.iter().map(|s| (s.gpa(), s.len())).collect::<Vec<_>>();
    assert_eq!(places(&chain.readable), [(0x3000, 8), (0x3100, 4)]);
    assert_eq!(places(&chain.writable), [(0x3200, 6)]);
    let (_, queue, _) = queue_at(&memory, feature::VERSION_1);
    assert!(matches!(queue.pop(), Err(QueueError::Indirect)));
}

#[test]
fn rings_must_be_aligned_and_in_ram() {
    let memory = ram();
    let owner = Arc::new(Owner::default());
    let good = RingConfig { size: 8, desc: 0, avail: 0x1000, used: 0x2000 };
    let make = |config| {
        let dma = DmaMemory::new(memory.clone());
        VirtQueue::new(0, config, RingPosition::default(), ALL, dma, owner.clone()).map(drop)
    };
    assert!(make(good).is_ok());
    let end = 16 << 20;
    for bad in [
        RingConfig { size: 0, ..good },
        RingConfig { size: 7, ..good },
        RingConfig { size: 65535, ..good },
        RingConfig { desc: 8, ..good },
        RingConfig { avail: 0x1001, ..good },
        RingConfig { used: 0x2002, ..good },
        RingConfig { desc: end - 112, ..good },
        RingConfig { avail: end - 20, ..good },
        RingConfig { used: end - 68, ..good },
        RingConfig { used: u64::MAX - 3, ..good },
    ] {
        assert!(make(bad).is_err(), "{bad:?}");
    }
    assert!(make(RingConfig { avail: end - 22, ..good }).is_ok());
}

#[test]
fn without_dma_there_is_nothing_and_no_fault() {
    let memory = ram();
    let owner = Arc::new(Owner::default());
    let config = RingConfig { size: 8, desc: 0, avail: 0x1000, used: 0x2000 };
    let dma = DmaMemory::new(memory.clone());
    let queue = VirtQueue::new(0, config, RingPosition::default(), ALL, dma.clone(), owner.clone()).unwrap();
    descriptor(&memory, 0, 0x3000, 8, 0, 0);
    memory.store_u16(0x1002, 1, Ordering::SeqCst).unwrap();
    assert!(queue.pop().unwrap().is_none());
    dma.set_enabled(true);
    assert!(queue.pop().unwrap().is_some());
    assert!(owner.faults().is_empty());
}

/// What every chain must be, whatever the rings hold.
fn check(chain: &Chain) {
    let total = chain.readable_len() + chain.writable_len();
    assert!(total > 0 && u32::try_from(total).is_ok());
    assert!(chain.readable.len() + chain.writable.len() <= 8 + MAX_INDIRECT as usize);
    for slice in chain.readable.iter().chain(&chain.writable) {
        assert!(!slice.is_empty() && slice.gpa() + slice.len() as u64 <= 16 << 20);
    }
}

#[test]
fn random_rings() {
    let mut random = Random(7);
    let memory = ram();
    let mut popped = 0;
    for _ in 0..20_000 {
        let (_, queue, _) = queue_at(&memory, ALL);
        for at in (0..128).chain(0x5000..0x5100).step_by(16) {
            let address = random.next() % (17 << 20);
            let len =
                (random.next() % 0x3000) as u32 & if random.next().is_multiple_of(4) { !15 } else { !0 };
            let flags = (random.next() % 8) as u16 & !(if random.next().is_multiple_of(2) { 4 } else { 0 });
            let address = if flags & 4 != 0 { 0x5000 } else { address };
            descriptor(&memory, at, address, len, flags, (random.next() % 9) as u16);
        }
        for slot in 0..8 {
            memory.store_u16(0x1004 + 2 * slot, (random.next() % 9) as u16, Ordering::SeqCst).unwrap();
        }
        memory.store_u16(0x1002, (random.next() % 10) as u16, Ordering::SeqCst).unwrap();
        while let Ok(Some(chain)) = queue.pop() {
            check(&chain);
            popped += 1;
            let len = chain.writable_len() as u32;
            let _ = queue.complete(chain.head, len);
        }
    }
    // The dice must not be so bad that nothing good comes of them.
    assert!(popped > 1000, "{popped}");
}

#[test]
fn a_racing_driver_cannot_fool_us() {
    let memory = GuestMemory::new(&[(0, 16 << 20)], &Backing::Anonymous).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let vandal = {
        let (memory, stop) = (memory.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut random = Random(99);
            let choices = [
                (0x3000u64, 8u32, 1u16, 1u16),
                (0x3000, 8, 2, 0),
                (u64::MAX - 8, 64, 0, 0),
                ((16 << 20) - 8, 64, 3, 2),
                (0x5000, 16 << 4, 4, 0),
                (0x3000, 0, 0, 0),
                (0x3000, 0xffff_fff0, 1, 7),
                (0x3000, 16, 0, 0),
            ];
            while !stop.load(Ordering::Relaxed) {
                for place in [0, 16, 32, 112, 0x5000, 0x5010] {
                    let (address, len, flags, next) = choices[random.next() as usize % choices.len()];
                    descriptor(&memory, place, address, len, flags, next);
                }
                let idx = memory.load_u16(0x2002, Ordering::Relaxed).unwrap();
                memory.store_u16(0x1002, idx.wrapping_add(4), Ordering::Relaxed).unwrap();
            }
        })
    };
    let end = Instant::now() + Duration::from_millis(500);
    let (mut good, mut bad) = (0u32, 0u32);
    while Instant::now() < end {
        memory.store_u16(0x2002, 0, Ordering::SeqCst).unwrap();
        memory.store_u16(0x1002, 0, Ordering::SeqCst).unwrap();
        let (_, queue, _) = queue_at(&memory, ALL);
        for _ in 0..100 {
            match queue.pop() {
                Ok(Some(chain)) => {
                    check(&chain);
                    good += 1;
                    let _ = queue.complete(chain.head, 0);
                }
                Ok(None) => {}
                Err(_) => {
                    bad += 1;
                    break;
                }
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    vandal.join().unwrap();
    assert!(good > 0 && bad > 0, "{good} {bad}");
}
