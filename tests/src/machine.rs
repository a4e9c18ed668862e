//! What PC to build, and the command lines that build it under each VMM.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Namespace;

/// The program that runs the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vmm {
    /// Ours, with the engine to use.
    Bhyve {
        /// The program.
        binary: PathBuf,
        /// The value of the `engine` key.
        engine: String,
    },
    /// QEMU without hardware virtualization.
    Qemu {
        /// The PC that it builds.
        chipset: Chipset,
    },
}

/// The PCs that QEMU knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chipset {
    /// The newer, with PCI Express.
    Q35,
    /// The older.
    Pc,
}

impl Chipset {
    /// QEMU's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q35 => "q35",
            Self::Pc => "pc",
        }
    }
}

/// A PC with a Linux kernel to boot directly, and its console on the standard streams.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The VM's name.
    pub name: String,
    /// The number of vCPUs.
    pub cpus: u32,
    /// The size of RAM, in bhyve's notation.
    pub memory: String,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// More words for the kernel; the console is named anyway.
    pub cmdline: String,
    /// Images for virtio-blk.
    pub disks: Vec<PathBuf>,
    /// A tap interface for virtio-net.
    pub tap: Option<String>,
    /// The network namespace to run in.
    pub namespace: Option<String>,
    /// A virtio-rnd device.
    pub random: bool,
    /// A virtio-console port with this name, on this socket.
    pub port: Option<(String, PathBuf)>,
    /// A loader has put the kernel into the VM: bhyve is told of no kernel and no memory.
    pub loaded: bool,
    /// More arguments for bhyve.
    pub extra: Vec<OsString>,
    /// Where QEMU's monitor listens.
    pub monitor: Option<PathBuf>,
}

impl Machine {
    /// One vCPU, 512 MiB, a random number device.
    pub fn new(name: &str, kernel: &Path, initrd: &Path) -> Self {
        Self {
            name: name.to_owned(),
            cpus: 1,
            memory: "512M".to_owned(),
            kernel: kernel.to_path_buf(),
            initrd: initrd.to_path_buf(),
            cmdline: String::new(),
            disks: Vec::new(),
            tap: None,
            namespace: None,
            random: true,
            port: None,
            loaded: false,
            extra: Vec::new(),
            monitor: None,
        }
    }

    /// Sets the number of vCPUs.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Sets the size of RAM.
    #[must_use]
    pub fn memory(mut self, memory: &str) -> Self {
        memory.clone_into(&mut self.memory);
        self
    }

    /// Sets more words for the kernel.
    #[must_use]
    pub fn cmdline(mut self, cmdline: &str) -> Self {
        cmdline.clone_into(&mut self.cmdline);
        self
    }

    /// Adds a disk.
    #[must_use]
    pub fn disk(mut self, image: &Path) -> Self {
        self.disks.push(image.to_path_buf());
        self
    }

    /// Puts the VM and its tap into a network namespace.
    #[must_use]
    pub fn network(mut self, namespace: &Namespace) -> Self {
        self.tap = Some(namespace.tap().to_owned());
        self.namespace = Some(namespace.name().to_owned());
        self
    }

    /// Adds a virtio-console port.
    #[must_use]
    pub fn port(mut self, name: &str, socket: &Path) -> Self {
        self.port = Some((name.to_owned(), socket.to_path_buf()));
        self
    }

    /// The VM is loaded already.
    #[must_use]
    pub fn loaded(mut self) -> Self {
        self.loaded = true;
        self
    }

    /// Adds an argument for bhyve.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.extra.push(argument.into());
        self
    }

    /// The command that runs this machine.
    pub fn command(&self, vmm: &Vmm) -> Command {
        let words = match vmm {
            Vmm::Bhyve { binary, engine } => self.bhyve(binary, engine),
            Vmm::Qemu { chipset } => self.qemu(*chipset),
        };
        let mut words = words.into_iter();
        let mut command = match &self.namespace {
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]);
                command
            }
            None => Command::new(words.next().unwrap_or_default()),
        };
        command.args(words);
        command
    }

    /// The kernel's command line.
    pub fn kernel_cmdline(&self) -> String {
        format!("console=ttyS0 {}", self.cmdline).trim_end().to_owned()
    }

    fn bhyve(&self, binary: &Path, engine: &str) -> Vec<OsString> {
        let mut words = Words::new(binary);
        words.add("-AHP");
        words.pair("-c", &self.cpus.to_string());
        if !self.loaded {
            words.pair("-m", &self.memory);
        }
        words.pair("-s", "0:0,hostbridge");
        words.pair("-s", "1:0,lpc");
        let mut slot = 2;
        let mut next = || {
            slot += 1;
            slot - 1
        };
        if self.random {
            words.pair("-s", &format!("{}:0,virtio-rnd", next()));
        }
        for disk in &self.disks {
            words.path("-s", &format!("{}:0,virtio-blk,", next()), disk);
        }
        if let Some(tap) = &self.tap {
            words.pair("-s", &format!("{}:0,virtio-net,{tap}", next()));
        }
        if let Some((name, socket)) = &self.port {
            words.path("-s", &format!("{}:0,virtio-console,{name}=", next()), socket);
        }
        words.pair("-l", "com1,stdio");
        if engine != "auto" {
            words.pair("-o", &format!("engine={engine}"));
        }
        if !self.loaded {
            words.path("-o", "kernel.path=", &self.kernel);
            words.path("-o", "kernel.initrd=", &self.initrd);
            words.pair("-o", &format!("kernel.cmdline={}", self.kernel_cmdline()));
        }
        words.0.extend(self.extra.iter().cloned());
        words.add(&self.name);
        words.0
    }

    fn qemu(&self, chipset: Chipset) -> Vec<OsString> {
        let mut words = Words::new(Path::new("qemu-system-x86_64"));
        words.pair("-M", chipset.name());
        words.pair("-accel", "tcg");
        words.pair("-cpu", "max");
        words.pair("-smp", &self.cpus.to_string());
        words.pair("-m", &self.memory);
        for flag in ["-nographic", "-nodefaults", "-no-reboot"] {
            words.add(flag);
        }
        words.pair("-serial", "stdio");
        match &self.monitor {
            Some(socket) => {
                let mut value = OsString::from("unix:");
                value.push(socket);
                value.push(",server,nowait");
                words.add("-monitor");
                words.0.push(value);
            }
            None => words.pair("-monitor", "none"),
        }
        if self.random {
            words.pair("-device", "virtio-rng-pci");
        }
        for disk in &self.disks {
            words.path("-drive", "if=virtio,format=raw,file=", disk);
        }
        if let Some(tap) = &self.tap {
            words.pair("-netdev", &format!("tap,id=net0,ifname={tap},script=no,downscript=no"));
            words.pair("-device", "virtio-net-pci,netdev=net0,romfile=");
        }
        if let Some((name, socket)) = &self.port {
            words.pair("-device", "virtio-serial-pci");
            let mut value = OsString::from("socket,id=port0,server=on,wait=off,path=");
            value.push(socket);
            words.add("-chardev");
            words.0.push(value);
            words.pair("-device", &format!("virtserialport,chardev=port0,name={name}"));
        }
        words.path("-kernel", "", &self.kernel);
        words.path("-initrd", "", &self.initrd);
        words.pair("-append", &self.kernel_cmdline());
        words.0
    }
}

/// A command line that grows.
struct Words(Vec<OsString>);

impl Words {
    fn new(program: &Path) -> Self {
        Self(vec![program.into()])
    }

    fn add(&mut self, word: &str) {
        self.0.push(word.into());
    }

    fn pair(&mut self, option: &str, value: &str) {
        self.add(option);
        self.add(value);
    }

    fn path(&mut self, option: &str, prefix: &str, path: &Path) {
        self.add(option);
        let mut value = OsString::from(prefix);
        value.push(path);
        self.0.push(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bhyve_gets_one_slot_a_device_and_the_name_last() {
        let machine = Machine::new("vm", Path::new("/k"), Path::new("/i"))
            .disk(Path::new("/d"))
            .port("org.test", Path::new("/s"))
            .cmdline("quiet");
        let vmm = Vmm::Bhyve { binary: "bhyve".into(), engine: "soft".into() };
        let command = machine.command(&vmm);
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        assert_eq!(
            words.join(" "),
            "-AHP -c 1 -m 512M -s 0:0,hostbridge -s 1:0,lpc -s 2:0,virtio-rnd -s 3:0,virtio-blk,/d \
             -s 4:0,virtio-console,org.test=/s -l com1,stdio -o engine=soft -o kernel.path=/k \
             -o kernel.initrd=/i -o kernel.cmdline=console=ttyS0 quiet vm"
        );
    }
}
