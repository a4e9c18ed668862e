//! The console of a process: its standard streams, or a terminal by its path.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::termios::{isatty, tcgetwinsize};

use super::keys::{Decoder, Key};
use super::restore::{self, Raw};
use super::{Console, Input};

/// How long an Escape may be the start of a sequence. Slow serial lines need some milliseconds
/// between bytes; a person would notice more.
const ESCAPE_TIME: Duration = Duration::from_millis(50);
/// How long a terminal may refuse output before the rest of a text is dropped.
const STUCK: Duration = Duration::from_secs(5);
/// What a terminal that doesn't know its size is taken for.
const DEFAULT_SIZE: (usize, usize) = (80, 24);

/// A terminal, or a pair of pipes or files.
pub struct Terminal {
    input: File,
    output: File,
    /// Both ends are a terminal.
    interactive: bool,
    /// Output goes to a terminal that does not turn newlines into CR LF itself.
    returns: bool,
    decoder: Decoder,
    ended: bool,
    /// Gets a byte for each signal. SIGINT is a Ctrl-C which reached us another way.
    interrupts: UnixStream,
    _raw: Option<Raw>,
}

impl Terminal {
    /// The standard input and output.
    pub fn stdio() -> io::Result<Self> {
        let input = File::from(rustix::stdio::stdin().try_clone_to_owned()?);
        let output = File::from(rustix::stdio::stdout().try_clone_to_owned()?);
        Self::new(input, output)
    }

    /// A terminal by its path, such as `/dev/nmdm0A`. It does not become the controlling one.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let input = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        if !isatty(&input) {
            return Err(io::Error::other("not a terminal"));
        }
        let output = input.try_clone()?;
        Self::new(input, output)
    }

    fn new(input: File, output: File) -> io::Result<Self> {
        restore::watch_signals();
        let (interrupts, wake) = UnixStream::pair()?;
        interrupts.set_nonblocking(true)?;
        for signal in restore::FATAL.into_iter().chain([signal_hook::consts::SIGINT]) {
            signal_hook::low_level::pipe::register(signal, wake.try_clone()?)?;
        }
        let interactive = isatty(&input) && isatty(&output);
        let raw = if interactive { Raw::new(&input)? } else { None };
        let returns = raw.is_some();
        Ok(Self {
            input,
            output,
            interactive,
            returns,
            decoder: Decoder::default(),
            ended: false,
            interrupts,
            _raw: raw,
        })
    }

    /// Reads what is there within `timeout`. False: nothing came.
    fn fill(&mut self, timeout: Option<Duration>) -> bool {
        if self.ended {
            return false;
        }
        let mut fds = [PollFd::new(&self.input, PollFlags::IN), PollFd::new(&self.interrupts, PollFlags::IN)];
        let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) | Err(Errno::INTR) => return false,
            Ok(_) if fds.first().is_some_and(|fd| fd.revents().is_empty()) => return false,
            // What can't be polled can still be read.
            Ok(_) | Err(_) => {}
        }
        let mut bytes = [0; 512];
        match rustix::io::read(self.input.as_fd(), &mut bytes) {
            Ok(0) => self.ended = true,
            Ok(read) => self.decoder.push(bytes.get(..read).unwrap_or_default()),
            Err(Errno::INTR | Errno::AGAIN) => return false,
            // EIO: the other end of a pty is closed.
            Err(_) => self.ended = true,
        }
        true
    }

    /// Whether there was a SIGINT. Other signals end the input.
    fn take_signal(&mut self) -> bool {
        if !matches!(self.interrupts.read(&mut [0; 64]), Ok(1..)) {
            return false;
        }
        if restore::terminated().is_some() {
            self.ended = true;
            self.decoder = Decoder::default();
            return false;
        }
        true
    }

    fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match rustix::io::write(self.output.as_fd(), bytes) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let mut fds = [PollFd::new(&self.output, PollFlags::OUT)];
                    let limit = Timespec::try_from(STUCK).ok();
                    if matches!(poll(&mut fds, limit.as_ref()), Ok(0)) {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    }
}

impl Console for Terminal {
    fn write(&mut self, text: &str) {
        if self.returns {
            let text = text.replace('\n', "\r\n");
            self.put(text.as_bytes());
        } else {
            self.put(text.as_bytes());
        }
    }

    fn key(&mut self, timeout: Option<Duration>) -> Input {
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        loop {
            if let Some(key) = self.decoder.next(self.ended) {
                return Input::Key(key);
            }
            if self.take_signal() {
                return Input::Key(Key::Ctrl('c'));
            }
            if self.ended {
                return Input::End;
            }
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            if left.is_some_and(|l| l.is_zero()) && timeout.is_some_and(|t| !t.is_zero()) {
                return Input::Timeout;
            }
            if self.decoder.is_pending() {
                // An unfinished sequence: if its rest doesn't come at once, it isn't one.
                if !self.fill(Some(ESCAPE_TIME))
                    && let Some(key) = self.decoder.next(true)
                {
                    return Input::Key(key);
                }
                continue;
            }
            if !self.fill(left) && left.is_some_and(|l| l.is_zero()) {
                return Input::Timeout;
            }
        }
    }

    fn interrupted(&mut self) -> bool {
        if self.take_signal() {
            return true;
        }
        if !self.interactive {
            return false;
        }
        self.fill(Some(Duration::ZERO));
        self.decoder.take_interrupt()
    }

    fn is_terminal(&self) -> bool {
        self.interactive
    }

    fn size(&self) -> (usize, usize) {
        match tcgetwinsize(&self.output) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
            _ => DEFAULT_SIZE,
        }
    }
}
