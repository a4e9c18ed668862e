//! SIGTERM is the power button once the guest listens to it. The other signals that end a process
//! have their usual effect; the terminal back end gives the terminal back first.

use std::sync::Arc;
use std::thread::JoinHandle;

use signal_hook::consts::SIGTERM;
use signal_hook::iterator::{Handle, Signals};
use signal_hook::low_level::emulate_default_handler;

use crate::{Error, Result};

/// What SIGTERM does to the machine.
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

/// Starts to watch.
pub fn watch(reaction: Arc<dyn Reaction>) -> Result<Watch> {
    ignore_file_size_limit();
    let mut signals = Signals::new([SIGTERM]).map_err(Error::host("cannot watch for SIGTERM"))?;
    let handle = signals.handle();
    let thread = std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if !reaction.power_button() {
                    reaction.before_end();
                    let _ = emulate_default_handler(signal);
                }
            }
        })
        .map_err(Error::host("cannot start a thread"))?;
    Ok(Watch { handle, thread: Some(thread) })
}

/// A disk image that may not grow (`RLIMIT_FSIZE`) is an I/O error of the guest, not the end of all.
fn ignore_file_size_limit() {
    // SAFETY: no handler is installed and nothing else in this process wants this signal.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Mutex, mpsc};

    struct Presses(Mutex<mpsc::Sender<()>>);

    impl Reaction for Presses {
        fn power_button(&self) -> bool {
            self.0.lock().unwrap().send(()).is_ok()
        }
        fn before_end(&self) {}
    }

    #[test]
    fn sigterm_presses_the_button_of_a_listening_guest() {
        let (tx, rx) = mpsc::channel();
        let watch = watch(Arc::new(Presses(Mutex::new(tx)))).unwrap();
        for _ in 0..2 {
            let own = rustix::process::getpid();
            rustix::process::kill_process(own, rustix::process::Signal::TERM).unwrap();
            rx.recv_timeout(std::time::Duration::from_mins(1)).unwrap();
        }
        drop(watch);
    }
}
