//! The main job on this terminal: a stock Debian kernel, a disk, a shell.

use std::fs::File;
use std::process::{Command, ExitCode};

use guest_tests::artifacts::{Cache, Disk, Flavour, Initramfs, Kernel, Script};
use guest_tests::{Machine, Result, Vmm};
use lexopt::Parser;

use crate::{build, no_arguments};

/// Runs in the guest before the shell.
const RC: &str = "\
mount -t ext4 /dev/vda /mnt
marker=\"This is $(uname -sr) in a bhyve guest; its disk is on /mnt. End it with: poweroff\"
";

/// The disk's size.
const DISK: u64 = 1 << 30;

/// Builds and boots.
pub fn run(parser: &mut Parser) -> Result<ExitCode> {
    no_arguments(parser)?;
    let binary = build::bhyve()?;
    let cache = Cache::open()?;
    let folder = cache.root().join("demo");
    std::fs::create_dir_all(&folder)?;
    let lock = File::create(folder.join("lock"))?;
    if lock.try_lock().is_err() {
        return Err("another demo is running: it has the disk".into());
    }
    let kernel = Kernel::fetch(&cache, Flavour::Cloud)?;
    let initrd = Initramfs::new(&kernel, Script::Shell).file("etc/rc", 0o755, RC.into()).build(&cache)?;
    let content = cache.get_or_make("demo/content", |path| {
        std::fs::create_dir(path)?;
        Ok(std::fs::write(path.join("README"), "What you write here is there on the next demo.\n")?)
    })?;
    let disk =
        cache.get_or_make("demo/disk.img", |path| Disk::ext4(DISK, "demo").content(&content).build(path))?;
    let machine = Machine::new("demo", &kernel.image, &initrd).disk(&disk).cmdline("quiet");
    let mut command = machine.command(&Vmm::Bhyve { binary, engine: "auto".to_owned() });
    println!("{}", quoted(&command));
    let status = command.status()?;
    match status.code() {
        Some(0) => println!("\nThe guest reset (status 0)."),
        Some(1) => println!("\nThe guest powered off (status 1)."),
        Some(code) => {
            eprintln!("\nbhyve ended with status {code}");
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
        }
        None => return Err(format!("bhyve: {status}").into()),
    }
    Ok(ExitCode::SUCCESS)
}

/// A command line as one would type it.
fn quoted(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for word in command.get_args() {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_alphanumeric() || "-_=:,./+%@".contains(c);
        line.push(' ');
        if word.chars().all(plain) {
            line.push_str(&word);
        } else {
            line.extend(["'", &word.replace('\'', r"'\''"), "'"]);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_line_can_be_typed() {
        let mut command = Command::new("bhyve");
        command.args(["-s3:0,virtio-blk,/a.img", "-o", "kernel.cmdline=console=ttyS0 quiet", "it's"]);
        let line = quoted(&command);
        assert_eq!(line, r"bhyve -s3:0,virtio-blk,/a.img -o 'kernel.cmdline=console=ttyS0 quiet' 'it'\''s'");
    }
}
