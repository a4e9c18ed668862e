//! A character device: a terminal, one side of a pty, a null-modem end.

use std::path::Path;
use std::sync::Arc;

use bus::EventLoop;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::termios::{ControlModes, OptionalActions, isatty, tcgetattr, tcsetattr};

use super::stream::{Stream, WhenClosed};
use super::{CharBackend, TtyError};

/// Opens the device at `path`, in raw mode if it is a terminal.
pub(super) fn open(
    text: &str,
    path: &Path,
    events: &Arc<EventLoop>,
) -> Result<Arc<dyn CharBackend>, TtyError> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    // Looked at before opening: to open a FIFO or a tape has effects.
    let stat = rustix::fs::stat(path).map_err(TtyError::errno(text))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice {
        return Err(TtyError::NotCharacterDevice(text.to_owned()));
    }
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(TtyError::errno(text))?;
    if isatty(&fd) {
        let mut settings = tcgetattr(&fd).map_err(TtyError::errno(text))?;
        settings.make_raw();
        // No modem has to answer.
        settings.control_modes |= ControlModes::CLOCAL | ControlModes::CREAD;
        tcsetattr(&fd, OptionalActions::Now, &settings).map_err(TtyError::errno(text))?;
    }
    let stream = Stream::new(events, WhenClosed::Drop);
    stream.connect(&Arc::new(fd)).map_err(TtyError::system(text))?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::super::stream::testing::{Sink, attach};
    use super::*;

    #[test]
    fn a_pty_carries_bytes_unchanged() {
        let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let events = Arc::new(EventLoop::start().unwrap());
        let backend = open(&name, Path::new(&name), &events).unwrap();
        let sink = Sink::with_room(100);
        attach(&*backend, &sink);
        rustix::io::write(&master, b"a\r\x03\x04\n").unwrap();
        assert_eq!(sink.wait_for(5), b"a\r\x03\x04\n");
        assert_eq!(backend.write(b"x\ny"), 3);
        let mut got = [0; 8];
        let n = rustix::io::read(&master, &mut got).unwrap();
        assert_eq!(&got[..n], b"x\ny");
    }

    #[test]
    fn errors_name_the_path() {
        let events = Arc::new(EventLoop::start().unwrap());
        for path in ["/dev/does-not-exist", "/etc"] {
            let error = open(path, Path::new(path), &events).err().unwrap().to_string();
            assert!(error.contains(path), "{error}");
        }
    }
}
