//! Standard input and output.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bus::EventLoop;
use rustix::fs::{FileType, Mode, OFlags};

use super::stream::{Stream, WhenClosed, Writing};
use super::{CharBackend, TtyError, terminal};

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes stdio for one device; a terminal goes into raw mode.
pub(super) fn open(events: &Arc<EventLoop>) -> Result<Arc<dyn CharBackend>, TtyError> {
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Err(TtyError::StdioTaken);
    }
    let stream = connect(events).map_err(TtyError::system("stdio"));
    if stream.is_err() {
        terminal::restore();
        TAKEN.store(false, Ordering::SeqCst);
    }
    Ok(stream?)
}

fn connect(events: &Arc<EventLoop>) -> std::io::Result<Arc<Stream>> {
    let input = Arc::new(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?);
    let (output, writing) = writable(rustix::stdio::stdout())?;
    terminal::make_raw()?;
    let stream = Stream::new(events, WhenClosed::Drop);
    stream.connect_both(input, Arc::new(output), writing);
    Ok(stream)
}

/// A descriptor for what `fd` is open on that can be written without blocking. The mode of the
/// open file is shared with the shell, so a terminal or pipe is opened anew.
fn writable(fd: BorrowedFd<'_>) -> std::io::Result<(OwnedFd, Writing)> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode);
    if matches!(kind, FileType::CharacterDevice | FileType::Fifo) {
        use std::os::fd::AsRawFd;
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        if let Ok(new) = rustix::fs::open(path, flags, Mode::empty()) {
            return Ok((new, Writing::Plain));
        }
    }
    let writing = if kind == FileType::RegularFile { Writing::Plain } else { Writing::Polled };
    Ok((rustix::io::fcntl_dupfd_cloexec(fd.as_fd(), 3)?, writing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_are_reopened_and_sockets_polled() {
        let (_read, write) = std::io::pipe().unwrap();
        let (new, writing) = writable(write.as_fd()).unwrap();
        assert_eq!(writing, Writing::Plain);
        assert!(rustix::fs::fcntl_getfl(&new).unwrap().contains(OFlags::NONBLOCK));
        assert!(!rustix::fs::fcntl_getfl(&write).unwrap().contains(OFlags::NONBLOCK));
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(writable(socket.as_fd()).unwrap().1, Writing::Polled);
    }

    /// Not a test: what the next test runs in another process, on a pty.
    #[test]
    #[ignore = "run by its sibling in a process of its own"]
    fn child() {
        let Ok(way) = std::env::var("TTY_TEST_WAY_OUT") else { return };
        let events = Arc::new(EventLoop::start().unwrap());
        let backend = open(&events).unwrap();
        backend.write(b"ready");
        backend.flush();
        match way.as_str() {
            "exit" => std::process::exit(3),
            "abort" => std::process::abort(),
            "panic" => panic!("on purpose"),
            "return" => {}
            _ => std::thread::sleep(std::time::Duration::from_secs(20)),
        }
    }

    #[test]
    fn every_way_out_restores_the_terminal() {
        use rustix::process::{Pid, Signal, kill_process};
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        use rustix::termios::{LocalModes, tcgetattr};
        use std::process::{Command, Stdio};

        let signals =
            [("hup", Signal::HUP), ("int", Signal::INT), ("quit", Signal::QUIT), ("segv", Signal::SEGV)];
        for way in ["exit", "abort", "panic", "return", "hup", "int", "quit", "segv"] {
            let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
            grantpt(&master).unwrap();
            unlockpt(&master).unwrap();
            let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
            let terminal = rustix::fs::open(name, flags, Mode::empty()).unwrap();
            let before = tcgetattr(&terminal).unwrap();
            assert!(before.local_modes.contains(LocalModes::ICANON));
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "tty::stdio::tests::child", "--ignored", "--nocapture"])
                .env("TTY_TEST_WAY_OUT", way)
                .stdin(Stdio::from(terminal.try_clone().unwrap()))
                .stdout(Stdio::from(terminal.try_clone().unwrap()))
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let mut output = Vec::<u8>::new();
            while !output.windows(5).any(|w| w == b"ready") {
                let mut part = [0; 256];
                let n = rustix::io::read(&master, &mut part).unwrap();
                output.extend(&part[..n]);
            }
            if let Some((_, signal)) = signals.iter().find(|s| s.0 == way) {
                let raw = tcgetattr(&terminal).unwrap();
                assert!(
                    !raw.local_modes.intersects(LocalModes::ICANON | LocalModes::ISIG | LocalModes::ECHO)
                );
                kill_process(Pid::from_child(&child), *signal).unwrap();
            }
            let status = child.wait().unwrap();
            assert_eq!(status.success(), way == "return", "{way}: {status}");
            let after = tcgetattr(&terminal).unwrap();
            assert_eq!(format!("{before:?}"), format!("{after:?}"), "{way}");
        }
    }

    #[test]
    fn only_one_device_gets_stdio() {
        TAKEN.store(true, Ordering::SeqCst);
        let events = Arc::new(EventLoop::start().unwrap());
        let error = open(&events).err().unwrap().to_string();
        TAKEN.store(false, Ordering::SeqCst);
        assert!(error.contains("stdio is in use"), "{error}");
    }
}
