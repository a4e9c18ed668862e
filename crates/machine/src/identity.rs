//! The VM that this process runs, as its files know it: who it is, where its memory is, and what
//! becomes of it afterwards.

use std::sync::Arc;

use config::Tree;
use engine::VcpuState;
use firmware::MemoryMap;
use memory::GuestMemory;
use vm::{Claim, Directory, Name, Phase, Ram, State, Topology};

use crate::entry::Kernel;
use crate::{Error, Result, memory as ram};

/// The key that asks for RAM.
pub const SIZE: &str = "memory.size";

/// IA32_TIME_STAMP_COUNTER: a vCPU's own goes on.
const TSC: u32 = 0x10;
/// IA32_APIC_BASE: x2APIC mode.
const X2APIC: u64 = 1 << 10;

/// What the VM starts with.
pub enum Start {
    /// A kernel that is loaded now, into memory that no one else needs.
    Kernel(Kernel),
    /// What a loader left.
    Loaded {
        /// The memory that it filled.
        ram: Ram,
        /// The state of the first vCPU.
        first: Box<VcpuState>,
        /// The loader's name.
        loader: Option<String>,
    },
}

/// The VM: ours alone until this is dropped.
pub struct Identity {
    claim: Arc<Claim>,
    /// What the VM starts with.
    pub start: Start,
}

impl Identity {
    /// Takes the VM that `tree` names. Nothing of it is changed before [`Identity::begin`].
    pub fn take(tree: &Tree, directory: &Directory) -> Result<Self> {
        let name = Name::new(&tree.get("name")?.unwrap_or_default());
        let name = name.map_err(|e| tree.error("name", e.to_string()))?;
        let claim = Claim::new(directory, &name)?;
        let start = match Kernel::read(tree)? {
            Some(kernel) => Start::Kernel(kernel),
            None => loaded(&claim)?,
        };
        Ok(Self { claim: Arc::new(claim), start })
    }

    /// The right to the VM.
    pub fn claim(&self) -> &Arc<Claim> {
        &self.claim
    }

    /// How much memory there is and where.
    pub fn map(&self, tree: &Tree) -> Result<MemoryMap> {
        let asked = ram::map(tree)?;
        let Start::Loaded { ram, loader, .. } = &self.start else { return Ok(asked) };
        if tree.raw(SIZE).is_some() && asked.size() != ram.size {
            let loader = loader.as_deref().unwrap_or("its loader");
            let (name, size) = (self.claim.name(), spell(ram.size));
            let text = format!("VM {name} has {size}, as {loader} made it, and not {}", spell(asked.size()));
            return Err(tree.error(SIZE, text).into());
        }
        Ok(MemoryMap::new(ram.size))
    }

    /// The memory: a loader's as it is, else new.
    pub fn memory(&self, tree: &Tree, map: &MemoryMap) -> Result<GuestMemory> {
        let memory = match &self.start {
            Start::Kernel(_) => ram::create(tree, map)?,
            Start::Loaded { ram, .. } => self.claim.open_memory(ram)?,
        };
        let wired = matches!(&self.start, Start::Loaded { ram, .. } if ram.wired);
        ram::prepare(tree, &memory, wired)?;
        Ok(memory)
    }

    /// From now on the VM runs.
    pub fn begin(&self, size: u64, wired: bool, topology: Topology) -> Result<Running> {
        let (ram, loader, vcpus) = match &self.start {
            Start::Kernel(_) => {
                self.claim.free_memory()?;
                (Ram { size, path: None, wired }, None, Vec::new())
            }
            Start::Loaded { ram, loader, first } => {
                (Ram { wired: wired || ram.wired, ..ram.clone() }, loader.clone(), vec![(**first).clone()])
            }
        };
        let topology = Some(topology);
        let state = State { phase: Phase::Running, ram: Some(ram.clone()), vcpus, loader, topology };
        self.claim.save(&state)?;
        Ok(Running { claim: self.claim.clone(), ram, state })
    }
}

/// A VM that runs.
pub struct Running {
    claim: Arc<Claim>,
    ram: Ram,
    state: State,
}

impl Running {
    /// The memory.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// It has ended: what has no use any more goes, or all of it.
    pub fn end(mut self, status: u8, vcpus: Vec<VcpuState>, destroy: bool) -> Result<()> {
        if destroy {
            return Ok(self.claim.destroy()?);
        }
        // After a triple fault and errors the memory stays for a look.
        if status < 3 {
            self.claim.free_memory()?;
            self.state.ram = Some(Ram { path: None, ..self.ram });
        }
        self.state.phase = Phase::Ended { status };
        self.state.vcpus = vcpus;
        Ok(self.claim.save(&self.state)?)
    }
}

fn spell(size: u64) -> String {
    if size.is_multiple_of(1 << 20) { format!("{} MiB", size >> 20) } else { format!("{size} bytes") }
}

/// What a loader left, or what has to be done before the VM can run.
fn loaded(claim: &Claim) -> Result<Start> {
    let name = claim.name();
    let refuse = |why: String| Err(Error::Part(why));
    let first = "run grub-bhyve or bhyveload first, or set a kernel with -o kernel.path=…";
    let state = match claim.state() {
        Err(vm::Error::NotCreated(_)) => return refuse(format!("there is no VM {name}: {first}")),
        other => other?,
    };
    let again = format!("load it again, or remove it with bhyvectl --destroy --vm={name}");
    match (state.phase, state.ram) {
        (Phase::Loaded, Some(ram)) => {
            let Some(first) = state.vcpus.into_iter().next() else {
                return refuse(format!("VM {name} has memory but no processor state: {again}"));
            };
            if let Err(why) = first.check() {
                return refuse(format!("VM {name} can't start so: {why}: {again}"));
            }
            Ok(Start::Loaded { ram, first: Box::new(first), loader: state.loader })
        }
        (Phase::Created | Phase::Loaded, _) => refuse(format!("VM {name} has nothing to run yet: {first}")),
        (Phase::Loading, _) => refuse(format!("VM {name} is half loaded, its loader was killed: {again}")),
        (Phase::Running, _) => refuse(format!("VM {name} was killed while it ran: {again}")),
        (Phase::Ended { status }, _) => refuse(format!("VM {name} ended with status {status}: {again}")),
    }
}

/// Puts what a loader decides into the state of a vCPU after reset.
pub fn enter(loaded: &VcpuState, state: &mut VcpuState) {
    state.gpr = loaded.gpr;
    (state.rip, state.rflags) = (loaded.rip, loaded.rflags);
    state.segments = loaded.segments;
    (state.gdtr, state.idtr) = (loaded.gdtr, loaded.idtr);
    (state.cr0, state.cr2, state.cr3, state.cr4) = (loaded.cr0, loaded.cr2, loaded.cr3, loaded.cr4);
    (state.efer, state.dr) = (loaded.efer, loaded.dr);
    state.apic_base |= loaded.apic_base & X2APIC;
    let new = |index: u32| loaded.msrs.iter().any(|(other, _)| *other == index);
    state.msrs.retain(|(index, _)| *index != TSC && !new(*index));
    state.msrs.extend(loaded.msrs.iter().filter(|(index, _)| *index != TSC));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    fn tree(pairs: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::new();
        tree.set("name", "guest").unwrap();
        for (key, value) in pairs {
            tree.set(key, value).unwrap();
        }
        tree
    }

    fn refusal(tree: &Tree, directory: &Directory) -> String {
        let error = Identity::take(tree, directory).err().unwrap();
        assert_eq!(error.exit_code(), 4);
        error.to_string()
    }

    fn put(directory: &Directory, phase: Phase) {
        let claim = Claim::new(directory, &Name::new("guest").unwrap()).unwrap();
        claim.save(&State { phase, ..State::created() }).unwrap();
    }

    #[test]
    fn a_vm_with_nothing_to_run_says_what_to_do() {
        let scratch = Scratch::new("identity");
        let directory = scratch.directory();
        let error = refusal(&tree(&[]), &directory);
        assert_eq!(
            error,
            "there is no VM guest: run grub-bhyve or bhyveload first, or set a kernel with -o kernel.path=…"
        );
        let phases = [
            (Phase::Created, "has nothing to run yet: run grub-bhyve"),
            (Phase::Loading, "is half loaded, its loader was killed: load it again"),
            (Phase::Running, "was killed while it ran: load it again, or remove it with bhyvectl --destroy"),
            (Phase::Ended { status: 2 }, "ended with status 2: load it again"),
        ];
        for (phase, expected) in phases {
            put(&directory, phase);
            let error = refusal(&tree(&[]), &directory);
            assert!(error.starts_with(&format!("VM guest {expected}")), "{error}");
            // A kernel of its own needs no loader.
            let kernel = tree(&[("kernel.path", "/vmlinuz")]);
            assert!(matches!(Identity::take(&kernel, &directory).unwrap().start, Start::Kernel(_)));
        }
        let error = refusal(&tree(&[("name", "a/b")]), &directory);
        assert_eq!(error, "name=a/b: VM name \"a/b\" can't be the name of a file");
    }

    #[test]
    fn the_end_of_a_run_is_written_down() {
        let scratch = Scratch::new("end");
        let directory = scratch.directory();
        let name = Name::new("guest").unwrap();
        let topology = Topology { sockets: 1, cores: 1, threads: 1 };
        let kernel = tree(&[("kernel.path", "/vmlinuz")]);
        for (status, destroy) in [(0, false), (4, false), (1, true)] {
            let identity = Identity::take(&kernel, &directory).unwrap();
            let running = identity.begin(4 << 20, false, topology).unwrap();
            assert_eq!(directory.state(&name).unwrap().phase, Phase::Running);
            running.end(status, vec![VcpuState::reset(0)], destroy).unwrap();
            match directory.state(&name) {
                Ok(state) => {
                    assert_eq!((state.phase, state.vcpus.len()), (Phase::Ended { status }, 1));
                    assert!(!destroy);
                }
                Err(vm::Error::NotCreated(_)) => assert!(destroy),
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn what_the_loader_does_not_decide_is_the_engines() {
        let mut loaded = VcpuState::reset(0);
        (loaded.rip, loaded.cr0) = (0x1234, 0x31);
        loaded.msrs = vec![(0x2ff, 0x806), (TSC, 1)];
        let mut state = VcpuState::reset(0);
        state.msrs = vec![(TSC, 99), (0x2ff, 0), (0x277, 7)];
        state.apic.regs[3] = 0x50014;
        enter(&loaded, &mut state);
        assert_eq!((state.rip, state.cr0, state.apic.regs[3]), (0x1234, 0x31, 0x50014));
        assert_eq!(state.msrs, [(0x277, 7), (0x2ff, 0x806)]);
    }
}
