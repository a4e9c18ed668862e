//! Puts the PC together, from the tree alone.

use std::sync::Arc;

use bus::{Bus, Clock, Device, EventLoop, PowerSwitch, Timers};
use config::{Topology, Tree};
use devices::BuildContext;
use devices::chipset::{Chipset, ChipsetConfig, PM_BASE, Pm, RtcConfig, Uart};
use devices::pci::{PciBus, PciBusConfig};
use engine::{CpuidTable, SharedVm, Vcpu, VcpuState, VmConfig, VmServices};
use firmware::MemoryMap;
use memory::GuestMemory;

use crate::cpus::Pinning;
use crate::engines::{self, EngineDoorbells};
use crate::identity::{self, Identity, Start};
use crate::lifecycle::{Machine, PowerButton, SignalTarget};
use crate::tables::{self, Described};
use crate::{Error, Result, clock, slots};

/// Most vCPUs of one VM: bhyve's hard limit.
const MAX_VCPUS: u32 = 1024;

/// The parts that everything else is connected to.
struct Core {
    map: MemoryMap,
    memory: GuestMemory,
    bus: Arc<Bus>,
    timers: Arc<Timers>,
    events: Arc<EventLoop>,
    power: Arc<PowerSwitch>,
    clock: Clock,
    chipset: Chipset,
    pci: Arc<PciBus>,
}

/// Builds the machine that `tree` describes out of what `identity` has. `signals` learns of the power
/// button.
pub fn build(tree: &Tree, identity: &Identity, signals: &SignalTarget) -> Result<Machine> {
    slots::check_devices(tree)?;
    let topology = topology(tree)?;
    let pinning = Pinning::read(tree, topology.cpus)?;
    let lpc = slots::lpc(tree)?;
    check_com_ports(tree, lpc.is_some())?;

    let core = Core::new(tree, identity)?;
    let (vm, engine, cpuid) = make_vm(tree, topology, &core)?;
    core.chipset.connect(vm.clone());
    let routes = Arc::downgrade(&vm);
    core.chipset.interrupts.ioapic.on_route(move |pin, msi| {
        if let Some(vm) = routes.upgrade() {
            // A route that KVM refuses only costs that pin its EOI; there is nobody to tell here.
            let _ = vm.set_ioapic_route(pin, msi);
        }
    });
    add_devices(tree, &core, &vm)?;
    let described = Described { tree, topology, cpuid: &cpuid, map: core.map, pci: &core.pci, lpc };
    let installed = tables::install(&described, &core.memory)?;
    let first = first_state(identity, &core, installed.rsdp)?;
    let vcpus = make_vcpus(&*vm, topology.cpus, &first).map_err(engine_error(tree))?;
    let uarts = if lpc.is_some() { com_ports(tree, &core)? } else { Vec::new() };

    signals.connect(Arc::new(Button(core.chipset.pm.clone())));
    let mut devices = core.chipset.devices();
    devices.extend(core.pci.functions().into_iter().map(|f| f as Arc<dyn Device>));
    devices.extend(uarts.iter().map(|uart| uart.clone() as Arc<dyn Device>));
    Ok(Machine {
        power: core.power,
        vcpus,
        pinning,
        topology: vm::Topology {
            sockets: topology.sockets,
            cores: topology.cores,
            threads: topology.threads,
        },
        vm: (vm, engine),
        capabilities: capabilities(&cpuid),
        memory: (core.memory, tree.flag("memory.wired")?),
        rtc: core.chipset.rtc.clone(),
        destroy: tree.flag("destroy_on_poweroff")?,
        devices,
        uarts,
        interrupts: core.chipset.interrupts,
        pci: core.pci,
        services: (core.timers, core.events),
    })
}

fn topology(tree: &Tree) -> Result<Topology> {
    let topology = Topology::of(tree)?;
    if topology.cpus > MAX_VCPUS {
        let key = ["cpus", "sockets", "cores", "threads"].into_iter().find(|key| tree.raw(key).is_some());
        let why = format!("{} virtual CPUs are more than {MAX_VCPUS}", topology.cpus);
        return Err(tree.error(key.unwrap_or("cpus"), why).into());
    }
    Ok(topology)
}

fn engine_error(tree: &Tree) -> impl Fn(engine::Error) -> Error {
    let at = tree.origin("engine");
    move |source| Error::Engine { at: at.clone(), source }
}

impl Core {
    fn new(tree: &Tree, identity: &Identity) -> Result<Self> {
        let map = identity.map(tree)?;
        let memory = identity.memory(tree, &map)?;
        let clock = Clock::new();
        let (bus, power) = (Arc::new(Bus::new()), Arc::new(PowerSwitch::default()));
        let timers = Arc::new(Timers::start(clock).map_err(Error::host("cannot start the timer thread"))?);
        let events = Arc::new(EventLoop::start().map_err(Error::host("cannot start the event loop"))?);
        let offset = if tree.flag("rtc.use_localtime")? { clock::utc_offset() } else { 0 };
        let rtc = RtcConfig { low_memory: map.low, high_memory: map.high, utc_offset: offset };
        let config = ChipsetConfig { rtc, pm_base: Some(PM_BASE) };
        let claim = |what: &'static str| move |source| Error::Claim { what: what.into(), source };
        let chipset = Chipset::new(&bus, &timers, &power, &config).map_err(claim("chipset"))?;
        let interrupts = chipset.interrupts.clone();
        let pci = PciBus::new(PciBusConfig {
            bus: bus.clone(),
            memory: memory.clone(),
            line: Box::new(move |gsi| interrupts.line(gsi)),
            reset_control: Some(chipset.pm.clone()),
            firmware: false,
        })
        .map_err(claim("PCI"))?;
        Ok(Self { map, memory, bus, timers, events, power, clock, chipset, pci })
    }
}

fn make_vm(tree: &Tree, topology: Topology, core: &Core) -> Result<(SharedVm, &'static str, CpuidTable)> {
    let engine = engines::make(tree)?;
    let Topology { sockets, cores, threads, .. } = topology;
    let cpuid = CpuidTable::new(engine::Topology { sockets, cores, threads }, engine.features());
    let config = VmConfig {
        vcpus: topology.cpus,
        cpuid: cpuid.clone(),
        strict_msr: tree.flag("x86.strictmsr")?,
        x2apic: tree.flag("x86.x2apic")?,
        strict_io: tree.flag("x86.strictio")?,
    };
    let services = VmServices {
        memory: core.memory.clone(),
        bus: core.bus.clone(),
        interrupts: core.chipset.interrupts.clone(),
        power: core.power.clone(),
        timers: core.timers.clone(),
        clock: core.clock,
    };
    let vm = engine.new_vm(config, services).map_err(engine_error(tree))?;
    Ok((vm, engine.name(), cpuid))
}

/// HLT always gives the host's CPU away, PAUSE never; guests may run in real mode.
fn capabilities(cpuid: &CpuidTable) -> Vec<(&'static str, bool)> {
    /// CPUID.7:EBX.INVPCID.
    const INVPCID: u32 = 1 << 10;
    let invpcid = cpuid.leaf(7, 0).is_some_and(|leaf| leaf.ebx & INVPCID != 0);
    vec![("hlt_exit", true), ("pause_exit", false), ("unrestricted_guest", true), ("enable_invpcid", invpcid)]
}

/// Makes the PCI devices and gives their BARs addresses.
fn add_devices(tree: &Tree, core: &Core, vm: &SharedVm) -> Result<()> {
    let context = BuildContext {
        memory: core.memory.clone(),
        bus: core.bus.clone(),
        // The chipset passes messages on; so devices hold no VM, which would hold them.
        msi: core.chipset.interrupts.clone(),
        doorbells: Arc::new(EngineDoorbells(Arc::downgrade(vm))),
        pirq: core.chipset.interrupts.clone(),
        timers: core.timers.clone(),
        events: core.events.clone(),
        clock: core.clock,
        power: core.power.clone(),
        address: config::PciAddress { bus: 0, slot: 0, function: 0 },
        vm_name: tree.get("name")?.unwrap_or_default(),
        virtio_msix: tree.flag("virtio_msix")?,
    };
    slots::populate(tree, &core.pci, &context)?;
    core.pci.assign(core.map.high_end()).map_err(|e| Error::Part(e.to_string()))
}

/// How the first vCPU starts.
fn first_state(identity: &Identity, core: &Core, rsdp: Option<u64>) -> Result<VcpuState> {
    Ok(match &identity.start {
        Start::Kernel(kernel) => {
            let mut state = VcpuState::reset(0);
            vm::apply(&kernel.load(&core.memory, &core.map, rsdp)?, &mut state);
            state
        }
        Start::Loaded { first, .. } => (**first).clone(),
    })
}

fn make_vcpus(vm: &dyn engine::Vm, count: u32, start: &VcpuState) -> engine::Result<Vec<Box<dyn Vcpu>>> {
    let mut vcpus = (0..count).map(|id| vm.new_vcpu(id)).collect::<engine::Result<Vec<_>>>()?;
    if let Some(first) = vcpus.first_mut() {
        let mut state = first.state()?;
        identity::enter(start, &mut state);
        first.set_state(&state)?;
    }
    Ok(vcpus)
}

fn com_key(number: usize) -> String {
    format!("lpc.com{number}.path")
}

fn check_com_ports(tree: &Tree, lpc: bool) -> Result<()> {
    match (1..=4).map(com_key).find(|key| tree.raw(key).is_some()) {
        Some(key) if !lpc => {
            Err(tree.error(&key, "serial ports are on the LPC bridge: add one, such as -s 31,lpc").into())
        }
        _ => Ok(()),
    }
}

/// All four ports, with the back ends that they are given. Last of all parts, as a terminal goes
/// raw here.
fn com_ports(tree: &Tree, core: &Core) -> Result<Vec<Arc<Uart>>> {
    let mut uarts = Vec::new();
    for number in 1..=4 {
        let key = com_key(number);
        let backend = match tree.get(&key)? {
            Some(path) => {
                Some(host::tty::open(&path, &core.events).map_err(|e| tree.error(&key, e.to_string()))?)
            }
            None => None,
        };
        if let Some(uart) = core.chipset.com_port(&core.bus, number, backend) {
            uarts.push(uart.map_err(|source| Error::Claim { what: format!("com{number}"), source })?);
        }
    }
    Ok(uarts)
}

/// The power button on the power management block.
struct Button(Arc<Pm>);

impl PowerButton for Button {
    fn listening(&self) -> bool {
        self.0.acpi_enabled()
    }

    fn press(&self) {
        self.0.power_button();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    fn refuse(pairs: &[(&str, &str)]) -> String {
        let mut tree = Tree::new();
        tree.set("name", "guest").unwrap();
        tree.set("kernel.path", "/nowhere/vmlinuz").unwrap();
        for (key, value) in pairs {
            tree.set(key, value).unwrap();
        }
        let scratch = Scratch::new("builder");
        let identity = Identity::take(&tree, &scratch.directory()).unwrap();
        let error = build(&tree, &identity, &SignalTarget::new(|| {})).err().unwrap();
        drop(identity);
        assert_eq!(scratch.files(), Vec::<String>::new(), "what can't run leaves nothing behind");
        assert_eq!(error.exit_code(), 4);
        error.to_string()
    }

    #[test]
    fn what_cannot_run_is_refused_in_the_users_words() {
        assert!(refuse(&[("cpus", "2000")]).starts_with("cpus=2000: 2000 virtual CPUs are more than 1024"));
        let error = refuse(&[("lpc.com1.path", "stdio")]);
        assert_eq!(
            error,
            "lpc.com1.path=stdio: serial ports are on the LPC bridge: add one, such as -s 31,lpc"
        );
        let error = refuse(&[("pci.0.4.0.device", "e1000")]);
        assert!(error.ends_with("device e1000 is not implemented yet"), "{error}");
        let error = refuse(&[("memory.size", "16M"), ("engine", "soft")]);
        assert_eq!(
            error,
            "kernel.path=/nowhere/vmlinuz: cannot open /nowhere/vmlinuz: No such file or directory"
        );
        assert!(refuse(&[("engine", "tcg")]).contains("expected auto, kvm or soft"));
    }
}
