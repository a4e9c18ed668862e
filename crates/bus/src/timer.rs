//! One thread that calls back when a deadline passes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use crate::Clock;

type Callback = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Queue {
    /// (deadline in ns, timer id) to what to call.
    armed: BTreeMap<(u64, u64), Callback>,
    /// Deadline of each armed timer.
    deadlines: BTreeMap<u64, u64>,
    stop: bool,
}

struct Shared {
    clock: Clock,
    queue: Mutex<Queue>,
    changed: Condvar,
    next_id: AtomicU64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The timer service of one machine. Dropping it ends its thread.
pub struct Timers {
    shared: Arc<Shared>,
}

impl Timers {
    /// Starts the service on `clock`.
    pub fn start(clock: Clock) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            clock,
            queue: Mutex::default(),
            changed: Condvar::new(),
            next_id: AtomicU64::new(0),
        });
        let worker = shared.clone();
        std::thread::Builder::new().name("timers".into()).spawn(move || run(&worker))?;
        Ok(Self { shared })
    }

    /// The clock that deadlines are on.
    pub fn clock(&self) -> Clock {
        self.shared.clock
    }

    /// A timer that calls `callback` on the service's thread, once for each time it is armed. The
    /// callback must be short and must not block; it may arm timers.
    pub fn timer(&self, callback: impl Fn() + Send + Sync + 'static) -> Timer {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        Timer { shared: Arc::downgrade(&self.shared), id, callback: Arc::new(callback) }
    }
}

impl Drop for Timers {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
    }
}

/// One timer; dropping it disarms it.
pub struct Timer {
    shared: Weak<Shared>,
    id: u64,
    callback: Callback,
}

impl Timer {
    /// Calls back at `deadline` (ns on the service's clock); replaces an earlier deadline.
    pub fn arm(&self, deadline: u64) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut queue = shared.lock();
        remove(&mut queue, self.id);
        queue.deadlines.insert(self.id, deadline);
        queue.armed.insert((deadline, self.id), self.callback.clone());
        let first = queue.armed.keys().next() == Some(&(deadline, self.id));
        drop(queue);
        if first {
            shared.changed.notify_one();
        }
    }

    /// Takes the deadline back. A callback that runs right now may still finish.
    pub fn disarm(&self) {
        if let Some(shared) = self.shared.upgrade() {
            remove(&mut shared.lock(), self.id);
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.disarm();
    }
}

fn remove(queue: &mut Queue, id: u64) {
    if let Some(deadline) = queue.deadlines.remove(&id) {
        queue.armed.remove(&(deadline, id));
    }
}

fn run(shared: &Shared) {
    let mut queue = shared.lock();
    while !queue.stop {
        let now = shared.clock.now();
        match queue.armed.keys().next().copied() {
            Some((deadline, id)) if deadline <= now => {
                queue.deadlines.remove(&id);
                if let Some(callback) = queue.armed.remove(&(deadline, id)) {
                    drop(queue);
                    callback();
                    queue = shared.lock();
                }
            }
            Some((deadline, _)) => {
                let wait = std::time::Duration::from_nanos(deadline - now);
                queue = shared.changed.wait_timeout(queue, wait).unwrap_or_else(PoisonError::into_inner).0;
            }
            None => queue = shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn timers_fire_in_order_and_disarmed_ones_do_not() {
        let timers = Timers::start(Clock::new()).unwrap();
        let (tx, rx) = mpsc::channel();
        let make = |n: u32| {
            let tx = tx.clone();
            timers.timer(move || tx.send(n).unwrap())
        };
        let (a, b, c) = (make(1), make(2), make(3));
        let now = timers.clock().now();
        a.arm(now + 20_000_000);
        b.arm(now + 10_000_000);
        c.arm(now + 5_000_000);
        c.disarm();
        assert_eq!((rx.recv().unwrap(), rx.recv().unwrap()), (2, 1));
        a.arm(0);
        assert_eq!(rx.recv().unwrap(), 1);
    }
}
