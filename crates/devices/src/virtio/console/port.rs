//! One port: a listening UNIX socket with one client at a time, and a pair of queues.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bus::{EventLoop, FdHandler, FdInterest, FdToken};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketFlags};
use serde::{Deserialize, Serialize};

use super::Inner;
use crate::virtio::later;
use crate::virtio::{Chain, QueueError, VirtQueue};

/// Bytes moved at once.
const PIECE: usize = 4096;
/// Buffers filled before other descriptors get their turn.
const TURN: usize = 16;

/// What a port saves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PortState {
    /// The driver knows the port.
    pub ready: bool,
    /// A program in the guest has it open.
    pub guest_open: bool,
    /// We told the driver that our side is open.
    pub told_open: bool,
    /// How much of the next chain to send was sent already.
    pub skip: u64,
}

/// The client.
struct Client {
    fd: Arc<OwnedFd>,
    serial: u64,
    registered: Option<(FdToken, FdInterest)>,
}

#[derive(Default)]
struct Live {
    saved: PortState,
    client: Option<Client>,
    /// Number of clients so far.
    serial: u64,
    to_driver: Option<Arc<VirtQueue>>,
    from_driver: Option<Arc<VirtQueue>>,
    /// A chain that the socket has not taken whole, and how much it has taken.
    held: Option<(Chain, u64)>,
    /// The driver has no buffers for what the client sends.
    starved: bool,
}

/// A port.
pub(super) struct Port {
    pub id: u32,
    pub name: String,
    /// Whether the driver shall make it a console (hvc) rather than a plain port.
    pub console: bool,
    listener: Arc<OwnedFd>,
    listening: Mutex<Option<FdToken>>,
    live: Mutex<Live>,
}

/// Calls the port on the event loop's thread; 0 is the listener, else the client's serial.
struct Handler {
    inner: Weak<Inner>,
    port: usize,
    serial: u64,
}

impl FdHandler for Handler {
    fn ready(&self, _: bool, _: bool) {
        let Some(inner) = self.inner.upgrade() else { return };
        let Some(port) = inner.ports.get(self.port) else { return };
        if self.serial == 0 {
            port.accept(&inner, self.port);
        } else {
            port.ready(&inner, self.serial);
        }
    }
}

/// Listens at `path`. A socket that nobody listens at any more is a left-over of an earlier run.
fn listen(path: &str) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
            let dead = UnixStream::connect(path)
                .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
            if !(socket && dead) {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        other => other,
    }
}

impl Port {
    pub fn new(id: u32, name: String, path: &str, console: bool) -> io::Result<Self> {
        let listener = listen(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            id,
            name,
            console,
            listener: Arc::new(listener.into()),
            listening: Mutex::default(),
            live: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to accept clients. `place` is the port's index in `inner`.
    pub fn start(&self, events: &EventLoop, inner: Weak<Inner>, place: usize) -> io::Result<()> {
        let handler = Arc::new(Handler { inner, port: place, serial: 0 });
        let token = events.add(self.listener.clone(), FdInterest { read: true, write: false }, handler)?;
        *self.listening.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
        Ok(())
    }

    /// Lets go of the event loop.
    pub fn stop(&self, events: &EventLoop) {
        if let Some(token) = self.listening.lock().unwrap_or_else(PoisonError::into_inner).take() {
            events.remove(token);
        }
        if let Some((token, _)) = self.lock().client.take().and_then(|client| client.registered) {
            events.remove(token);
        }
    }

    fn accept(&self, inner: &Arc<Inner>, place: usize) {
        let Ok(fd) = rustix::net::accept_with(&*self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        else {
            return;
        };
        let mut live = self.lock();
        if live.client.as_ref().is_some_and(|client| gone(&client.fd)) {
            disconnect(&mut live, inner);
        }
        if live.client.is_some() {
            // One at a time: the new one is closed.
            return;
        }
        live.serial += 1;
        live.client = Some(Client { fd: Arc::new(fd), serial: live.serial, registered: None });
        self.tell(&mut live, inner);
        Self::watch(&mut live, inner, place);
    }

    /// The client's socket is ready, or the client is gone.
    fn ready(&self, inner: &Arc<Inner>, serial: u64) {
        let mut live = self.lock();
        if live.client.as_ref().is_none_or(|client| client.serial != serial) {
            return;
        }
        let _ = Self::transmit(&mut live, inner);
        let _ = Self::receive(&mut live, inner);
        self.settle(&mut live, inner);
    }

    fn settle(&self, live: &mut Live, inner: &Arc<Inner>) {
        self.tell(live, inner);
        if let Some(place) = inner.ports.iter().position(|port| std::ptr::eq(port, self)) {
            Self::watch(live, inner, place);
        }
    }

    /// Tells the driver whether our side is open, if it does not know.
    fn tell(&self, live: &mut Live, inner: &Inner) {
        let open = live.client.is_some();
        if live.saved.ready && live.saved.told_open != open {
            live.saved.told_open = open;
            inner.send_open(self.id, open);
        }
    }

    /// Waits for what there is to wait for. A socket for which nothing can be done is not watched
    /// at all, because a hang-up is always reported.
    fn watch(live: &mut Live, inner: &Arc<Inner>, place: usize) {
        let wanted = FdInterest {
            read: live.saved.guest_open && live.to_driver.is_some() && !live.starved,
            write: live.held.is_some(),
        };
        let Some(client) = &mut live.client else { return };
        match client.registered {
            Some((_, interest)) if interest == wanted => return,
            Some((token, _)) => inner.events.remove(token),
            None => {}
        }
        client.registered = None;
        if wanted.read || wanted.write {
            let handler =
                Arc::new(Handler { inner: Arc::downgrade(inner), port: place, serial: client.serial });
            // Without a place in the loop the client gets no service, and can go away.
            client.registered =
                inner.events.add(client.fd.clone(), wanted, handler).ok().map(|token| (token, wanted));
        }
    }

    /// Moves what the client sends to the driver.
    fn receive(live: &mut Live, inner: &Inner) -> Result<(), QueueError> {
        let Some(queue) = live.to_driver.clone().filter(|_| live.saved.guest_open) else { return Ok(()) };
        for _ in 0..TURN {
            let Some(client) = &live.client else { return Ok(()) };
            let Some(chain) = queue.pop()? else {
                if queue.enable_notifications()? {
                    continue;
                }
                live.starved = true;
                return Ok(());
            };
            live.starved = false;
            let room = usize::try_from(chain.writable_len()).unwrap_or(PIECE).min(PIECE);
            if room == 0 {
                queue.fault("no room for input");
                return Ok(());
            }
            let mut data = [0; PIECE];
            match rustix::io::read(&*client.fd, data.get_mut(..room).unwrap_or_default()) {
                Ok(len @ 1..) => {
                    chain.write(0, data.get(..len).unwrap_or_default());
                    queue.complete(chain.head, len as u32)?;
                }
                Err(Errno::AGAIN | Errno::INTR) => {
                    queue.rewind(1);
                    return Ok(());
                }
                Ok(_) | Err(_) => {
                    queue.rewind(1);
                    disconnect(live, inner);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Moves what the driver sends to the client; without one it is lost.
    fn transmit(live: &mut Live, inner: &Inner) -> Result<(), QueueError> {
        let Some(queue) = live.from_driver.clone() else { return Ok(()) };
        for _ in 0..later::TURN {
            let (chain, done) = match live.held.take() {
                Some(held) => held,
                None => match queue.pop()? {
                    Some(chain) => (chain, std::mem::take(&mut live.saved.skip)),
                    None if queue.enable_notifications()? => continue,
                    None => return Ok(()),
                },
            };
            match push(live.client.as_ref(), &chain, done) {
                Pushed::Part(done) => {
                    live.held = Some((chain, done));
                    return Ok(());
                }
                Pushed::All => queue.complete(chain.head, 0)?,
            }
        }
        inner.later.call(queue.index());
        Ok(())
    }

    /// The driver has buffers for us.
    pub fn notify_receive(&self, inner: &Arc<Inner>) {
        let mut live = self.lock();
        if std::mem::take(&mut live.starved) {
            // The event loop reads when there is something.
            self.settle(&mut live, inner);
        }
    }

    /// The driver has something to send.
    pub fn notify_transmit(&self, inner: &Arc<Inner>) {
        let mut live = self.lock();
        if live.held.is_none() {
            let _ = Self::transmit(&mut live, inner);
        }
        self.settle(&mut live, inner);
    }

    /// Sends bytes that are not from a queue, if the client takes them at once.
    pub fn emergency(&self, byte: u8) {
        if let Some(client) = &self.lock().client {
            let _ = rustix::net::send(&*client.fd, &[byte], SendFlags::NOSIGNAL);
        }
    }

    /// The driver knows the port now (or says that it could not take it).
    pub fn set_ready(&self, inner: &Arc<Inner>, ready: bool) {
        let mut live = self.lock();
        live.saved.ready = ready;
        live.saved.told_open = false;
        self.settle(&mut live, inner);
    }

    /// A program in the guest has opened or closed the port.
    pub fn set_guest_open(&self, inner: &Arc<Inner>, open: bool) {
        let mut live = self.lock();
        live.saved.guest_open = open;
        live.starved = false;
        self.settle(&mut live, inner);
    }

    /// Gets its queues.
    pub fn activate(
        &self,
        inner: &Arc<Inner>,
        to_driver: Option<Arc<VirtQueue>>,
        from_driver: Option<Arc<VirtQueue>>,
        always_open: bool,
    ) {
        let mut live = self.lock();
        (live.to_driver, live.from_driver) = (to_driver, from_driver);
        live.saved.guest_open |= always_open;
        live.starved = false;
        self.settle(&mut live, inner);
    }

    /// Gives back what it holds.
    pub fn drain(&self, inner: &Arc<Inner>) {
        let mut live = self.lock();
        if let Some((_, done)) = live.held.take() {
            live.saved.skip = done;
            if let Some(queue) = &live.from_driver {
                queue.rewind(1);
            }
        }
        live.starved = true;
        self.settle(&mut live, inner);
    }

    /// Lets go of its queues. The client stays.
    pub fn reset(&self, inner: &Arc<Inner>) {
        let mut live = self.lock();
        (live.to_driver, live.from_driver, live.held) = (None, None, None);
        live.saved = PortState::default();
        self.settle(&mut live, inner);
    }

    pub fn state(&self) -> PortState {
        self.lock().saved
    }

    pub fn set_state(&self, state: PortState) {
        self.lock().saved = state;
    }
}

enum Pushed {
    All,
    /// The socket is full after so many bytes of the chain.
    Part(u64),
}

fn push(client: Option<&Client>, chain: &Chain, mut done: u64) -> Pushed {
    let Some(client) = client else { return Pushed::All };
    let mut data = [0; PIECE];
    loop {
        let len = chain.read(done, &mut data);
        if len == 0 {
            return Pushed::All;
        }
        match rustix::net::send(&*client.fd, data.get(..len).unwrap_or_default(), SendFlags::NOSIGNAL) {
            Ok(sent) => done += sent as u64,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Pushed::Part(done),
            // The client is gone; what it sent before is still to be read.
            Err(_) => return Pushed::All,
        }
    }
}

/// Whether the client has hung up. What it has sent and nobody read is lost.
fn gone(fd: &impl AsFd) -> bool {
    let mut poll = [PollFd::new(fd, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut poll, Some(&now))
        .is_ok_and(|_| poll.iter().any(|fd| fd.revents().intersects(PollFlags::HUP | PollFlags::ERR)))
}

fn disconnect(live: &mut Live, inner: &Inner) {
    if let Some((token, _)) = live.client.take().and_then(|client| client.registered) {
        inner.events.remove(token);
    }
}
