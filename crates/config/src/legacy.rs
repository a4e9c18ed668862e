//! The device arguments of `-s` and `-l`, which are older than the key tree, turned into keys.

use crate::error::{Error, Origin, Problem};
use crate::tree::Tree;

/// The devices of bhyve's `-s`, without aliases. Which of them exist here is for the registry to say.
pub const DEVICES: &[&str] = &[
    "ahci",
    "dummy",
    "e1000",
    "fbuf",
    "hda",
    "hostbridge",
    "lpc",
    "nvme",
    "passthru",
    "uart",
    "virtio-9p",
    "virtio-blk",
    "virtio-console",
    "virtio-input",
    "virtio-net",
    "virtio-rnd",
    "virtio-scsi",
    "xhci",
];

/// Ports of an AHCI controller.
const AHCI_PORTS: usize = 32;
/// Ports of a virtio console.
const CONSOLE_PORTS: usize = 16;

/// Writes keys below one node on behalf of one option.
struct Writer<'a> {
    tree: &'a mut Tree,
    base: String,
    origin: &'a Origin,
}

impl Writer<'_> {
    fn error(&self, message: impl Into<String>) -> Error {
        Error::new(self.origin, Problem::Invalid(message.into()))
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), Error> {
        self.tree.set_from(&format!("{}.{name}", self.base), value, self.origin)
    }

    /// Sets one `name=value` or `name` (which means true) below `prefix`.
    fn option(&mut self, prefix: &str, option: &str) -> Result<(), Error> {
        let (name, value) = option.split_once('=').unwrap_or((option, "true"));
        if name.is_empty() {
            return Err(self.error(format!("empty option in {option:?}")));
        }
        // The manual knows both spellings of a disk's serial number.
        let name = if name == "serial" { "ser" } else { name };
        self.set(&format!("{prefix}{name}"), value)
    }

    fn options<'b>(&mut self, prefix: &str, options: impl Iterator<Item = &'b str>) -> Result<(), Error> {
        options.into_iter().try_for_each(|option| self.option(prefix, option))
    }

    /// A first argument without a name, then options.
    fn named_first(&mut self, first: &str, conf: &str) -> Result<(), Error> {
        let mut parts = conf.split(',');
        if let Some(value) = parts.next().filter(|value| !value.is_empty()) {
            self.set(first, value)?;
        }
        self.options("", parts)
    }
}

/// Sets the keys of the device `name` with arguments `conf` below `base`.
pub fn device(
    tree: &mut Tree,
    base: String,
    origin: &Origin,
    name: &str,
    conf: Option<&str>,
) -> Result<(), Error> {
    let mut writer = Writer { tree, base, origin };
    let (device, port_type) = match name {
        "ahci-hd" => ("ahci", Some("hd")),
        "ahci-cd" => ("ahci", Some("cd")),
        "amd_hostbridge" => ("hostbridge", None),
        other => (other, None),
    };
    writer.set("device", device)?;
    if name == "amd_hostbridge" {
        // Vendor AMD, and the device id that bhyve gives the alias.
        writer.set("pcireg.vendor", "0x1022")?;
        writer.set("pcireg.device", "0x7432")?;
    }
    let Some(conf) = conf else { return Ok(()) };
    match device {
        "virtio-net" | "e1000" => writer.named_first("backend", conf),
        "virtio-blk" => writer.named_first("path", conf),
        "nvme" if conf.starts_with("ram=") => writer.options("", conf.split(',')),
        "nvme" => writer.named_first("path", conf),
        "ahci" => ahci(&mut writer, port_type, conf),
        "virtio-scsi" => scsi(&mut writer, conf),
        "virtio-9p" => share(&mut writer, conf),
        "virtio-console" => console(&mut writer, conf),
        "virtio-input" | "uart" => writer.set("path", conf),
        "fbuf" => fbuf(&mut writer, conf),
        "xhci" => conf
            .split(',')
            .enumerate()
            .try_for_each(|(index, device)| writer.set(&format!("slot.{}.device", index + 1), device)),
        "passthru" => passthru(&mut writer, conf),
        "lpc" => {
            // The bridge is configured under a node of its own.
            writer.base = "lpc".into();
            writer.options("", conf.split(','))
        }
        _ => writer.options("", conf.split(',')),
    }
}

/// `[hd:|cd:]path[,options]`, again and again for each port.
fn ahci(writer: &mut Writer<'_>, alias: Option<&str>, conf: &str) -> Result<(), Error> {
    let mut port = 0;
    let mut prefix = String::new();
    for (index, part) in conf.split(',').enumerate() {
        let typed = match (alias, part.split_once(':')) {
            // An alias is one port, whose path may well begin with hd:
            (Some(kind), _) => (index == 0).then_some((kind, part)),
            (None, Some((kind @ ("hd" | "cd"), path))) => Some((kind, path)),
            (None, _) => None,
        };
        if let Some((kind, path)) = typed {
            if port == AHCI_PORTS {
                return Err(writer.error(format!("more than {AHCI_PORTS} AHCI ports")));
            }
            prefix = format!("port.{port}.");
            port += 1;
            writer.set(&format!("{prefix}type"), kind)?;
            if !path.is_empty() {
                writer.set(&format!("{prefix}path"), path)?;
            }
        } else if prefix.is_empty() {
            return Err(writer.error(format!("ahci needs hd: or cd: before {part:?}")));
        } else {
            writer.option(&prefix, part)?;
        }
    }
    Ok(())
}

/// `[device][,options]`, where `target=[id:]path` may come more than once.
fn scsi(writer: &mut Writer<'_>, conf: &str) -> Result<(), Error> {
    let mut next = 0u32;
    for (index, part) in conf.split(',').enumerate() {
        if let Some(target) = part.strip_prefix("target=") {
            let (id, path) = match target.split_once(':').map(|(id, path)| (id.parse::<u32>(), path)) {
                Some((Ok(id), path)) => (id, path),
                _ => (next, target),
            };
            next = id.saturating_add(1);
            writer.set(&format!("target.{id}"), path)?;
        } else if index == 0 && !part.contains('=') {
            writer.set("dev", part)?;
        } else {
            writer.option("", part)?;
        }
    }
    Ok(())
}

/// `sharename=/path[,ro]`.
fn share(writer: &mut Writer<'_>, conf: &str) -> Result<(), Error> {
    let mut parts = conf.split(',');
    let first = parts.next().unwrap_or_default();
    let Some((name, path)) = first.split_once('=') else {
        return Err(writer.error(format!("expected sharename=/path, not {first:?}")));
    };
    writer.set("sharename", name)?;
    writer.set("path", path)?;
    writer.options("", parts)
}

/// `name=/path/of/socket`, again and again for each port.
fn console(writer: &mut Writer<'_>, conf: &str) -> Result<(), Error> {
    for (port, part) in conf.split(',').enumerate() {
        let Some((name, path)) = part.split_once('=') else {
            return Err(writer.error(format!("expected NAME=/path/of/socket, not {part:?}")));
        };
        if port == CONSOLE_PORTS {
            return Err(writer.error(format!("more than {CONSOLE_PORTS} console ports")));
        }
        writer.set(&format!("port.{port}.name"), name)?;
        writer.set(&format!("port.{port}.path"), path)?;
    }
    Ok(())
}

/// `[rfb=|tcp=][address:]port` and options.
fn fbuf(writer: &mut Writer<'_>, conf: &str) -> Result<(), Error> {
    for part in conf.split(',') {
        let bare = !part.contains('=') && part.contains(|c: char| c == ':' || c.is_ascii_digit());
        match part.strip_prefix("tcp=") {
            Some(address) => writer.set("rfb", address)?,
            None if bare => writer.set("rfb", part)?,
            None => writer.option("", part)?,
        }
    }
    Ok(())
}

/// `pptN`, `bus/slot/function` or `pciB:S:F`, then options.
fn passthru(writer: &mut Writer<'_>, conf: &str) -> Result<(), Error> {
    let mut parts = conf.split(',');
    let place = parts.next().unwrap_or_default();
    if place.starts_with("ppt") {
        writer.set("pptdev", place)?;
    } else {
        let numbers: Vec<&str> = match place.strip_prefix("pci") {
            // FreeBSD writes the domain, which is 0, in front of the bus.
            Some(selector) => {
                selector.split(':').skip(usize::from(selector.matches(':').count() == 3)).collect()
            }
            None => place.split('/').collect(),
        };
        let digits = |part: &&str| !part.is_empty() && part.bytes().all(|c| c.is_ascii_digit());
        let [bus, slot, function] = *numbers.as_slice() else {
            return Err(writer.error(format!("expected pptN or bus/slot/function, not {place:?}")));
        };
        if ![bus, slot, function].iter().all(digits) {
            return Err(writer.error(format!("expected pptN or bus/slot/function, not {place:?}")));
        }
        writer.set("bus", bus)?;
        writer.set("slot", slot)?;
        writer.set("func", function)?;
    }
    writer.options("", parts)
}

/// Sets the keys of `-l device[,conf]`.
pub fn lpc(tree: &mut Tree, origin: &Origin, argument: &str) -> Result<(), Error> {
    let (device, conf) =
        argument.split_once(',').map_or((argument, None), |(device, conf)| (device, Some(conf)));
    let bad = |message: String| Error::new(origin, Problem::Argument(message));
    let mut writer = Writer { tree, base: "lpc".into(), origin };
    match device.to_ascii_lowercase().as_str() {
        com @ ("com1" | "com2" | "com3" | "com4") => match conf {
            Some("") => Err(bad(format!("the back end of {com} is empty"))),
            Some(path) => writer.set(&format!("{com}.path"), path),
            // The port exists in any case; this only says so.
            None => Ok(()),
        },
        "bootrom" => {
            let mut parts = conf.unwrap_or_default().split(',').peekable();
            match parts.next().unwrap_or_default() {
                "" => return Err(bad("the boot ROM has no name".into())),
                rom => writer.set("bootrom", rom)?,
            }
            if let Some(vars) = parts.next_if(|part| !part.contains('=')) {
                writer.set("bootvars", vars)?;
            }
            writer.options("", parts)
        }
        "tpm" => {
            writer.base = "tpm".into();
            let mut parts = conf.unwrap_or_default().split(',');
            match (parts.next(), parts.next()) {
                (Some(kind), Some(path)) => {
                    writer.set("type", kind)?;
                    writer.set("path", path)?;
                }
                _ => return Err(bad("expected tpm,passthru,/dev/tpm0 or tpm,swtpm,/path/of/socket".into())),
            }
            writer.options("", parts)
        }
        "pc-testdev" => writer.set("pc-testdev", "true"),
        _ => Err(bad(format!("unknown LPC device {device:?}; -l help lists them"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(name: &str, conf: Option<&str>) -> Result<String, Error> {
        let mut tree = Tree::new();
        device(&mut tree, "p".into(), &Origin::new("-s x"), name, conf)?;
        Ok(tree.dump().replace('\n', " ").replace("p.", ""))
    }

    #[test]
    fn device_arguments() {
        for (name, conf, expected) in [
            ("hostbridge", "", ""),
            ("virtio-net", "tap0", "backend=tap0 device=virtio-net"),
            (
                "virtio-net",
                "tap0,mac=58:9c:fc:00:00:01,mtu=9000",
                "backend=tap0 device=virtio-net mac=58:9c:fc:00:00:01 mtu=9000",
            ),
            (
                "e1000",
                "slirp,open,hostfwd=tcp::2222-:22;udp::5-:6",
                "backend=slirp device=e1000 hostfwd=tcp::2222-:22;udp::5-:6 open=true",
            ),
            ("virtio-blk", "./a=b.img", "device=virtio-blk path=./a=b.img"),
            (
                "virtio-blk",
                "x,nocache,sync,direct,ro,sectorsize=512/4096,nodelete,bootindex=1,ser=S1",
                "bootindex=1 device=virtio-blk direct=true nocache=true nodelete=true path=x ro=true \
                 sectorsize=512/4096 ser=S1 sync=true",
            ),
            ("virtio-blk", "x,serial=S2", "device=virtio-blk path=x ser=S2"),
            ("nvme", "ram=64,maxq=4", "device=nvme maxq=4 ram=64"),
            ("nvme", "/x,ser=1,dsm=auto", "device=nvme dsm=auto path=/x ser=1"),
            (
                "ahci",
                "hd:/a,ro,cd:/b,hd:/c,nmrr=1",
                "device=ahci port.0.path=/a port.0.ro=true port.0.type=hd port.1.path=/b port.1.type=cd \
                 port.2.nmrr=1 port.2.path=/c port.2.type=hd",
            ),
            ("ahci-cd", "./x.iso,ro", "device=ahci port.0.path=./x.iso port.0.ro=true port.0.type=cd"),
            ("ahci-hd", "hd:x", "device=ahci port.0.path=hd:x port.0.type=hd"),
            ("amd_hostbridge", "", "device=hostbridge pcireg.device=0x7432 pcireg.vendor=0x1022"),
            ("virtio-scsi", "/dev/cam/ctl1.0,iid=3", "dev=/dev/cam/ctl1.0 device=virtio-scsi iid=3"),
            (
                "virtio-scsi",
                "target=/a,target=7:/b,target=/c",
                "device=virtio-scsi target.0=/a target.7=/b target.8=/c",
            ),
            ("virtio-9p", "share=/srv/x,ro", "device=virtio-9p path=/srv/x ro=true sharename=share"),
            (
                "virtio-console",
                "a=/a.sock,b=/b.sock",
                "device=virtio-console port.0.name=a port.0.path=/a.sock port.1.name=b port.1.path=/b.sock",
            ),
            ("virtio-input", "/dev/input/event3", "device=virtio-input path=/dev/input/event3"),
            ("uart", "tcp=127.0.0.1:99", "device=uart path=tcp=127.0.0.1:99"),
            (
                "fbuf",
                "tcp=0.0.0.0:5900,w=800,h=600,wait",
                "device=fbuf h=600 rfb=0.0.0.0:5900 w=800 wait=true",
            ),
            ("fbuf", "[::1]:5901,vga=off", "device=fbuf rfb=[::1]:5901 vga=off"),
            ("xhci", "tablet", "device=xhci slot.1.device=tablet"),
            ("hda", "play=/dev/dsp0,rec=/dev/dsp1", "device=hda play=/dev/dsp0 rec=/dev/dsp1"),
            ("passthru", "ppt3,rom=/x", "device=passthru pptdev=ppt3 rom=/x"),
            ("passthru", "1/2/3", "bus=1 device=passthru func=3 slot=2"),
            ("passthru", "pci0:1:2:3", "bus=1 device=passthru func=3 slot=2"),
            ("passthru", "pci1:2:3", "bus=1 device=passthru func=3 slot=2"),
            ("lpc", "fwcfg=qemu", "lpc.fwcfg=qemu device=lpc"),
        ] {
            let expected = if name == "hostbridge" { "device=hostbridge" } else { expected };
            let conf = Some(conf).filter(|conf| !conf.is_empty());
            let text = keys(name, conf).unwrap_or_else(|error| panic!("{name} {conf:?}: {error}"));
            assert_eq!(text.trim_end(), expected, "{name} {conf:?}");
        }
    }

    #[test]
    fn bad_device_arguments() {
        let many_ports = vec!["hd:/x"; 33].join(",");
        let many_consoles = vec!["a=/x"; 17].join(",");
        for (name, conf) in [
            ("ahci", "/x"),
            ("ahci", many_ports.as_str()),
            ("virtio-blk", "x,,ro"),
            ("virtio-blk", "x,=1"),
            ("virtio-9p", "/x"),
            ("virtio-console", "/x.sock"),
            ("virtio-console", many_consoles.as_str()),
            ("passthru", "1/2"),
            ("passthru", "a/b/c"),
            ("passthru", "//"),
            ("virtio-rnd", ","),
        ] {
            assert_eq!(keys(name, Some(conf)).unwrap_err().exit_code(), 4, "{name} {conf}");
        }
    }

    #[test]
    fn lpc_arguments() {
        for (argument, expected) in [
            ("com1,stdio", "lpc.com1.path=stdio\n"),
            ("COM4,tcp=1.2.3.4:5,x", "lpc.com4.path=tcp=1.2.3.4:5,x\n"),
            ("com2", ""),
            ("bootrom,/a.fd", "lpc.bootrom=/a.fd\n"),
            ("bootrom,/a.fd,/v.fd,fwcfg=qemu", "lpc.bootrom=/a.fd\nlpc.bootvars=/v.fd\nlpc.fwcfg=qemu\n"),
            ("bootrom,/a.fd,fwcfg=bhyve", "lpc.bootrom=/a.fd\nlpc.fwcfg=bhyve\n"),
            ("tpm,swtpm,/x.sock,version=2.0", "tpm.path=/x.sock\ntpm.type=swtpm\ntpm.version=2.0\n"),
            ("pc-testdev", "lpc.pc-testdev=true\n"),
        ] {
            let mut tree = Tree::new();
            lpc(&mut tree, &Origin::new("-l"), argument).unwrap();
            assert_eq!(tree.dump(), expected, "{argument}");
        }
        for argument in ["", "com5,stdio", "com1,", "bootrom", "bootrom,", "tpm", "tpm,swtpm", "fwcfg,qemu"] {
            let error = lpc(&mut Tree::new(), &Origin::new("-l"), argument).unwrap_err();
            assert_eq!(error.exit_code(), 64, "{argument}");
        }
    }
}
