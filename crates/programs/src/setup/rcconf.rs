//! The settings of FreeBSD's rc.conf and sysctl.conf that concern VMs.

use super::network::check_name;
use super::{Result, usage};

/// What the settings ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Interfaces to make: bridges and taps.
    pub cloned: Vec<String>,
    /// Interfaces with what their `ifconfig_NAME` says.
    pub interfaces: Vec<Interface>,
    /// Kernel modules by FreeBSD's names.
    pub modules: Vec<String>,
    /// Taps are up as soon as they are there.
    pub tap_up: bool,
    /// The default route's gateway.
    pub gateway: Option<String>,
}

/// One interface's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Members, if it is a bridge.
    pub members: Vec<String>,
    /// Addresses with prefix lengths.
    pub addresses: Vec<String>,
    /// It asks for an address.
    pub dhcp: bool,
}

/// Which modules of FreeBSD's mean something here.
const MODULES: [&str; 5] = ["vmm", "nmdm", "if_tap", "if_tuntap", "if_bridge"];

impl Settings {
    /// Reads the text of an rc.conf or sysctl.conf. Settings of other things are left alone.
    pub fn read_file(&mut self, name: &str, text: &str) -> Result<()> {
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some((key, value)) = line.split_once('=')
                && known(key.trim())
            {
                self.set(key.trim(), unquoted(value.trim()))
                    .map_err(|e| super::Failure(format!("{name}:{number}: {}", e.0), e.1))?;
            }
        }
        Ok(())
    }

    /// One setting from the command line, as it stands in the file.
    pub fn read_word(&mut self, word: &str) -> Result<()> {
        match word.split_once('=') {
            Some((key, value)) if known(key.trim()) => self.set(key.trim(), unquoted(value.trim())),
            _ => Err(usage(format!(
                "{word}: not one of cloned_interfaces=…, ifconfig_NAME=…, defaultrouter=…, kld_list=…, \
                 net.link.tap.up_on_open=…"
            ))),
        }
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "cloned_interfaces" => {
                for name in value.split_whitespace() {
                    check_name(name)?;
                    if !name.starts_with("bridge") && !name.starts_with("tap") && !name.starts_with("vmnet") {
                        return Err(usage(format!(
                            "cloned_interfaces={value}: {name} is neither a bridge nor a tap"
                        )));
                    }
                    self.cloned.push(name.to_owned());
                }
            }
            "kld_list" => {
                for module in value.split_whitespace() {
                    if !MODULES.contains(&module) {
                        let known = MODULES.join(", ");
                        return Err(usage(format!("kld_list={value}: {module} is not one of {known}")));
                    }
                    self.modules.push(module.to_owned());
                }
            }
            "net.link.tap.up_on_open" => {
                self.tap_up = match value {
                    "0" => false,
                    "1" => true,
                    _ => return Err(usage(format!("{key}={value}: expected 0 or 1"))),
                };
            }
            "defaultrouter" => self.gateway = Some(address(key, value, value)?),
            _ => self.interface(key, value)?,
        }
        Ok(())
    }

    fn interface(&mut self, key: &str, value: &str) -> Result<()> {
        let name = key.trim_start_matches("ifconfig_");
        check_name(name)?;
        let mut interface = Interface { name: name.to_owned(), ..Interface::default() };
        let mut words = value.split_whitespace();
        while let Some(word) = words.next() {
            match word {
                "up" => {}
                "DHCP" | "SYNCDHCP" | "NOSYNCDHCP" => interface.dhcp = true,
                "addm" => {
                    let member = words.next().unwrap_or_default();
                    check_name(member)?;
                    interface.members.push(member.to_owned());
                }
                "inet" | "inet6" => {
                    let mut text = address(key, value, words.next().unwrap_or_default())?;
                    let mut rest = words.clone();
                    if rest.next() == Some("netmask") {
                        let mask = rest.next().unwrap_or_default();
                        text = format!("{text}/{}", prefix(key, value, mask)?);
                        words = rest;
                    }
                    if !text.contains('/') {
                        return Err(usage(format!(
                            "{key}={value}: {text} has no prefix length, such as {text}/24"
                        )));
                    }
                    interface.addresses.push(text);
                }
                _ => {
                    return Err(usage(format!("{key}={value}: {word} is not up, addm, inet, inet6 or DHCP")));
                }
            }
        }
        self.interfaces.retain(|old| old.name != interface.name);
        self.interfaces.push(interface);
        Ok(())
    }
}

fn known(key: &str) -> bool {
    matches!(key, "cloned_interfaces" | "kld_list" | "net.link.tap.up_on_open" | "defaultrouter")
        || key.strip_prefix("ifconfig_").is_some_and(|name| !name.is_empty())
}

fn unquoted(value: &str) -> &str {
    let inner = |quote: char| value.strip_prefix(quote).and_then(|rest| rest.split(quote).next());
    inner('"').or_else(|| inner('\'')).unwrap_or(value)
}

/// An IP address, with or without a prefix length.
fn address(key: &str, value: &str, text: &str) -> Result<String> {
    let (ip, prefix) = text.split_once('/').map_or((text, None), |(ip, prefix)| (ip, Some(prefix)));
    let good = ip.parse::<std::net::IpAddr>().is_ok_and(|ip| {
        let max = if ip.is_ipv4() { 32 } else { 128 };
        prefix.is_none_or(|prefix| prefix.parse::<u8>().is_ok_and(|n| n <= max))
    });
    if good { Ok(text.to_owned()) } else { Err(usage(format!("{key}={value}: {text:?} is no address"))) }
}

/// The prefix length of a netmask, which FreeBSD writes with dots or as 0xffffff00.
fn prefix(key: &str, value: &str, mask: &str) -> Result<u32> {
    let number = match mask.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => mask.parse::<std::net::Ipv4Addr>().ok().map(u32::from),
    };
    match number {
        Some(number) if number.leading_ones() + number.trailing_zeros().min(32) >= 32 => {
            Ok(number.leading_ones())
        }
        _ => Err(usage(format!("{key}={value}: {mask} is no netmask"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handbooks_settings_are_understood() {
        let mut settings = Settings::default();
        settings.read_file("sysctl.conf", "net.link.tap.up_on_open=1\nkern.maxfiles=9\n").unwrap();
        let rc = "cloned_interfaces=\"bridge0 tap0\"\nifconfig_bridge0=\"addm igb0 addm tap0\"\n\
                  kld_list=\"nmdm vmm\"  # both\nsshd_enable=\"YES\"\n";
        settings.read_file("rc.conf", rc).unwrap();
        settings.read_word("ifconfig_igb0=inet 192.0.2.5 netmask 255.255.255.0").unwrap();
        assert_eq!(settings.cloned, ["bridge0", "tap0"]);
        assert_eq!(settings.interfaces[0].members, ["igb0", "tap0"]);
        assert_eq!(settings.interfaces[1].addresses, ["192.0.2.5/24"]);
        assert_eq!((settings.modules, settings.tap_up), (vec!["nmdm".into(), "vmm".into()], true));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let error = |word: &str| Settings::default().read_word(word).unwrap_err().0;
        assert!(error("sshd_enable=YES").contains("sshd_enable=YES: not one of"));
        assert!(error("kld_list=vmm linux").contains("linux is not one of"));
        assert!(error("ifconfig_bridge0=addm igb0 stp tap0").contains("stp is not"));
        assert!(error("ifconfig_em0=inet 1.2.3").contains("no address"));
        assert!(error("ifconfig_em0=inet 1.2.3.4").contains("no prefix length"));
        assert!(error("ifconfig_em0=inet 1.2.3.4 netmask 255.0.255.0").contains("no netmask"));
        assert!(error("net.link.tap.up_on_open=2").contains("expected 0 or 1"));
        let mut settings = Settings::default();
        let error = settings.read_file("/etc/rc.conf", "\nkld_list=\"x\"\n").unwrap_err().0;
        assert!(error.starts_with("/etc/rc.conf:2: kld_list=x"), "{error}");
    }
}
