//! The `io_uring` engine: one thread owns the ring, submits, and takes completions.
//!
//! The kernel cancels a task's requests when the task ends and runs part of their completion on
//! it, so vCPU threads do not touch the ring: they put the request in a queue and wake the thread.
//! Only reads and writes go here: for all else the kernel takes a thread as well, and ours are
//! faster to wake.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;

use io_uring::{IoUring, Probe, opcode, squeue, types};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::request::{Request, Step};

/// Requests that the kernel has at a time; more wait in the queue.
const ENTRIES: u32 = 256;
/// `user_data` of the poll on the wake-up descriptor.
const WAKE: u64 = u64::MAX;

/// Where the thread waits, or is about to, and must be woken for new work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Asleep {
    #[default]
    No,
    /// For a request: the kernel has none. Cheaper to wake than the ring.
    Idle,
    /// For a completion.
    InRing,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Request>,
    asleep: Asleep,
    stop: bool,
    /// The ring has failed; nothing can be done any more.
    broken: bool,
}

struct Shared {
    file: Arc<File>,
    wake: OwnedFd,
    queue: Mutex<Queue>,
    more: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, mut queue: MutexGuard<'_, Queue>) {
        let asleep = std::mem::take(&mut queue.asleep);
        drop(queue);
        match asleep {
            Asleep::No => {}
            Asleep::Idle => self.more.notify_one(),
            Asleep::InRing => {
                let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
            }
        }
    }
}

pub(super) struct Uring {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Uring {
    /// Starts the thread; an error means that this host offers no usable ring.
    pub fn start(file: Arc<File>) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared { file, wake, queue: Mutex::default(), more: Condvar::new() });
        let (tx, rx) = mpsc::channel();
        let worker = shared.clone();
        let thread = std::thread::Builder::new().name("disk".into()).spawn(move || match make_ring() {
            Ok(ring) => {
                let _ = tx.send(Ok(()));
                Worker::new(&worker, ring).run();
            }
            Err(e) => {
                let _ = tx.send(Err(e));
            }
        })?;
        rx.recv().map_err(|_| io::Error::other("the disk's thread has ended"))??;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub fn submit(&self, request: Request) {
        let mut queue = self.shared.lock();
        if queue.broken {
            drop(queue);
            return request.finish(Err(io::Error::other("io_uring has failed")));
        }
        queue.jobs.push_back(request);
        self.shared.wake(queue);
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.stop = true;
        self.shared.wake(queue);
        // A callback may hold the last reference to the disk.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

fn make_ring() -> io::Result<IoUring> {
    // The single-issuer mode of Linux 6.1 saves interrupts; older kernels get the plain one.
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(ENTRIES)
        .or_else(|_| IoUring::new(ENTRIES))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [opcode::Readv::CODE, opcode::Writev::CODE, opcode::PollAdd::CODE];
    if needed.iter().all(|code| probe.is_supported(*code)) {
        Ok(ring)
    } else {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A request that the kernel works on.
struct Slot {
    request: Request,
    iovecs: Vec<libc::iovec>,
}

/// The requests that the kernel works on, by index. The kernel may access their memory until
/// their completion was seen, so what is left when the table goes away is leaked, not freed.
#[derive(Default)]
struct Slots {
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
}

impl Slots {
    fn used(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn insert(&mut self, slot: Slot) -> usize {
        if let Some(index) = self.free.pop() {
            if let Some(place) = self.slots.get_mut(index) {
                *place = Some(slot);
            }
            return index;
        }
        self.slots.push(Some(slot));
        self.slots.len() - 1
    }

    fn remove(&mut self, index: usize) -> Option<Slot> {
        let slot = self.slots.get_mut(index)?.take();
        if slot.is_some() {
            self.free.push(index);
        }
        slot
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        for slot in self.slots.drain(..).flatten() {
            std::mem::forget(slot);
        }
    }
}

struct Worker<'a> {
    shared: &'a Shared,
    ring: IoUring,
    backlog: VecDeque<Request>,
    slots: Slots,
    spare: Vec<Vec<libc::iovec>>,
    /// The poll on the wake-up descriptor is in the ring.
    polled: bool,
}

impl<'a> Worker<'a> {
    fn new(shared: &'a Shared, ring: IoUring) -> Self {
        let (backlog, slots, spare) = Default::default();
        Self { shared, ring, backlog, slots, spare, polled: false }
    }

    fn run(mut self) {
        let mut completed = Vec::with_capacity(ENTRIES as usize);
        loop {
            let stop = self.take_jobs();
            self.fill();
            if self.slots.used() == 0 {
                if stop && self.backlog.is_empty() {
                    return;
                }
                continue;
            }
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                // Interrupted, or short of memory or completion entries: completions free some.
                Err(e)
                    if matches!(
                        Errno::from_io_error(&e),
                        Some(Errno::INTR | Errno::AGAIN | Errno::BUSY | Errno::NOMEM)
                    ) => {}
                Err(e) => return self.broken(&e),
            }
            self.shared.lock().asleep = Asleep::No;
            completed.extend(self.ring.completion().map(|c| (c.user_data(), c.result())));
            for (user_data, result) in completed.drain(..) {
                self.completed(user_data, result);
            }
        }
    }

    /// Takes new requests, and waits for one if there is nothing else to do; returns whether to
    /// stop. Until the ring returns, a submitter wakes us there.
    fn take_jobs(&mut self) -> bool {
        let mut queue = self.shared.lock();
        let idle = self.slots.used() == 0 && self.backlog.is_empty();
        while idle && queue.jobs.is_empty() && !queue.stop {
            queue.asleep = Asleep::Idle;
            queue = self.shared.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        self.backlog.append(&mut queue.jobs);
        queue.asleep = Asleep::InRing;
        queue.stop
    }

    /// Puts as much as possible in the ring.
    fn fill(&mut self) {
        if !self.polled {
            let poll = opcode::PollAdd::new(types::Fd(self.shared.wake.as_raw_fd()), libc::POLLIN as u32);
            // SAFETY: takes no memory; the descriptor lives as long as the ring.
            self.polled = unsafe { self.ring.submission().push(&poll.build().user_data(WAKE)) }.is_ok();
        }
        while self.slots.used() < ENTRIES as usize - 1 {
            let Some(request) = self.backlog.pop_front() else { break };
            let iovecs = self.spare.pop().unwrap_or_default();
            if let Some(back) = self.start(Slot { request, iovecs }) {
                self.backlog.push_front(back.request);
                break;
            }
        }
    }

    /// Puts the request's next call in the ring; gives it back if there is no room.
    fn start(&mut self, mut slot: Slot) -> Option<Slot> {
        let entry = match slot.request.next(&mut slot.iovecs) {
            Ok(step) => self.entry(step, &slot.iovecs),
            Err(e) => Err(e),
        };
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) => {
                self.finish(slot, Err(e));
                return None;
            }
        };
        let index = self.slots.insert(slot);
        // SAFETY: `next` made the iovecs from memory that the request owns or keeps mapped. The
        // slot keeps both, untouched, until the completion is seen, and leaks them otherwise.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(index as u64)) };
        if pushed.is_err() {
            return self.slots.remove(index);
        }
        None
    }

    fn entry(&self, step: Step, iovecs: &[libc::iovec]) -> io::Result<squeue::Entry> {
        let fd = types::Fd(self.shared.file.as_raw_fd());
        let (iov, count) = (iovecs.as_ptr(), iovecs.len() as u32);
        Ok(match step {
            Step::Read { offset } => opcode::Readv::new(fd, iov, count).offset(offset).build(),
            Step::Write { offset, durable } => {
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                opcode::Writev::new(fd, iov, count).offset(offset).rw_flags(flags).build()
            }
            Step::Sync | Step::Allocate { .. } | Step::DeviceDiscard { .. } => {
                return Err(io::ErrorKind::Unsupported.into());
            }
        })
    }

    fn completed(&mut self, user_data: u64, result: i32) {
        if user_data == WAKE {
            self.polled = false;
            let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
            return;
        }
        let Some(mut slot) = self.slots.remove(user_data as usize) else { return };
        let result = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
        match slot.request.complete(result) {
            Some(result) => self.finish(slot, result),
            None => self.backlog.push_front(slot.request),
        }
    }

    fn finish(&mut self, slot: Slot, result: io::Result<()>) {
        if self.spare.len() < ENTRIES as usize {
            self.spare.push(slot.iovecs);
        }
        slot.request.finish(result);
    }

    /// The ring takes no more calls. What the kernel has is leaked with its memory and never
    /// completes; the rest fails.
    fn broken(mut self, e: &io::Error) {
        let mut queue = self.shared.lock();
        queue.broken = true;
        self.backlog.append(&mut queue.jobs);
        drop(queue);
        for request in self.backlog.drain(..) {
            request.finish(Err(io::Error::new(e.kind(), e.to_string())));
        }
    }
}
