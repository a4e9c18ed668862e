use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;

use super::*;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::OFlags;

struct Held {
    folder: PathBuf,
    stop: OwnedFd,
    holder: Option<JoinHandle<std::io::Result<()>>>,
}

impl Held {
    fn new(name: &str, life: Life) -> Self {
        let folder = std::env::temp_dir().join(format!("nmdm-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let (pair, told) = (Pair::new(&folder, "0").unwrap(), stop.try_clone().unwrap());
        let (tx, rx) = mpsc::channel();
        let holder = std::thread::spawn(move || hold(&pair, life, &told, |own| tx.send(own).unwrap()));
        assert!(rx.recv().unwrap());
        Self { folder, stop, holder: Some(holder) }
    }

    fn open(&self, letter: char) -> File {
        let path = self.folder.join(format!("nmdm0{letter}"));
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).unwrap().into()
    }

    fn ended(&mut self) {
        self.holder.take().unwrap().join().unwrap().unwrap();
        assert_eq!(std::fs::read_dir(&self.folder).unwrap().count(), 0, "nothing is left");
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        rustix::io::write(&self.stop, &1u64.to_ne_bytes()).unwrap();
        if let Some(holder) = self.holder.take() {
            holder.join().unwrap().unwrap();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn local(file: &File, on: bool) {
    let mut settings = tcgetattr(file).unwrap();
    settings.control_modes.set(ControlModes::CLOCAL, on);
    tcsetattr(file, OptionalActions::Now, &settings).unwrap();
}

fn read(mut file: &File, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    file.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn bytes_go_both_ways_unchanged_and_the_pair_goes_with_its_ends() {
    let mut held = Held::new("both", Life::Open);
    let (mut a, mut b) = (held.open('A'), held.open('B'));
    local(&a, true);
    local(&b, true);
    a.write_all(b"to\r\n\x03\x04b").unwrap();
    assert_eq!(read(&b, 7), b"to\r\n\x03\x04b");
    b.write_all(b"\xff\x00x").unwrap();
    assert_eq!(read(&a, 3), b"\xff\x00x");
    // More than any buffer on the way, so that the writer has to wait for the reader.
    let data: Vec<u8> = (0..300_000u32).map(|n| (n * 7) as u8).collect();
    let copy = data.clone();
    let writer = std::thread::spawn(move || b.write_all(&copy).map(|()| b));
    assert!(read(&a, data.len()) == data);
    let b = writer.join().unwrap().unwrap();
    drop(a);
    // One end is still open: the pair stays, and A can be opened again.
    let mut a = held.open('A');
    a.write_all(b"again").unwrap();
    assert_eq!(read(&b, 5), b"again");
    drop((a, b));
    held.ended();
}

#[test]
fn what_was_said_before_anybody_listened_is_heard() {
    let held = Held::new("early", Life::Open);
    let mut a = held.open('A');
    a.write_all(b"login: ").unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let b = held.open('B');
    assert_eq!(read(&b, 7), b"login: ");
    drop(a);
}

#[test]
fn a_closed_end_drops_the_others_carrier() {
    let held = Held::new("carrier", Life::Open);
    let (a, mut b) = (held.open('A'), held.open('B'));
    local(&b, false);
    drop(a);
    let mut rest = [0; 8];
    // Hung up: the end of the file, or an I/O error after it.
    assert!(matches!(b.read(&mut rest), Ok(0) | Err(_)));
    // A new terminal is behind the name.
    let (mut a, b) = (held.open('A'), held.open('B'));
    a.write_all(b"new").unwrap();
    assert_eq!(read(&b, 3), b"new");
}

#[test]
fn a_kept_pair_waits_for_its_user_and_a_second_holder_is_not_needed() {
    let held = Held::new("kept", Life::Forever);
    drop((held.open('A'), held.open('B')));
    let pair = Pair::new(&held.folder, "0").unwrap();
    let mut own = true;
    hold(&pair, Life::Open, &held.stop, |ours| own = ours).unwrap();
    assert!(!own && pair.is_held().unwrap());
    assert_eq!(super::super::resolve(&held.folder.join("nmdm0B")).unwrap(), held.folder.join("nmdm0B"));
}

#[test]
fn a_file_in_the_way_stays() {
    let folder = std::env::temp_dir().join(format!("nmdm-way-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("nmdm0A"), "mine").unwrap();
    let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let pair = Pair::new(&folder, "0").unwrap();
    assert!(hold(&pair, Life::Open, &stop, |_| {}).is_err());
    assert_eq!(std::fs::read(folder.join("nmdm0A")).unwrap(), b"mine");
    assert!(!Path::new(&pair.lock_path()).exists());
    std::fs::remove_dir_all(&folder).unwrap();
}
