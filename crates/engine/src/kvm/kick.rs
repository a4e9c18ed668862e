//! Stops a vCPU that another thread runs.
//!
//! Whoever wants something of a vCPU sets a flag, then `immediate_exit`, then sends the thread a
//! signal. The vCPU clears `immediate_exit` and then looks at the flags. So a flag set too late for that
//! look finds `immediate_exit` still set by its owner when KVM_RUN begins, or its signal ends KVM_RUN.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use super::page::RunPage;
use crate::Kicker;

/// What a vCPU answered to "will anything ever wake you?".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Life {
    /// Not asked or not answered yet.
    Unknown = 0,
    /// It executes, or an interrupt can wake it.
    Alive = 1,
    /// In HLT with interrupts off.
    Dead = 2,
    /// Waits for INIT or SIPI.
    Waiting = 3,
}

/// One vCPU as other threads see it.
pub struct Kick {
    page: RunPage,
    stop: AtomicBool,
    ask: AtomicBool,
    life: AtomicU8,
    thread: Mutex<Option<libc::pid_t>>,
}

impl Kick {
    pub fn new(page: RunPage) -> Self {
        let (stop, ask) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { page, stop, ask, life: AtomicU8::new(0), thread: Mutex::new(None) }
    }

    /// The page shared with KVM.
    pub fn page(&self) -> &RunPage {
        &self.page
    }

    fn thread(&self) -> MutexGuard<'_, Option<libc::pid_t>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the vCPU's run loop look at its flags.
    pub fn nudge(&self) {
        self.page.set_immediate_exit(true);
        let thread = self.thread();
        // SAFETY: getting ids has no preconditions.
        let (process, own) = unsafe { (libc::getpid(), libc::gettid()) };
        if let Some(thread) = *thread
            && thread != own
        {
            // SAFETY: the thread is in `run`, which it can't leave while the lock is held, and the
            // signal has a handler that does nothing.
            unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal()) };
        }
    }

    /// The calling thread runs the vCPU from now until the guard is dropped.
    pub fn enter(&self) -> Entered<'_> {
        install();
        // SAFETY: gettid has no preconditions.
        *self.thread() = Some(unsafe { libc::gettid() });
        Entered(self)
    }

    /// CPU time that the thread which runs the vCPU has used, in ns; `None` when it is not run.
    pub fn cpu_time(&self) -> Option<u64> {
        let thread = (*self.thread())?;
        // A thread's clock as the kernel numbers them (CPUCLOCK_PERTHREAD | CPUCLOCK_SCHED).
        let clock = !thread << 3 | 6;
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: writes to `time` only; an unknown clock is an error.
        let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
        (result == 0).then(|| time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }

    /// Whether the vCPU shall not run.
    pub fn stop_wanted(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Asks the vCPU for its [`Life`].
    pub fn ask(&self) {
        self.life.store(Life::Unknown as u8, Ordering::SeqCst);
        self.ask.store(true, Ordering::SeqCst);
        self.nudge();
    }

    /// Whether an answer is wanted; asked once.
    pub fn take_ask(&self) -> bool {
        self.ask.load(Ordering::SeqCst) && self.ask.swap(false, Ordering::SeqCst)
    }

    /// The vCPU's answer.
    pub fn answer(&self, life: Life) {
        self.life.store(life as u8, Ordering::SeqCst);
    }

    /// The last answer.
    pub fn life(&self) -> Life {
        match self.life.load(Ordering::SeqCst) {
            1 => Life::Alive,
            2 => Life::Dead,
            3 => Life::Waiting,
            _ => Life::Unknown,
        }
    }
}

impl Kicker for Kick {
    fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.nudge();
    }

    fn resume(&self) {
        self.stop.store(false, Ordering::SeqCst);
    }
}

/// A thread is in `run`.
pub struct Entered<'a>(&'a Kick);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        *self.0.thread() = None;
    }
}

/// The kick signal: the first real-time one that the C library leaves to programs.
fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn nothing(_: libc::c_int) {}

/// Installs the handler and lets the signal through on this thread.
fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: a zeroed sigaction is valid; the handler does nothing, so it may run anywhere. The
        // alternate stack matters because a signal may come while the recompiler steps guest code with
        // the guest's stack pointer. KVM_RUN is never restarted; device code's system calls are.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
            libc::sigaction(signal(), &raw const action, std::ptr::null_mut());
        }
    });
    // SAFETY: the set is initialized by sigemptyset before use.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
    }
}
