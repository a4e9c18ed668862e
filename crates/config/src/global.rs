//! The keys that belong to no PCI device: those of bhyve_config(5), and our own.

use crate::key::{Key, Kind};

/// vm_set_topology() of bhyve takes 16-bit counts.
const COUNT: Kind = Kind::Integer { min: 1, max: 65535 };
/// SMBIOS strings sit in a table of at most 5 KiB; bhyve sets no limit of its own.
const SMBIOS: Kind = Kind::Text(255);

/// Every key outside of the `pci` node.
pub static KEYS: &[Key] = &[
    // The virtual machine
    Key::new("name", Kind::FreeText, "name of the VM, up to 32 bytes"),
    Key::new("cpus", COUNT, "number of virtual CPUs").default("1"),
    Key::new("sockets", COUNT, "number of sockets (cpus, unless set)"),
    Key::new("cores", COUNT, "cores in each socket").default("1"),
    Key::new("threads", COUNT, "threads in each core").default("1"),
    Key::new("memory.size", Kind::MemorySize, "guest memory").default("256M"),
    Key::new("memory.wired", Kind::Bool, "keep guest memory from being swapped").default("false"),
    Key::new("memory.guest_in_core", Kind::Bool, "have guest memory in core dumps").default("false"),
    Key::new("acpi_tables", Kind::Bool, "make ACPI tables").default("true"),
    Key::new("acpi_tables_in_memory", Kind::Bool, "put the ACPI tables into guest memory").default("true"),
    Key::new("destroy_on_poweroff", Kind::Bool, "remove the VM when it has powered itself off (-D)")
        .default("false"),
    Key::new("uuid", Kind::Uuid, "UUID in the SMBIOS tables (made from host and VM name, unless set)"),
    Key::new("rtc.use_localtime", Kind::Bool, "the real time clock keeps local time, not UTC")
        .default("true"),
    Key::new("virtio_msix", Kind::Bool, "virtio devices have MSI-X, else MSI").default("true"),
    Key::new("keyboard.layout", Kind::Text(64), "keyboard layout of VNC clients").unsupported(),
    Key::new("config.dump", Kind::Bool, "print the configuration and end with status 1").default("false"),
    Key::new("vcpu.*.cpuset", Kind::CpuSet, "host CPUs that the virtual CPU may run on"),
    Key::new("domains.*.size", Kind::MemorySize, "memory of the NUMA domain").unsupported(),
    Key::new("domains.*.cpus", Kind::CpuSet, "virtual CPUs of the NUMA domain").unsupported(),
    Key::new("domains.*.domain_policy", Kind::Text(64), "where the host takes the memory from").unsupported(),
    Key::new("restore.path", Kind::Path, "snapshot to resume from (-r)").unsupported(),
    // The engine and the direct kernel boot: ours
    Key::new("engine", Kind::Choice(&["auto", "kvm", "soft"]), "what runs the virtual CPUs").default("auto"),
    Key::new("kernel.path", Kind::Path, "kernel to boot without a loader: bzImage or ELF"),
    Key::new("kernel.initrd", Kind::Path, "initial RAM disk for that kernel"),
    Key::new("kernel.cmdline", Kind::FreeText, "command line for that kernel"),
    // The debugger
    Key::new("gdb.port", Kind::Integer { min: 0, max: 65535 }, "TCP port of the debug server, 0 is none")
        .default("0")
        .unsupported(),
    Key::new("gdb.address", Kind::Text(255), "address of the debug server")
        .default("localhost")
        .unsupported(),
    Key::new("gdb.wait", Kind::Bool, "wait for the debugger before the guest runs")
        .default("false")
        .unsupported(),
    // The processor
    Key::new("x86.mptable", Kind::Bool, "make an MP table").default("true"),
    Key::new("x86.x2apic", Kind::Bool, "local APICs start in x2APIC mode").default("false"),
    Key::new("x86.strictio", Kind::Bool, "end when the guest uses a port that nothing answers")
        .default("false"),
    Key::new("x86.strictmsr", Kind::Bool, "unknown MSRs raise #GP").default("true"),
    Key::new("x86.vmexit_on_hlt", Kind::Bool, "give the host CPU away when the guest halts").default("false"),
    Key::new("x86.vmexit_on_pause", Kind::Bool, "give the host CPU away when the guest spins")
        .default("false"),
    // SMBIOS
    Key::new("bios.vendor", SMBIOS, "BIOS vendor").default("BHYVE"),
    Key::new("bios.version", SMBIOS, "BIOS version").default("14.0"),
    Key::new("bios.release_date", SMBIOS, "BIOS release date").default("10/17/2021"),
    Key::new("system.manufacturer", SMBIOS, "maker of the computer").default("FreeBSD"),
    Key::new("system.product_name", SMBIOS, "name of the computer").default("BHYVE"),
    Key::new("system.version", SMBIOS, "version of the computer").default("1.0"),
    Key::new("system.serial_number", SMBIOS, "serial number of the computer").default("None"),
    Key::new("system.sku", SMBIOS, "stock keeping unit of the computer").default("None"),
    Key::new("system.family_name", SMBIOS, "family of the computer").default("Virtual Machine"),
    Key::new("board.manufacturer", SMBIOS, "maker of the board").default("FreeBSD"),
    Key::new("board.product_name", SMBIOS, "name of the board").default("BHYVE"),
    Key::new("board.version", SMBIOS, "version of the board").default("1.0"),
    Key::new("board.serial_number", SMBIOS, "serial number of the board").default("None"),
    Key::new("board.asset_tag", SMBIOS, "asset tag of the board").default("None"),
    Key::new("board.location", SMBIOS, "place of the board in the chassis").default("None"),
    Key::new("chassis.manufacturer", SMBIOS, "maker of the chassis").default("FreeBSD"),
    Key::new("chassis.version", SMBIOS, "version of the chassis").default("1.0"),
    Key::new("chassis.serial_number", SMBIOS, "serial number of the chassis").default("None"),
    Key::new("chassis.asset_tag", SMBIOS, "asset tag of the chassis").default("None"),
    Key::new("chassis.sku", SMBIOS, "stock keeping unit of the chassis").default("None"),
    // The LPC bridge keeps its settings here, not under its PCI slot
    Key::new("lpc.bootrom", Kind::Path, "boot ROM").unsupported(),
    Key::new("lpc.bootvars", Kind::Path, "variable store of the boot ROM").unsupported(),
    Key::new("lpc.fwcfg", Kind::Choice(&["bhyve", "qemu"]), "interface that firmware finds its settings by")
        .default("bhyve")
        .unsupported(),
    Key::new("lpc.com1.path", Kind::Text(4096), "back end of COM1: stdio, a terminal, tcp=address:port"),
    Key::new("lpc.com2.path", Kind::Text(4096), "back end of COM2"),
    Key::new("lpc.com3.path", Kind::Text(4096), "back end of COM3"),
    Key::new("lpc.com4.path", Kind::Text(4096), "back end of COM4"),
    Key::new("lpc.pc-testdev", Kind::Bool, "have the PC test device").default("false").unsupported(),
    Key::new("lpc.pcireg.vendor", PCIREG, "PCI vendor id of the bridge").default("0x8086"),
    Key::new("lpc.pcireg.device", PCIREG, "PCI device id of the bridge").default("0x7000"),
    Key::new("lpc.pcireg.revid", PCIREG, "PCI revision of the bridge").default("0"),
    Key::new("lpc.pcireg.subvendor", PCIREG, "PCI subsystem vendor id of the bridge").default("0"),
    Key::new("lpc.pcireg.subdevice", PCIREG, "PCI subsystem id of the bridge").default("0"),
    Key::new("tpm.type", Kind::Choice(&["passthru", "swtpm"]), "where the TPM is").unsupported(),
    Key::new("tpm.path", Kind::Path, "device or socket of the TPM").unsupported(),
    Key::new("tpm.version", Kind::Choice(&["2.0"]), "version of the TPM").default("2.0").unsupported(),
    // Files for fw_cfg (-f)
    Key::new("fwcfg.*.name", Kind::Text(55), "name of a file that firmware finds by fw_cfg").unsupported(),
    Key::new("fwcfg.*.string", Kind::FreeText, "content of that file").unsupported(),
    Key::new("fwcfg.*.file", Kind::Path, "host file with the content of that file").unsupported(),
];

/// An integer, or `host` for the value that the bridge of the host has.
const PCIREG: Kind = Kind::Text(16);
