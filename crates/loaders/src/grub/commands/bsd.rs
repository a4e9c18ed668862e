//! FreeBSD, OpenBSD and NetBSD.

use boot::{Image, freebsd, netbsd, openbsd};

use super::linux::cmdline;
use super::{Command, command};
use crate::grub::error::{Error, Outcome, code};
use crate::grub::files;
use crate::grub::{Kernel, Session};

pub(super) const COMMANDS: &[Command] = &[
    command("kfreebsd", "[-DhaCcdgmnpqrsv] FILE [ARG...]", "Load a FreeBSD kernel.", kfreebsd),
    command("kfreebsd_loadenv", "FILE", "Read the kernel's environment from a file.", kfreebsd_loadenv),
    command(
        "kfreebsd_module",
        "FILE [type=TYPE] [ARG...]",
        "Load a file for the FreeBSD kernel.",
        kfreebsd_module,
    ),
    command(
        "kfreebsd_module_elf",
        "FILE [ARG...]",
        "Load a module for the FreeBSD kernel.",
        kfreebsd_module_elf,
    ),
    command("kopenbsd", "[-abcds] [-r DEVICE] [-h [comN[,SPEED]]] FILE", "Load an OpenBSD kernel.", kopenbsd),
    command("kopenbsd_ramdisk", "FILE", "Load a RAM disk for the OpenBSD kernel.", kopenbsd_ramdisk),
    command(
        "knetbsd",
        "[-12abcdmqsvxz] [-r DEVICE] [-h [comN[,SPEED]]] FILE",
        "Load a NetBSD kernel.",
        knetbsd,
    ),
    command("knetbsd_module", "FILE", "Load a file for the NetBSD kernel.", |s, a| {
        knetbsd_module(s, a, netbsd::ModuleKind::Raw)
    }),
    command("knetbsd_module_elf", "FILE", "Load a module for the NetBSD kernel.", |s, a| {
        knetbsd_module(s, a, netbsd::ModuleKind::Elf)
    }),
];

/// Variables of GRUB's that become the kernel's.
const FREEBSD_PREFIX: &str = "kFreeBSD.";
/// Largest file of variables.
const MAX_ENV: u64 = 1 << 20;
/// Most files beside a kernel.
const MAX_MODULES: usize = 256;
/// Bits a second where the user doesn't say.
const SPEED: u32 = 9600;
/// A PC's serial lines.
const PORTS: [u16; 4] = [0x3f8, 0x2f8, 0x3e8, 0x2e8];

#[allow(clippy::needless_pass_by_value)] // for map_err
fn bad_os(error: boot::Error) -> Error {
    Error::new(code::BAD_OS, error.to_string())
}

/// The path without its device, as the kernel is told it.
fn path_of(file: &str) -> &str {
    file.strip_prefix('(').and_then(|f| f.split_once(')')).map_or(file, |(_, path)| path)
}

/// Options of one letter in front of the file.
struct Letters<'a> {
    flags: u32,
    root: Option<&'a str>,
    serial: Option<(u8, u32)>,
    rest: &'a [String],
}

/// Reads options; `known` says which bit a letter is. `r` takes a device and `h` a serial line,
/// if `devices` is set.
fn letters(arguments: &[String], devices: bool, known: impl Fn(char) -> Option<u32>) -> Outcome<Letters<'_>> {
    let mut out = Letters { flags: 0, root: None, serial: None, rest: arguments };
    while let Some((first, rest)) = out.rest.split_first() {
        let Some(letters) = first.strip_prefix('-').filter(|l| !l.is_empty()) else { break };
        out.rest = rest;
        for letter in letters.chars() {
            match letter {
                'r' if devices => {
                    let (device, rest) = out.rest.split_first().ok_or_else(|| Error::expected("device"))?;
                    (out.root, out.rest) = (Some(device.as_str()), rest);
                }
                'h' if devices => {
                    out.serial = Some((0, SPEED));
                    if let Some((line, rest)) = out.rest.split_first()
                        && let Some(line) = line.strip_prefix("com")
                    {
                        out.serial = Some(serial(line)?);
                        out.rest = rest;
                    }
                }
                letter => {
                    out.flags |= known(letter)
                        .ok_or_else(|| Error::argument(format!("unknown argument `-{letter}'")))?;
                }
            }
        }
    }
    Ok(out)
}

/// `0` or `0,115200`
fn serial(line: &str) -> Outcome<(u8, u32)> {
    let bad = || Error::argument(format!("no serial line `com{line}'"));
    let (unit, speed) = line.split_once(',').unwrap_or((line, ""));
    let unit: u8 = unit.parse().map_err(|_| bad())?;
    let speed = if speed.is_empty() { SPEED } else { speed.parse().map_err(|_| bad())? };
    if usize::from(unit) < PORTS.len() && speed > 0 { Ok((unit, speed)) } else { Err(bad()) }
}

fn kfreebsd(session: &mut Session, arguments: &[String]) -> Outcome {
    use freebsd::howto;
    session.kernel = None;
    let letters = letters(arguments, false, |letter| {
        Some(match letter {
            'D' => howto::MULTIPLE,
            'h' => howto::SERIAL,
            'a' => howto::ASKNAME,
            'C' => howto::CDROM,
            'c' => howto::CONFIG,
            'd' => howto::KDB,
            'g' => howto::GDB,
            'm' => howto::MUTE,
            'n' => howto::NOINTR,
            'p' => howto::PAUSE,
            'q' => howto::QUIET,
            'r' => howto::DFLTROOT,
            's' => howto::SINGLE,
            'v' => howto::VERBOSE,
            _ => return None,
        })
    })?;
    let (file, rest) = letters.rest.split_first().ok_or_else(|| Error::expected("filename"))?;
    let image = Image::new(file.as_str(), session.open(file)?);
    let args = cmdline(rest);
    let args = Some(args.as_str()).filter(|a| !a.is_empty());
    let preload = freebsd::Preload::kernel(image, path_of(file), args).map_err(bad_os)?;
    session.kernel = Some(Kernel::FreeBsd { preload, howto: letters.flags, environment: Vec::new() });
    Ok(())
}

/// Reads lines as device.hints and loader.conf have them into variables.
fn kfreebsd_loadenv(session: &mut Session, arguments: &[String]) -> Outcome {
    let [file] = arguments else { return Err(Error::expected("filename")) };
    if !matches!(session.kernel, Some(Kernel::FreeBsd { .. })) {
        return Err(Error::argument("you need to load the FreeBSD kernel first"));
    }
    let source = session.open(file)?;
    let text = files::read(&source, file, MAX_ENV)?;
    for line in String::from_utf8_lossy(&text).lines() {
        let line = line.trim();
        if line.starts_with('#') {
            continue;
        }
        if let Some((name, value)) = line.split_once('=') {
            let value = match value.strip_prefix('"') {
                Some(quoted) => quoted.split('"').next().unwrap_or_default(),
                None => value.split_whitespace().next().unwrap_or_default(),
            };
            session.env.set(&format!("{FREEBSD_PREFIX}{}", name.trim()), value)?;
        }
    }
    Ok(())
}

fn preload<'s>(session: &'s mut Session) -> Outcome<&'s mut freebsd::Preload> {
    match &mut session.kernel {
        Some(Kernel::FreeBsd { preload, .. }) if preload.files().len() <= MAX_MODULES => Ok(preload),
        Some(Kernel::FreeBsd { .. }) => Err(Error::argument(format!("more than {MAX_MODULES} modules"))),
        _ => Err(Error::argument("you need to load the FreeBSD kernel first")),
    }
}

fn kfreebsd_module(session: &mut Session, arguments: &[String]) -> Outcome {
    let (file, rest) = arguments.split_first().ok_or_else(|| Error::expected("filename"))?;
    let (kind, rest) = match rest.split_first() {
        Some((first, more)) => match first.strip_prefix("type=") {
            Some(kind) => (kind, more),
            None => ("raw", rest),
        },
        None => ("raw", rest),
    };
    let image = Image::new(file.as_str(), session.open(file)?);
    let args = cmdline(rest);
    let args = Some(args.as_str()).filter(|a| !a.is_empty());
    preload(session)?.raw(image, path_of(file), kind, args).map(drop).map_err(bad_os)
}

fn kfreebsd_module_elf(session: &mut Session, arguments: &[String]) -> Outcome {
    let (file, rest) = arguments.split_first().ok_or_else(|| Error::expected("filename"))?;
    let image = Image::new(file.as_str(), session.open(file)?);
    let args = cmdline(rest);
    let args = Some(args.as_str()).filter(|a| !a.is_empty());
    preload(session)?.module(image, path_of(file), args).map(drop).map_err(bad_os)
}

fn kopenbsd(session: &mut Session, arguments: &[String]) -> Outcome {
    use openbsd::howto;
    session.kernel = None;
    let letters = letters(arguments, true, |letter| {
        Some(match letter {
            'a' => howto::ASKNAME,
            'b' => howto::HALT,
            'c' => howto::CONFIG,
            's' => howto::SINGLE,
            'd' => howto::KDB,
            _ => return None,
        })
    })?;
    let [file] = letters.rest else { return Err(Error::expected("one filename")) };
    let root = match letters.root {
        Some(name) => openbsd::boot_device(name)
            .ok_or_else(|| Error::argument(format!("`{name}' is not a device of OpenBSD")))?,
        None => 0,
    };
    let image = Image::new(file.as_str(), session.open(file)?);
    let kernel = openbsd::Kernel::read(image).map_err(bad_os)?;
    let duid = if root == 0 { disk_id(session, file) } else { None };
    let console = letters.serial.map(|(unit, speed)| openbsd::Serial { unit, speed });
    let howto = letters.flags | if console.is_some() { howto::SERCONS } else { 0 };
    session.kernel = Some(Kernel::OpenBsd { kernel, howto, root, duid, console, ramdisk: None });
    Ok(())
}

/// The identifier in the label of the disk that a file is on: in the second sector of the partition
/// or disk (`LABELSECTOR`, sys/arch/amd64/include/disklabel.h).
fn disk_id(session: &Session, file: &str) -> Option<[u8; 8]> {
    let place = files::place(file, session.env.get("root")).ok()?;
    let device = session.disks.device(&place.device).ok()?;
    // `hd0,msdos4,openbsd1` is in `hd0,msdos4`, which has the label.
    let around = device.name.rsplit_once(',').map_or(device.name.as_str(), |(around, _)| around);
    [device.name.as_str(), around].into_iter().find_map(|name| {
        let sector = session.disks.source(name).ok()?.read_vec(512, 512).ok()?;
        openbsd::label_duid(&sector)
    })
}

fn kopenbsd_ramdisk(session: &mut Session, arguments: &[String]) -> Outcome {
    let [file] = arguments else { return Err(Error::expected("one filename")) };
    let image = Image::new(file.as_str(), session.open(file)?);
    match &mut session.kernel {
        Some(Kernel::OpenBsd { ramdisk, .. }) => {
            *ramdisk = Some(image);
            Ok(())
        }
        _ => Err(Error::argument("you need to load the OpenBSD kernel first")),
    }
}

fn knetbsd(session: &mut Session, arguments: &[String]) -> Outcome {
    use netbsd::howto;
    session.kernel = None;
    let letters = letters(arguments, true, |letter| {
        Some(match letter {
            '1' => howto::NOSMP,
            '2' => howto::NOACPI,
            'a' => howto::ASKNAME,
            'b' => howto::HALT,
            'c' => howto::USERCONF,
            'd' => howto::KDB,
            'm' => howto::MINIROOT,
            'q' => howto::QUIET,
            's' => howto::SINGLE,
            'v' => howto::VERBOSE,
            'x' => howto::DEBUG,
            'z' => howto::SILENT,
            _ => return None,
        })
    })?;
    let [file] = letters.rest else { return Err(Error::expected("one filename")) };
    let image = Image::new(file.as_str(), session.open(file)?);
    let kernel = netbsd::Kernel::read(image).map_err(bad_os)?;
    let console = letters.serial.map(|(unit, speed)| netbsd::Serial {
        port: PORTS.get(usize::from(unit)).copied().unwrap_or(PORTS[0]),
        speed,
    });
    session.kernel = Some(Kernel::NetBsd {
        kernel,
        howto: letters.flags,
        path: path_of(file).rsplit('/').next().unwrap_or_default().to_owned(),
        root: letters.root.map(str::to_owned),
        console,
        modules: Vec::new(),
    });
    Ok(())
}

fn knetbsd_module(session: &mut Session, arguments: &[String], kind: netbsd::ModuleKind) -> Outcome {
    let [file] = arguments else { return Err(Error::expected("one filename")) };
    let image = Image::new(file.as_str(), session.open(file)?);
    let name = path_of(file).rsplit('/').next().unwrap_or_default().to_owned();
    match &mut session.kernel {
        Some(Kernel::NetBsd { modules, .. }) if modules.len() < MAX_MODULES => {
            modules.push(netbsd::Module { image, name, kind });
            Ok(())
        }
        Some(Kernel::NetBsd { .. }) => Err(Error::argument(format!("more than {MAX_MODULES} modules"))),
        _ => Err(Error::argument("you need to load the NetBSD kernel first")),
    }
}

/// The variables of GRUB's that are meant for the kernel.
pub(in crate::grub) fn freebsd_environment(session: &Session) -> Vec<(String, String)> {
    let variables = session.env.all().filter_map(|(name, value, _)| {
        Some((name.strip_prefix(FREEBSD_PREFIX)?.to_owned(), value.to_owned()))
    });
    variables.collect()
}
