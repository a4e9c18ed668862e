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
const FATAL: [i32; 6] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGABRT, libc::SIGSYS, libc::SIGXCPU];

/// Signals of faulting instructions. Rust's runtime handles some, and so may an engine.
const FAULTS: [i32; 4] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE];

/// Who handled each of [`FAULTS`] before.
static BEFORE: [OnceLock<libc::sigaction>; 4] = [const { OnceLock::new() }; 4];

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
        restore_on_faults();
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

/// Restores the terminal when nobody else makes good a fault.
fn restore_on_faults() {
    for (signal, before) in FAULTS.into_iter().zip(&BEFORE) {
        // SAFETY: sigaction is plain data for which zeros are valid; the handler is
        // async-signal-safe and has the signature that SA_SIGINFO needs.
        unsafe {
            let mut old: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(signal, std::ptr::null(), &raw mut old) != 0 || before.set(old).is_err() {
                continue;
            }
            let mut new: libc::sigaction = std::mem::zeroed();
            new.sa_sigaction = fault_handler();
            new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(signal, &raw const new, std::ptr::null_mut());
        }
    }
}

type FaultHandler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

fn fault_handler() -> usize {
    on_fault as FaultHandler as usize
}

/// Lets the handler from before try. One that gives up has put another in our place and lets the
/// instruction trap again, which is the time to restore the terminal.
extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let before = FAULTS.iter().position(|s| *s == signal).and_then(|i| BEFORE.get(i)?.get());
    // SAFETY: the action is the one that the kernel would have called, with the arguments that its
    // flags ask for; the other calls are async-signal-safe.
    unsafe {
        match before {
            Some(old) if is_default(old) || old.sa_sigaction == libc::SIG_IGN => {
                libc::signal(signal, libc::SIG_DFL);
            }
            Some(old) if old.sa_flags & libc::SA_SIGINFO != 0 => {
                std::mem::transmute::<usize, FaultHandler>(old.sa_sigaction)(signal, info, context);
            }
            Some(old) => {
                std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(old.sa_sigaction)(signal);
            }
            None => {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut now);
        if now.sa_sigaction == fault_handler() {
            return;
        }
        restore();
        // Sent by a process rather than raised by an instruction: nothing would trap again.
        if !info.is_null() && (*info).si_code <= 0 {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
}
