//! The program `grub-bhyve`.

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use media::disks::{DeviceMap, Disks};
use vm::{Directory, Loading, Name};

use super::options::{Options, Parsed, USAGE, parse};
use super::{ImagePaths, Kernel, Session, Settings, Stop, Target};
use crate::console::{Console, Terminal};

/// The map that is read if none is named, and none is no error.
const DEFAULT_MAP: &str = "/boot/grub/device.map";

/// Loads a kernel as the arguments say. The status is 0 if one is ready to run.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let options = match parse(arguments) {
        Ok(Parsed::Run(options)) => options,
        Ok(Parsed::Help) => return print(USAGE),
        Ok(Parsed::Version) => return print(concat!("grub-bhyve ", env!("CARGO_PKG_VERSION"), "\n")),
        Err(error) => {
            complain(&error);
            complain("try `grub-bhyve --help'");
            return ExitCode::from(1);
        }
    };
    match run(&options) {
        Ok(Stop::Booted) => ExitCode::SUCCESS,
        Ok(Stop::Left | Stop::InputEnd) => match crate::console::terminated() {
            Some(signal) => ExitCode::from(128u8.saturating_add(signal)),
            None => ExitCode::from(1),
        },
        Err(error) => {
            complain(&error);
            ExitCode::from(1)
        }
    }
}

fn print(text: &str) -> ExitCode {
    // A reader that has seen enough is no error.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn complain(message: &str) {
    let _ = writeln!(std::io::stderr(), "grub-bhyve: {message}");
}

fn run(options: &Options) -> Result<Stop, String> {
    let name = Name::new(&options.name).map_err(|e| e.to_string())?;
    let (disks, images) = disks(options)?;
    let directory = Directory::open().map_err(|e| e.to_string())?;
    let mut machine = Machine {
        loading: None,
        directory,
        name,
        options: vm::Options { size: options.memory, wired: options.wired, in_core: false },
        verbose: options.verbose,
    };
    machine.prepare()?;
    let mut console: Box<dyn Console> = match &options.console {
        Some(path) => Box::new(Terminal::open(path).map_err(|e| format!("{}: {e}", path.display()))?),
        None => Box::new(Terminal::stdio().map_err(|e| format!("standard input and output: {e}"))?),
    };
    let settings = Settings { serial_console: options.serial_console, text_screen: options.text_screen };
    let mut session = Session::new(console.as_mut(), &disks, &mut machine, settings);
    session.set_images(images);
    session.set_root(&options.root, &options.directory);
    Ok(session.run(&options.config))
}

/// The disks of the map, and the host.
fn disks(options: &Options) -> Result<(Disks, ImagePaths), String> {
    let path = options.device_map.as_deref().unwrap_or(Path::new(DEFAULT_MAP));
    let missing_is_fine = options.device_map.is_none();
    let mut map = if missing_is_fine && !path.exists() {
        DeviceMap::default()
    } else {
        DeviceMap::read(path).map_err(|e| e.to_string())?
    };
    let disks = map.open().map_err(|e| e.to_string())?;
    for warning in &map.warnings {
        complain(&format!("warning: {}: {warning}", path.display()));
    }
    if options.verbose {
        for entry in &map.entries {
            complain(&format!("({}) is {}", entry.name, entry.path.display()));
        }
    }
    match media::fs::host::HostFs::open(Path::new("/")) {
        Ok(host) => disks.set_host(Arc::new(host)),
        Err(error) => complain(&format!("warning: no (host): {error}")),
    }
    let images = map.entries.into_iter().map(|e| (e.name, e.path)).collect();
    Ok((disks, images))
}

/// The VM that gets the kernel.
struct Machine {
    loading: Option<Loading>,
    directory: Directory,
    name: Name,
    options: vm::Options,
    verbose: bool,
}

impl Machine {
    fn prepare(&mut self) -> Result<(), String> {
        // The old one gives up the VM first.
        self.loading = None;
        let loading = Loading::new(&self.directory, &self.name, &self.options).map_err(|e| e.to_string())?;
        self.loading = Some(loading);
        Ok(())
    }
}

impl Target for Machine {
    fn boot(&mut self, kernel: &Kernel) -> Result<(), String> {
        if self.loading.is_none() {
            self.prepare()?;
        }
        let Some(loading) = self.loading.take() else { return Err("there is no virtual machine".into()) };
        // After an error the memory is half filled: the next kernel gets a new VM.
        let entry = kernel.load(loading.memory(), &loading.e820()).map_err(|e| e.to_string())?;
        loading.finish(&entry, "grub-bhyve").map_err(|e| e.to_string())?;
        if self.verbose {
            complain(&format!("{} is loaded, entry at {:#x}", self.name.as_str(), entry.rip));
        }
        Ok(())
    }
}
