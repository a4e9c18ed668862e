//! One open connection: buffered output and flow-controlled input on the event loop.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bus::{EventLoop, FdHandler, FdInterest, FdToken};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use super::{CharBackend, CharFrontend};

/// Output that waits for a slow reader. When it is full the device is told so.
pub(super) const OUTPUT_LIMIT: usize = 64 * 1024;
/// How long the end of the program waits for a slow reader.
const FLUSH_TIME: Duration = Duration::from_millis(500);
/// Bytes read at a time.
const CHUNK: usize = 256;

/// How a descriptor is written without blocking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writing {
    /// It is in non-blocking mode, or a regular file.
    Plain,
    /// It is shared with other processes, so its mode is not ours to change: a byte at a time,
    /// each after asking whether there is room.
    Polled,
}

/// What becomes of output when the other side is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhenClosed {
    /// Dropped: nobody comes back.
    Drop,
    /// The newest of it is kept for the next connection.
    Keep,
}

/// A registration with the event loop, made only while there is something to wait for: a hang-up
/// is reported always, and would make the loop spin.
#[derive(Default)]
struct Watch {
    token: Option<(FdToken, FdInterest)>,
}

impl Watch {
    fn set(
        &mut self,
        events: &EventLoop,
        fd: &Arc<OwnedFd>,
        interest: FdInterest,
        handler: &Arc<dyn FdHandler>,
    ) -> std::io::Result<()> {
        let wanted = interest.read || interest.write;
        match self.token {
            Some((_, old)) if old == interest => {}
            Some((token, _)) if wanted => {
                events.modify(token, interest)?;
                self.token = Some((token, interest));
            }
            Some((token, _)) => {
                events.remove(token);
                self.token = None;
            }
            None if wanted => {
                self.token = Some((events.add(fd.clone(), interest, handler.clone())?, interest));
            }
            None => {}
        }
        Ok(())
    }
}

struct Link {
    input: Arc<OwnedFd>,
    output: Arc<OwnedFd>,
    writing: Writing,
    /// Input cannot be waited for (a regular file, /dev/null): it is always ready, and this
    /// eventfd makes the loop come round.
    always_ready: Option<Arc<OwnedFd>>,
    input_open: bool,
    output_open: bool,
    read_watch: Watch,
    write_watch: Watch,
    /// The device could not take all; do not read until it can.
    throttled: bool,
}

#[derive(Default)]
struct State {
    link: Option<Link>,
    pending: VecDeque<u8>,
    /// A short write was returned, so the device waits for room.
    starved: bool,
}

/// Calls the stream that the loop's handler belongs to.
struct Handler {
    stream: Weak<Stream>,
    write: bool,
}

impl FdHandler for Handler {
    fn ready(&self, readable: bool, writable: bool) {
        if let Some(stream) = self.stream.upgrade() {
            if self.write && writable {
                stream.pump_output();
            }
            if !self.write && readable {
                stream.pump_input();
            }
        }
    }
}

type OnClose = Box<dyn Fn() + Send + Sync>;

/// A back end with at most one connection.
pub(super) struct Stream {
    events: Arc<EventLoop>,
    when_closed: WhenClosed,
    state: Mutex<State>,
    front: Mutex<Option<Weak<dyn CharFrontend>>>,
    on_close: Mutex<Option<OnClose>>,
    read_handler: Arc<dyn FdHandler>,
    write_handler: Arc<dyn FdHandler>,
}

impl Stream {
    pub(super) fn new(events: &Arc<EventLoop>, when_closed: WhenClosed) -> Arc<Self> {
        Arc::new_cyclic(|me: &Weak<Self>| Self {
            events: events.clone(),
            when_closed,
            state: Mutex::default(),
            front: Mutex::new(None),
            on_close: Mutex::new(None),
            read_handler: Arc::new(Handler { stream: me.clone(), write: false }),
            write_handler: Arc::new(Handler { stream: me.clone(), write: true }),
        })
    }

    /// Calls `hook`, on the event loop's thread, when the other side has gone.
    pub(super) fn on_close(&self, hook: impl Fn() + Send + Sync + 'static) {
        *self.on_close.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(hook));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn front(&self) -> Option<Arc<dyn CharFrontend>> {
        self.front.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.upgrade()
    }

    /// Takes a connection over one descriptor, in non-blocking mode.
    pub(super) fn connect(&self, fd: &Arc<OwnedFd>) -> std::io::Result<()> {
        // epoll takes a descriptor only once.
        let output = rustix::io::fcntl_dupfd_cloexec(fd, 3)?;
        self.connect_both(fd.clone(), Arc::new(output), Writing::Plain);
        Ok(())
    }

    /// Takes a connection; what waits goes out.
    pub(super) fn connect_both(&self, input: Arc<OwnedFd>, output: Arc<OwnedFd>, writing: Writing) {
        {
            let mut state = self.lock();
            state.link = Some(Link {
                input,
                output,
                writing,
                always_ready: None,
                input_open: true,
                output_open: true,
                read_watch: Watch::default(),
                write_watch: Watch::default(),
                throttled: false,
            });
        }
        self.pump_output();
        self.watch_input();
    }

    pub(super) fn connected(&self) -> bool {
        self.lock().link.is_some()
    }

    /// Ends a connection whose other side is gone, after its last words. To be called on the loop's
    /// thread, which may hear of a new connection before it hears of the end of the old one.
    pub(super) fn end_if_gone(&self) {
        let gone = |state: &State| {
            let Some(link) = &state.link else { return false };
            let mut fds = [PollFd::new(&*link.input, PollFlags::RDHUP)];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let end = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
            poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().intersects(end)
        };
        if !gone(&self.lock()) {
            return;
        }
        for _ in 0..OUTPUT_LIMIT / CHUNK {
            if !self.connected() {
                return;
            }
            self.pump_input();
        }
        self.close();
    }

    /// Starts to wait for input, if there is a device to take it.
    fn watch_input(&self) {
        if self.front().is_none() {
            return;
        }
        let mut state = self.lock();
        let Some(link) = &mut state.link else { return };
        let read = link.input_open && !link.throttled;
        if let Some(kick) = &link.always_ready {
            if read {
                let _ = rustix::io::write(kick, &1u64.to_ne_bytes());
            }
            return;
        }
        let interest = FdInterest { read, write: false };
        let input = link.input.clone();
        match link.read_watch.set(&self.events, &input, interest, &self.read_handler) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {
                // epoll refuses what is always ready.
                let Ok(kick) = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK) else { return };
                let kick = Arc::new(kick);
                link.always_ready = Some(kick.clone());
                let _ = link.read_watch.set(&self.events, &kick, interest, &self.read_handler);
            }
            Err(_) => link.input_open = false,
        }
    }

    /// Reads what the device can take.
    fn pump_input(&self) {
        let Some(front) = self.front() else { return };
        let input = {
            let state = self.lock();
            let Some(link) = &state.link else { return };
            if let Some(kick) = &link.always_ready {
                let _ = rustix::io::read(kick, &mut [0u8; 8]);
            }
            if !link.input_open {
                return;
            }
            link.input.clone()
        };
        let room = front.can_receive().min(CHUNK);
        if room == 0 {
            self.set_throttled(true);
            // The device may have made room before the flag was set; its call found nothing then.
            if front.can_receive() > 0 {
                self.input_ready();
            }
            return;
        }
        let mut buffer = [0; CHUNK];
        let Some(buffer) = buffer.get_mut(..room) else { return };
        match rustix::io::read(&*input, &mut *buffer) {
            Ok(0) => self.end_of_input(),
            Ok(n) => {
                front.receive(buffer.get(..n).unwrap_or_default());
                self.watch_input();
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.end_of_input(),
        }
    }

    fn set_throttled(&self, throttled: bool) {
        if let Some(link) = &mut self.lock().link {
            link.throttled = throttled;
        }
        self.watch_input();
    }

    /// Nothing more will come. A connection that others may follow is closed; otherwise output
    /// goes on (`bhyve … < /dev/null`).
    fn end_of_input(&self) {
        if self.when_closed == WhenClosed::Keep {
            self.close();
            return;
        }
        if let Some(link) = &mut self.lock().link {
            link.input_open = false;
        }
        self.watch_input();
    }

    /// Forgets the connection.
    pub(super) fn close(&self) {
        let link = self.lock().link.take();
        let Some(link) = link else { return };
        for (token, _) in [link.read_watch.token, link.write_watch.token].into_iter().flatten() {
            self.events.remove(token);
        }
        drop(link);
        if let Some(hook) = &*self.on_close.lock().unwrap_or_else(PoisonError::into_inner) {
            hook();
        }
        self.wake_device();
    }

    /// Writes what waits, and tells a device that waits for room.
    fn pump_output(&self) {
        let closed = {
            let mut state = self.lock();
            self.drain(&mut state)
        };
        if closed {
            self.close();
        }
        self.wake_device();
    }

    fn wake_device(&self) {
        let wake = {
            let mut state = self.lock();
            let room = Self::room(&state) >= OUTPUT_LIMIT / 2;
            room && std::mem::take(&mut state.starved)
        };
        if let Some(front) = self.front().filter(|_| wake) {
            front.output_ready();
        }
    }

    /// How many bytes can be taken.
    fn room(state: &State) -> usize {
        match &state.link {
            Some(link) if link.output_open => OUTPUT_LIMIT.saturating_sub(state.pending.len()),
            _ => OUTPUT_LIMIT,
        }
    }

    /// Writes as much as goes, and waits for the rest; true if the connection is dead.
    fn drain(&self, state: &mut State) -> bool {
        let State { link: Some(link), pending, .. } = state else { return false };
        while link.output_open && !pending.is_empty() {
            match write_some(link, pending.as_slices().0) {
                Ok(n) => drop(pending.drain(..n)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) if self.when_closed == WhenClosed::Keep => return true,
                Err(_) => link.output_open = false,
            }
        }
        if !link.output_open {
            pending.clear();
        }
        let interest = FdInterest { read: false, write: !pending.is_empty() };
        let output = link.output.clone();
        if link.write_watch.set(&self.events, &output, interest, &self.write_handler).is_err() {
            // Not to be waited for and yet not ready: nothing sensible is behind it.
            link.output_open = false;
            pending.clear();
        }
        false
    }
}

/// One write that does not block.
fn write_some(link: &Link, data: &[u8]) -> Result<usize, Errno> {
    if link.writing == Writing::Plain {
        return rustix::io::write(&*link.output, data);
    }
    let mut ready = [PollFd::new(&*link.output, PollFlags::OUT)];
    if poll(&mut ready, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? == 0 {
        return Err(Errno::AGAIN);
    }
    rustix::io::write(&*link.output, data.get(..1).unwrap_or_default())
}

impl CharBackend for Stream {
    fn attach(&self, front: Weak<dyn CharFrontend>) {
        *self.front.lock().unwrap_or_else(PoisonError::into_inner) = Some(front);
        self.watch_input();
    }

    fn write(&self, data: &[u8]) -> usize {
        let mut state = self.lock();
        match &state.link {
            Some(link) if !link.output_open => return data.len(),
            None if self.when_closed == WhenClosed::Drop => return data.len(),
            None => {
                state.pending.extend(data);
                let excess = state.pending.len().saturating_sub(OUTPUT_LIMIT);
                state.pending.drain(..excess);
                return data.len();
            }
            Some(_) => {}
        }
        let taken = Self::room(&state).min(data.len());
        state.pending.extend(data.get(..taken).unwrap_or_default());
        if self.drain(&mut state)
            && let Some(link) = &mut state.link
        {
            // Dead. The loop sees it too and closes it; here the device may hold its lock.
            let (output, interest) = (link.output.clone(), FdInterest { read: false, write: true });
            let _ = link.write_watch.set(&self.events, &output, interest, &self.write_handler);
        }
        state.starved |= taken < data.len();
        taken
    }

    fn input_ready(&self) {
        self.set_throttled(false);
    }

    fn flush(&self) {
        let end = Instant::now() + FLUSH_TIME;
        loop {
            let output = {
                let mut state = self.lock();
                if self.drain(&mut state) || state.pending.is_empty() {
                    return;
                }
                let Some(link) = &state.link else { return };
                link.output.clone()
            };
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
            let _ = poll(&mut [PollFd::new(&output.as_fd(), PollFlags::OUT)], Some(&wait));
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(link) = self.lock().link.take() {
            for (token, _) in [link.read_watch.token, link.write_watch.token].into_iter().flatten() {
                self.events.remove(token);
            }
        }
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use std::sync::Condvar;

    /// A device that collects its input.
    #[derive(Default)]
    pub(crate) struct Sink {
        state: Mutex<(Vec<u8>, usize, u32)>,
        changed: Condvar,
    }

    impl Sink {
        pub(crate) fn with_room(room: usize) -> Arc<Self> {
            let sink = Self::default();
            sink.state.lock().unwrap().1 = room;
            Arc::new(sink)
        }

        pub(crate) fn set_room(&self, room: usize) {
            self.state.lock().unwrap().1 = room;
        }

        fn wait(&self, done: impl Fn(&(Vec<u8>, usize, u32)) -> bool) -> (Vec<u8>, u32) {
            let limit = Duration::from_secs(20);
            let guard = self.state.lock().unwrap();
            let (guard, result) = self.changed.wait_timeout_while(guard, limit, |s| !done(s)).unwrap();
            assert!(!result.timed_out());
            (guard.0.clone(), guard.2)
        }

        /// Waits until `n` bytes have come.
        pub(crate) fn wait_for(&self, n: usize) -> Vec<u8> {
            self.wait(|s| s.0.len() >= n).0
        }

        pub(crate) fn wait_for_room(&self) {
            self.wait(|s| s.2 > 0);
        }

        pub(crate) fn received(&self) -> Vec<u8> {
            self.state.lock().unwrap().0.clone()
        }
    }

    impl CharFrontend for Sink {
        fn can_receive(&self) -> usize {
            self.state.lock().unwrap().1
        }
        fn receive(&self, data: &[u8]) {
            let mut state = self.state.lock().unwrap();
            assert!(data.len() <= state.1);
            state.1 -= data.len();
            state.0.extend(data);
            self.changed.notify_all();
        }
        fn output_ready(&self) {
            self.state.lock().unwrap().2 += 1;
            self.changed.notify_all();
        }
    }

    pub(crate) fn attach(backend: &dyn CharBackend, sink: &Arc<Sink>) {
        let front: Arc<dyn CharFrontend> = sink.clone();
        backend.attach(Arc::downgrade(&front));
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn pair(when_closed: WhenClosed) -> (Arc<Stream>, UnixStream, Arc<EventLoop>) {
        let events = Arc::new(EventLoop::start().unwrap());
        let stream = Stream::new(&events, when_closed);
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let fd = Arc::new(OwnedFd::from(ours));
        stream.connect(&fd).unwrap();
        (stream, theirs, events)
    }

    #[test]
    fn input_stops_while_the_device_is_full() {
        let (stream, mut peer, _events) = pair(WhenClosed::Drop);
        let sink = Sink::with_room(3);
        attach(&*stream, &sink);
        peer.write_all(b"hello").unwrap();
        assert_eq!(sink.wait_for(3), b"hel");
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(sink.received(), b"hel");
        sink.set_room(10);
        stream.input_ready();
        assert_eq!(sink.wait_for(5), b"hello");
    }

    #[test]
    fn a_slow_reader_gets_everything_and_the_device_waits() {
        let (stream, mut peer, _events) = pair(WhenClosed::Drop);
        let sink = Sink::with_room(0);
        attach(&*stream, &sink);
        let data: Vec<u8> = (0..4_000_000u32).map(|i| i as u8).collect();
        let mut sent = 0;
        loop {
            let n = stream.write(&data[sent..]);
            if n == 0 {
                break;
            }
            sent += n;
        }
        assert!(sent < data.len(), "back pressure");
        let mut got = vec![0; sent];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(got, data[..sent]);
        sink.wait_for_room();
        assert!(stream.write(b"x") == 1);
    }

    #[test]
    fn output_without_a_reader_is_dropped_or_kept_within_bounds() {
        let (stream, peer, _events) = pair(WhenClosed::Drop);
        drop(peer);
        for _ in 0..1000 {
            assert_eq!(stream.write(&[0; 1000]), 1000);
        }
        let events = Arc::new(EventLoop::start().unwrap());
        let stream = Stream::new(&events, WhenClosed::Keep);
        for i in 0..1000u32 {
            assert_eq!(stream.write(&[i as u8; 1000]), 1000);
        }
        assert_eq!(stream.lock().pending.len(), OUTPUT_LIMIT);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let fd = Arc::new(OwnedFd::from(ours));
        stream.connect(&fd).unwrap();
        let mut got = vec![0; OUTPUT_LIMIT];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(got.last(), Some(&231), "the newest output");
    }

    #[test]
    fn input_that_is_always_ready_is_read_to_its_end() {
        let events = Arc::new(EventLoop::start().unwrap());
        let stream = Stream::new(&events, WhenClosed::Drop);
        let name = format!("tty-stream-{}", std::process::id());
        let file = std::env::temp_dir().join(name);
        std::fs::write(&file, [7; 1000]).unwrap();
        let input = Arc::new(OwnedFd::from(std::fs::File::open(&file).unwrap()));
        std::fs::remove_file(&file).unwrap();
        let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
        stream.connect_both(input, Arc::new(null.into()), Writing::Plain);
        let sink = Sink::with_room(600);
        attach(&*stream, &sink);
        assert_eq!(sink.wait_for(600), [7; 600]);
        sink.set_room(600);
        stream.input_ready();
        assert_eq!(sink.wait_for(1000), [7; 1000]);
        assert_eq!(stream.write(b"still works"), 11);
    }

    #[test]
    fn polled_writing_goes_out_too() {
        let events = Arc::new(EventLoop::start().unwrap());
        let stream = Stream::new(&events, WhenClosed::Drop);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let fd = Arc::new(OwnedFd::from(ours));
        stream.connect_both(fd.clone(), fd, Writing::Polled);
        assert_eq!(stream.write(b"abc"), 3);
        stream.flush();
        let mut got = [0; 3];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"abc");
    }
}
