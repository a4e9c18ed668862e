//! What vCPUs ask of each other: to wake up, to drop translated code, to give up write access.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use memory::{CodeMap, CodeWatcher, GuestMemory, PAGE_SIZE};

use crate::apic::Attention;
use crate::mmu::Written;

/// Value of [`crate::cpu::Cpu::attention`] when somebody wants it.
const WANTED: u32 = 1 << 31;

/// Something that a vCPU has to do before it goes on.
#[derive(Debug)]
pub enum Request {
    /// Drop all code translated from the page at this guest-physical address.
    DropCode(u64),
    /// Drop write access to the page, which is about to hold translated code; then count down.
    Protect(u64, Arc<AtomicU32>),
    /// Drop everything: more was asked than is worth keeping a list of.
    DropAll,
}

/// Requests that wait for a sleeping vCPU before they become one [`Request::DropAll`].
const MAX_WAITING: usize = 512;

/// Where the attention word of a vCPU is.
struct Word(*const AtomicU32);

// SAFETY: the pointer is only used under the lock of `Doorstep::state`, which the vCPU takes to
// remove it before it goes away.
unsafe impl Send for Word {}

#[derive(Default)]
struct State {
    word: Option<Word>,
    /// The pages that may have a write tag there.
    written: Option<Arc<Written>>,
    requests: VecDeque<Request>,
    /// A thread is inside `run`: it will look at requests.
    running: bool,
    /// In [`Doorstep::sleep`]: it does what was asked before it runs guest code again, so nobody
    /// has to wake it for that, or wait.
    asleep: bool,
    /// `run` shall return.
    stop: bool,
}

/// One vCPU as others see it.
#[derive(Default)]
pub struct Doorstep {
    state: Mutex<State>,
    changed: Condvar,
}

impl Doorstep {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn knock(&self, mut state: MutexGuard<'_, State>) {
        if let Some(word) = &mut state.word {
            // SAFETY: the word is there as long as the pointer is ([`Word`]).
            unsafe { &*word.0 }.store(WANTED, Ordering::SeqCst);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Says where the vCPU is.
    pub fn arrive(&self, word: &AtomicU32, written: Arc<Written>) {
        let mut state = self.lock();
        state.word = Some(Word(word));
        state.written = Some(written);
    }

    /// The vCPU goes away.
    pub fn leave(&self) {
        let mut state = self.lock();
        state.word = None;
        state.written = None;
    }

    /// Marks the vCPU as running or not. Requests to one that does not run are not needed: it
    /// drops its translations when it starts again.
    pub fn set_running(&self, running: bool) {
        let mut state = self.lock();
        state.running = running;
        if !running {
            for request in state.requests.drain(..) {
                if let Request::Protect(_, left) = request {
                    left.fetch_sub(1, Ordering::SeqCst);
                }
            }
        }
    }

    /// Asks `run` to return, or takes that back.
    pub fn set_stop(&self, stop: bool) {
        let mut state = self.lock();
        state.stop = stop;
        self.knock(state);
    }

    /// Whether `run` shall return.
    pub fn stop_wanted(&self) -> bool {
        self.lock().stop
    }

    /// Hands over a request; false if nobody will count it down: the vCPU does not run or sleeps.
    fn post(&self, request: Request) -> bool {
        let mut state = self.lock();
        if !state.running {
            return false;
        }
        if let Request::Protect(page, _) = request
            && state.written.as_ref().is_some_and(|w| !w.may_have(page))
        {
            return false;
        }
        if state.asleep {
            if state.requests.len() >= MAX_WAITING {
                state.requests.clear();
                state.requests.push_back(Request::DropAll);
            } else {
                let request = match request {
                    // Whoever asked goes on at once.
                    Request::Protect(page, _) => Request::Protect(page, Arc::new(AtomicU32::new(1))),
                    other => other,
                };
                state.requests.push_back(request);
            }
            return false;
        }
        state.requests.push_back(request);
        self.knock(state);
        true
    }

    /// Takes the next request.
    pub fn next_request(&self) -> Option<Request> {
        self.lock().requests.pop_front()
    }

    /// Sleeps until the attention word is set; sets it itself if requests came meanwhile.
    pub fn sleep(&self, word: &AtomicU32) {
        let mut state = self.lock();
        if !state.requests.is_empty() {
            word.store(WANTED, Ordering::SeqCst);
            return;
        }
        state.asleep = true;
        while word.load(Ordering::SeqCst) == 0 && !state.stop {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.asleep = false;
        // Also where `stop` ended it: `run` may come back without having looked.
        word.store(WANTED, Ordering::SeqCst);
    }
}

impl Attention for Doorstep {
    fn raise(&self) {
        self.knock(self.lock());
    }
}

/// All vCPUs of a VM, as [`CodeWatcher`] the memory's.
pub struct Fabric {
    doorsteps: Vec<Arc<Doorstep>>,
    memory: GuestMemory,
    /// Held while a page becomes one with translated code.
    protecting: AtomicBool,
    /// vCPUs that only an NMI, INIT or SIPI can wake.
    dead: AtomicU32,
}

impl Fabric {
    /// For `vcpus` vCPUs.
    pub fn new(vcpus: u32, memory: &GuestMemory) -> Self {
        Self {
            doorsteps: (0..vcpus).map(|_| Arc::default()).collect(),
            memory: memory.clone(),
            protecting: AtomicBool::new(false),
            dead: AtomicU32::new(0),
        }
    }

    /// vCPU `id` as others see it.
    pub fn doorstep(&self, id: u32) -> Option<&Arc<Doorstep>> {
        self.doorsteps.get(id as usize)
    }

    /// Makes every vCPU look up.
    pub fn raise_all(&self) {
        for doorstep in &self.doorsteps {
            doorstep.raise();
        }
    }

    /// A vCPU goes into (or comes out of) a sleep that no interrupt ends. True: all are in it.
    pub fn set_dead(&self, dead: bool) -> bool {
        if dead {
            self.dead.fetch_add(1, Ordering::SeqCst) + 1 == self.doorsteps.len() as u32
        } else {
            self.dead.fetch_sub(1, Ordering::SeqCst);
            false
        }
    }

    /// Marks `len` bytes at `gpa` (in one page) as translated by vCPU `id`, before they are read.
    /// If the page held no code before, every vCPU first gives up write access to it; `service`
    /// does the caller's own part and its own requests meanwhile.
    pub fn mark_code(&self, id: u32, gpa: u64, len: u64, mut service: impl FnMut(Option<u64>)) {
        let Some(mask) = self.memory.code().mask(gpa) else { return };
        let lines = CodeMap::lines(gpa % PAGE_SIZE, len);
        while self.protecting.swap(true, Ordering::SeqCst) {
            service(None);
            std::hint::spin_loop();
        }
        if mask.fetch_or(lines, Ordering::SeqCst) == 0 {
            let page = gpa & !(PAGE_SIZE - 1);
            service(Some(page));
            let left = Arc::new(AtomicU32::new(0));
            for (other, doorstep) in self.doorsteps.iter().enumerate() {
                if other as u32 != id {
                    left.fetch_add(1, Ordering::SeqCst);
                    if !doorstep.post(Request::Protect(page, left.clone())) {
                        left.fetch_sub(1, Ordering::SeqCst);
                    }
                }
            }
            while left.load(Ordering::SeqCst) != 0 {
                service(None);
                std::thread::yield_now();
            }
        }
        self.protecting.store(false, Ordering::SeqCst);
    }
}

impl CodeWatcher for Fabric {
    /// The page's bits go first: code that is translated from now on sets them again, and the
    /// requests then drop more than needed, never less.
    fn code_written(&self, page: u64) {
        if let Some(mask) = self.memory.code().mask(page) {
            mask.store(0, Ordering::SeqCst);
        }
        for doorstep in &self.doorsteps {
            doorstep.post(Request::DropCode(page));
        }
    }
}
