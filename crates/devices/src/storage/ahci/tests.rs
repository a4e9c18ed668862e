use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::*;
use crate::testing::Rig;

const LIST: u64 = 0x10_0000;
const AREA: u64 = 0x11_0000;
const TABLE: u64 = 0x12_0000;
const BUFFER: u64 = 0x20_0000;

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A controller with a disk at port 0 and a disc at port 1, and a driver for it.
struct Driver {
    rig: Rig,
    function: Arc<dyn PciFunction>,
    folder: Folder,
}

fn pattern(sector: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    for (n, byte) in bytes.iter_mut().enumerate() {
        *byte = (sector as usize * 7 + n) as u8;
    }
    bytes
}

impl Driver {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("ahci-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let image: Vec<u8> = (0..2048).flat_map(pattern).collect();
        let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        std::fs::write(file("hd"), &image).unwrap();
        std::fs::write(file("cd"), &image).unwrap();
        let rig = Rig::new();
        let (hd, cd) = (file("hd"), file("cd"));
        let keys = [
            ("port.0.type", "hd"),
            ("port.0.path", hd.as_str()),
            ("port.0.ser", "S1"),
            ("port.1.type", "cd"),
            ("port.1.path", cd.as_str()),
        ];
        let function = rig.build(3, "ahci", &keys).unwrap();
        rig.start(&function);
        let driver = Self { rig, function, folder: Folder(folder) };
        driver.write(4, GHC_AHCI | GHC_INTERRUPTS);
        for port in 0..2 {
            driver.start_port(port);
        }
        driver
    }

    fn start_port(&self, port: u64) {
        let base = 0x100 + 0x80 * port;
        self.write(base, (LIST + port * 0x400) as u32);
        self.write(base + 8, (AREA + port * 0x100) as u32);
        self.write(base + 0x18, 0x10);
        self.write(base + 0x30, u32::MAX);
        self.write(base + 0x10, u32::MAX);
        self.write(base + 0x14, 0x7dc0_007f);
        self.write(base + 0x18, 0x11);
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.function.bar_read(5, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, offset: u64, value: u32) {
        self.function.bar_write(5, offset, &value.to_le_bytes());
    }

    /// Puts a command in `slot` of `port` without issuing it.
    fn put(&self, port: u64, slot: u64, fis: &[u8], packet: Option<&[u8]>, len: u64) {
        let table = TABLE + (port * 32 + slot) * 0x400;
        let flags = 5 | if packet.is_some() { 0x20 } else { 0 };
        let mut header = vec![flags, 0, u8::from(len > 0), 0, 0, 0, 0, 0];
        header.extend(table.to_le_bytes());
        self.rig.ram.write(LIST + port * 0x400 + slot * 32, &header).unwrap();
        let mut bytes = [0; 20];
        bytes[..fis.len()].copy_from_slice(fis);
        self.rig.ram.write(table, &bytes).unwrap();
        if let Some(packet) = packet {
            self.rig.ram.write(table + 0x40, packet).unwrap();
        }
        let mut region = (BUFFER + slot * 0x1_0000).to_le_bytes().to_vec();
        region.extend([0; 4]);
        region.extend((len.saturating_sub(1) as u32).to_le_bytes());
        self.rig.ram.write(table + 0x80, &region).unwrap();
    }

    /// Waits until the controller says that no command of `port` is left, or that one failed.
    fn wait(&self, port: u64) {
        let base = 0x100 + 0x80 * port;
        let end = Instant::now() + Duration::from_secs(30);
        while (self.read(base + 0x38) | self.read(base + 0x34)) != 0 && self.read(base + 0x10) & 1 << 30 == 0
        {
            assert!(Instant::now() < end, "no answer");
            std::thread::yield_now();
        }
    }

    fn run(&self, port: u64, fis: &[u8], packet: Option<&[u8]>, len: u64) -> u32 {
        let base = 0x100 + 0x80 * port;
        self.put(port, 0, fis, packet, len);
        self.write(base + 0x38, 1);
        self.wait(port);
        self.read(base + 0x20)
    }

    /// Clears an error as drivers do.
    fn recover(&self, port: u64) {
        let base = 0x100 + 0x80 * port;
        self.write(base + 0x18, 0x10);
        self.write(base + 0x10, u32::MAX);
        self.write(base + 0x18, 0x11);
    }

    fn bytes(&self, slot: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.rig.ram.read(BUFFER + slot * 0x1_0000, &mut bytes).unwrap();
        bytes
    }
}

/// A 48-bit command.
fn ext(opcode: u8, lba: u64, count: u16) -> [u8; 16] {
    let l = lba.to_le_bytes();
    let c = count.to_le_bytes();
    [0x27, 0x80, opcode, 0, l[0], l[1], l[2], 0x40, l[3], l[4], l[5], 0, c[0], c[1], 0, 0]
}

/// A queued command, whose count is in the features.
fn queued(opcode: u8, lba: u64, count: u8, slot: u8) -> [u8; 16] {
    let mut fis = ext(opcode, lba, 0);
    (fis[3], fis[12]) = (count, slot << 3);
    fis
}

const PACKET: [u8; 8] = [0x27, 0x80, 0xa0, 1, 0, 0, 0x08, 0];

#[test]
fn ports_show_what_is_at_them() {
    let d = Driver::new("ports");
    assert_eq!((d.read(0) & 0x1f, d.read(0x0c), d.read(0x10)), (5, 0x3f, 0x0001_0300));
    assert_eq!((d.read(0x124), d.read(0x1a4), d.read(0x224)), (0x101, 0xeb14_0101, u32::MAX));
    assert_eq!((d.read(0x128), d.read(0x228), d.read(0x220)), (0x133, 0, 0x7f));
    // The signature FIS went to memory when receiving was turned on.
    let mut fis = [0; 14];
    d.rig.ram.read(AREA + 0x100 + 0x40, &mut fis).unwrap();
    assert_eq!((fis[0], fis[3..7].to_vec()), (0x34, vec![1, 1, 0x14, 0xeb]));
}

#[test]
fn a_disk_identifies_itself_reads_and_writes() {
    let d = Driver::new("rw");
    assert_eq!(d.run(0, &ext(0xec, 0, 0), None, 512) & 0xff, 0x50);
    let id = d.bytes(0, 512);
    assert_eq!(&id[20..24], b"1S  ");
    assert_eq!(u32::from_le_bytes(id[200..204].try_into().unwrap()), 2048);
    assert_eq!(id.iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
    assert_eq!(d.read(0x110) & 2, 2);
    assert_eq!(d.run(0, &ext(0x25, 9, 3), None, 1536) & 0xff, 0x50);
    assert_eq!(d.bytes(0, 1536), [pattern(9), pattern(10), pattern(11)].concat());
    let mut count = [0; 4];
    d.rig.ram.read(LIST + 4, &mut count).unwrap();
    assert_eq!(u32::from_le_bytes(count), 1536);
    d.rig.ram.write(BUFFER, &pattern(100)).unwrap();
    assert_eq!(d.run(0, &ext(0x35, 5, 1), None, 512) & 0xff, 0x50);
    assert_eq!(d.run(0, &ext(0xea, 0, 0), None, 0) & 0xff, 0x50);
    let image = std::fs::read(d.folder.0.join("hd")).unwrap();
    assert!(image[5 * 512..6 * 512] == pattern(100) && image[6 * 512..7 * 512] == pattern(6));
}

#[test]
fn a_bad_address_stops_the_port_until_it_is_restarted() {
    let d = Driver::new("bad");
    assert_eq!(d.run(0, &ext(0x25, 2048, 1), None, 512), 0x1051);
    assert_eq!((d.read(0x138), d.read(0x118) >> 8 & 0x1f), (1, 0));
    // Nothing runs now.
    d.put(0, 1, &ext(0x25, 0, 1), None, 512);
    d.write(0x138, 2);
    assert_eq!(d.read(0x138), 3);
    d.recover(0);
    assert_eq!(d.read(0x138), 0);
    assert_eq!(d.run(0, &ext(0x25, 0, 1), None, 512) & 0xff, 0x50);
    // Buffers that are too short, or nowhere.
    assert_eq!(d.run(0, &ext(0x25, 0, 2), None, 512), 0x0451);
    d.recover(0);
    d.put(0, 0, &ext(0x25, 0, 1), None, 512);
    d.rig.ram.write(TABLE + 0x80, &0xffff_0000u64.to_le_bytes()).unwrap();
    d.write(0x138, 1);
    assert_eq!(d.read(0x110) & 1 << 29, 1 << 29);
}

#[test]
fn queued_commands_run_beside_each_other_and_the_failed_one_is_named() {
    let d = Driver::new("ncq");
    for slot in 0..32u8 {
        d.put(0, slot.into(), &queued(0x60, u64::from(slot) * 8, 8, slot), None, 4096);
    }
    d.write(0x134, u32::MAX);
    d.write(0x138, u32::MAX);
    d.wait(0);
    for slot in 0..32u64 {
        assert_eq!(d.bytes(slot, 512), pattern(slot * 8), "slot {slot}");
    }
    let mut bits = [0; 8];
    d.rig.ram.read(AREA + 0x58, &mut bits).unwrap();
    assert_eq!((bits[0], bits[2], bits[3]), (0xa1, 0x50, 0));
    d.put(0, 7, &queued(0x60, 4000, 8, 7), None, 4096);
    d.write(0x134, 1 << 7);
    d.write(0x138, 1 << 7);
    d.wait(0);
    assert_eq!((d.read(0x120), d.read(0x134)), (0x1051, 1 << 7));
    d.recover(0);
    // READ LOG EXT, page 10h.
    assert_eq!(d.run(0, &ext(0x2f, 0x10, 1), None, 512) & 0xff, 0x50);
    let log = d.bytes(0, 512);
    assert_eq!((log[0], log[2], log[3], log[4], log[5]), (7, 0x51, 0x10, 0xa0, 0x0f));
}

#[test]
fn a_disc_is_read_by_packets() {
    let d = Driver::new("cd");
    let packet = |bytes: &[u8]| {
        let mut packet = [0; 16];
        packet[..bytes.len()].copy_from_slice(bytes);
        packet
    };
    assert_eq!(d.run(1, &PACKET, Some(&packet(&[0x12, 0, 0, 0, 36])), 36) & 0xff, 0x50);
    let inquiry = d.bytes(0, 36);
    assert_eq!((inquiry[0], &inquiry[8..13], &inquiry[16..28]), (5, &b"BHYVE"[..], &b"SATA DVD ROM"[..]));
    assert_eq!(d.run(1, &PACKET, Some(&packet(&[0x25])), 8) & 0xff, 0x50);
    assert_eq!(d.bytes(0, 8), [0, 0, 1, 0xff, 0, 0, 8, 0]);
    assert_eq!(d.run(1, &PACKET, Some(&packet(&[0x28, 0, 0, 0, 0, 3, 0, 0, 2])), 4096) & 0xff, 0x50);
    assert_eq!(d.bytes(0, 1024), [pattern(12), pattern(13)].concat());
    // Past the end: illegal request, out of range.
    assert_eq!(d.run(1, &PACKET, Some(&packet(&[0x28, 0, 0, 0, 2, 0, 0, 0, 1])), 2048), 0x5051);
    d.recover(1);
    assert_eq!(d.run(1, &PACKET, Some(&packet(&[3, 0, 0, 0, 18])), 18) & 0xff, 0x50);
    let sense = d.bytes(0, 18);
    assert_eq!((sense[2], sense[12]), (5, 0x21));
    // Lock, then an eject is refused; unlock, eject: no medium.
    d.run(1, &PACKET, Some(&packet(&[0x1e, 0, 0, 0, 1])), 0);
    assert_eq!(d.run(1, &PACKET, Some(&packet(&[0x1b, 0, 0, 0, 2])), 0), 0x5051);
    d.recover(1);
    d.run(1, &PACKET, Some(&packet(&[0x1e])), 0);
    assert_eq!(d.run(1, &PACKET, Some(&packet(&[0x1b, 0, 0, 0, 2])), 0) & 0xff, 0x50);
    assert_eq!(d.run(1, &PACKET, Some(&packet(&[0])), 0), 0x2051);
}

#[test]
fn interrupts_follow_the_enable_bits() {
    let d = Driver::new("irq");
    d.write(0x114, 0);
    d.run(0, &ext(0xe7, 0, 0), None, 0);
    assert_eq!((d.read(8), d.rig.probe.any_line()), (0, false));
    d.write(0x114, 1);
    assert_eq!((d.read(8), d.rig.probe.any_line()), (1, true));
    // IS can't be cleared while the port has something pending.
    d.write(8, 1);
    assert_eq!(d.read(8), 1);
    d.write(0x110, 1);
    d.write(8, 1);
    assert_eq!((d.read(8), d.rig.probe.any_line()), (0, false));
}

#[test]
fn resets_bring_the_signature_back() {
    let d = Driver::new("reset");
    d.write(0x12c, 1);
    assert_eq!(d.read(0x128), 0);
    d.write(0x12c, 0);
    assert_eq!((d.read(0x128), d.read(0x110) & 0x40, d.read(0x120)), (0x133, 0x40, 0x150));
    d.write(0x130, u32::MAX);
    assert_eq!(d.read(0x110) & 0x40, 0);
    d.write(4, GHC_RESET);
    assert_eq!((d.read(4), d.read(0x100), d.read(0x118) & 1), (GHC_AHCI, 0, 0));
    d.write(4, GHC_AHCI | GHC_INTERRUPTS);
    d.start_port(0);
    // SRST on and off.
    let control = |srst: u8| [0x27, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, srst];
    assert_eq!(d.run(0, &control(4), None, 0), 0x80);
    assert_eq!(d.run(0, &control(0), None, 0), 0x150);
    assert_eq!(d.run(0, &ext(0x25, 1, 1), None, 512) & 0xff, 0x50);
}

#[test]
fn a_saved_controller_goes_on() {
    let d = Driver::new("save");
    d.run(0, &ext(0xe7, 0, 0), None, 0);
    d.function.drain();
    let saved = d.function.save().unwrap();
    d.function.reset();
    assert_eq!(d.read(0x100), 0);
    d.function.restore(&saved).unwrap();
    d.rig.pci.refresh();
    assert_eq!((d.read(0x100), d.read(0x110) & 1), (LIST as u32, 1));
    assert_eq!(d.function.save().unwrap().data, saved.data);
}
