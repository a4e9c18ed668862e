//! Configurations as the distributions' tools write them.

use std::path::PathBuf;
use std::process::Command;

use super::{Rig, bzimage};

/// Runs a configuration with these files beside it; gives what was booted by itself, and the output.
fn boots(config: &str, files: &[(&str, &[u8])], input: &str) -> (Vec<String>, String) {
    let kernel = bzimage();
    let mut all: Vec<(&str, &[u8])> = vec![("/boot/grub/grub.cfg", config.as_bytes())];
    for (path, bytes) in files {
        // A kernel where a test names one.
        all.push((path, if *bytes == b"kernel" { &kernel } else { bytes }));
    }
    let ended = Rig::new(&all, input).run();
    (ended.booted, ended.output)
}

/// A folder that goes away with its value.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Answers as grub-probe does on a machine with one disk, partitioned the old way.
const PROBE: &str = r#"#!/bin/sh
for a; do case "$a" in --target=*) t=${a#--target=};; -t) n=1;; *) if [ "$n" ]; then t=$a; n=; fi;; esac; done
case $t in
fs) echo ext2;; fs_uuid) echo 11111111-2222-3333-4444-555555555555;; partmap) echo msdos;;
device) echo /dev/sda1;; compatibility_hint) echo hd0,msdos1;; drive) echo "(hd0,msdos1)";;
hints_string) echo "--hint-bios=hd0,msdos1 --hint-efi=hd0,msdos1 --hint-baremetal=ahci0,msdos1";;
esac
"#;

/// What Debian's grub-mkconfig writes for two kernels; `None` where it isn't installed.
fn mkconfig(scratch: &Scratch) -> Option<String> {
    let root = scratch.0.to_str()?.to_owned();
    std::fs::create_dir_all(scratch.0.join("grub.d")).ok()?;
    std::fs::create_dir_all(scratch.0.join("boot")).ok()?;
    let copy = |from: &str, to: &str, changes: &[(&str, String)]| -> Option<()> {
        let mut text = std::fs::read_to_string(from).ok()?;
        for (old, new) in changes {
            text = text.replace(old, new);
        }
        std::fs::write(scratch.0.join(to), text).ok()?;
        Command::new("chmod").arg("755").arg(scratch.0.join(to)).status().ok().map(drop)
    };
    std::fs::write(scratch.0.join("probe"), PROBE).ok()?;
    Command::new("chmod").arg("755").arg(scratch.0.join("probe")).status().ok()?;
    let probe = ("grub_probe=\"${sbindir}/grub-probe\"", format!("grub_probe={root}/probe"));
    let library = ("$pkgdatadir/grub-mkconfig_lib", format!("{root}/lib"));
    let folder = ("grub_mkconfig_dir=\"${sysconfdir}\"/grub.d", format!("grub_mkconfig_dir={root}/grub.d"));
    copy("/usr/sbin/grub-mkconfig", "mkconfig", &[probe.clone(), library.clone(), folder])?;
    copy("/usr/share/grub/grub-mkconfig_lib", "lib", &[probe])?;
    let kernels = ("/boot/vmlinuz-*", format!("{root}/boot/vmlinuz-*"));
    for name in ["00_header", "10_linux", "40_custom", "41_custom"] {
        let from = format!("/etc/grub.d/{name}");
        copy(&from, &format!("grub.d/{name}"), &[library.clone(), kernels.clone()])?;
    }
    for name in [
        "vmlinuz-6.1.0-18-amd64",
        "vmlinuz-6.1.0-9-amd64",
        "initrd.img-6.1.0-18-amd64",
        "initrd.img-6.1.0-9-amd64",
    ] {
        std::fs::write(scratch.0.join("boot").join(name), "x").ok()?;
    }
    let output = Command::new("sh").arg(scratch.0.join("mkconfig")).env("EUID", "0").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    // The only device of this test.
    let text = text.replace("set root='hd0,msdos1'", "set root='host'");
    text.contains("menuentry '").then_some(text)
}

#[test]
fn what_debians_mkconfig_writes() {
    let scratch = Scratch(std::env::temp_dir().join(format!("grub-mkconfig-{}", std::process::id())));
    let Some(config) = mkconfig(&scratch) else {
        let missing = !std::path::Path::new("/usr/sbin/grub-mkconfig").exists();
        let required = std::env::var_os("GUEST_TESTS").is_some_and(|v| v == "require");
        assert!(!(missing && required), "grub-mkconfig is missing");
        eprintln!("skipped: grub-mkconfig (package grub-common) can't be used here");
        return;
    };
    let root = scratch.0.to_str().unwrap();
    let path = |name: &str| format!("{root}/boot/{name}");
    let new = (path("vmlinuz-6.1.0-18-amd64"), path("initrd.img-6.1.0-18-amd64"));
    let old = (path("vmlinuz-6.1.0-9-amd64"), path("initrd.img-6.1.0-9-amd64"));
    let files: &[(&str, &[u8])] = &[(&new.0, b"kernel"), (&new.1, b"1"), (&old.0, b"kernel"), (&old.1, b"2")];
    let (booted, output) = boots(&config, files, "");
    assert_eq!(booted.len(), 1, "{output}");
    assert!(booted[0].starts_with(&format!("linux console=ttyS0 BOOT_IMAGE={} root=", new.0)), "{booted:?}");
    assert!(booted[0].ends_with(&format!(" [{}]", new.1)), "{booted:?}");
    assert!(output.contains("Loading Linux 6.1.0-18-amd64 ..."), "{output}");
    // What it asks for beyond its own disk, which isn't there in this test.
    assert!(!output.contains("can't find command") && !output.contains("syntax"), "{output}");
    // The submenu: the third entry is the older kernel.
    let (booted, output) = boots(&config, files, "1\n2\n");
    assert!(booted.len() == 1 && booted[0].contains(&old.0), "{booted:?} {output}");
}

/// Fedora: the menu is made of files, the default is in the environment block.
#[test]
fn fedora() {
    let config = r#"
set pager=1
if [ -f ${config_directory}/grubenv ]; then load_env -f ${config_directory}/grubenv
elif [ -s $prefix/grubenv ]; then load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   set boot_once=true
else
   set default="${saved_entry}"
fi
if [ x"${feature_menuentry_id}" = xy ]; then menuentry_id_option="--id"; else menuentry_id_option=""; fi
export menuentry_id_option
function load_video {
  if [ x$feature_all_video_module = xy ]; then insmod all_video; else insmod efi_gop; fi
}
terminal_output console
if [ x$feature_timeout_style = xy ] ; then set timeout_style=menu; set timeout=0; fi
insmod part_gpt
insmod xfs
search --no-floppy --file --set=root /loader/entries
insmod blscfg
if [ -z "${kernelopts}" ]; then set kernelopts="root=UUID=none ro"; fi
blscfg
menuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' { fwsetup }
"#;
    let mut block = b"# GRUB Environment Block\nsaved_entry=id-6.8.5-301.fc40.x86_64\nkernelopts=root=/dev/vda2 ro rhgb\n".to_vec();
    block.resize(1024, b'#');
    let entry = |version: &str, options: &str| {
        format!(
            "title Fedora Linux ({version}) 40\nversion {version}\nlinux /vmlinuz-{version}\ninitrd /initramfs-{version}.img $tuned_initrd\noptions {options} $tuned_params\ngrub_users $grub_users\ngrub_arg --unrestricted\ngrub_class fedora\n"
        )
    };
    let (a, b) = (
        entry("6.8.5-301.fc40.x86_64", "$kernelopts"),
        entry("6.11.4-201.fc40.x86_64", "root=/dev/vda3 ro quiet"),
    );
    let files: &[(&str, &[u8])] = &[
        ("/boot/grub/grubenv", &block),
        ("/loader/entries/id-6.8.5-301.fc40.x86_64.conf", a.as_bytes()),
        ("/loader/entries/id-6.11.4-201.fc40.x86_64.conf", b.as_bytes()),
        ("/loader/entries/id-0-rescue.conf", b"title Rescue\nlinux /none\n"),
        ("/loader/entries/notes.txt", b"title no\nlinux /none\n"),
        ("/vmlinuz-6.8.5-301.fc40.x86_64", b"kernel"),
        ("/vmlinuz-6.11.4-201.fc40.x86_64", b"kernel"),
        ("/initramfs-6.8.5-301.fc40.x86_64.img", b"i"),
        ("/initramfs-6.11.4-201.fc40.x86_64.img", b"i"),
    ];
    let (booted, output) = boots(config, files, "");
    let image = "BOOT_IMAGE=/vmlinuz-6.8.5-301.fc40.x86_64 root=/dev/vda2 ro rhgb [/initramfs-6.8.5-301.fc40.x86_64.img]";
    assert_eq!(booted, [format!("linux console=ttyS0 {image}")], "{output}");
    assert!(!output.contains("error"), "{output}");
    // The newest is the first, the rescue entry the last, the firmware's behind them.
    let listed = boots(&config.replace("timeout=0", "timeout=-1"), files, "0\n");
    assert!(listed.0[0].contains("/vmlinuz-6.11.4-201.fc40.x86_64 root=/dev/vda3 ro quiet"), "{listed:?}");
    assert!(listed.1.contains(" 0  Fedora Linux (6.11.4-201.fc40.x86_64) 40\n*1  Fedora Linux (6.8.5-301.fc40.x86_64) 40\n 2  Rescue\n 3  UEFI"), "{}", listed.1);
}

/// An installation medium in Debian's manner: fonts and colours that can't be had, several menus.
#[test]
fn debians_installer() {
    let config = r"
if loadfont $prefix/font.pf2 ; then
  set gfxmode=800x600
  set gfxpayload=keep
  insmod efi_gop
  insmod video_bochs
  insmod gfxterm
  insmod png
  terminal_output gfxterm
fi
if background_image /isolinux/splash.png; then
  set color_normal=light-gray/black
  set color_highlight=white/black
else
  set menu_color_normal=cyan/blue
  set menu_color_highlight=white/blue
fi
insmod play
play 960 440 1 0 4 440 1
set theme=/boot/grub/theme/1
menuentry --hotkey=g 'Graphical install' {
    set background_color=black
    linux    /install.amd/vmlinuz vga=788 --- quiet
    initrd   /install.amd/gtk/initrd.gz
}
menuentry --hotkey=i 'Install' {
    set background_color=black
    linux    /install.amd/vmlinuz vga=788 --- quiet
    initrd   /install.amd/initrd.gz
}
submenu --hotkey=a 'Advanced options ...' {
    set menu_color_normal=cyan/blue
    set gfxpayload=keep
    menuentry '... Rescue mode' {
        linux    /install.amd/vmlinuz vga=788 rescue/enable=true --- quiet
        initrd   /install.amd/initrd.gz
    }
}
";
    let files: &[(&str, &[u8])] = &[
        ("/install.amd/vmlinuz", b"kernel"),
        ("/install.amd/initrd.gz", b"i"),
        ("/install.amd/gtk/initrd.gz", b"i"),
    ];
    let image = "linux console=ttyS0 BOOT_IMAGE=/install.amd/vmlinuz vga=788";
    let (booted, output) = boots(config, files, "Install\n");
    assert_eq!(booted, [format!("{image} --- quiet [/install.amd/initrd.gz]")], "{output}");
    let (booted, _) = boots(config, files, "2\n0\n");
    assert_eq!(booted, [format!("{image} rescue/enable=true --- quiet [/install.amd/initrd.gz]")]);
}

/// Arch's medium: finds itself by a file, includes another file, chooses by platform.
#[test]
fn archs_medium() {
    let config = r#"
insmod part_gpt
insmod part_msdos
insmod fat
insmod iso9660
insmod all_video
if loadfont "${prefix}/fonts/unicode.pf2" ; then
    insmod gfxterm
    set gfxmode="auto"
    terminal_input console
    terminal_output gfxterm
fi
insmod serial
if serial --unit=0 --speed=115200; then
    terminal_input --append serial
    terminal_output --append serial
fi
if [ -z "${ARCHISO_UUID}" ]; then
    if [ -z "${ARCHISO_HINT}" ]; then
        regexp --set=1:ARCHISO_HINT '^\(([^)]+)\)\/?(.*)\/?$' "${cmdpath}"
    fi
    search --no-floppy --set=root --file '/boot/2026-11-01.uuid' --hint "${ARCHISO_HINT}"
    probe --set ARCHISO_FS --fs "${root}"
fi
default=archlinux
timeout=0
timeout_style=menu
menuentry "Arch Linux install medium (${grub_cpu}, ${ARCHISO_FS})" --class arch --class os --id 'archlinux' {
    set gfxpayload=keep
    linux /arch/boot/x86_64/vmlinuz-linux archisobasedir=arch archisodevice=UUID=${ARCHISO_UUID}
    initrd /arch/boot/x86_64/initramfs-linux.img
}
if [ "${grub_platform}" == 'efi' -a "${grub_cpu}" == 'x86_64' ]; then
    menuentry 'UEFI Shell' { chainloader /shellx64.efi; }
elif [ "${grub_platform}" == 'pc' ]; then
    menuentry 'Memtest86+' --id memtest { linux /boot/memtest86+/memtest; }
fi
menuentry 'System shutdown' --class shutdown { echo 'System shutting down...'; halt; }
play 600 988 1 1319 4
"#;
    let files: &[(&str, &[u8])] = &[
        ("/boot/2026-11-01.uuid", b""),
        ("/arch/boot/x86_64/vmlinuz-linux", b"kernel"),
        ("/arch/boot/x86_64/initramfs-linux.img", b"i"),
        ("/boot/memtest86+/memtest", b"kernel"),
    ];
    let config = config.replace("insmod serial\n", "");
    let (booted, output) = boots(&config, files, "");
    let image = "BOOT_IMAGE=/arch/boot/x86_64/vmlinuz-linux archisobasedir=arch archisodevice=UUID=";
    assert_eq!(
        booted,
        [format!("linux console=ttyS0 {image} [/arch/boot/x86_64/initramfs-linux.img]")],
        "{output}"
    );
    let waiting = config.replace("timeout=0", "timeout=-1");
    assert!(boots(&waiting, files, "memtest\n").0[0].contains("/boot/memtest86+/memtest"));
    assert!(boots(&waiting, files, "0\n").1.contains("Arch Linux install medium (i386, memory)"));
    let (booted, output) = boots(&waiting, files, "System shutdown\n");
    assert!(booted.is_empty() && output.contains("shutting down"), "{output}");
}

/// openSUSE: functions in menus, `for` over kernels of snapshots, a file that isn't there.
#[test]
fn opensuse() {
    let config = r#"
set btrfs_relative_path="y"
export btrfs_relative_path
if [ -f ${config_directory}/grubenv ]; then
  load_env -f ${config_directory}/grubenv
fi
if [ "${env_block}" ]; then set env_block="${root}${env_block}"; export env_block; load_env -f "${env_block}"; fi
set default="${saved_entry}"
function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
    if [ "${env_block}" ]; then save_env -f "${env_block}" saved_entry; else true; fi
  fi
}
set timeout=0
hiddenentry_count=0
submenu 'Start bootloader from a read-only snapshot' {
  if [ -f "/.snapshots/grub-snapshot.cfg" ]; then source "/.snapshots/grub-snapshot.cfg"; fi
  for k in /boot/vmlinuz-*-default; do
    if regexp --set 1:version '/boot/vmlinuz-(.*)' "$k"; then
      menuentry "Linux $version" "$k" "$version" { savedefault; linux "$2" root=UUID=1 splash=silent; initrd "/boot/initrd-$3"; }
    fi
  done
}
"#;
    let files: &[(&str, &[u8])] = &[
        ("/boot/vmlinuz-6.4.0-default", b"kernel"),
        ("/boot/initrd-6.4.0-default", b"i"),
        ("/boot/vmlinuz-6.5.0-default", b"kernel"),
        ("/boot/initrd-6.5.0-default", b"i"),
    ];
    // `$1` is the first argument after the title.
    let config = config.replace("\"$2\"", "\"$1\"").replace("initrd-$3", "initrd-$2");
    let (booted, output) = boots(&config, files, "");
    let image =
        "BOOT_IMAGE=/boot/vmlinuz-6.4.0-default root=UUID=1 splash=silent [/boot/initrd-6.4.0-default]";
    assert_eq!(booted, [format!("linux console=ttyS0 {image}")], "{output}");
}
