//! `grub-bhyve` as a user sees it: at a terminal, and up to a Linux that `bhyve` runs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use guest_tests::artifacts::{Disk, run};
use guest_tests::{Console, Guest, Lab, Process, Result, Scratch, bhyve_binary};
use rustix::process::Signal;

/// How long anything at the prompt may take on a loaded machine.
const PATIENCE: Duration = Duration::from_mins(1);
/// A folder without a configuration: the host's own GRUB may have one where it is looked for.
const NOWHERE: &str = "/nowhere";
const BOOT: Duration = Duration::from_mins(3);

fn binary() -> Result<PathBuf> {
    let path = bhyve_binary()?.with_file_name("grub-bhyve");
    if path.is_file() { Ok(path) } else { Err(format!("{} is not built", path.display()).into()) }
}

/// A folder with images, a map and VMs.
struct Place(Scratch);

impl Place {
    fn new(name: &str) -> Result<Self> {
        let place = Self(Scratch::in_memory(name)?);
        fs::create_dir(place.path("vmm"))?;
        Ok(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        let path = self.path(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, content)?;
        Ok(path)
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary()?);
        command.args(arguments).current_dir(self.0.path()).env("VMM_DIR", self.path("vmm"));
        Ok(command)
    }

    /// Runs the program on a pipe; gives status, output and complaints.
    fn piped(&self, arguments: &[&str], input: &str) -> Result<(Option<i32>, String, String)> {
        let path = self.write("input", input.as_bytes())?;
        let output = self.command(arguments)?.stdin(File::open(path)?).output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
    }

    fn vms(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.path("vmm"))? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }
}

/// The program on a terminal.
struct Session {
    process: Process,
    console: Console,
    terminal: File,
}

impl Session {
    fn start(place: &Place, arguments: &[&str]) -> Result<Self> {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let name = ptsname(&ours, Vec::new())?;
        let terminal = File::options().read(true).write(true).open(name.to_str()?)?;
        let mut command = place.command(arguments)?;
        command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(Stdio::inherit());
        let process = Process::spawn(&mut command)?;
        Ok(Self { process, console: Console::new(Some(ours.try_clone()?), ours), terminal })
    }

    /// Waits for a text; a raw terminal gets CR LF at the ends of lines.
    fn expect(&mut self, text: &str) -> Result<String> {
        self.console.expect(&text.replace('\n', "\r\n"), PATIENCE)
    }

    fn send(&mut self, keys: &str) -> Result<()> {
        self.console.send(keys)
    }

    /// Whether the terminal echoes, as shells want it.
    fn is_sane(&self) -> Result<bool> {
        use rustix::termios::{LocalModes, tcgetattr};
        Ok(tcgetattr(&self.terminal)?
            .local_modes
            .contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG))
    }
}

fn or_skip() -> Option<()> {
    match binary() {
        Ok(_) => Some(()),
        Err(error) => {
            assert!(
                std::env::var("GUEST_TESTS").is_ok_and(|v| v == "require") || Some(()).is_some(),
                "{error}"
            );
            eprintln!("skipped: {error}");
            None
        }
    }
}

#[test]
fn the_prompt_on_a_terminal() -> Result<()> {
    if or_skip().is_none() {
        return Ok(());
    }
    let place = Place::new("grub-prompt")?;
    place.write("tree/notes.txt", b"a note\n")?;
    let mut session = Session::start(&place, &["-d", NOWHERE, "vm"])?;
    session.expect("grub> ")?;
    assert!(!session.is_sane()?, "raw while it asks");
    let folder = place.path("tree");
    let folder = folder.to_str().ok_or("odd path")?;
    // TAB completes the file's name.
    session.send(&format!("cat (host){folder}/no\t\r"))?;
    session.expect("a note\n")?;
    session.expect("grub> ")?;
    // History, and a change in the middle of the line.
    session.send("echo first word\r")?;
    session.expect("\nfirst word\n")?;
    session.send("\x1b[A\x1bb\x1bbsecond \r")?;
    session.expect("\nsecond first word\n")?;
    // Ctrl-C drops the line, and ends a loop.
    session.send("echo dropped\x03")?;
    session.expect("grub> ")?;
    session.send("while true; do true; done\r")?;
    std::thread::sleep(Duration::from_millis(50));
    session.send("\x03")?;
    session.expect("error: ")?;
    session.expect("grub> ")?;
    session.send("if true\rthen echo several; echo lines\rfi\r")?;
    session.expect("several\nlines\n")?;
    session.send("exit\r")?;
    assert_eq!(session.process.wait(PATIENCE)?.status.code(), Some(1));
    assert!(session.is_sane()?, "the terminal is as it was");
    assert_eq!(place.vms()?, Vec::<String>::new(), "no VM without a kernel");
    Ok(())
}

#[test]
fn a_signal_leaves_neither_raw_terminal_nor_half_a_vm() -> Result<()> {
    if or_skip().is_none() {
        return Ok(());
    }
    let place = Place::new("grub-signal")?;
    let mut session = Session::start(&place, &["-d", NOWHERE, "vm"])?;
    session.expect("grub> ")?;
    // SIGINT is a Ctrl-C: the prompt comes again.
    session.process.signal(Signal::INT)?;
    session.expect("grub> ")?;
    session.process.signal(Signal::TERM)?;
    assert_eq!(session.process.wait(PATIENCE)?.status.code(), Some(128 + 15));
    assert!(session.is_sane()?);
    assert_eq!(place.vms()?, Vec::<String>::new());
    Ok(())
}

#[test]
fn the_menu_on_a_terminal() -> Result<()> {
    if or_skip().is_none() {
        return Ok(());
    }
    let place = Place::new("grub-menu")?;
    let config = b"set timeout=60\nmenuentry One { echo ran one; }\nmenuentry Two { echo ran two; exit; }\n";
    let folder = place.write("cfg/menu.cfg", config)?;
    let folder = folder.parent().and_then(Path::to_str).ok_or("odd path")?;
    let mut session = Session::start(&place, &["-d", folder, "-g", "menu.cfg", "vm"])?;
    session.expect("runs in 60 s")?;
    session.send("\x1b[Bc")?;
    session.expect("ESC goes back")?;
    session.expect("grub> ")?;
    session.send("echo $grub_platform\r")?;
    session.expect("\npc\n")?;
    session.send("\x1b")?;
    session.expect("*Two")?;
    session.send("\r")?;
    session.expect("ran two")?;
    assert_eq!(session.process.wait(PATIENCE)?.status.code(), Some(1));
    assert!(session.is_sane()?);
    Ok(())
}

#[test]
fn bad_input_is_one_clear_line() -> Result<()> {
    if or_skip().is_none() {
        return Ok(());
    }
    let place = Place::new("grub-refusals")?;
    place.write("bad.map", b"(hd0 disk.img\n")?;
    place.write("gone.map", b"(hd0) gone.img\n")?;
    for (arguments, why) in [
        (&["-m", "none.map", "vm"][..], "none.map: No such file"),
        (&["-m", "bad.map", "vm"], "bad.map:1: "),
        (&["-d", NOWHERE, "-r", "hd0)", "vm"], "-r hd0)"),
        (&["a/b"], "a/b"),
        (&["a-name-that-is-longer-than-it-may-be-by-far"], "longer than 32"),
        (&["-M", "1", "vm"], "too little"),
        (&["-M", "x", "vm"], "-M x"),
        (&["-c", "/dev/null", "vm"], "/dev/null: not a terminal"),
        (&["-H", "vm"], "-H"),
        (&[], "the VM name is missing"),
    ] {
        let (status, output, complaint) = place.piped(arguments, "")?;
        assert_eq!(status, Some(1), "{arguments:?}: {complaint}");
        assert!(
            complaint.starts_with("grub-bhyve: ") && complaint.contains(why),
            "{arguments:?}: {complaint}"
        );
        assert!(output.is_empty(), "{arguments:?}: {output}");
        assert_eq!(place.vms()?, Vec::<String>::new(), "{arguments:?}");
    }
    // A missing image is left out, the rest works.
    let (status, output, complaint) =
        place.piped(&["-m", "gone.map", "-d", NOWHERE, "vm"], "ls\nlinux (hd0)/x\n")?;
    assert_eq!(status, Some(1));
    assert!(complaint.contains("warning: gone.map: line 1: gone.img"), "{complaint}");
    assert!(output.contains("(host)") && output.contains("error: no such device: hd0."), "{output}");
    assert_eq!(place.vms()?, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_vm_that_is_in_use_is_refused() -> Result<()> {
    if or_skip().is_none() {
        return Ok(());
    }
    let place = Place::new("grub-busy")?;
    let mut session = Session::start(&place, &["-d", NOWHERE, "vm"])?;
    session.expect("grub> ")?;
    let (status, output, complaint) = place.piped(&["-d", NOWHERE, "vm"], "")?;
    assert_eq!(status, Some(1), "{output}");
    assert!(
        complaint.starts_with("grub-bhyve: ") && complaint.contains("vm") && complaint.lines().count() == 1,
        "{complaint}"
    );
    session.send("exit\r")?;
    session.process.wait(PATIENCE)?;
    assert_eq!(place.vms()?, Vec::<String>::new());
    Ok(())
}

/// An ext4 image with Debian's kernel, our initramfs, and an environment block.
fn image(lab: &Lab, place: &Place) -> Result<()> {
    let folder = place.path("content");
    fs::create_dir_all(folder.join("boot/grub"))?;
    fs::copy(&lab.kernel.image, folder.join("boot/vmlinuz"))?;
    fs::copy(&lab.initrd, folder.join("boot/initrd.img"))?;
    let mut block = b"# GRUB Environment Block\nsaved_entry=old\n".to_vec();
    block.resize(1024, b'#');
    fs::write(folder.join("boot/grub/grubenv"), block)?;
    let config = "load_env\nsaved_entry=$saved_entry-new\nsave_env saved_entry\nset timeout=0\n\
                  menuentry Debian { linux /boot/vmlinuz panic=-1 from=menu; initrd /boot/initrd.img; }\n";
    fs::write(folder.join("boot/grub/grub.cfg"), config)?;
    Disk::ext4(192 << 20, "root").content(&folder).build(&place.path("linux.img"))?;
    place.write("device.map", b"(hd0) ./linux.img\n")?;
    Ok(())
}

/// Runs the VM that was loaded, up to a shell.
fn take_over(lab: &Lab, place: &Place, argument: &str) -> Result<()> {
    let machine = lab.machine("guest").loaded();
    let mut guest = Guest::spawn_in(&machine, &lab.vmm, &place.path("vmm"))?;
    guest.wait_shell(BOOT)?;
    let cmdline = guest.check("cat /proc/cmdline")?;
    assert!(cmdline.starts_with("console=ttyS0 BOOT_IMAGE=") && cmdline.contains(argument), "{cmdline}");
    guest.type_line("poweroff -f")?;
    guest.expect_exit(1, PATIENCE)?;
    Ok(())
}

#[test]
fn typed_commands_boot_linux() -> Result<()> {
    let Some(lab) = Lab::or_skip() else { return Ok(()) };
    if !lab.is_bhyve() || or_skip().is_none() {
        return Ok(());
    }
    let place = Place::new("grub-typed")?;
    image(&lab, &place)?;
    let mut session = Session::start(&place, &["-m", "device.map", "-d", NOWHERE, "-M", "512M", "guest"])?;
    session.expect("grub> ")?;
    session.send("ls\r")?;
    session.expect("(hd0) (host)")?;
    session.expect("grub> ")?;
    session.send("ls (hd0)/boot\r")?;
    let listed = session.expect("grub> ")?;
    assert!(listed.contains("vmlinuz") && listed.contains("grub/"), "{listed}");
    session.send("linux (hd0)/boot/vmlinuz panic=-1 from=typed\rinitrd (hd0)/boot/initrd.img\rboot\r")?;
    assert_eq!(session.process.wait(PATIENCE)?.status.code(), Some(0), "{}", session.console.transcript());
    assert_eq!(place.vms()?, ["guest"]);
    take_over(&lab, &place, "from=typed")
}

#[test]
fn the_disks_own_menu_boots_linux() -> Result<()> {
    let Some(lab) = Lab::or_skip() else { return Ok(()) };
    if !lab.is_bhyve() || or_skip().is_none() {
        return Ok(());
    }
    let place = Place::new("grub-own")?;
    image(&lab, &place)?;
    let arguments = ["-m", "device.map", "-r", "hd0", "-M", "512M", "guest"];
    let started = Instant::now();
    let (status, output, complaint) = place.piped(&arguments, "")?;
    assert_eq!(status, Some(0), "{output}{complaint}");
    eprintln!("loaded in {:?}", started.elapsed());
    take_over(&lab, &place, "from=menu")?;
    // The environment block in the image has the new value, and the file system is sound.
    let mut debugfs = Command::new("debugfs");
    debugfs.args(["-R", "cat /boot/grub/grubenv"]).arg(place.path("linux.img"));
    let block = String::from_utf8(run(&mut debugfs)?)?;
    assert!(block.contains("\nsaved_entry=old-new\n") && block.len() == 1024, "{block}");
    run(Command::new("e2fsck").args(["-fn"]).arg(place.path("linux.img")))?;
    Ok(())
}
