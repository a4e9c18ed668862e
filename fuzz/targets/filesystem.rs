//! Every reader of file systems, on damaged images.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some(source) = fuzz::damaged(data) else { return };
    if let Ok(fs) = media::fs::probe(&source, &[]) {
        let _ = (fs.label(), fs.uuid(), fs.modified());
        media::testing::walk_hostile(&*fs);
    }
});
