//! Partition maps, logical volumes, RAID and encrypted volumes, on damaged images.
#![no_main]

use media::disks::Disks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some(source) = fuzz::damaged(data) else { return };
    let disks = Disks::new();
    disks.add_disk("hd0", source).unwrap();
    for name in disks.names() {
        let _ = disks.partitions(&name);
        if let Ok(source) = disks.source(&name) {
            let mut bytes = [0; 4096];
            let _ = source.read_at(0, &mut bytes);
            let _ = source.read_at(source.size() / 2, &mut bytes);
        }
        let _ = disks.filesystem(&name);
    }
});
