use std::sync::Arc;

use super::super::tests::{counted, unpacked};
use super::*;
use crate::testing::{Scratch, mutations};
use crate::{Bytes, FileSource};

fn members(scratch: &Scratch, name: &str) -> Vec<Candidate> {
    (0..8)
        .map(|n| format!("{name}-{n}"))
        .take_while(|member| scratch.join(member).exists())
        .map(|member| Candidate {
            source: Arc::new(FileSource::open(&scratch.join(&member)).unwrap()),
            name: member,
        })
        .collect()
}

fn size(scratch: &Scratch, name: &str) -> u64 {
    std::fs::read_to_string(scratch.join(&format!("{name}.size"))).unwrap().trim().parse().unwrap()
}

fn only(arrays: Arrays) -> Found {
    let [found] = <[Found; 1]>::try_from(arrays.found).ok().unwrap();
    found
}

/// Name, and how many members may be missing wherever they are.
const ARRAYS: &[(&str, usize)] = &[
    ("one", 1),
    ("oneend", 1),
    ("onestart", 1),
    ("oldone", 1),
    ("oldfive", 1),
    ("zero", 0),
    ("row", 0),
    ("four", 1),
    ("five", 1),
    ("fivera", 1),
    ("fivepf", 1),
    ("six", 2),
    ("sixddf-zero-restart", 2),
    ("sixddf-N-restart", 2),
    ("sixddf-N-continue", 2),
    ("sixleft-asymmetric-6", 2),
    ("sixright-symmetric-6", 2),
    ("sixparity-first", 2),
    ("tennear", 1),
    ("tenodd", 1),
    ("tenfar", 1),
    ("tenoffset", 1),
];

#[test]
fn arrays_of_the_kernel_with_any_members_missing() {
    let Some(scratch) = unpacked() else { return };
    for (name, spare) in ARRAYS {
        let all = members(&scratch, name);
        assert!(all.len() > 1, "{name}");
        let expected = counted(size(&scratch, name), 0);
        for gone in 0..1u32 << all.len() {
            let there: Vec<_> =
                all.iter().enumerate().filter(|(n, _)| gone >> n & 1 == 0).map(|(_, c)| c.clone()).collect();
            if there.is_empty() {
                continue;
            }
            let arrays = scan(&there);
            assert_eq!(arrays.members.len(), there.len());
            let found = only(arrays);
            let missing = gone.count_ones() as usize;
            match found.source {
                Ok(source) => {
                    assert!(missing <= *spare || *name == "tennear", "{name} without {gone:b}");
                    assert_eq!(source.size(), expected.len() as u64, "{name}");
                    let bytes = source.read_vec(0, expected.len()).unwrap();
                    assert!(bytes == expected, "{name} without {gone:b}");
                }
                Err(failure) => {
                    assert!(missing > *spare, "{name} without {gone:b}: {failure:?}");
                    assert!(matches!(failure, Failure::Missing(_)), "{failure:?}");
                }
            }
        }
    }
}

#[test]
fn names_and_uuids() {
    let Some(scratch) = unpacked() else { return };
    let found = only(scan(&members(&scratch, "five")));
    assert_eq!(found.name, "md/five");
    assert!(found.aliases[0].starts_with("mduuid/") && found.aliases[0].len() == 7 + 32);
    let found = only(scan(&members(&scratch, "oldone")));
    assert!(found.name.starts_with("md/md"), "{}", found.name);
    assert!(found.aliases.iter().any(|a| format!("md/{a}") == found.name));
}

#[test]
fn members_that_were_left_behind_are_not_read() {
    let Some(scratch) = unpacked() else { return };
    for name in ["stale", "oldstale"] {
        let all = members(&scratch, name);
        let expected = counted(size(&scratch, name), 5_000_000);
        let mut reversed = all.clone();
        reversed.reverse();
        for order in [&all, &reversed] {
            let source = only(scan(order)).source.unwrap();
            assert!(source.read_vec(0, expected.len()).unwrap() == expected, "{name}");
        }
    }
}

#[test]
fn damage_is_survived() {
    let Some(scratch) = unpacked() else { return };
    for (name, _) in ARRAYS {
        let all = members(&scratch, name);
        for seed in 0..200 {
            let mut these = all.clone();
            let at = seed as usize % these.len();
            let plain = these[at].source.clone();
            let end = plain.size() - (64 << 10);
            let places = [(0, 512), (4096, 512), (plain.size() - 8192, 512), (end, 4096)];
            let mut damaged: SourceRef = Arc::new(mutations(&plain, &places, seed));
            if seed % 2 == 0 {
                damaged = with_checksum(&damaged);
            }
            these[at].source = damaged;
            for found in scan(&these).found {
                if let Ok(source) = found.source {
                    let size = source.size();
                    let _ = source.read_vec(0, size.min(100_000) as usize);
                    let _ = source.read_vec(size.saturating_sub(5000), size.min(5000) as usize);
                }
            }
        }
    }
}

/// Makes the checksum of a damaged 1.2 superblock right again.
fn with_checksum(source: &SourceRef) -> SourceRef {
    let mut bytes = source.read_vec(0, source.size() as usize).unwrap();
    if bytes.len() > 8192 {
        let roles = usize::from(u16::from_le_bytes([bytes[4096 + 220], bytes[4096 + 221]])).min(1920);
        let mut sum = 0u64;
        for (n, word) in bytes[4096..4096 + 256 + 2 * roles].chunks(4).enumerate() {
            let mut full = [0; 4];
            full[..word.len()].copy_from_slice(word);
            if n != 54 {
                sum += u64::from(u32::from_le_bytes(full));
            }
        }
        let sum = ((sum & 0xffff_ffff) + (sum >> 32)) as u32;
        bytes[4096 + 216..4096 + 220].copy_from_slice(&sum.to_le_bytes());
    }
    Arc::new(Bytes(bytes))
}
