//! Puts the programs where a user's shell finds them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use guest_tests::Result;
use lexopt::{Arg, Parser};

use crate::build;

/// Everything that is installed beside `bhyve`.
const PROGRAMS: &[&str] = &["bhyve", "bhyvectl", "bhyveload", "bhyve-host", "grub-bhyve"];

/// Builds and installs.
pub fn run(parser: &mut Parser) -> Result<ExitCode> {
    let mut prefix = PathBuf::from("/usr/local");
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("prefix") => prefix = parser.value()?.into(),
            other => return Err(other.unexpected().into()),
        }
    }
    let built = build::bhyve()?;
    let built = built.parent().unwrap_or(Path::new("."));
    for program in PROGRAMS {
        install(&built.join(program), &prefix.join("bin").join(program))?;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/vmrun.sh");
    install(&script, &prefix.join("share/examples/bhyve/vmrun.sh"))?;
    Ok(ExitCode::SUCCESS)
}

/// Copies a file; a program that runs is replaced and not written to.
fn install(from: &Path, to: &Path) -> Result<()> {
    let fail = |error: std::io::Error| format!("{}: {error}", to.display());
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder).map_err(fail)?;
    }
    let fresh = to.with_extension("new");
    std::fs::copy(from, &fresh).map_err(fail)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o755)).map_err(fail)?;
    std::fs::rename(&fresh, to).map_err(fail)?;
    println!("{}", to.display());
    Ok(())
}
