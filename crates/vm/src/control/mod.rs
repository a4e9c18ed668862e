//! The control socket of a running VM: one request, one answer, as often as the client likes.

mod client;
mod frame;
mod server;
#[cfg(test)]
mod tests;

pub use client::Client;
pub use server::{Handler, Server};

use engine::VcpuState;
use serde::{Deserialize, Serialize};

use crate::{Ram, Topology};

/// What can be asked of a running VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// What it is: answered by [`Response::Summary`].
    Summary,
    /// The vCPUs that run, while others wait to be started by the guest: [`Response::Cpus`].
    Active,
    /// The state of a vCPU, which is stopped for it: [`Response::Vcpu`].
    Vcpu(u32),
    /// What a vCPU did so far: [`Response::Statistics`].
    Statistics(u32),
    /// An NMI for a vCPU.
    Nmi(u32),
    /// A pin of a vCPU's local APIC, by its number in bhyve.
    LocalPin {
        /// The vCPU.
        cpu: u32,
        /// 0 is LINT0, 1 LINT1, 2 the timer, 3 errors, 4 performance, 5 thermal, 6 CMCI.
        pin: u32,
    },
    /// Ends the VM as a reset does.
    Reset,
    /// Ends the VM as if it had powered itself off.
    PowerOff,
    /// The time of its clock: [`Response::Time`].
    Time,
    /// Sets that clock, in seconds since 1970.
    SetTime(i64),
    /// A byte of the clock's memory: [`Response::Byte`].
    Memory(u8),
    /// Sets such a byte.
    SetMemory {
        /// Its number.
        offset: u8,
        /// Its new value.
        value: u8,
    },
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// It is done.
    Done,
    /// What the VM is.
    Summary(Summary),
    /// Numbers of vCPUs.
    Cpus(Vec<u32>),
    /// The state of a vCPU.
    Vcpu(Box<VcpuState>),
    /// Names and numbers.
    Statistics(Vec<(String, u64)>),
    /// Seconds since 1970, as the guest reads its clock.
    Time(i64),
    /// A byte.
    Byte(u8),
    /// It can't be done, and why.
    Refused(String),
}

/// What a running VM is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Its processors.
    pub topology: Topology,
    /// Its memory.
    pub ram: Ram,
    /// `kvm` or `soft`.
    pub engine: String,
    /// What bhyve calls capabilities, and whether each is on; others are not available.
    pub capabilities: Vec<(String, bool)>,
}
