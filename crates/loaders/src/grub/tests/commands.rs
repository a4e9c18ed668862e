use std::sync::Arc;

use media::Bytes;

use super::{FILES, Rig, run};

#[test]
fn files_are_listed_as_the_handbook_shows() {
    // The folder of the handbook's installation medium, in its order, on a terminal of 80 columns.
    let names = [
        "boot.cat",
        "boot.msg",
        "grub.conf",
        "initrd.img",
        "isolinux.bin",
        "isolinux.cfg",
        "memtest",
        "splash.jpg",
        "TRANS.TBL",
        "vesamenu.c32",
        "vmlinuz",
    ];
    let paths: Vec<String> = names.iter().map(|name| format!("/isolinux/{name}")).collect();
    let files: Vec<(&str, &[u8])> = paths.iter().map(|path| (path.as_str(), &b""[..])).collect();
    let listed = Rig::terminal(&files, "").text("ls (host)/isolinux");
    let lines: Vec<&str> = listed.lines().map(str::trim_end).collect();
    assert_eq!(
        lines,
        [
            "boot.cat boot.msg grub.conf initrd.img isolinux.bin isolinux.cfg memtest",
            "splash.jpg TRANS.TBL vesamenu.c32 vmlinuz",
        ]
    );
    // A file gets no such breaks.
    assert_eq!(Rig::new(&files, "").text("ls (host)/isolinux/").trim_end(), names.join(" "));
}

#[test]
fn long_lists() {
    let files: &[(&str, &[u8])] =
        &[("/d/one", b"12345"), ("/d/sub/x", b""), ("/d/.h", b""), ("/d/big", &[0; 1536])];
    let text = |command: &str| Rig::new(files, "").text(command);
    assert_eq!(text("ls /d"), "one sub/ big \n");
    assert_eq!(text("ls -a /d"), "./ ../ one sub/ .h big \n");
    assert_eq!(
        text("ls -l /d"),
        "5            20261124120000 one\nDIR          20261124120000 sub/\n1536         20261124120000 big\n"
    );
    assert!(text("ls -lh /d/big").starts_with("1.50K        2026-11-24 12:00:00 Tuesday "));
    assert_eq!(text("ls /d/one"), "one \n");
    assert_eq!(text("ls"), "(host) \n");
    assert_eq!(text("ls /x"), "error: file `/x' not found.\n");
    assert_eq!(text("ls (host)"), "Device host: Filesystem type memory\n");
}

#[test]
fn files_are_shown_and_compared() {
    assert_eq!(run("cat /a.txt"), "hello\nworld\n");
    assert_eq!(
        run("hexdump -n 6 (host)/a.txt"),
        "00000000  68 65 6c 6c 6f 0a                                 |hello.|\n"
    );
    assert_eq!(run("hexdump -s 0x6 -n 2 /a.txt").split("  ").next(), Some("00000006"));
    let output = run("cmp /a.txt /b.txt; echo $?; cmp /a.txt /a.txt; echo $?");
    assert!(output.contains("Differ at the offset 6: 0x77 [/a.txt], 0x57 [/b.txt]\n1\n"), "{output}");
    assert!(output.ends_with("The files are identical.\n0\n"));
    assert!(run("testload /a.txt; echo $?").ends_with("0\n"));
    let mut rig = Rig::new(&[("/esc", b"\x1b[2Ja\xff\xe4\xb8\xad")], "");
    assert_eq!(rig.text("cat /esc"), "<1b>[2Ja<ff>\u{4e2d}");
}

#[test]
fn hashes() {
    // By md5sum and others of coreutils, and crc32 of zlib, of "hello\nworld\n".
    assert_eq!(run("md5sum /a.txt"), "0f723ae7f9bf07744445e93ac5595156  /a.txt\n");
    assert_eq!(run("sha1sum /a.txt"), "58853e8a5e8272b1012f9a52a80758b27bd0d3cb  /a.txt\n");
    assert_eq!(
        run("hashsum -h sha256 /a.txt"),
        "4a1e67f2fe1d1cc7b31d0ca2ec441da4778203a036a77da10344c85e24ff0f92  /a.txt\n"
    );
    assert_eq!(run("crc /a.txt"), "c4c55dff\n");
    let list = b"0f723ae7f9bf07744445e93ac5595156  a.txt\n0f723ae7f9bf07744445e93ac5595156 *b.txt\n";
    let mut rig = Rig::new(&[FILES, &[("/list", list)]].concat(), "");
    let output = rig.text("md5sum -k -c /list -p /; echo $?");
    assert_eq!(output, "/a.txt: OK\n/b.txt: HASH MISMATCH\nerror: 1 hashes don't match.\n1\n");
    assert_eq!(run("hashsum -h rot13 /a.txt"), "error: unknown hash `rot13'.\n");
}

#[test]
fn devices_are_found() {
    let mut rig = Rig::new(FILES, "");
    let mut tar = Vec::new();
    // A file as it is also can be a device.
    tar.extend_from_slice(&[0; 2048]);
    rig.disks.add_disk("hd0", Arc::new(Bytes(tar))).unwrap();
    assert_eq!(rig.text("search --file --set=root /a.txt; echo $root"), "host\n");
    assert_eq!(rig.text("search --no-floppy --file /a.txt"), "host \n");
    assert_eq!(rig.text("search -f /nope; echo $?"), "error: no such device: /nope.\n5\n");
    assert_eq!(rig.text("search.file /a.txt dev hd0; echo $dev"), "host\n");
    assert_eq!(rig.text("search --label --set x nothing"), "error: no such device: nothing.\n");
    assert_eq!(
        rig.text("loopback lo /a.txt; cat (lo); ls; loopback -d lo; ls"),
        "hello\nworld\n(hd0) (lo) (host) \n(hd0) (host) \n"
    );
    assert_eq!(rig.text("probe -f host; probe --set=d -d host; echo $d"), "memory\nhost\n");
    assert_eq!(rig.text("probe -u host"), "error: a UUID for `memory' isn't there.\n");
    assert_eq!(rig.text("probe -f hd0"), "error: unknown filesystem.\n");
    assert_eq!(rig.text("probe -f hd5"), "error: no such device: hd5.\n");
    assert_eq!(rig.text("cryptomount hd0"), "error: `hd0' is not an encrypted device.\n");
    assert_eq!(rig.text("cryptomount -a"), "error: no such cryptodisk found.\n");
    assert_eq!(rig.text("hexdump -n 1 (hd0)1+1").split(' ').next(), Some("00000000"));
    assert!(rig.text("ls -l").contains("Device hd0: No known filesystem detected - Total size 2KiB"));
}

#[test]
fn modules_and_terminals() {
    assert_eq!(run("insmod ext2; insmod (host)/x/gzio.mod; lsmod; rmmod gzio; lsmod"), "ext2\ngzio\next2\n");
    assert_eq!(
        run("terminal_output gfxterm; terminal_input console serial; terminal_output x"),
        "error: terminal `x' isn't found.\n"
    );
    assert_eq!(
        run("serial --unit=0 --speed=115200; serial --unit=3"),
        "error: serial port `com3' isn't found.\n"
    );
    assert_eq!(run("if loadfont unicode; then echo graphics; else echo text; fi"), "text\n");
    assert!(run("help").lines().count() > 30);
    assert!(run("help sea").contains("Usage: search "));
    assert!(run("date").trim().ends_with("day"));
    assert_eq!(run("sleep 0; echo $?"), "0\n");
    assert_eq!(run("gettext x; echo"), "x\n");
}

#[test]
fn the_environment_block() {
    let mut block = b"# GRUB Environment Block\nsaved_entry=Debian\nboot_once=\nx=1\\\\2\n".to_vec();
    block.resize(1024, b'#');
    let mut rig = Rig::new(&[("/boot/grub/grubenv", &block), ("/bad", b"x")], "");
    assert_eq!(rig.text("load_env; echo $saved_entry $x"), "Debian 1\\2\n");
    assert_eq!(rig.text("load_env x; echo \"<$saved_entry>\" $x"), "<> 1\\2\n");
    assert_eq!(rig.text("list_env"), "saved_entry=Debian\nboot_once=\nx=1\\2\n");
    assert_eq!(rig.text("load_env -f /bad; echo $?"), "error: invalid environment block.\n4\n");
    assert_eq!(
        rig.text("set x=3; save_env x; echo $?"),
        "error: `(host)/boot/grub/grubenv' can't be written: files of the host are not changed.\n15\n"
    );
    // Nothing changes: nothing needs to be written.
    assert_eq!(rig.text("load_env; save_env x; echo $?"), "0\n");
}

#[test]
fn lines_are_read() {
    let mut rig = Rig::new(&[], "my answer\n");
    assert_eq!(rig.text("read x; echo \"<$x>\""), "<my answer>\n");
}

#[test]
fn kernels_are_loaded() {
    let kernel = super::bzimage();
    let files: &[(&str, &[u8])] =
        &[("/vmlinuz", &kernel), ("/i", b"1"), ("/j", b"2"), ("/text", b"no kernel")];
    let boot = |text: &str| {
        let mut rig = Rig::new(files, "");
        let output = rig.text(text);
        (rig.target.booted.join("|"), output)
    };
    let line = "linux console=ttyS0 BOOT_IMAGE=/vmlinuz root=/dev/sda1 \"a b\" [/i /j]";
    assert_eq!(boot("linux /vmlinuz root=/dev/sda1 'a b'; initrd /i /j; boot"), (line.into(), String::new()));
    let line = "linux BOOT_IMAGE=(host)/vmlinuz console=ttyS0,115200 []";
    assert_eq!(boot("linux (host)/vmlinuz console=ttyS0,115200; boot").0, line);
    let (booted, output) = boot("linux /text; boot");
    assert!(booted.is_empty() && output.starts_with("error: /text: "), "{output}");
    assert!(output.ends_with("error: you need to load the kernel first.\n"));
    assert_eq!(
        boot("linux /vmlinuz; initrd newc:a:/i").1,
        "error: `newc:a:/i': files are not packed into an archive.\n"
    );
    assert_eq!(boot("linux /vmlinuz; initrd /none; boot").0, "linux console=ttyS0 BOOT_IMAGE=/vmlinuz []");
    for command in ["multiboot /text", "kfreebsd /text", "kopenbsd /text", "knetbsd /text"] {
        assert!(boot(command).1.starts_with("error: /text: "), "{command}: {}", boot(command).1);
    }
    for command in
        ["module /i", "kfreebsd_module /i", "kfreebsd_loadenv /i", "kopenbsd_ramdisk /i", "knetbsd_module /i"]
    {
        assert!(boot(command).1.contains("kernel first"), "{command}: {}", boot(command).1);
    }
    assert_eq!(boot("kopenbsd -x /text").1, "error: unknown argument `-x'.\n");
    assert_eq!(boot("kopenbsd -r nodisk /text").1, "error: `nodisk' is not a device of OpenBSD.\n");
    assert_eq!(boot("knetbsd -h com9 /text").1, "error: no serial line `com9'.\n");
}

#[test]
fn the_serial_console_can_be_left_out() {
    let kernel = super::bzimage();
    let mut rig = Rig::new(&[("/vmlinuz", &kernel)], "");
    rig.with(|session| {
        session.settings.serial_console = false;
        session.refill();
        session.run_text("linux /vmlinuz quiet; boot", None);
    });
    assert_eq!(rig.target.booted, ["linux BOOT_IMAGE=/vmlinuz quiet []"]);
}

#[test]
fn completion_at_the_prompt() {
    let cases = [
        ("insm\t", "insmod "),
        ("cat (h\t", "cat (host)"),
        ("cat /bo\t", "cat /boot/"),
        ("cat /boot/vm\t", "cat /boot/vmlinuz-"),
        ("cat (host)/a.\t", "cat (host)/a.txt "),
        ("ls; ec\t", "ls; echo "),
        ("set root=(h\t", "set root=(host)"),
        ("linux /boot/vmlinuz-1 ro; initrd /boot/in\t", "linux /boot/vmlinuz-1 ro; initrd /boot/initrd "),
    ];
    for (typed, expected) in cases {
        let mut rig = Rig::terminal(FILES, typed);
        let ended = rig.run();
        let line = ended.screen.iter().rev().find(|l| l.starts_with("grub> ")).cloned().unwrap_or_default();
        assert_eq!(line, format!("grub> {expected}").trim_end(), "{typed:?}: {:?}", ended.screen);
    }
    let ended = Rig::terminal(FILES, "cat /boot/vm\t\t").run();
    assert!(ended.output.contains("Possible files are:\n\nvmlinuz-1  vmlinuz-2\n"), "{}", ended.output);
}
