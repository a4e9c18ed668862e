//! Finding and opening devices.

use media::disks::Map;
use media::disks::Wanted;

use super::arguments::{Flag, Parsed, parse};
use super::{Command, command};
use crate::console::secret;
use crate::grub::Session;
use crate::grub::error::{Error, Outcome, code};
use crate::grub::files::device_error;

pub(super) const COMMANDS: &[Command] = &[
    command(
        "search",
        "[--file|--label|--fs-uuid] [--set[=NAME]] [--no-floppy] [--hint DEVICE] NAME",
        "Find a device by a file, label or UUID.",
        search,
    ),
    command("search.file", "FILE [NAME] [HINT...]", "Find a device by a file.", |s, a| {
        search_by(s, a, By::File)
    }),
    command("search.fs_label", "LABEL [NAME] [HINT...]", "Find a device by its label.", |s, a| {
        search_by(s, a, By::Label)
    }),
    command("search.fs_uuid", "UUID [NAME] [HINT...]", "Find a device by its UUID.", |s, a| {
        search_by(s, a, By::Uuid)
    }),
    command("search_fs_file", "FILE [NAME] [HINT...]", "Find a device by a file.", |s, a| {
        search_by(s, a, By::File)
    }),
    command("search_label", "LABEL [NAME] [HINT...]", "Find a device by its label.", |s, a| {
        search_by(s, a, By::Label)
    }),
    command("search_fs_uuid", "UUID [NAME] [HINT...]", "Find a device by its UUID.", |s, a| {
        search_by(s, a, By::Uuid)
    }),
    command("loopback", "[-d] NAME [FILE]", "Make a device of a file, or remove it.", loopback),
    command("probe", "[--set=NAME] [-d|-p|-f|-u|-l] DEVICE", "Show what is known of a device.", probe),
    command("cryptomount", "[-p PASSPHRASE] DEVICE|-u UUID|-a", "Open encrypted devices.", cryptomount),
];

/// Most loop devices that are made in a session: each may be in the one that it replaces.
const MAX_LOOPS_MADE: usize = 256;
/// Most loop devices.
const MAX_LOOPS: usize = 16;

#[derive(Clone, Copy)]
enum By {
    File,
    Label,
    Uuid,
}

impl By {
    fn wanted(self, name: &str) -> Wanted<'_> {
        match self {
            Self::File => Wanted::File(name.as_bytes()),
            Self::Label => Wanted::Label(name),
            Self::Uuid => Wanted::Uuid(name),
        }
    }
}

fn not_found(name: &str) -> Error {
    Error::new(code::FILE_NOT_FOUND, format!("no such device: {name}"))
}

/// Hints name devices; some are made for firmware that isn't here and name none.
fn device_of_hint(hint: &str) -> &str {
    // `hd0,msdos1`, `(hd0,msdos1)`, `ieee1275//disk@0,msdos1`; a comma at the end means that
    // partitions of the disk are meant too.
    hint.trim_end_matches(',')
}

fn search(session: &mut Session, arguments: &[String]) -> Outcome {
    const FLAGS: &[Flag] = &[
        Flag::plain("file").short('f'),
        Flag::plain("label").short('l'),
        Flag::plain("fs-uuid").short('u'),
        Flag::optional("set").short('s'),
        Flag::plain("no-floppy").short('n'),
        Flag::many("hint").short('h'),
        Flag::many("hint-ieee1275"),
        Flag::many("hint-bios"),
        Flag::many("hint-baremetal"),
        Flag::many("hint-efi"),
        Flag::many("hint-arc"),
    ];
    let parsed = parse(FLAGS, arguments)?;
    // Hints of other platforms name no devices of this one.
    let hints: Vec<&str> = ["hint", "hint-bios", "hint-baremetal"]
        .into_iter()
        .flat_map(|flag| parsed.values(flag))
        .map(device_of_hint)
        .collect();
    let by = if parsed.has("label") {
        By::Label
    } else if parsed.has("fs-uuid") {
        By::Uuid
    } else {
        By::File
    };
    let (name, variable) = match parsed.rest.as_slice() {
        [] => return Err(Error::expected("one argument")),
        // `--set NAME WHAT` is how some write `--set=NAME WHAT`.
        [variable, name] if parsed.has("set") && parsed.value("set").is_none() => {
            (name, Some(variable.as_str()))
        }
        [name, ..] => (name, parsed.has("set").then(|| parsed.value("set").unwrap_or("root"))),
    };
    run_search(session, by.wanted(name), name, variable, &hints, !parsed.has("no-floppy"))
}

fn search_by(session: &mut Session, arguments: &[String], by: By) -> Outcome {
    let floppies = !arguments.iter().any(|a| a == "--no-floppy");
    let arguments: Vec<&String> = arguments.iter().filter(|a| *a != "--no-floppy").collect();
    let Some((name, rest)) = arguments.split_first() else { return Err(Error::expected("one argument")) };
    let variable = rest.first().map(|v| v.as_str());
    let hints: Vec<&str> = rest.iter().skip(1).map(|h| device_of_hint(h)).collect();
    run_search(session, by.wanted(name), name, variable, &hints, floppies)
}

fn run_search(
    session: &mut Session,
    wanted: Wanted,
    name: &str,
    variable: Option<&str>,
    hints: &[&str],
    floppies: bool,
) -> Outcome {
    if let Some(variable) = variable {
        let found = session.disks.find(wanted, hints, floppies).ok_or_else(|| not_found(name))?;
        session.env.set(variable, &found)
    } else {
        let found = session.disks.find_all(wanted, floppies);
        if found.is_empty() {
            return Err(not_found(name));
        }
        for device in &found {
            session.print_word(device);
        }
        session.print("\n");
        Ok(())
    }
}

fn loopback(session: &mut Session, arguments: &[String]) -> Outcome {
    let parsed = parse(&[Flag::plain("delete").short('d')], arguments)?;
    let Some((name, rest)) = parsed.rest.split_first() else { return Err(Error::expected("device name")) };
    if parsed.has("delete") {
        let removed = session.disks.remove_loop(name);
        session.loops.remove(name);
        return removed.map_err(|_| Error::new(code::UNKNOWN_DEVICE, "device not found"));
    }
    let file = rest.first().ok_or_else(|| Error::expected("filename"))?;
    let source = session.open(file)?;
    // One may lie in another: they must not pile up.
    if !session.loops.contains(name) && session.loops.len() >= MAX_LOOPS {
        return Err(Error::argument(format!("there are {MAX_LOOPS} loop devices already")));
    }
    if session.loops_made >= MAX_LOOPS_MADE {
        return Err(Error::argument(format!("{MAX_LOOPS_MADE} loop devices have been made")));
    }
    session.loops_made += 1;
    // The name gets the new file if it is a loop device already.
    let _ = session.disks.remove_loop(name);
    session.disks.add_loop(name, source).map_err(|error| Error::argument(format!("{name}: {error}")))?;
    session.loops.insert(name.clone());
    Ok(())
}

fn probe(session: &mut Session, arguments: &[String]) -> Outcome {
    const FLAGS: &[Flag] = &[
        Flag::value("set").short('s'),
        Flag::plain("driver").short('d'),
        Flag::plain("partmap").short('p'),
        Flag::plain("fs").short('f'),
        Flag::plain("fs-uuid").short('u'),
        Flag::plain("label").short('l'),
    ];
    let parsed = parse(FLAGS, arguments)?;
    let name = parsed.one("device")?;
    let device = name.strip_prefix('(').and_then(|n| n.strip_suffix(')')).unwrap_or(name);
    let text = probed(session, &parsed, device)?;
    if parsed.has("set") {
        session.env.set(parsed.value("set").unwrap_or("root"), &text)
    } else {
        session.print(&format!("{text}\n"));
        Ok(())
    }
}

fn probed(session: &Session, parsed: &Parsed, device: &str) -> Outcome<String> {
    let unknown = |error: media::Error| device_error(device, &error);
    if parsed.has("driver") {
        let disk = if device == "host" {
            "host".to_owned()
        } else {
            session.disks.device(device).map_err(unknown)?.disk
        };
        return Ok(driver(&disk).to_owned());
    }
    if parsed.has("partmap") {
        let map = session.disks.partition_map(device).map_err(unknown)?;
        return Ok(map.map_or("none", map_name).to_owned());
    }
    let fs = session.disks.filesystem(device).map_err(unknown)?;
    let missing =
        |what: &str| Error::new(code::NOT_IMPLEMENTED, format!("{what} for `{}' isn't there", fs.kind()));
    if parsed.has("fs") {
        Ok(fs.kind().to_owned())
    } else if parsed.has("fs-uuid") {
        fs.uuid().ok_or_else(|| missing("a UUID"))
    } else if parsed.has("label") {
        fs.label().ok_or_else(|| missing("a label"))
    } else {
        Err(Error::argument("unrecognised target: one of -d, -p, -f, -u and -l is needed"))
    }
}

fn map_name(map: Map) -> &'static str {
    map.name()
}

/// GRUB's name of what is behind a disk.
fn driver(disk: &str) -> &'static str {
    let kind: &str = disk.trim_end_matches(|c: char| c.is_ascii_digit());
    match kind {
        _ if disk.starts_with("lvm/") || disk.starts_with("lvmid/") => "lvm",
        _ if disk.starts_with("md") => "mdraid",
        "crypto" => "cryptodisk",
        "host" => "host",
        "hd" | "cd" | "fd" => "biosdisk",
        _ => "loopback",
    }
}

fn cryptomount(session: &mut Session, arguments: &[String]) -> Outcome {
    const FLAGS: &[Flag] = &[
        Flag::value("uuid").short('u'),
        Flag::plain("all").short('a'),
        Flag::plain("boot").short('b'),
        Flag::value("password").short('p'),
    ];
    let parsed = parse(FLAGS, arguments)?;
    let encrypted = session.disks.encrypted();
    let bare = |uuid: &str| uuid.replace('-', "").to_ascii_lowercase();
    let wanted: Vec<(String, String)> = if let Some(uuid) = parsed.value("uuid") {
        encrypted.into_iter().filter(|(_, u)| bare(u) == bare(uuid)).collect()
    } else if parsed.has("all") || parsed.has("boot") {
        encrypted
    } else {
        let name = parsed.one("device name")?;
        let device = session.disks.device(name).map_err(|error| device_error(name, &error))?.name;
        let found: Vec<_> = encrypted.into_iter().filter(|(n, _)| *n == device).collect();
        if found.is_empty() {
            return Err(Error::new(code::BAD_ARGUMENT, format!("`{name}' is not an encrypted device")));
        }
        found
    };
    if wanted.is_empty() {
        return Err(Error::new(code::BAD_ARGUMENT, "no such cryptodisk found"));
    }
    let given = parsed.value("password").map(str::to_owned);
    wanted.iter().try_for_each(|(device, uuid)| unlock(session, device, uuid, given.as_deref()))
}

fn unlock(session: &mut Session, device: &str, uuid: &str, given: Option<&str>) -> Outcome {
    // Generated menus open devices in every entry.
    if session.disks.unlocked(device).is_some() {
        return Ok(());
    }
    let passphrase = match given {
        Some(given) => given.to_owned(),
        None => secret(session.console, &format!("Enter passphrase for {device} ({uuid}): "))
            .ok_or_else(|| Error::new(code::BAD_ARGUMENT, "passphrase not supplied"))?,
    };
    let opened = session.disks.unlock(device, passphrase.as_bytes());
    opened.map(drop).map_err(|error| Error::new(code::ACCESS_DENIED, format!("{device}: {error}")))
}
