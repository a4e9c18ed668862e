//! The loader with a folder in memory and a user in a script.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use boot::MapEntry;
use media::{Error, FileSystem, Kind, Metadata, Node, NodeRef};
use memory::{Backing, GuestMemory};

use super::hints::tests::make as make_hints;
use super::*;
use crate::console::testing::Script;
use test_elf::{freebsd_kernel, freebsd_module};

#[path = "../../../boot/src/test_elf.rs"]
mod test_elf;

/// A file, or a folder.
enum Item {
    File(Vec<u8>),
    Folder(BTreeMap<String, Arc<Item>>),
}

struct Memory(Arc<Item>);

impl FileSystem for Memory {
    fn kind(&self) -> &'static str {
        "memory"
    }
    fn label(&self) -> Option<String> {
        None
    }
    fn uuid(&self) -> Option<String> {
        None
    }
    fn root(&self) -> media::Result<NodeRef> {
        Ok(Arc::new(Entry(self.0.clone())))
    }
}

struct Entry(Arc<Item>);

impl Node for Entry {
    fn metadata(&self) -> media::Result<Metadata> {
        Ok(match &*self.0 {
            Item::File(bytes) => Metadata { kind: Kind::File, size: bytes.len() as u64, modified: None },
            Item::Folder(_) => Metadata { kind: Kind::Directory, size: 0, modified: None },
        })
    }
    fn read_at(&self, offset: u64, to: &mut [u8]) -> media::Result<()> {
        let Item::File(bytes) = &*self.0 else { return Err(Error::IsADirectory(String::new())) };
        to.copy_from_slice(&bytes[offset as usize..offset as usize + to.len()]);
        Ok(())
    }
    fn entries(&self, visit: &mut dyn FnMut(media::Entry) -> ControlFlow<()>) -> media::Result<()> {
        let Item::Folder(items) = &*self.0 else { return Err(Error::NotADirectory(String::new())) };
        for name in items.keys().rev() {
            if visit(media::Entry { name: name.clone().into_bytes(), kind: None }).is_break() {
                break;
            }
        }
        Ok(())
    }
    fn lookup(&self, name: &[u8]) -> media::Result<Option<NodeRef>> {
        let Item::Folder(items) = &*self.0 else { return Err(Error::NotADirectory(String::new())) };
        let item = items.get(std::str::from_utf8(name).unwrap());
        Ok(item.map(|item| Arc::new(Entry(item.clone())) as NodeRef))
    }
    fn link(&self) -> media::Result<Vec<u8>> {
        Err(Error::NotAFile(String::new()))
    }
}

/// Paths with their bytes.
#[derive(Default, Clone)]
struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    fn add(mut self, path: &str, bytes: impl AsRef<[u8]>) -> Self {
        self.0.insert(path.trim_start_matches('/').into(), bytes.as_ref().to_vec());
        self
    }

    fn folder(&self, prefix: &str) -> Arc<Item> {
        let mut items = BTreeMap::new();
        for (path, bytes) in &self.0 {
            let Some(rest) = path.strip_prefix(prefix) else { continue };
            match rest.split_once('/') {
                None => {
                    items.insert(rest.to_owned(), Arc::new(Item::File(bytes.clone())));
                }
                Some((first, _)) if !items.contains_key(first) => {
                    items.insert(first.to_owned(), self.folder(&format!("{prefix}{first}/")));
                }
                Some(_) => {}
            }
        }
        Arc::new(Item::Folder(items))
    }

    fn devices(&self) -> Devices {
        let mut devices = Devices::default();
        devices.set_host(Arc::new(Memory(self.folder(""))));
        devices
    }

    /// Runs the loader; the answer is how it ended and all that it wrote.
    fn run(&self, typed: &str, environment: &[(&str, &str)]) -> (Result<Outcome, String>, String) {
        let mut console = Script::pipe(typed);
        let environment = environment.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let outcome = run(&mut console, self.devices(), &Options { environment });
        (outcome, console.output.clone())
    }
}

fn kernel() -> Vec<u8> {
    freebsd_kernel(b"KERNEL", (&[("kernel", 14), ("pci", 1)], &[]))
}

/// A system with a kernel and modules that need each other.
fn system() -> Files {
    let hints =
        make_hints(&[("netgraph", 12, "ng.ko"), ("ether", 1, "if_base.ko"), ("ether", 2, "if_base2.ko")]);
    Files::default()
        .add("/boot/kernel/kernel", kernel())
        .add("/boot/kernel/linker.hints", hints)
        .add(
            "/boot/kernel/if_x.ko",
            freebsd_module(b"x", (&[("if_x", 1)], &[("ether", 2, 2, 3), ("pci", 1, 1, 1)])),
        )
        .add("/boot/kernel/if_base2.ko", freebsd_module(b"b", (&[("ether", 2)], &[("netgraph", 10, 11, 12)])))
        .add("/boot/kernel/ng.ko", freebsd_module(b"n", (&[("netgraph", 12)], &[("kernel", 1, 2, 20)])))
        .add("/boot/modules/own.ko", freebsd_module(b"o", (&[("own", 1)], &[])))
}

/// What a loader that boots hands over: files by name, variables, flags.
fn booted(result: (Result<Outcome, String>, String)) -> (Vec<String>, BTreeMap<String, String>, u32, String) {
    let (outcome, output) = result;
    match outcome {
        Ok(Outcome::Boot(plan)) => {
            let files = plan.preload.files().iter().map(|f| f.name().to_owned()).collect();
            (files, plan.environment.iter().cloned().collect(), plan.howto, output)
        }
        Ok(_) => panic!("no boot:\n{output}"),
        Err(why) => panic!("{why}\n{output}"),
    }
}

const NOW: (&str, &str) = ("autoboot_delay", "-1");

#[test]
fn a_system_boots_with_its_configuration() {
    let files = system()
        .add("/boot/device.hints", "hint.uart.0.at=\"isa\"\n# none\nhint.uart.0.port=\"0x3F8\"\n")
        .add("/boot/loader.conf", "if_x_load=\"YES\"\nown_load=YES\nverbose=\"$kernel/${kernel}\"\n")
        .add("/boot/loader.conf.local", "kern.hz=100 # slow\n")
        .add("/boot/loader.conf.d/b.conf", "late=\"2\"\nboot_verbose=\"YES\"\n")
        .add("/boot/loader.conf.d/a.conf", "late=\"1\"\n")
        .add("/boot/loader.conf.d/skip.txt", "late=\"3\"\n")
        .add("/etc/fstab", "/dev/vtbd0p2\t/\tufs\trw\t1\t1\n")
        .add("/boot/entropy", "seed");
    let (loaded, env, howto, output) = booted(files.run("", &[NOW, ("mine", "yes")]));
    // What a module needs is loaded after it, in the order in which it is needed.
    assert_eq!(
        loaded,
        [
            "/boot/kernel/kernel",
            "/boot/kernel/if_x.ko",
            "/boot/kernel/if_base2.ko",
            "/boot/kernel/ng.ko",
            "/boot/modules/own.ko"
        ],
        "{output}"
    );
    assert_eq!(howto, 0x1800);
    for (name, value) in [
        ("smbios.bios.vendor", "BHYVE"),
        ("boot_serial", "1"),
        ("currdev", "host:"),
        ("loaddev", "host:"),
        ("kernelname", "/boot/kernel/kernel"),
        ("hint.uart.0.port", "0x3F8"),
        ("kern.hz", "100"),
        ("late", "2"),
        ("verbose", "kernel/kernel"),
        ("vfs.root.mountfrom", "ufs:/dev/vtbd0p2"),
        ("vfs.root.mountfrom.options", "rw"),
        ("mine", "yes"),
        ("module_path", "/boot/kernel;/boot/modules"),
    ] {
        assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(output.contains("loading required module 'netgraph'"), "{output}");
}

#[test]
fn the_defaults_file_says_what_else_is_read() {
    let defaults = "exec=\"echo Loading defaults\"\nkernel=\"kernel\"\nbootfile=\"kernel\"\n\
        loader_conf_files=\"/boot/loader.conf /boot/other.conf\"\nloader_conf_dirs=\"/boot/conf.d /boot/none\"\n\
        nextboot_conf=\"/boot/nextboot.conf\"\nmodule_path=\"/boot/modules\"\nmodule_blacklist=\"bad worse\"\n\
        entropy_cache_load=\"YES\"\nentropy_cache_name=\"/boot/entropy\"\nentropy_cache_type=\"boot_entropy_cache\"\n\
        hostuuid_load=\"YES\"\nhostuuid_name=\"/etc/hostid\"\nhostuuid_type=\"hostuuid\"\n";
    let files = system()
        .add("/boot/defaults/loader.conf", defaults)
        .add("/boot/loader.conf", "a=\"1\"\nloader_conf_files=\"/boot/third.conf /boot/loader.conf\"\n")
        .add("/boot/other.conf", "a=\"2\"\nbad_load=\"YES\"\n")
        .add("/boot/third.conf", "a=\"3\"\nb=\"3\"\n")
        .add("/boot/conf.d/x.conf", "c=\"4\"\n")
        .add("/boot/nextboot.conf", "nextboot_enable=\"YES\"\nd=\"5\"\n")
        .add("/boot/entropy", "seed");
    let (loaded, env, _, output) = booted(files.run("", &[NOW]));
    assert_eq!(loaded, ["/boot/kernel/kernel", "/boot/entropy"], "{output}");
    let value = |name: &str| env.get(name).map_or("", String::as_str);
    assert_eq!((value("a"), value("b"), value("c"), value("d")), ("2", "3", "4", "5"));
    assert!(!env.contains_key("loader_conf_files"));
    assert!(output.contains("Loading defaults\n"), "{output}");
    assert!(output.contains("not loading blacklisted module 'bad'"), "{output}");
    let files = files.add("/boot/nextboot.conf", "nextboot_enable=\"NO\"\nd=\"5\"\n");
    assert!(!booted(files.run("", &[NOW])).1.contains_key("d"));
}

#[test]
fn bad_lines_and_missing_modules_are_said_and_the_rest_counts() {
    let files = system().add(
        "/boot/loader.conf",
        "good=\"1\"\nbad line\nx=\"a\" y\nexec=\"nonsense\"\nz=\"${\"\nmissing_load=\"YES\"\nmissing_error=\"echo sorry\"\n\
         own_load=\"YES\"\nown_before=\"echo before\"\nown_after=\"set after=1\"\nif_x_flags=\"-q\"\nif_x_load=\"YES\"\n",
    );
    let (loaded, env, _, output) = booted(files.run("", &[NOW]));
    for text in [
        "/boot/loader.conf:2: malformed line (no =): bad line\n",
        "/boot/loader.conf:3: malformed line (text behind the value): x=\"a\" y\n",
        "/boot/loader.conf:4: unknown command 'nonsense'\n",
        "/boot/loader.conf:5: no } behind ${\n",
        "missing: can't find 'missing'\nsorry\n",
        "before\n",
    ] {
        assert!(output.contains(text), "{text}\n{output}");
    }
    assert_eq!((env["good"].as_str(), env["after"].as_str(), loaded.len()), ("1", "1", 5));
}

#[test]
fn a_module_with_a_missing_or_old_need_stays_out_with_all_it_needs() {
    let files = system()
        .add(
            "/boot/kernel/a.ko",
            freebsd_module(b"a", (&[("a", 1)], &[("own", 1, 1, 1), ("nowhere", 1, 1, 1)])),
        )
        .add("/boot/kernel/b.ko", freebsd_module(b"b", (&[("b", 1)], &[("own", 5, 5, 5)])))
        .add("/boot/kernel/loop1.ko", freebsd_module(b"", (&[("loop1", 1)], &[("loop2", 1, 1, 1)])))
        .add("/boot/kernel/loop2.ko", freebsd_module(b"", (&[("loop2", 1)], &[("loop1", 1, 1, 1)])))
        .add("/boot/loader.conf", "a_load=\"YES\"\nb_load=\"YES\"\nloop1_load=\"YES\"\n");
    let (loaded, _, _, output) = booted(files.run("", &[NOW]));
    assert_eq!(loaded, ["/boot/kernel/kernel", "/boot/kernel/loop1.ko", "/boot/kernel/loop2.ko"]);
    assert!(output.contains("a: can't find 'nowhere'\n"), "{output}");
    assert!(output.contains("b: module 'own' exists but with wrong version\n"), "{output}");
}

#[test]
fn kernels_are_folders_files_and_lists() {
    let files = system().add("/boot/kernel.old/kernel", kernel()).add("/boot/test", kernel());
    let names = |env: &[(&str, &str)]| booted(files.run("", env)).0;
    assert_eq!(names(&[NOW, ("kernel", "kernel.old")]), ["/boot/kernel.old/kernel"]);
    assert_eq!(names(&[NOW, ("kernel", "/boot/test")]), ["/boot/test"]);
    assert_eq!(names(&[NOW, ("bootfile", "none;/boot/test")]), ["/boot/test"]);
    let (outcome, output) = files.run("", &[NOW, ("kernel", "nothing")]);
    assert!(matches!(outcome, Ok(Outcome::Quit)));
    assert!(output.contains("can't load kernel 'nothing': can't find 'nothing'\n"), "{output}");
    let arm = files.clone().add("/boot/kernel/kernel", b"\x7fELF\x02\x01\x01");
    let (outcome, output) = arm.run("", &[NOW]);
    assert!(matches!(outcome, Ok(Outcome::Quit)));
    assert!(
        output.contains("can't load kernel 'kernel': /boot/kernel/kernel: an ELF file, but not for x86"),
        "{output}"
    );
}

#[test]
fn the_menu_boots_chooses_and_leaves() {
    let files = system()
        .add("/boot/kernel.old/kernel", kernel())
        .add("/boot/loader.conf", "kernels_autodetect=\"YES\"\nautoboot_delay=\"100\"\n");
    let (loaded, env, howto, output) = booted(files.run("\r", &[]));
    assert_eq!((loaded.len(), howto, env.contains_key("boot_single")), (1, 0x1000, false));
    assert!(output.contains("1. [B]oot Multi user [Enter]") && output.contains("Autoboot in 100 seconds."));
    let (_, env, howto, _) = booted(files.run("s", &[]));
    assert_eq!((howto, env["boot_single"].as_str()), (0x1002, "YES"));
    // Pause, next kernel, options: no ACPI, verbose, back; screen and line; boot.
    let (loaded, env, howto, output) = booted(files.run(" koav\x7fcb", &[]));
    assert_eq!(loaded, ["/boot/kernel.old/kernel"]);
    assert_eq!(
        (env["hint.acpi.0.disabled"].as_str(), howto, env.contains_key("boot_serial")),
        ("1", 0x800, false)
    );
    assert!(output.contains("[K]ernel: kernel.old (2 of 2)") && output.contains("[C]ons: Video"), "{output}");
    for (keys, reboot) in [("r", true), ("4", true), (" ", false), ("3quit\r", false)] {
        let (outcome, _) = files.run(keys, &[]);
        assert!(
            matches!(outcome, Ok(Outcome::Reboot)) == reboot && !matches!(outcome, Ok(Outcome::Boot(_))),
            "{keys:?}"
        );
    }
}

#[test]
fn a_countdown_without_keys_boots() {
    let files = system();
    let start = std::time::Instant::now();
    booted(files.run("", &[("autoboot_delay", "1")]));
    assert!(start.elapsed().as_millis() >= 900);
    booted(files.run("", &[("autoboot_delay", "0")]));
    booted(files.run("", &[("beastie_disable", "YES"), ("autoboot_delay", "0")]));
}

#[test]
fn passwords_are_asked_for() {
    let files = system();
    let locked = [("autoboot_delay", "100"), ("password", "secret")];
    booted(files.run(" secret\rb", &locked));
    let (outcome, output) = files.run(" a\rb\rc\r", &locked);
    assert!(matches!(outcome, Ok(Outcome::Quit)), "{output}");
    assert!(!output.contains("secret"));
    let (outcome, _) = files.run("wrong\r", &[NOW, ("bootlock_password", "x")]);
    assert!(matches!(outcome, Ok(Outcome::Quit)));
    booted(files.run("x\r", &[NOW, ("bootlock_password", "x")]));
}

/// What commands at the prompt answer.
fn prompt(files: &Files, lines: &str) -> (Result<Outcome, String>, String) {
    files.run(&format!("3{}", lines.replace('\n', "\r")), &[("autoboot_delay", "NO")])
}

#[test]
fn commands_at_the_prompt() {
    let files = system().add("/etc/motd", "hello\n").add("/boot/cmds", "set y=2\n-nonsense\n@echo $y\n");
    let (outcome, output) = prompt(
        &files,
        "ls /boot\nls -l /etc/motd\nset x=\"a b\"\nshow x\nunset x\nshow x\necho ${y}z\ninclude /boot/cmds\n\
         more /etc/motd\nlsdev\nload kernel\nload if_x -flag\nlsmod\nload -t md_image /etc/motd\nls /none\n\
         load nothing\nunload\nload own\nread -p name? z\nbob\nshow z\nhelp ls\nnonsense\nset currdev=disk9:\n\
         enable-module own\nshow-module own\nreboot\n",
    );
    assert!(matches!(outcome, Ok(Outcome::Reboot)), "{output}");
    for text in [
        "/boot\n   cmds\n d kernel\n d modules\n",
        "             6 /etc/motd\n",
        "a b\n",
        "variable 'x' not found\n",
        "unknown command 'nonsense'\n2\n",
        "hello\n",
        "    host:  memory\n",
        "/boot/kernel/kernel size 0x",
        "modules: if_x.1\n",
        "/etc/motd size 0x6 at 0x",
        "/none: no such file or directory\n",
        "can't find 'nothing'\n",
        "own.ko: a kernel module, not a kernel\n",
        "name?",
        "bob\n",
        "ls [-l] [path]",
        "disk9: no such device\n",
        "own will be loaded.\n",
        "own: load\n",
    ] {
        assert!(output.contains(text), "{text:?}\n{output}");
    }
}

#[test]
fn boot_commands() {
    let files =
        system().add("/boot/kernel.old/kernel", kernel()).add("/boot/loader.conf", "own_load=\"YES\"\n");
    let (loaded, _, howto, _) = booted(prompt(&files, "boot -sv\n"));
    assert_eq!((loaded.len(), howto), (2, 0x1802));
    let (loaded, ..) = booted(prompt(&files, "boot kernel.old\n"));
    assert_eq!(loaded, ["/boot/kernel.old/kernel", "/boot/modules/own.ko"]);
    let (loaded, _, howto, _) =
        booted(prompt(&files, "load kernel\ndisable-module own\nboot-conf kernel.old -a\n"));
    assert_eq!((loaded, howto), (vec!["/boot/kernel.old/kernel".to_owned()], 0x1001));
    let (loaded, ..) = booted(prompt(&files, "load /boot/kernel/kernel\nload if_x\nboot\n"));
    assert_eq!(loaded.len(), 4);
    let (_, output) = prompt(&files, "load kernel\nboot kernel.old\nquit\n");
    assert!(output.contains("can't boot 'kernel.old', kernel module already loaded\n"), "{output}");
}

#[test]
fn files_that_include_themselves_end() {
    let files = system()
        .add("/boot/loop", "include /boot/loop\n")
        .add("/boot/loader.conf", "exec=\"include /boot/loop\"\nloader_conf_files=\"/boot/loader.conf\"\n");
    let (_, _, _, output) = booted(files.run("", &[NOW]));
    assert!(output.contains("commands are nested too deeply"), "{output}");
}

#[test]
fn the_plan_reaches_guest_memory() {
    let (outcome, output) = system().run("", &[NOW]);
    let Ok(Outcome::Boot(plan)) = outcome else { panic!("{output}") };
    let memory = GuestMemory::new(&[(0, 32 << 20)], &Backing::Anonymous).unwrap();
    let map = [MapEntry { base: 0, len: 32 << 20, kind: 1 }];
    let entry = plan.load(&memory, &map).unwrap();
    assert_eq!(entry.rip, test_elf::KERNBASE + 0x20_1000);
    assert_eq!(memory.load_u32(0x20_1000, Relaxed).unwrap(), u32::from_le_bytes(*b"KERN"));
    let small = GuestMemory::new(&[(0, 1 << 20)], &Backing::Anonymous).unwrap();
    let error = plan.load(&small, &map).unwrap_err().to_string();
    assert_eq!(error, "/boot/kernel/kernel: needs memory up to 3 MiB, the guest has 1 MiB");
}

#[test]
fn without_anything_to_boot_from_there_is_one_clear_error() {
    let mut console = Script::pipe("");
    let error = run(&mut console, Devices::default(), &Options::default()).err().unwrap();
    assert_eq!(error, "nothing to boot from: no disk (-d) and no folder (-h) is given");
    let mut devices = Devices::default();
    let path = std::env::temp_dir().join(format!("loader-blank-{}", std::process::id()));
    std::fs::write(&path, vec![0; 1 << 16]).unwrap();
    devices.add_disk(&path).unwrap();
    let error = run(&mut console, devices, &Options::default()).err().unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(error, "nothing to boot from: disk0: unknown file system");
    let (outcome, _) = system().run("", &[("currdev", "zfs:nowhere:")]);
    assert_eq!(outcome.err().unwrap(), "-e currdev=zfs:nowhere:: zfs:nowhere: no such device");
}

/// A pool that OpenZFS made, as the reader's tests have it.
fn pool(name: &str) -> Devices {
    let path = format!("{}/../media/tests/images/zfs-{name}.0.xz", env!("CARGO_MANIFEST_DIR"));
    let packed = Arc::new(media::FileSource::open(std::path::Path::new(&path)).unwrap());
    let mut devices = Devices::default();
    devices.add_source(media::decompress::open(packed).unwrap().unwrap()).unwrap();
    devices
}

#[test]
fn a_pool_boots_from_the_data_set_that_it_names_or_another() {
    let options = || Options { environment: vec![("autoboot_delay".into(), "100".into())] };
    let mut console = Script::pipe("3show currdev\rlsdev\rls -l /boot\rboot\rset currdev=zfs:zroot:\rquit\r");
    let outcome = run(&mut console, pool("zroot"), &options());
    assert!(matches!(outcome, Ok(Outcome::Quit)));
    for text in [
        "FreeBSD boot from zfs:zroot/ROOT/default:\n",
        "OK zfs:zroot/ROOT/default:\n",
        "    zfs:zroot:  boots zfs:zroot/ROOT/default:\n",
        "   15 loader.conf\n",
        "/boot/kernel/kernel: not an ELF file, so no FreeBSD kernel\n",
    ] {
        assert!(console.output.contains(text), "{text}\n{}", console.output);
    }
    assert!(!console.output.contains("Boot [E]nvironment"), "there is only one");

    let mut console = Script::pipe(" e3show currdev\rshow vfs.root.mountfrom\rquit\r");
    let outcome = run(&mut console, pool("tank"), &options());
    assert!(matches!(outcome, Ok(Outcome::Quit)));
    for text in [
        "8. Boot [E]nvironment: default (1 of 2)\n",
        "8. Boot [E]nvironment: clone (2 of 2)\n",
        "OK zfs:tank/ROOT/clone:\nOK zfs:tank/ROOT/clone\n",
    ] {
        assert!(console.output.contains(text), "{text}\n{}", console.output);
    }
}
