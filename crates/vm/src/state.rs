//! What the file that is the VM holds.

use std::path::PathBuf;

use engine::VcpuState;
use serde::{Deserialize, Serialize};

/// First bytes of the file: whoever looks into it learns what it is. The number grows with every
/// change of [`State`].
const MAGIC: &[u8] = b"bhyve virtual machine, state 1\n";

/// Longest state that is read: more than 1024 vCPUs need.
pub(crate) const MAX_LEN: u64 = 16 << 20;

/// A VM while no process runs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// How far it came.
    pub phase: Phase,
    /// Its memory, where it has some.
    pub ram: Option<Ram>,
    /// Its processors, as far as their state is known: after a loader the first one's.
    pub vcpus: Vec<VcpuState>,
    /// The program that loaded it.
    pub loader: Option<String>,
    /// How its processors were grouped when it ran.
    pub topology: Option<Topology>,
}

/// How processors are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// Sockets.
    pub sockets: u32,
    /// Cores in each socket.
    pub cores: u32,
    /// Threads in each core.
    pub threads: u32,
}

impl Topology {
    /// All processors.
    pub fn cpus(&self) -> u32 {
        self.sockets.saturating_mul(self.cores).saturating_mul(self.threads)
    }
}

/// How far a VM came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// It has a name and nothing else.
    Created,
    /// A loader is at work, or was and could not finish.
    Loading,
    /// Ready to run.
    Loaded,
    /// A process runs it, or did and was killed.
    Running,
    /// It ran and ended.
    Ended {
        /// The exit status of `bhyve`.
        status: u8,
    },
}

/// The memory of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ram {
    /// Bytes of memory. The ranges of [`firmware::MemoryMap`] follow each other in the file.
    pub size: u64,
    /// The file; none where a process has the memory for itself.
    pub path: Option<PathBuf>,
    /// None of it may be swapped out.
    pub wired: bool,
}

impl State {
    /// A VM with a name and nothing else.
    pub fn created() -> Self {
        Self { phase: Phase::Created, ram: None, vcpus: Vec::new(), loader: None, topology: None }
    }

    /// The bytes of the file.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, String> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(postcard::to_stdvec(self).map_err(|e| e.to_string())?);
        Ok(bytes)
    }

    /// Reads the bytes of a file.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let body = bytes.strip_prefix(MAGIC).ok_or("not a VM, or one of another version of bhyve")?;
        postcard::from_bytes(body).map_err(|_| "damaged: this is no state of a VM")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_back_as_it_was_written() {
        let mut cpu = VcpuState::reset(0);
        (cpu.rip, cpu.fpu.area[831], cpu.apic.regs[63]) = (0x1234_5678_9abc, 7, 9);
        cpu.msrs = vec![(0x2ff, 0x806)];
        let ram = Some(Ram { size: 1 << 30, path: Some("/dev/vmm.io/a.ram".into()), wired: true });
        let state = State {
            phase: Phase::Ended { status: 3 },
            ram,
            vcpus: vec![cpu],
            loader: Some("grub-bhyve".into()),
            topology: Some(Topology { sockets: 2, cores: 1, threads: 2 }),
        };
        let bytes = state.encode().unwrap();
        assert_eq!(State::decode(&bytes).unwrap(), state);
        assert!(State::decode(b"").is_err() && State::decode(b"hello").is_err());
        for len in MAGIC.len()..bytes.len() {
            assert!(State::decode(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn no_byte_makes_reading_fail_badly() {
        let state = State { vcpus: vec![VcpuState::reset(1)], ..State::created() };
        let bytes = state.encode().unwrap();
        for at in MAGIC.len()..bytes.len() {
            for value in [0, 0x7f, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] = value;
                let _ = State::decode(&bytes);
            }
        }
    }
}
