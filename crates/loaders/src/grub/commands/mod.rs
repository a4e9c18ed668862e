//! The commands, one file a topic.

pub mod arguments;
mod bsd;
mod devices;
mod environment;
mod files;
mod flow;
mod hash;
mod linux;
mod list;
mod modules;
mod multiboot;
mod terminal;
mod test;
mod variables;

pub(super) use bsd::freebsd_environment;
pub(super) use flow::control;

use super::Session;
use super::error::Outcome;

/// A command.
pub(super) struct Command {
    pub name: &'static str,
    /// Its arguments, for `help`.
    pub usage: &'static str,
    pub summary: &'static str,
    pub run: fn(&mut Session, &[String]) -> Outcome,
}

const fn command(
    name: &'static str,
    usage: &'static str,
    summary: &'static str,
    run: fn(&mut Session, &[String]) -> Outcome,
) -> Command {
    Command { name, usage, summary, run }
}

/// All topics.
const TOPICS: [&[Command]; 13] = [
    bsd::COMMANDS,
    devices::COMMANDS,
    environment::COMMANDS,
    files::COMMANDS,
    flow::COMMANDS,
    hash::COMMANDS,
    list::COMMANDS,
    linux::COMMANDS,
    modules::COMMANDS,
    multiboot::COMMANDS,
    terminal::COMMANDS,
    test::COMMANDS,
    variables::COMMANDS,
];

/// Words of the language that stand where commands do.
const WORDS: [&str; 12] = [
    "!",
    "for",
    "function",
    "if",
    "menuentry",
    "submenu",
    "until",
    "while",
    "break",
    "continue",
    "return",
    "else",
];

/// What GRUB has somewhere and we have not.
const REFUSED: &[(&[&str], &str)] = &[
    (
        &["chainloader", "ntldr", "freedos", "drivemap", "plan9", "truecrypt"],
        "there is no BIOS to run boot sectors with",
    ),
    (&["multiboot2", "module2"], "Multiboot 2 kernels can't be loaded; Multiboot 1 kernels can"),
    (
        &[
            "xnu_kernel",
            "xnu_kernel64",
            "xnu_kext",
            "xnu_kextdir",
            "xnu_mkext",
            "xnu_ramdisk",
            "xnu_resume",
            "xnu_splash",
            "xnu_uuid",
            "xnu_devprop_load",
        ],
        "Darwin kernels can't be loaded",
    ),
    (
        &[
            "setpci",
            "lspci",
            "lsacpi",
            "acpi",
            "smbios",
            "lsefi",
            "lsefimmap",
            "lsefisystab",
            "lsapm",
            "lsmmap",
            "cacheinfo",
            "inb",
            "inw",
            "inl",
            "outb",
            "outw",
            "outl",
            "rdmsr",
            "wrmsr",
            "cpuid",
            "pcidump",
            "hdparm",
            "keylayouts",
            "badram",
            "cutmem",
            "usb",
            "gdbstub",
        ],
        "the machine does not exist yet",
    ),
    (
        &["read_byte", "read_word", "read_dword", "write_byte", "write_word", "write_dword", "dump", "memrw"],
        "the machine has no memory to look at yet",
    ),
    (
        &[
            "videoinfo",
            "videotest",
            "videotest_checksum",
            "vbeinfo",
            "vbetest",
            "lsfonts",
            "gfxmenu",
            "cbmemc",
        ],
        "there is no graphics screen",
    ),
    (&["parttool", "gptsync", "gptrepair"], "disk images are not changed"),
    (&["blocklist"], "file systems are read without their block lists"),
    (
        &[
            "extract_entries_source",
            "extract_entries_configfile",
            "extract_legacy_entries_source",
            "extract_legacy_entries_configfile",
            "extract_syslinux_entries_source",
            "extract_syslinux_entries_configfile",
        ],
        "entries are not extracted from files",
    ),
    (
        &[
            "legacy_source",
            "legacy_configfile",
            "legacy_kernel",
            "legacy_initrd",
            "legacy_initrd_nounzip",
            "legacy_password",
            "legacy_check_password",
        ],
        "configurations of GRUB Legacy are not read",
    ),
    (&["syslinux_source", "syslinux_configfile"], "configurations of Syslinux are not read"),
    (&["zfskey", "zfsinfo", "zfs-bootfs"], "there are no ZFS commands"),
    (
        &[
            "net_add_addr",
            "net_add_dns",
            "net_add_route",
            "net_bootp",
            "net_bootp6",
            "net_dhcp",
            "net_del_addr",
            "net_del_dns",
            "net_del_route",
            "net_get_dhcp_option",
            "net_ipv6_autoconf",
            "net_ls_addr",
            "net_ls_cards",
            "net_ls_dns",
            "net_ls_routes",
            "net_nslookup",
            "pxe_unload",
        ],
        "there is no network before the machine runs",
    ),
    (
        &[
            "efiemu_loadcore",
            "efiemu_prepare",
            "efiemu_unload",
            "fwsetup",
            "appleloader",
            "fakebios",
            "loadbios",
            "fixvideo",
            "efifwsetup",
        ],
        "there is no EFI firmware",
    ),
    (&["verify_detached", "trust", "distrust", "list_trusted"], "signatures are not checked"),
    (
        &["devicetree", "module2_nounzip", "xen_hypervisor", "xen_module", "xen_linux", "xen_initrd"],
        "this is not for a PC",
    ),
    (&["play", "spkmodem"], "there is no speaker"),
    (
        &[
            "time",
            "functional_test",
            "boottime",
            "pmtimer",
            "list_env_block",
            "macppcbless",
            "mactelbless",
            "tr",
            "keymap",
            "keystatus",
        ],
        "the command is left out",
    ),
];

/// The command with this name.
pub(super) fn find(name: &str) -> Option<&'static Command> {
    TOPICS.iter().flat_map(|topic| topic.iter()).find(|c| c.name == name)
}

/// All names that a line may start with, in order.
pub(super) fn names() -> Vec<&'static str> {
    let commands = TOPICS.iter().flat_map(|topic| topic.iter()).map(|c| c.name);
    let mut names: Vec<_> = commands.chain(WORDS).collect();
    names.sort_unstable();
    names
}

/// Why a command of GRUB's is not here.
pub(super) fn refused(name: &str) -> Option<&'static str> {
    REFUSED.iter().find(|(names, _)| names.contains(&name)).map(|(_, why)| *why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_what_is_there_is_not_refused() {
        let names = names();
        assert!(names.windows(2).all(|w| w[0] != w[1]), "{names:?}");
        assert!(names.iter().all(|n| refused(n).is_none()));
        assert!(refused("chainloader").is_some() && find("ls").is_some() && find("lss").is_none());
    }
}
