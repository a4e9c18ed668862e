use std::sync::Arc;

use super::layout::Layout;
use super::*;
use crate::testing::Random;
use crate::{Bytes, Window};

const CHUNK: usize = 4096;

fn source(bytes: Vec<u8>) -> SourceRef {
    Arc::new(Bytes(bytes))
}

fn all(source: &SourceRef) -> Vec<u8> {
    source.read_vec(0, source.size() as usize).unwrap()
}

fn gf_times(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a = (a << 1) ^ if a & 0x80 != 0 { 0x1d } else { 0 };
        b >>= 1;
    }
    product
}

#[test]
fn any_missing_devices_are_worked_out() {
    let mut random = Random::new(5);
    for (level, layout) in [(4, 0), (5, 0), (5, 1), (5, 2), (5, 3), (5, 4), (5, 5)]
        .into_iter()
        .chain([0, 1, 2, 3, 4, 5, 8, 9, 10, 16, 17, 18, 19, 20].map(|n| (6, n)))
    {
        let layout = Layout::md(level, layout).unwrap();
        let devices = 5;
        let rows = 11;
        let width = devices - layout.parities();
        let data = random.bytes(CHUNK * width * rows);
        let mut legs = vec![vec![0u8; CHUNK * rows]; devices];
        for row in 0..rows {
            let stripe = layout.stripe(devices, row as u64);
            for n in 0..width {
                let chunk = &data[(row * width + n) * CHUNK..][..CHUNK];
                let at = row * CHUNK;
                legs[stripe.data[n]][at..at + CHUNK].copy_from_slice(chunk);
                let factor = (0..stripe.powers.get(n).copied().unwrap_or(0)).fold(1, |f, _| gf_times(f, 2));
                for (i, byte) in chunk.iter().enumerate() {
                    legs[stripe.p][at + i] ^= byte;
                    if let Some(q) = stripe.q {
                        legs[q][at + i] ^= gf_times(*byte, factor);
                    }
                }
            }
        }
        for gone in 0..1u32 << devices {
            let there: Vec<Option<SourceRef>> =
                (0..devices).map(|n| (gone >> n & 1 == 0).then(|| source(legs[n].clone()))).collect();
            let array = Parity::new(there, layout, CHUNK as u64, (CHUNK * rows) as u64 + 100);
            if gone.count_ones() as usize > layout.parities() {
                assert!(array.is_none());
                continue;
            }
            let array: SourceRef = Arc::new(array.unwrap());
            assert!(all(&array) == data, "level {level} {layout:?} without {gone:b}");
            assert_eq!(array.read_vec(CHUNK as u64 - 3, 10).unwrap(), data[CHUNK - 3..CHUNK + 7]);
        }
    }
}

#[test]
fn the_first_stripes_are_as_documented() {
    // mdadm(8), md(4): left symmetric, the default of RAID 5, begins D0 D1 P / D3 P D2.
    let stripe = |level, layout, devices, n| {
        let s = Layout::md(level, layout).unwrap().stripe(devices, n);
        (s.data, s.p, s.q)
    };
    assert_eq!(stripe(5, 2, 3, 0), (vec![0, 1], 2, None));
    assert_eq!(stripe(5, 2, 3, 1), (vec![2, 0], 1, None));
    assert_eq!(stripe(6, 2, 4, 0), (vec![1, 2], 3, Some(0)));
    assert_eq!(stripe(6, 2, 4, 1), (vec![0, 1], 2, Some(3)));
    assert_eq!(stripe(6, 8, 5, 0), (vec![2, 3, 4], 0, Some(1)));
    assert_eq!(stripe(6, 9, 5, 0), (vec![0, 1, 2], 3, Some(4)));
    assert_eq!(stripe(6, 10, 5, 0), (vec![0, 1, 2], 4, Some(3)));
    assert!(Layout::md(6, 7).is_none() && Layout::md(5, 6).is_none() && Layout::md(1, 0).is_none());
}

#[test]
fn copies_of_raid10() {
    let mut random = Random::new(6);
    let n = |layout, devices: usize, rows| {
        Raid10::new(vec![None; devices], layout, CHUNK as u64, rows * CHUNK as u64).unwrap().size()
            / CHUNK as u64
    };
    assert_eq!((n(0x102, 4, 10), n(0x102, 3, 10), n(0x201, 4, 10), n(0x1_0201, 3, 10)), (20, 15, 20, 15));
    // near 2, far 2, offset 2, near 2 on three devices, far 3.
    for (layout, devices) in
        [(0x102, 4), (0x201, 4), (0x1_0201, 4), (0x102, 3), (0x201, 3), (0x1_0201, 5), (0x301, 4)]
    {
        let member = CHUNK * 12;
        let chunks = n(layout, devices, 12) as usize;
        let data = random.bytes(chunks * CHUNK);
        let mut legs = vec![vec![0u8; member]; devices];
        let plan = Raid10::new(vec![None; devices], layout, CHUNK as u64, member as u64).unwrap();
        let mut taken = std::collections::HashSet::new();
        for chunk in 0..chunks {
            for (device, at) in plan.copies(chunk as u64) {
                assert!(taken.insert((device, at)), "two chunks in one place");
                let at = at as usize;
                legs[device][at..at + CHUNK].copy_from_slice(&data[chunk * CHUNK..][..CHUNK]);
            }
        }
        for gone in 0..=devices {
            let there = (0..devices).map(|n| (n != gone).then(|| source(legs[n].clone()))).collect();
            let array = Raid10::new(there, layout, CHUNK as u64, member as u64).unwrap();
            assert!(array.complete());
            let array: SourceRef = Arc::new(array);
            assert!(all(&array) == data, "layout {layout:x} without {gone}");
        }
        assert!(!plan.complete());
    }
    // md(4): far copies begin half way down, shifted by one device.
    let far = Raid10::new(vec![None; 2], 0x201, CHUNK as u64, 10 * CHUNK as u64).unwrap();
    assert_eq!(far.copies(0).collect::<Vec<_>>(), [(0, 0), (1, 5 * CHUNK as u64)]);
    assert!(Raid10::new(vec![None; 2], 0x301, CHUNK as u64, 1 << 20).is_none());
    assert!(Raid10::new(vec![None; 4], 0x6_0201, CHUNK as u64, 1 << 20).is_none());
}

#[test]
fn zones_of_unequal_stripes() {
    let legs: Vec<Vec<u8>> = [(1u8, 1), (2, 3), (3, 4)]
        .iter()
        .map(|(n, chunks)| (0..*chunks).flat_map(|c| vec![n * 16 + c; CHUNK]).collect())
        .collect();
    let order = |restart| {
        let array = Striped::new(legs.iter().cloned().map(source).collect(), CHUNK as u64, restart).unwrap();
        assert!(array.has_zones());
        let array: SourceRef = Arc::new(array);
        all(&array).chunks(CHUNK).map(|c| c[0]).collect::<Vec<u8>>()
    };
    assert_eq!(order(true), [0x10, 0x20, 0x30, 0x21, 0x31, 0x22, 0x32, 0x33]);
    assert_eq!(order(false), [0x10, 0x20, 0x30, 0x31, 0x21, 0x32, 0x22, 0x33]);
    assert!(Striped::new(Vec::new(), 512, true).is_none());
    assert!(Striped::new(vec![source(vec![0; 100])], 0, true).is_none());
}

#[test]
fn parts_in_a_row_and_mirrors() {
    let whole: SourceRef = source((0..=255).collect());
    let part = |start, size| Arc::new(Window::new(whole.clone(), start, size).unwrap()) as SourceRef;
    let row: SourceRef = Arc::new(Concat::new([part(10, 5), part(0, 0), part(100, 7), part(3, 2)]).unwrap());
    let bytes = all(&row);
    assert_eq!(bytes, [10, 11, 12, 13, 14, 100, 101, 102, 103, 104, 105, 106, 3, 4]);
    assert_eq!(row.read_vec(4, 3).unwrap(), [14, 100, 101]);
    assert!(row.read_vec(13, 2).is_err());
    let mirror: SourceRef = Arc::new(Mirror::new(vec![part(0, 5), part(50, 10)], 10));
    assert_eq!(all(&mirror)[0], 50, "the short leg is left out");
}
