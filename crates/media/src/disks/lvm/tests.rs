use std::sync::Arc;

use super::super::tests::{counted, unpacked};
use super::*;
use crate::testing::{Scratch, mutations};
use crate::{Bytes, FileSource};

fn disks(scratch: &Scratch, without: &[usize]) -> Vec<Candidate> {
    (0..5)
        .filter(|n| !without.contains(n))
        .map(|n| Candidate {
            name: format!("hd{n}"),
            source: Arc::new(FileSource::open(&scratch.join(&format!("pv-{n}"))).unwrap()),
        })
        .collect()
}

fn find<'a>(found: &'a [Found], lv: &str) -> &'a Found {
    found.iter().find(|f| f.name == format!("lvm/Vol--Group-{lv}")).unwrap_or_else(|| panic!("no {lv}"))
}

fn expected(scratch: &Scratch, lv: &str) -> Vec<u8> {
    let size = std::fs::read_to_string(scratch.join(&format!("lvm-{lv}.size"))).unwrap();
    counted(size.trim().parse().unwrap(), 0)
}

#[test]
fn volumes_of_the_kernel() {
    let Some(scratch) = unpacked() else { return };
    let found = scan(&disks(&scratch, &[]));
    for lv in [
        "lv_root", "a-b", "raid1", "mirror", "raid0", "raid4", "raid5", "raid5n", "raid6", "raid6nc",
        "raid6ls", "raid10",
    ] {
        let bytes = expected(&scratch, lv);
        let volume = find(&found, &lv.replace('-', "--"));
        let source = volume.source.as_ref().map_err(|f| format!("{lv}: {f:?}")).unwrap();
        assert_eq!(source.size(), bytes.len() as u64, "{lv}");
        assert!(source.read_vec(0, bytes.len()).unwrap() == bytes, "{lv}");
        assert!(volume.aliases[0].starts_with("lvmid/") && volume.aliases[0].len() == 6 + 38 + 1 + 38);
    }
    // Parts of volumes are not listed.
    assert!(!found.iter().any(|f| f.name.contains("rimage") || f.name.contains("rmeta")));
}

#[test]
fn volumes_with_disks_missing() {
    let Some(scratch) = unpacked() else { return };
    for without in [vec![0], vec![1], vec![3], vec![0, 2], vec![1, 3]] {
        let found = scan(&disks(&scratch, &without));
        for (lv, spare) in
            [("raid4", 1), ("raid5", 1), ("raid5n", 1), ("raid6", 2), ("raid6nc", 2), ("raid6ls", 2)]
        {
            let volume = find(&found, lv);
            if without.len() > spare {
                assert!(matches!(volume.source, Err(Failure::Missing(_))), "{lv} without {without:?}");
                continue;
            }
            let bytes = expected(&scratch, lv);
            let source = volume.source.as_ref().map_err(|f| format!("{lv}: {f:?}")).unwrap();
            assert!(source.read_vec(0, bytes.len()).unwrap() == bytes, "{lv} without {without:?}");
        }
    }
    let found = scan(&disks(&scratch, &[0]));
    let Err(Failure::Missing(what)) = &find(&found, "lv_root").source else { panic!() };
    assert!(what.starts_with("physical volume ") && what.ends_with("of volume group Vol-Group"), "{what}");
    for lv in ["raid1", "mirror", "raid10"] {
        let bytes = expected(&scratch, lv);
        assert!(find(&found, lv).source.as_ref().unwrap().read_vec(0, bytes.len()).unwrap() == bytes, "{lv}");
    }
    // A group of which nothing is there is not known at all.
    assert!(scan(&[]).is_empty());
}

#[test]
fn what_is_not_read_is_refused_by_name() {
    let Some(scratch) = unpacked() else { return };
    let found = scan(&disks(&scratch, &[]));
    for (lv, word) in [("thin", "segment type thin"), ("snap", "a snapshot")] {
        let Err(Failure::Unsupported(_, what)) = &find(&found, lv).source else { panic!("{lv}") };
        assert!(what.contains(word) && what.contains(lv), "{what}");
    }
}

/// A group without its disks, from the text of its metadata.
fn made(volumes: &str, lv: &str) -> Result<SourceRef, Failure> {
    let text = format!(
        "g {{ id = \"g\" seqno = 1 extent_size = 8\n physical_volumes {{ pv0 {{ id = \"p\" pe_start = 8 }} }}\n\
         logical_volumes {{ {volumes} }} }}"
    );
    let metadata = understand(text.as_bytes()).unwrap();
    let disk: SourceRef = Arc::new(Bytes(vec![7; 40 * 4096]));
    let disks = HashMap::from([("p".to_owned(), disk)]);
    Group::new(&metadata.name, &metadata.body, &disks)?.volume(lv)
}

fn lv(name: &str, segment: &str) -> String {
    format!("{name} {{ segment1 {{ start_extent = 0 extent_count = 2 {segment} }} }}\n")
}

#[test]
fn nonsense_is_refused() {
    let linear = lv("a", "type = \"striped\" stripe_count = 1 stripes = [\"pv0\", 3]");
    assert_eq!(made(&linear, "a").unwrap().size(), 8192);
    let stripe = |rest: &str| lv("a", &format!("type = \"striped\" {rest}"));
    for (volumes, why) in [
        (stripe("stripe_count = 1 stripes = [\"a\", 0]"), "within itself"),
        (stripe("stripe_count = 1 stripes = [\"b\", 0]"), "not in the group"),
        (stripe("stripe_count = 0 stripes = []"), "stripes"),
        (stripe("stripe_count = 2 stripes = [\"pv0\", 0]"), "stripes"),
        (stripe("stripe_count = 2 stripes = [\"pv0\", 0, \"pv0\", 1] stripe_size = 0"), "stripe size"),
        (stripe("stripe_count = 1 stripes = [\"pv0\", 38]"), "too small"),
        (stripe("stripe_count = 1 stripes = [\"pv0\", 9223372036854775807]"), "place on a device"),
        (stripe("stripe_count = 1 stripes = [\"pv0\", -1]"), "place on a device"),
        (lv("a", "type = \"error\""), "segment type error"),
        (lv("a", "type = \"raid5\" stripe_size = 8 raids = [\"a\"]"), "list of devices"),
        (lv("a", "type = \"raid5\" stripe_size = 8 raids = [\"x\", \"y\"]"), "RAID"),
        ("a { segment1 { start_extent = 1 extent_count = 1 type = \"zero\" } }".into(), "follow each other"),
        ("a { }".into(), "number of segments"),
    ] {
        let failure = format!("{:?}", made(&volumes, "a").err().unwrap());
        assert!(failure.contains(why), "{volumes}: {failure}");
    }
    // A chain that is longer than the stack.
    let chain: String = (0..20_000)
        .map(|n| {
            lv(
                &format!("v{n}"),
                &format!("type = \"striped\" stripe_count = 1 stripes = [\"v{}\", 0]", n + 1),
            )
        })
        .collect();
    assert!(format!("{:?}", made(&chain, "v0").err().unwrap()).contains("within each other"));
    let zero = made(&lv("a", "type = \"zero\""), "a").unwrap();
    assert_eq!(zero.read_vec(0, 8192).unwrap(), vec![0; 8192]);
}

#[test]
fn damage_is_survived() {
    let Some(scratch) = unpacked() else { return };
    let all: Vec<Candidate> = disks(&scratch, &[]);
    // The label, the header of the area and the texts.
    let places = [(512, 128), (4096, 512), (4608, 60 << 10)];
    for seed in 0..400 {
        let mut these = all.clone();
        let at = seed as usize % these.len();
        these[at].source = Arc::new(mutations(&these[at].source, &places, seed));
        for found in scan(&these) {
            if let Ok(source) = found.source {
                let _ = source.read_vec(0, source.size().min(10_000) as usize);
            }
        }
    }
    // Texts whose checksum an attacker makes right.
    let texts = label::read(&all[0].source).unwrap().unwrap().texts(&all[0].source);
    let physical: HashMap<String, SourceRef> =
        all.iter().map(|c| (label::read(&c.source).unwrap().unwrap().uuid, c.source.clone())).collect();
    let text: SourceRef = Arc::new(Bytes(texts[0].clone()));
    for seed in 0..2000 {
        let damaged: SourceRef = Arc::new(mutations(&text, &[(0, texts[0].len())], seed));
        let damaged = damaged.read_vec(0, damaged.size() as usize).unwrap();
        if let Some(metadata) = understand(&damaged) {
            for found in volumes(&metadata, &physical) {
                if let Ok(source) = found.source {
                    let _ = source.read_vec(0, source.size().min(10_000) as usize);
                }
            }
        }
    }
}
