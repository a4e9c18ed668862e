//! What is neither a register nor a descriptor, in bhyve's words.

use std::fmt::Write;

use engine::VcpuState;
use firmware::{HIGH_BASE, MemoryMap};
use vm::{Phase, Ram, State};

/// IA32_APIC_BASE: x2APIC mode.
pub const X2APIC: u64 = 1 << 10;
/// IA32_PAT, and SYSENTER's CS, ESP and EIP.
const PAT: u32 = 0x277;
const SYSENTER: [(u32, &str); 3] = [(0x174, "cs"), (0x175, "sp"), (0x176, "ip")];

/// A size as humanize_number(3) writes it in seven characters: up to five digits and a unit.
fn humanized(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "K", "M", "G", "T", "P", "E"];
    let (mut value, mut remainder, mut unit) = (bytes, 0, 0);
    while value >= 100_000 && unit + 1 < UNITS.len() {
        (remainder, value) = (value % 1024, value / 1024);
        unit += 1;
    }
    format!("{}{}B", value + (remainder + 512) / 1024, UNITS.get(unit).copied().unwrap_or_default())
}

/// As printf's `%#lx`.
fn hex(value: u64) -> String {
    if value == 0 { "0".into() } else { format!("{value:#x}") }
}

/// `--get-memseg`.
pub fn segments(ram: Option<&Ram>, out: &mut String) {
    out.push_str("ID  Length      Name\n");
    if let Some(ram) = ram {
        let _ = writeln!(out, "{:<4}{:<12}sysmem", 0, humanized(ram.size));
    }
}

/// `--get-memmap`.
pub fn map(ram: Option<&Ram>, out: &mut String) {
    out.push_str("Address     Length      Segment     Offset      Prot  Flags\n");
    let Some(ram) = ram else { return };
    let mut offset = 0;
    for (gpa, len) in MemoryMap::new(ram.size).layout() {
        let flags = if ram.wired { "wired" } else { "" };
        let length = humanized(len);
        let _ = writeln!(out, "{gpa:<12X}{length:<12}{:<12}{offset:<12X}RWX   {flags}", "sysmem");
        offset += len;
    }
}

/// `--get-lowmem` and `--get-highmem`.
pub fn part(ram: Option<&Ram>, high: bool, out: &mut String) {
    let map = MemoryMap::new(ram.map_or(0, |ram| ram.size));
    let (name, gpa, len) = if high { ("highmem", HIGH_BASE, map.high) } else { ("lowmem", 0, map.low) };
    let wired = if ram.is_some_and(|ram| ram.wired) { " wired" } else { "" };
    let _ = writeln!(out, "{name}\t\t{gpa:#018x}/{len}{wired}");
}

/// `--get-gpa-pmap`: where in which segment an address is; nothing where there is no memory.
pub fn address(ram: Option<&Ram>, gpa: u64, out: &mut String) {
    let _ = write!(out, "gpa {}:", hex(gpa));
    let mut offset = 0;
    for (base, len) in MemoryMap::new(ram.map_or(0, |ram| ram.size)).layout() {
        if gpa.checked_sub(base).is_some_and(|at| at < len) {
            let _ = write!(out, " sysmem {}", hex(offset + gpa - base));
        }
        offset += len;
    }
    out.push('\n');
}

/// `--get-active-cpus` and `--get-suspended-cpus`.
pub fn cpus(banner: &str, cpus: &[u32], out: &mut String) {
    let _ = write!(out, "{banner}:\t");
    if cpus.is_empty() {
        out.push_str(" (none)");
    }
    for (n, cpu) in cpus.iter().enumerate() {
        let _ = write!(out, "{} {cpu}", if n == 0 { "" } else { "," });
    }
    out.push('\n');
}

/// `--get-x2apic-state`.
pub fn x2apic(cpu: u32, state: &VcpuState, out: &mut String) {
    let _ = writeln!(out, "x2apic_state[{cpu}]\t{}", u8::from(state.apic_base & X2APIC != 0));
}

fn msr(state: &VcpuState, index: u32) -> u64 {
    state.msrs.iter().find(|(other, _)| *other == index).map_or(0, |(_, value)| *value)
}

/// `--get-guest-pat`.
pub fn pat(cpu: u32, state: &VcpuState, out: &mut String) {
    let _ = writeln!(out, "guest_pat[{cpu}]\t\t{:#018x}", msr(state, PAT));
}

/// `--get-guest-sysenter`.
pub fn sysenter(cpu: u32, state: &VcpuState, out: &mut String) {
    for (index, name) in SYSENTER {
        let _ = writeln!(out, "guest_sysenter_{name}[{cpu}]\t{}", hex(msr(state, index)));
    }
}

/// `--get-intinfo`: what is being delivered is known only inside of an engine.
pub fn events(state: &VcpuState, out: &mut String) {
    out.push_str(if state.pending.nmi { "pending:\tnmi vector 2\n" } else { "pending:\tn/a\n" });
    out.push_str("current:\tn/a\n");
}

/// `--get-exit-reason` of a VM that does not run: how it ended.
pub fn end(state: &State) -> String {
    match state.phase {
        Phase::Ended { status: 0 } => "reset".into(),
        Phase::Ended { status: 1 } => "power-off".into(),
        Phase::Ended { status: 2 } => "halt".into(),
        Phase::Ended { status: 3 } => "triple fault".into(),
        Phase::Ended { status } => format!("error (status {status})"),
        Phase::Running => "killed".into(),
        Phase::Created | Phase::Loading | Phase::Loaded => "never run".into(),
    }
}

/// `--get-stats`.
pub fn statistics(cpu: u32, list: &[(String, u64)], out: &mut String) {
    let _ = writeln!(out, "vcpu{cpu} stats:");
    for (name, value) in list {
        let _ = writeln!(out, "{name:<40}\t{value}");
    }
}

/// `--get-rtc-time`.
pub fn time(seconds: i64, out: &mut String) {
    const DAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = date(days);
    // 1970 began on a Thursday.
    let weekday = DAYS.get((days + 4).rem_euclid(7) as usize).copied().unwrap_or("UNK");
    let month = MONTHS.get(month).copied().unwrap_or("UNK");
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let _ = writeln!(
        out,
        "rtc time {}: {weekday} {month} {day:02} {hour:02}:{minute:02}:{second:02} {year}",
        hex(seconds as u64)
    );
}

/// Year, month from 0 and day from 1 of a count of days since 1970 in the Gregorian calendar.
fn date(days: i64) -> (i64, usize, i64) {
    let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    // 146097 days are 400 years.
    let (mut year, mut rest) = (1970 + days.div_euclid(146_097) * 400, days.rem_euclid(146_097));
    loop {
        let length = if leap(year) { 366 } else { 365 };
        if rest < length {
            break;
        }
        rest -= length;
        year += 1;
    }
    let february = if leap(year) { 29 } else { 28 };
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    for length in lengths {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    (year, month, rest + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(print: impl FnOnce(&mut String)) -> String {
        let mut out = String::new();
        print(&mut out);
        out
    }

    #[test]
    fn sizes_have_five_digits_at_most() {
        for (bytes, expected) in [
            (4096, "4096B"),
            (512 << 20, "512MB"),
            (3 << 30, "3072MB"),
            (1 << 30, "1024MB"),
            (200 << 30, "200GB"),
        ] {
            assert_eq!(humanized(bytes), expected);
        }
    }

    #[test]
    fn memory_is_shown_as_it_is_laid_out() {
        let ram = Ram { size: 4 << 30, path: None, wired: true };
        assert_eq!(text(|o| segments(Some(&ram), o)), "ID  Length      Name\n0   4096MB      sysmem\n");
        assert_eq!(
            text(|o| map(Some(&ram), o)),
            "Address     Length      Segment     Offset      Prot  Flags\n\
             0           3072MB      sysmem      0           RWX   wired\n\
             100000000   1024MB      sysmem      C0000000    RWX   wired\n"
        );
        assert_eq!(text(|o| part(Some(&ram), false, o)), "lowmem\t\t0x0000000000000000/3221225472 wired\n");
        assert_eq!(text(|o| part(Some(&ram), true, o)), "highmem\t\t0x0000000100000000/1073741824 wired\n");
        assert_eq!(text(|o| address(Some(&ram), 0x1_0000_1000, o)), "gpa 0x100001000: sysmem 0xc0001000\n");
        assert_eq!(text(|o| address(Some(&ram), 0xd000_0000, o)), "gpa 0xd0000000:\n");
        assert_eq!(text(|o| address(None, 0, o)), "gpa 0:\n");
    }

    #[test]
    fn lists_and_times_are_bhyves() {
        assert_eq!(text(|o| cpus("active cpus", &[0, 2], o)), "active cpus:\t 0, 2\n");
        assert_eq!(text(|o| cpus("suspended cpus", &[], o)), "suspended cpus:\t (none)\n");
        assert_eq!(text(|o| time(1_709_251_198, o)), "rtc time 0x65e11a7e: Thu Feb 29 23:59:58 2024\n");
        assert_eq!(text(|o| time(0, o)), "rtc time 0: Thu Jan 01 00:00:00 1970\n");
        assert!(text(|o| time(-1, o)).ends_with(": Wed Dec 31 23:59:59 1969\n"));
        let list = [("total number of vm exits".to_owned(), 7)];
        let line = "total number of vm exits                \t7\n";
        assert_eq!(text(|o| statistics(1, &list, o)), format!("vcpu1 stats:\n{line}"));
    }
}
