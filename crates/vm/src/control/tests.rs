//! Clients, friendly and not.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::*;
use crate::tests::Scratch;
use crate::{Claim, Name};

struct Answers;

impl Handler for Answers {
    fn answer(&self, request: Request) -> Response {
        match request {
            Request::Time => Response::Time(42),
            Request::Vcpu(id) => Response::Vcpu(Box::new(VcpuState::reset(id))),
            Request::Memory(offset) => Response::Byte(offset),
            other => Response::Refused(format!("no {other:?}")),
        }
    }
}

struct Rig {
    scratch: Scratch,
    name: Name,
    server: Option<Server>,
}

impl Rig {
    fn new() -> Self {
        let scratch = Scratch::new();
        let name = Name::new("guest").unwrap();
        let claim = Arc::new(Claim::new(&scratch.directory(), &name).unwrap());
        let server = Server::start(&claim, Arc::new(Answers)).unwrap();
        Self { scratch, name, server: Some(server) }
    }

    fn client(&self) -> Client {
        Client::connect(&self.scratch.directory(), &self.name).unwrap()
    }

    fn raw(&self) -> UnixStream {
        let stream = UnixStream::connect(self.scratch.directory().socket_address(&self.name)).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        stream
    }
}

#[test]
fn requests_are_answered_one_by_one() {
    let rig = Rig::new();
    let path = rig.scratch.directory().socket_path(&rig.name);
    assert_eq!(std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    let (mut one, mut two) = (rig.client(), rig.client());
    assert_eq!(one.ask(&Request::Time).unwrap(), Response::Time(42));
    assert_eq!(two.ask(&Request::Memory(7)).unwrap(), Response::Byte(7));
    assert_eq!(one.ask(&Request::Vcpu(1)).unwrap(), Response::Vcpu(Box::new(VcpuState::reset(1))));
    assert_eq!(one.ask(&Request::Reset).unwrap_err().to_string(), "VM guest: no Reset");
    assert!(one.process().is_ok());
}

#[test]
fn the_socket_goes_with_the_server() {
    let mut rig = Rig::new();
    let mut client = rig.client();
    assert!(client.ask(&Request::Time).is_ok());
    rig.server = None;
    assert!(!rig.scratch.directory().socket_path(&rig.name).exists());
    assert!(Client::connect(&rig.scratch.directory(), &rig.name).is_err());
}

#[test]
fn what_is_no_request_ends_its_connection_only() {
    let rig = Rig::new();
    let messages: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"bhyv\x02\0\0\0\0\0\0\0",
        b"bhyv\x01\0\0\0\xff\xff\xff\xff",
        b"bhyv\x01\0\0\0\x04\0\0\0\xff\xff\xff\xff",
        b"bhyv\x01\0\0\0\0\0\0\0",
    ];
    for message in messages {
        let mut stream = rig.raw();
        stream.write_all(message).unwrap();
        let mut answer = Vec::new();
        // A reset instead of an end: the server has left bytes unread.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.starts_with(b"bhyv"), "{message:?} got {answer:?}");
    }
    assert_eq!(rig.client().ask(&Request::Time).unwrap(), Response::Time(42));
}

#[test]
fn silent_clients_do_not_keep_others_waiting() {
    let rig = Rig::new();
    let mut half = rig.raw();
    half.write_all(b"bhyv\x01").unwrap();
    let silent: Vec<_> = (0..10).map(|_| rig.raw()).collect();
    assert_eq!(rig.client().ask(&Request::Time).unwrap(), Response::Time(42));
    let crowd: Vec<_> = (0..40).map(|_| rig.raw()).collect();
    drop((half, crowd, silent));
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while rig.client().ask(&Request::Time).is_err() {
        assert!(std::time::Instant::now() < end, "those who left still count");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
