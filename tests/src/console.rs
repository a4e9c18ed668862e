//! The far end of a guest's console: collects what comes out of it and waits for what should.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;

/// How much of the output an error message shows.
const SHOWN: usize = 4000;

/// Output that a thread collects, and where to type.
pub struct Console {
    input: Option<File>,
    output: Arc<Output>,
    /// What was consumed by [`Console::expect`] so far.
    position: usize,
}

#[derive(Default)]
struct Output {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    closed: bool,
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads until the other end is closed.
    fn collect(&self, mut from: File) {
        let mut buffer = [0; 4096];
        // A pty whose other end is closed gives EIO, not an end of file.
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            self.lock().bytes.extend_from_slice(buffer.get(..length).unwrap_or_default());
            self.changed.notify_all();
        }
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

impl Console {
    /// A console on two file descriptors; they may be the same pty.
    pub fn new(input: Option<OwnedFd>, output: OwnedFd) -> Self {
        let shared = Arc::new(Output::default());
        let collector = Arc::clone(&shared);
        thread::spawn(move || collector.collect(File::from(output)));
        Self { input: input.map(File::from), output: shared, position: 0 }
    }

    /// Types some text.
    pub fn send(&mut self, text: &str) -> Result<()> {
        let input = self.input.as_mut().ok_or("this console takes no input")?;
        input.write_all(text.as_bytes())?;
        Ok(input.flush()?)
    }

    /// Closes the input, as the end of a script piped into the VMM would.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Waits until the pattern comes out; gives what came before it since the last call.
    pub fn expect(&mut self, pattern: &str, timeout: Duration) -> Result<String> {
        self.wait(&format!("{pattern:?}"), timeout, |bytes| {
            let start = find(bytes, pattern.as_bytes())?;
            Some((start, start + pattern.len(), ()))
        })
        .map(|(before, ())| before)
    }

    /// Waits until `look` finds something in what has come out since the last call: where it
    /// starts, where it ends, and what it is.
    pub fn wait<T>(
        &mut self,
        what: &str,
        timeout: Duration,
        look: impl Fn(&[u8]) -> Option<(usize, usize, T)>,
    ) -> Result<(String, T)> {
        let deadline = Instant::now() + timeout;
        let mut state = self.output.lock();
        loop {
            let fresh = state.bytes.get(self.position..).unwrap_or_default();
            if let Some((start, end, found)) = look(fresh) {
                let before = String::from_utf8_lossy(fresh.get(..start).unwrap_or_default()).into_owned();
                self.position += end;
                return Ok((before.replace('\r', ""), found));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                let why = if state.closed { "the console closed" } else { "timed out" };
                let tail = fresh.get(fresh.len().saturating_sub(SHOWN)..).unwrap_or_default();
                let tail = String::from_utf8_lossy(tail).replace('\r', "");
                return Err(format!("{why} waiting for {what}; the console said:\n{tail}").into());
            }
            state = self.output.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Everything that came out so far.
    pub fn transcript(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().bytes).replace('\r', "")
    }

    /// Waits until the other end is closed.
    pub fn wait_closed(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut state = self.output.lock();
        while !state.closed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.output.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Where a pattern starts in some bytes.
pub fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len().max(1)).position(|window| window == pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Console, File) {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        (Console::new(None, reader.into()), File::from(OwnedFd::from(writer)))
    }

    #[test]
    fn expect_consumes_up_to_the_pattern() {
        let (mut console, mut far) = pair();
        far.write_all(b"one\r\ntwo three").expect("a write");
        let second = Duration::from_secs(5);
        assert_eq!(console.expect("two", second).expect("is there"), "one\n");
        assert_eq!(console.expect("three", second).expect("is there"), " ");
        far.write_all(b"four").expect("a write");
        assert_eq!(console.expect("r", second).expect("is there"), "fou");
    }

    #[test]
    fn what_never_comes_is_an_error_that_shows_the_output() {
        let (mut console, mut far) = pair();
        far.write_all(b"panic at the disco").expect("a write");
        let error = console.expect("login:", Duration::from_millis(50)).expect_err("can't be");
        assert!(error.to_string().contains("timed out"), "{error}");
        drop(far);
        let error = console.expect("login:", Duration::from_secs(30)).expect_err("can't be");
        assert!(error.to_string().contains("closed") && error.to_string().contains("disco"), "{error}");
    }
}
