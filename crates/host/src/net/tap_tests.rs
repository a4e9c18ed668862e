#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd};
use std::time::{Duration, Instant};

use memory::{Backing, GuestMemory};

use super::*;
use crate::net::Waker;

/// Runs `test` in a network namespace of its own, which ends with the thread.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    std::thread::spawn(|| {
        // SAFETY: moves only this thread, which holds no network resource yet.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            println!("no network namespace: {}; taps not tested", io::Error::last_os_error());
            return;
        }
        if let Err(TapError::NoDriver { name }) = Tap::open("tapcheck") {
            println!("no tap driver for {name}; taps not tested");
            return;
        }
        test();
    })
    .join()
    .unwrap();
}

/// A packet socket on interface `name`: what the host's side of the tap sends and sees.
fn packet_socket(name: &str) -> OwnedFd {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    let c_name = std::ffi::CString::new(name).unwrap();
    // SAFETY: plain system calls on memory of this function; the descriptor is ours alone.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol));
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        let fd = OwnedFd::from_raw_fd(fd);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = libc::if_nametoindex(c_name.as_ptr()) as i32;
        assert_ne!(address.sll_ifindex, 0);
        let len = size_of::<libc::sockaddr_ll>() as u32;
        assert_eq!(libc::bind(fd.as_raw_fd(), std::ptr::from_ref(&address).cast(), len), 0);
        let wait = libc::timeval { tv_sec: 5, tv_usec: 0 };
        let (level, option) = (libc::SOL_SOCKET, libc::SO_RCVTIMEO);
        let len = size_of::<libc::timeval>() as u32;
        libc::setsockopt(fd.as_raw_fd(), level, option, std::ptr::from_ref(&wait).cast(), len);
        fd
    }
}

/// An Ethernet frame of a protocol that the host's stack leaves alone.
fn frame(len: usize) -> Vec<u8> {
    let mut frame = vec![0x42; len];
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    // Local experimental EtherType 1 (IEEE 802, 9.2.4).
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

fn is_ours(data: &[u8]) -> bool {
    data.get(12..14) == Some(&[0x88, 0xb5])
}

fn ram() -> GuestMemory {
    GuestMemory::new(&[(0, 1 << 20)], &Backing::Anonymous).unwrap()
}

#[test]
fn frames_go_both_ways_with_headers_of_both_lengths() {
    in_namespace(|| {
        let tap = Tap::open("tap7").unwrap();
        let (host, ram) = (packet_socket("tap7"), ram());
        for header in [10usize, 12] {
            tap.set_header_len(header).unwrap();
            let sent = frame(100);
            ram.fill(0, 0, header as u64).unwrap();
            ram.write(header as u64, &sent).unwrap();
            let bufs = [ram.slice(0, 20).unwrap(), ram.slice(20, 80 + header as u64).unwrap()];
            assert_eq!(tap.send(&bufs).unwrap(), 100 + header);
            let mut seen = [0; 2048];
            loop {
                let n = rustix::io::read(&host, &mut seen).unwrap();
                if is_ours(&seen[..n]) {
                    assert_eq!(seen[..n], sent);
                    break;
                }
            }
            rustix::io::write(&host, &frame(60)).unwrap();
            let got = receive_ours(&tap, &ram, header);
            assert_eq!(got, frame(60));
        }
    });
}

/// The next frame of [`frame`]'s protocol, through scattered buffers.
fn receive_ours(tap: &Tap, ram: &GuestMemory, header: usize) -> Vec<u8> {
    let waker = Waker::new().unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    let bufs = [ram.slice(0x1000, 16).unwrap(), ram.slice(0x1010, 2048).unwrap()];
    while Instant::now() < end {
        assert!(waker.wait_readable(tap).unwrap().backend);
        let n = match tap.receive(&bufs) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(e) => panic!("{e}"),
        };
        let mut data = vec![0; n];
        ram.read(0x1000, &mut data).unwrap();
        if is_ours(&data[header..]) {
            return data.split_off(header);
        }
    }
    panic!("no frame");
}

#[test]
fn frames_that_do_not_fit_are_told() {
    in_namespace(|| {
        let tap = Tap::open("tap7").unwrap();
        let (host, ram) = (packet_socket("tap7"), ram());
        // Take what the host's stack sends by itself first.
        rustix::io::write(&host, &frame(1000)).unwrap();
        let bufs = [ram.slice(0, 50).unwrap()];
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            assert!(Instant::now() < end);
            match tap.receive(&bufs) {
                Err(e) if e.kind() == io::ErrorKind::InvalidData => break,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                other => drop(other.unwrap()),
            }
        }
    });
}

#[test]
fn mtu_and_offloads_are_set() {
    in_namespace(|| {
        let tap = Tap::open("tap7").unwrap();
        assert_eq!(tap.mtu().unwrap(), Some(1500));
        tap.set_mtu(9000).unwrap();
        assert_eq!(tap.mtu().unwrap(), Some(9000));
        let all = tap.offloads();
        assert!(all.checksum && all.tso4 && all.tso6, "{all:?}");
        tap.set_offloads(all).unwrap();
        tap.set_offloads(Offloads::default()).unwrap();
    });
}

#[test]
fn a_tap_is_exclusive_and_other_interfaces_are_refused() {
    in_namespace(|| {
        let tap = Tap::open("tap7").unwrap();
        assert!(matches!(Tap::open("tap7"), Err(TapError::Busy { .. })));
        drop(tap);
        assert!(matches!(Tap::open("lo"), Err(TapError::NotTap { .. })));
        Tap::open("tap7").unwrap();
    });
}

#[test]
fn errors_name_the_tap_and_say_what_to_do() {
    let denied = || io::Error::from(Errno::PERM);
    let text = attach_error("tap3", false, denied()).to_string();
    assert!(text.contains("tap3 does not exist") || text.contains("open tap3: it does not exist"), "{text}");
    assert!(text.contains("ip tuntap add tap3 mode tap"), "{text}");
    let text = attach_error("tap3", true, denied()).to_string();
    assert!(text.contains("tap3: permission denied"), "{text}");
    let text = driver_error("tap3", Errno::NOENT.into()).to_string();
    assert!(text.contains("tap3") && text.contains("modprobe tun"), "{text}");
    let text = driver_error("tap3", Errno::ACCESS.into()).to_string();
    assert!(text.contains("tap3") && text.contains("Permission denied"), "{text}");
    for bad in ["", "a/b", "tap%d", "tap 0", "..", "abcdefghijklmnop"] {
        assert!(matches!(Tap::open(bad), Err(TapError::Name(_))), "{bad}");
    }
}
