//! Network, random numbers and the paravirtual console.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use guest_tests::{Guest, Lab, Namespace, Result, Scratch, is_root};

const BOOT: Duration = Duration::from_mins(3);

/// A namespace with a tap, or why there is none.
fn namespace() -> Option<Namespace> {
    if !is_root() {
        eprintln!("skipped: only root can make a tap");
        return None;
    }
    Namespace::new().map_err(|error| eprintln!("skipped: no network namespace: {error}")).ok()
}

#[test]
fn ping_both_ways_over_a_tap() -> Result<()> {
    let Some(lab) = Lab::or_skip() else { return Ok(()) };
    let Some(namespace) = namespace() else { return Ok(()) };
    let mut guest = Guest::spawn(&lab.machine("net").network(&namespace), &lab.vmm)?;
    guest.wait_shell(BOOT)?;
    guest.check("ip link set eth0 up && ip addr add 10.77.0.2/24 dev eth0")?;
    let host = namespace.host_address();
    guest.check(&format!("ping -c 3 -W 5 {host}"))?;
    // A frame longer than one page of the ring's buffers, in fragments.
    let report = guest.check(&format!("ping -c 20 -i 0.05 -s 4000 -W 5 {host}"))?;
    assert!(report.contains("20 packets received"), "{report}");
    let address = guest.check("cat /sys/class/net/eth0/address")?;
    namespace.run("ip", &["neigh", "flush", "dev", namespace.tap()])?;
    let busybox = lab.cache.package("busybox-static")?.join("bin/busybox");
    namespace.run(&busybox.to_string_lossy(), &["ping", "-c", "3", "-W", "5", "10.77.0.2"])?;
    let neighbours = namespace.run("ip", &["neigh", "show", "10.77.0.2"])?;
    assert!(neighbours.contains(address.trim()), "{neighbours} has {address}");
    Ok(())
}

#[test]
fn a_stream_over_a_tap_arrives_whole() -> Result<()> {
    let Some(lab) = Lab::or_skip() else { return Ok(()) };
    let Some(namespace) = namespace() else { return Ok(()) };
    let mut guest = Guest::spawn(&lab.machine("stream").network(&namespace), &lab.vmm)?;
    guest.wait_shell(BOOT)?;
    guest.check("ip link set eth0 up && ip addr add 10.77.0.2/24 dev eth0")?;
    guest.check("dd if=/dev/urandom of=/tmp/data bs=64k count=512 2>/dev/null")?;
    let sum = guest.check("md5sum </tmp/data")?;
    let busybox = lab.cache.package("busybox-static")?.join("bin/busybox");
    let echo = format!("exec {0} nc -l -p 7777 | {0} md5sum", busybox.display());
    let mut server = namespace.command("sh");
    // Its input stays open: at its end nc would end the connection, whatever comes in.
    let server = server.args(["-c", &echo]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let connect = format!("nc -w 30 {} 7777 </tmp/data", namespace.host_address());
    guest.check(&format!("for i in 1 2 3 4 5 6 7 8 9 10; do {connect} && break; sleep 0.3; done"))?;
    let received = String::from_utf8(server.wait_with_output()?.stdout)?;
    assert_eq!(received, sum, "32 MiB from the guest to the host");
    Ok(())
}

#[test]
fn random_numbers_come_from_the_host() -> Result<()> {
    let Some(lab) = Lab::or_skip() else { return Ok(()) };
    let mut guest = Guest::spawn(&lab.machine("rnd"), &lab.vmm)?;
    guest.wait_shell(BOOT)?;
    let current = guest.check("cat /sys/class/misc/hw_random/rng_current")?;
    assert!(current.starts_with("virtio_rng"), "{current}");
    let read = "dd if=/dev/hwrng bs=4k count=16 iflag=fullblock 2>/dev/null";
    assert_eq!(guest.check(&format!("{read} | wc -c"))?.trim(), "65536");
    let first = guest.check(&format!("{read} | md5sum"))?;
    let second = guest.check(&format!("{read} | md5sum"))?;
    assert_ne!(first, second);
    Ok(())
}

#[test]
fn a_console_port_talks_to_its_socket() -> Result<()> {
    let Some(lab) = Lab::or_skip() else { return Ok(()) };
    let folder = Scratch::new("port")?;
    let socket = folder.path().join("port.sock");
    let mut guest = Guest::spawn(&lab.machine("port").port("org.example.test", &socket), &lab.vmm)?;
    guest.wait_shell(BOOT)?;
    let port = guest.check("grep -l org.example.test /sys/class/virtio-ports/*/name")?;
    let port = port.trim().rsplit('/').nth(1).ok_or("no port")?.to_owned();
    let mut host = UnixStream::connect(&socket)?;
    host.set_read_timeout(Some(Duration::from_mins(1)))?;
    let mut lines = BufReader::new(host.try_clone()?);
    let mut line = String::new();
    guest.check("sleep 1")?;
    guest.check(&format!("echo from the guest >/dev/{port}"))?;
    lines.read_line(&mut line)?;
    assert_eq!(line, "from the guest\n");
    host.write_all(b"from the host\n")?;
    assert_eq!(guest.check(&format!("head -n 1 </dev/{port}"))?, "from the host\n");
    Ok(())
}
