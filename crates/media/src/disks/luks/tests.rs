use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::testing::{Random, Scratch, have, is_root, mutations, run};
use crate::{Bytes, FileSource};

const DATA: usize = 1 << 20;

fn data() -> Vec<u8> {
    Random::new(77).bytes(DATA)
}

/// Whether `cryptsetup` can encrypt files here: it keeps a lock that only root can take.
fn can_encrypt() -> bool {
    if !is_root() {
        eprintln!("skipped: cryptsetup reencrypt takes root");
        return false;
    }
    have("cryptsetup")
}

/// A volume that cryptsetup encrypted. `convert`: to LUKS1.
fn encrypted(scratch: &Scratch, options: &[&str], convert: bool) -> SourceRef {
    let image = scratch.join("image");
    let mut bytes = data();
    bytes.resize(DATA + (32 << 20), 0);
    std::fs::write(&image, bytes).unwrap();
    let password = scratch.join("password");
    std::fs::write(&password, "pass phräse").unwrap();
    let (image, password) = (image.to_str().unwrap(), password.to_str().unwrap());
    let mut all = vec!["-q", "reencrypt", "--encrypt", "--type", "luks2", "--reduce-device-size", "32M"];
    all.extend(["--key-file", password]);
    all.extend(options);
    all.push(image);
    run("cryptsetup", &all).unwrap();
    if convert {
        run("cryptsetup", &["-q", "convert", "--type", "luks1", image]).unwrap();
    }
    Arc::new(FileSource::open(Path::new(image)).unwrap())
}

#[test]
fn volumes_of_cryptsetup_open() {
    if !can_encrypt() {
        return;
    }
    let quick = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
    let argon = |kind| vec!["--pbkdf", kind, "--pbkdf-memory", "1024", "--pbkdf-force-iterations", "4"];
    let with = |more: &[&'static str]| [&quick, more].concat();
    let cases = [
        (argon("argon2id"), false),
        ([argon("argon2i"), vec!["--pbkdf-parallel", "4"]].concat(), false),
        (with(&["--sector-size", "4096", "--hash", "sha512"]), false),
        (with(&["--cipher", "aes-cbc-essiv:sha256", "--key-size", "256"]), false),
        (with(&["--cipher", "aes-xts-plain64", "--key-size", "256"]), true),
        (with(&["--cipher", "aes-cbc-essiv:sha256", "--key-size", "256", "--hash", "sha1"]), true),
        (with(&["--cipher", "aes-cbc-plain", "--key-size", "192", "--hash", "ripemd160"]), true),
    ];
    let data = data();
    for (options, convert) in cases {
        let scratch = Scratch::new("luks");
        let source = encrypted(&scratch, &options, convert);
        let version = source.read_vec(6, 2).unwrap();
        assert_eq!(version, [0, if convert { 1 } else { 2 }]);
        assert!(matches!(unlock(&source, b"wrong"), Err(Error::WrongPassphrase)), "{options:?}");
        let volume = unlock(&source, "pass phräse".as_bytes()).unwrap();
        let uuid = run("cryptsetup", &["luksUUID", scratch.join("image").to_str().unwrap()]).unwrap();
        assert_eq!(volume.uuid, uuid.trim().replace('-', ""));
        assert!(volume.source.size() >= DATA as u64);
        assert!(volume.source.read_vec(0, DATA).unwrap() == data, "{options:?}");
        for (offset, len) in [(1, 1), (511, 2), (4095, 5000), (DATA - 7, 7)] {
            assert_eq!(volume.source.read_vec(offset as u64, len).unwrap(), data[offset..offset + len]);
        }
    }
}

#[test]
fn the_second_header_helps() {
    if !can_encrypt() {
        return;
    }
    let scratch = Scratch::new("luks2");
    let source = encrypted(&scratch, &["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"], false);
    let mut bytes = source.read_vec(0, 18 << 20).unwrap();
    bytes[5000] ^= 1;
    let damaged: SourceRef = Arc::new(Bytes(bytes.clone()));
    let volume = unlock(&damaged, "pass phräse".as_bytes()).unwrap();
    assert_eq!(volume.source.read_vec(0, 1000).unwrap(), data()[..1000]);
    bytes[0x4000 + 5000] ^= 1;
    let damaged: SourceRef = Arc::new(Bytes(bytes));
    assert!(matches!(unlock(&damaged, b"x"), Err(Error::Corrupt { .. })));
}

#[test]
fn sectors_of_device_mapper() {
    let Some(scratch) = crate::disks::tests::unpacked() else { return };
    let mut count = 0;
    for file in std::fs::read_dir(scratch.path()).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        let Some((cipher, len)) = name.strip_prefix("crypt-").and_then(|n| n.rsplit_once('-')) else {
            continue;
        };
        // The digits 10, 11, 12 …, read as hexadecimal.
        let key: Vec<u8> = (10..10 + len.parse::<u8>().unwrap()).map(|n| n / 10 * 16 + n % 10).collect();
        let cipher = Cipher::new(cipher, &key).unwrap();
        let mut bytes = std::fs::read(scratch.join(&name)).unwrap();
        for (sector, part) in (70_000..).zip(bytes.chunks_mut(512)) {
            cipher.decrypt(sector, part);
        }
        assert!(bytes == crate::disks::tests::counted(2048, 0), "{name}");
        count += 1;
    }
    assert_eq!(count, 5);
    for (cipher, len) in
        [("aes-xts-plain64", 30), ("aes-ecb", 32), ("aes-lrw-benbi", 32), ("camellia-xts-plain64", 64)]
    {
        let error = Cipher::new(cipher, &vec![0; len]).err().unwrap().to_string();
        assert!(error.contains(cipher), "{error}");
    }
}

#[test]
fn costs_are_bounded() {
    use super::hash::{Cost, Hash, argon2};
    let cost = Cost { id: true, time: 1, memory: 1 << 21, lanes: 1 };
    assert!(argon2(cost, b"p", b"saltsalt", 32).unwrap_err().to_string().contains("argon2id with 2048 MiB"));
    let cost = Cost { id: true, time: u32::MAX, memory: 1 << 20, lanes: 1 };
    assert!(argon2(cost, b"p", b"saltsalt", 32).is_err());
    assert!(Hash::Sha256.pbkdf2(b"p", b"s", u32::MAX, 32).is_err());
    assert!(Hash::Sha256.pbkdf2(b"p", b"s", 0, 32).is_err());
    assert!(Hash::new("whirlpool").unwrap_err().to_string().contains("hash whirlpool"));
}

#[test]
fn damage_is_survived() {
    if !can_encrypt() {
        return;
    }
    let scratch = Scratch::new("luksbad");
    for convert in [false, true] {
        let source = encrypted(&scratch, &["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"], convert);
        let bytes: SourceRef = Arc::new(Bytes(source.read_vec(0, 18 << 20).unwrap()));
        for seed in 0..300 {
            let damaged: SourceRef = Arc::new(mutations(&bytes, &[(0, 0x1000), (0x1000, 0x800)], seed));
            let _ = uuid(&damaged);
            // A header with a sound checksum is what an attacker has.
            if let Ok(volume) = unlock(&damaged, "pass phräse".as_bytes()) {
                let size = volume.source.size();
                let _ = volume.source.read_vec(size.saturating_sub(700), 700.min(size) as usize);
            }
        }
    }
}
