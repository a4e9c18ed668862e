//! A new pty: the guest's serial line appears as a terminal device of the host.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use bus::{EventLoop, FdHandler, FdInterest, FdToken};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::stream::{Stream, WhenClosed};
use super::{CharBackend, CharFrontend, TtyError};

/// A symbolic link that goes away with its back end.
struct Alias {
    path: PathBuf,
    target: PathBuf,
}

impl Drop for Alias {
    fn drop(&mut self) {
        if std::fs::read_link(&self.path).is_ok_and(|t| t == self.target) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

struct Pty {
    stream: Arc<Stream>,
    events: Arc<EventLoop>,
    opened: FdToken,
    _alias: Option<Alias>,
}

/// Somebody opened the terminal.
struct Opened {
    stream: Weak<Stream>,
    master: Arc<OwnedFd>,
    inotify: Arc<OwnedFd>,
}

impl FdHandler for Opened {
    fn ready(&self, _: bool, _: bool) {
        let mut buffer = [0u8; 1024];
        while rustix::io::read(&*self.inotify, &mut buffer).is_ok_and(|n| n > 0) {}
        if let Some(stream) = self.stream.upgrade()
            && !stream.connected()
            && has_reader(&self.master)
        {
            // Out of descriptors: the next opening tries again.
            let _ = stream.connect(&self.master);
        }
    }
}

/// Whether the other side is open.
pub(super) fn has_reader(master: &OwnedFd) -> bool {
    let mut state = [PollFd::new(master, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut state, Some(&now)), Ok(0))
}

fn alias(text: &str, link: &Path, target: &str) -> Result<Alias, TtyError> {
    match std::fs::symlink_metadata(link) {
        // A link that an earlier run left behind, or the user's own to another terminal.
        Ok(meta) if meta.is_symlink() => std::fs::remove_file(link).map_err(TtyError::system(text))?,
        Ok(_) => return Err(TtyError::Exists(text.to_owned())),
        Err(_) => {}
    }
    std::os::unix::fs::symlink(target, link).map_err(TtyError::system(text))?;
    Ok(Alias { path: link.to_owned(), target: target.into() })
}

/// Makes a pty; tells its name on standard error if there is no `link`.
pub(super) fn open(
    text: &str,
    link: Option<&Path>,
    events: &Arc<EventLoop>,
) -> Result<Arc<dyn CharBackend>, TtyError> {
    let (master, name) = make().map_err(TtyError::errno(text))?;
    let alias = link.map(|link| alias(text, link, &name)).transpose()?;
    if alias.is_none() {
        eprintln!("{text} is {name}");
    }
    let master = Arc::new(master);
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let inotify = Arc::new(inotify::init(flags).map_err(TtyError::errno(text))?);
    inotify::add_watch(&inotify, name.as_str(), inotify::WatchFlags::OPEN).map_err(TtyError::errno(text))?;
    let stream = Stream::new(events, WhenClosed::Keep);
    let handler = Opened { stream: Arc::downgrade(&stream), master, inotify: inotify.clone() };
    let handler = Arc::new(handler);
    let interest = FdInterest { read: true, write: false };
    let opened = events.add(inotify, interest, handler.clone()).map_err(TtyError::system(text))?;
    // Somebody may open it again before the close was noticed.
    let again = handler.clone();
    stream.on_close(move || again.ready(true, false));
    handler.ready(true, false);
    Ok(Arc::new(Pty { stream, events: events.clone(), opened, _alias: alias }))
}

/// A master without a reader, and the name of its terminal.
pub(super) fn make() -> rustix::io::Result<(OwnedFd, String)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?.to_string_lossy().into_owned();
    rustix::fs::fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK)?;
    // Opened and closed once, a master without a reader reports it as a hang-up.
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let reader = rustix::fs::open(name.as_str(), flags, Mode::empty())?;
    let mut settings = tcgetattr(&reader)?;
    settings.make_raw();
    tcsetattr(&reader, OptionalActions::Now, &settings)?;
    Ok((master, name))
}

impl CharBackend for Pty {
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

impl Drop for Pty {
    fn drop(&mut self) {
        self.events.remove(self.opened);
    }
}

#[cfg(test)]
mod tests {
    use super::super::stream::testing::{Sink, attach};
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn terminals_come_and_go_and_the_link_goes_away() {
        let events = Arc::new(EventLoop::start().unwrap());
        let link = std::env::temp_dir().join(format!("tty-pty-{}", std::process::id()));
        let text = format!("pty={}", link.display());
        let backend = open(&text, Some(&link), &events).unwrap();
        let sink = Sink::with_room(100);
        attach(&*backend, &sink);
        assert_eq!(backend.write(b"kept"), 4);
        for round in 1..3 {
            let options = std::fs::OpenOptions::new().read(true).write(true).open(&link);
            let mut terminal = options.unwrap();
            if round == 2 {
                backend.write(b"back");
            }
            let mut got = [0; 4];
            terminal.read_exact(&mut got).unwrap();
            assert_eq!(&got, if round == 1 { b"kept" } else { b"back" });
            terminal.write_all(b"in").unwrap();
            sink.wait_for(2 * round);
        }
        drop(backend);
        assert!(std::fs::symlink_metadata(&link).is_err());
    }

    #[test]
    fn a_file_in_the_way_is_not_replaced() {
        let events = Arc::new(EventLoop::start().unwrap());
        let file = std::env::temp_dir().join(format!("tty-pty-file-{}", std::process::id()));
        std::fs::write(&file, b"mine").unwrap();
        let error = open("pty=x", Some(&file), &events).err().unwrap().to_string();
        assert_eq!(std::fs::read(&file).unwrap(), b"mine");
        std::fs::remove_file(&file).unwrap();
        assert!(error.contains("pty=x"), "{error}");
    }
}
