use super::*;

fn table(sockets: u32, cores: u32, threads: u32) -> CpuidTable {
    CpuidTable::new(Topology { sockets, cores, threads }, EngineFeatures::default())
}

#[test]
fn the_topology_decodes_to_what_was_asked_for() {
    for (sockets, cores, threads) in [(1, 1, 1), (4, 1, 1), (1, 4, 1), (1, 2, 2), (2, 3, 2), (2, 6, 1)] {
        let t = table(sockets, cores, threads);
        let smt = t.leaf(0xb, 0).unwrap();
        let core = t.leaf(0xb, 1).unwrap();
        assert_eq!((smt.ebx, core.ebx), (threads, cores * threads));
        let mut ids = Vec::new();
        for index in 0..sockets * cores * threads {
            let id = t.topology.apic_id(index);
            assert_eq!(id >> core.eax, index / (cores * threads), "socket");
            assert!(id & ((1 << smt.eax) - 1) < threads, "thread");
            assert!(!ids.contains(&id), "APIC ids are unique");
            ids.push(id);
        }
    }
}

#[test]
fn no_feature_without_what_it_needs() {
    let t = table(1, 1, 1);
    let (one, seven) = (t.leaf(1, 0).unwrap(), t.leaf(7, 0).unwrap());
    let avx = one.ecx & 1 << 28 != 0;
    let xsave = one.ecx & 1 << 26 != 0;
    assert!(!avx || xsave);
    assert!(avx || seven.ebx & 1 << 5 == 0, "AVX2 needs AVX");
    assert!(avx || one.ecx & (1 << 12 | 1 << 29) == 0, "FMA and F16C need AVX");
    // AVX-512, AMX, TSX, protection keys, five-level paging, MONITOR, VMX are not for guests.
    assert_eq!(seven.ebx & (1 << 16 | 1 << 4 | 1 << 11), 0);
    assert_eq!(seven.ecx & (1 << 3 | 1 << 16), 0);
    assert_eq!(one.ecx & (1 << 3 | 1 << 5), 0);
    assert_ne!(one.ecx & 1 << 31, 0, "hypervisor bit");
}

#[test]
fn the_tsc_frequency_is_plausible_and_stable() {
    let hz = host_tsc_hz();
    assert!((100_000_000..10_000_000_000).contains(&hz), "{hz}");
    assert_eq!(hz, host_tsc_hz());
}

#[test]
fn the_tsc_ratio_is_exact_to_a_few_parts_in_a_million() {
    for hz in [800_000_000u64, 2_599_998_000, 3_400_000_000, 4_900_000_000] {
        for crystal in [APIC_BUS_HZ, 1_000_000_000] {
            let (n, d) = tsc::ratio(hz, u64::from(crystal));
            assert!((crystal / 1000).checked_mul(n).is_some());
            let got = u64::from(crystal) * u64::from(n) / u64::from(d);
            assert!(got.abs_diff(hz) * 200_000 < hz, "{hz}: {got}");
        }
    }
}

#[test]
fn the_model_is_not_known_for_features_that_are_missing() {
    let eax = table(1, 1, 1).leaf(1, 0).unwrap().eax;
    let (family, model) = (eax >> 8 & 0xf, eax >> 12 & 0xf0 | eax >> 4 & 0xf);
    // Intel models with AVX-512: Skylake-SP, Cannon Lake, Ice Lake, Tiger Lake, Rocket Lake,
    // Sapphire, Emerald and Granite Rapids.
    let avx512 = [0x55, 0x66, 0x6a, 0x6c, 0x7d, 0x7e, 0x8c, 0x8d, 0xa7, 0x8f, 0xcf, 0xad, 0xae];
    assert!(!is_intel() || family != 6 || !avx512.contains(&model), "{eax:#x}");
}
