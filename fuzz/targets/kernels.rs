//! Kernel formats: a byte chooses the format, the rest is the file.
#![no_main]

use std::sync::{Arc, OnceLock};

use boot::{Image, freebsd, linux, memory_map, multiboot, netbsd, openbsd};
use media::Bytes;
use memory::{Backing, GuestMemory};

fn memory() -> &'static GuestMemory {
    static MEMORY: OnceLock<GuestMemory> = OnceLock::new();
    MEMORY.get_or_init(|| GuestMemory::new(&[(0, 64 << 20)], &Backing::Anonymous).unwrap())
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((kind, file)) = data.split_first() else { return };
    let image = || Image::new("kernel", Arc::new(Bytes(file.to_vec())));
    let memory = memory();
    let map = memory_map(memory);
    let _ = match kind % 6 {
        0 => linux::Kernel::read(image()).and_then(|kernel| {
            let _ = kernel.version();
            let request = linux::Request {
                memory,
                initrds: &[],
                cmdline: b"a=b",
                map: &map,
                rsdp: None,
                text_screen: true,
            };
            kernel.load(&request).map(drop)
        }),
        1 => multiboot::Kernel::read(image()).and_then(|kernel| {
            let request =
                multiboot::Request { memory, cmdline: b"a", modules: &[], loader: "GRUB", map: &map };
            kernel.load(&request).map(drop)
        }),
        2 => netbsd::Kernel::read(image()).and_then(|kernel| {
            let request = netbsd::Request {
                memory,
                howto: 0,
                path: "netbsd",
                root: None,
                wedge: None,
                console: None,
                modules: &[],
                map: &map,
            };
            kernel.load(&request).map(drop)
        }),
        3 => openbsd::Kernel::read(image()).and_then(|kernel| {
            let ramdisk = image();
            let request = openbsd::Request {
                memory,
                howto: 0,
                root: 0,
                duid: None,
                console: None,
                ramdisk: Some(&ramdisk),
                map: &map,
            };
            kernel.load(&request).map(drop)
        }),
        _ => freebsd::Preload::kernel(image(), "/boot/kernel/kernel", None).and_then(|mut preload| {
            let _ = preload.module(image(), "/boot/kernel/a.ko", None);
            let request = freebsd::Request { memory, howto: 0, environment: &[], map: &map };
            preload.load(&request).map(drop)
        }),
    };
});
