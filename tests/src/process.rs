//! A child process that is watched and signalled through its pidfd, so that no other process is
//! ever hit, and that gives its CPU time at the end.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal, set_parent_process_death_signal,
};

use crate::Result;

/// How a process ended, and what it cost.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// Its status.
    pub status: ExitStatus,
    /// User and system time of all its threads.
    pub cpu: Duration,
    /// The most memory it had resident, in bytes.
    pub max_rss: u64,
}

/// A running child; dropping it kills it.
pub struct Process {
    child: Child,
    pid: Pid,
    pidfd: OwnedFd,
    started: Instant,
    exit: Option<Exit>,
}

impl Process {
    /// Starts a program. It also ends if this thread is killed and can't drop it, as a test that
    /// takes too long is.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        // SAFETY: the closure only makes one system call, which is allowed between fork and exec.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let name = command.get_program().to_string_lossy().into_owned();
        let started = Instant::now();
        let child = command.spawn().map_err(|error| format!("{name}: {error}"))?;
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { child, pid, pidfd, started, exit: None })
    }

    /// The standard streams, where they are pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// When it was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Its process number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(pidfd_send_signal(&self.pidfd, signal)?)
    }

    /// Waits for the end.
    pub fn wait(&mut self, timeout: Duration) -> Result<Exit> {
        if let Some(exit) = self.exit {
            return Ok(exit);
        }
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(0) => return Err(format!("still running after {timeout:?}").into()),
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let exit = reap(self.pid)?;
        self.exit = Some(exit);
        Ok(exit)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exit.is_none() {
            let _ = self.signal(Signal::KILL);
            let _ = reap(self.pid);
        }
    }
}

/// Takes the status and the costs of a child that ended or is about to.
fn reap(pid: Pid) -> Result<Exit> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are to live values of the types that wait4 writes.
    let reaped = unsafe { libc::wait4(pid.as_raw_nonzero().get(), &raw mut status, 0, usage.as_mut_ptr()) };
    if reaped < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    // SAFETY: all-zero is a valid rusage, and wait4 filled it.
    let usage = unsafe { usage.assume_init() };
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    Ok(Exit {
        status: ExitStatus::from_raw(status),
        cpu: time(usage.ru_utime) + time(usage.ru_stime),
        max_rss: usage.ru_maxrss.unsigned_abs() * 1024,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_and_times_are_those_of_the_child() -> Result<()> {
        let mut process = Process::spawn(Command::new("sh").args(["-c", "exit 3"]))?;
        let exit = process.wait(Duration::from_secs(20))?;
        assert_eq!(exit.status.code(), Some(3));
        assert!(exit.max_rss > 0);
        let again = process.wait(Duration::ZERO)?;
        assert_eq!(again.status.code(), Some(3), "the status can be asked for again");
        Ok(())
    }

    #[test]
    fn a_process_that_goes_on_is_an_error_and_a_signal_ends_it() -> Result<()> {
        let mut process = Process::spawn(Command::new("sleep").arg("1000"))?;
        assert!(process.wait(Duration::from_millis(20)).is_err());
        process.signal(Signal::TERM)?;
        let exit = process.wait(Duration::from_secs(20))?;
        assert_eq!(exit.status.signal(), Some(Signal::TERM.as_raw()));
        Ok(())
    }
}
