//! The side of bhyvectl.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, geteuid, pidfd_open};

use super::frame::Connection;
use super::{Request, Response};
use crate::{Directory, Error, Name, Result};

/// How long the VM may take for an answer: longer than it waits for its own vCPUs.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection to a running VM.
pub struct Client {
    connection: Connection,
    name: Name,
    pid: Pid,
}

impl Client {
    /// Connects to the process that runs the VM.
    pub fn connect(directory: &Directory, name: &Name) -> Result<Self> {
        let path = directory.socket_path(name);
        let stream =
            UnixStream::connect(directory.socket_address(name)).map_err(|e| Error::file(&path, e))?;
        let peer = rustix::net::sockopt::socket_peercred(&stream).map_err(|e| Error::file(&path, e))?;
        if peer.uid != geteuid() {
            return Err(Error::file(&path, format!("belongs to another user (uid {})", peer.uid.as_raw())));
        }
        Ok(Self { connection: Connection(stream), name: name.clone(), pid: peer.pid })
    }

    /// A handle of the process, which can't be mistaken for another one's: call it while the process
    /// answers.
    pub fn process(&self) -> Result<OwnedFd> {
        pidfd_open(self.pid, PidfdFlags::empty()).map_err(|e| self.fail(&std::io::Error::from(e)))
    }

    /// Asks, and waits for the answer; [`Response::Refused`] is an error.
    pub fn ask(&mut self, request: &Request) -> Result<Response> {
        let sent = self.connection.send(request, PATIENCE);
        let answer = sent.and_then(|()| self.connection.receive(PATIENCE)).map_err(|e| self.fail(&e))?;
        match answer {
            Some(Response::Refused(why)) => Err(Error::Refused { name: self.name.clone(), why }),
            Some(response) => Ok(response),
            None => {
                Err(Error::Refused { name: self.name.clone(), why: "it has closed the connection".into() })
            }
        }
    }

    fn fail(&self, error: &std::io::Error) -> Error {
        let why = match error.kind() {
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => "it does not answer".into(),
            _ => error.to_string(),
        };
        Error::Refused { name: self.name.clone(), why }
    }
}
