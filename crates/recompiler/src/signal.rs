//! Host exceptions in translated code become guest exceptions.
//!
//! A guest's division by zero, misaligned SSE access or unmasked floating-point exception traps
//! on the host in the re-encoded instruction. The handler notes the vector and goes on at the
//! fixed code that leaves to the run loop; the guest's registers are still in the host's.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use crate::cpu::Cpu;

/// What the handler must know of the code that the thread runs.
#[derive(Clone, Copy)]
pub struct Running {
    /// The vCPU.
    pub cpu: *mut Cpu,
    /// First host address of the code region.
    pub start: u64,
    /// Its length.
    pub len: u64,
    /// Where to go on.
    pub fault: u64,
}

thread_local! {
    static RUNNING: Cell<Option<Running>> = const { Cell::new(None) };
}

/// Signals that synchronous exceptions raise, in the order of `OLD`.
const SIGNALS: [libc::c_int; 4] = [libc::SIGFPE, libc::SIGSEGV, libc::SIGILL, libc::SIGBUS];
/// Host #PF: never a guest's doing.
const PAGE_FAULT: i64 = 14;

static OLD: [OnceLock<Old>; 4] = [const { OnceLock::new() }; 4];

struct Old(libc::sigaction);
// SAFETY: plain data of function addresses and a signal mask.
unsafe impl Send for Old {}
// SAFETY: as above.
unsafe impl Sync for Old {}

/// Installs the handlers, once a process.
pub fn install() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        for (signal, old) in SIGNALS.into_iter().zip(&OLD) {
            let mut previous = MaybeUninit::<libc::sigaction>::zeroed();
            // SAFETY: all-zero is a valid sigaction to start from.
            let mut new: libc::sigaction = unsafe { std::mem::zeroed() };
            new.sa_sigaction = handler as *const () as usize;
            // On the alternate stack: RSP is the guest's while translated code runs.
            new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            // SAFETY: both structures are valid; the handler is async-signal-safe (it reads a
            // const-initialised thread local and writes the vCPU that this very thread runs).
            unsafe {
                libc::sigaction(signal, &raw const new, previous.as_mut_ptr());
                let _ = old.set(Old(previous.assume_init()));
            }
        }
    });
}

/// Says what this thread runs; `None` when it does not run guest code.
pub fn set_running(running: Option<Running>) {
    RUNNING.with(|r| r.set(running));
}

/// Blocks every asynchronous signal on this thread: its stack pointer may be the guest's. Others
/// of the process take them.
pub fn block_asynchronous() {
    // SAFETY: plain signal-set operations on a local.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigfillset(set.as_mut_ptr());
        for signal in SIGNALS.into_iter().chain([libc::SIGTRAP, libc::SIGABRT, libc::SIGSYS]) {
            libc::sigdelset(set.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
    }
}

/// Gives this thread an alternate signal stack, if it has none (Rust gives its own threads one,
/// but a library caller's thread may come from elsewhere).
pub fn ensure_alternate_stack() {
    const SIZE: usize = 64 << 10;
    thread_local! {
        static STACK: std::cell::OnceCell<Box<[u8]>> = const { std::cell::OnceCell::new() };
    }
    let mut current = MaybeUninit::<libc::stack_t>::zeroed();
    // SAFETY: only asks.
    let known = unsafe { libc::sigaltstack(std::ptr::null(), current.as_mut_ptr()) } == 0;
    // SAFETY: the call above filled it, and all-zero is valid too.
    if known && unsafe { current.assume_init() }.ss_flags & libc::SS_DISABLE == 0 {
        return;
    }
    STACK.with(|stack| {
        let stack = stack.get_or_init(|| vec![0; SIZE].into_boxed_slice());
        let new = libc::stack_t { ss_sp: stack.as_ptr().cast_mut().cast(), ss_flags: 0, ss_size: SIZE };
        // SAFETY: the memory lives as long as the thread.
        unsafe { libc::sigaltstack(&raw const new, std::ptr::null_mut()) };
    });
}

extern "C" fn handler(signal: libc::c_int, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes the interrupted thread's context, ours to change.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let rip = registers[libc::REG_RIP as usize] as u64;
    let vector = registers[libc::REG_TRAPNO as usize];
    if let Some(running) = RUNNING.with(Cell::get)
        && rip.wrapping_sub(running.start) < running.len
        && vector != PAGE_FAULT
    {
        // SAFETY: this thread runs this vCPU's code right now, so nobody else touches it.
        let jit = unsafe { &mut (*running.cpu).jit };
        jit.exit_arg = vector as u32;
        jit.fault_at = rip;
        registers[libc::REG_RIP as usize] = running.fault as i64;
        return;
    }
    // Not ours: put the old handler back and let the instruction trap again.
    for (known, old) in SIGNALS.into_iter().zip(&OLD) {
        if known == signal
            && let Some(old) = old.get()
        {
            // SAFETY: restores what was installed before.
            unsafe { libc::sigaction(signal, &raw const old.0, std::ptr::null_mut()) };
        }
    }
}
