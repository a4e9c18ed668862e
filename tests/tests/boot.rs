//! Stock Debian kernels boot to a shell, and end as they should.

use std::time::Duration;

use guest_tests::{Guest, Lab, Machine, Result};

/// How long a boot may take on a loaded machine.
const BOOT: Duration = Duration::from_mins(3);

/// How long a running guest may take to end.
const END: Duration = Duration::from_mins(1);

/// Boots the machine to a shell.
fn boot(lab: &Lab, machine: &Machine) -> Result<Guest> {
    let mut guest = Guest::spawn(machine, &lab.vmm)?;
    guest.wait_shell(BOOT)?;
    Ok(guest)
}

/// The status of a VMM whose guest powered off: bhyve has one of its own for it.
fn powered_off(lab: &Lab) -> i32 {
    i32::from(lab.is_bhyve())
}

/// Boots with this many vCPUs and has each of them do something.
fn boots_with(cpus: u32) -> Result<()> {
    let Some(lab) = Lab::or_skip() else { return Ok(()) };
    let mut guest = boot(&lab, &lab.machine("boot").cpus(cpus))?;
    assert_eq!(guest.check("nproc")?.trim(), cpus.to_string());
    assert_eq!(guest.check("uname -r")?.trim(), lab.kernel.release);
    for cpu in 0..cpus {
        let command = format!("taskset -c {cpu} sh -c 'seq 1 1000 | md5sum'");
        assert_eq!(guest.check(&command)?, "53d025127ae99ab79e8502aae2d9bea6  -\n", "on CPU {cpu}");
    }
    let trouble = guest.run("dmesg | grep -E 'BUG|Oops|WARNING|Call Trace|soft lockup|rcu.*stall'")?;
    assert_eq!(trouble, (1, String::new()), "the kernel is content");
    guest.type_line("exit")?;
    guest.expect_exit(powered_off(&lab), END)?;
    Ok(())
}

#[test]
fn boots_to_a_shell_on_one_cpu() -> Result<()> {
    boots_with(1)
}

#[test]
fn boots_to_a_shell_on_two_cpus() -> Result<()> {
    boots_with(2)
}

#[test]
fn boots_to_a_shell_on_four_cpus() -> Result<()> {
    boots_with(4)
}

#[test]
fn memory_above_the_hole_is_used() -> Result<()> {
    let Some(lab) = Lab::or_skip() else { return Ok(()) };
    let mut guest = boot(&lab, &lab.machine("six").memory("6G"))?;
    let total = guest.check("awk '/MemTotal/ {print $2}' /proc/meminfo")?;
    let total: u64 = total.trim().parse()?;
    assert!((5_800_000..6_291_456).contains(&total), "{total} KiB");
    // RAM from 4 GiB on is there, beside what fits below the hole.
    assert_eq!(guest.run("grep -q '^1000*-.*System RAM' /proc/iomem")?.0, 0);
    Ok(())
}

#[test]
fn reset_gives_status_0() -> Result<()> {
    let Some(lab) = Lab::or_skip() else { return Ok(()) };
    let mut guest = boot(&lab, &lab.machine("reset"))?;
    guest.type_line("reboot -f")?;
    guest.expect_exit(0, END)?;
    Ok(())
}

#[test]
fn power_off_gives_status_1() -> Result<()> {
    let Some(lab) = Lab::or_skip() else { return Ok(()) };
    let mut guest = boot(&lab, &lab.machine("poweroff"))?;
    guest.type_line("poweroff")?;
    guest.expect_exit(powered_off(&lab), END)?;
    Ok(())
}

#[test]
fn triple_fault_gives_status_3() -> Result<()> {
    let Some(lab) = Lab::or_skip() else { return Ok(()) };
    let mut guest = boot(&lab, &lab.machine("triple").cmdline("quiet reboot=t"))?;
    guest.type_line("reboot -f")?;
    guest.expect_exit(if lab.is_bhyve() { 3 } else { 0 }, END)?;
    Ok(())
}

#[test]
fn sigterm_is_the_power_button() -> Result<()> {
    let Some(lab) = Lab::or_skip() else { return Ok(()) };
    let mut guest = boot(&lab, &lab.machine("button"))?;
    guest.check("acpid -c /etc/acpi; sleep 1; pidof acpid")?;
    guest.power_button()?;
    guest.expect_exit(powered_off(&lab), END)?;
    Ok(())
}

#[test]
fn an_idle_guest_costs_next_to_nothing() -> Result<()> {
    let Some(lab) = Lab::or_skip() else { return Ok(()) };
    let mut guest = boot(&lab, &lab.machine("idle"))?;
    let cpu = |guest: &mut Guest| -> Result<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", guest.process().id()))?;
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        // utime and stime, in hundredths of a second, are the 14th and 15th field of proc_pid_stat(5).
        fields.skip(11).take(2).map(|field| Ok(field.parse::<u64>()?)).sum()
    };
    let before = cpu(&mut guest)?;
    guest.check("sleep 10")?;
    let spent = cpu(&mut guest)? - before;
    assert!(spent < 200, "{spent} hundredths of a second of CPU in ten idle seconds");
    Ok(())
}

#[test]
fn a_terminal_is_left_as_it_was() -> Result<()> {
    let Some(lab) = Lab::or_skip() else { return Ok(()) };
    if !lab.is_bhyve() {
        return Ok(());
    }
    let (mut guest, terminal) = Guest::spawn_on_terminal(&lab.machine("terminal"), &lab.vmm)?;
    guest.wait_shell(BOOT)?;
    let raw = rustix::termios::tcgetattr(&terminal)?;
    assert!(!raw.local_modes.contains(rustix::termios::LocalModes::ICANON), "raw while it runs");
    guest.type_line("poweroff -f")?;
    guest.expect_exit(1, END)?;
    let after = rustix::termios::tcgetattr(&terminal)?;
    let modes = rustix::termios::LocalModes::ICANON | rustix::termios::LocalModes::ECHO;
    assert!(after.local_modes.contains(modes), "as a shell wants it");
    Ok(())
}
