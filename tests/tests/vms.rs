//! A VM outlives its processes: loaders make it, bhyve runs it, bhyvectl looks into it and removes it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use boot::{Entry, Mode};
use guest_tests::{Guest, Lab, Machine, Process, Result, Scratch, Vmm, bhyve_binary, is_root};
use rustix::process::Signal;
use vm::{Directory, Loading, Name, Options, Phase};

const BOOT: Duration = Duration::from_mins(3);
const END: Duration = Duration::from_mins(1);

/// A folder of VMs of its own for each test.
struct Vms {
    scratch: Scratch,
}

impl Vms {
    fn new(label: &str) -> Result<Self> {
        Ok(Self { scratch: Scratch::in_memory(label)? })
    }

    fn path(&self) -> PathBuf {
        self.scratch.path().join("vmm")
    }

    fn directory(&self) -> Directory {
        Directory::at(&self.path()).unwrap()
    }

    /// Files of VMs and their companions.
    fn files(&self) -> Vec<String> {
        let mut names = Vec::new();
        for folder in ["vmm", "vmm.io"] {
            let entries = std::fs::read_dir(self.scratch.path().join(folder)).into_iter().flatten();
            names.extend(entries.map(|e| format!("{folder}/{}", e.unwrap().file_name().display())));
        }
        names.sort();
        names
    }

    /// The file behind a VM's memory. It lies elsewhere if the folder of the VMs is on a disk.
    fn memory(&self, name: &str) -> Option<PathBuf> {
        self.directory().state(&Name::new(name).unwrap()).unwrap().ram?.path
    }

    fn phase(&self, name: &str) -> Phase {
        self.directory().state(&Name::new(name).unwrap()).unwrap().phase
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(bhyve_binary().unwrap().with_file_name(program));
        command.args(arguments).env("VMM_DIR", self.path()).stdin(Stdio::null());
        command
    }

    fn ctl(&self, arguments: &[&str]) -> Output {
        self.command("bhyvectl", arguments).output().unwrap()
    }

    /// What bhyvectl prints when it succeeds.
    fn tell(&self, arguments: &[&str]) -> String {
        let output = self.ctl(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What bhyvectl says when it refuses.
    fn refusal(&self, arguments: &[&str]) -> String {
        let output = self.ctl(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Runs bhyve to its end, without a guest that needs to be talked to; its status and output.
    fn bhyve(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let mut command = self.command("bhyve", &["-s", "0,hostbridge", "-s", "31,lpc", "-l", "com1,stdio"]);
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process::spawn(&mut command).unwrap();
        let (mut out, mut err) = (String::new(), String::new());
        let child = process.child();
        std::io::Read::read_to_string(&mut child.stdout.take().unwrap(), &mut out).unwrap();
        std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut err).unwrap();
        (process.wait(END).unwrap().status.code(), out, err)
    }

    /// A register of a VM.
    fn register(&self, name: &str, register: &str) -> u64 {
        let text = self.tell(&[&format!("--vm={name}"), &format!("--get-{register}")]);
        let value = text.trim_end().rsplit('\t').next().unwrap().trim_start_matches("0x");
        u64::from_str_radix(value, 16).unwrap()
    }
}

impl Drop for Vms {
    fn drop(&mut self) {
        // Memory may lie elsewhere.
        let directory = self.directory();
        for name in directory.list().unwrap() {
            let _ = self.ctl(&["--destroy", &format!("--vm={name}")]);
        }
    }
}

/// Where the code of tiny guests is: it says A, says B, dies of #UD, or counts in EAX for ever.
const SAY_A: u64 = 0x10_0000;
const SAY_B: u64 = 0x10_1000;
const DIE: u64 = 0x10_2000;
const COUNT: u64 = 0x10_3000;

/// Makes a VM with tiny guests, the way a loader does.
fn load_tiny(vms: &Vms, name: &str, rip: u64) {
    let options = Options { size: 16 << 20, ..Options::default() };
    let loading = Loading::new(&vms.directory(), &Name::new(name).unwrap(), &options).unwrap();
    for (at, letter) in [(SAY_A, b'A'), (SAY_B, b'B')] {
        // mov dx,3F8h; mov al,letter; out dx,al; cli; hlt; jmp to hlt
        let code = [0x66, 0xba, 0xf8, 0x03, 0xb0, letter, 0xee, 0xfa, 0xf4, 0xeb, 0xfd];
        loading.memory().write(at, &code).unwrap();
    }
    loading.memory().write(DIE, &[0x0f, 0x0b]).unwrap();
    // inc eax; jmp to inc
    loading.memory().write(COUNT, &[0x40, 0xeb, 0xfd]).unwrap();
    let entry = Entry {
        mode: Mode::Protected32,
        rip,
        rsi: 0,
        rbx: 0,
        rax: 0,
        rsp: 0x9000,
        cr3: 0,
        gdt_base: 0x1000,
        gdt_limit: 0x27,
        code: 0x10,
        data: 0x18,
        tss: 0x20,
    };
    loading.finish(&entry, "test-loader").unwrap();
}

/// Makes a VM with Linux.
fn load_linux(vms: &Vms, machine: &Machine) -> Result<()> {
    let options = Options { size: 512 << 20, ..Options::default() };
    let loading = Loading::new(&vms.directory(), &Name::new(&machine.name)?, &options)?;
    let entry = boot::load(&boot::Request {
        memory: loading.memory(),
        kernel: &machine.kernel,
        initrd: Some(&machine.initrd),
        cmdline: &machine.kernel_cmdline(),
        map: &loading.e820(),
        rsdp: None,
    })?;
    Ok(loading.finish(&entry, "test-loader")?)
}

fn lab() -> Option<Lab> {
    Lab::or_skip().filter(Lab::is_bhyve)
}

#[test]
fn a_vm_is_created_listed_and_destroyed() -> Result<()> {
    let vms = Vms::new("life")?;
    vms.tell(&["--create", "--vm=one"]);
    vms.tell(&["--create", "--vm", "two"]);
    let ls = Command::new("ls").arg("-al").arg(vms.path()).output()?;
    let listed = String::from_utf8(ls.stdout)?;
    let files: Vec<_> = listed.lines().filter(|line| line.starts_with('-')).collect();
    assert_eq!(files.len(), 2, "{listed}");
    assert!(files.iter().all(|line| line.starts_with("-rw------- ")), "{listed}");
    assert_eq!(listed.lines().count(), 1 + 2 + 2, "only two folders beside them: {listed}");
    assert_eq!(vms.path().with_file_name("vmm.io").metadata()?.mode() & 0o777, 0o700);

    assert_eq!(vms.refusal(&["--create", "--vm=one"]), "bhyvectl: VM one exists already\n");
    let all = vms.tell(&["--get-all", "--vm=one"]);
    assert!(all.contains("ID  Length      Name\n") && all.contains("active cpus:\t (none)\n"), "{all}");
    assert!(all.contains("exit_reason[0]\tnever run\n"), "{all}");
    assert_eq!(vms.refusal(&["--get-rip", "--vm=one"]), "bhyvectl: VM one has no state of vCPU 0\n");
    assert_eq!(vms.refusal(&["--inject-nmi", "--vm=one"]), "bhyvectl: VM one does not run\n");
    vms.tell(&["--set-mem=32", "--vm=one"]);
    assert_eq!(vms.tell(&["--get-memseg", "--vm=one"]), "ID  Length      Name\n0   32768KB     sysmem\n");
    let (status, _, said) = vms.bhyve(&["one"]);
    assert_eq!(status, Some(4));
    assert!(said.starts_with("bhyve: VM one has nothing to run yet: run grub-bhyve or bhyveload"), "{said}");

    for name in ["one", "two"] {
        vms.tell(&["--destroy", &format!("--vm={name}")]);
        let again = vms.ctl(&["--destroy", &format!("--vm={name}")]);
        assert_eq!(again.status.code(), Some(1));
        assert_eq!(String::from_utf8(again.stdout)?, format!("VM:{name} is not created.\n"));
    }
    assert_eq!(vms.files(), Vec::<String>::new());
    Ok(())
}

#[test]
fn bad_command_lines_say_what_is_wrong() -> Result<()> {
    let vms = Vms::new("bad")?;
    let usage = vms.refusal(&[]);
    assert!(usage.starts_with("Usage: bhyvectl --vm=<vmname>\n"), "{usage}");
    assert!(
        vms.refusal(&["--vm=a", "--get-nothing"])
            .starts_with("bhyvectl: --get-nothing: there is no such option\n")
    );
    let long = "x".repeat(33);
    for (name, why) in
        [("a/b", "can't be the name of a file"), (long.as_str(), "is longer than 32 characters")]
    {
        let line = format!("VM name {name:?} {why}\n");
        assert_eq!(vms.refusal(&["--create", "--vm", name]), format!("bhyvectl: --vm={name}: {line}"));
        let (status, _, said) = vms.bhyve(&[name]);
        assert_eq!((status, said), (Some(4), format!("bhyve: {name}: {line}")));
    }
    let (status, _, said) = vms.bhyve(&["nobody-made-me"]);
    assert_eq!(status, Some(4));
    assert!(
        said.starts_with("bhyve: there is no VM nobody-made-me: run grub-bhyve or bhyveload first"),
        "{said}"
    );
    assert_eq!(vms.files(), Vec::<String>::new(), "what is refused leaves nothing behind");
    std::fs::write(vms.path().join("junk"), "no VM")?;
    let error = vms.refusal(&["--get-stats", "--vm=junk"]);
    assert!(error.ends_with("junk: not a VM, or one of another version of bhyve\n"), "{error}");
    vms.tell(&["--destroy", "--vm=junk"]);
    assert_eq!(vms.files(), Vec::<String>::new());
    Ok(())
}

#[test]
fn registers_set_between_loader_and_bhyve_count() -> Result<()> {
    let vms = Vms::new("registers")?;
    for engine in ["engine=soft", "engine=kvm"] {
        load_tiny(&vms, "tiny", SAY_A);
        let (status, out, said) = vms.bhyve(&["-o", engine, "tiny"]);
        if said.contains("/dev/kvm") {
            eprintln!("left out: {said}");
            vms.tell(&["--destroy", "--vm=tiny"]);
            continue;
        }
        assert_eq!((status, out.as_str()), (Some(2), "A"), "{said}");

        load_tiny(&vms, "tiny", SAY_A);
        assert_eq!(vms.register("tiny", "rip"), SAY_A);
        vms.tell(&["--vm=tiny", &format!("--set-rip={SAY_B}"), "--set-rax=0x1234", "--set-dr7=0x400"]);
        assert_eq!((vms.register("tiny", "rip"), vms.register("tiny", "rax")), (SAY_B, 0x1234));
        let error = vms.refusal(&["--vm=tiny", "--set-cr0=0x80000000"]);
        assert_eq!(error, "bhyvectl: --set-cr0: no processor can be so: CR0.PG without CR0.PE\n");
        let error = vms.refusal(&["--vm=tiny", "--cpu=1", "--set-rip=0"]);
        assert_eq!(error, "bhyvectl: --set-rip: VM tiny has no state of vCPU 1\n");
        let (status, out, said) = vms.bhyve(&["-o", engine, "tiny"]);
        assert_eq!((status, out.as_str()), (Some(2), "B"), "{said}");
        // After a clean end the registers are there, the memory is not.
        assert_eq!(vms.register("tiny", "rip"), SAY_B + 9);
        assert_eq!(vms.files(), ["vmm.io/tiny.lock", "vmm/tiny"]);
        assert_eq!(vms.tell(&["--vm=tiny", "--get-exit-reason"]), "exit_reason[0]\thalt\n");
        assert_eq!(vms.tell(&["--vm=tiny", "--get-suspended-cpus"]), "suspended cpus:\t 0\n");
        let (status, _, said) = vms.bhyve(&["tiny"]);
        assert_eq!(status, Some(4));
        assert!(
            said.starts_with("bhyve: VM tiny ended with status 2: load it again, or remove it"),
            "{said}"
        );
    }
    Ok(())
}

#[test]
fn the_size_is_the_loaders() -> Result<()> {
    let vms = Vms::new("size")?;
    load_tiny(&vms, "tiny", SAY_A);
    let (status, _, said) = vms.bhyve(&["-m", "32M", "-o", "engine=soft", "tiny"]);
    let line = "bhyve: -m 32M: VM tiny has 16 MiB, as test-loader made it, and not 32 MiB\n";
    assert_eq!((status, said.as_str()), (Some(4), line));
    assert_eq!(vms.phase("tiny"), Phase::Loaded, "what was refused can still be run");
    let (status, out, said) = vms.bhyve(&["-m", "16M", "-o", "engine=soft", "tiny"]);
    assert_eq!((status, out.as_str()), (Some(2), "A"), "{said}");
    Ok(())
}

#[test]
fn after_a_triple_fault_everything_stays_for_a_look() -> Result<()> {
    let vms = Vms::new("fault")?;
    load_tiny(&vms, "tiny", DIE);
    let (status, _, said) = vms.bhyve(&["-D", "-o", "engine=soft", "tiny"]);
    assert_eq!(status, Some(3), "{said}");
    assert!(vms.memory("tiny").is_some_and(|path| path.exists()));
    assert_eq!(vms.register("tiny", "rip"), DIE);
    assert_eq!(vms.tell(&["--vm=tiny", "--get-exit-reason"]), "exit_reason[0]\ttriple fault\n");
    let map = vms.tell(&["--vm=tiny", "--get-memmap"]);
    assert!(map.ends_with("0           16384KB     sysmem      0           RWX   \n"), "{map}");
    let memory = vms.memory("tiny").ok_or("no memory")?;
    vms.tell(&["--vm=tiny", "--destroy"]);
    assert_eq!(vms.files(), Vec::<String>::new());
    assert!(!memory.exists());
    Ok(())
}

/// Starts a tiny guest that counts for ever, and waits until it can be spoken to.
fn counting(vms: &Vms, name: &str, engine: &str) -> Result<Process> {
    load_tiny(vms, name, COUNT);
    let engine = format!("engine={engine}");
    let mut command = vms.command("bhyve", &["-s", "0,hostbridge", "-o", &engine, name]);
    let process = Process::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()))?;
    let end = Instant::now() + END;
    while !vms.ctl(&[&format!("--vm={name}"), "--get-stats"]).status.success() {
        assert!(Instant::now() < end, "{name} does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(process)
}

#[test]
fn a_killed_process_leaves_a_vm_that_can_be_removed_and_nothing_else() -> Result<()> {
    let vms = Vms::new("killed")?;
    let mut process = counting(&vms, "tiny", "soft")?;
    let memory = vms.memory("tiny").ok_or("no memory")?;
    let mut files: Vec<_> = vms.files().iter().map(|file| vms.scratch.path().join(file)).collect();
    files.push(memory.clone());
    for file in ["vmm/tiny", "vmm.io/tiny.lock", "vmm.io/tiny.sock"] {
        assert!(files.contains(&vms.scratch.path().join(file)), "{file}");
    }
    for file in files {
        assert_eq!(file.symlink_metadata()?.mode() & 0o777, 0o600, "{}", file.display());
    }
    let before = vms.register("tiny", "rax");
    process.signal(Signal::KILL)?;
    assert_eq!(process.wait(END)?.status.signal(), Some(Signal::KILL.as_raw()));
    assert!(before > 0);
    assert_eq!(vms.phase("tiny"), Phase::Running);
    let error = vms.refusal(&["--vm=tiny", "--get-rip"]);
    assert_eq!(error, "bhyvectl: VM tiny was killed while it ran: its registers are lost\n");
    assert_eq!(vms.tell(&["--vm=tiny", "--get-exit-reason"]), "exit_reason[0]\tkilled\n");
    let (status, _, said) = vms.bhyve(&["tiny"]);
    assert_eq!(status, Some(4));
    assert!(
        said.starts_with("bhyve: VM tiny was killed while it ran: load it again, or remove it"),
        "{said}"
    );
    assert!(memory.exists());
    vms.tell(&["--vm=tiny", "--destroy"]);
    assert_eq!(vms.files(), Vec::<String>::new());
    assert!(!memory.exists());
    Ok(())
}

#[test]
fn a_busy_vcpu_is_stopped_for_a_look_and_goes_on() -> Result<()> {
    let vms = Vms::new("busy")?;
    for engine in ["soft", "kvm"] {
        load_tiny(&vms, "probe", SAY_A);
        let (status, _, said) = vms.bhyve(&["-D", "-o", &format!("engine={engine}"), "probe"]);
        if status != Some(2) {
            eprintln!("left out: {said}");
            continue;
        }
        let mut process = counting(&vms, "tiny", engine)?;
        let mut last = 0;
        for _ in 0..20 {
            // The host may be too busy to let it run between two looks.
            let deadline = Instant::now() + END;
            let now = loop {
                let now = vms.register("tiny", "rax");
                if now != last {
                    break now;
                }
                assert!(Instant::now() < deadline, "{engine}: it does not go on");
            };
            last = now;
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!((COUNT..COUNT + 3).contains(&vms.register("tiny", "rip")));
        let text = vms.tell(&["--vm=tiny", "--get-all"]);
        assert!(statistic(&text, "total number of vm exits").is_none_or(|exits| exits > 0), "{text}");
        assert!(statistic(&text, "vcpu total runtime").is_none_or(|cycles| cycles > 1000), "{text}");
        // LINT1 is masked after power-on.
        vms.tell(&["--vm=tiny", "--assert-lapic-lvt=1"]);
        assert!(vms.refusal(&["--vm=tiny", "--assert-lapic-lvt=7"]).contains("a local APIC has no pin 7"));
        // It has no table of handlers, so an NMI is its end.
        vms.tell(&["--vm=tiny", "--inject-nmi"]);
        assert_eq!(process.wait(END)?.status.code(), Some(3), "{engine}");
        vms.tell(&["--vm=tiny", "--destroy"]);
    }
    Ok(())
}

#[test]
fn destroying_a_running_vm_ends_it_first() -> Result<()> {
    let vms = Vms::new("destroy")?;
    let mut process = counting(&vms, "tiny", "soft")?;
    let options = Options { size: 16 << 20, ..Options::default() };
    let error = Loading::new(&vms.directory(), &Name::new("tiny")?, &options).unwrap_err().to_string();
    assert_eq!(error, format!("VM tiny is running already (pid {})", process.id()));
    let begin = Instant::now();
    vms.tell(&["--vm=tiny", "--destroy"]);
    assert!(begin.elapsed() < Duration::from_secs(9), "it ended without being killed");
    assert_eq!(process.wait(END)?.status.code(), Some(1));
    assert_eq!(vms.files(), Vec::<String>::new());
    Ok(())
}

/// The value of a statistic.
fn statistic(text: &str, name: &str) -> Option<u64> {
    text.lines().find(|line| line.starts_with(name))?.split('\t').nth(1)?.parse().ok()
}

#[test]
fn a_loaded_linux_is_taken_over_and_leaves_its_memory() -> Result<()> {
    let Some(lab) = lab() else { return Ok(()) };
    let vms = Vms::new("linux")?;
    let machine = lab.machine("guest").loaded();
    load_linux(&vms, &machine)?;
    let mut guest = Guest::spawn_in(&machine, &lab.vmm, &vms.path())?;
    guest.wait_shell(BOOT)?;
    // All of the loader's memory, and the tables that bhyve adds to it.
    let total: u64 = guest.check("awk '/MemTotal/{print $2}' /proc/meminfo")?.trim().parse()?;
    assert!((400_000..530_000).contains(&total), "{total} kB");
    guest.check("dmesg | grep -q 'ACPI: RSDP'")?;
    guest.check("dmesg | grep -q 'SMBIOS'")?;
    guest.type_line("poweroff -f")?;
    guest.expect_exit(1, END)?;
    assert_eq!(vms.phase("guest"), Phase::Ended { status: 1 });
    assert_eq!(vms.files(), ["vmm.io/guest.lock", "vmm/guest"]);
    // Loading it again makes it as new; with -D nothing stays.
    load_linux(&vms, &machine)?;
    let mut guest = Guest::spawn_in(&machine.argument("-D"), &lab.vmm, &vms.path())?;
    guest.wait_shell(BOOT)?;
    guest.type_line("poweroff -f")?;
    guest.expect_exit(1, END)?;
    assert_eq!(vms.files(), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_running_linux_is_looked_into_and_steered() -> Result<()> {
    let Some(lab) = lab() else { return Ok(()) };
    let vms = Vms::new("steer")?;
    let machine = lab.machine("guest").cpus(2);
    let mut guest = Guest::spawn_in(&machine, &lab.vmm, &vms.path())?;
    guest.wait_shell(BOOT)?;
    let vm = "--vm=guest";

    let (status, _, said) = vms.bhyve(&["-o", "kernel.path=/nowhere", "guest"]);
    let line = format!("bhyve: VM guest is running already (pid {})\n", guest.process().id());
    assert_eq!((status, said), (Some(4), line));
    // The kernel lives in the upper half, or in user space of the shell.
    assert_ne!(vms.register("guest", "cr3"), 0);
    assert_eq!(vms.register("guest", "efer") & 0x500, 0x500);
    let all = vms.tell(&[vm, "--get-all", "--cpu=1"]);
    for line in [
        "cpu_topology:\tsockets=2, cores=1, threads=1, maxcpus=1024\n",
        "active cpus:\t 0, 1\n",
        "suspended cpus:\t (none)\n",
        "x2apic_state[1]\t0\n",
        "Capability \"hlt_exit\" is set on vcpu 1\n",
        "0   512MB       sysmem\n",
        "vcpu1 stats:\n",
    ] {
        assert!(all.contains(line), "{line:?} is not in\n{all}");
    }
    let statistics = || [0, 1].map(|cpu| vms.tell(&[vm, "--get-stats", &format!("--cpu={cpu}")]));
    let before = statistics();
    guest.check("for i in 1 2 3 4 5; do cat /proc/cpuinfo >/dev/null; sleep 0.1; done")?;
    let after = statistics();
    for name in ["total number of vm exits", "vcpu total runtime", "number of times in/out was intercepted"] {
        let sum = |texts: &[String; 2]| texts.iter().map(|text| statistic(text, name).unwrap()).sum::<u64>();
        let (a, b) = (sum(&before), sum(&after));
        assert!(a < b, "{name}: {a}, then {b}");
    }
    assert!(
        statistic(&after[0], "Resident memory").is_some_and(|bytes| (32 << 20..=512 << 20).contains(&bytes))
    );
    let error = vms.refusal(&[vm, "--set-rip=0"]);
    assert!(error.starts_with("bhyvectl: --set-rip: VM guest is running already (pid "), "{error}");
    assert!(vms.refusal(&[vm, "--cpu=2", "--get-rip"]).ends_with("there is no vCPU 2, the VM has 2\n"));

    nmis(&vms, &mut guest)?;
    clock(&vms, &mut guest)?;

    vms.tell(&[vm, "--force-reset"]);
    guest.expect_exit(0, END)?;
    assert_eq!(vms.tell(&[vm, "--get-exit-reason"]), "exit_reason[0]\treset\n");
    assert!(vms.tell(&[vm, "--get-rip", "--cpu=1"]).starts_with("rip[1]\t\t0x"));
    // A VM with a kernel of its own runs again as it is.
    let mut guest = Guest::spawn_in(&machine, &lab.vmm, &vms.path())?;
    guest.wait_shell(BOOT)?;
    vms.tell(&[vm, "--force-poweroff"]);
    guest.expect_exit(1, END)?;
    assert_eq!(vms.files(), ["vmm.io/guest.lock", "vmm/guest"]);
    Ok(())
}

/// The guest counts NMIs, on the vCPU that they are sent to.
fn nmis(vms: &Vms, guest: &mut Guest) -> Result<()> {
    let mut count = || -> Result<Vec<u64>> {
        // The kernel complains of NMIs on the console, between the lines.
        let text = guest.check("grep NMI: /proc/interrupts")?;
        let line =
            text.lines().find(|line| line.trim_start().starts_with("NMI:")).ok_or("no line of NMIs")?;
        Ok(line.split_whitespace().skip(1).take(2).map(str::parse).collect::<std::result::Result<_, _>>()?)
    };
    let before = count()?;
    for _ in 0..3 {
        vms.tell(&["--vm=guest", "--inject-nmi", "--cpu=1"]);
        std::thread::sleep(Duration::from_millis(100));
    }
    let after = count()?;
    assert_eq!((after[0], after[1]), (before[0], before[1] + 3));
    assert_eq!(statistic(&vms.tell(&["--vm=guest", "--get-stats", "--cpu=1"]), "number of NMIs"), Some(3));
    Ok(())
}

/// Clock and clock memory are the guest's.
fn clock(vms: &Vms, guest: &mut Guest) -> Result<()> {
    // 2030-01-02 03:04:05 UTC.
    let text = vms.tell(&["--vm=guest", "--set-rtc-time=1893553445", "--get-rtc-time"]);
    assert!(text.starts_with("rtc time 0x70dd5525: Wed Jan 02 03:04:05 2030\n"), "{text}");
    let seen = guest.check("cat /sys/class/rtc/rtc0/date || hwclock")?;
    assert!(seen.contains("2030") || seen.is_empty(), "{seen}");
    let words = ["--vm=guest", "--rtc-nvram-offset=0x60", "--set-rtc-nvram=0xa5", "--get-rtc-nvram"];
    assert_eq!(vms.tell(&words), "rtc nvram[096]: 0xa5\n");
    let error = vms.refusal(&["--vm=guest", "--set-rtc-nvram=1"]);
    assert!(error.contains("byte 0 of the clock is the time"), "{error}");
    Ok(())
}

#[test]
fn a_user_without_privileges_has_vms_too() -> Result<()> {
    let Some(lab) = lab() else { return Ok(()) };
    if !is_root() {
        eprintln!("left out: the other tests here run without privileges already");
        return Ok(());
    }
    let folder = Scratch::new("user")?;
    let open = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    open(folder.path(), 0o755)?;
    let home = folder.path().join("home");
    std::fs::create_dir(&home)?;
    std::os::unix::fs::chown(&home, Some(65534), Some(65534))?;
    let copy = |from: &Path, name: &str| -> Result<PathBuf> {
        let to = folder.path().join(name);
        std::fs::copy(from, &to)?;
        open(&to, 0o755)?;
        Ok(to)
    };
    let Vmm::Bhyve { binary, engine } = &lab.vmm else { return Ok(()) };
    let (kernel, initrd) = (copy(&lab.kernel.image, "kernel")?, copy(&lab.initrd, "initrd")?);
    let (bhyve, ctl) = (copy(binary, "bhyve")?, copy(&binary.with_file_name("bhyvectl"), "bhyvectl")?);
    let wrapper = folder.path().join("as-nobody");
    let script = "#!/bin/sh\nexec setpriv --reuid=65534 --regid=65534 --clear-groups \"$0.program\" \"$@\"\n";
    std::fs::write(&wrapper, script)?;
    open(&wrapper, 0o755)?;
    std::fs::rename(bhyve, folder.path().join("as-nobody.program"))?;

    let vmm = Vmm::Bhyve { binary: wrapper, engine: engine.clone() };
    let vms = home.join("vmm");
    let mut guest = Guest::spawn_in(&Machine::new("mine", &kernel, &initrd), &vmm, &vms)?;
    guest.wait_shell(BOOT)?;
    let ask = |words: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&ctl).args(words);
        command.env("VMM_DIR", &vms).output()
    };
    let stats = ask(&["--vm=mine", "--get-stats"])?;
    assert!(stats.status.success() && stats.stdout.starts_with(b"vcpu0 stats:\n"), "{stats:?}");
    let meta = vms.join("mine").symlink_metadata()?;
    assert_eq!((meta.uid(), meta.mode() & 0o777), (65534, 0o600));
    guest.type_line("poweroff -f")?;
    guest.expect_exit(1, END)?;
    assert!(ask(&["--vm=mine", "--destroy"])?.status.success());
    assert_eq!(std::fs::read_dir(&vms)?.count() + std::fs::read_dir(home.join("vmm.io"))?.count(), 0);
    Ok(())
}
