//! Listening sockets: one client at a time, none needed.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use bus::{EventLoop, FdHandler, FdInterest, FdToken};
use rustix::net::{SocketFlags, accept_with};

use super::stream::{Stream, WhenClosed};
use super::{CharBackend, CharFrontend, TtyError};

/// Takes clients.
struct Acceptor {
    stream: Weak<Stream>,
    socket: Arc<OwnedFd>,
}

impl FdHandler for Acceptor {
    fn ready(&self, _: bool, _: bool) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(client) = accept_with(&*self.socket, flags) else { return };
        let Some(stream) = self.stream.upgrade() else { return };
        stream.end_if_gone();
        // A second client is turned away at once rather than left waiting.
        if !stream.connected() {
            // Keystrokes must not wait for company. Not a TCP socket: no such option.
            let _ = rustix::net::sockopt::set_tcp_nodelay(&client, true);
            // Out of descriptors: the client is turned away.
            let _ = stream.connect(&Arc::new(client));
        }
    }
}

/// The socket's name in the file system, which goes away with it.
struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let same = |m: std::fs::Metadata| (m.dev(), m.ino()) == self.inode;
        if std::fs::symlink_metadata(&self.path).is_ok_and(same) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

struct Listener {
    stream: Arc<Stream>,
    events: Arc<EventLoop>,
    accepting: FdToken,
    _file: Option<SocketFile>,
}

fn listen(
    text: &str,
    socket: OwnedFd,
    file: Option<SocketFile>,
    events: &Arc<EventLoop>,
) -> Result<Arc<dyn CharBackend>, TtyError> {
    let socket = Arc::new(socket);
    let stream = Stream::new(events, WhenClosed::Keep);
    let acceptor = Arc::new(Acceptor { stream: Arc::downgrade(&stream), socket: socket.clone() });
    let interest = FdInterest { read: true, write: false };
    let accepting = events.add(socket, interest, acceptor).map_err(TtyError::system(text))?;
    Ok(Arc::new(Listener { stream, events: events.clone(), accepting, _file: file }))
}

/// Listens on `path`. A socket that a dead process left there is replaced.
pub(super) fn open_unix(
    text: &str,
    path: &Path,
    events: &Arc<EventLoop>,
) -> Result<Arc<dyn CharBackend>, TtyError> {
    if let Ok(meta) = std::fs::symlink_metadata(path) {
        if !meta.file_type().is_socket() {
            return Err(TtyError::Exists(text.to_owned()));
        }
        match UnixStream::connect(path) {
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(TtyError::system(text))?;
            }
            Ok(_) => return Err(TtyError::InUse(text.to_owned())),
            Err(source) => return Err(TtyError::System { what: text.to_owned(), source }),
        }
    }
    let socket = UnixListener::bind(path).map_err(TtyError::system(text))?;
    socket.set_nonblocking(true).map_err(TtyError::system(text))?;
    let meta = std::fs::symlink_metadata(path).map_err(TtyError::system(text))?;
    let file = SocketFile { path: path.to_owned(), inode: (meta.dev(), meta.ino()) };
    listen(text, socket.into(), Some(file), events)
}

/// Listens on `address`.
pub(super) fn open_tcp(
    text: &str,
    address: SocketAddr,
    events: &Arc<EventLoop>,
) -> Result<Arc<dyn CharBackend>, TtyError> {
    let socket = TcpListener::bind(address).map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => TtyError::InUse(text.to_owned()),
        _ => TtyError::System { what: text.to_owned(), source },
    })?;
    socket.set_nonblocking(true).map_err(TtyError::system(text))?;
    listen(text, socket.into(), None, events)
}

impl CharBackend for Listener {
    fn attach(&self, front: Weak<dyn CharFrontend>) {
        self.stream.attach(front);
    }

    fn write(&self, data: &[u8]) -> usize {
        self.stream.write(data)
    }

    fn input_ready(&self) {
        self.stream.input_ready();
    }

    fn flush(&self) {
        self.stream.flush();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.events.remove(self.accepting);
    }
}

#[cfg(test)]
mod tests {
    use super::super::stream::testing::{Sink, attach};
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("tty-{name}-{}", std::process::id()))
    }

    #[test]
    fn one_client_after_the_other() {
        let events = Arc::new(EventLoop::start().unwrap());
        let path = path("listen");
        let text = format!("unix={}", path.display());
        let backend = open_unix(&text, &path, &events).unwrap();
        let sink = Sink::with_room(1000);
        attach(&*backend, &sink);
        backend.write(b"boot");
        for round in 1..4 {
            let mut client = UnixStream::connect(&path).unwrap();
            client.write_all(b"in").unwrap();
            sink.wait_for(2 * round);
            let mut got = [0; 4];
            client.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"boot");
            let mut second = UnixStream::connect(&path).unwrap();
            assert_eq!(second.read(&mut got).unwrap(), 0, "turned away");
            drop(client);
            backend.write(b"boot");
        }
        let error = open_unix(&text, &path, &events).err().unwrap().to_string();
        assert!(error.contains(&text) && error.contains("listens"), "{error}");
        drop(backend);
        assert!(!path.exists());
    }

    #[test]
    fn stale_sockets_are_replaced_and_files_are_not() {
        let events = Arc::new(EventLoop::start().unwrap());
        let stale = path("stale");
        drop(UnixListener::bind(&stale).unwrap());
        drop(open_unix("unix=stale", &stale, &events).unwrap());
        std::fs::write(&stale, b"mine").unwrap();
        assert!(open_unix("unix=stale", &stale, &events).is_err());
        assert_eq!(std::fs::read(&stale).unwrap(), b"mine");
        std::fs::remove_file(&stale).unwrap();
    }

    #[test]
    fn tcp_carries_both_ways() {
        let events = Arc::new(EventLoop::start().unwrap());
        // Find a free port, then ask for it by number.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let text = format!("tcp={port}");
        let backend = open_tcp(&text, port, &events).unwrap();
        let sink = Sink::with_room(100);
        attach(&*backend, &sink);
        let mut client = TcpStream::connect(port).unwrap();
        client.write_all(b"hello").unwrap();
        assert_eq!(sink.wait_for(5), b"hello");
        backend.write(b"there");
        let mut got = [0; 5];
        client.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"there");
        let error = open_tcp(&text, port, &events).err().unwrap().to_string();
        assert!(error.contains(&text), "{error}");
    }
}
