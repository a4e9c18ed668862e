use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use host::block::Done;

use super::super::feature::{EVENT_IDX, VERSION_1};
use super::super::test_driver::{Driver, Owner, ram};
use std::sync::atomic::AtomicUsize;

use super::*;

/// Where tests have their buffers.
const BUFFERS: u64 = 1 << 20;

struct Image(PathBuf);

impl Image {
    fn new(content: &[u8]) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("virtio-blk-{}-{n}.img", std::process::id()));
        std::fs::write(&path, content).unwrap();
        Self(path)
    }

    fn device(&self, change: impl FnOnce(&mut BlockOptions)) -> VirtioBlock {
        let mut options = BlockOptions::new(self.0.to_str().unwrap());
        change(&mut options);
        VirtioBlock::new(Arc::new(FileDisk::open(&options).unwrap()), None)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Answers when told to, or at once.
#[derive(Default)]
struct Puppet {
    ops: Mutex<VecDeque<(Op, Done)>>,
    at_once: bool,
    on_submit: OnceLock<Box<dyn Fn() + Send + Sync>>,
    submitted: AtomicUsize,
}

impl Puppet {
    fn finish(&self, index: usize, result: io::Result<()>) {
        let (_, done) = self.ops.lock().unwrap().remove(index).unwrap();
        done(result);
    }
}

impl Disk for Puppet {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            size: 1 << 20,
            logical_sector: 512,
            physical_sector: 4096,
            read_only: false,
            can_discard: true,
            discard_granularity: 4096,
            serial: "puppet".into(),
        }
    }

    fn submit(&self, op: Op, done: Done) {
        self.submitted.fetch_add(1, Ordering::SeqCst);
        if let Some(on_submit) = self.on_submit.get() {
            on_submit();
        }
        if self.at_once {
            done(Ok(()));
        } else {
            self.ops.lock().unwrap().push_back((op, done));
        }
    }

    fn drain(&self) {}

    fn check_size(&self) -> u64 {
        1 << 20
    }

    fn on_resize(&self, _: Box<dyn Fn(u64) + Send + Sync>) {}
}

struct Bench {
    device: VirtioBlock,
    driver: Driver,
}

impl Bench {
    fn new(device: VirtioBlock, features: u64) -> Self {
        let owner = Arc::new(Owner::default());
        device.attach(owner.clone());
        let driver = Driver::new(&ram(), &owner, 0, QUEUE_SIZE, features);
        device.activate(features, vec![Some(driver.queue.clone())]);
        device.notify(0);
        Self { device, driver }
    }

    /// Adds a request with its header in slot `n` of the buffers, without telling the device.
    fn add(
        &mut self,
        n: u64,
        kind: u32,
        sector: u64,
        readable: &[(u64, u32)],
        writable: &[(u64, u32)],
    ) -> u16 {
        let header = BUFFERS + n * 32;
        self.driver.ram.store_u32(header, kind, Ordering::Relaxed).unwrap();
        self.driver.ram.store_u64(header + 8, sector, Ordering::Relaxed).unwrap();
        self.driver.ram.store_u8(header + 16, 0xff, Ordering::Relaxed).unwrap();
        let readable: Vec<_> = [(header, 16)].into_iter().chain(readable.iter().copied()).collect();
        let writable: Vec<_> = writable.iter().copied().chain([(header + 16, 1)]).collect();
        self.driver.add(&readable, &writable)
    }

    fn kick(&mut self) {
        if self.driver.must_kick() {
            self.device.notify(0);
        }
    }

    fn status(&self, n: u64) -> u8 {
        self.driver.ram.load_u8(BUFFERS + n * 32 + 16, Ordering::Relaxed).unwrap()
    }

    /// One request, from beginning to end: (status, length in the used ring).
    fn run(&mut self, kind: u32, sector: u64, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> (u8, u32) {
        let head = self.add(0, kind, sector, readable, writable);
        self.kick();
        let (used, len) = self.driver.wait_used();
        assert_eq!(used, head);
        (self.status(0), len)
    }
}

const ALL: u64 = VERSION_1
    | feature::FLUSH
    | feature::DISCARD
    | feature::WRITE_ZEROES
    | feature::CONFIG_WCE
    | feature::SEG_MAX;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 13 + i / 512) as u8).collect()
}

#[test]
fn requests_reach_the_image() {
    for features in [0, ALL, ALL | EVENT_IDX] {
        let image = Image::new(&pattern(1 << 20));
        let mut bench = Bench::new(image.device(|o| o.serial = Some("S123".into())), features);
        let data = BUFFERS + 0x10000;
        assert_eq!(bench.run(0, 3, &[], &[(data, 512), (data + 0x2000, 1024)]), (0, 1537));
        assert_eq!(bench.driver.bytes(data, 512), pattern(1 << 20)[1536..2048]);
        assert_eq!(bench.driver.bytes(data + 0x2000, 1024), pattern(1 << 20)[2048..3072]);
        // Longer than the submitter does itself.
        assert_eq!(bench.run(0, 0, &[], &[(data, 512 << 10)]), (0, (512 << 10) + 1));
        assert_eq!(bench.driver.bytes(data, 512 << 10), pattern(512 << 10));

        bench.driver.ram.write(data, &[0xab; 1024]).unwrap();
        assert_eq!(bench.run(1, 5, &[(data, 1024)], &[]), (0, 1));
        assert_eq!(bench.run(4, 0, &[], &[]), (0, 1));
        assert_eq!(std::fs::read(&image.0).unwrap()[2560..3584], [0xab; 1024]);

        assert_eq!(bench.run(8, 0, &[], &[(data, 20)]), (0, 21));
        assert_eq!(bench.driver.bytes(data, 20), b"S123\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");

        let range: Vec<u8> = [8u64.to_le_bytes(), 2u64.to_le_bytes()].concat();
        bench.driver.ram.write(data, &range).unwrap();
        let zeroed = bench.run(13, 0, &[(data, 16)], &[]);
        if features & feature::WRITE_ZEROES == 0 {
            assert_eq!(zeroed, (2, 1), "not negotiated");
        } else {
            assert_eq!(zeroed, (0, 1));
            assert_eq!(std::fs::read(&image.0).unwrap()[4096..5120], [0; 1024]);
        }
        assert_eq!(bench.run(99, 0, &[], &[]), (2, 1));
        assert_eq!(bench.run(0, 2048, &[], &[(data, 512)]), (1, 1), "past the end");
        assert_eq!(bench.run(0, 0, &[], &[(data, 100)]), (1, 1), "not whole sectors");
        assert!(bench.driver.owner.faults().is_empty());
    }
}

#[test]
fn many_requests_run_at_once_and_none_is_lost() {
    for features in [ALL, ALL | EVENT_IDX] {
        let content = pattern(1 << 20);
        let image = Image::new(&content);
        let mut bench = Bench::new(image.device(|_| {}), features);
        let (mut started, mut done) = (0u64, 0u64);
        let mut slots: Vec<u64> = (0..64).collect();
        let mut busy = vec![0; usize::from(QUEUE_SIZE)];
        while done < 4000 {
            while started < 4000
                && let Some(slot) = slots.pop()
            {
                // Some go the long way, most the short one.
                let len = if started % 16 == 0 { 160 << 10 } else { 4096 };
                let data = BUFFERS + 0x10000 + slot * (192 << 10);
                let head = bench.add(slot, 0, slot * 8, &[], &[(data, len)]);
                busy[usize::from(head)] = slot;
                started += 1;
                bench.kick();
            }
            let (head, len) = bench.driver.wait_used();
            let slot = busy[usize::from(head)];
            assert_eq!(bench.status(slot), 0);
            let data = bench.driver.bytes(BUFFERS + 0x10000 + slot * (192 << 10), len as usize - 1);
            let at = slot as usize * 4096;
            assert_eq!(data, content[at..at + data.len()]);
            slots.push(slot);
            done += 1;
        }
    }
}

#[test]
fn completions_come_in_any_order_and_parts_count_as_one() {
    let disk = Arc::new(Puppet::default());
    let mut bench = Bench::new(VirtioBlock::new(disk.clone(), None), ALL);
    let data = BUFFERS + 0x10000;
    let first = bench.add(0, 0, 0, &[], &[(data, 512)]);
    let second = bench.add(1, 4, 0, &[], &[]);
    bench.driver.ram.fill(data, 0, 48).unwrap();
    let third = bench.add(2, 11, 0, &[(data, 48)], &[]);
    bench.kick();
    assert_eq!(disk.ops.lock().unwrap().len(), 5);
    disk.finish(1, Ok(()));
    assert_eq!(bench.driver.used(), Some((second, 1)));
    disk.finish(1, Ok(()));
    disk.finish(1, Err(io::ErrorKind::StorageFull.into()));
    assert_eq!(bench.driver.used(), None);
    disk.finish(1, Ok(()));
    assert_eq!(bench.driver.used(), Some((third, 1)));
    assert_eq!(bench.status(2), 1);
    disk.finish(0, Err(io::ErrorKind::UnexpectedEof.into()));
    assert_eq!(bench.driver.used(), Some((first, 1)));
    assert_eq!(bench.status(0), 1);
}

#[test]
fn writes_are_durable_unless_the_driver_can_flush() {
    let flush = VERSION_1 | feature::FLUSH;
    for (features, writeback, durable) in [
        (VERSION_1, None, true),
        (flush, None, false),
        (flush | feature::CONFIG_WCE, None, false),
        (flush | feature::CONFIG_WCE, Some(0), true),
        (flush | feature::CONFIG_WCE, Some(1), false),
        // Not negotiated: the write has no effect.
        (flush, Some(0), false),
    ] {
        let disk = Arc::new(Puppet::default());
        let mut bench = Bench::new(VirtioBlock::new(disk.clone(), None), features);
        if let Some(value) = writeback {
            bench.device.config_write(WRITEBACK, &[value], features);
        }
        bench.add(0, 1, 0, &[(BUFFERS + 0x10000, 512)], &[]);
        bench.kick();
        let (op, _) = disk.ops.lock().unwrap().pop_back().unwrap();
        assert!(matches!(op, Op::Write { durable: d, .. } if d == durable), "{features:#x} {writeback:?}");
    }
}

#[test]
fn a_guest_that_never_stops_does_not_hold_the_notifying_thread() {
    let disk = Arc::new(Puppet { at_once: true, ..Puppet::default() });
    let bench = Bench::new(VirtioBlock::new(disk.clone(), None), ALL);
    let bench = Arc::new(Mutex::new(bench));
    let total = 10 * BUDGET as usize;
    let again = Arc::downgrade(&bench);
    let submitted = Arc::downgrade(&disk);
    let on_submit = move || {
        // The guest adds a request for each that is started.
        let (Some(bench), Some(disk)) = (again.upgrade(), submitted.upgrade()) else { return };
        let mut bench = bench.lock().unwrap();
        while bench.driver.used().is_some() {}
        if disk.submitted.load(Ordering::SeqCst) < total {
            bench.add(0, 4, 0, &[], &[]);
        }
    };
    assert!(disk.on_submit.set(Box::new(on_submit)).is_ok());
    let core = {
        let mut bench = bench.lock().unwrap();
        bench.add(0, 4, 0, &[], &[]);
        bench.device.core.clone()
    };
    core.process();
    assert!(disk.submitted.load(Ordering::SeqCst) < total, "all of it on this thread");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while disk.submitted.load(Ordering::SeqCst) < total {
        assert!(std::time::Instant::now() < end, "requests were lost");
        std::thread::yield_now();
    }
}

#[test]
fn hostile_chains_stop_the_queue_only() {
    let image = Image::new(&[0; 4096]);
    // No room for a status, no header, a buffer outside of RAM.
    for (readable, writable) in [
        (vec![(BUFFERS, 16)], vec![]),
        (vec![(BUFFERS, 15)], vec![(BUFFERS + 64, 1)]),
        (vec![], vec![(BUFFERS, 513)]),
        (vec![(BUFFERS, 16)], vec![(u64::MAX - 100, 513)]),
    ] {
        let mut bench = Bench::new(image.device(|_| {}), ALL);
        bench.driver.add(&readable, &writable);
        bench.kick();
        assert_eq!(bench.driver.owner.faults().len(), 1, "{readable:?} {writable:?}");
        assert!(!bench.driver.queue.alive());
        bench.add(0, 4, 0, &[], &[]);
        bench.device.notify(0);
        assert_eq!(bench.driver.used(), None);
        bench.device.reset();
    }
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let image = Image::new(&[1; 4096]);
    let mut bench = Bench::new(image.device(|o| o.read_only = true), ALL | feature::RO);
    let features = bench.device.features();
    assert_ne!(features & feature::RO, 0);
    assert_eq!(features & (feature::DISCARD | feature::WRITE_ZEROES), 0);
    let data = BUFFERS + 0x10000;
    assert_eq!(bench.run(1, 0, &[(data, 512)], &[]), (1, 1));
    assert_eq!(bench.run(11, 0, &[(data, 16)], &[]), (1, 1));
    assert_eq!(bench.run(0, 0, &[], &[(data, 512)]), (0, 513));
}

#[test]
fn a_truncated_image_gives_io_errors() {
    let image = Image::new(&[1; 8192]);
    let mut bench = Bench::new(image.device(|_| {}), ALL);
    std::fs::File::options().write(true).open(&image.0).unwrap().set_len(4096).unwrap();
    let data = BUFFERS + 0x10000;
    assert_eq!(bench.run(0, 8, &[], &[(data, 4096)]), (1, 1));
    assert_eq!(bench.run(1, 8, &[(data, 4096)], &[]), (1, 1));
    assert_eq!(bench.run(0, 0, &[], &[(data, 4096)]), (0, 4097));
}

#[test]
fn resizing_tells_the_driver_and_shows_in_the_configuration() {
    let image = Image::new(&[0; 8192]);
    let bench = Bench::new(image.device(|_| {}), ALL);
    let capacity = || {
        let mut bytes = [0; 8];
        bench.device.config_read(0, &mut bytes);
        u64::from_le_bytes(bytes)
    };
    assert_eq!(capacity(), 16);
    std::fs::File::options().write(true).open(&image.0).unwrap().set_len(16384).unwrap();
    bench.device.core.disk.check_size();
    assert_eq!((capacity(), bench.driver.owner.config_changes.load(Ordering::SeqCst)), (32, 1));
}

#[test]
fn configuration_is_where_drivers_look() {
    let device = VirtioBlock::new(Arc::new(Puppet::default()), None);
    let config = device.config();
    let u32_at = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    assert_eq!(config[..8], 2048u64.to_le_bytes());
    assert_eq!((u32_at(12), u32_at(20)), (254, 512));
    assert_eq!(config[24..28], [3, 0, 8, 0], "eight logical blocks in a physical one");
    assert_eq!((config[32], config[34]), (1, 1));
    assert_eq!((u32_at(36), u32_at(40), u32_at(44)), (1 << 22, 256, 8));
    assert_eq!((u32_at(48), u32_at(52), config[56]), (1 << 22, 256, 1));
    let mut tail = [7; 4];
    device.config_read(58, &mut tail);
    assert_eq!(tail, [0; 4]);
}

#[test]
fn state_is_saved_and_reset_puts_it_back() {
    let device = VirtioBlock::new(Arc::new(Puppet { at_once: true, ..Puppet::default() }), None);
    device.config_write(30, &[9, 9, 0, 9], feature::CONFIG_WCE);
    let saved = device.save().unwrap();
    device.reset();
    assert_eq!(device.config()[WRITEBACK], 1);
    device.restore(&saved).unwrap();
    assert_eq!(device.config()[WRITEBACK], 0);
    let other = SavedState { version: 99, ..saved };
    assert!(device.restore(&other).is_err());
}

#[test]
fn options_come_from_the_tree() {
    let mut tree = config::Tree::new();
    for (key, value) in [
        ("path", "/no/such/disk"),
        ("nocache", "true"),
        ("direct", "true"),
        ("ro", "on"),
        ("sectorsize", "512/4096"),
        ("ser", "S1"),
        ("bootindex", "2"),
    ] {
        tree.set(&format!("pci.0.3.0.{key}"), value).unwrap();
    }
    let node = tree.node("pci.0.3.0");
    let options = block_options(&node.clone().declared(KEYS)).unwrap();
    assert!(options.nocache && options.sync && options.read_only && !options.no_delete);
    assert_eq!(options.sector_size, Some(SectorSize { logical: 512, physical: 4096 }));
    assert_eq!((options.serial.as_deref(), options.boot_index), (Some("S1"), Some(2)));
    let error = VirtioBlock::open(&node, None).err().unwrap().to_string();
    assert!(error.contains("cannot open /no/such/disk: No such file or directory"), "{error}");
    tree.set("pci.0.3.0.ser", "\u{e4}").unwrap();
    assert!(block_options(&tree.node("pci.0.3.0").declared(KEYS)).is_err());
}
