//! Requests of a guest that are several requests to its disk.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::{Disk, Op};

struct Parts<F> {
    left: AtomicUsize,
    failed: OnceLock<ErrorKind>,
    done: Mutex<Option<F>>,
}

/// Starts `ops`; `done` is called once, after the last of them, with the first error. As any
/// [`super::Done`] it may run before this returns.
pub fn submit_all(
    disk: &dyn Disk,
    mut ops: Vec<Op>,
    done: impl FnOnce(Result<(), ErrorKind>) + Send + 'static,
) {
    if ops.len() <= 1 {
        match ops.pop() {
            Some(op) => disk.submit(op, Box::new(move |result| done(result.map_err(|e| e.kind())))),
            None => done(Ok(())),
        }
        return;
    }
    let parts = Arc::new(Parts {
        left: AtomicUsize::new(ops.len()),
        failed: OnceLock::new(),
        done: Mutex::new(Some(done)),
    });
    for op in ops {
        let parts = parts.clone();
        let part = move |result: std::io::Result<()>| {
            if let Err(error) = result {
                let _ = parts.failed.set(error.kind());
            }
            if parts.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                let done = parts.done.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(done) = done {
                    done(parts.failed.get().map_or(Ok(()), |kind| Err(*kind)));
                }
            }
        };
        disk.submit(op, Box::new(part));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{DiskInfo, Done};
    use std::io;

    /// Answers later, in the order of the test's choice.
    #[derive(Default)]
    struct Slow(Mutex<Vec<Done>>);

    impl Disk for Slow {
        fn info(&self) -> DiskInfo {
            unreachable!("nobody asks")
        }
        fn submit(&self, _: Op, done: Done) {
            self.0.lock().unwrap().push(done);
        }
        fn drain(&self) {}
        fn check_size(&self) -> u64 {
            0
        }
        fn on_resize(&self, _: Box<dyn Fn(u64) + Send + Sync>) {}
    }

    impl Slow {
        fn answer(&self, result: io::Result<()>) {
            let done = self.0.lock().unwrap().pop().unwrap();
            done(result);
        }
    }

    type Answers = Arc<Mutex<Vec<Result<(), ErrorKind>>>>;

    fn started(count: usize) -> (Slow, Answers) {
        let (disk, answers) = (Slow::default(), Answers::default());
        let told = answers.clone();
        let ops = (0..count).map(|_| Op::Flush).collect();
        submit_all(&disk, ops, move |result| told.lock().unwrap().push(result));
        (disk, answers)
    }

    #[test]
    fn the_end_is_told_once_with_the_first_error() {
        let (disk, answers) = started(3);
        disk.answer(Err(ErrorKind::Unsupported.into()));
        disk.answer(Err(ErrorKind::UnexpectedEof.into()));
        assert!(answers.lock().unwrap().is_empty());
        disk.answer(Ok(()));
        assert_eq!(*answers.lock().unwrap(), [Err(ErrorKind::Unsupported)]);
        let (disk, answers) = started(1);
        disk.answer(Ok(()));
        assert_eq!(*answers.lock().unwrap(), [Ok(())]);
        assert_eq!(*started(0).1.lock().unwrap(), [Ok(())], "nothing is done at once");
    }
}
