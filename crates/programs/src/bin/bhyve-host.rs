//! Prepares a host: checks it, makes bridges, taps and null-modem pairs, and what they need at boot.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

use programs::setup;

fn main() -> ExitCode {
    match setup::run(&mut lexopt::Parser::from_env()) {
        Ok(code) => code,
        Err(setup::Failure(text, code)) => {
            let _ = writeln!(std::io::stderr(), "bhyve-host: {text}");
            ExitCode::from(code)
        }
    }
}
