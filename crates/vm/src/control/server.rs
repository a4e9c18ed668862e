//! The side of the process that runs the VM.

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::{AtFlags, Mode};
use rustix::net::Shutdown;
use rustix::process::geteuid;

use super::frame::Connection;
use super::{Request, Response};
use crate::{Claim, Error, Result};

/// Clients at once; more are turned away.
const MAX_CLIENTS: usize = 16;
/// How long a client may take for a message.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers requests, on any thread.
pub trait Handler: Send + Sync {
    /// Does what is asked.
    fn answer(&self, request: Request) -> Response;
}

/// The control socket. Dropping this closes and removes it.
pub struct Server {
    listener: Arc<UnixListener>,
    closed: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    claim: Arc<Claim>,
}

impl Server {
    /// Opens the socket of the VM that `claim` is on, and answers by `handler` from now on.
    pub fn start(claim: &Arc<Claim>, handler: Arc<dyn Handler>) -> Result<Self> {
        let path = claim.directory().socket_path(claim.name());
        let fail = |e: std::io::Error| Error::file(&path, e);
        claim.remove_socket()?;
        let listener =
            Arc::new(UnixListener::bind(claim.directory().socket_address(claim.name())).map_err(fail)?);
        // Nobody else can enter the folder; this is for the eye.
        let file = claim.directory().socket_file(claim.name());
        rustix::fs::chmodat(claim.directory().io(), &file, Mode::RUSR | Mode::WUSR, AtFlags::empty())
            .map_err(|e| fail(e.into()))?;
        let closed = Arc::new(AtomicBool::new(false));
        let (ours, stop) = (listener.clone(), closed.clone());
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || accept(&ours, &stop, &handler))
            .map_err(fail)?;
        Ok(Self { listener, closed, thread: Some(thread), claim: claim.clone() })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        // Wakes the thread: accept fails from now on.
        let _ = rustix::net::shutdown(&*self.listener, Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = self.claim.remove_socket();
    }
}

fn accept(listener: &UnixListener, closed: &Arc<AtomicBool>, handler: &Arc<dyn Handler>) {
    let clients = Arc::new(AtomicUsize::new(0));
    while !closed.load(Ordering::SeqCst) {
        let Ok((stream, _)) = listener.accept() else {
            // Out of descriptors, or closed; not in a tight loop.
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        if !may_ask(&stream) || clients.load(Ordering::SeqCst) >= MAX_CLIENTS {
            continue;
        }
        clients.fetch_add(1, Ordering::SeqCst);
        let (handler, closed, guard) = (handler.clone(), closed.clone(), Leaving(clients.clone()));
        // A thread that can't be started has dropped its guard and its client.
        let _ = std::thread::Builder::new().name("control client".into()).spawn(move || {
            let _guard = guard;
            serve(stream, &closed, &*handler);
        });
    }
}

struct Leaving(Arc<AtomicUsize>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The VM's own user, and root.
fn may_ask(stream: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(stream)
        .is_ok_and(|peer| peer.uid == geteuid() || peer.uid.is_root())
}

fn serve(stream: UnixStream, closed: &AtomicBool, handler: &dyn Handler) {
    let mut connection = Connection(stream);
    while !closed.load(Ordering::SeqCst) {
        let response = match connection.receive::<Request>(PATIENCE) {
            Ok(Some(request)) => handler.answer(request),
            Ok(None) => return,
            Err(error) => {
                let _ = connection.send(&Response::Refused(error.to_string()), PATIENCE);
                return;
            }
        };
        if connection.send(&response, PATIENCE).is_err() {
            return;
        }
    }
}
