//! `bhyve-host tap` and `bhyve-host bridge`: `ifconfig tap0 create`, `ifconfig bridge0 addm …`.

use std::path::Path;
use std::process::{Command, ExitCode};

use lexopt::{Arg, Parser};

use super::plan::Plan;
use super::{Result, carry_out, text, usage, word};

/// Longest name of an interface (IFNAMSIZ, less the final 0).
const MAX_NAME: usize = 15;

/// Checks an interface's name.
pub fn check_name(name: &str) -> Result<()> {
    let good = (1..=MAX_NAME).contains(&name.len())
        && !matches!(name, "." | "..")
        && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':');
    if good {
        Ok(())
    } else {
        Err(usage(format!("{name:?}: not a name for an interface (1 to {MAX_NAME} characters)")))
    }
}

fn exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

fn is_bridge(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).join("bridge").exists()
}

fn is_tap(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).join("tun_flags").exists()
}

/// The interfaces of this host, for error messages.
fn interfaces() -> String {
    let mut names: Vec<String> = std::fs::read_dir("/sys/class/net")
        .map(|dir| dir.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.sort();
    names.join(", ")
}

fn missing(name: &str) -> super::Failure {
    format!("{name}: no such interface; there are {}", interfaces()).into()
}

/// Makes or destroys a tap interface.
pub fn tap(parser: &mut Parser) -> Result<ExitCode> {
    let (mut name, mut user, mut bridge, mut dry_run, mut destroy) = (None, None, None, false, false);
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Short('n') | Arg::Long("dry-run") => dry_run = true,
            Arg::Long("user") => user = Some(word(parser)?),
            Arg::Long("bridge") => bridge = Some(word(parser)?),
            Arg::Long("destroy") => destroy = true,
            Arg::Value(value) if name.is_none() => name = Some(text(value)?),
            arg => return Err(arg.unexpected().into()),
        }
    }
    let name = name.ok_or_else(|| usage("tap: which interface? Such as tap0"))?;
    check_name(&name)?;
    let mut plan = Plan::default();
    if destroy {
        if !is_tap(&name) {
            return Err(if exists(&name) {
                format!("{name}: not a tap interface").into()
            } else {
                missing(&name)
            });
        }
        plan.command(&["ip", "link", "delete", &name]);
        return carry_out(&plan, dry_run);
    }
    if exists(&name) && !is_tap(&name) {
        return Err(format!("{name}: is there already, and no tap interface").into());
    }
    if let Some(bridge) = &bridge
        && !is_bridge(bridge)
    {
        return Err(if exists(bridge) { format!("{bridge}: not a bridge").into() } else { missing(bridge) });
    }
    if !exists(&name) {
        let mut words = vec!["ip", "tuntap", "add", "dev", &name, "mode", "tap"];
        if let Some(user) = &user {
            words.extend(["user", user]);
        }
        plan.command(&words);
    }
    if let Some(bridge) = &bridge {
        plan.command(&["ip", "link", "set", &name, "master", bridge]);
    }
    // FreeBSD's net.link.tap.up_on_open.
    plan.command(&["ip", "link", "set", &name, "up"]);
    carry_out(&plan, dry_run)
}

/// Makes or destroys a bridge, or adds members.
pub fn bridge(parser: &mut Parser) -> Result<ExitCode> {
    let (mut names, mut dry_run, mut destroy, mut move_address) = (Vec::new(), false, false, false);
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Short('n') | Arg::Long("dry-run") => dry_run = true,
            Arg::Long("destroy") => destroy = true,
            Arg::Long("move-address") => move_address = true,
            Arg::Value(value) => names.push(text(value)?),
            arg => return Err(arg.unexpected().into()),
        }
    }
    names.iter().try_for_each(|name| check_name(name))?;
    let (name, members) = names.split_first().ok_or_else(|| usage("bridge: which one? Such as bridge0"))?;
    if exists(name) && !is_bridge(name) {
        return Err(format!("{name}: is there already, and no bridge").into());
    }
    let mut plan = Plan::default();
    if destroy {
        if let Some(member) = members.first() {
            return Err(usage(format!("{member}: --destroy takes one name")));
        }
        if !exists(name) {
            return Err(missing(name));
        }
        plan.command(&["ip", "link", "delete", name, "type", "bridge"]);
        return carry_out(&plan, dry_run);
    }
    if let Some(member) = members.iter().find(|member| !exists(member)) {
        return Err(missing(member));
    }
    if !exists(name) {
        plan.command(&["ip", "link", "add", "name", name, "type", "bridge"]);
    }
    for member in members {
        add_member(&mut plan, name, member, move_address)?;
    }
    plan.command(&["ip", "link", "set", name, "up"]);
    carry_out(&plan, dry_run)
}

/// Puts an interface into a bridge. Linux, unlike FreeBSD, does not use a member's own addresses.
fn add_member(plan: &mut Plan, bridge: &str, member: &str, move_address: bool) -> Result<()> {
    let addresses = addresses(member)?;
    if !addresses.is_empty() && !move_address {
        return Err(format!(
            "{member} has the address {}, which Linux does not use on a member of a bridge: \
             --move-address puts it, and its routes, on {bridge}",
            addresses.join(", ")
        )
        .into());
    }
    let routes = if addresses.is_empty() { Vec::new() } else { routes(member)? };
    for address in &addresses {
        plan.command(&["ip", "address", "delete", address, "dev", member]);
    }
    plan.command(&["ip", "link", "set", member, "master", bridge]);
    plan.command(&["ip", "link", "set", member, "up"]);
    if !addresses.is_empty() {
        plan.command(&["ip", "link", "set", bridge, "up"]);
    }
    for address in &addresses {
        plan.command(&["ip", "address", "add", address, "dev", bridge]);
    }
    for route in &routes {
        let mut words = vec!["ip", "route", "replace"];
        words.extend(route.split_whitespace());
        words.extend(["dev", bridge]);
        plan.command(&words);
    }
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<String> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .map_err(|error| format!("ip {}: {error} (Debian's package iproute2 has it)", arguments.join(" ")))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned().into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Global addresses of an interface, with their prefix lengths.
fn addresses(name: &str) -> Result<Vec<String>> {
    Ok(parse_addresses(&ip(&["-o", "address", "show", "dev", name, "scope", "global"])?))
}

fn parse_addresses(text: &str) -> Vec<String> {
    let address = |line: &str| {
        let mut words = line.split_whitespace().skip_while(|word| !matches!(*word, "inet" | "inet6"));
        words.nth(1).map(str::to_owned)
    };
    text.lines().filter_map(address).collect()
}

/// Routes through a gateway that leave by this interface.
fn routes(name: &str) -> Result<Vec<String>> {
    Ok(parse_routes(&ip(&["route", "show", "dev", name])?))
}

fn parse_routes(text: &str) -> Vec<String> {
    let route = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let via = words.iter().position(|word| *word == "via")?;
        Some([words.first()?, "via", words.get(via + 1)?].join(" "))
    };
    text.lines().filter_map(route).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["tap0", "bridge0", "br-lan"] {
            assert!(check_name(good).is_ok());
        }
        for bad in ["", "a/b", "..", "averylonginterface", "a b", "eth0:1"] {
            assert_eq!(check_name(bad).unwrap_err().1, 64, "{bad}");
        }
    }

    #[test]
    fn what_ip_prints_is_understood() {
        let text = "2: eth0    inet 192.0.2.5/24 brd 192.0.2.255 scope global eth0\\       valid_lft forever\n\
                    2: eth0    inet6 2001:db8::5/64 scope global \\       valid_lft forever\n";
        assert_eq!(parse_addresses(text), ["192.0.2.5/24", "2001:db8::5/64"]);
        let text = "default via 192.0.2.1 proto dhcp metric 100\n192.0.2.0/24 proto kernel scope link\n";
        assert_eq!(parse_routes(text), ["default via 192.0.2.1"]);
    }
}
