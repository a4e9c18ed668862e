//! A running guest.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::console::{Console, find};
use crate::{Error, Exit, Machine, Process, Result, Scratch, Vmm};

/// What our initramfs prints when it is up.
pub const MARKER: &str = "INIT-REACHED";

/// How long a command in the guest may take if nothing else is said.
const COMMAND: Duration = Duration::from_mins(2);

/// How long a typed line may take to show an effect.
const PATIENCE: Duration = Duration::from_secs(30);

/// A VMM process and the console of its guest; dropping it kills the process.
pub struct Guest {
    process: Process,
    console: Console,
    complaints: Console,
    commands: u32,
    monitor: Option<PathBuf>,
    _state: Scratch,
}

impl Guest {
    /// Starts a machine. Its state goes to a folder of its own, so that it meets no other VM.
    pub fn spawn(machine: &Machine, vmm: &Vmm) -> Result<Self> {
        let state = Scratch::new("vmm")?;
        let vms = state.path().join("vmm");
        Self::spawn_among(machine, vmm, &vms, state)
    }

    /// Starts a machine whose VM is listed in the folder `vms`.
    pub fn spawn_in(machine: &Machine, vmm: &Vmm, vms: &Path) -> Result<Self> {
        Self::spawn_among(machine, vmm, vms, Scratch::new("vmm")?)
    }

    fn spawn_among(machine: &Machine, vmm: &Vmm, vms: &Path, state: Scratch) -> Result<Self> {
        let mut machine = machine.clone();
        if matches!(vmm, Vmm::Qemu { .. }) {
            machine.monitor = Some(state.path().join("monitor"));
        }
        let mut command = machine.command(vmm);
        command.env("VMM_DIR", vms);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process::spawn(&mut command)?;
        let child = process.child();
        let input = child.stdin.take().ok_or("no stdin")?;
        let output = child.stdout.take().ok_or("no stdout")?;
        let console = Console::new(Some(input.into()), output.into());
        Self::new(process, console, machine.monitor, state)
    }

    /// As [`Guest::spawn`], with the console on a terminal, as a user has it. Gives the terminal
    /// too, in the state in which the VMM found it.
    pub fn spawn_on_terminal(machine: &Machine, vmm: &Vmm) -> Result<(Self, File)> {
        let state = Scratch::new("vmm")?;
        let (ours, theirs) = terminal()?;
        let mut command = machine.command(vmm);
        command.env("VMM_DIR", state.path().join("vmm"));
        command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(Stdio::piped());
        let process = Process::spawn(&mut command)?;
        let console = Console::new(Some(ours.try_clone()?.into()), ours.into());
        Ok((Self::new(process, console, None, state)?, theirs))
    }

    fn new(mut process: Process, console: Console, monitor: Option<PathBuf>, state: Scratch) -> Result<Self> {
        let complaints = process.child().stderr.take().ok_or("no stderr")?;
        let complaints = Console::new(None, complaints.into());
        Ok(Self { process, console, complaints, commands: 0, monitor, _state: state })
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The console.
    pub fn console(&mut self) -> &mut Console {
        &mut self.console
    }

    /// What the VMM wrote to its standard error.
    pub fn complaints(&self) -> String {
        self.complaints.transcript()
    }

    /// Waits for some text on the console; gives what came before it.
    pub fn expect(&mut self, pattern: &str, timeout: Duration) -> Result<String> {
        let result = self.console.expect(pattern, timeout);
        result.map_err(|error| self.explain(&error))
    }

    /// Waits for our initramfs; gives the time since the VMM was started.
    pub fn wait_marker(&mut self, timeout: Duration) -> Result<Duration> {
        self.expect(MARKER, timeout)?;
        Ok(self.process.started().elapsed())
    }

    /// Waits for the shell of our initramfs and makes it talk to a program.
    pub fn wait_shell(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        self.wait_marker(timeout)?;
        self.expect("# ", deadline.saturating_duration_since(Instant::now()))?;
        self.quieten()
    }

    /// Waits for a login prompt, logs in as root without a password, and makes the shell talk to a
    /// program.
    pub fn log_in(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        self.expect("login: ", timeout)?;
        self.answer("root", "# ", deadline)?;
        // A shell without line editing of its own; its prompt differs from the echo of this line.
        self.answer("exec env PS1='sh''ell> ' sh", "shell> ", deadline)?;
        self.quieten()
    }

    /// Types a line until it has an effect: what sets up a terminal may drop what was typed before.
    fn answer(&mut self, line: &str, pattern: &str, deadline: Instant) -> Result<()> {
        loop {
            self.type_line(line)?;
            let left = deadline.saturating_duration_since(Instant::now());
            match self.console.expect(pattern, left.min(PATIENCE)) {
                Ok(_) => return Ok(()),
                Err(error) if left <= PATIENCE => return Err(self.explain(&error)),
                Err(_) => {}
            }
        }
    }

    /// No echo, no prompt, no kernel messages in the output of commands.
    fn quieten(&mut self) -> Result<()> {
        self.run("stty -echo; PS1=; PS2=; dmesg -n 1")?;
        self.run("true").map(drop)
    }

    /// Runs a command in the guest's shell; gives its status and what it printed. It must not read
    /// the console.
    pub fn run(&mut self, command: &str) -> Result<(u32, String)> {
        self.run_for(command, COMMAND)
    }

    /// As [`Guest::run`], with the time that the command may take.
    pub fn run_for(&mut self, command: &str, timeout: Duration) -> Result<(u32, String)> {
        self.commands += 1;
        let number = self.commands;
        // Digits stand between the signs only in the output, not where the shell echoes its input.
        self.console.send(&format!("{command}\necho \"@@$?@{number}@@\"\n"))?;
        let end = format!("@{number}@@");
        let result = self.console.wait(&format!("the end of {command:?}"), timeout, |bytes| {
            let mut from = 0;
            loop {
                let at = from + find(bytes.get(from..)?, end.as_bytes())?;
                let before = bytes.get(..at)?;
                let digits = before.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
                let number = at - digits;
                let status = std::str::from_utf8(before.get(number..)?).ok()?.parse().ok();
                match status {
                    Some(status) if before.get(..number)?.ends_with(b"@@") => {
                        return Some((number - 2, at + end.len(), status));
                    }
                    _ => from = at + end.len(),
                }
            }
        });
        let (output, status) = result.map_err(|error| self.explain(&error))?;
        Ok((status, output.trim_start_matches('\n').to_owned()))
    }

    /// Runs a command that must succeed; gives what it printed.
    pub fn check(&mut self, command: &str) -> Result<String> {
        match self.run(command)? {
            (0, output) => Ok(output),
            (status, output) => Err(format!("{command:?} in the guest gave {status}:\n{output}").into()),
        }
    }

    /// Types a line without waiting for anything.
    pub fn type_line(&mut self, line: &str) -> Result<()> {
        self.console.send(&format!("{line}\n"))
    }

    /// Presses the power button: SIGTERM to bhyve, a monitor command to QEMU.
    pub fn power_button(&mut self) -> Result<()> {
        let Some(monitor) = &self.monitor else { return self.process.signal(Signal::TERM) };
        let mut stream = UnixStream::connect(monitor)?;
        stream.write_all(b"system_powerdown\n")?;
        // QEMU drops a command whose sender is gone before it was read.
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        let mut answer = [0; 256];
        let _ = stream.read(&mut answer);
        Ok(())
    }

    /// Waits for the VMM to end.
    pub fn wait_exit(&mut self, timeout: Duration) -> Result<Exit> {
        let exit = self.process.wait(timeout).map_err(|error| self.explain(&error))?;
        self.console.wait_closed(Duration::from_secs(1));
        self.complaints.wait_closed(Duration::from_secs(1));
        Ok(exit)
    }

    /// Waits for the VMM to end with this status.
    pub fn expect_exit(&mut self, status: i32, timeout: Duration) -> Result<Exit> {
        let exit = self.wait_exit(timeout)?;
        if exit.status.code() == Some(status) {
            return Ok(exit);
        }
        let error = format!("ended with {} where status {status} was due", exit.status);
        Err(self.explain(&error.into()))
    }

    /// Adds to an error what the VMM and the guest said.
    fn explain(&self, error: &Error) -> Error {
        let complaints = self.complaints();
        let transcript = self.console.transcript();
        let lines: Vec<&str> = transcript.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(30)..).unwrap_or_default().join("\n");
        format!("{error}\n--- standard error:\n{complaints}\n--- console:\n{tail}").into()
    }
}

/// A terminal for a VMM to run on: our end and its end.
fn terminal() -> Result<(File, File)> {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let theirs = rustix::fs::open(
        name.as_c_str(),
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    Ok((File::from(ours), File::from(theirs)))
}
