//! Signals of the process: SIGTERM is the power button once the guest listens to it; whatever
//! ends the process first gives the terminal back.

use std::sync::Arc;
use std::thread::JoinHandle;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use signal_hook::low_level::emulate_default_handler;

use crate::{Error, Result};

/// What signals do to the machine.
pub trait Reaction: Send + Sync {
    /// Presses the power button, if the guest has turned ACPI on; the answer is whether it has.
    fn power_button(&self) -> bool;
    /// The process is about to end: gives back what outlives it.
    fn before_end(&self);
}

/// The watching thread; dropping this ends it.
pub struct Watch {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

/// Starts to watch. A signal that the parent had ignored, as nohup(1) does, stays ignored.
pub fn watch(reaction: Arc<dyn Reaction>) -> Result<Watch> {
    let ignored = ignored_mask(&std::fs::read_to_string("/proc/self/status").unwrap_or_default());
    let wanted = [SIGHUP, SIGINT, SIGQUIT].into_iter().filter(|s| ignored & signal_bit(*s) == 0);
    let mut signals =
        Signals::new(wanted.chain([SIGTERM])).map_err(Error::host("cannot watch for signals"))?;
    let handle = signals.handle();
    let thread = std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if signal == SIGTERM && reaction.power_button() {
                    continue;
                }
                reaction.before_end();
                let _ = emulate_default_handler(signal);
            }
        })
        .map_err(Error::host("cannot start a thread"))?;
    Ok(Watch { handle, thread: Some(thread) })
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn signal_bit(signal: i32) -> u64 {
    u32::try_from(signal - 1).ok().and_then(|n| 1u64.checked_shl(n)).unwrap_or(0)
}

/// The `SigIgn` line of proc(5)'s status file.
fn ignored_mask(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_status_file() {
        let status = "Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0\n";
        let mask = ignored_mask(status);
        assert_ne!(mask & signal_bit(SIGHUP), 0);
        assert_eq!(mask & (signal_bit(SIGINT) | signal_bit(SIGTERM)), 0);
        assert_eq!(ignored_mask(""), 0);
    }
}
