//! One host thread a vCPU.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use bus::{PowerEvent, PowerSwitch};
use config::{Tree, value};
use engine::{Kicker, Stop, Vcpu};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::{Error, Result};

/// Why vCPUs could not go on, for the user. Printed when the terminal is sane again.
pub type Complaints = Arc<Mutex<Vec<String>>>;

/// The running vCPUs.
pub struct Cpus {
    threads: Vec<JoinHandle<()>>,
    kickers: Vec<Arc<dyn Kicker>>,
}

/// Host CPUs that each vCPU may run on, from the `vcpu.N.cpuset` keys.
pub struct Pinning(Vec<Option<Vec<u32>>>);

impl Pinning {
    /// Reads the keys for `count` vCPUs.
    pub fn read(tree: &Tree, count: u32) -> Result<Self> {
        for child in tree.children("vcpu") {
            if child.parse::<u32>().map_or(true, |id| id >= count) {
                let key = format!("vcpu.{child}.cpuset");
                return Err(tree.error(&key, format!("there is no vCPU {child}, the VM has {count}")).into());
            }
        }
        let read = |id: u32| {
            let key = format!("vcpu.{id}.cpuset");
            tree.node("").read(&key, "expected host CPUs such as 0,2-3", value::parse_cpuset)
        };
        Ok(Self((0..count).map(read).collect::<std::result::Result<_, _>>()?))
    }

    fn set(&self, id: u32) -> Option<CpuSet> {
        let cpus = self.0.get(id as usize)?.as_ref()?;
        let mut set = CpuSet::new();
        for cpu in cpus {
            set.set(*cpu as usize);
        }
        Some(set)
    }
}

impl Cpus {
    /// Starts the threads of `vcpus`, vCPU 0 first.
    pub fn start(
        vcpus: Vec<Box<dyn Vcpu>>,
        pinning: &Pinning,
        power: &Arc<PowerSwitch>,
        complaints: &Complaints,
    ) -> Result<Self> {
        let mut cpus = Self { threads: Vec::new(), kickers: vcpus.iter().map(|v| v.kicker()).collect() };
        for (id, vcpu) in (0..).zip(vcpus) {
            let (power, complaints) = (power.clone(), complaints.clone());
            let start = || {
                std::thread::Builder::new()
                    .name(format!("vcpu {id}"))
                    .spawn(move || run(id, vcpu, &power, &complaints))
                    .map_err(Error::host("cannot start a vCPU thread"))
            };
            match pinned(id, pinning.set(id), start) {
                Ok(thread) => cpus.threads.push(thread),
                Err(error) => {
                    cpus.stop();
                    return Err(error);
                }
            }
        }
        Ok(cpus)
    }

    /// Stops all vCPUs and waits for their threads.
    pub fn stop(&mut self) {
        for kicker in &self.kickers {
            kicker.stop();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Calls `start` while this thread is bound to `set`: a new thread inherits that, and a CPU that
/// the host does not have is an error here and not in the new thread.
fn pinned<T>(id: u32, set: Option<CpuSet>, start: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(set) = set else { return start() };
    let refuse = |e: rustix::io::Errno| Error::Part(format!("vcpu.{id}.cpuset: cannot pin vCPU {id}: {e}"));
    let before = sched_getaffinity(None).map_err(refuse)?;
    sched_setaffinity(None, &set).map_err(refuse)?;
    let result = start();
    sched_setaffinity(None, &before).map_err(refuse)?;
    result
}

/// Ends the VM if the vCPU's thread dies of a panic.
struct EndOnPanic<'a>(&'a PowerSwitch);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.request(PowerEvent::Error);
        }
    }
}

fn run(id: u32, mut vcpu: Box<dyn Vcpu>, power: &PowerSwitch, complaints: &Complaints) {
    let _guard = EndOnPanic(power);
    let stop = vcpu.run();
    let (event, complaint) = match stop {
        Stop::Stopped => return,
        Stop::TripleFault => (PowerEvent::TripleFault, None),
        Stop::UnclaimedPort { port, write, size } => {
            let access = if write { "wrote" } else { "read" };
            let text =
                format!("vcpu {id} {access} {size} byte(s) at port {port:#x}, which no device has (-e)");
            (PowerEvent::Error, Some(text))
        }
        Stop::Unhandled { rip, what } => {
            (PowerEvent::Error, Some(format!("vcpu {id} can't go on at {rip:#x}: {what}")))
        }
    };
    if let Some(text) = complaint {
        complaints.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }
    power.request(event);
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::VcpuState;
    use std::sync::mpsc;
    use std::time::Duration;

    /// A vCPU that stops for a given reason, or else when it is told to.
    struct Fake {
        stop: Option<Stop>,
        told: mpsc::Receiver<()>,
        kicker: Arc<Kick>,
    }

    struct Kick(Mutex<mpsc::Sender<()>>);

    impl Kicker for Kick {
        fn stop(&self) {
            let _ = self.0.lock().unwrap().send(());
        }
        fn resume(&self) {}
    }

    impl Vcpu for Fake {
        fn run(&mut self) -> Stop {
            if let Some(stop) = self.stop {
                return stop;
            }
            self.told.recv_timeout(Duration::from_mins(1)).unwrap();
            Stop::Stopped
        }
        fn state(&mut self) -> engine::Result<VcpuState> {
            Ok(VcpuState::reset(0))
        }
        fn set_state(&mut self, _: &VcpuState) -> engine::Result<()> {
            Ok(())
        }
        fn kicker(&self) -> Arc<dyn Kicker> {
            self.kicker.clone()
        }
    }

    fn fake(stop: Option<Stop>) -> Box<dyn Vcpu> {
        let (tx, told) = mpsc::channel();
        Box::new(Fake { stop, told, kicker: Arc::new(Kick(Mutex::new(tx))) })
    }

    fn outcome(stop: Stop) -> (PowerEvent, Vec<String>) {
        let (power, complaints) = (Arc::new(PowerSwitch::default()), Complaints::default());
        let pinning = Pinning::read(&Tree::new(), 2).unwrap();
        let mut cpus =
            Cpus::start(vec![fake(None), fake(Some(stop))], &pinning, &power, &complaints).unwrap();
        let event = power.wait();
        cpus.stop();
        (event, std::mem::take(&mut complaints.lock().unwrap()))
    }

    #[test]
    fn what_ends_one_vcpu_ends_the_vm() {
        assert_eq!(outcome(Stop::TripleFault), (PowerEvent::TripleFault, vec![]));
        let (event, text) = outcome(Stop::Unhandled { rip: 0x1234, what: "no such thing" });
        assert_eq!(
            (event, text),
            (PowerEvent::Error, vec!["vcpu 1 can't go on at 0x1234: no such thing".into()])
        );
        let (event, text) = outcome(Stop::UnclaimedPort { port: 0x99, write: true, size: 1 });
        assert_eq!(event, PowerEvent::Error);
        assert!(text[0].contains("wrote 1 byte(s) at port 0x99"));
    }

    #[test]
    fn pinning_is_for_vcpus_and_host_cpus_that_exist() {
        let mut tree = Tree::new();
        tree.set("vcpu.1.cpuset", "0").unwrap();
        let error = Pinning::read(&tree, 1).err().unwrap().to_string();
        assert_eq!(error, "vcpu.1.cpuset=0: there is no vCPU 1, the VM has 1");
        let pinning = Pinning::read(&tree, 2).unwrap();
        let here = sched_getaffinity(None).unwrap();
        let inside = pinned(1, pinning.set(1), || Ok(sched_getaffinity(None).unwrap()));
        match inside {
            Ok(inside) => assert!(inside.count() == 1 && inside.is_set(0)),
            // CPU 0 need not be ours.
            Err(error) => assert!(error.to_string().contains("cannot pin vCPU 1")),
        }
        assert!(sched_getaffinity(None).unwrap() == here);
        tree.set("vcpu.1.cpuset", "1023").unwrap();
        let pinning = Pinning::read(&tree, 2).unwrap();
        assert!(pinned(1, pinning.set(1), || Ok(())).is_err());
    }
}
