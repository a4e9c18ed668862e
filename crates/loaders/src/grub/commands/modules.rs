//! Modules: everything is built in.

use super::{Command, command};
use crate::grub::Session;
use crate::grub::error::{Error, Outcome};

pub(super) const COMMANDS: &[Command] = &[
    command("insmod", "MODULE", "Succeed if what the module has is built in.", insmod),
    command("rmmod", "MODULE", "Forget that a module was asked for.", rmmod),
    command("lsmod", "", "Show the modules that were asked for.", lsmod),
];

/// Modules of GRUB's whose features are here, or which only matter to screens, firmware and disks
/// that aren't. Their commands that are missing are refused when they are used.
const KNOWN: &str = " acpi afsplitter all_video archelp at_keyboard ata backtrace bfs biosdisk bitmap bitmap_scale \
    blocklist blscfg boot bsd bufio btrfs cat cbfs chain cmp configfile console cpio crc64 crypto cryptodisk date \
    datehook datetime disk diskfilter echo efi_gop efi_uga ehci elf eval exfat ext2 ext3 ext4 extcmd fat file \
    font fshelp gcry_arcfour gcry_blowfish gcry_cast5 gcry_crc gcry_des gcry_idea gcry_md4 gcry_md5 gcry_rijndael \
    gcry_rmd160 gcry_serpent gcry_sha1 gcry_sha256 gcry_sha512 gcry_twofish geli gettext gfxmenu gfxterm \
    gfxterm_background gfxterm_menu gpt gzio halt hashsum hexdump hfs hfsplus host hostdisk increment iorw iso9660 \
    jpeg keylayouts keystatus ldm legacycfg linux linux16 linuxefi loadenv loopback ls lsapm lsmmap luks luks2 lvm \
    lzopio mdraid09 mdraid1x memdisk memrw minicmd minix mmap mpi msdospart multiboot multiboot2 net normal ntfs \
    ntfscomp odc ohci part_acorn part_amiga part_apple part_bsd part_dfly part_dvh part_gpt part_msdos part_plan \
    part_sun part_sunpc parttool password password_pbkdf2 pata pbkdf2 pci pgp png priority_queue probe progress \
    procfs raid5rec raid6rec random read reboot regexp reiserfs relocator romfs scsi search search_fs_file \
    search_fs_uuid search_label serial setjmp sfs sleep smbios squash4 syslinuxcfg tar terminal terminfo test \
    test_blockarg tga time tpm tr trig true udf ufs1 ufs1_be ufs2 uhci usb usb_keyboard usbms usbserial_common \
    usbserial_ftdi usbserial_pl2303 verify verifiers vbe vga vga_text video video_bochs video_cirrus video_colors \
    video_fb videoinfo wrmsr xfs xnu_uuid xzio zfs zfscrypt zfsinfo zstd zstdio ";

fn is_known(name: &str) -> bool {
    KNOWN.split_whitespace().any(|known| known == name)
}

/// Modules may be named by their files.
fn module_name(argument: &str) -> &str {
    let name = argument.rsplit('/').next().unwrap_or(argument);
    name.strip_suffix(".mod").unwrap_or(name)
}

fn insmod(session: &mut Session, arguments: &[String]) -> Outcome {
    let [argument] = arguments else { return Err(Error::expected("one argument")) };
    let name = module_name(argument);
    if !is_known(name) {
        return Err(Error::file_not_found(&format!(
            "{}/{name}.mod",
            session.env.get("prefix").unwrap_or_default()
        )));
    }
    session.modules.insert(name.to_owned());
    Ok(())
}

fn rmmod(session: &mut Session, arguments: &[String]) -> Outcome {
    let [argument] = arguments else { return Err(Error::expected("one argument")) };
    if session.modules.remove(module_name(argument)) {
        Ok(())
    } else {
        Err(Error::argument(format!("no such module `{argument}'")))
    }
}

fn lsmod(session: &mut Session, _: &[String]) -> Outcome {
    let mut names: Vec<&str> = session.modules.iter().map(String::as_str).collect();
    names.sort_unstable();
    let text: String = names.iter().map(|name| format!("{name}\n")).collect();
    session.print(&text);
    Ok(())
}
