//! grub-bhyve's device map.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = media::disks::DeviceMap::parse(text, "device.map");
    }
});
