//! A raw file against a block device as the guest's disk, and ours against QEMU's.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use guest_tests::artifacts::{run as output, sparse_file};
use guest_tests::{Guest, Lab, Result, Scratch, Vmm, is_root};
use lexopt::{Arg, Parser, ValueExt};

use super::{contestants, median};
use crate::build;

const BOOT: Duration = Duration::from_mins(5);
/// Bytes that each pass moves, in units of the largest request.
const MEBIBYTES: u32 = 256;
/// Requests of 4 KiB in a pass.
const SMALL: u32 = 8192;

/// A pass: what it is called, the command, and how many MiB it moves.
const PASSES: [(&str, &str, f64); 4] = [
    ("write 1M", "dd if=/dev/zero of=/dev/vda bs=1M count=256 oflag=direct", 256.0),
    ("read 1M", "dd if=/dev/vda of=/dev/null bs=1M count=256 iflag=direct", 256.0),
    ("write 4k", "dd if=/dev/zero of=/dev/vda bs=4k count=8192 oflag=direct", 32.0),
    ("read 4k", "dd if=/dev/vda of=/dev/null bs=4k count=8192 iflag=direct", 32.0),
];

/// Measures and prints.
pub fn run(parser: &mut Parser) -> Result<ExitCode> {
    let mut runs = 3_u32;
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("runs") => runs = parser.value()?.parse()?,
            other => return Err(other.unexpected().into()),
        }
    }
    let contestants = contestants(build::bhyve()?);
    let scratch = Scratch::new("bench-disk")?;
    let file = scratch.path().join("raw.img");
    sparse_file(&file, u64::from(MEBIBYTES) << 20)?;
    // Both are written once before they are measured: a hole costs an allocation.
    std::fs::write(&file, vec![1; (MEBIBYTES as usize) << 20])?;
    let device = Loop::new(&scratch)?;
    let mut disks = vec![("raw file", file)];
    match &device {
        Some(device) => disks.push(("block device", device.path.clone())),
        None => eprintln!("only root can make a loop device: no block device is measured"),
    }
    println!("MiB/s inside the guest, medians of {runs}; {SMALL} requests of 4 KiB");
    print!("{:28}", "");
    for (name, _, _) in PASSES {
        print!(" {name:>10}");
    }
    println!();
    for (name, vmm) in &contestants {
        for (kind, path) in &disks {
            print!("{:28}", format!("{name}, {kind}"));
            for speed in measure(vmm, path, runs)? {
                print!(" {speed:10.1}");
            }
            println!();
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The speeds of all passes.
fn measure(vmm: &Vmm, disk: &Path, runs: u32) -> Result<Vec<f64>> {
    let lab = Lab::new()?;
    let mut guest = Guest::spawn(&lab.machine("bench").disk(disk), vmm)?;
    guest.wait_shell(BOOT)?;
    let mut speeds = Vec::new();
    for (_, command, mebibytes) in PASSES {
        let mut samples = Vec::new();
        for _ in 0..runs {
            // The guest's own clock: typing the command takes no part of the time.
            let said = guest.check(&format!(
                "read a b </proc/uptime; {command} 2>/dev/null; read c d </proc/uptime; echo $a $c"
            ))?;
            let times: Vec<f64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            let [start, end] = times.as_slice() else { return Err(format!("no times: {said}").into()) };
            samples.push(mebibytes / (end - start).max(0.01));
        }
        speeds.push(median(&samples));
    }
    guest.type_line("poweroff -f")?;
    guest.wait_exit(BOOT)?;
    Ok(speeds)
}

/// A block device on a file of its own.
struct Loop {
    path: PathBuf,
}

impl Loop {
    fn new(scratch: &Scratch) -> Result<Option<Self>> {
        if !is_root() {
            return Ok(None);
        }
        let file = scratch.path().join("device.img");
        std::fs::write(&file, vec![1; (MEBIBYTES as usize) << 20])?;
        let said = output(Command::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(&file))?;
        Ok(Some(Self { path: String::from_utf8_lossy(&said).trim().into() }))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = output(Command::new("losetup").arg("-d").arg(&self.path));
    }
}
