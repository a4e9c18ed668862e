use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use memory::{Backing, GuestMemory, GuestSlice};

use super::open::Opened;
use super::*;

const ENGINES: [IoEngine; 2] = [IoEngine::Auto, IoEngine::Threads];

/// A file of its own for each test, gone afterwards.
struct Image(PathBuf);

impl Image {
    fn new(content: &[u8]) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("host-block-{}-{n}.img", std::process::id()));
        std::fs::write(&path, content).unwrap();
        Self(path)
    }

    fn options(&self) -> BlockOptions {
        BlockOptions::new(self.0.to_str().unwrap())
    }

    fn open(&self, engine: IoEngine) -> FileDisk {
        FileDisk::open_with(&self.options(), engine).unwrap()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn ram() -> GuestMemory {
    GuestMemory::new(&[(0, 8 << 20)], &Backing::Anonymous).unwrap()
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31 + i / 509 + seed) % 251) as u8).collect()
}

/// Submits and waits.
fn run(disk: &FileDisk, op: Op) -> io::Result<()> {
    let (tx, rx) = mpsc::channel();
    disk.submit(op, Box::new(move |r| tx.send(r).unwrap()));
    rx.recv().unwrap()
}

fn read(disk: &FileDisk, offset: u64, bufs: Vec<GuestSlice>) -> io::Result<()> {
    run(disk, Op::Read { offset, bufs })
}

fn write(disk: &FileDisk, offset: u64, bufs: Vec<GuestSlice>) -> io::Result<()> {
    run(disk, Op::Write { offset, bufs, durable: false })
}

fn bytes(ram: &GuestMemory, gpa: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    ram.read(gpa, &mut data).unwrap();
    data
}

#[test]
fn data_round_trips_through_scattered_buffers() {
    for engine in ENGINES {
        let image = Image::new(&pattern(4 << 20, 0));
        let (disk, ram) = (image.open(engine), ram());
        // More pieces than one call takes, the last first in memory.
        let pieces: Vec<_> = (0..3000).rev().map(|i| ram.slice(i * 1024, 512).unwrap()).collect();
        read(&disk, 512, pieces).unwrap();
        let expected = pattern(4 << 20, 0);
        for i in 0..3000u64 {
            let at = 512 + (2999 - i as usize) * 512;
            assert_eq!(bytes(&ram, i * 1024, 512), expected[at..at + 512], "piece {i}");
        }
        let new = pattern(1 << 20, 7);
        ram.write(1 << 20, &new).unwrap();
        write(
            &disk,
            4096,
            vec![ram.slice(1 << 20, 4096).unwrap(), ram.slice((1 << 20) + 4096, 8192).unwrap()],
        )
        .unwrap();
        run(
            &disk,
            Op::Write { offset: 1 << 20, bufs: vec![ram.slice(1 << 20, 512).unwrap()], durable: true },
        )
        .unwrap();
        run(&disk, Op::Flush).unwrap();
        let file = std::fs::read(&image.0).unwrap();
        assert_eq!(file[4096..4096 + 12288], new[..12288]);
        assert_eq!(file[1 << 20..(1 << 20) + 512], new[..512]);
        assert_eq!(file[..4096], expected[..4096]);
    }
}

#[test]
fn ring_is_used_where_the_host_has_it() {
    let image = Image::new(&[0; 512]);
    assert_eq!(image.open(IoEngine::Threads).engine(), "threads");
    let engine = image.open(IoEngine::Auto).engine();
    if engine != "io_uring" {
        println!("this host refuses io_uring: the tests of the ring ran on threads");
    }
}

#[test]
fn more_requests_than_the_ring_holds_and_drain() {
    for engine in ENGINES {
        let content = pattern(1 << 20, 3);
        let image = Image::new(&content);
        let (disk, ram) = (image.open(engine), ram());
        let done = Arc::new(AtomicU64::new(0));
        // Too long to be done at once by the submitter.
        let long = ram.slice(4 << 20, 160 << 10).unwrap();
        for i in 0..2000u64 {
            let done = done.clone();
            let bufs = vec![ram.slice(i * 512, 512).unwrap(), long.clone()];
            disk.submit(
                Op::Read { offset: i * 256 / 512 * 512, bufs },
                Box::new(move |r| {
                    r.unwrap();
                    done.fetch_add(1, Ordering::SeqCst);
                }),
            );
        }
        disk.drain();
        assert_eq!(done.load(Ordering::SeqCst), 2000);
        for i in 0..2000usize {
            let at = i * 256 / 512 * 512;
            assert_eq!(bytes(&ram, i as u64 * 512, 512), content[at..at + 512], "request {i}");
        }
    }
}

/// One request for each thread that may call back: the submitter's, the ring's, the pool's.
fn one_for_each_thread(ram: &GuestMemory) -> Vec<Op> {
    vec![
        Op::Read { offset: 0, bufs: vec![ram.slice(0, 512).unwrap()] },
        Op::Read { offset: 0, bufs: vec![ram.slice(0, 1 << 20).unwrap()] },
        Op::Flush,
    ]
}

#[test]
fn a_panicking_callback_does_not_stop_the_disk() {
    for engine in ENGINES {
        let image = Image::new(&pattern(1 << 20, 0));
        let (disk, ram) = (image.open(engine), ram());
        for op in one_for_each_thread(&ram) {
            disk.submit(op, Box::new(|_| panic!("expected in this test")));
        }
        disk.drain();
        for op in one_for_each_thread(&ram) {
            run(&disk, op).unwrap();
        }
    }
}

#[test]
fn the_last_reference_may_go_in_a_callback() {
    for engine in ENGINES {
        let (image, ram) = (Image::new(&pattern(1 << 20, 0)), ram());
        for op in one_for_each_thread(&ram).into_iter().skip(1) {
            let disk = Arc::new(image.open(engine));
            let (tx, rx) = mpsc::channel();
            let (go, wait) = mpsc::channel::<()>();
            let held = disk.clone();
            disk.submit(
                op,
                Box::new(move |_| {
                    wait.recv().unwrap();
                    drop(held);
                    tx.send(()).unwrap();
                }),
            );
            drop(disk);
            go.send(()).unwrap();
            rx.recv().unwrap();
        }
    }
}

#[test]
fn ranges_outside_the_disk_are_refused() {
    let image = Image::new(&[0; 4096 + 100]);
    let (disk, ram) = (image.open(IoEngine::Auto), ram());
    assert_eq!(disk.info().size, 4096, "a part of a sector at the end does not count");
    let buf = || vec![ram.slice(0, 512).unwrap()];
    for offset in [4096, 3585, u64::MAX, u64::MAX - 511] {
        assert_eq!(read(&disk, offset, buf()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(write(&disk, offset, buf()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
    for (offset, len) in [(0, 4097), (u64::MAX, 1), (512, u64::MAX)] {
        let zero = Op::WriteZeroes { offset, len, unmap: true };
        assert_eq!(run(&disk, zero).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
    read(&disk, 3584, buf()).unwrap();
    read(&disk, 4096, vec![]).unwrap();
}

#[test]
fn a_truncated_image_gives_errors_and_is_not_grown_again() {
    for engine in ENGINES {
        let image = Image::new(&[5; 8192]);
        let (disk, ram) = (image.open(engine), ram());
        let file = std::fs::File::options().write(true).open(&image.0).unwrap();
        file.set_len(4096 + 256).unwrap();
        let buf = || vec![ram.slice(0, 4096).unwrap()];
        read(&disk, 0, buf()).unwrap();
        // The first part is there: the transfer is short, then at the end.
        assert_eq!(read(&disk, 4096, buf()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read(&disk, 2048, buf()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(write(&disk, 4096, buf()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(std::fs::metadata(&image.0).unwrap().len(), 4096 + 256);
        run(&disk, Op::Flush).unwrap();
    }
}

#[test]
fn a_full_host_disk_is_an_error() {
    for engine in ENGINES {
        let file = std::fs::File::options().read(true).write(true).open("/dev/full").unwrap();
        let opened = Opened {
            file,
            is_device: true,
            read_only: false,
            sector: SectorSize { logical: 512, physical: 512 },
            direct: None,
            can_discard: false,
            discard_granularity: 512,
        };
        let disk = FileDisk::new(opened, "x".into(), engine).unwrap();
        disk.set_size(1 << 20);
        let ram = ram();
        let e = write(&disk, 0, vec![ram.slice(0, 4096).unwrap()]).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::StorageFull);
    }
}

#[test]
fn discard_gives_space_back_and_zeroing_zeroes() {
    use std::os::unix::fs::MetadataExt;
    for engine in ENGINES {
        let image = Image::new(&vec![9; 1 << 20]);
        let disk = image.open(engine);
        for (offset, unmap) in [(0, true), (4096, false), (8192 + 512, true)] {
            run(&disk, Op::WriteZeroes { offset, len: 1024, unmap }).unwrap();
            let file = std::fs::read(&image.0).unwrap();
            assert!(file[offset as usize..][..1024].iter().all(|b| *b == 0));
            assert_eq!(file[offset as usize + 1024], 9);
        }
        if !disk.info().can_discard {
            println!("no hole punching in {}: discard not tested", image.0.display());
            continue;
        }
        let blocks = || std::fs::metadata(&image.0).unwrap().blocks();
        run(&disk, Op::Flush).unwrap();
        let before = blocks();
        run(&disk, Op::Discard { offset: 512 << 10, len: 512 << 10 }).unwrap();
        run(&disk, Op::Flush).unwrap();
        assert!(blocks() < before, "{} blocks, {before} before", blocks());
        assert_eq!(std::fs::metadata(&image.0).unwrap().len(), 1 << 20);
        drop(disk);

        let kept = BlockOptions { no_delete: true, ..image.options() };
        let disk = FileDisk::open_with(&kept, engine).unwrap();
        assert!(!disk.info().can_discard);
        let e = run(&disk, Op::Discard { offset: 0, len: 4096 }).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::Unsupported);
    }
}

#[test]
fn direct_io_takes_buffers_of_any_alignment() {
    for engine in ENGINES {
        let content = pattern(3 << 20, 1);
        let image = Image::new(&content);
        let options = BlockOptions { nocache: true, ..image.options() };
        let disk = match FileDisk::open_with(&options, engine) {
            Ok(disk) => disk,
            Err(OpenError::NoDirect { path }) => {
                println!("no direct I/O at {path}: not tested");
                return;
            }
            Err(e) => panic!("{e}"),
        };
        let (ram, sector) = (ram(), u64::from(disk.info().logical_sector));
        // Aligned, then by odd addresses and lengths, and longer than one bounce buffer.
        read(&disk, 0, vec![ram.slice(0, 8192).unwrap()]).unwrap();
        assert_eq!(bytes(&ram, 0, 8192), content[..8192]);
        let long = (2 << 20) + 4096;
        let odd = || vec![ram.slice(1, 1000).unwrap(), ram.slice(4003, long - 1000).unwrap()];
        read(&disk, sector, odd()).unwrap();
        let at = sector as usize;
        assert_eq!(bytes(&ram, 1, 1000), content[at..at + 1000]);
        assert_eq!(bytes(&ram, 4003, long as usize - 1000), content[at + 1000..at + long as usize]);
        let new = pattern(4003 + long as usize, 77);
        ram.write(0, &new).unwrap();
        write(&disk, sector, odd()).unwrap();
        run(&disk, Op::Flush).unwrap();
        drop(disk);
        let file = std::fs::read(&image.0).unwrap();
        assert_eq!(file[..at], content[..at]);
        assert_eq!(file[at..at + 1000], new[1..1001]);
        assert_eq!(file[at + 1000..at + long as usize], new[4003..4003 + long as usize - 1000]);
        assert_eq!(file[at + long as usize..], content[at + long as usize..]);
    }
}

#[test]
fn partial_sectors_under_direct_io_are_read_but_not_written() {
    let image = Image::new(&pattern(1 << 20, 2));
    let file = std::fs::File::options().read(true).write(true).open(&image.0).unwrap();
    // As on a disk of 4096-byte sectors; the calls themselves go through the page cache.
    let opened = Opened {
        file,
        is_device: false,
        read_only: false,
        sector: SectorSize { logical: 512, physical: 4096 },
        direct: Some(super::open::DirectAlign { memory: 4096, offset: 4096 }),
        can_discard: false,
        discard_granularity: 4096,
    };
    let disk = FileDisk::new(opened, "x".into(), IoEngine::Auto).unwrap();
    let ram = ram();
    for (offset, len) in [(512, 512), (3584, 1024), (4096, 512), (0, 4096), (1 << 19, 1 << 19)] {
        read(&disk, offset, vec![ram.slice(7, len).unwrap()]).unwrap();
        let at = offset as usize;
        assert_eq!(bytes(&ram, 7, len as usize), pattern(1 << 20, 2)[at..at + len as usize]);
    }
    let e = write(&disk, 512, vec![ram.slice(0, 512).unwrap()]).unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::InvalidInput);
    write(&disk, 8192, vec![ram.slice(7, 4096).unwrap()]).unwrap();
}

#[test]
fn what_is_not_a_disk_is_refused_with_a_reason() {
    let error = |path: &str| FileDisk::open(&BlockOptions::new(path)).err().unwrap().to_string();
    assert_eq!(error("/no/such/disk.img"), "cannot open /no/such/disk.img: No such file or directory");
    assert!(error("/").contains("it is a directory"));
    assert!(error("/dev/null").contains("it is a character device"));
}

#[test]
fn a_disk_that_may_not_be_written_is_read_only() {
    // sysfs refuses to open this for writing even for root.
    let disk = FileDisk::open(&BlockOptions::new("/sys/kernel/uevent_seqnum")).unwrap();
    assert!(disk.info().read_only && !disk.info().can_discard);
    let ram = ram();
    let image = Image::new(&[0; 4096]);
    let disk = FileDisk::open(&BlockOptions { read_only: true, ..image.options() }).unwrap();
    let e = write(&disk, 0, vec![ram.slice(0, 512).unwrap()]).unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::PermissionDenied);
    run(&disk, Op::Flush).unwrap();
}

#[test]
fn one_writer_or_many_readers() {
    let image = Image::new(&[0; 4096]);
    let reader = BlockOptions { read_only: true, ..image.options() };
    let disk = image.open(IoEngine::Auto);
    assert!(matches!(FileDisk::open(&image.options()), Err(OpenError::Busy { .. })));
    assert!(matches!(FileDisk::open(&reader), Err(OpenError::Busy { .. })));
    drop(disk);
    let readers = [FileDisk::open(&reader).unwrap(), FileDisk::open(&reader).unwrap()];
    assert!(matches!(FileDisk::open(&image.options()), Err(OpenError::Busy { .. })));
    drop(readers);
    image.open(IoEngine::Auto);
}

#[test]
fn sector_sizes_and_serial_are_the_options_or_defaults() {
    let image = Image::new(&[0; 8192]);
    let info = image.open(IoEngine::Auto).info();
    assert_eq!(info.logical_sector, 512);
    assert_eq!(info.serial, default_serial(image.0.to_str().unwrap()));
    let options = BlockOptions {
        sector_size: Some(SectorSize { logical: 4096, physical: 4096 }),
        serial: Some("S1".into()),
        ..image.options()
    };
    let info = FileDisk::open(&options).unwrap().info();
    assert_eq!((info.logical_sector, info.physical_sector, info.serial.as_str()), (4096, 4096, "S1"));
    for (logical, physical) in [(0, 512), (256, 512), (1000, 1000), (4096, 512)] {
        let options = BlockOptions { sector_size: Some(SectorSize { logical, physical }), ..image.options() };
        assert!(matches!(FileDisk::open(&options), Err(OpenError::SectorSize { .. })));
    }
}

#[test]
fn resizing_is_noticed() {
    let image = Image::new(&[0; 8192]);
    let disk: Arc<dyn Disk> = Arc::new(image.open(IoEngine::Auto));
    let (tx, rx) = mpsc::channel();
    disk.on_resize(Box::new(move |size| tx.send(size).unwrap()));
    assert_eq!(disk.check_size(), 8192);
    assert!(rx.try_recv().is_err());
    let file = std::fs::File::options().write(true).open(&image.0).unwrap();
    file.set_len(16384).unwrap();
    assert_eq!(disk.check_size(), 16384);
    assert_eq!(rx.recv().unwrap(), 16384);
    let timers = bus::Timers::start(bus::Clock::new()).unwrap();
    let _watch = ResizeWatch::start(&timers, &disk);
    file.set_len(4096).unwrap();
    assert_eq!(rx.recv().unwrap(), 4096);
    assert_eq!(disk.info().size, 4096);
    file.set_len(20480).unwrap();
    assert_eq!(rx.recv().unwrap(), 20480);
}
