//! Registers and descriptors, in bhyve's words.

use std::fmt::Write;

use engine::{Segment, TableRegister, VcpuState, reg, seg};

use super::options::{Given, Opt};

/// A register.
struct Register {
    name: &'static str,
    get: &'static str,
    /// `None`: it can only be read.
    set: Option<&'static str>,
    place: fn(&mut VcpuState) -> &mut u64,
}

macro_rules! register {
    ($name:literal, $field:ident $([$index:expr])?) => {
        Register {
            name: $name,
            get: concat!("get-", $name),
            set: None,
            place: |state| &mut state.$field $([$index])?,
        }
    };
    ($name:literal, $field:ident $([$index:expr])?, set) => {
        Register { set: Some(concat!("set-", $name)), ..register!($name, $field $([$index])?) }
    };
}

/// In the order in which bhyvectl prints them.
static REGISTERS: [Register; 29] = [
    register!("efer", efer, set),
    register!("cr0", cr0, set),
    register!("cr2", cr2, set),
    register!("cr3", cr3, set),
    register!("cr4", cr4, set),
    register!("dr0", dr[0], set),
    register!("dr1", dr[1], set),
    register!("dr2", dr[2], set),
    register!("dr3", dr[3], set),
    register!("dr6", dr[6], set),
    register!("dr7", dr[7], set),
    register!("rsp", gpr[reg::RSP], set),
    register!("rip", rip, set),
    register!("rax", gpr[reg::RAX], set),
    register!("rbx", gpr[reg::RBX]),
    register!("rcx", gpr[reg::RCX]),
    register!("rdx", gpr[reg::RDX]),
    register!("rsi", gpr[reg::RSI]),
    register!("rdi", gpr[reg::RDI]),
    register!("rbp", gpr[reg::RBP]),
    register!("r8", gpr[8]),
    register!("r9", gpr[9]),
    register!("r10", gpr[10]),
    register!("r11", gpr[11]),
    register!("r12", gpr[12]),
    register!("r13", gpr[13]),
    register!("r14", gpr[14]),
    register!("r15", gpr[15]),
    register!("rflags", rflags, set),
];

/// A segment register and its options.
struct SegmentRegister {
    name: &'static str,
    index: usize,
    get: &'static str,
    set: &'static str,
    get_desc: &'static str,
    set_desc: &'static str,
}

macro_rules! segments {
    ($($name:literal $index:ident),* $(,)?) => {
        [$(SegmentRegister {
            name: $name,
            index: seg::$index,
            get: concat!("get-", $name),
            set: concat!("set-", $name),
            get_desc: concat!("get-desc-", $name),
            set_desc: concat!("set-desc-", $name),
        }),*]
    };
}

/// In the order in which bhyvectl prints descriptors.
static SEGMENTS: [SegmentRegister; 8] = segments![
    "ds" DS, "es" ES, "fs" FS, "gs" GS, "ss" SS, "cs" CS, "tr" TR, "ldtr" LDTR,
];

/// The order in which it prints selectors.
const SELECTORS: [&str; 8] = ["cs", "ds", "es", "fs", "gs", "ss", "tr", "ldtr"];

/// Descriptor tables.
const TABLES: [(&str, &str, &str); 2] =
    [("gdtr", "get-desc-gdtr", "set-desc-gdtr"), ("idtr", "get-desc-idtr", "set-desc-idtr")];

/// The options of registers and descriptors.
pub fn options() -> Vec<Opt> {
    let mut options = Vec::new();
    for register in &REGISTERS {
        options.push((register.get, None));
        options.extend(register.set.map(|set| (set, Some("value"))));
    }
    for segment in &SEGMENTS {
        options.extend([(segment.get, None), (segment.set, Some("selector"))]);
        options.extend([(segment.get_desc, None), (segment.set_desc, None)]);
    }
    options.extend(TABLES.iter().flat_map(|(_, get, set)| [(*get, None), (*set, None)]));
    options
}

/// Whether any register shall be printed.
pub fn wanted(given: &Given) -> bool {
    given.names().any(|name| options().iter().any(|(option, _)| *option == name && name.starts_with("get-")))
}

/// The options given that change registers.
pub fn changes(given: &Given) -> Vec<String> {
    let changing =
        |name: &&str| name.starts_with("set-") && options().iter().any(|(option, _)| option == name);
    given.names().filter(changing).map(str::to_owned).collect()
}

/// Does all `set` options.
pub fn set(given: &Given, state: &mut VcpuState) -> Result<(), String> {
    for register in &REGISTERS {
        if let Some(option) = register.set
            && let Some(value) = given.number(option)?
        {
            *(register.place)(state) = value;
        }
    }
    for s in &SEGMENTS {
        let Some(segment) = state.segments.get_mut(s.index) else { continue };
        if let Some(selector) = given.at_most(s.set, u64::from(u16::MAX))? {
            segment.selector = selector as u16;
        }
        if given.has(s.set_desc) {
            let (base, limit, access) = descriptor(given)?;
            *segment = Segment { base, limit, access, selector: segment.selector };
        }
    }
    for (name, _, set) in TABLES {
        if given.has(set) {
            let (base, limit, _) = descriptor(given)?;
            let limit =
                u16::try_from(limit).map_err(|_| format!("--desc-limit={limit:#x}: more than 65535"))?;
            let table = TableRegister { base, limit };
            if name == "gdtr" { state.gdtr = table } else { state.idtr = table }
        }
    }
    Ok(())
}

/// Base, limit and access; what is not given is 0.
fn descriptor(given: &Given) -> Result<(u64, u32, u32), String> {
    let word = |name| Ok::<_, String>(given.at_most(name, u64::from(u32::MAX))?.unwrap_or(0) as u32);
    Ok((given.number("desc-base")?.unwrap_or(0), word("desc-limit")?, word("desc-access")?))
}

/// Prints what is asked for.
pub fn show(given: &Given, cpu: u32, state: &VcpuState, out: &mut String) {
    // Places are found in what may be changed.
    let mut copy = state.clone();
    for register in REGISTERS.iter().filter(|r| given.wants(r.get)) {
        let tabs = if register.name == "rflags" { "\t" } else { "\t\t" };
        let _ = writeln!(out, "{}[{cpu}]{tabs}{:#018x}", register.name, (register.place)(&mut copy));
    }
    for s in SEGMENTS.iter().filter(|s| given.wants(s.get_desc)) {
        let Some(segment) = state.segments.get(s.index) else { continue };
        let Segment { base, limit, access, .. } = segment;
        let _ = writeln!(out, "{} desc[{cpu}]\t{base:#018x}/{limit:#010x}/{access:#010x}", s.name);
    }
    for (name, get, _) in TABLES {
        if given.wants(get) {
            let table = if name == "gdtr" { state.gdtr } else { state.idtr };
            let _ = writeln!(out, "{name}[{cpu}]\t\t{:#018x}/{:#010x}", table.base, table.limit);
        }
    }
    for name in SELECTORS {
        let segment = SEGMENTS.iter().find(|s| s.name == name).filter(|s| given.wants(s.get));
        if let Some(segment) = segment.and_then(|s| state.segments.get(s.index)) {
            let _ = writeln!(out, "{name}[{cpu}]\t\t{:#06x}", segment.selector);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::parse;
    use super::*;

    fn given(words: &[&str]) -> Given {
        let known = [super::super::options::OPTIONS, &options()].concat();
        parse(words.iter().map(|word| (*word).to_owned()), &known).unwrap()
    }

    fn shown(words: &[&str], state: &VcpuState) -> String {
        let mut out = String::new();
        show(&given(words), 2, state, &mut out);
        out
    }

    #[test]
    fn registers_print_as_bhyve_prints_them() {
        let mut state = VcpuState::reset(0);
        state.gpr[reg::RAX] = 0x1234;
        assert_eq!(shown(&["--get-rax"], &state), "rax[2]\t\t0x0000000000001234\n");
        assert_eq!(shown(&["--get-rflags"], &state), "rflags[2]\t0x0000000000000002\n");
        assert_eq!(
            shown(&["--get-desc-cs", "--get-cs", "--get-desc-gdtr"], &state),
            "cs desc[2]\t0x00000000ffff0000/0x0000ffff/0x0000009b\n\
             gdtr[2]\t\t0x0000000000000000/0x0000ffff\ncs[2]\t\t0xf000\n"
        );
        let all = shown(&["--get-all"], &state);
        assert_eq!(all.lines().count(), 29 + 8 + 2 + 8);
        assert!(all.starts_with("efer[2]\t\t"));
    }

    #[test]
    fn what_is_set_is_what_is_got() {
        let mut state = VcpuState::reset(0);
        let words = [
            "--set-rip=0x1000",
            "--set-dr7=1024",
            "--set-rsp=0x8000",
            "--set-desc-fs",
            "--set-fs=0x33",
            "--desc-base=0x7000",
            "--desc-limit=0xfff",
            "--desc-access=0x93",
        ];
        let g = given(&words);
        set(&g, &mut state).unwrap();
        assert_eq!((state.rip, state.dr[7], state.gpr[reg::RSP]), (0x1000, 1024, 0x8000));
        let fs = Segment { base: 0x7000, limit: 0xfff, access: 0x93, selector: 0x33 };
        assert_eq!(state.segments[seg::FS], fs);
        assert_eq!(changes(&g), ["set-desc-fs", "set-dr7", "set-fs", "set-rip", "set-rsp"]);
        assert!(!wanted(&g) && wanted(&given(&["--get-ldtr"])));
        set(&given(&["--set-desc-idtr", "--desc-limit=0x7ff"]), &mut state).unwrap();
        assert_eq!(state.idtr, TableRegister { base: 0, limit: 0x7ff });
        assert!(set(&given(&["--set-desc-gdtr", "--desc-limit=0x10000"]), &mut state).is_err());
        assert!(set(&given(&["--set-cs=0x10000"]), &mut state).is_err());
        let names: Vec<_> = options().iter().map(|(name, _)| *name).collect();
        assert!(names.contains(&"set-efer") && !names.contains(&"set-rbx"));
    }
}
