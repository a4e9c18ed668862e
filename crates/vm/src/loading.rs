//! How loaders make a VM.

use boot::Entry;
use engine::VcpuState;
use firmware::MemoryMap;
use memory::GuestMemory;

use crate::{Claim, Directory, Name, Phase, Ram, Result, State, apply, memory_map};

/// What a loader asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Bytes of guest memory.
    pub size: u64,
    /// `-S`: all of the memory is allocated now.
    pub wired: bool,
    /// `-C`: core dumps of the loader hold guest memory.
    pub in_core: bool,
}

/// A VM into which a kernel is being loaded. Dropping it unfinished leaves no half-made VM: one
/// that was made for it goes, one that was there before keeps its name and is empty.
#[derive(Debug)]
pub struct Loading {
    /// `None`: finished.
    claim: Option<Claim>,
    existed: bool,
    memory: GuestMemory,
    map: MemoryMap,
    ram: Ram,
}

impl Loading {
    /// Makes the VM `name`, or empties the one that is called so. Refused while a process has it.
    pub fn new(directory: &Directory, name: &Name, options: &Options) -> Result<Self> {
        let map = memory_map(options.size)?;
        let claim = Claim::new(directory, name)?;
        let existed = directory.exists(name)?;
        let made = prepare(&claim, &map, options);
        match made {
            Ok((memory, ram)) => Ok(Self { claim: Some(claim), existed, memory, map, ram }),
            Err(error) => {
                give_up(&claim, existed);
                Err(error)
            }
        }
    }

    /// The guest's memory, all zeros at first.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// What is RAM.
    pub fn map(&self) -> &MemoryMap {
        &self.map
    }

    /// The memory map as kernels are told it.
    pub fn e820(&self) -> Vec<boot::MapEntry> {
        let entry = |e: firmware::E820Entry| boot::MapEntry { base: e.base, len: e.len, kind: e.kind as u32 };
        self.map.e820().into_iter().map(entry).collect()
    }

    /// The kernel is in memory: from here on `bhyve` can run the VM, starting at `entry`. `loader`
    /// is the program's name.
    pub fn finish(mut self, entry: &Entry, loader: &str) -> Result<()> {
        let mut first = VcpuState::reset(0);
        apply(entry, &mut first);
        let state = State {
            phase: Phase::Loaded,
            ram: Some(self.ram.clone()),
            vcpus: vec![first],
            loader: Some(loader.to_owned()),
            topology: None,
        };
        if let Some(claim) = &self.claim {
            claim.save(&state)?;
        }
        self.claim = None;
        Ok(())
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take() {
            give_up(&claim, self.existed);
        }
    }
}

fn prepare(claim: &Claim, map: &MemoryMap, options: &Options) -> Result<(GuestMemory, Ram)> {
    claim.save(&State { phase: Phase::Loading, ..State::created() })?;
    let (memory, ram) = claim.new_memory(map, options.wired)?;
    if options.in_core {
        memory.include_in_core()?;
    }
    claim.save(&State { phase: Phase::Loading, ram: Some(ram.clone()), ..State::created() })?;
    Ok((memory, ram))
}

/// Nothing half made stays. There is nobody to tell of errors: the first one is on its way.
fn give_up(claim: &Claim, existed: bool) {
    if existed {
        let _ = claim.free_memory();
        let _ = claim.save(&State::created());
    } else {
        let _ = claim.destroy();
    }
}
