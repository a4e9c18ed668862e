//! The command line of bhyve(8).

use std::ffi::OsString;

use crate::error::{Error, Origin, Problem};
use crate::legacy;
use crate::slot::PciAddress;
use crate::tree::Tree;

/// Options without an argument.
const FLAGS: &str = "aehuwxACDHIPSWY";
/// Options with an argument, glued to the letter or following it.
const WITH_ARGUMENT: &str = "kfopGcsmlKUnr";

/// What a command line asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Run the VM of this tree (or print it, if `config.dump` is set).
    Run(Tree),
    /// `-h`: print [`crate::USAGE`].
    Help,
    /// `-s help`: list the PCI devices.
    DeviceHelp,
    /// `-l help`: list the LPC devices.
    LpcHelp,
}

impl Command {
    /// Reads a command line (without the name of the program), left to right; the last setting wins.
    ///
    /// Files named by `-k` are read in their turn. Keys are not checked here but by
    /// [`crate::validate`], once the whole tree is known.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Error> {
        let mut words = Vec::new();
        for argument in arguments {
            words.push(argument.into_string().map_err(|word| {
                usage(&Origin::new(word.to_string_lossy()), "arguments must be UTF-8 text".into())
            })?);
        }
        let mut tree = Tree::new();
        let mut words = words.into_iter();
        let mut operands: Vec<String> = Vec::new();
        // As getopt of the BSDs: options end at the first word that is none, or after "--".
        while let Some(word) = words.next() {
            if word == "--" {
                operands.extend(words.by_ref());
            } else if word == "-" || !word.starts_with('-') {
                operands.push(word);
                operands.extend(words.by_ref());
            } else if let Some(command) = bundle(&mut tree, &word, &mut words)? {
                return Ok(command);
            }
        }
        if let Some(extra) = operands.get(1) {
            let at = Origin::new(extra);
            return Err(usage(
                &at,
                format!("unexpected after the VM name {:?}", operands.first().map_or("", |s| s)),
            ));
        }
        match operands.first() {
            Some(name) => tree.set_from("name", name, &Origin::new(name))?,
            None if tree.raw("name").is_none() => {
                return Err(usage(&Origin::new("bhyve"), "the VM name is missing".into()));
            }
            None => {}
        }
        Ok(Self::Run(tree))
    }
}

fn usage(at: &Origin, message: String) -> Error {
    Error::new(at, Problem::Usage(message))
}

/// Reads one word of options: flags in a row, the last of which may take the rest or the next word.
fn bundle(
    tree: &mut Tree,
    word: &str,
    words: &mut impl Iterator<Item = String>,
) -> Result<Option<Command>, Error> {
    for (index, option) in word.char_indices().skip(1) {
        if FLAGS.contains(option) {
            if option == 'h' {
                return Ok(Some(Command::Help));
            }
            flag(tree, option)?;
        } else if WITH_ARGUMENT.contains(option) {
            let rest = word.get(index + 1..).unwrap_or_default();
            let argument = if rest.is_empty() { words.next() } else { Some(rest.to_owned()) };
            let Some(argument) = argument else {
                return Err(usage(&Origin::new(format!("-{option}")), "its argument is missing".into()));
            };
            match (option, argument.as_str()) {
                ('s', "help") => return Ok(Some(Command::DeviceHelp)),
                ('l', "help") => return Ok(Some(Command::LpcHelp)),
                _ => with_argument(tree, option, &argument)?,
            }
            return Ok(None);
        } else {
            let hint = match option {
                'b' | 'g' => "unknown option (bhyve no longer has it)",
                _ => "unknown option",
            };
            return Err(usage(&Origin::new(format!("-{option}")), hint.into()));
        }
    }
    Ok(None)
}

/// An option without an argument.
fn flag(tree: &mut Tree, option: char) -> Result<(), Error> {
    let (key, value) = match option {
        'A' => ("acpi_tables", "true"),
        'a' => ("x86.x2apic", "false"),
        'C' => ("memory.guest_in_core", "true"),
        'D' => ("destroy_on_poweroff", "true"),
        'e' => ("x86.strictio", "true"),
        'H' => ("x86.vmexit_on_hlt", "true"),
        'P' => ("x86.vmexit_on_pause", "true"),
        'S' => ("memory.wired", "true"),
        'u' => ("rtc.use_localtime", "false"),
        'W' => ("virtio_msix", "false"),
        'w' => ("x86.strictmsr", "false"),
        'x' => ("x86.x2apic", "true"),
        'Y' => ("x86.mptable", "false"),
        // -I: the I/O APIC is always there.
        _ => return Ok(()),
    };
    tree.set_from(key, value, &Origin::new(format!("-{option}")))
}

/// An option with an argument.
fn with_argument(tree: &mut Tree, option: char, argument: &str) -> Result<(), Error> {
    let origin = Origin::new(format!("-{option} {argument}"));
    match option {
        'k' => tree.read_file(argument),
        'o' => match argument.split_once('=') {
            Some((key, value)) => tree.set_from(key, value, &origin),
            None => Err(bad(&origin, "expected key=value")),
        },
        'c' => topology(tree, &origin, argument),
        'f' => firmware_file(tree, &origin, argument),
        'G' => debugger(tree, &origin, argument),
        'K' => tree.set_from("keyboard.layout", argument, &origin),
        'l' => legacy::lpc(tree, &origin, argument),
        'm' => tree.set_from("memory.size", argument, &origin),
        'n' => domain(tree, &origin, argument),
        'p' => pin(tree, &origin, argument),
        'r' => tree.set_from("restore.path", argument, &origin),
        's' => slot(tree, &origin, argument),
        _ => tree.set_from("uuid", argument, &origin),
    }
}

fn bad(origin: &Origin, message: impl Into<String>) -> Error {
    Error::new(origin, Problem::Argument(message.into()))
}

/// `-c [[cpus=]n][,sockets=n][,cores=n][,threads=n]`; an empty argument means one virtual CPU.
fn topology(tree: &mut Tree, origin: &Origin, argument: &str) -> Result<(), Error> {
    if argument.is_empty() {
        return ["cpus", "sockets", "cores", "threads"]
            .iter()
            .try_for_each(|key| tree.set_from(key, "1", origin));
    }
    for part in argument.split(',') {
        match part.split_once('=').unwrap_or(("cpus", part)) {
            (key @ ("cpus" | "sockets" | "cores" | "threads"), count) => tree.set_from(key, count, origin)?,
            (word, _) => {
                return Err(bad(origin, format!("{word:?} is none of cpus, sockets, cores, threads")));
            }
        }
    }
    Ok(())
}

/// `-f [name=]NAME,(string|file)=DATA`; the data may contain commas.
fn firmware_file(tree: &mut Tree, origin: &Origin, argument: &str) -> Result<(), Error> {
    let form = || bad(origin, "expected [name=]NAME,string=TEXT or [name=]NAME,file=PATH");
    let (name, data) = argument.split_once(',').ok_or_else(form)?;
    let name = name.strip_prefix("name=").unwrap_or(name);
    let (kind @ ("string" | "file"), data) = data.split_once('=').ok_or_else(form)? else {
        return Err(form());
    };
    if name.is_empty() {
        return Err(form());
    }
    let node = format!("fwcfg.{}", tree.children("fwcfg").len());
    tree.set_from(&format!("{node}.name"), name, origin)?;
    tree.set_from(&format!("{node}.{kind}"), data, origin)
}

/// `-G [w][address:]port`.
fn debugger(tree: &mut Tree, origin: &Origin, argument: &str) -> Result<(), Error> {
    let place = argument.strip_prefix('w');
    if place.is_some() {
        tree.set_from("gdb.wait", "true", origin)?;
    }
    match place.unwrap_or(argument).rsplit_once(':') {
        Some((address, port)) => {
            tree.set_from("gdb.address", address, origin)?;
            tree.set_from("gdb.port", port, origin)
        }
        None => tree.set_from("gdb.port", place.unwrap_or(argument), origin),
    }
}

/// `-n id=N,size=S,cpus=SET[,domain_policy=P]`; the set may contain commas.
fn domain(tree: &mut Tree, origin: &Origin, argument: &str) -> Result<(), Error> {
    let mut values: Vec<(&str, String)> = Vec::new();
    for part in argument.split(',') {
        match (part.split_once('='), values.last_mut()) {
            (Some((key @ ("id" | "size" | "cpus" | "domain_policy"), value)), _) => {
                values.push((key, value.to_owned()));
            }
            (None, Some(("cpus", set))) => {
                set.push(',');
                set.push_str(part);
            }
            _ => return Err(bad(origin, format!("{part:?} is none of id=, size=, cpus=, domain_policy="))),
        }
    }
    let find = |key: &str| values.iter().find(|(name, _)| *name == key).map(|(_, value)| value.as_str());
    let (Some(id), Some(_), Some(_)) = (find("id"), find("size"), find("cpus")) else {
        return Err(bad(origin, "id=, size= and cpus= are needed"));
    };
    let Ok(id) = id.parse::<u32>() else { return Err(bad(origin, format!("{id:?} is not a number"))) };
    values
        .iter()
        .filter(|(key, _)| *key != "id")
        .try_for_each(|(key, value)| tree.set_from(&format!("domains.{id}.{key}"), value, origin))
}

/// `-p vcpu:hostcpu`; each adds a host CPU to the set of that virtual CPU.
fn pin(tree: &mut Tree, origin: &Origin, argument: &str) -> Result<(), Error> {
    let numbers = argument
        .split_once(':')
        .and_then(|(vcpu, host)| Some((vcpu.parse::<u16>().ok()?, host.parse::<u32>().ok()?)))
        .filter(|(_, host)| *host <= crate::value::MAX_HOST_CPU);
    let Some((vcpu, host)) = numbers else {
        return Err(bad(
            origin,
            format!("expected vcpu:hostcpu, hostcpu up to {}", crate::value::MAX_HOST_CPU),
        ));
    };
    let key = format!("vcpu.{vcpu}.cpuset");
    let set = tree.raw(&key).map_or_else(|| host.to_string(), |set| format!("{set},{host}"));
    tree.set_from(&key, &set, origin)
}

/// `-s slot,device[,conf]`.
fn slot(tree: &mut Tree, origin: &Origin, argument: &str) -> Result<(), Error> {
    let invalid = |message: String| Error::new(origin, Problem::Invalid(message));
    let mut parts = argument.splitn(3, ',');
    let (Some(place), Some(device)) = (parts.next(), parts.next().filter(|name| !name.is_empty())) else {
        return Err(invalid("expected slot,device[,conf]; -s help lists the devices".into()));
    };
    let address = PciAddress::parse(place).map_err(invalid)?;
    if tree.contains(&address.key()) {
        let other = tree.node(&address.key()).error("device", "").at;
        return Err(invalid(format!("slot {address} is already occupied by {other}")));
    }
    legacy::device(tree, address.key(), origin, device, parts.next())
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
