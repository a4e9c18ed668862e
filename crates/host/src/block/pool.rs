//! A pool of threads that run requests with blocking calls.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::request::Request;
use super::sys;

/// As many as bhyve has for a disk; they start as they are needed.
const THREADS: usize = 8;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Request>,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    stop: bool,
}

struct Shared {
    file: Arc<File>,
    queue: Mutex<Queue>,
    more: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    pub fn new(file: Arc<File>) -> Self {
        Self { shared: Arc::new(Shared { file, queue: Mutex::default(), more: Condvar::new() }) }
    }

    pub fn submit(&self, request: Request) {
        let mut queue = self.shared.lock();
        if queue.idle <= queue.jobs.len() && queue.threads.len() < THREADS {
            let shared = self.shared.clone();
            match std::thread::Builder::new().name("disk".into()).spawn(move || run(&shared)) {
                Ok(thread) => queue.threads.push(thread),
                Err(e) if queue.threads.is_empty() => {
                    drop(queue);
                    return request.finish(Err(e));
                }
                // The others will come to it.
                Err(_) => {}
            }
        }
        queue.jobs.push_back(request);
        drop(queue);
        self.shared.more.notify_one();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.stop = true;
        let threads = std::mem::take(&mut queue.threads);
        drop(queue);
        self.shared.more.notify_all();
        for thread in threads {
            // A callback may hold the last reference to the disk.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

fn run(shared: &Shared) {
    let mut iovecs = Vec::new();
    let mut queue = shared.lock();
    loop {
        if let Some(request) = queue.jobs.pop_front() {
            drop(queue);
            serve(&shared.file, request, &mut iovecs);
            queue = shared.lock();
        } else if queue.stop {
            return;
        } else {
            queue.idle += 1;
            queue = shared.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }
}

fn serve(file: &File, mut request: Request, iovecs: &mut Vec<libc::iovec>) {
    loop {
        let result: io::Result<usize> = sys::perform(file, &mut request, iovecs, false);
        if let Some(result) = request.complete(result) {
            return request.finish(result);
        }
    }
}
