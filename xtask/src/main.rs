//! What is done with this tree besides `cargo build`: `cargo xtask help` lists it.

mod bench;
mod build;
mod demo;
mod fuzz;
mod image;
mod install;
mod lint;
mod nested;
mod suite;
mod test;
mod zfs;

use std::process::ExitCode;

use guest_tests::Result;
use lexopt::{Arg, Parser};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  demo                      boot a stock Debian kernel to a shell on this terminal
  install [--prefix /usr/local]
                            build and install the programs
  test                      build everything and run all tests
  lint                      formatting, clippy and the rules of the house
  bench boot [--runs 5] [--cpus N] [--memory SIZE] [--kernel cloud|generic] [--json]
                            time from start to the first process, against QEMU
  bench cpu [--json]        a CPU benchmark, natively, in our guest and in QEMU's
  bench disk [--runs 3]     a raw file against a block device as the guest's disk
  bench grub [--runs 5]     grub-bhyve's way to its prompt, and loading against cat
  image debian              make a Debian disk image; prints its path
  image ext4|lvm|xfs|btrfs|raid1|luks
                            make the disks of a Debian system that its own grub.cfg boots; prints them
  image zfs                 make the ZFS pools of the tests (crates/media/tests/images)
  guest-suite [--vmm bhyve|qemu] [--stress MINUTES]
                            boot that image and work in it
  fuzz [--minutes N] [TARGET ...]
                            fuzz the readers of foreign bytes
  nested                    stock Linux under a real KVM, on a processor that QEMU emulates
";

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let mut parser = Parser::from_env();
    let mut words = Vec::new();
    // The command may have two words; its options are its own.
    while let Some(Arg::Value(word)) = parser.next()? {
        words.push(word.to_string_lossy().into_owned());
        let command: Vec<&str> = words.iter().map(String::as_str).collect();
        match command.as_slice() {
            ["bench" | "image"] => {}
            ["demo"] => return demo::run(&mut parser),
            ["test"] => return test::run(&mut parser),
            ["lint"] => return lint::run(&mut parser),
            ["bench", "boot"] => return bench::boot::run(&mut parser),
            ["bench", "grub"] => return bench::grub::run(&mut parser),
            ["bench", "disk"] => return bench::disk::run(&mut parser),
            ["bench", "cpu"] => return bench::cpu::run(&mut parser),
            ["image", "zfs"] => return zfs::run(&mut parser),
            ["image", "debian"] => return image::run(&mut parser),
            ["image", layout] => return image::system(&mut parser, layout),
            ["guest-suite"] => return suite::run(&mut parser),
            ["install"] => return install::run(&mut parser),
            ["fuzz"] => return fuzz::run(&mut parser),
            ["nested"] => return nested::run(&mut parser),
            ["help"] => {
                print!("{USAGE}");
                return Ok(ExitCode::SUCCESS);
            }
            _ => break,
        }
    }
    eprint!("{USAGE}");
    Ok(ExitCode::from(64))
}

/// Refuses arguments where there are none to give.
fn no_arguments(parser: &mut Parser) -> Result<()> {
    match parser.next()? {
        Some(argument) => Err(argument.unexpected().into()),
        None => Ok(()),
    }
}
