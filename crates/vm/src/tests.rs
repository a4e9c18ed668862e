//! A VM's files through its whole life.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use boot::{Entry, Mode};

use crate::*;

/// A folder of VMs; dropping it removes them all.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("vm-test-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn directory(&self) -> Directory {
        Directory::at(&self.0.join("vmm")).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let directory = self.directory();
        for name in directory.list().unwrap() {
            Claim::new(&directory, &name).unwrap().destroy().unwrap();
        }
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn entry() -> Entry {
    Entry {
        mode: Mode::Protected32,
        rip: 0x10_0000,
        rsi: 0x7000,
        rbx: 0,
        rax: 0,
        rsp: 0,
        cr3: 0,
        gdt_base: 0x1000,
        gdt_limit: 0x27,
        code: 0x10,
        data: 0x18,
        tss: 0x20,
    }
}

const SIZE: u64 = 8 << 20;

fn load(directory: &Directory, vm: &str) -> Loading {
    Loading::new(directory, &name(vm), &Options { size: SIZE, ..Options::default() }).unwrap()
}

fn files(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_a_loader_leaves_can_be_taken_over() {
    let scratch = Scratch::new();
    let directory = scratch.directory();
    let loading = load(&directory, "guest");
    assert_eq!(directory.state(&name("guest")).unwrap().phase, Phase::Loading);
    loading.memory().write(0x1000, b"kernel").unwrap();
    loading.finish(&entry(), "test").unwrap();

    assert_eq!(files(directory.path()), ["guest"]);
    let meta = std::fs::symlink_metadata(directory.path().join("guest")).unwrap();
    assert_eq!((meta.permissions().mode(), meta.is_file()), (0o100600, true));
    let io = std::fs::symlink_metadata(scratch.0.join("vmm.io")).unwrap();
    assert_eq!(io.permissions().mode() & 0o777, 0o700);

    let claim = Claim::new(&directory, &name("guest")).unwrap();
    let state = claim.state().unwrap();
    assert_eq!((&state.phase, state.loader.as_deref()), (&Phase::Loaded, Some("test")));
    assert_eq!((state.vcpus.len(), state.vcpus[0].rip), (1, 0x10_0000));
    let ram = state.ram.unwrap();
    let file = std::fs::metadata(ram.path.clone().unwrap()).unwrap();
    assert_eq!((file.len(), file.permissions().mode() & 0o777), (SIZE, 0o600));
    assert!(file.blocks() * 512 < SIZE / 2, "memory is sparse");
    let memory = claim.open_memory(&ram).unwrap();
    let mut text = [0; 6];
    memory.read(0x1000, &mut text).unwrap();
    assert_eq!(&text, b"kernel");

    claim.destroy().unwrap();
    drop(claim);
    assert!(files(directory.path()).is_empty() && files(&scratch.0.join("vmm.io")).is_empty());
    assert!(!ram.path.unwrap().exists());
}

#[test]
fn a_loader_that_fails_leaves_nothing_half_made() {
    let scratch = Scratch::new();
    let directory = scratch.directory();
    drop(load(&directory, "new"));
    assert!(!directory.exists(&name("new")).unwrap());
    assert!(files(&scratch.0.join("vmm.io")).is_empty());

    load(&directory, "old").finish(&entry(), "test").unwrap();
    drop(load(&directory, "old"));
    assert_eq!(directory.state(&name("old")).unwrap(), State::created());
    let panicked = std::panic::catch_unwind(|| {
        let _loading = load(&directory, "panic");
        std::panic::resume_unwind(Box::new(()));
    });
    assert!(panicked.is_err() && !directory.exists(&name("panic")).unwrap());
    let too_large = Options { size: 1 << 50, ..Options::default() };
    assert!(matches!(Loading::new(&directory, &name("large"), &too_large), Err(Error::Size(_))));
    assert_eq!(directory.list().unwrap(), [name("old")]);
}

#[test]
fn loading_again_starts_with_empty_memory() {
    let scratch = Scratch::new();
    let directory = scratch.directory();
    let loading = load(&directory, "guest");
    loading.memory().write(0, b"old").unwrap();
    loading.finish(&entry(), "test").unwrap();
    let loading = load(&directory, "guest");
    let mut text = [1; 3];
    loading.memory().read(0, &mut text).unwrap();
    assert_eq!(text, [0; 3]);
}

#[test]
fn one_process_has_a_vm() {
    let scratch = Scratch::new();
    let directory = scratch.directory();
    let loading = load(&directory, "guest");
    assert!(directory.is_held(&name("guest")).unwrap() && !directory.is_held(&name("other")).unwrap());
    let error = Claim::new(&directory, &name("guest")).unwrap_err().to_string();
    assert_eq!(error, format!("VM guest is being loaded (pid {})", std::process::id()));
    loading.finish(&entry(), "test").unwrap();
    assert!(!directory.is_held(&name("guest")).unwrap());
    let claim = Claim::new(&directory, &name("guest")).unwrap();
    let running = State { phase: Phase::Running, ..claim.state().unwrap() };
    claim.save(&running).unwrap();
    let options = Options { size: SIZE, ..Options::default() };
    let error = Loading::new(&directory, &name("guest"), &options).unwrap_err().to_string();
    assert_eq!(error, format!("VM guest is running already (pid {})", std::process::id()));
    assert_eq!(claim.state().unwrap(), running, "who was refused has changed nothing");
}

#[test]
fn links_and_foreign_folders_are_not_followed() {
    let scratch = Scratch::new();
    let directory = scratch.directory();
    let target = scratch.0.join("target");
    std::fs::write(&target, "precious").unwrap();
    std::os::unix::fs::symlink(&target, directory.path().join("link")).unwrap();
    assert!(directory.list().unwrap().is_empty());
    assert!(matches!(directory.state(&name("link")), Err(Error::NotCreated(_))));
    std::os::unix::fs::symlink(&target, scratch.0.join("vmm.io/guest.ram")).unwrap();
    std::os::unix::fs::symlink(&target, scratch.0.join("vmm.io/guest2.lock")).unwrap();
    load(&directory, "guest").finish(&entry(), "test").unwrap();
    assert!(matches!(Claim::new(&directory, &name("guest2")), Err(Error::File { .. })));
    assert_eq!(std::fs::read(&target).unwrap(), b"precious");

    let open = scratch.0.join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = Directory::at(&open).unwrap_err().to_string();
    assert!(error.ends_with("others may write to this folder"), "{error}");
}

#[test]
fn what_is_no_vm_is_refused() {
    let scratch = Scratch::new();
    let directory = scratch.directory();
    let error = directory.state(&name("guest")).unwrap_err().to_string();
    assert_eq!(error, "VM:guest is not created.");
    std::fs::write(directory.path().join("text"), "hello").unwrap();
    let error = directory.state(&name("text")).unwrap_err().to_string();
    assert!(error.ends_with("text: not a VM, or one of another version of bhyve"), "{error}");
    let claim = Claim::new(&directory, &name("guest")).unwrap();
    let (_, ram) = claim.new_memory(&memory_map(SIZE).unwrap(), false).unwrap();
    let short = Ram { size: SIZE * 2, ..ram };
    assert!(claim.open_memory(&short).unwrap_err().to_string().contains("8388608 bytes long"));
    claim.destroy().unwrap();
}
