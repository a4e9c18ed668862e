//! `bhyve-host`: what `kldload`, `ifconfig`, `sysctl` and `rc.conf` do on FreeBSD, with Linux's own tools.

mod check;
mod network;
mod nmdm;
mod persist;
mod plan;
mod rcconf;

use std::process::ExitCode;

use lexopt::{Arg, Parser};

use plan::Plan;

/// Exit status of a bad command line, as sysexits(3) has it.
const EXIT_USAGE: u8 = 64;

/// What `--help` prints.
pub const USAGE: &str = "\
usage: bhyve-host check
       bhyve-host tap [-n] [--user USER] [--bridge BRIDGE] TAP
       bhyve-host tap [-n] --destroy TAP
       bhyve-host bridge [-n] [--move-address] BRIDGE [MEMBER ...]
       bhyve-host bridge [-n] --destroy BRIDGE
       bhyve-host nmdm [-n] [--keep] ID
       bhyve-host persist [-n] [--root DIR] [--bindir DIR] [--force] [--vm NAME] [-f FILE] [SETTING ...]

  check      tells whether this host's processor has what bhyve wants, and which engine would run guests
  tap        makes a tap interface that is up, for USER to open, as a member of BRIDGE
  bridge     makes a bridge that is up, and puts interfaces into it
  nmdm       makes the null-modem pair nmdmIDA and nmdmIDB; --keep: until it is killed
  persist    does at each boot what settings of FreeBSD's rc.conf and sysctl.conf say, such as
             cloned_interfaces=\"bridge0 tap0\"; starts the VMs NAME

  -n, --dry-run   print what would be done, and do nothing
";

/// Why nothing was done: the text, and the exit status.
#[derive(Debug)]
pub struct Failure(pub String, pub u8);

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self(text, 1)
    }
}

impl From<lexopt::Error> for Failure {
    fn from(error: lexopt::Error) -> Self {
        Self(error.to_string(), EXIT_USAGE)
    }
}

/// Result of a subcommand.
pub type Result<T> = std::result::Result<T, Failure>;

fn usage(text: impl Into<String>) -> Failure {
    Failure(text.into(), EXIT_USAGE)
}

/// Runs the command line.
pub fn run(parser: &mut Parser) -> Result<ExitCode> {
    match parser.next()? {
        None => Err(usage("what to do? One of check, tap, bridge, nmdm, persist; --help tells more")),
        Some(Arg::Long("help") | Arg::Short('h')) => {
            print!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        Some(Arg::Value(word)) => match word.to_str() {
            Some("check") => check::run(parser),
            Some("tap") => network::tap(parser),
            Some("bridge") => network::bridge(parser),
            Some("nmdm") => nmdm::run(parser),
            Some("persist") => persist::run(parser),
            _ => Err(usage(format!(
                "{}: not one of check, tap, bridge, nmdm, persist",
                word.to_string_lossy()
            ))),
        },
        Some(arg) => Err(arg.unexpected().into()),
    }
}

/// Does what the plan says, or prints it.
fn carry_out(plan: &Plan, dry_run: bool) -> Result<ExitCode> {
    if dry_run {
        print!("{plan}");
    } else {
        plan.run()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A word of the command line.
fn word(parser: &mut Parser) -> Result<String> {
    text(parser.value()?)
}

fn text(value: std::ffi::OsString) -> Result<String> {
    value.into_string().map_err(|value| usage(format!("{}: not UTF-8", value.to_string_lossy())))
}
