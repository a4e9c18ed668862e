//! FreeBSD's loader: reads loader.conf(5), shows the boot menu and the `OK` prompt, and chooses a
//! kernel with its modules. What is chosen is a [`Plan`], to be put into guest memory.

mod commands;
pub mod conf;
mod config;
mod devices;
mod environment;
mod files;
mod hints;
mod loader;
mod menu;
mod prompt;
#[cfg(test)]
mod tests;
mod words;

use std::path::PathBuf;

pub use devices::{Devices, MAX_DISKS};
use loader::{Loader, Stop};
pub use loader::{Outcome, Plan};

use crate::console::Console;

/// What the command line says.
#[derive(Default)]
pub struct Options {
    /// Variables (`-e`), in order; a later one counts.
    pub environment: Vec<(String, String)>,
}

/// What every kernel is told, before the user's own variables.
const ALWAYS: [(&str, &str); 4] =
    [("smbios.bios.vendor", "BHYVE"), ("boot_serial", "1"), ("console", "userboot"), ("LINES", "24")];

/// Runs the loader. An error is one that leaves nothing to do: no device, a bad variable.
pub fn run(console: &mut dyn Console, mut devices: Devices, options: &Options) -> Result<Outcome, String> {
    devices.probe();
    let boot_device = devices.boot_device();
    let mut loader = Loader::new(console, devices);
    for (name, value) in ALWAYS {
        loader.env.set(name, value)?;
    }
    if let Some(device) = boot_device {
        loader.set("currdev", &device)?;
    }
    for (name, value) in &options.environment {
        loader.set(name, value).map_err(|why| format!("-e {name}={value}: {why}"))?;
    }
    if loader.env.get("currdev").is_none() {
        return Err(format!("nothing to boot from: {}", loader.devices.trouble()));
    }
    match start(&mut loader, &options.environment) {
        Err(Stop::End(outcome)) => Ok(outcome),
        Err(Stop::Error(why)) => Err(why),
        Ok(()) => Ok(Outcome::Quit),
    }
}

/// Configuration, menu, prompt.
fn start(loader: &mut Loader, preset: &[(String, String)]) -> Result<(), Stop> {
    let device = loader.env.get("currdev").unwrap_or_default().to_owned();
    loader.environments = loader.devices.environments(&device);
    loader.say(&format!("FreeBSD boot from {device}"));
    loader.read_config()?;
    // What the user said on the command line is not for files to change.
    for (name, value) in preset {
        loader.set(name, value)?;
    }
    let result =
        if loader.env.is_yes("beastie_disable") { loader.run_line("autoboot") } else { loader.menu() };
    match result {
        Err(Stop::Error(why)) => loader.say(&why),
        result => result?,
    }
    loader.prompt()
}

/// The disks of the command line.
pub fn open_disks(paths: &[PathBuf]) -> Result<Devices, (PathBuf, String)> {
    let mut devices = Devices::default();
    for path in paths {
        devices.add_disk(path).map_err(|why| (path.clone(), why))?;
    }
    Ok(devices)
}
