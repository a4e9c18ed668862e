//! Multiboot 1.

use boot::Image;
use boot::multiboot::Module;

use super::linux::cmdline;
use super::{Command, command};
use crate::grub::error::{Error, Outcome, code};
use crate::grub::{Kernel, Session};

pub(super) const COMMANDS: &[Command] = &[
    command("multiboot", "FILE [ARG...]", "Load a Multiboot kernel.", multiboot),
    command("module", "[--nounzip] FILE [ARG...]", "Load a module for a Multiboot kernel.", module),
];

/// Most modules.
const MAX_MODULES: usize = 256;

fn multiboot(session: &mut Session, arguments: &[String]) -> Outcome {
    session.kernel = None;
    // GRUB's own switches that turn tricks of old kernels on or off.
    let quirks = arguments.iter().take_while(|a| a.starts_with("--")).count();
    if let Some(quirk) = arguments.first().filter(|_| quirks > 0) {
        return Err(Error::new(code::NOT_IMPLEMENTED, format!("`multiboot {quirk}' is not supported")));
    }
    let file = arguments.first().ok_or_else(|| Error::expected("filename"))?;
    let source = session.open(file)?;
    let kernel = boot::multiboot::Kernel::read(Image::new(file.as_str(), source))
        .map_err(|error| Error::new(code::BAD_OS, error.to_string()))?;
    session.kernel = Some(Kernel::Multiboot { kernel, cmdline: cmdline(arguments), modules: Vec::new() });
    Ok(())
}

fn module(session: &mut Session, arguments: &[String]) -> Outcome {
    let (raw, arguments) = match arguments.split_first() {
        Some((first, rest)) if first == "--nounzip" => (true, rest),
        _ => (false, arguments),
    };
    let file = arguments.first().ok_or_else(|| Error::expected("filename"))?;
    let source = if raw { session.open_as_it_is(file)? } else { session.open(file)? };
    match &mut session.kernel {
        Some(Kernel::Multiboot { modules, .. }) if modules.len() < MAX_MODULES => {
            let image = Image::new(file.as_str(), source);
            modules.push(Module { image, cmdline: cmdline(arguments).into_bytes() });
            Ok(())
        }
        Some(Kernel::Multiboot { .. }) => Err(Error::argument(format!("more than {MAX_MODULES} modules"))),
        _ => Err(Error::argument("you need to load the Multiboot kernel first")),
    }
}
