//! Work in a whole Debian guest, for whoever wants to see it: minutes, not for every change.

use std::process::ExitCode;
use std::time::Duration;

use guest_tests::artifacts::{Cache, Flavour, Initramfs, Kernel, Script, copy_image};
use guest_tests::{Chipset, Guest, Machine, Namespace, Result, Scratch, Vmm, is_root};
use lexopt::{Arg, Parser, ValueExt};

use crate::build;
use crate::image;

/// From the start to the login prompt.
const BOOT: Duration = Duration::from_mins(10);

/// A C program for the guest's compiler, as an argument of printf(1).
const PROGRAM: &str = r#"'#include <stdio.h>\nint main(void) { printf("%%d", 6 * 7); return 0; }\n'"#;

/// Boots and works.
pub fn run(parser: &mut Parser) -> Result<ExitCode> {
    let (mut vmm, mut stress) = (None, 10_u64);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("vmm") => {
                vmm = match parser.value()?.string()?.as_str() {
                    "bhyve" => None,
                    "qemu" => Some(Vmm::Qemu { chipset: Chipset::Q35 }),
                    other => return Err(format!("--vmm {other}: neither bhyve nor qemu").into()),
                }
            }
            Arg::Long("stress") => stress = parser.value()?.parse()?,
            other => return Err(other.unexpected().into()),
        }
    }
    let vmm = match vmm {
        Some(vmm) => vmm,
        None => Vmm::Bhyve { binary: build::bhyve()?, engine: "soft".to_owned() },
    };
    let cache = Cache::open()?;
    let kernel = Kernel::fetch(&cache, Flavour::Cloud)?;
    let scratch = Scratch::new("suite")?;
    let disk = scratch.path().join("disk.img");
    copy_image(&image::debian(&cache, &kernel)?, &disk)?;
    let initrd = Initramfs::new(&kernel, Script::Disk).build(&cache)?;
    let mut machine =
        Machine::new("debian", &kernel.image, &initrd).cpus(2).memory("1G").disk(&disk).cmdline("quiet");
    let namespace = if is_root() { Some(Namespace::new()?) } else { None };
    if let Some(namespace) = &namespace {
        machine = machine.network(namespace);
    }
    let mut guest = Guest::spawn(&machine, &vmm)?;
    guest.log_in(BOOT)?;
    say(&format!("login prompt after {:.1} s", guest.process().started().elapsed().as_secs_f64()));
    programs(&mut guest)?;
    fio(&mut guest)?;
    if let Some(namespace) = &namespace {
        network(&mut guest, namespace)?;
    }
    let seconds = stress * 60;
    let command = format!("stress-ng --cpu 2 --vm 1 --vm-bytes 128M --verify --timeout {seconds}s 2>&1");
    step(&mut guest, "stress-ng", &command, Duration::from_secs(seconds + 300))?;
    let (status, trouble) = guest.run("dmesg | grep -E 'BUG|Oops|Call Trace|soft lockup'")?;
    if status == 0 {
        return Err(format!("the kernel complains:\n{trouble}").into());
    }
    guest.type_line("poweroff")?;
    let exit = guest.wait_exit(Duration::from_mins(3))?;
    say(&format!("powered off: {}, {:.0} s of CPU", exit.status, exit.cpu.as_secs_f64()));
    let expected = i32::from(matches!(vmm, Vmm::Bhyve { .. }));
    if exit.status.code() != Some(expected) {
        return Err(format!("status {expected} was due").into());
    }
    Ok(ExitCode::SUCCESS)
}

/// Package tool, interpreter, compiler.
fn programs(guest: &mut Guest) -> Result<()> {
    let minutes = Duration::from_mins(5);
    step(guest, "apt-get", "apt-get --version | head -n 1", minutes)?;
    step(guest, "python3", "test $(python3 -c 'print(sum(range(1000)))') = 499500", minutes)?;
    let compile = format!("printf {PROGRAM} >/tmp/a.c && gcc -O2 -o /tmp/a /tmp/a.c && test $(/tmp/a) = 42");
    step(guest, "gcc", &compile, minutes)
}

/// Writes, reads back and verifies.
fn fio(guest: &mut Guest) -> Result<()> {
    let command = "fio --name=v --filename=/var/tmp/fio --size=128M --rw=randwrite --bs=4k --ioengine=libaio \
                   --iodepth=16 --direct=1 --verify=crc32c --do_verify=1 --output-format=terse >/tmp/fio.log 2>&1; \
                   result=$?; rm -f /var/tmp/fio; (exit $result)";
    step(guest, "fio", command, Duration::from_mins(10))
}

/// Throughput both ways, and a flood of small packets.
fn network(guest: &mut Guest, namespace: &Namespace) -> Result<()> {
    let interface = guest.check("ls /sys/class/net | grep -v lo | head -n 1")?;
    let interface = interface.trim();
    guest.check(&format!("ip link set {interface} up && ip addr add 10.77.0.2/24 dev {interface}"))?;
    let host = namespace.host_address();
    let mut server = namespace.command("iperf3").args(["-s"]).stdout(std::process::Stdio::null()).spawn()?;
    std::thread::sleep(Duration::from_secs(1));
    let mut results = Vec::new();
    for (name, option) in [("iperf3 out", ""), ("iperf3 in", "-R")] {
        let command = format!("iperf3 -c {host} -t 10 {option} | grep -E 'sender|receiver'");
        results.push(step(guest, name, &command, Duration::from_mins(2)));
    }
    server.kill()?;
    server.wait()?;
    results.into_iter().collect::<Result<()>>()?;
    step(
        guest,
        "ping -f",
        &format!("ping -f -c 20000 {host} | grep ' 0% packet loss'"),
        Duration::from_mins(5),
    )
}

/// Runs one command that must succeed.
fn step(guest: &mut Guest, name: &str, command: &str, timeout: Duration) -> Result<()> {
    let start = std::time::Instant::now();
    let (status, output) = guest.run_for(command, timeout)?;
    if status != 0 {
        // A process that died of a fault left a line there with its address and bytes.
        let (_, kernel) = guest.run("dmesg | tail -n 20")?;
        return Err(format!("{name} gave {status}:\n{output}\ndmesg:\n{kernel}").into());
    }
    say(&format!("{name}: passed in {:.1} s\n{}", start.elapsed().as_secs_f64(), output.trim()));
    Ok(())
}

fn say(text: &str) {
    println!("{}", text.trim_end());
}
