//! A kernel that waits for `boot`.

use boot::{Entry, Image, MapEntry};
use memory::GuestMemory;

use super::Session;
use super::error::{Error, Outcome, code};
use super::{Stop, error};

/// A kernel with all that it is told.
pub enum Kernel {
    /// Linux.
    Linux {
        /// The bzImage.
        kernel: boot::linux::Kernel,
        /// The command line.
        cmdline: String,
        /// RAM disks.
        initrds: Vec<Image>,
        /// Whether it is told of a text screen.
        text_screen: bool,
    },
    /// Multiboot 1.
    Multiboot {
        /// The kernel.
        kernel: boot::multiboot::Kernel,
        /// The command line.
        cmdline: String,
        /// Files beside it.
        modules: Vec<boot::multiboot::Module>,
    },
    /// FreeBSD.
    FreeBsd {
        /// The kernel and its modules.
        preload: boot::freebsd::Preload,
        /// Flags.
        howto: u32,
        /// The kernel environment.
        environment: Vec<(String, String)>,
    },
    /// OpenBSD.
    OpenBsd {
        /// The kernel.
        kernel: boot::openbsd::Kernel,
        /// Flags.
        howto: u32,
        /// The root device.
        root: u32,
        /// The identifier of the boot disk.
        duid: Option<[u8; 8]>,
        /// The serial console.
        console: Option<boot::openbsd::Serial>,
        /// The RAM disk.
        ramdisk: Option<Image>,
    },
    /// NetBSD.
    NetBsd {
        /// The kernel.
        kernel: boot::netbsd::Kernel,
        /// Flags.
        howto: u32,
        /// Its name.
        path: String,
        /// The root device.
        root: Option<String>,
        /// The serial console.
        console: Option<boot::netbsd::Serial>,
        /// Modules.
        modules: Vec<boot::netbsd::Module>,
    },
}

impl Kernel {
    /// Puts it into guest memory; the map says what is RAM.
    pub fn load(&self, memory: &GuestMemory, map: &[MapEntry]) -> boot::Result<Entry> {
        match self {
            Self::Linux { kernel, cmdline, initrds, text_screen } => kernel.load(&boot::linux::Request {
                memory,
                initrds,
                cmdline: cmdline.as_bytes(),
                map,
                rsdp: None,
                text_screen: *text_screen,
            }),
            Self::Multiboot { kernel, cmdline, modules } => kernel.load(&boot::multiboot::Request {
                memory,
                cmdline: cmdline.as_bytes(),
                modules,
                loader: "grub-bhyve",
                map,
            }),
            Self::FreeBsd { preload, howto, environment } => {
                preload.load(&boot::freebsd::Request { memory, howto: *howto, environment, map })
            }
            Self::OpenBsd { kernel, howto, root, duid, console, ramdisk } => {
                kernel.load(&boot::openbsd::Request {
                    memory,
                    howto: *howto,
                    root: *root,
                    duid: *duid,
                    console: *console,
                    ramdisk: ramdisk.as_ref(),
                    map,
                })
            }
            Self::NetBsd { kernel, howto, path, root, console, modules } => {
                kernel.load(&boot::netbsd::Request {
                    memory,
                    howto: *howto,
                    path,
                    root: root.as_deref(),
                    wedge: None,
                    console: *console,
                    modules,
                    map,
                })
            }
        }
    }
}

impl Session<'_> {
    /// `boot`: hands the kernel over.
    pub(super) fn boot(&mut self) -> Outcome {
        let variables = super::commands::freebsd_environment(self);
        if let Some(Kernel::FreeBsd { environment, .. }) = &mut self.kernel {
            *environment = variables;
        }
        let Some(kernel) = &self.kernel else {
            return Err(Error::new(code::NO_KERNEL, "you need to load the kernel first"));
        };
        self.target.boot(kernel).map_err(|message| Error::new(error::code::BAD_OS, message))?;
        self.stop = Some(Stop::Booted);
        Ok(())
    }
}
