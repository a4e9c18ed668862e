//! `bhyve-host check`: what the handbook reads out of dmesg, and which engine would run guests.

use std::fs::{File, OpenOptions};
use std::process::ExitCode;

use engine::{Kind, Wanted, choose, virtualization};
use lexopt::Parser;
use recompiler::SoftEngine;

use super::Result;

/// Prints it. The status is 0 if some engine works.
pub fn run(parser: &mut Parser) -> Result<ExitCode> {
    if let Some(arg) = parser.next()? {
        return Err(arg.unexpected().into());
    }
    let cpu = Cpu::read(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
    let yes = |on: bool| if on { "yes" } else { "no" };
    println!("processor                 {}", cpu.model);
    println!("POPCNT                    {}", yes(cpu.has("popcnt")));
    if cpu.intel {
        println!("VT-x (vmx)                {}", yes(cpu.has("vmx")));
        println!("EPT                       {}", yes(cpu.has_vmx("ept")));
        println!("unrestricted guest (UG)   {}", yes(cpu.has_vmx("unrestricted_guest")));
    } else {
        println!("AMD-V (svm)               {}", yes(cpu.has("svm")));
        println!("RVI (npt)                 {}", yes(cpu.has("npt")));
    }
    println!("/dev/kvm                  {}", kvm());
    println!("/dev/net/tun              {}", device("/dev/net/tun", "modprobe tun"));
    let soft = SoftEngine::new();
    println!(
        "software engine           {}",
        soft.as_ref().map_or_else(|error| format!("no: {error}"), |_| "yes".into())
    );
    let choice = choose(Wanted::Auto).map_err(|error| error.to_string())?;
    println!("{choice}");
    let works = choice.kind == Kind::Kvm || soft.is_ok();
    Ok(if works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What /proc/cpuinfo says of the first processor.
struct Cpu {
    model: String,
    intel: bool,
    flags: Vec<String>,
    vmx_flags: Vec<String>,
}

impl Cpu {
    fn read(text: &str) -> Self {
        let field = |name: &str| {
            let line = text.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
            line.and_then(|line| line.split_once(':')).map_or("", |(_, value)| value.trim())
        };
        let words = |name: &str| field(name).split_whitespace().map(str::to_owned).collect();
        Self {
            model: field("model name").to_owned(),
            intel: field("vendor_id") != "AuthenticAMD" && field("vendor_id") != "HygonGenuine",
            flags: words("flags"),
            vmx_flags: words("vmx flags"),
        }
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|f| f == flag)
    }

    /// Older kernels list these among the others.
    fn has_vmx(&self, flag: &str) -> bool {
        self.vmx_flags.iter().any(|f| f == flag) || self.has(flag)
    }
}

/// The kernel module for this host's hardware virtualization.
pub fn kvm_module() -> Option<&'static str> {
    virtualization().map(|name| if name == "vmx" { "kvm_intel" } else { "kvm_amd" })
}

fn kvm() -> String {
    let hint = kvm_module().map_or_else(|| "no hardware virtualization".into(), |m| format!("modprobe {m}"));
    let state = device("/dev/kvm", &hint);
    let modules = std::fs::read_to_string("/proc/modules").unwrap_or_default();
    let names: Vec<&str> = modules
        .lines()
        .filter_map(|line| line.split(' ').next())
        .filter(|name| name.starts_with("kvm"))
        .collect();
    if names.is_empty() { state } else { format!("{state} ({})", names.join(", ")) }
}

fn device(path: &str, hint: &str) -> String {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(File { .. }) => "yes".into(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => format!("no ({hint})"),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            "no: this user may not open it".into()
        }
        Err(error) => format!("no: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpuinfo_is_understood() {
        let cpu = Cpu::read(
            "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: X Y\nflags\t\t: fpu vmx popcnt\n\
             vmx flags\t: ept unrestricted_guest\n\nprocessor\t: 1\n",
        );
        assert!(cpu.intel && cpu.has("popcnt") && cpu.has("vmx") && !cpu.has("ept"));
        assert!(cpu.has_vmx("ept") && cpu.has_vmx("unrestricted_guest") && !cpu.has("pop"));
        let cpu = Cpu::read("vendor_id : AuthenticAMD\nflags : svm npt\n");
        assert!(!cpu.intel && cpu.has("npt"));
        assert!(!Cpu::read("").has("vmx"));
    }
}
