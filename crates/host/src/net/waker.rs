//! How the thread of a queue waits for a back end and is woken by the guest.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::NetBackend;

/// Why [`Waker::wait`] returned; several can be true.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// [`Waker::wake`] was called.
    pub woken: bool,
    /// The back end has what was waited for, or an error to tell.
    pub backend: bool,
}

/// What to wait for at a back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Readable,
    Writable,
}

/// Wakes one thread. A call while it does not wait is not lost.
pub struct Waker {
    fd: Arc<OwnedFd>,
    pending: AtomicBool,
}

impl Waker {
    /// A waker for one thread.
    pub fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fd: Arc::new(fd), pending: AtomicBool::new(false) })
    }

    /// The eventfd behind it: whoever writes to it wakes the thread as well.
    pub fn fd(&self) -> Arc<OwnedFd> {
        self.fd.clone()
    }

    /// Wakes the thread.
    pub fn wake(&self) {
        if !self.pending.swap(true, Ordering::SeqCst) {
            let _ = rustix::io::write(&*self.fd, &1u64.to_ne_bytes());
        }
    }

    /// Waits until woken.
    pub fn wait(&self) -> io::Result<()> {
        self.poll(None).map(drop)
    }

    /// Waits until woken or until `backend` has a frame.
    pub fn wait_readable(&self, backend: &dyn NetBackend) -> io::Result<Ready> {
        self.poll(Some((backend, Event::Readable)))
    }

    /// Waits until woken or until `backend` takes a frame.
    pub fn wait_writable(&self, backend: &dyn NetBackend) -> io::Result<Ready> {
        self.poll(Some((backend, Event::Writable)))
    }

    fn poll(&self, backend: Option<(&dyn NetBackend, Event)>) -> io::Result<Ready> {
        let own = PollFd::new(&*self.fd, PollFlags::IN);
        let result = match backend {
            None => {
                let mut fds = [own];
                poll(&mut fds, None).map(|_| {
                    let [own] = fds;
                    (own.revents(), PollFlags::empty())
                })
            }
            Some((backend, event)) => {
                let flags = if event == Event::Readable { PollFlags::IN } else { PollFlags::OUT };
                let mut fds = [own, PollFd::from_borrowed_fd(backend.fd(), flags)];
                poll(&mut fds, None).map(|_| {
                    let [own, other] = fds;
                    (own.revents(), other.revents())
                })
            }
        };
        let (own, other) = match result {
            Ok(events) => events,
            Err(rustix::io::Errno::INTR) => return Ok(Ready::default()),
            Err(e) => return Err(e.into()),
        };
        let woken = !own.is_empty();
        if woken {
            // In this order: whoever finds `pending` set, and does not write, has done so before
            // we clear it, and we look at its work after. The other way round, our read could
            // take the write of one that has set it again, and nobody would write any more.
            let _ = rustix::io::read(&*self.fd, &mut [0; 8]);
            self.pending.store(false, Ordering::SeqCst);
        }
        Ok(Ready { woken, backend: !other.is_empty() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use std::sync::mpsc;
    use std::time::Duration;

    /// Two threads wake a third, each only after the third has seen its last one: the wake-ups
    /// meet the waiter in all phases.
    #[test]
    fn no_wake_up_is_lost() {
        const ROUNDS: u64 = 400_000;
        let waker = Arc::new(Waker::new().unwrap());
        let work: [Arc<[AtomicU64; 2]>; 2] = std::array::from_fn(|_| Arc::default());
        let (tx, rx) = mpsc::channel();
        for pair in work.clone() {
            let (waker, tx) = (waker.clone(), tx.clone());
            std::thread::spawn(move || {
                let [asked, seen] = &*pair;
                for round in 1..=ROUNDS {
                    asked.store(round, Ordering::SeqCst);
                    waker.wake();
                    while seen.load(Ordering::SeqCst) < round {
                        std::thread::yield_now();
                    }
                }
                let _ = tx.send(());
            });
        }
        std::thread::spawn(move || {
            loop {
                for pair in &work {
                    let [asked, seen] = &**pair;
                    seen.store(asked.load(Ordering::SeqCst), Ordering::SeqCst);
                }
                if waker.wait().is_err() {
                    return;
                }
            }
        });
        for _ in 0..2 {
            rx.recv_timeout(Duration::from_secs(20)).expect("a wake-up was lost");
        }
    }
}
