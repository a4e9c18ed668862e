//! One host thread a vCPU.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use bus::{PowerEvent, PowerSwitch};
use config::{Tree, value};
use engine::{Kicker, Statistics, Stop, Vcpu, VcpuState};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::{Error, Result};

/// Why vCPUs could not go on, for the user. Printed when the terminal is sane again.
pub type Complaints = Arc<Mutex<Vec<String>>>;

/// The running vCPUs.
pub struct Cpus {
    threads: Vec<JoinHandle<Option<VcpuState>>>,
    desks: Arc<[Desk]>,
}

/// How long a vCPU may take until it does a job: it may be in a device that waits for the host.
const PATIENCE: Duration = Duration::from_secs(5);

/// Something to do with a vCPU while it does not run.
type Job = Box<dyn FnOnce(&mut dyn Vcpu) + Send>;

/// One vCPU as other threads see it.
pub struct Desk {
    kicker: Arc<dyn Kicker>,
    /// What the vCPU did so far.
    pub statistics: Arc<dyn Statistics>,
    /// `None`: the vCPU has ended.
    jobs: Mutex<Option<VecDeque<Job>>>,
    ending: AtomicBool,
    /// The thread that runs it, 0 until it does.
    thread: AtomicI32,
}

impl Desk {
    fn new(vcpu: &dyn Vcpu) -> Self {
        Self {
            kicker: vcpu.kicker(),
            statistics: vcpu.statistics(),
            jobs: Mutex::new(Some(VecDeque::new())),
            ending: AtomicBool::new(false),
            thread: AtomicI32::new(0),
        }
    }

    fn jobs(&self) -> MutexGuard<'_, Option<VecDeque<Job>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the vCPU for a moment and has its thread call `job`. `None`: it has ended, or does not
    /// come to it.
    pub fn ask<T: Send + 'static>(&self, job: impl FnOnce(&mut dyn Vcpu) -> T + Send + 'static) -> Option<T> {
        let (answer, wait) = mpsc::channel();
        let job = move |vcpu: &mut dyn Vcpu| {
            let _ = answer.send(job(vcpu));
        };
        self.jobs().as_mut()?.push_back(Box::new(job));
        // After the job: the vCPU looks for jobs after it took the stop back.
        self.kicker.stop();
        wait.recv_timeout(PATIENCE).ok()
    }

    /// The thread that runs it.
    pub fn thread(&self) -> Option<i32> {
        Some(self.thread.load(Ordering::SeqCst)).filter(|thread| *thread != 0)
    }

    fn end(&self) {
        self.ending.store(true, Ordering::SeqCst);
        self.kicker.stop();
    }

    fn serve(&self, vcpu: &mut dyn Vcpu) {
        loop {
            let job = self.jobs().as_mut().and_then(VecDeque::pop_front);
            let Some(job) = job else { return };
            job(vcpu);
        }
    }

    /// Runs the vCPU until it ends, and does jobs meanwhile.
    fn run(&self, vcpu: &mut dyn Vcpu, power: &PowerSwitch) -> Stop {
        self.thread.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::SeqCst);
        loop {
            let stop = vcpu.run();
            if stop != Stop::Stopped {
                return stop;
            }
            // Taken back before the flags are looked at: who sets one then stops the vCPU anew.
            self.kicker.resume();
            if self.ending.load(Ordering::SeqCst) || power.event().is_some() {
                return stop;
            }
            self.serve(vcpu);
        }
    }
}

/// Whoever waits for a job learns that the vCPU has ended, also by a panic.
struct Closing<'a>(&'a Desk);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        *self.0.jobs() = None;
    }
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
        let desks: Arc<[Desk]> = vcpus.iter().map(|vcpu| Desk::new(&**vcpu)).collect();
        let mut cpus = Self { threads: Vec::new(), desks: desks.clone() };
        for (id, vcpu) in (0..).zip(vcpus) {
            let (power, complaints, desks) = (power.clone(), complaints.clone(), desks.clone());
            let start = || {
                std::thread::Builder::new()
                    .name(format!("vcpu {id}"))
                    .spawn(move || run(id, vcpu, &desks, &power, &complaints))
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

    /// The vCPUs as other threads see them.
    pub fn desks(&self) -> Arc<[Desk]> {
        self.desks.clone()
    }

    /// Stops all vCPUs and waits for their threads; gives their states, up to the first that is not
    /// known.
    pub fn stop(&mut self) -> Vec<VcpuState> {
        self.desks.iter().for_each(Desk::end);
        let states: Vec<_> = self.threads.drain(..).map(JoinHandle::join).collect();
        states.into_iter().map_while(|state| state.ok().flatten()).collect()
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

fn run(
    id: u32,
    mut vcpu: Box<dyn Vcpu>,
    desks: &[Desk],
    power: &PowerSwitch,
    complaints: &Complaints,
) -> Option<VcpuState> {
    let _guard = EndOnPanic(power);
    let desk = desks.get(id as usize)?;
    let _closing = Closing(desk);
    let stop = desk.run(&mut *vcpu, power);
    announce(id, stop, power, complaints);
    vcpu.state().ok()
}

/// Tells why the vCPU does not go on.
fn announce(id: u32, stop: Stop, power: &PowerSwitch, complaints: &Complaints) {
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
    use engine::Counters;

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
        fn statistics(&self) -> Arc<dyn Statistics> {
            Arc::new(Counters::new(&[]))
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
    fn jobs_are_done_between_runs_and_refused_after_the_end() {
        let (power, complaints) = (Arc::new(PowerSwitch::default()), Complaints::default());
        let pinning = Pinning::read(&Tree::new(), 1).unwrap();
        let mut cpus = Cpus::start(vec![fake(None)], &pinning, &power, &complaints).unwrap();
        let desks = cpus.desks();
        for _ in 0..100 {
            assert_eq!(desks[0].ask(|vcpu| vcpu.state().unwrap().rip), Some(0xfff0));
        }
        assert!(desks[0].thread().is_some());
        assert_eq!(cpus.stop(), [VcpuState::reset(0)]);
        assert_eq!(desks[0].ask(|_| ()), None);
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
