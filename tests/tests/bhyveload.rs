//! `bhyveload` hands a kernel over, `bhyve` runs it: a kernel of ours says on its serial line what
//! it found, and that is what FreeBSD's layout says (sys/sys/linker.h, sys/x86/include/metadata.h).

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use guest_tests::{Namespace, Process, Result, Scratch, Shell, bhyve_binary, is_root};
use test_elf::{freebsd_kernel, freebsd_module};

#[path = "../../crates/boot/src/test_elf.rs"]
mod test_elf;

/// How long anything may take on a loaded machine.
const LIMIT: Duration = Duration::from_mins(2);

/// Machine code with calls and jumps to places that are known later.
#[derive(Default)]
struct Code {
    bytes: Vec<u8>,
    labels: BTreeMap<&'static str, usize>,
    calls: Vec<(usize, &'static str)>,
}

impl Code {
    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn label(&mut self, name: &'static str) -> &mut Self {
        self.labels.insert(name, self.bytes.len());
        self
    }

    fn call(&mut self, name: &'static str) -> &mut Self {
        self.put(&[0xe8]);
        self.calls.push((self.bytes.len(), name));
        self.put(&[0; 4])
    }

    fn finish(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        for (at, name) in &self.calls {
            let offset = self.labels[name] as i32 - (*at as i32 + 4);
            bytes[*at..*at + 4].copy_from_slice(&offset.to_le_bytes());
        }
        bytes
    }
}

/// A kernel that writes list, end, CR3, RSP and CS as hexadecimal numbers, then all bytes from 4 KiB
/// in front of the list to the end, and powers off.
fn reporter() -> Vec<u8> {
    let mut code = Code::default();
    code.put(&[0x8b, 0x5c, 0x24, 0x04]) // mov ebx, [rsp+4]
        .put(&[0x8b, 0x6c, 0x24, 0x08]); // mov ebp, [rsp+8]
    for number in [&[0x48, 0x89, 0xd8][..], &[0x48, 0x89, 0xe8], &[0x0f, 0x20, 0xd8], &[0x48, 0x89, 0xe0]] {
        code.put(number).call("number"); // mov rax, rbx | rbp | cr3 | rsp
    }
    code.put(&[0x31, 0xc0, 0x8c, 0xc8]).call("number"); // xor eax, eax; mov eax, cs
    code.put(&[0x48, 0x8d, 0xb3, 0x00, 0xf0, 0xff, 0xff]); // lea rsi, [rbx-1000h]
    code.label("next").put(&[0xac]).call("byte"); // lodsb
    code.put(&[0x48, 0x39, 0xee]); // cmp rsi, rbp
    let back = code.labels["next"] as i32 - (code.bytes.len() as i32 + 2);
    code.put(&[0x72, back as i8 as u8]); // jb next
    code.put(&[0xb0, 0x0a]).call("put"); // mov al, '\n'
    // mov dx, 404h; mov ax, 3400h; out dx, ax: S5 in PM1a control. hlt; jmp there.
    code.put(&[0x66, 0xba, 0x04, 0x04, 0x66, 0xb8, 0x00, 0x34, 0x66, 0xef, 0xf4, 0xeb, 0xfd]);
    // number: the bytes of RAX, the highest first, and a blank.
    code.label("number").put(&[0xb9, 8, 0, 0, 0]); // mov ecx, 8
    let again = code.bytes.len() as i32;
    code.put(&[0x48, 0xc1, 0xc0, 8, 0x50, 0x51]).call("byte"); // rol rax, 8; push rax; push rcx
    code.put(&[0x59, 0x58, 0xff, 0xc9]); // pop rcx; pop rax; dec ecx
    let back = again - (code.bytes.len() as i32 + 2);
    code.put(&[0x75, back as i8 as u8, 0xb0, 0x20]).call("put").put(&[0xc3]); // jnz; mov al, ' '; ret
    // byte: AL as two digits.
    code.label("byte").put(&[0x50, 0xc0, 0xe8, 4]).call("digit"); // push rax; shr al, 4
    code.put(&[0x58, 0x24, 0x0f]); // pop rax; and al, 15; go on
    // add al, '0'; cmp al, '9'; jbe put; add al, 'a'-'9'-1
    code.label("digit").put(&[0x04, 0x30, 0x3c, 0x39, 0x76, 0x02, 0x04, 0x27]);
    // put: push rax; mov dx, 3fdh; wait: in al, dx; test al, 20h; jz wait; pop rax; mov dx, 3f8h; out; ret
    code.label("put").put(&[0x50, 0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74, 0xfb, 0x58]);
    code.put(&[0x66, 0xba, 0xf8, 0x03, 0xee, 0xc3]);
    code.finish()
}

/// What the kernel reported.
struct Report {
    modulep: u64,
    kernend: u64,
    cr3: u64,
    rsp: u64,
    cs: u64,
    /// From 4 KiB in front of the list.
    bytes: Vec<u8>,
}

impl Report {
    fn read(text: &str) -> Result<Self> {
        let text = text.trim();
        let words: Vec<&str> = text.split(' ').collect();
        let [numbers @ .., dump] = words.as_slice() else { return Err("no report".into()) };
        let numbers: Vec<u64> =
            numbers.iter().map(|n| u64::from_str_radix(n, 16)).collect::<std::result::Result<_, _>>()?;
        let &[modulep, kernend, cr3, rsp, cs] = numbers.as_slice() else {
            return Err(format!("not a report: {text}").into());
        };
        let pairs = dump
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap_or_default(), 16));
        let bytes = pairs.collect::<std::result::Result<_, _>>()?;
        Ok(Self { modulep, kernend, cr3, rsp, cs, bytes })
    }

    fn word(&self, address: u64) -> u32 {
        let at = (address - (self.modulep - 0x1000)) as usize;
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().expect("four bytes"))
    }

    /// The files: by kind of record, the record's data.
    fn files(&self) -> Vec<BTreeMap<u32, Vec<u8>>> {
        let mut files: Vec<BTreeMap<u32, Vec<u8>>> = Vec::new();
        let mut at = self.modulep;
        while self.word(at) != 0 {
            let (kind, len) = (self.word(at), self.word(at + 4) as usize);
            let start = (at + 8 - (self.modulep - 0x1000)) as usize;
            if kind == 1 {
                files.push(BTreeMap::new());
            }
            let data = self.bytes[start..start + len].to_vec();
            files.last_mut().expect("a name comes first").insert(kind, data);
            at += 8 + (len as u64).next_multiple_of(8);
        }
        files
    }
}

fn number(data: &[u8]) -> u64 {
    data.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Folders for one test: VMs, and a FreeBSD system of two files.
struct System {
    scratch: Scratch,
}

impl System {
    fn new(label: &str) -> Result<Self> {
        let system = Self { scratch: Scratch::in_memory(label)? };
        let write = |path: &str, bytes: &[u8]| -> Result<()> {
            let path = system.root().join(path);
            std::fs::create_dir_all(path.parent().ok_or("no folder")?)?;
            Ok(std::fs::write(path, bytes)?)
        };
        let kernel = freebsd_kernel(&reporter(), (&[("kernel", 14), ("pci", 1)], &[]));
        write("boot/kernel/kernel", &kernel)?;
        write("boot/kernel/if_x.ko", &freebsd_module(b"x", (&[("if_x", 1)], &[("base", 1, 1, 1)])))?;
        write("boot/kernel/base.ko", &freebsd_module(b"b", (&[("base", 1)], &[("pci", 1, 1, 1)])))?;
        write("boot/device.hints", b"hint.uart.0.at=\"isa\"\n")?;
        write("boot/loader.conf", b"if_x_load=\"YES\"\nautoboot_delay=\"-1\"\n")?;
        write("etc/fstab", b"/dev/vtbd0p2 / ufs rw 1 1\n")?;
        Ok(system)
    }

    fn root(&self) -> PathBuf {
        self.scratch.path().join("root")
    }

    fn vms(&self) -> PathBuf {
        self.scratch.path().join("vmm")
    }

    /// The VMs that there are.
    fn list(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.vms()).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// An image with the system on UFS.
    fn ufs(&self, version: &str) -> Result<PathBuf> {
        let image = self.scratch.path().join(format!("ufs{version}.img"));
        let mut makefs = Command::new("makefs");
        makefs.args(["-t", "ffs", "-o", &format!("version={version}"), "-s", "8m"]);
        tool(makefs.arg(&image).arg(self.root()))?;
        Ok(image)
    }

    /// Runs a program of ours without input; the answer is its status and what it wrote.
    fn run(&self, program: &str, arguments: &[&str]) -> Result<(Option<i32>, String)> {
        self.run_with(program, arguments, "")
    }

    /// As [`System::run`], with a user who has typed beforehand.
    fn run_with(&self, program: &str, arguments: &[&str], typed: &str) -> Result<(Option<i32>, String)> {
        let path = bhyve_binary()?.with_file_name(program);
        if !path.is_file() {
            return Err(format!("{} is not built", path.display()).into());
        }
        let output = self.scratch.path().join(format!("{program}.out"));
        let file = File::create(&output)?;
        let mut command = Command::new(path);
        command.args(arguments).env("VMM_DIR", self.vms());
        let input = self.scratch.path().join("typed");
        std::fs::write(&input, typed)?;
        command.stdin(File::open(input)?);
        command.stdout(file.try_clone()?).stderr(file);
        let exit = Process::spawn(&mut command)?.wait(LIMIT)?;
        Ok((exit.status.code(), String::from_utf8_lossy(&std::fs::read(output)?).into_owned()))
    }

    /// Loads from a device, runs the VM, and gives what its kernel found.
    fn boot(&self, name: &str, device: &[&str]) -> Result<Report> {
        let more = ["-m", "64M", "-e", "mine=yes", "-e", "boot_verbose=YES", name];
        let (status, said) = self.run("bhyveload", &[device, &more].concat())?;
        assert_eq!(status, Some(0), "{said}");
        let arguments = ["-o", "engine=soft", "-HP", "-m", "64M", "-s", "0,hostbridge", "-s", "31,lpc"];
        let (status, said) = self.run("bhyve", &[&arguments[..], &["-l", "com1,stdio", name]].concat())?;
        assert_eq!(status, Some(1), "{said}");
        Report::read(&said)
    }
}

/// Checks every field of the hand-off.
fn check(report: &Report, device: &str) {
    assert_eq!((report.cr3, report.rsp, report.cs & 3), (0x2000, 0x1000, 0));
    assert_eq!((report.modulep % 4096, report.kernend % 4096), (0, 0));
    let files = report.files();
    let names: Vec<&[u8]> = files.iter().map(|f| &f[&1][..]).collect();
    assert_eq!(names, [&b"/boot/kernel/kernel\0"[..], b"/boot/kernel/if_x.ko\0", b"/boot/kernel/base.ko\0"]);
    let kernel = &files[0];
    assert_eq!((&kernel[&2][..], number(&kernel[&3])), (&b"elf kernel\0"[..], 0x20_0000));
    assert_eq!(number(&kernel[&0x8007]), 0x1800, "serial line and verbose");
    assert_eq!((number(&kernel[&0x8008]), number(&kernel[&0x9006])), (report.kernend, report.modulep));
    assert!(number(&kernel[&0x8003]) > 0x20_0000 && number(&kernel[&0x8004]) > number(&kernel[&0x8003]));
    let map: Vec<(u64, u64, u64)> =
        kernel[&0x9001].chunks(20).map(|e| (number(&e[..8]), number(&e[8..16]), number(&e[16..]))).collect();
    assert!(map.contains(&(0, 0xa_0000, 1)) && map.contains(&(0x10_0000, 0x3f0_0000, 1)), "{map:x?}");
    for module in &files[1..] {
        assert_eq!((&module[&2][..], number(&module[&3]) % 4096), (&b"elf obj module\0"[..], 0));
        assert!(module.contains_key(&0x8002) && module.contains_key(&0x8009));
    }
    assert_eq!(number(&kernel[&0x8006]), report.modulep - 0x1000);
    let text: Vec<String> =
        report.bytes[..0x1000].split(|b| *b == 0).map(|v| String::from_utf8_lossy(v).into_owned()).collect();
    for variable in [
        "smbios.bios.vendor=BHYVE",
        "boot_serial=1",
        "boot_verbose=YES",
        "mine=yes",
        "hint.uart.0.at=isa",
        "kernelname=/boot/kernel/kernel",
        "vfs.root.mountfrom=ufs:/dev/vtbd0p2",
        &format!("currdev={device}"),
        &format!("loaddev={device}"),
    ] {
        assert!(text.iter().any(|t| t == variable), "{variable}: {text:?}");
    }
}

fn tool(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{name}: {e}"))?;
    if !output.status.success() {
        return Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(())
}

/// Whether these programs are missing; says so. `cargo xtask test` forbids that.
fn lacks(programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let missing: Vec<&&str> =
        programs.iter().filter(|p| !folders.iter().any(|folder| folder.join(p).is_file())).collect();
    if missing.is_empty() {
        return false;
    }
    let required = std::env::var("GUEST_TESTS").is_ok_and(|value| value == "require");
    assert!(!required, "not installed: {missing:?}");
    eprintln!("skipped: not installed: {missing:?}");
    true
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| "a path that is no text".into())
}

#[test]
fn a_kernel_from_a_folder_of_the_host() -> Result<()> {
    let system = System::new("load-host")?;
    let report = system.boot("fromhost", &["-h", path_text(&system.root())?])?;
    check(&report, "host:");
    Ok(())
}

#[test]
fn a_kernel_from_a_ufs_disk() -> Result<()> {
    if lacks(&["makefs"]) {
        return Ok(());
    }
    let system = System::new("load-ufs")?;
    for version in ["1", "2"] {
        let image = system.ufs(version)?;
        let report = system.boot(&format!("ufs{version}"), &["-d", path_text(&image)?])?;
        check(&report, "disk0:");
    }
    Ok(())
}

#[test]
fn a_kernel_from_a_partition_of_the_second_disk() -> Result<()> {
    if lacks(&["makefs", "sfdisk"]) {
        return Ok(());
    }
    let system = System::new("load-part")?;
    let blank = system.scratch.path().join("blank.img");
    File::create(&blank)?.set_len(1 << 20)?;
    let content = std::fs::read(system.ufs("2")?)?;
    // FreeBSD's types of a boot partition and of UFS, or of a slice.
    let (boot, ufs) = ("83bd6b9d-7f41-11dc-be0b-001560b84f0f", "516e7cb6-6ecf-11d6-8ff8-00022d09712b");
    let gpt = format!(
        "label: gpt\nfirst-lba: 34\nstart=40,size=1024,type={boot}\nstart=2048,size=16384,type={ufs}\n"
    );
    let dos = "label: dos\nstart=2048,size=16384,type=a5,bootable\n".to_owned();
    for (table, device) in [(gpt, "disk1p2:"), (dos, "disk1s1:")] {
        let image = system.scratch.path().join("guest.img");
        File::create(&image)?.set_len(16 << 20)?;
        let script = system.scratch.path().join("table");
        std::fs::write(&script, table)?;
        let mut sfdisk = Command::new("sfdisk");
        tool(sfdisk.arg("-q").arg(&image).stdin(File::open(script)?))?;
        File::options().write(true).open(&image)?.write_all_at(&content, 2048 * 512)?;
        let name = device.trim_end_matches(':');
        let report = system.boot(name, &["-d", path_text(&blank)?, "-d", path_text(&image)?])?;
        check(&report, device);
    }
    Ok(())
}

#[test]
fn a_kernel_from_an_installation_disc() -> Result<()> {
    if lacks(&["xorriso"]) {
        return Ok(());
    }
    let system = System::new("load-iso")?;
    let image = system.scratch.path().join("bootonly.iso");
    let mut xorriso = Command::new("xorriso");
    xorriso.args(["-as", "mkisofs", "-R", "-quiet", "-o"]).arg(&image).arg(system.root());
    tool(&mut xorriso)?;
    let report = system.boot("fromiso", &["-d", path_text(&image)?])?;
    check(&report, "cd0:");
    Ok(())
}

#[test]
fn ends_without_a_kernel_leave_no_vm() -> Result<()> {
    let system = System::new("load-ends")?;
    let root = system.root();
    let host = path_text(&root)?;
    let menu = ["-h", host, "-e", "autoboot_delay=NO", "gone"];
    let cases: [(&[&str], i32, &str); 8] = [
        // The input has ended before the menu: the user is gone.
        (&menu, 1, "Welcome to FreeBSD"),
        (&["-h", host, "-m", "1M", "gone"], 1, "bhyveload: "),
        (&["-h", host, "a/b"], 1, "a/b"),
        (&["-d", "/nowhere/guest.img", "gone"], 64, "-d /nowhere/guest.img: cannot open"),
        (&["-h", "/nowhere", "gone"], 64, "-h /nowhere: cannot open"),
        (&["-l", "/boot/userboot.so", "gone"], 64, "-l /boot/userboot.so: "),
        (&["-c", "/nowhere/tty", "-h", host, "gone"], 64, "-c /nowhere/tty: cannot open"),
        (&["gone"], 1, "nothing to boot from: no disk (-d) and no folder (-h) is given"),
    ];
    for (arguments, expected, text) in cases {
        let (status, said) = system.run("bhyveload", arguments)?;
        assert_eq!(status, Some(expected), "{arguments:?}: {said}");
        assert!(said.contains(text), "{arguments:?}: {said}");
        assert_eq!(system.list(), [""; 0], "{arguments:?}: {said}");
    }
    Ok(())
}

#[test]
fn the_user_chooses_in_the_menu_and_at_the_prompt() -> Result<()> {
    let system = System::new("load-user")?;
    let root = system.root();
    let arguments = ["-h", path_text(&root)?, "-m", "64M", "-e", "autoboot_delay=100", "chosen"];
    for (typed, expected, text) in [
        ("r", 2, "Autoboot in 100 seconds."),
        ("3quit\n", 1, "OK "),
        ("3load nothing\nreboot\n", 2, "can't find 'nothing'\n"),
    ] {
        let (status, said) = system.run_with("bhyveload", &arguments, typed)?;
        assert_eq!(status, Some(expected), "{said}");
        assert!(said.contains(text), "{said}");
        assert_eq!(system.list(), [""; 0]);
    }
    let typed = "3load /boot/kernel/kernel\nset mine=typed\nlsmod\nboot -s\n";
    let (status, said) = system.run_with("bhyveload", &arguments, typed)?;
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("0x200000: /boot/kernel/kernel (elf kernel, "), "{said}");
    assert_eq!(system.list(), ["chosen"]);
    // A VM that was there keeps its name if nothing is loaded.
    assert_eq!(system.run_with("bhyveload", &arguments, "r")?.0, Some(2));
    assert_eq!(system.list(), ["chosen"]);
    Ok(())
}

fn digit(value: u8) -> char {
    char::from_digit(value.into(), 16).unwrap_or('?')
}

/// The handbook's way: `vmrun.sh` from a disk that has been installed.
#[test]
fn the_example_script_runs_a_disk() -> Result<()> {
    if !is_root() {
        eprintln!("skipped: only root can make a tap");
        return Ok(());
    }
    if lacks(&["makefs", "file"]) {
        return Ok(());
    }
    let system = System::new("vmrun")?;
    let image = system.ufs("1")?;
    let namespace = Namespace::new()?;
    let mut shell = Shell::new("vmrun", Some(&namespace))?;
    std::fs::copy(&image, shell.folder().join("guest.img"))?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/vmrun.sh");
    shell.type_line(&format!("sh {} -c 4 -m 1024M -t tap0 -d guest.img guestname", script.display()))?;
    let (status, said) = shell.finish(LIMIT)?;
    assert_eq!(status, 1, "powered off: {said}");
    // The metadata's first name, as the kernel writes it.
    let name: String = b"/boot/kernel/kernel\0".iter().flat_map(|b| [b >> 4, b & 15]).map(digit).collect();
    assert!(said.contains(&name), "the kernel ran");
    assert_eq!(std::fs::read_dir(shell.vms())?.count(), 0, "the VM is destroyed");
    // An empty disk and no installation image.
    shell.check("truncate -s 1M empty.img")?;
    let (status, said) = shell.run(&format!("sh {} -d empty.img guestname", script.display()))?;
    assert!(status == 1 && said.contains("no installation image to be read"), "{said}");
    Ok(())
}
