//! Linux.

use boot::Image;

use super::{Command, command};
use crate::grub::error::{Error, Outcome, code};
use crate::grub::{Kernel, Session};

pub(super) const COMMANDS: &[Command] = &[
    command("linux", "FILE [ARG...]", "Load Linux.", linux),
    command("linux16", "FILE [ARG...]", "Load Linux.", linux),
    command("linuxefi", "FILE [ARG...]", "Load Linux.", linux),
    command("initrd", "FILE...", "Load initial RAM disks for Linux.", initrd),
    command("initrd16", "FILE...", "Load initial RAM disks for Linux.", initrd),
    command("initrdefi", "FILE...", "Load initial RAM disks for Linux.", initrd),
];

/// What the guest's first serial line is called.
const SERIAL_CONSOLE: &str = "console=ttyS0";
/// Most RAM disks.
const MAX_INITRDS: usize = 64;

/// Arguments as one line. What the shell took apart stays apart for the kernel: arguments with
/// blanks get quotes, and quotes and backslashes get a backslash.
pub(super) fn cmdline(arguments: &[String]) -> String {
    let mut out = String::new();
    for argument in arguments {
        if !out.is_empty() {
            out.push(' ');
        }
        let blanks = argument.contains(' ');
        if blanks {
            out.push('"');
        }
        for c in argument.chars() {
            if matches!(c, '\\' | '\'' | '"') {
                out.push('\\');
            }
            out.push(c);
        }
        if blanks {
            out.push('"');
        }
    }
    out
}

fn linux(session: &mut Session, arguments: &[String]) -> Outcome {
    // Whatever comes of this, the old kernel is not meant any more.
    session.kernel = None;
    let (file, rest) = arguments.split_first().ok_or_else(|| Error::expected("filename"))?;
    let source = session.open_as_it_is(file)?;
    let kernel = boot::linux::Kernel::read(Image::new(file.as_str(), source))
        .map_err(|error| Error::new(code::BAD_OS, error.to_string()))?;
    let mut words = Vec::with_capacity(rest.len() + 2);
    let has_serial = rest.iter().any(|a| a.split(',').next() == Some(SERIAL_CONSOLE));
    if session.settings.serial_console && !has_serial {
        words.push(SERIAL_CONSOLE.to_owned());
    }
    words.push(format!("BOOT_IMAGE={file}"));
    words.extend_from_slice(rest);
    session.kernel = Some(Kernel::Linux {
        kernel,
        cmdline: cmdline(&words),
        initrds: Vec::new(),
        text_screen: session.settings.text_screen,
    });
    Ok(())
}

fn initrd(session: &mut Session, arguments: &[String]) -> Outcome {
    if arguments.is_empty() {
        return Err(Error::expected("filename"));
    }
    if !matches!(session.kernel, Some(Kernel::Linux { .. })) {
        return Err(Error::argument("you need to load the kernel first"));
    }
    if arguments.len() > MAX_INITRDS {
        return Err(Error::argument(format!("more than {MAX_INITRDS} RAM disks")));
    }
    let mut images = Vec::new();
    for file in arguments {
        if file.starts_with("newc:") {
            let message = format!("`{file}': files are not packed into an archive");
            return Err(Error::new(code::NOT_IMPLEMENTED, message));
        }
        images.push(Image::new(file.as_str(), session.open_as_it_is(file)?));
    }
    if let Some(Kernel::Linux { initrds, .. }) = &mut session.kernel {
        *initrds = images;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_stay_what_they_are() {
        let line = cmdline(&["a=1", "b=two words", r#"c="x\y""#].map(String::from));
        assert_eq!(line, r#"a=1 "b=two words" c=\"x\\y\""#);
    }
}
