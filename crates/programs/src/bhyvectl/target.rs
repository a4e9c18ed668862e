//! The VM that is spoken of: one that a process runs, or one at rest.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use engine::VcpuState;
use rustix::process::{Signal, pidfd_send_signal};
use vm::control::{Client, Request, Response, Summary};
use vm::{Claim, Directory, Name, Phase, Ram, State, Topology};

/// How long a VM may take to end before its process is killed; how long a process that has just begun
/// to run a VM may take to open its socket, and one that ends to write down that it did.
const PATIENCE: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_millis(10);

/// A VM.
pub struct Target {
    directory: Directory,
    name: Name,
    /// What its file says.
    pub state: State,
    /// The connection to its process, and what that says of the VM.
    running: Option<(Client, Summary)>,
}

type Result<T> = std::result::Result<T, String>;

impl Target {
    /// Finds the VM.
    pub fn open(directory: &Directory, name: &Name) -> Result<Self> {
        let end = Instant::now() + PATIENCE;
        loop {
            let held = directory.is_held(name).map_err(|e| e.to_string())?;
            // After the lock: who lets go of a VM has written down why.
            let state = directory.state(name).map_err(|e| e.to_string())?;
            let running = connect(directory, name, &state)?;
            // Looked at again: one may have begun to run it meanwhile.
            let held = held || directory.is_held(name).map_err(|e| e.to_string())?;
            if running.is_some() || state.phase != Phase::Running || !held {
                return Ok(Self { directory: directory.clone(), name: name.clone(), state, running });
            }
            if Instant::now() > end {
                return Err(format!("VM {name} runs but can't be spoken to"));
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// Asks the process that runs it.
    pub fn ask(&mut self, request: &Request) -> Result<Response> {
        match &mut self.running {
            Some((client, _)) => client.ask(request).map_err(|e| e.to_string()),
            None => Err(format!("VM {} does not run", self.name)),
        }
    }

    /// What it is while it runs.
    pub fn summary(&self) -> Option<&Summary> {
        self.running.as_ref().map(|(_, summary)| summary)
    }

    /// The state of a vCPU.
    pub fn vcpu(&mut self, cpu: u32) -> Result<VcpuState> {
        if self.running.is_some() {
            return match self.ask(&Request::Vcpu(cpu))? {
                Response::Vcpu(state) => Ok(*state),
                other => Err(unexpected(&other)),
            };
        }
        if self.state.phase == Phase::Running {
            return Err(format!("VM {} was killed while it ran: its registers are lost", self.name));
        }
        self.state.vcpus.get(cpu as usize).cloned().ok_or_else(|| self.no_vcpu(cpu))
    }

    fn no_vcpu(&self, cpu: u32) -> String {
        format!("VM {} has no state of vCPU {cpu}", self.name)
    }

    /// Its memory.
    pub fn ram(&self) -> Option<&Ram> {
        self.summary().map_or(self.state.ram.as_ref(), |summary| Some(&summary.ram))
    }

    /// Its processors.
    pub fn topology(&self) -> Topology {
        let resting = self.state.topology.unwrap_or(Topology { sockets: 1, cores: 1, threads: 1 });
        self.summary().map_or(resting, |summary| summary.topology)
    }

    /// Changes what its file says; refused while a process has the VM.
    pub fn change(&mut self, change: impl FnOnce(&Claim, &mut State) -> Result<()>) -> Result<()> {
        let claim = Claim::new(&self.directory, &self.name).map_err(|e| e.to_string())?;
        let mut state = claim.state().map_err(|e| e.to_string())?;
        change(&claim, &mut state)?;
        claim.save(&state).map_err(|e| e.to_string())?;
        self.state = state;
        Ok(())
    }

    /// Changes the state of a vCPU.
    pub fn change_vcpu(&mut self, cpu: u32, change: impl FnOnce(&mut VcpuState) -> Result<()>) -> Result<()> {
        let missing = self.no_vcpu(cpu);
        self.change(|_, state| {
            if state.phase == Phase::Running {
                return Err("it was killed while it ran: its registers are lost".into());
            }
            let vcpu = state.vcpus.get_mut(cpu as usize).ok_or(missing)?;
            change(vcpu)?;
            vcpu.check().map_err(|why| format!("no processor can be so: {why}"))
        })
    }
}

fn connect(directory: &Directory, name: &Name, state: &State) -> Result<Option<(Client, Summary)>> {
    if state.phase != Phase::Running {
        return Ok(None);
    }
    let Ok(mut client) = Client::connect(directory, name) else { return Ok(None) };
    match client.ask(&Request::Summary) {
        Ok(Response::Summary(summary)) => Ok(Some((client, summary))),
        Ok(other) => Err(unexpected(&other)),
        Err(error) => Err(error.to_string()),
    }
}

/// The process does not keep to the protocol.
pub fn unexpected(response: &Response) -> String {
    format!("the VM's process gave an answer to another question: {response:?}")
}

/// Removes a VM, after its end if it runs.
pub fn destroy(directory: &Directory, name: &Name) -> Result<()> {
    let process = stop(directory, name);
    let (begin, mut killed) = (Instant::now(), false);
    loop {
        match Claim::new(directory, name) {
            Ok(claim) => return claim.destroy().map_err(|e| e.to_string()),
            // Only what answered as this VM's process, and has not ended since, can be meant by the handle.
            Err(vm::Error::Busy { .. }) if process.is_some() => {}
            Err(error) => return Err(error.to_string()),
        }
        if let Some(process) = process.as_ref().filter(|_| begin.elapsed() > PATIENCE && !killed) {
            let _ = pidfd_send_signal(process, Signal::KILL);
            killed = true;
        }
        if begin.elapsed() > PATIENCE * 2 {
            return Err(format!("VM {name} does not end"));
        }
        std::thread::sleep(GLANCE);
    }
}

/// Ends a running VM; a handle of its process.
fn stop(directory: &Directory, name: &Name) -> Option<OwnedFd> {
    let mut client = Client::connect(directory, name).ok()?;
    let process = client.process().ok()?;
    // One that does not answer is killed later.
    let _ = client.ask(&Request::PowerOff);
    Some(process)
}
