//! How long `grub-bhyve` takes to ask, and to load a kernel and an initrd, against `cat` of the same bytes.

use std::io::Write;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use guest_tests::artifacts::{Disk, run as output};
use guest_tests::{Lab, Result, Shell};
use lexopt::{Arg, Parser, ValueExt};

use super::median;
use crate::build;

const LIMIT: Duration = Duration::from_mins(1);
/// Kernel and initrd together.
const LOAD: usize = 60 << 20;

/// Measures and prints.
pub fn run(parser: &mut Parser) -> Result<ExitCode> {
    let mut runs = 5_u32;
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("runs") => runs = parser.value()?.parse()?,
            other => return Err(other.unexpected().into()),
        }
    }
    build::bhyve()?;
    let lab = Lab::new()?;
    let mut shell = Shell::new("bench-grub", None)?;
    let tree = shell.folder().join("tree");
    std::fs::create_dir(&tree)?;
    let kernel = std::fs::read(&lab.kernel.image)?;
    let rest = LOAD.saturating_sub(kernel.len());
    std::fs::write(tree.join("kernel"), &kernel)?;
    // Nothing that could be a hole.
    let noise: Vec<u8> = (0..rest as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    std::fs::File::create(tree.join("initrd"))?.write_all(&noise)?;
    Disk::ext4(256 << 20, "bench").content(&tree).build(&shell.folder().join("disk.img"))?;
    std::fs::write(shell.folder().join("device.map"), "(hd0) ./disk.img\n")?;
    let (mut ask, mut load, mut cat) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        let start = Instant::now();
        shell.type_line("grub-bhyve -m device.map -r hd0 -M 512M bench")?;
        shell.expect("grub> ", LIMIT)?;
        ask.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        shell.type_line("linux /kernel")?;
        shell.expect("grub> ", LIMIT)?;
        shell.type_line("initrd /initrd")?;
        shell.expect("grub> ", LIMIT)?;
        shell.type_line("boot")?;
        let (status, said) = shell.finish(LIMIT)?;
        load.push(start.elapsed().as_secs_f64());
        if status != 0 {
            return Err(format!("grub-bhyve ended with {status}: {said}").into());
        }
        let start = Instant::now();
        // To a file in memory: what is loaded has to go somewhere, too.
        let script = format!(
            "cat {0}/kernel {0}/initrd >/dev/shm/bench-grub-$$; rm /dev/shm/bench-grub-$$",
            tree.display()
        );
        output(Command::new("sh").args(["-c", &script]))?;
        cat.push(start.elapsed().as_secs_f64());
    }
    let (ask, load, cat) = (median(&ask) * 1e3, median(&load) * 1e3, median(&cat) * 1e3);
    println!("medians of {runs}");
    println!("from the command to the prompt     {ask:7.1} ms");
    println!("linux, initrd and boot, {} MiB     {load:7.1} ms", LOAD >> 20);
    println!("cat of both to /dev/shm            {cat:7.1} ms   (ratio {:.2})", load / cat);
    Ok(ExitCode::SUCCESS)
}
