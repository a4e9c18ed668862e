//! `bhyvectl`: looks into VMs and steers them.

mod options;
mod registers;
mod show;
mod target;

use std::fmt::Write;

use engine::VcpuState;
use vm::control::{Request, Response};
use vm::{Claim, Directory, Name, Phase, State};

use options::{Given, OPTIONS, Opt, RAW};
use target::Target;

/// Highest number of a vCPU, as bhyve's module has it.
const MAX_CPU: u64 = 1023;
/// What a VM can have at most.
const MAX_CPUS: u32 = 1024;

/// What is to be printed, and where.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// For standard output.
    pub out: String,
    /// For standard error: a line without the program's name.
    pub error: Option<String>,
    /// The usage comes after it.
    pub usage: bool,
}

impl Outcome {
    /// The exit status.
    pub fn status(&self) -> u8 {
        u8::from(self.error.is_some() || self.usage || self.out.ends_with(NOT_CREATED))
    }
}

/// How a line for a VM that does not exist ends; bhyve prints it on standard output.
const NOT_CREATED: &str = "is not created.\n";

type Result<T> = std::result::Result<T, String>;

/// All options.
fn known() -> Vec<Opt> {
    [OPTIONS, &registers::options(), RAW].concat()
}

/// The text of the usage.
pub fn usage() -> String {
    options::usage(&known())
}

/// Does what the arguments ask for.
pub fn run(arguments: impl IntoIterator<Item = String>) -> Outcome {
    let mut arguments = arguments.into_iter().peekable();
    if arguments.peek().is_none() {
        return Outcome { usage: true, ..Outcome::default() };
    }
    let given = match options::parse(arguments, &known()) {
        Ok(given) => given,
        Err(error) => return Outcome { error: Some(error), usage: true, ..Outcome::default() },
    };
    let Some(name) = given.text("vm") else {
        let error = Some("--vm=NAME says which VM is meant".to_owned());
        return Outcome { error, usage: true, ..Outcome::default() };
    };
    let mut out = String::new();
    let error = find(name, &given, &mut out).err();
    Outcome { out, error, usage: false }
}

fn find(name: &str, given: &Given, out: &mut String) -> Result<()> {
    let name = Name::new(name).map_err(|e| format!("--vm={name}: {e}"))?;
    refuse_unsupported(given)?;
    let cpu = given.at_most("cpu", MAX_CPU)?.unwrap_or(0) as u32;
    let directory = Directory::open().map_err(|e| e.to_string())?;
    if given.has("create") {
        create(&directory, &name)?;
    }
    if !directory.exists(&name).map_err(|e| e.to_string())? {
        let _ = write!(out, "VM:{name} {NOT_CREATED}");
        return Ok(());
    }
    // A VM that is only to be removed may be damaged.
    if given.names().any(|option| !matches!(option, "vm" | "cpu" | "create" | "destroy")) {
        let target = Target::open(&directory, &name)?;
        Session { given, cpu, target }.run(out)?;
    }
    if given.has("destroy") { target::destroy(&directory, &name) } else { Ok(()) }
}

/// What this version does not do is said before anything is done.
fn refuse_unsupported(given: &Given) -> Result<()> {
    if let Some((name, _)) = RAW.iter().find(|(name, _)| given.has(name)) {
        return Err(format!("--{name}: not available on this engine"));
    }
    for (name, why) in [
        ("checkpoint", "snapshots are not there yet"),
        ("suspend", "snapshots are not there yet"),
        ("run", "VMs are run by bhyve"),
        ("unassign-pptdev", "there is no pass-through of devices yet"),
    ] {
        if given.has(name) {
            return Err(format!("--{name}: {why}"));
        }
    }
    Ok(())
}

fn create(directory: &Directory, name: &Name) -> Result<()> {
    let text = |e: vm::Error| e.to_string();
    let claim = Claim::new(directory, name).map_err(text)?;
    if directory.exists(name).map_err(text)? {
        return Err(vm::Error::Exists(name.clone()).to_string());
    }
    claim.save(&State::created()).map_err(text)
}

/// One VM, and what to do with it: the order is bhyve's.
struct Session<'a> {
    given: &'a Given,
    cpu: u32,
    target: Target,
}

impl Session<'_> {
    fn run(&mut self, out: &mut String) -> Result<()> {
        self.set_memory()?;
        self.set_registers()?;
        if self.given.has("inject-nmi") {
            self.command(&Request::Nmi(self.cpu))?;
        }
        if let Some(pin) = self.given.at_most("assert-lapic-lvt", u64::from(u32::MAX))? {
            self.command(&Request::LocalPin { cpu: self.cpu, pin: pin as u32 })?;
        }
        self.show_memory(out)?;
        self.show_processor(out)?;
        self.clock(out)?;
        self.capabilities(out)?;
        self.processors(out)?;
        if self.given.has("force-reset") {
            self.command(&Request::Reset)?;
        }
        if self.given.has("force-poweroff") {
            self.command(&Request::PowerOff)?;
        }
        Ok(())
    }

    /// Asks for something that has no answer but success.
    fn command(&mut self, request: &Request) -> Result<()> {
        match self.target.ask(request)? {
            Response::Done => Ok(()),
            other => Err(target::unexpected(&other)),
        }
    }

    /// Whether an option was given by itself, or with all others and there can be an answer.
    fn wants(&self, option: &str, possible: bool) -> bool {
        self.given.has(option) || possible && self.given.wants(option)
    }

    fn running(&self) -> bool {
        self.target.summary().is_some()
    }

    fn set_memory(&mut self) -> Result<()> {
        let Some(megabytes) = self.given.at_most("set-mem", u64::MAX >> 20)? else { return Ok(()) };
        let map = vm::memory_map(megabytes << 20).map_err(|e| format!("--set-mem={megabytes}: {e}"))?;
        self.target.change(|claim, state| {
            if state.phase != Phase::Created {
                return Err(format!("--set-mem={megabytes}: VM {} has its memory already", claim.name()));
            }
            state.ram = Some(claim.new_memory(&map, false).map_err(|e| e.to_string())?.1);
            Ok(())
        })
    }

    fn set_registers(&mut self) -> Result<()> {
        let mut changes = registers::changes(self.given);
        let x2apic = self.given.at_most("set-x2apic-state", 1)?;
        changes.extend(x2apic.map(|_| "set-x2apic-state".to_owned()));
        let Some(first) = changes.first() else { return Ok(()) };
        let given = self.given;
        let change = |state: &mut VcpuState| {
            registers::set(given, state)?;
            match x2apic {
                Some(0) => state.apic_base &= !show::X2APIC,
                Some(_) => state.apic_base |= show::X2APIC,
                None => {}
            }
            Ok(())
        };
        self.target.change_vcpu(self.cpu, change).map_err(|why| format!("--{first}: {why}"))
    }

    fn show_memory(&mut self, out: &mut String) -> Result<()> {
        let (given, ram) = (self.given, self.target.ram());
        if given.wants("get-memseg") {
            show::segments(ram, out);
        }
        if given.wants("get-memmap") {
            show::map(ram, out);
        }
        for (option, high) in [("get-lowmem", false), ("get-highmem", true)] {
            if given.has(option) {
                show::part(ram, high, out);
            }
        }
        if let Some(gpa) = given.number("get-gpa-pmap")? {
            show::address(ram, gpa, out);
        }
        Ok(())
    }

    /// All that the state of a vCPU has.
    fn show_processor(&mut self, out: &mut String) -> Result<()> {
        const OTHERS: [&str; 4] = ["get-x2apic-state", "get-guest-pat", "get-guest-sysenter", "get-intinfo"];
        let asked = registers::wanted(self.given) || OTHERS.iter().any(|option| self.given.has(option));
        if !asked && !self.given.has("get-all") {
            return self.show_end(out);
        }
        let state = match self.target.vcpu(self.cpu) {
            Ok(state) => state,
            // With all others: what a VM at rest does not have is left out.
            Err(_) if !asked && !self.running() => return self.show_end(out),
            Err(error) => return Err(error),
        };
        registers::show(self.given, self.cpu, &state, out);
        if self.given.wants("get-x2apic-state") {
            show::x2apic(self.cpu, &state, out);
        }
        if self.given.wants("get-guest-pat") {
            show::pat(self.cpu, &state, out);
        }
        if self.given.wants("get-guest-sysenter") {
            show::sysenter(self.cpu, &state, out);
        }
        if self.given.wants("get-intinfo") {
            show::events(&state, out);
        }
        self.show_end(out)
    }

    /// Why a VM is at rest. While it runs only the processor's own structures would tell.
    fn show_end(&self, out: &mut String) -> Result<()> {
        if self.running() {
            let asked = self.given.has("get-exit-reason");
            return if asked {
                Err("--get-exit-reason: not available on this engine".into())
            } else {
                Ok(())
            };
        }
        if self.given.wants("get-exit-reason") {
            let _ = writeln!(out, "exit_reason[{}]\t{}", self.cpu, show::end(&self.target.state));
        }
        Ok(())
    }

    fn clock(&mut self, out: &mut String) -> Result<()> {
        let offset = self.given.at_most("rtc-nvram-offset", u64::from(u8::MAX))?.unwrap_or(0) as u8;
        if let Some(value) = self.given.at_most("set-rtc-nvram", u64::from(u8::MAX))? {
            self.command(&Request::SetMemory { offset, value: value as u8 })?;
        }
        if self.wants("get-rtc-nvram", self.running()) {
            match self.target.ask(&Request::Memory(offset))? {
                Response::Byte(value) => {
                    let _ = writeln!(out, "rtc nvram[{offset:03}]: {value:#04x}");
                }
                other => return Err(target::unexpected(&other)),
            }
        }
        // The clock's century has two digits.
        if let Some(seconds) = self.given.at_most("set-rtc-time", 253_402_300_799)? {
            self.command(&Request::SetTime(seconds as i64))?;
        }
        if self.wants("get-rtc-time", self.running()) {
            match self.target.ask(&Request::Time)? {
                Response::Time(seconds) => show::time(seconds, out),
                other => return Err(target::unexpected(&other)),
            }
        }
        Ok(())
    }

    fn capabilities(&mut self, out: &mut String) -> Result<()> {
        const NAMES: [&str; 5] =
            ["hlt_exit", "mtrap_exit", "pause_exit", "unrestricted_guest", "enable_invpcid"];
        let one = self.given.text("capname");
        if let Some(name) = one.filter(|name| !NAMES.contains(name)) {
            return Err(format!("--capname={name}: there are {}", NAMES.join(", ")));
        }
        if self.given.has("setcap") {
            let name = one.ok_or("--setcap: --capname=NAME says which capability is meant")?;
            return Err(format!("--setcap: capability {name} can't be changed on this engine"));
        }
        if !self.wants("getcap", self.running()) {
            return Ok(());
        }
        let Some(summary) = self.target.summary() else {
            return Err("--getcap: the VM does not run, so it has no engine".into());
        };
        for name in NAMES.iter().filter(|name| one.is_none_or(|one| one == **name)) {
            let _ = match summary.capabilities.iter().find(|(other, _)| other == name) {
                Some((_, set)) => {
                    let set = if *set { "set" } else { "not set" };
                    writeln!(out, "Capability \"{name}\" is {set} on vcpu {}", self.cpu)
                }
                None => writeln!(out, "Capability \"{name}\" is not available"),
            };
        }
        Ok(())
    }

    /// What is known of the vCPUs beside their states.
    fn processors(&mut self, out: &mut String) -> Result<()> {
        if self.given.wants("get-active-cpus") {
            let active = if self.running() {
                match self.target.ask(&Request::Active)? {
                    Response::Cpus(cpus) => cpus,
                    other => return Err(target::unexpected(&other)),
                }
            } else {
                Vec::new()
            };
            show::cpus("active cpus", &active, out);
        }
        let topology = self.target.topology();
        if self.given.wants("get-suspended-cpus") {
            let ended = matches!(self.target.state.phase, Phase::Ended { .. });
            let all: Vec<_> = (0..topology.cpus()).filter(|_| ended).collect();
            show::cpus("suspended cpus", &all, out);
        }
        if self.wants("get-stats", self.running()) {
            match self.target.ask(&Request::Statistics(self.cpu))? {
                Response::Statistics(list) => show::statistics(self.cpu, &list, out),
                other => return Err(target::unexpected(&other)),
            }
        }
        if self.given.wants("get-cpu-topology") {
            let vm::Topology { sockets, cores, threads } = topology;
            let _ = writeln!(
                out,
                "cpu_topology:\tsockets={sockets}, cores={cores}, threads={threads}, maxcpus={MAX_CPUS}"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_has_one_name() {
        let mut names: Vec<_> = known().iter().map(|(name, _)| *name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(usage().contains("[--set-desc-gdtr]\n") && usage().contains("[--get-vmcs-link]\n"));
    }

    #[test]
    fn what_is_wrong_with_the_command_line_is_said_first() {
        let run = |words: &[&str]| super::run(words.iter().map(|word| (*word).to_owned()));
        let outcome = run(&[]);
        assert_eq!((outcome.status(), outcome.usage, outcome.error), (1, true, None));
        let refused = |words: &[&str]| {
            let outcome = run(words);
            assert_eq!(outcome.status(), 1);
            outcome.error.unwrap()
        };
        assert_eq!(refused(&["--destroy"]), "--vm=NAME says which VM is meant");
        assert_eq!(refused(&["--vm=a/b"]), "--vm=a/b: VM name \"a/b\" can't be the name of a file");
        assert_eq!(refused(&["--vm=a", "--get-eptp"]), "--get-eptp: not available on this engine");
        assert_eq!(refused(&["--vm=a", "--suspend=f"]), "--suspend: snapshots are not there yet");
        assert_eq!(refused(&["--vm=a", "--cpu=1024"]), "--cpu=1024: more than 1023");
    }
}
