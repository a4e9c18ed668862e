//! Goes on with a queue on another thread.
//!
//! A guest that adds chains as fast as they are done must not keep the thread of a vCPU, or of the
//! event loop, for ever: whoever has had its turn calls itself later.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use bus::{Timer, Timers};

/// Chains that are served in one turn.
pub(super) const TURN: usize = 128;

/// Calls back on the timers' thread, soon.
pub(super) struct Later {
    timer: Timer,
    queues: Arc<Mutex<BTreeSet<u16>>>,
}

impl Later {
    /// `call` gets the queues that asked for it.
    pub fn new(timers: &Timers, call: impl Fn(u16) + Send + Sync + 'static) -> Self {
        let queues = Arc::new(Mutex::new(BTreeSet::new()));
        let asked = queues.clone();
        let timer = timers.timer(move || {
            let asked = std::mem::take(&mut *asked.lock().unwrap_or_else(PoisonError::into_inner));
            asked.into_iter().for_each(&call);
        });
        Self { timer, queues }
    }

    /// Asks for a call for `queue`.
    pub fn call(&self, queue: u16) {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).insert(queue);
        // A deadline in the past.
        self.timer.arm(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bus::Clock;
    use std::sync::mpsc;

    #[test]
    fn each_queue_is_called_once() {
        let timers = Timers::start(Clock::new()).unwrap();
        let (tx, rx) = mpsc::channel();
        let tx = Mutex::new(tx);
        let later = Later::new(&timers, move |queue| tx.lock().unwrap().send(queue).unwrap());
        for queue in [3, 1, 3] {
            later.call(queue);
        }
        let mut got = vec![rx.recv().unwrap(), rx.recv().unwrap()];
        got.sort_unstable();
        assert!(got == [1, 3] || got == [3, 3]);
        later.call(2);
        assert!(rx.iter().any(|queue| queue == 2));
    }
}
