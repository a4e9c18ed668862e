//! Runs a virtual machine: options and files become a tree, the machine is built from the tree.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use config::{Command, EXIT_USAGE, Error, LPC_HELP, Tree, USAGE};

fn main() -> ExitCode {
    match Command::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => print(USAGE, ExitCode::SUCCESS),
        Ok(Command::LpcHelp) => print(LPC_HELP, ExitCode::SUCCESS),
        Ok(Command::DeviceHelp) => print(&machine::device_help(), ExitCode::SUCCESS),
        Ok(Command::Run(tree)) => run(&tree).unwrap_or_else(|error| fail(&error, error.exit_code())),
        Err(error) => {
            let code = fail(&error, error.exit_code());
            if error.exit_code() == EXIT_USAGE {
                let _ = std::io::stderr().write_all(USAGE.as_bytes());
            }
            code
        }
    }
}

/// Prints or runs what the tree describes.
fn run(tree: &Tree) -> Result<ExitCode, Error> {
    if tree.flag("config.dump")? {
        // bhyve ends with status 1 here, so that no script takes a printed VM for one that ran.
        return Ok(print(&tree.dump(), ExitCode::from(1)));
    }
    machine::check_devices(tree)?;
    config::validate(tree, machine::device_keys)?;
    let unsupported = config::unsupported(tree, machine::device_keys);
    if let Some(first) = unsupported.first() {
        for error in &unsupported {
            complain(error);
        }
        return Ok(ExitCode::from(first.exit_code()));
    }
    let name = tree.get("name")?.unwrap_or_default();
    if let Err(error) = programs::title::set(&format!("bhyve: {name}")) {
        complain(format_args!("warning: can't set the process title: {error}"));
    }
    Ok(start(tree))
}

/// Runs the VM until it ends.
fn start(tree: &Tree) -> ExitCode {
    match machine::run(tree) {
        Ok(status) => ExitCode::from(status),
        Err(error) => fail(&error, error.exit_code()),
    }
}

/// Prints a text. A reader that has seen enough is no error.
fn print(text: &str, code: ExitCode) -> ExitCode {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    code
}

fn complain(message: impl Display) {
    let _ = writeln!(std::io::stderr(), "bhyve: {message}");
}

fn fail(message: &impl Display, code: u8) -> ExitCode {
    complain(message);
    ExitCode::from(code)
}
