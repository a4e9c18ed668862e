//! Writes the array of all PCI devices: every file or folder module that declares
//! `pub const DEVICE: DeviceEntry` takes part by existing.

use std::fs;
use std::path::{Path, PathBuf};

/// What marks a device's file.
const MARK: &str = "pub const DEVICE: DeviceEntry";

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=src");
    let mut modules = Vec::new();
    visit(Path::new("src"), "crate", &mut modules)?;
    modules.sort();
    let lines: String = modules.iter().flat_map(|(_, module)| ["    ", module, "::DEVICE,\n"]).collect();
    let text = format!("const REGISTRY: &[DeviceEntry] = &[\n{lines}];\n");
    let out = std::env::var("OUT_DIR").map_err(std::io::Error::other)?;
    fs::write(PathBuf::from(out).join("registry.rs"), text)
}

/// Collects (device name, module path) of the devices below `folder`.
fn visit(folder: &Path, module: &str, modules: &mut Vec<(String, String)>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let Some(stem) = path.file_stem().and_then(|s| s.to_str()) else { continue };
        if path.is_dir() {
            visit(&path, &format!("{module}::{stem}"), modules)?;
        } else if path.extension().is_some_and(|e| e == "rs") && stem != "registry" {
            let text = fs::read_to_string(&path)?;
            let Some((_, rest)) = text.split_once(MARK) else { continue };
            let name = rest.split('"').nth(1).unwrap_or(stem).to_owned();
            let module = if stem == "mod" { module.to_owned() } else { format!("{module}::{stem}") };
            modules.push((name, module));
        }
    }
    Ok(())
}
