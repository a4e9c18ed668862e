//! `bhyve-host persist`: what FreeBSD's rc.conf and sysctl.conf do at boot, as systemd's files.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lexopt::{Arg, Parser};

use super::plan::{Plan, Step};
use super::rcconf::{Interface, Settings};
use super::{Result, carry_out, text, usage, word};

/// Where units, network files and lists of modules go.
const UNITS: &str = "etc/systemd/system";
const NETWORK: &str = "etc/systemd/network";
const MODULES: &str = "etc/modules-load.d/bhyve.conf";

struct Target {
    root: PathBuf,
    bindir: PathBuf,
}

/// Writes the files.
pub fn run(parser: &mut Parser) -> Result<ExitCode> {
    let mut settings = Settings { tap_up: true, ..Settings::default() };
    let (mut root, mut bindir, mut vms) = (PathBuf::from("/"), None, Vec::new());
    let (mut dry_run, mut force) = (false, false);
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Short('n') | Arg::Long("dry-run") => dry_run = true,
            Arg::Long("force") => force = true,
            Arg::Long("root") => root = PathBuf::from(word(parser)?),
            Arg::Long("bindir") => bindir = Some(PathBuf::from(word(parser)?)),
            Arg::Long("vm") => vms.push(vm_name(word(parser)?)?),
            Arg::Short('f') | Arg::Long("file") => {
                let path = word(parser)?;
                let text = std::fs::read_to_string(&path).map_err(|error| format!("-f {path}: {error}"))?;
                settings.read_file(&path, &text)?;
            }
            Arg::Value(value) => settings.read_word(&text(value)?)?,
            arg => return Err(arg.unexpected().into()),
        }
    }
    let bindir = match bindir {
        Some(path) => path,
        None => own_folder()?,
    };
    let mut plan = plan(&settings, &vms, &Target { root, bindir })?;
    plan.force = force;
    carry_out(&plan, dry_run)
}

/// A name that bhyve takes and that means the same in a unit's name.
fn vm_name(name: String) -> Result<String> {
    let good = (1..=31).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-:".contains(&b));
    if good {
        Ok(name)
    } else {
        Err(usage(format!("--vm {name}: not a name (letters, digits, _ . - :, at most 31)")))
    }
}

fn own_folder() -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    Ok(own.parent().unwrap_or(Path::new("/usr/bin")).to_owned())
}

fn plan(settings: &Settings, vms: &[String], target: &Target) -> Result<Plan> {
    let mut plan = Plan::default();
    let live = target.root == Path::new("/");
    if !settings.modules.is_empty() {
        modules(&mut plan, settings, target);
    }
    networks(&mut plan, settings, target)?;
    plan.file(target.root.join(UNITS).join("bhyve@.service"), unit(&target.bindir));
    for vm in vms {
        let name = format!("bhyve@{vm}.service");
        plan.steps.push(Step::Link {
            path: target.root.join(UNITS).join("multi-user.target.wants").join(name),
            target: Path::new("/").join(UNITS).join("bhyve@.service"),
        });
        let config = target.root.join(format!("etc/bhyve/{vm}.conf"));
        if !config.exists() {
            plan.note(format!(
                "{}: not there yet: the VM's keys, one a line, as bhyve … -o config.dump=true prints them; \
                 a loader goes into {vm}.load beside it",
                config.display()
            ));
        }
    }
    if live && Path::new("/run/systemd/system").exists() {
        plan.command(&["systemctl", "daemon-reload"]);
        if !settings.cloned.is_empty() {
            plan.command(&["systemctl", "enable", "--now", "systemd-networkd.service"]);
            plan.command(&["networkctl", "reload"]);
        }
    } else if live {
        plan.note("systemd does not run here: the files take effect when it does");
    }
    Ok(plan)
}

/// FreeBSD's vmm and tap are Linux's KVM and tun; null-modem pairs need no module.
fn modules(plan: &mut Plan, settings: &Settings, target: &Target) {
    let mut text = String::new();
    let mut add = |name: &str| {
        let _ = writeln!(text, "{name}");
    };
    if settings.modules.iter().any(|module| module == "vmm") {
        match super::check::kvm_module() {
            Some(module) => add(module),
            None => {
                plan.note("this host's processor offers no vmx or svm: guests run on the software engine");
            }
        }
    }
    add("tun");
    if settings.modules.iter().any(|module| module == "if_bridge")
        || settings.cloned.iter().any(|name| name.starts_with("bridge"))
    {
        add("bridge");
    }
    plan.file(target.root.join(MODULES), text);
    if settings.modules.iter().any(|module| module == "nmdm") {
        plan.note("nmdm: pairs appear when bhyve opens an end of one; bhyve-host nmdm makes one before");
    }
}

fn networks(plan: &mut Plan, settings: &Settings, target: &Target) -> Result<()> {
    let file = |name: &str| target.root.join(NETWORK).join(format!("50-{name}"));
    let master = |name: &str| settings.interfaces.iter().find(|i| i.members.iter().any(|m| m == name));
    for name in &settings.cloned {
        let kind = if name.starts_with("bridge") { "bridge" } else { "tap" };
        plan.file(file(&format!("{name}.netdev")), format!("[NetDev]\nName={name}\nKind={kind}\n"));
        if kind == "tap" {
            let policy = if settings.tap_up { "always-up" } else { "manual" };
            let bridge = master(name).map(|bridge| format!("Bridge={}\n", bridge.name)).unwrap_or_default();
            let text = format!(
                "[Match]\nName={name}\n\n[Link]\nActivationPolicy={policy}\nRequiredForOnline=no\n\n\
                 [Network]\n{bridge}ConfigureWithoutCarrier=yes\n"
            );
            plan.file(file(&format!("{name}.network")), text);
        }
    }
    for bridge in settings.interfaces.iter().filter(|i| i.name.starts_with("bridge")) {
        if !settings.cloned.contains(&bridge.name) {
            return Err(usage(format!("ifconfig_{0}: {0} is not in cloned_interfaces", bridge.name)));
        }
        // Linux does not use the addresses of a bridge's members: they are the bridge's.
        let mut sources: Vec<&Interface> = vec![bridge];
        for member in bridge.members.iter().filter(|m| !settings.cloned.contains(m)) {
            let text = format!("[Match]\nName={member}\n\n[Network]\nBridge={}\n", bridge.name);
            plan.file(file(&format!("{member}.network")), text);
            sources.extend(settings.interfaces.iter().filter(|i| i.name == *member));
        }
        let ask = asks_for_address(plan, bridge, &sources);
        let text = bridge_network(ask, bridge, &sources, settings);
        plan.file(file(&format!("{}.network", bridge.name)), text);
    }
    for other in settings.interfaces.iter().filter(|i| !i.name.starts_with("bridge")) {
        if master(&other.name).is_none() {
            return Err(usage(format!(
                "ifconfig_{0}: {0} is a member of no bridge, so it is not bhyve's business",
                other.name
            )));
        }
    }
    Ok(())
}

/// Whether the bridge asks for an address because nobody has said which it has.
fn asks_for_address(plan: &mut Plan, bridge: &Interface, sources: &[&Interface]) -> bool {
    let silent = sources.iter().all(|i| !i.dhcp && i.addresses.is_empty());
    let physical = sources.len() > 1 || bridge.members.iter().any(|m| !m.starts_with("tap"));
    if silent && physical {
        plan.note(format!(
            "{}: gets its address by DHCP; ifconfig_{}=\"inet ADDRESS/PREFIX\" gives it one",
            bridge.name, bridge.name
        ));
    }
    silent && physical
}

fn bridge_network(ask: bool, bridge: &Interface, sources: &[&Interface], settings: &Settings) -> String {
    let mut text = format!("[Match]\nName={}\n\n[Network]\nConfigureWithoutCarrier=yes\n", bridge.name);
    if ask || sources.iter().any(|i| i.dhcp) {
        text.push_str("DHCP=yes\n");
    }
    for address in sources.iter().flat_map(|i| &i.addresses) {
        let _ = writeln!(text, "Address={address}");
    }
    if let Some(gateway) = &settings.gateway {
        let _ = writeln!(text, "Gateway={gateway}");
    }
    text
}

/// The unit that runs a VM: its exit status 0 is a reboot, 1 and 2 are its end.
fn unit(bindir: &Path) -> String {
    let bin = bindir.display();
    format!(
        "[Unit]
Description=bhyve virtual machine %i
After=network.target systemd-networkd.service
Wants=network.target

[Service]
Type=exec
# A VM that was left over, and a loader if the VM has one (/etc/bhyve/%i.load, which gets the name).
ExecStartPre=-{bin}/bhyvectl --destroy --vm=%i
ExecStartPre=/bin/sh -c 'test ! -x /etc/bhyve/%i.load || exec /etc/bhyve/%i.load %i'
ExecStart={bin}/bhyve -k /etc/bhyve/%i.conf %i
ExecStopPost=-{bin}/bhyvectl --destroy --vm=%i
# 0: the guest was reset, and starts again. 1: powered off. 2: halted.
SuccessExitStatus=0 1 2
Restart=no
RestartForceExitStatus=0
# SIGTERM presses the power button; the guest has time to shut down.
KillMode=mixed
KillSignal=SIGTERM
TimeoutStopSec=300

[Install]
WantedBy=multi-user.target
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handbook() -> Settings {
        let mut settings = Settings { tap_up: true, ..Settings::default() };
        for word in [
            "net.link.tap.up_on_open=1",
            "cloned_interfaces=bridge0 tap0",
            "ifconfig_bridge0=addm igb0 addm tap0",
            "kld_list=nmdm vmm",
        ] {
            settings.read_word(word).unwrap();
        }
        settings
    }

    fn made(settings: &Settings) -> Plan {
        let target = Target { root: "/r".into(), bindir: "/usr/bin".into() };
        plan(settings, &["guest".into()], &target).unwrap()
    }

    fn file<'a>(plan: &'a Plan, wanted: &str) -> Option<&'a str> {
        plan.steps.iter().find_map(|step| match step {
            Step::Write { path, text } if path == Path::new(wanted) => Some(text.as_str()),
            _ => None,
        })
    }

    #[test]
    fn the_handbooks_settings_become_systemds_files() {
        let plan = made(&handbook());
        let bridge = file(&plan, "/r/etc/systemd/network/50-bridge0.netdev").unwrap();
        assert_eq!(bridge, "[NetDev]\nName=bridge0\nKind=bridge\n");
        assert!(file(&plan, "/r/etc/systemd/network/50-tap0.network").unwrap().contains("Bridge=bridge0\n"));
        assert!(file(&plan, "/r/etc/systemd/network/50-igb0.network").unwrap().contains("Bridge=bridge0\n"));
        assert!(file(&plan, "/r/etc/systemd/network/50-bridge0.network").unwrap().contains("DHCP=yes\n"));
        assert!(file(&plan, "/r/etc/modules-load.d/bhyve.conf").unwrap().contains("tun\n"));
        let unit = file(&plan, "/r/etc/systemd/system/bhyve@.service").unwrap();
        assert!(unit.contains("ExecStart=/usr/bin/bhyve -k /etc/bhyve/%i.conf %i\n"));
        assert!(unit.contains("RestartForceExitStatus=0\n") && unit.contains("SuccessExitStatus=0 1 2\n"));
    }

    #[test]
    fn a_members_address_goes_to_its_bridge() {
        let mut settings = handbook();
        settings.read_word("ifconfig_igb0=inet 192.0.2.5/24").unwrap();
        settings.read_word("defaultrouter=192.0.2.1").unwrap();
        let plan = made(&settings);
        let text = file(&plan, "/r/etc/systemd/network/50-bridge0.network").unwrap();
        assert!(
            text.contains("Address=192.0.2.5/24\nGateway=192.0.2.1\n") && !text.contains("DHCP"),
            "{text}"
        );
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let target = Target { root: "/r".into(), bindir: "/b".into() };
        let mut settings = Settings::default();
        settings.read_word("ifconfig_bridge0=addm tap0").unwrap();
        assert!(plan(&settings, &[], &target).unwrap_err().0.contains("bridge0 is not in cloned_interfaces"));
        let mut settings = handbook();
        settings.read_word("ifconfig_em1=DHCP").unwrap();
        assert!(plan(&settings, &[], &target).unwrap_err().0.contains("em1 is a member of no bridge"));
        assert!(vm_name("a/b".into()).is_err() && vm_name("web-1".into()).is_ok());
    }
}
