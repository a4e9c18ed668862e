//! Raw mode of the user's terminal, undone on every way out.
//!
//! Normal ends and `exit` run an exit hook; panics of the main thread end there too. Signals that
//! would end the process restore the terminal first, where nobody else handles them. SIGTERM is
//! left alone: it is the power button, and whoever handles it calls [`restore`] when it ends the
//! process after all. Only SIGKILL leaves the terminal raw.
#![allow(unsafe_code)]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Signals whose default is to end the process, without SIGTERM, SIGKILL and SIGPIPE (ignored in
/// Rust programs).
const FATAL: [i32; 10] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGABRT,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGSYS,
    libc::SIGXCPU,
];

/// The terminal as it was.
static SAVED: OnceLock<libc::termios> = OnceLock::new();
static RAW: AtomicBool = AtomicBool::new(false);

/// Puts standard input into raw mode, if it is a terminal.
pub(super) fn make_raw() -> std::io::Result<()> {
    // SAFETY: termios is plain data for which zeros are valid.
    let mut now: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: `now` is valid for writes.
    if unsafe { libc::tcgetattr(libc::STDIN_FILENO, &raw mut now) } != 0 {
        return Ok(());
    }
    let first = SAVED.set(now).is_ok();
    let mut raw = now;
    // SAFETY: `raw` is a valid termios.
    unsafe { libc::cfmakeraw(&raw mut raw) };
    if first {
        // SAFETY: `at_exit` is a plain function that stays loaded.
        unsafe { libc::atexit(at_exit) };
        restore_on_signals(&FATAL);
    }
    RAW.store(true, Ordering::SeqCst);
    // SAFETY: `raw` is a valid termios.
    if unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw const raw) } != 0 {
        RAW.store(false, Ordering::SeqCst);
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

/// Gives the terminal back as it was found. Safe in signal handlers; does nothing the second time.
pub fn restore() {
    if RAW.swap(false, Ordering::SeqCst)
        && let Some(saved) = SAVED.get()
    {
        // SAFETY: `saved` is a valid termios; ignoring SIGTTOU keeps a background process from
        // being stopped here. Both calls are async-signal-safe.
        unsafe {
            let old = libc::signal(libc::SIGTTOU, libc::SIG_IGN);
            libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, std::ptr::from_ref(saved));
            libc::signal(libc::SIGTTOU, old);
        }
    }
}

extern "C" fn at_exit() {
    restore();
}

extern "C" fn on_signal(signal: libc::c_int) {
    restore();
    // SAFETY: both are async-signal-safe. The signal is blocked while its handler runs and takes
    // its default effect on return.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

/// Restores the terminal before one of `signals` ends the process. Signals that have a handler,
/// or are ignored, are left alone.
pub fn restore_on_signals(signals: &[i32]) {
    for signal in signals {
        // SAFETY: sigaction is plain data for which zeros are valid; the handler is
        // async-signal-safe and has the signature that a handler without SA_SIGINFO needs.
        unsafe {
            let mut old: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(*signal, std::ptr::null(), &raw mut old) == 0 && is_default(&old) {
                let mut new: libc::sigaction = std::mem::zeroed();
                new.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as usize;
                new.sa_flags = libc::SA_ONSTACK;
                libc::sigaction(*signal, &raw const new, std::ptr::null_mut());
            }
        }
    }
}

fn is_default(action: &libc::sigaction) -> bool {
    action.sa_sigaction == libc::SIG_DFL
}
