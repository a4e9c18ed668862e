//! Building the programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use guest_tests::Result;

/// The top of the tree.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Builds `bhyve` with optimizations and gives its path; `$BHYVE` names another to use as it is.
pub fn bhyve() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("BHYVE") {
        return Ok(std::fs::canonicalize(path)?);
    }
    succeed(cargo().args(["build", "--release", "--package", "programs", "--bins"]))?;
    // This program is TARGET/PROFILE/xtask, where TARGET is wherever cargo was told to build.
    let own = std::env::current_exe()?;
    let target = own.parent().and_then(Path::parent).ok_or("xtask is in no target folder")?;
    let path = target.join("release/bhyve");
    if !path.is_file() {
        return Err(format!("{}: not there after the build", path.display()).into());
    }
    Ok(path)
}

/// The cargo that runs us, at the top of the tree.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a program on our standard streams; anything but success is an error.
pub fn succeed(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().map_err(|error| format!("{name}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{name}: {status}").into()) }
}
