//! A network namespace with a tap, so that tests need nothing of the host's network.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::Result;
use crate::artifacts::run;

/// The host's address on the tap, with its prefix length.
const ADDRESS: &str = "10.77.0.1/24";

/// A namespace; dropping it removes it with all that's in it.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace with a tap that is up and has an address. Only root can.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let namespace = Self { name: format!("bhyve-test-{}-{number}", std::process::id()) };
        ip(&["netns", "add", &namespace.name])?;
        let tap = namespace.tap();
        for words in [
            &["link", "set", "lo", "up"][..],
            &["tuntap", "add", "dev", tap, "mode", "tap"],
            &["addr", "add", ADDRESS, "dev", tap],
            &["link", "set", tap, "up"],
        ] {
            namespace.run("ip", words)?;
        }
        Ok(namespace)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of the tap in it.
    pub fn tap(&self) -> &'static str {
        "tap0"
    }

    /// The host's address on the tap.
    pub fn host_address(&self) -> &'static str {
        ADDRESS.split('/').next().unwrap_or(ADDRESS)
    }

    /// A command that runs in the namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs a program in the namespace to its end.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = run(self.command(program).args(arguments))?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&["netns", "delete", &self.name]);
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    run(Command::new("ip").args(arguments)).map(drop)
}
