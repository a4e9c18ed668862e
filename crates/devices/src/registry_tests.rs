use super::*;
use crate::testing::{Rig, hammer};

/// Accesses for each device.
const ROUNDS: u32 = 1_000_000;

/// Keys that make a device from nothing but a folder; `None` for devices that need a resource of
/// the host, whose own tests call [`hammer`].
fn sample(name: &str, folder: &std::path::Path) -> Option<Vec<(&'static str, String)>> {
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    match name {
        "virtio-net" => None,
        "virtio-blk" => {
            std::fs::File::create(file("disk")).unwrap().set_len(1 << 20).unwrap();
            Some(vec![("path", file("disk"))])
        }
        "ahci" => {
            std::fs::File::create(file("hd")).unwrap().set_len(1 << 20).unwrap();
            std::fs::File::create(file("cd")).unwrap().set_len(1 << 20).unwrap();
            Some(vec![
                ("port.0.type", "hd".into()),
                ("port.0.path", file("hd")),
                ("port.7.type", "cd".into()),
                ("port.7.path", file("cd")),
                ("port.2.type", "cd".into()),
            ])
        }
        "virtio-console" => Some(vec![
            ("port.0.name", "a".into()),
            ("port.0.path", file("a")),
            ("port.3.name", "b".into()),
            ("port.3.path", file("b")),
        ]),
        _ => Some(Vec::new()),
    }
}

struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("devices-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn every_device_survives_random_accesses() {
    let folder = Folder::new("hammer");
    std::thread::scope(|scope| {
        for entry in registry() {
            let folder = folder.0.join(entry.name);
            std::fs::create_dir_all(&folder).unwrap();
            let Some(keys) = sample(entry.name, &folder) else { continue };
            scope.spawn(move || {
                let rig = Rig::new();
                let keys: Vec<_> = keys.iter().map(|(key, value)| (*key, value.as_str())).collect();
                let function = rig.build(3, entry.name, &keys).unwrap();
                rig.start(&function);
                hammer(&rig, &function, ROUNDS);
            });
        }
    });
}

#[test]
fn the_registry_has_every_device_once() {
    let mut names: Vec<&str> =
        registry().iter().flat_map(|e| e.aliases.iter().copied().chain([e.name])).collect();
    for name in ["hostbridge", "amd_hostbridge", "lpc", "virtio-rnd", "virtio-console"] {
        assert!(names.contains(&name), "{name}");
    }
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    let help = help();
    assert!(registry().iter().all(|e| help.contains(e.name) && help.contains(e.help)));
    assert!(find("virtio-rnd").is_some() && find("virtio-rng").is_none());
}

#[test]
fn states_of_other_devices_are_refused() {
    let rig = Rig::new();
    let rnd = rig.build(3, "virtio-rnd", &[]).unwrap();
    let bridge = rig.build(4, "hostbridge", &[]).unwrap();
    let saved = bridge.save().unwrap();
    assert!(rnd.restore(&saved).is_err());
    let mut newer = rnd.save().unwrap();
    newer.version += 1;
    assert!(matches!(rnd.restore(&newer), Err(bus::StateError::Version { .. })));
}
