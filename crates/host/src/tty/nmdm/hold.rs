//! The holder: carries bytes between two ptys until both are closed.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::fs::{Gid, Mode, Uid, chmod, chown};
use rustix::io::Errno;
use rustix::pty::ptsname;
use rustix::termios::{ControlModes, OptionalActions, tcgetattr, tcsetattr};

use super::Pair;
use crate::tty::pty::{self, has_reader};
use crate::tty::stream::OUTPUT_LIMIT;

/// How long a pair that a program makes for itself waits for it to come.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes moved at a time.
const CHUNK: usize = 4096;
/// Who may open the ends: as for serial ports.
const GROUP: &str = "dialout";
const USER: &str = "uucp";

/// When a holder ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// When both ends are closed, or nobody comes soon.
    Open,
    /// Not before it is told to.
    Forever,
}

/// One end.
struct Side {
    link: PathBuf,
    master: OwnedFd,
    watch: i32,
    open: bool,
    /// What the other end has said and this one has not heard.
    pending: VecDeque<u8>,
}

impl Side {
    fn new(link: PathBuf, inotify: &OwnedFd) -> Result<Self, Errno> {
        let (master, name) = make()?;
        let flags =
            inotify::WatchFlags::OPEN | inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::CLOSE_NOWRITE;
        let watch = inotify::add_watch(inotify, name.as_str(), flags)?;
        let side = Self { link, master, watch, open: false, pending: VecDeque::new() };
        side.publish(&name)?;
        Ok(side)
    }

    /// Puts the link to the terminal in place of an older one.
    fn publish(&self, name: &str) -> Result<(), Errno> {
        let stem = self.link.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let fresh = self.link.with_file_name(format!(".{stem}.new"));
        let _ = std::fs::remove_file(&fresh);
        let errno = |e: std::io::Error| Errno::from_io_error(&e).unwrap_or(Errno::IO);
        match std::fs::symlink_metadata(&self.link) {
            Ok(meta) if !meta.is_symlink() => return Err(Errno::EXIST),
            _ => {}
        }
        symlink(name, &fresh).map_err(errno)?;
        std::fs::rename(&fresh, &self.link).map_err(errno)
    }

    /// The end was closed while the other is open: without CLOCAL that one loses its carrier.
    fn hang_up(&mut self, inotify: &OwnedFd) -> Result<(), Errno> {
        if tcgetattr(&self.master)?.control_modes.contains(ControlModes::CLOCAL) {
            return Ok(());
        }
        // The watch goes with the terminal.
        *self = Self::new(std::mem::take(&mut self.link), inotify)?;
        Ok(())
    }

    /// Reads what this end says.
    fn read(&self, room: usize) -> Vec<u8> {
        let mut buffer = [0; CHUNK];
        let len = room.min(CHUNK);
        let n = rustix::io::read(&self.master, buffer.get_mut(..len).unwrap_or_default()).unwrap_or(0);
        buffer.get(..n).unwrap_or_default().to_vec()
    }

    /// Takes what the other end says. Before anybody listens only the newest is kept.
    fn hear(&mut self, bytes: &[u8]) {
        self.pending.extend(bytes);
        if !self.open {
            let excess = self.pending.len().saturating_sub(OUTPUT_LIMIT);
            self.pending.drain(..excess);
        }
    }

    fn room(&self) -> usize {
        if self.open { OUTPUT_LIMIT.saturating_sub(self.pending.len()) } else { OUTPUT_LIMIT }
    }

    fn write(&mut self) {
        while self.open && !self.pending.is_empty() {
            let (first, _) = self.pending.as_slices();
            match rustix::io::write(&self.master, first) {
                Ok(n) => drop(self.pending.drain(..n)),
                Err(_) => return,
            }
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        let own = ptsname(&self.master, Vec::new()).ok();
        let linked = std::fs::read_link(&self.link).ok();
        if let (Some(own), Some(linked)) = (own, linked)
            && linked.to_str() == own.to_str().ok()
        {
            let _ = std::fs::remove_file(&self.link);
        }
    }
}

/// Holds the pair. `ready` is called once both ends are there, with whether they are ours: another
/// holder may have been faster.
pub fn hold(pair: &Pair, life: Life, stop: &OwnedFd, ready: impl FnOnce(bool)) -> std::io::Result<()> {
    let Some(lock) = pair.lock()? else {
        ready(false);
        return Ok(());
    };
    let result = carry(pair, life, stop, ready);
    // While it is locked, so that no other file of this name can be there.
    let _ = std::fs::remove_file(pair.lock_path());
    drop(lock);
    result
}

fn carry(pair: &Pair, life: Life, stop: &OwnedFd, ready: impl FnOnce(bool)) -> std::io::Result<()> {
    let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let mut a = Side::new(pair.end('A').path(), &inotify)?;
    let mut b = Side::new(pair.end('B').path(), &inotify)?;
    ready(true);
    let (start, mut used) = (Instant::now(), false);
    loop {
        // An end may have been opened and closed since the last look.
        let closings = closings(&inotify);
        let before = (a.open || closings.contains(&a.watch), b.open || closings.contains(&b.watch));
        (a.open, b.open) = (has_reader(&a.master), has_reader(&b.master));
        used |= a.open || b.open || before.0 || before.1;
        if life == Life::Open && !a.open && !b.open && (used || start.elapsed() >= PATIENCE) {
            return Ok(());
        }
        if before.0 && !a.open {
            closed(&mut a, &mut b, &inotify)?;
        }
        if before.1 && !b.open {
            closed(&mut b, &mut a, &inotify)?;
        }
        a.write();
        b.write();
        let readable = wait(&a, &b, &inotify, stop, life == Life::Open && !used)?;
        if readable.stop {
            return Ok(());
        }
        if readable.a {
            b.hear(&a.read(b.room()));
        }
        if readable.b {
            a.hear(&b.read(a.room()));
        }
    }
}

/// `gone` was closed: its last words are read, and the other end hears of it.
fn closed(gone: &mut Side, other: &mut Side, inotify: &OwnedFd) -> Result<(), Errno> {
    loop {
        let words = gone.read(CHUNK);
        if words.is_empty() {
            break;
        }
        other.hear(&words);
    }
    other.write();
    gone.pending.clear();
    make_raw(&gone.master)?;
    if other.open {
        other.hang_up(inotify)?;
    }
    Ok(())
}

#[derive(Default)]
struct Readable {
    a: bool,
    b: bool,
    stop: bool,
}

/// Waits until something can be moved, opened or closed.
fn wait(a: &Side, b: &Side, inotify: &OwnedFd, stop: &OwnedFd, impatient: bool) -> std::io::Result<Readable> {
    let interest = |side: &Side, other: &Side| {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, other.room() > 0);
        flags.set(PollFlags::OUT, side.open && !side.pending.is_empty());
        flags
    };
    let mut fds = vec![PollFd::new(stop, PollFlags::IN), PollFd::new(inotify, PollFlags::IN)];
    // A closed end hangs up all the time; inotify says when it opens.
    let (at_a, at_b) = (a.open.then_some(2), b.open.then_some(2 + usize::from(a.open)));
    for (side, other) in [(a, b), (b, a)] {
        if side.open {
            fds.push(PollFd::from_borrowed_fd(side.master.as_fd(), interest(side, other)));
        }
    }
    let limit = Timespec { tv_sec: 1, tv_nsec: 0 };
    match poll(&mut fds, impatient.then_some(&limit)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let has = |at: Option<usize>| {
        at.and_then(|at| fds.get(at)).is_some_and(|fd| fd.revents().contains(PollFlags::IN))
    };
    Ok(Readable { a: has(at_a), b: has(at_b), stop: has(Some(0)) })
}

/// Which terminals have been closed by somebody.
fn closings(inotify: &OwnedFd) -> Vec<i32> {
    let mut buffer = [const { MaybeUninit::uninit() }; 1024];
    let mut events = inotify::Reader::new(inotify, &mut buffer);
    let mut found = Vec::new();
    while let Ok(event) = events.next() {
        if !event.events().contains(inotify::ReadFlags::OPEN) {
            found.push(event.wd());
        }
    }
    found
}

fn make_raw(master: &OwnedFd) -> Result<(), Errno> {
    // On Linux a master's settings are its terminal's.
    let mut settings = tcgetattr(master)?;
    settings.make_raw();
    settings.control_modes |= ControlModes::CREAD;
    settings.control_modes -= ControlModes::CLOCAL;
    tcsetattr(master, OptionalActions::Now, &settings)
}

/// A raw pty with nobody at its terminal, and that one's name.
fn make() -> Result<(OwnedFd, String), Errno> {
    let (master, name) = pty::make()?;
    make_raw(&master)?;
    share(&name);
    Ok((master, name))
}

/// Lets in who may use serial ports: their group, and `cu`, which becomes the user uucp before it
/// opens a line if root has started it. Only root can do this, and only root's `cu` needs it.
fn share(terminal: &str) {
    let owner = number("/etc/passwd", USER).map(Uid::from_raw);
    let group = number("/etc/group", GROUP).map(Gid::from_raw);
    if group.is_some() && chown(terminal, owner, group).is_ok() {
        let _ = chmod(terminal, Mode::from(0o660));
    }
}

/// The number of a user or group.
fn number(file: &str, name: &str) -> Option<u32> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split(':').nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests;
