//! A request as a series of system calls: which comes next, and what its result means.
//!
//! Both engines drive requests through [`Request::next`] and [`Request::complete`], so that short
//! transfers, bouncing and fallbacks work the same in both.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use memory::GuestSlice;
use rustix::io::Errno;

use super::Done;
use super::open::DirectAlign;

/// Most pieces in one call (Linux `UIO_MAXIOV`).
const IOV_MAX: usize = 1024;
/// Most bytes that go through a bounce buffer at once.
const CHUNK: usize = 1 << 20;
/// Most bytes that the submitter copies itself.
const INLINE: u64 = 128 << 10;
/// How often a request may be told to try again without progress.
const RETRIES: u32 = 64;

/// How a range is made to read as zeros; each falls back to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zeroing {
    Punch,
    Range,
    Write,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write { durable: bool },
    Flush,
    Discard { device: bool },
    Zero(Zeroing),
}

/// The next system call of a request. The iovecs go with `Read` and `Write`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Read { offset: u64 },
    Write { offset: u64, durable: bool },
    Sync,
    Allocate { mode: i32, offset: u64, len: u64 },
    DeviceDiscard { offset: u64, len: u64 },
}

/// Counts requests in flight.
#[derive(Default)]
pub(super) struct InFlight {
    count: Mutex<usize>,
    idle: Condvar,
}

impl InFlight {
    pub fn enter(self: &Arc<Self>) -> Entered {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Entered(self.clone())
    }

    pub fn wait_idle(&self) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        while *count > 0 {
            count = self.idle.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// One request in flight, until dropped.
pub(super) struct Entered(Arc<InFlight>);

impl Drop for Entered {
    fn drop(&mut self) {
        let mut count = self.0.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count -= 1;
        if *count == 0 {
            self.0.idle.notify_all();
        }
    }
}

/// Where a request is in its list of guest buffers.
struct Cursor {
    slices: Vec<GuestSlice>,
    index: usize,
    skip: usize,
}

impl Cursor {
    fn rest(&self) -> impl Iterator<Item = GuestSlice> {
        let rest = self.slices.get(self.index..).unwrap_or_default();
        rest.iter().enumerate().map(|(i, s)| if i == 0 { s.sub(self.skip, usize::MAX) } else { s.clone() })
    }

    /// Steps over `len` bytes; `each` sees every piece.
    fn advance(&mut self, mut len: usize, mut each: impl FnMut(&GuestSlice)) {
        while len > 0 {
            let Some(slice) = self.slices.get(self.index) else { return };
            let piece = slice.sub(self.skip, len);
            each(&piece);
            len -= piece.len();
            self.skip += piece.len();
            if self.skip >= slice.len() {
                (self.index, self.skip) = (self.index + 1, 0);
            }
        }
    }
}

/// Host memory at an address that direct I/O takes.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn zeroed(len: usize, align: usize) -> Self {
        let bytes = vec![0; len + align];
        let start = bytes.as_ptr().align_offset(align).min(align);
        Self { bytes, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        let (start, len) = (self.start, self.len);
        self.bytes.get_mut(start..start + len).unwrap_or_default()
    }
}

enum Buffers {
    None,
    Guest(Cursor),
    /// `window` bytes of `buf` stand for the disk from `lead` bytes before the next offset; the
    /// first `filled` of them are transferred.
    Bounce {
        cursor: Cursor,
        buf: Aligned,
        align: usize,
        lead: usize,
        window: usize,
        filled: usize,
    },
    Zeros(Aligned),
}

pub(super) struct Request {
    kind: Kind,
    offset: u64,
    left: u64,
    buffers: Buffers,
    retries: u32,
    direct: Option<DirectAlign>,
    done: Done,
    _entered: Entered,
}

impl Request {
    pub fn new(kind: Kind, offset: u64, len: u64, done: Done, entered: Entered) -> Self {
        let buffers = Buffers::None;
        Self { kind, offset, left: len, buffers, retries: 0, direct: None, done, _entered: entered }
    }

    /// Adds the buffers of a read or write; `direct` is the disk's alignment under `O_DIRECT`.
    pub fn with_buffers(mut self, slices: Vec<GuestSlice>, direct: Option<DirectAlign>) -> Self {
        let cursor = Cursor { slices, index: 0, skip: 0 };
        self.buffers = match direct {
            Some(d) if !is_aligned(&cursor.slices, self.offset, d) => self.bounce(cursor, d),
            _ => Buffers::Guest(cursor),
        };
        self.direct = direct;
        self
    }

    /// Notes the disk's alignment under `O_DIRECT` for a request without buffers.
    pub fn with_direct(self, direct: Option<DirectAlign>) -> Self {
        Self { direct, ..self }
    }

    fn bounce(&self, cursor: Cursor, direct: DirectAlign) -> Buffers {
        let align = direct.offset.max(1) as usize;
        let most = self.left.saturating_add(2 * align as u64).next_multiple_of(align as u64);
        let len = CHUNK.max(align).min(usize::try_from(most).unwrap_or(CHUNK));
        let buf = Aligned::zeroed(len, (direct.memory as usize).max(align));
        Buffers::Bounce { cursor, buf, align, lead: 0, window: 0, filled: 0 }
    }

    /// Whether a ring would only hand the request to a thread of the kernel's. Many file systems
    /// have no buffered writes that don't block; direct ones and those to devices do not.
    pub fn needs_thread(&self, is_device: bool) -> bool {
        match self.kind {
            Kind::Read => false,
            Kind::Write { .. } => self.direct.is_none() && !is_device,
            _ => true,
        }
    }

    /// Whether to try it at once, without blocking: a short read from the page cache takes less
    /// than to wake a thread for it.
    pub fn may_run_inline(&self) -> bool {
        self.kind == Kind::Read && self.direct.is_none() && self.left <= INLINE
    }

    /// The next call. `iovecs` is filled for it and stays valid as long as the request lives and
    /// is not touched.
    pub fn next(&mut self, iovecs: &mut Vec<libc::iovec>) -> io::Result<Step> {
        iovecs.clear();
        let (offset, len) = (self.offset, self.left);
        let write = match self.kind {
            Kind::Flush => return Ok(Step::Sync),
            Kind::Discard { device: true } => return Ok(Step::DeviceDiscard { offset, len }),
            Kind::Discard { device: false } | Kind::Zero(Zeroing::Punch) => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                return Ok(Step::Allocate { mode, offset, len });
            }
            Kind::Zero(Zeroing::Range) => {
                let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
                return Ok(Step::Allocate { mode, offset, len });
            }
            Kind::Zero(Zeroing::Write) => Some(false),
            Kind::Write { durable } => Some(durable),
            Kind::Read => None,
        };
        let at = self.load(write.is_some(), iovecs)?;
        Ok(match write {
            Some(durable) => Step::Write { offset: at, durable },
            None => Step::Read { offset: at },
        })
    }

    /// Fills `iovecs`; returns the disk offset they stand for.
    fn load(&mut self, write: bool, iovecs: &mut Vec<libc::iovec>) -> io::Result<u64> {
        match &mut self.buffers {
            Buffers::None => Err(io::ErrorKind::InvalidInput.into()),
            Buffers::Guest(cursor) => {
                iovecs.extend(
                    cursor
                        .rest()
                        .filter(|s| !s.is_empty())
                        .take(IOV_MAX)
                        .map(|s| libc::iovec { iov_base: s.as_ptr().cast(), iov_len: s.len() }),
                );
                Ok(self.offset)
            }
            Buffers::Zeros(buf) => {
                let len = buf.len.min(usize::try_from(self.left).unwrap_or(CHUNK));
                let iov_base = buf.bytes().as_mut_ptr().cast();
                iovecs.push(libc::iovec { iov_base, iov_len: len });
                Ok(self.offset)
            }
            Buffers::Bounce { cursor, buf, align, lead, window, filled } => {
                if *filled == 0 {
                    *lead = (self.offset % *align as u64) as usize;
                    let wanted = usize::try_from(self.left).unwrap_or(CHUNK).saturating_add(*lead);
                    *window = wanted.min(buf.len).next_multiple_of(*align).min(buf.len);
                    if write {
                        if *lead != 0 || wanted.min(buf.len) != *window {
                            // Part of a sector: we would have to read the rest of it first.
                            return Err(io::ErrorKind::InvalidInput.into());
                        }
                        let mut to = buf.bytes();
                        for slice in cursor.rest() {
                            let n = slice.read(to);
                            to = to.get_mut(n..).unwrap_or_default();
                        }
                    }
                }
                let part = buf.bytes().get_mut(*filled..*window).unwrap_or_default();
                iovecs.push(libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() });
                Ok(self.offset - *lead as u64 + *filled as u64)
            }
        }
    }

    /// Takes the result of the call; `Some` when the request is finished.
    pub fn complete(&mut self, result: io::Result<usize>) -> Option<io::Result<()>> {
        let n = match result {
            Ok(n) => n,
            Err(e) => return self.failed(e),
        };
        self.retries = 0;
        match self.kind {
            Kind::Flush | Kind::Discard { .. } | Kind::Zero(Zeroing::Punch | Zeroing::Range) => {
                return Some(Ok(()));
            }
            // The image is shorter than the disk: cut off while running.
            Kind::Read if n == 0 => return Some(Err(io::ErrorKind::UnexpectedEof.into())),
            Kind::Write { .. } | Kind::Zero(Zeroing::Write) if n == 0 => {
                return Some(Err(io::ErrorKind::WriteZero.into()));
            }
            _ => {}
        }
        if let Err(e) = self.transferred(n) {
            return Some(Err(e));
        }
        (self.left == 0).then_some(Ok(()))
    }

    fn transferred(&mut self, n: usize) -> io::Result<()> {
        let read = self.kind == Kind::Read;
        let moved = match &mut self.buffers {
            Buffers::None => 0,
            Buffers::Zeros(_) => n as u64,
            Buffers::Guest(cursor) => {
                cursor.advance(n, |piece| {
                    if read {
                        piece.written(piece.len());
                    }
                });
                n as u64
            }
            Buffers::Bounce { cursor, buf, align, lead, window, filled } => {
                *filled = (*filled + n).min(*window);
                let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(*window - *lead);
                if *filled < *lead + wanted {
                    // Direct I/O moves whole sectors, except before the end of the file.
                    let at_end = *filled % *align != 0;
                    return if at_end { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) };
                }
                let from = buf.bytes().get(*lead..*lead + wanted).unwrap_or_default();
                let mut done = 0;
                cursor.advance(wanted, |piece| {
                    if read {
                        piece.write(from.get(done..).unwrap_or_default());
                    }
                    done += piece.len();
                });
                *filled = 0;
                wanted as u64
            }
        };
        self.offset = self.offset.saturating_add(moved);
        self.left = self.left.saturating_sub(moved);
        Ok(())
    }

    fn failed(&mut self, e: io::Error) -> Option<io::Result<()>> {
        match Errno::from_io_error(&e) {
            Some(Errno::INTR | Errno::AGAIN) if self.retries < RETRIES => {
                self.retries += 1;
                None
            }
            Some(Errno::OPNOTSUPP | Errno::NOSYS) => match self.kind {
                Kind::Zero(Zeroing::Punch) => {
                    self.kind = Kind::Zero(Zeroing::Range);
                    None
                }
                Kind::Zero(Zeroing::Range) => {
                    self.kind = Kind::Zero(Zeroing::Write);
                    let align = self.direct.map_or(1, |d| d.memory.max(d.offset)).max(4096) as usize;
                    let len = CHUNK.min(usize::try_from(self.left).unwrap_or(CHUNK));
                    self.buffers = Buffers::Zeros(Aligned::zeroed(len, align));
                    None
                }
                _ => Some(Err(io::ErrorKind::Unsupported.into())),
            },
            _ => Some(Err(e)),
        }
    }

    /// Tells the submitter.
    pub fn finish(self, result: io::Result<()>) {
        let done = self.done;
        // A panic there must not take the engine down, nor the requests of others.
        let _ = catch_unwind(AssertUnwindSafe(|| done(result)));
    }
}

/// Whether direct I/O can use the buffers as they are.
fn is_aligned(slices: &[GuestSlice], offset: u64, direct: DirectAlign) -> bool {
    let (memory, unit) = (u64::from(direct.memory.max(1)), u64::from(direct.offset.max(1)));
    offset.is_multiple_of(unit)
        && slices.iter().all(|s| {
            (s.as_ptr().addr() as u64).is_multiple_of(memory) && (s.len() as u64).is_multiple_of(unit)
        })
}
