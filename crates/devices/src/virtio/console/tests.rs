use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::testing::Rig;
use crate::virtio::pci::guest::{BLOCKS, Block, Guest, Queue, wait_for};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("console-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    fn connect(&self, name: &str) -> UnixStream {
        let stream = UnixStream::connect(self.path(name)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn guest(folder: &Folder, block: Block) -> Guest {
    let rig = Rig::new();
    let keys = [
        ("port.0.name", "first".to_owned()),
        ("port.0.path", folder.path("first")),
        ("port.2.name", "org.example.agent".to_owned()),
        ("port.2.path", folder.path("agent")),
        ("port.2.console", "true".to_owned()),
    ];
    let keys: Vec<_> = keys.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let function = rig.build(3, "virtio-console", &keys).unwrap();
    Guest::new(rig, function, block)
}

/// The queues of both ports, and the buffers of each at fixed places.
struct Multi {
    guest: Guest,
    to_driver: Queue,
    from_driver: Queue,
    input: Queue,
    output: Queue,
}

const CONTROL_BUFFERS: u64 = 0x10_0000;
const INPUT_BUFFERS: u64 = 0x11_0000;
const OUTPUT: u64 = 0x12_0000;

fn multi(guest: Guest) -> Multi {
    guest.negotiate(MULTIPORT);
    // Port 2 has queues 6 and 7.
    let [to_driver, from_driver, input, output] =
        [2, 3, 6, 7].map(|index| guest.enable(index, 0x20 + 4 * u32::from(index)));
    let mut multi = Multi { guest, to_driver, from_driver, input, output };
    for i in 0..16 {
        multi.to_driver.add(&multi.guest, &[], &[(CONTROL_BUFFERS + 64 * i, 64)]);
    }
    multi.guest.go();
    multi
}

impl Multi {
    fn send(&mut self, port: u32, event: u16, value: u16) {
        let mut message = port.to_le_bytes().to_vec();
        message.extend(event.to_le_bytes());
        message.extend(value.to_le_bytes());
        self.guest.rig.ram.write(OUTPUT, &message).unwrap();
        self.from_driver.turn(&self.guest, &[(OUTPUT, 3), (OUTPUT + 3, 5)], &[]);
    }

    /// The next control message.
    fn receive(&mut self) -> (u32, u16, u16, String) {
        let (head, len) = wait_for(|| self.to_driver.used(&self.guest));
        let mut data = vec![0; len as usize];
        self.guest.rig.ram.read(CONTROL_BUFFERS + 64 * u64::from(head / 4), &mut data).unwrap();
        let text = String::from_utf8(data.split_off(8)).unwrap();
        let word = |at: usize| u16::from_le_bytes([data[at], data[at + 1]]);
        (u32::from(word(0)), word(4), word(6), text)
    }

    fn write(&mut self, text: &[u8]) {
        self.guest.rig.ram.write(OUTPUT, text).unwrap();
        self.output.turn(&self.guest, &[(OUTPUT, text.len() as u32)], &[]);
    }

    fn give_input(&mut self, len: u32) {
        self.input.add(&self.guest, &[], &[(INPUT_BUFFERS, len)]);
        self.guest.kick(6);
    }

    fn read(&mut self) -> Vec<u8> {
        let (_, len) = wait_for(|| self.input.used(&self.guest));
        let mut data = vec![0; len as usize];
        self.guest.rig.ram.read(INPUT_BUFFERS, &mut data).unwrap();
        data
    }

    /// As the driver of Linux does.
    fn open_port(&mut self) {
        self.send(0, 0, 1);
        assert_eq!(self.receive(), (0, 1, 1, String::new()));
        assert_eq!(self.receive(), (2, 1, 1, String::new()));
        self.send(2, 3, 1);
        assert_eq!(self.receive(), (2, 4, 1, String::new()));
        assert_eq!(self.receive(), (2, 7, 1, "org.example.agent".to_owned()));
        self.send(2, 6, 1);
    }
}

#[test]
fn ports_are_announced_opened_and_carry_bytes() {
    for block in BLOCKS {
        let folder = Folder::new(&format!("ports-{block:?}"));
        let mut m = multi(guest(&folder, block));
        assert_eq!(m.guest.config(4, 4), 16);
        m.open_port();
        // Without a client, what the guest writes is lost.
        m.write(b"lost");
        let mut client = folder.connect("agent");
        assert_eq!(m.receive(), (2, 6, 1, String::new()));
        m.write(b"hello");
        let mut data = [0; 5];
        client.read_exact(&mut data).unwrap();
        assert_eq!(&data, b"hello");
        // Input comes when there is room for it, in pieces of that room.
        client.write_all(b"0123456789").unwrap();
        m.give_input(4);
        assert_eq!(m.read(), b"0123");
        m.give_input(100);
        assert_eq!(m.read(), b"456789");
        // A second client is turned away.
        assert_eq!(folder.connect("agent").read(&mut data).unwrap(), 0);
        // The last words of a client are read before it is gone.
        client.write_all(b"bye").unwrap();
        drop(client);
        m.give_input(100);
        assert_eq!(m.read(), b"bye");
        m.give_input(100);
        assert_eq!(m.receive(), (2, 6, 0, String::new()));
        let mut client = folder.connect("agent");
        assert_eq!(m.receive(), (2, 6, 1, String::new()));
        client.write_all(b"again").unwrap();
        assert_eq!(m.read(), b"again");
        // A port that is closed takes nothing.
        m.send(2, 6, 0);
        client.write_all(b"later").unwrap();
        m.give_input(100);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(m.input.used(&m.guest), None);
        m.send(2, 6, 1);
        assert_eq!(m.read(), b"later");
    }
}

#[test]
fn a_slow_client_slows_the_guest_and_loses_nothing() {
    let folder = Folder::new("slow");
    let mut m = multi(guest(&folder, Block::Modern));
    m.open_port();
    let mut client = folder.connect("agent");
    m.receive();
    let data: Vec<u8> = (0..2_000_000u32).map(|i| (i >> 8) as u8 ^ i as u8).collect();
    m.guest.rig.ram.write(0x20_0000, &data).unwrap();
    let len = data.len() as u32 / 2;
    m.output.add(&m.guest, &[(0x20_0000, len)], &[]);
    m.output.add(&m.guest, &[(0x20_0000 + u64::from(len), len)], &[]);
    m.guest.kick(7);
    assert_eq!(m.output.used(&m.guest), None);
    // Drained in the middle, saved, and carried on.
    m.guest.function.drain();
    let saved = m.guest.function.save().unwrap();
    assert!(!saved.data.is_empty());
    m.guest.function.resume();
    let mut got = vec![0; data.len()];
    client.read_exact(&mut got).unwrap();
    assert!(got == data);
    wait_for(|| m.output.used(&m.guest));
    wait_for(|| m.output.used(&m.guest));
}

#[test]
fn without_multiport_port_0_is_the_console() {
    for block in BLOCKS {
        let folder = Folder::new(&format!("single-{block:?}"));
        let guest = guest(&folder, block);
        let mut client = folder.connect("first");
        assert_eq!((guest.config(0, 2), guest.config(2, 2)), (80, 25));
        // The emergency byte needs no driver at all.
        wait_for(|| {
            guest.set_config(8, u32::from(b'!'), 4);
            client.set_nonblocking(true).unwrap();
            let mut byte = [0];
            client.read(&mut byte).ok().map(|_| assert_eq!(&byte, b"!"))
        });
        client.set_nonblocking(false).unwrap();
        guest.negotiate(0);
        let (mut input, mut output) = (guest.enable(0, 0x20), guest.enable(1, 0x28));
        guest.go();
        input.add(&guest, &[], &[(0x10_0000, 64)]);
        guest.kick(0);
        client.write_all(b"in").unwrap();
        assert_eq!(wait_for(|| input.used(&guest)).1, 2);
        guest.rig.ram.write(0x10_1000, b"out").unwrap();
        output.turn(&guest, &[(0x10_1000, 3)], &[]);
        let mut data = [0; 3];
        while client.read_exact(&mut data[..1]).is_ok() && data[0] == b'!' {}
        client.read_exact(&mut data[1..]).unwrap();
        assert_eq!(&data, b"out");
    }
}

#[test]
fn nonsense_on_the_control_queue() {
    let folder = Folder::new("nonsense");
    let mut m = multi(guest(&folder, Block::Modern));
    for (port, event, value) in [(99, 3, 1), (2, 1, 1), (1, 6, 1), (2, 77, 9), (u32::MAX, 0, 0)] {
        m.send(port, event, value);
    }
    assert_eq!(m.to_driver.used(&m.guest), None);
    assert_eq!(m.guest.status() & 0x40, 0);
    // Too short a message, and a driver that asks without end.
    m.from_driver.add(&m.guest, &[(OUTPUT, 7)], &[]);
    m.guest.kick(3);
    assert_eq!(m.guest.status() & 0x40, 0x40);
    let mut m = multi(m.guest);
    for _ in 0..200 {
        m.guest.rig.ram.write(OUTPUT, &[0, 0, 0, 0, 0, 0, 1, 0]).unwrap();
        m.from_driver.add(&m.guest, &[(OUTPUT, 8)], &[]);
        m.guest.kick(3);
    }
    assert_eq!(m.guest.status() & 0x40, 0x40);
}

#[test]
fn sockets_of_earlier_runs_are_replaced_and_live_ones_are_not() {
    let folder = Folder::new("stale");
    drop(guest(&folder, Block::Modern));
    let live = guest(&folder, Block::Modern);
    let rig = Rig::new();
    let path = folder.path("first");
    let keys = [("port.0.name", "x"), ("port.0.path", path.as_str())];
    assert!(rig.build(3, "virtio-console", &keys).is_err());
    drop(live);
    std::fs::write(folder.path("file"), b"precious").unwrap();
    let path = folder.path("file");
    assert!(rig.build(3, "virtio-console", &[("port.0.name", "x"), ("port.0.path", path.as_str())]).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn bad_ports_are_refused() {
    let rig = Rig::new();
    let long = format!("/tmp/{}", "x".repeat(120));
    for keys in [
        [("port.16.name", "x"), ("port.16.path", "/tmp/x")],
        [("port.a.name", "x"), ("port.a.path", "/tmp/x")],
        [("port.0.name", "x"), ("port.0.path", long.as_str())],
        [("port.0.name", "x"), ("port.0.path", "/nonexistent/folder/socket")],
        [("port.0.name", "x"), ("port.1.path", "/tmp/x")],
    ] {
        assert!(rig.build(3, "virtio-console", &keys).is_err(), "{keys:?}");
    }
}
