//! The command line, as getopt_long(3) reads it: `--name`, `--name=value`, `--name value`, and any
//! beginning of a name that fits no other.

use std::collections::BTreeMap;

/// An option, and what its value is called if it has one.
pub type Opt = (&'static str, Option<&'static str>);

/// The options that every VM has an answer to, in the order of the usage.
pub const OPTIONS: &[Opt] = &[
    ("vm", Some("vmname")),
    ("cpu", Some("vcpu_number")),
    ("create", None),
    ("destroy", None),
    ("checkpoint", Some("filename")),
    ("suspend", Some("filename")),
    ("get-all", None),
    ("get-stats", None),
    ("run", None),
    ("capname", Some("capname")),
    ("getcap", None),
    ("setcap", Some("0|1")),
    ("set-mem", Some("memory in units of MB")),
    ("get-memmap", None),
    ("get-memseg", None),
    ("get-lowmem", None),
    ("get-highmem", None),
    ("get-gpa-pmap", Some("gpa")),
    ("inject-nmi", None),
    ("force-reset", None),
    ("force-poweroff", None),
    ("get-active-cpus", None),
    ("get-suspended-cpus", None),
    ("get-cpu-topology", None),
    ("get-exit-reason", None),
    ("get-intinfo", None),
    ("assert-lapic-lvt", Some("pin")),
    ("unassign-pptdev", Some("bus/slot/func")),
    ("get-rtc-time", None),
    ("set-rtc-time", Some("secs")),
    ("get-rtc-nvram", None),
    ("set-rtc-nvram", Some("val")),
    ("rtc-nvram-offset", Some("offset")),
    ("get-x2apic-state", None),
    ("set-x2apic-state", Some("state")),
    ("get-guest-pat", None),
    ("get-guest-sysenter", None),
    ("desc-base", Some("BASE")),
    ("desc-limit", Some("LIMIT")),
    ("desc-access", Some("ACCESS")),
];

/// What only the kernel module of bhyve knows: fields of its processor's structures.
pub const RAW: &[Opt] = &[
    ("get-eptp", None),
    ("get-exception-bitmap", None),
    ("set-exception-bitmap", Some("bitmap")),
    ("get-io-bitmap-address", None),
    ("get-tsc-offset", None),
    ("get-msr-bitmap", None),
    ("get-msr-bitmap-address", None),
    ("get-apic-access-address", None),
    ("get-virtual-apic-address", None),
    ("get-vmcs-pinbased-ctls", None),
    ("get-vmcs-procbased-ctls", None),
    ("get-vmcs-procbased-ctls2", None),
    ("get-vmcs-guest-linear-address", None),
    ("get-vmcs-guest-physical-address", None),
    ("get-vmcs-entry-interruption-info", None),
    ("set-vmcs-entry-interruption-info", Some("info")),
    ("get-vmcs-cr0-mask", None),
    ("get-vmcs-cr0-shadow", None),
    ("get-vmcs-cr4-mask", None),
    ("get-vmcs-cr4-shadow", None),
    ("get-vmcs-cr3-targets", None),
    ("get-vmcs-tpr-threshold", None),
    ("get-vmcs-vpid", None),
    ("get-vmcs-exit-ctls", None),
    ("get-vmcs-entry-ctls", None),
    ("get-vmcs-instruction-error", None),
    ("get-vmcs-host-pat", None),
    ("get-vmcs-host-cr0", None),
    ("get-vmcs-host-cr3", None),
    ("get-vmcs-host-cr4", None),
    ("get-vmcs-host-rip", None),
    ("get-vmcs-host-rsp", None),
    ("get-vmcs-exit-qualification", None),
    ("get-vmcs-exit-inst-length", None),
    ("get-vmcs-interruptibility", None),
    ("get-vmcs-exit-interruption-error", None),
    ("get-vmcs-exit-interruption-info", None),
    ("get-vmcs-link", None),
    ("get-vmcb-intercepts", None),
    ("get-vmcb-asid", None),
    ("get-vmcb-exit-details", None),
    ("get-vmcb-tlb-ctrl", None),
    ("get-vmcb-virq", None),
    ("get-avic-apic-bar", None),
    ("get-avic-backing-page", None),
    ("get-avic-table", None),
];

/// What was asked for: each option once, the last value counts.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Given(BTreeMap<String, String>);

impl Given {
    /// Whether an option was given.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Whether a `get` option was given, by itself or with all others.
    pub fn wants(&self, name: &str) -> bool {
        self.has(name) || self.has("get-all")
    }

    /// An option's value.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// An option's value as strtoul(3) reads it in any base.
    pub fn number(&self, name: &str) -> Result<Option<u64>, String> {
        let Some(text) = self.text(name) else { return Ok(None) };
        parse_number(text).map(Some).ok_or_else(|| format!("--{name}={text}: expected a number"))
    }

    /// A number that has at most this value.
    pub fn at_most(&self, name: &str, most: u64) -> Result<Option<u64>, String> {
        match self.number(name)? {
            Some(number) if number > most => Err(format!("--{name}={number}: more than {most}")),
            other => Ok(other),
        }
    }

    /// The options that were given, in order of their names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

fn parse_number(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    if let Some(digits) = lower.strip_prefix("0x") {
        return u64::from_str_radix(digits, 16).ok();
    }
    match lower.strip_prefix('0') {
        Some(digits) if !digits.is_empty() => u64::from_str_radix(digits, 8).ok(),
        _ if lower.starts_with('+') => None,
        _ => lower.parse().ok(),
    }
}

/// Reads the arguments; `known` are the options there are.
pub fn parse(arguments: impl IntoIterator<Item = String>, known: &[Opt]) -> Result<Given, String> {
    let mut given = Given::default();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let Some(option) = argument.strip_prefix("--").filter(|option| !option.is_empty()) else {
            return Err(format!("{argument}: not an option"));
        };
        let (word, value) = option.split_once('=').map_or((option, None), |(w, v)| (w, Some(v.to_owned())));
        let (name, needs) = find(word, known)?;
        let value = match (needs, value) {
            (None, None) => String::new(),
            (None, Some(_)) => return Err(format!("--{name} takes no value")),
            (Some(_), Some(value)) => value,
            (Some(what), None) => {
                arguments.next().ok_or_else(|| format!("--{name} needs a value: {what}"))?
            }
        };
        given.0.insert(name.to_owned(), value);
    }
    Ok(given)
}

fn find(word: &str, known: &[Opt]) -> Result<Opt, String> {
    if let Some(option) = known.iter().find(|(name, _)| *name == word) {
        return Ok(*option);
    }
    let mut fitting = known.iter().filter(|(name, _)| name.starts_with(word));
    match (fitting.next(), fitting.next()) {
        (Some(option), None) => Ok(*option),
        (None, _) => Err(format!("--{word}: there is no such option")),
        (Some((one, _)), Some((other, _))) => Err(format!("--{word}: is that --{one} or --{other}?")),
    }
}

/// The usage, with a line for each option.
pub fn usage(known: &[Opt]) -> String {
    let mut text = "Usage: bhyvectl --vm=<vmname>\n".to_owned();
    for (name, value) in known.iter().filter(|(name, _)| *name != "vm") {
        match value {
            Some(value) => text.extend(["       [--", name, "=<", value, ">]\n"]),
            None => text.extend(["       [--", name, "]\n"]),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(words: &[&str]) -> Result<Given, String> {
        parse(words.iter().map(|word| (*word).to_owned()), OPTIONS)
    }

    #[test]
    fn options_are_read_as_getopt_long_does() {
        let g = given(&["--vm", "a", "--cpu=1", "--get-st", "--vm=b"]).unwrap();
        assert_eq!((g.text("vm"), g.number("cpu"), g.has("get-stats")), (Some("b"), Ok(Some(1)), true));
        assert!(g.wants("get-stats") && !g.wants("get-memmap"));
        assert!(given(&["--get-all"]).unwrap().wants("get-memmap"));
        let error = |words: &[&str]| given(words).unwrap_err();
        assert_eq!(error(&["--vm"]), "--vm needs a value: vmname");
        assert_eq!(error(&["--destroy=now"]), "--destroy takes no value");
        assert_eq!(error(&["--get-mem"]), "--get-mem: is that --get-memmap or --get-memseg?");
        assert_eq!(error(&["--nosuch=1"]), "--nosuch: there is no such option");
        assert_eq!(error(&["vm"]), "vm: not an option");
    }

    #[test]
    fn numbers_have_any_base() {
        for (text, number) in [("10", 10), ("0x1F", 31), ("017", 15), ("0", 0)] {
            assert_eq!(given(&["--cpu", text]).unwrap().number("cpu"), Ok(Some(number)));
        }
        for text in ["", "x", "0x", "1k", "-1", "+1", "08", "99999999999999999999"] {
            assert!(given(&["--cpu", text]).unwrap().number("cpu").is_err(), "{text}");
        }
        assert!(given(&["--cpu", "9"]).unwrap().at_most("cpu", 8).is_err());
    }

    #[test]
    fn the_usage_names_every_option() {
        let text = usage(OPTIONS);
        assert!(text.starts_with("Usage: bhyvectl --vm=<vmname>\n       [--cpu=<vcpu_number>]\n"));
        assert!(text.contains("       [--get-stats]\n") && !text.contains("[--vm"));
    }
}
