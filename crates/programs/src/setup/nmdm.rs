//! `bhyve-host nmdm`: null-modem pairs, and the process that holds one.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

use host::tty::nmdm::{End, Life, Pair, READY, hold, start};
use lexopt::{Arg, Parser};

use super::{Result, text, usage};

/// Makes a pair, or holds one.
pub fn run(parser: &mut Parser) -> Result<ExitCode> {
    let (mut id, mut keep, mut dry_run, mut held) = (None, false, false, None);
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("keep") => keep = true,
            Arg::Short('n') | Arg::Long("dry-run") => dry_run = true,
            // Ours only: what the programs that open a pair run.
            Arg::Long("hold") => held = Some(text(parser.value()?)?),
            Arg::Value(value) if id.is_none() => id = Some(text(value)?),
            arg => return Err(arg.unexpected().into()),
        }
    }
    if let Some(path) = held {
        let pair =
            End::parse(Path::new(&path)).ok_or_else(|| usage(format!("{path}: not nmdmXA or nmdmXB")))?.pair;
        return carry(&pair, keep);
    }
    let id = id.ok_or_else(|| usage("nmdm: which pair? Such as nmdm 0, for nmdm0A and nmdm0B"))?;
    let folder = Pair::folder().map_err(|error| error.to_string())?;
    let pair = Pair::new(&folder, &id).ok_or_else(|| usage(format!("nmdm {id}: not a name")))?;
    let (a, b) = (pair.end('A').path(), pair.end('B').path());
    if !dry_run {
        start(&pair, keep).map_err(|error| error.to_string())?;
    }
    println!("{} {}", a.display(), b.display());
    Ok(ExitCode::SUCCESS)
}

/// Holds the pair until its end.
fn carry(pair: &Pair, keep: bool) -> Result<ExitCode> {
    // Not the session of whoever started us: its signals and its end would be ours.
    let _ = rustix::process::setsid();
    let stop = stop_event().map_err(|error| error.to_string())?;
    let life = if keep { Life::Forever } else { Life::Open };
    let shown = pair.end('A').path();
    let ready = |_| {
        println!("{READY}");
        let _ = std::io::stdout().flush();
        silence();
    };
    hold(pair, life, &stop, ready).map_err(|error| format!("{}: {error}", shown.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Readable once the process is told to end.
fn stop_event() -> std::io::Result<OwnedFd> {
    let (read, write) = std::io::pipe()?;
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT, signal_hook::consts::SIGHUP] {
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    Ok(read.into())
}

/// Lets go of the standard streams: whoever reads them must not wait for us.
fn silence() {
    let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") else { return };
    let _ = rustix::stdio::dup2_stdin(&null);
    let _ = rustix::stdio::dup2_stdout(&null);
    let _ = rustix::stdio::dup2_stderr(&null);
}
