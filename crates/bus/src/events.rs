//! One thread that waits for file descriptors (terminals, taps, eventfds) with epoll.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, epoll, eventfd};

/// Called on the event loop's thread when its descriptor is ready. Must not block.
pub trait FdHandler: Send + Sync {
    /// The descriptor can be read or written, or its peer hung up (then both are true).
    fn ready(&self, readable: bool, writable: bool);
}

/// What to wait for (level-triggered).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdInterest {
    /// Wait until it can be read.
    pub read: bool,
    /// Wait until it can be written.
    pub write: bool,
}

/// Names a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FdToken(u64);

/// Token of the loop's own wake-up descriptor.
const WAKE: u64 = u64::MAX;

struct Entry {
    fd: Arc<OwnedFd>,
    handler: Arc<dyn FdHandler>,
}

struct Shared {
    epoll: OwnedFd,
    wake: OwnedFd,
    entries: Mutex<HashMap<u64, Entry>>,
    next: AtomicU64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The event loop of one machine. Dropping it ends its thread.
pub struct EventLoop {
    shared: Arc<Shared>,
}

fn flags(interest: FdInterest) -> epoll::EventFlags {
    let mut flags = epoll::EventFlags::empty();
    flags.set(epoll::EventFlags::IN, interest.read);
    flags.set(epoll::EventFlags::OUT, interest.write);
    flags
}

impl EventLoop {
    /// Starts the loop's thread.
    pub fn start() -> std::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        let shared = Arc::new(Shared { epoll, wake, entries: Mutex::default(), next: AtomicU64::new(0) });
        let worker = shared.clone();
        std::thread::Builder::new().name("events".into()).spawn(move || run(&worker))?;
        Ok(Self { shared })
    }

    /// Waits for `fd`, which the loop keeps open until it is removed.
    pub fn add(
        &self,
        fd: Arc<OwnedFd>,
        interest: FdInterest,
        handler: Arc<dyn FdHandler>,
    ) -> std::io::Result<FdToken> {
        let token = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let mut entries = self.shared.lock();
        epoll::add(&self.shared.epoll, fd.as_fd(), epoll::EventData::new_u64(token), flags(interest))?;
        entries.insert(token, Entry { fd, handler });
        Ok(FdToken(token))
    }

    /// Changes what to wait for.
    pub fn modify(&self, token: FdToken, interest: FdInterest) -> std::io::Result<()> {
        let entries = self.shared.lock();
        if let Some(entry) = entries.get(&token.0) {
            let data = epoll::EventData::new_u64(token.0);
            epoll::modify(&self.shared.epoll, entry.fd.as_fd(), data, flags(interest))?;
        }
        Ok(())
    }

    /// Stops waiting for the descriptor. A callback that runs right now may still finish.
    pub fn remove(&self, token: FdToken) {
        if let Some(entry) = self.shared.lock().remove(&token.0) {
            let _ = epoll::delete(&self.shared.epoll, entry.fd.as_fd());
        }
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.shared.wake, &1u64.to_ne_bytes());
    }
}

fn run(shared: &Shared) {
    let mut events = Vec::with_capacity(32);
    loop {
        events.clear();
        match epoll::wait(&shared.epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
        }
        for event in &events {
            let (token, ready) = (event.data.u64(), event.flags);
            if token == WAKE {
                return;
            }
            let handler = shared.lock().get(&token).map(|e| e.handler.clone());
            if let Some(handler) = handler {
                let hup = ready.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
                handler.ready(
                    hup || ready.contains(epoll::EventFlags::IN),
                    hup || ready.contains(epoll::EventFlags::OUT),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    struct Tell(mpsc::Sender<bool>);

    impl FdHandler for Tell {
        fn ready(&self, readable: bool, _: bool) {
            let _ = self.0.send(readable);
        }
    }

    #[test]
    fn a_readable_descriptor_calls_back() {
        let events = EventLoop::start().unwrap();
        let (tx, rx) = mpsc::channel();
        let fd = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let read = FdInterest { read: true, write: false };
        let token = events.add(fd.clone(), read, Arc::new(Tell(tx))).unwrap();
        rustix::io::write(&*fd, &1u64.to_ne_bytes()).unwrap();
        assert!(rx.recv().unwrap());
        events.remove(token);
    }
}
