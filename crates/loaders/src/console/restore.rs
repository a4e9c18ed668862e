//! Raw mode of terminals, undone on every way out.
//!
//! Normal ends and panics drop the guard. Signals that would end the process are taken by a thread
//! that gives the terminals back first. SIGKILL alone leaves a terminal raw.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, Once, PoisonError};
use std::time::Duration;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::signal::{SIGHUP, SIGQUIT, SIGTERM};

/// Terminals in raw mode, and how they were.
static SAVED: Mutex<Vec<(u64, File, Termios)>> = Mutex::new(Vec::new());
static WATCH: Once = Once::new();
/// The signal that ends the process; 0 before it came.
static TERMINATED: LazyLock<Arc<AtomicUsize>> = LazyLock::new(Arc::default);
/// How long whoever is at work gets to tidy up.
const GRACE: Duration = Duration::from_secs(2);

/// Signals that end a process.
pub const FATAL: [i32; 3] = [SIGHUP, SIGQUIT, SIGTERM];

/// Keeps a terminal raw as long as it lives.
pub struct Raw(u64);

impl Raw {
    /// Puts a terminal into raw mode. `None`: it is no terminal.
    pub fn new(terminal: &File) -> std::io::Result<Option<Self>> {
        let Ok(before) = tcgetattr(terminal.as_fd()) else { return Ok(None) };
        let mut raw = before.clone();
        raw.make_raw();
        let terminal = terminal.try_clone()?;
        let id = {
            let mut saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner);
            let id = saved.iter().map(|(id, ..)| id + 1).max().unwrap_or(0);
            tcsetattr(terminal.as_fd(), OptionalActions::Drain, &raw)?;
            saved.push((id, terminal, before));
            id
        };
        Ok(Some(Self(id)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let mut saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = saved.iter().position(|(id, ..)| *id == self.0) {
            let (_, terminal, before) = saved.remove(at);
            let _ = tcsetattr(terminal.as_fd(), OptionalActions::Drain, &before);
        }
    }
}

/// The signal that is about to end the process, if one has come.
pub fn terminated() -> Option<u8> {
    u8::try_from(TERMINATED.load(Ordering::SeqCst)).ok().filter(|signal| *signal > 0)
}

/// Starts to take the signals that end the process: the terminals are given back first, and who
/// reads from one finds its end and has some time to tidy up.
pub fn watch_signals() {
    WATCH.call_once(|| {
        for signal in FATAL {
            // Set by the handler itself, before those who wait are woken.
            let number = usize::try_from(signal).unwrap_or_default();
            let _ = signal_hook::flag::register_usize(signal, TERMINATED.clone(), number);
        }
        let Ok(mut signals) = signal_hook::iterator::Signals::new(FATAL) else {
            return;
        };
        let watch = move || {
            for signal in signals.forever() {
                for (_, terminal, before) in SAVED.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                    // Not after the output: a terminal whose reader is stuck would keep us here.
                    let _ = tcsetattr(terminal.as_fd(), OptionalActions::Now, before);
                }
                std::thread::sleep(GRACE);
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        };
        // Without the thread signals would be lost: then better no terminal than a deaf one.
        if std::thread::Builder::new().name("signals".into()).spawn(watch).is_err() {
            std::process::abort();
        }
    });
}
