//! Looks into virtual machines and steers them.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

use programs::bhyvectl;

fn main() -> ExitCode {
    let arguments = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    let outcome = bhyvectl::run(arguments);
    let status = ExitCode::from(outcome.status());
    // A reader that has seen enough is no error.
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(outcome.out.as_bytes()).and_then(|()| out.flush());
    let mut complaints = std::io::stderr().lock();
    if let Some(error) = &outcome.error {
        let _ = writeln!(complaints, "bhyvectl: {error}");
    }
    if outcome.usage {
        let _ = complaints.write_all(bhyvectl::usage().as_bytes());
    }
    status
}
