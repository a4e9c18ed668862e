//! A person at the host's shell, who types what the handbook says.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::guest::terminal;
use crate::{Console, Namespace, Process, Result, Scratch, bhyve_binary};

/// What the shell asks with. Typed commands are echoed, so it must not be in one of them.
const PROMPT: &str = "host# ";
/// How long a command may take that runs no guest.
const COMMAND: Duration = Duration::from_mins(1);

/// A shell on a terminal, in a folder of its own, with our programs in its path and no other VMs.
pub struct Shell {
    console: Console,
    process: Process,
    folder: Scratch,
    vms: Scratch,
    _terminal: File,
}

impl Shell {
    /// Starts it, in `namespace` if there is one.
    pub fn new(label: &str, namespace: Option<&Namespace>) -> Result<Self> {
        let (folder, vms) = (Scratch::new(label)?, Scratch::in_memory(label)?);
        std::fs::create_dir(folder.path().join("work"))?;
        let programs = bhyve_binary()?;
        let programs = programs.parent().unwrap_or(Path::new("/"));
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
        let search = std::env::var("PATH").unwrap_or_default();
        let (ours, theirs) = terminal()?;
        let mut command = match namespace {
            Some(namespace) => namespace.command("setsid"),
            None => Command::new("setsid"),
        };
        command
            .args(["--ctty", "sh", "-i"])
            .current_dir(folder.path().join("work"))
            .env("PATH", format!("{}:{}:{search}:/usr/sbin:/sbin", programs.display(), examples.display()))
            .env("VMM_DIR", vms.path().join("vmm"))
            .env("XDG_RUNTIME_DIR", folder.path())
            .env("TERM", "vt100")
            .env("PS1", PROMPT)
            .env_remove("ENV")
            .stdin(theirs.try_clone()?)
            .stdout(theirs.try_clone()?)
            .stderr(theirs.try_clone()?);
        let process = Process::spawn(&mut command)?;
        let console = Console::new(Some(ours.try_clone()?.into()), ours.into());
        let mut shell = Self { console, process, folder, vms, _terminal: theirs };
        shell.console.expect(PROMPT, COMMAND)?;
        Ok(shell)
    }

    /// Its current folder.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    /// Where its VMs are listed.
    pub fn vms(&self) -> PathBuf {
        self.vms.path().join("vmm")
    }

    /// The terminal.
    pub fn console(&mut self) -> &mut Console {
        &mut self.console
    }

    /// Types a line.
    pub fn type_line(&mut self, line: &str) -> Result<()> {
        self.console.send(&format!("{line}\n"))
    }

    /// Waits for some output.
    pub fn expect(&mut self, pattern: &str, timeout: Duration) -> Result<String> {
        self.console.expect(pattern, timeout)
    }

    /// Types a command and waits for its end; the answer is its status and what was on the terminal.
    pub fn run(&mut self, line: &str) -> Result<(u32, String)> {
        self.type_line(line)?;
        self.finish(COMMAND)
    }

    /// Waits until the shell asks again; its last command's status, and what was on the terminal.
    pub fn finish(&mut self, timeout: Duration) -> Result<(u32, String)> {
        let said = self.console.expect(PROMPT, timeout)?;
        // The quotes keep the echo of this line from being taken for its answer.
        self.console.send("echo 'stat'\"us=$?;\"\n")?;
        self.console.expect("status=", COMMAND)?;
        let status = self.console.expect(";", COMMAND)?;
        self.console.expect(PROMPT, COMMAND)?;
        let status = status.trim().parse().map_err(|_| format!("no status: {status:?}"))?;
        Ok((status, said))
    }

    /// Types a command that must succeed.
    pub fn check(&mut self, line: &str) -> Result<String> {
        match self.run(line)? {
            (0, said) => Ok(said),
            (status, said) => Err(format!("{line} ended with {status}:\n{said}").into()),
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // The terminal's hang-up ends most of what the shell has started.
        let _ = self.process.signal(Signal::HUP);
        let _ = self.process.wait(Duration::from_millis(200));
        // What went to the background has our folder of VMs in its environment.
        let own = format!("VMM_DIR={}", self.vms().display());
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            let ours = environment.split(|byte| *byte == 0).any(|variable| variable == own.as_bytes());
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
            if let Some(pid) = pid.filter(|_| ours) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}
