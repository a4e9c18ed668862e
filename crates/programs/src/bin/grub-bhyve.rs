//! Loads a kernel out of disk images into a virtual machine: GRUB's shell, menu and script language.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    loaders::grub::main(std::env::args_os().skip(1))
}
