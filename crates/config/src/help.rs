//! Help texts, made from the declarations of the keys where there are any.

use crate::key::Key;

/// What `-h` prints, and what follows a command line that can't be read.
pub const USAGE: &str = "\
Usage: bhyve [-AaCDeHhIPSuWwxY]
             [-c [[cpus=]numcpus][,sockets=n][,cores=n][,threads=n]]
             [-f [name=]NAME,string|file=DATA] [-G [w][address:]port]
             [-k config_file] [-K layout] [-l lpcdev[,conf]]
             [-m memsize[K|M|G|T]] [-n id=n,size=s,cpus=set] [-o var=value]
             [-p vcpu:hostcpu] [-r file] [-s slot,device[,conf]] [-U uuid]
             vmname
       bhyve -l help
       bhyve -s help

  -A  make ACPI tables (always done)
  -a  local APICs are in xAPIC mode (the default)
  -C  have guest memory in core dumps
  -c  number of virtual CPUs, and how they are grouped
  -D  destroy the VM when the guest powers off
  -e  end when the guest uses an I/O port that nothing answers
  -f  give the firmware a file by fw_cfg
  -G  debug server; w waits for the debugger
  -H  give the host CPU away when the guest halts
  -h  this help
  -I  no effect
  -K  keyboard layout of VNC clients
  -k  read settings from a file of key=value lines
  -l  device of the LPC bridge
  -m  guest memory; a small bare number counts MiB
  -n  NUMA domain
  -o  set the variable var to value
  -P  give the host CPU away when the guest spins
  -p  run a virtual CPU on a host CPU only
  -r  resume from a snapshot
  -S  keep guest memory from being swapped
  -s  PCI device
  -U  UUID of the VM
  -u  the real time clock keeps UTC, not local time
  -W  virtio devices have MSI, not MSI-X
  -w  ignore unknown MSRs
  -x  local APICs start in x2APIC mode
  -Y  make no MP table
";

/// What `-l help` prints: the devices of the LPC bridge, one a line.
pub const LPC_HELP: &str = "bootrom\ncom1\ncom2\ncom3\ncom4\ntpm\npc-testdev\n";

/// The keys of a device, a line each, for `-s help` and the manual.
pub fn help(keys: &[Key]) -> String {
    let name = |key: &Key| format!("{}={}", key.name, key.kind.form());
    let width = keys.iter().map(|key| name(key).len()).max().unwrap_or(0);
    let mut text = String::new();
    for key in keys {
        let default = key.default.map_or_else(String::new, |default| format!(" ({default})"));
        let absent = if key.supported { "" } else { " [not supported yet]" };
        let line = format!("    {:width$}  {}{default}{absent}\n", name(key), key.help);
        text.push_str(&line);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn help_lines() {
        let keys = [
            Key::new("path", Kind::Path, "image"),
            Key::new("dsm", Kind::Choice(&["on", "off"]), "trim").default("on").unsupported(),
        ];
        assert_eq!(help(&keys), "    path=path   image\n    dsm=on|off  trim (on) [not supported yet]\n");
    }
}
