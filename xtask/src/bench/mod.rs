//! Measurements against a peer on the same files in the same run.

pub mod boot;
pub mod cpu;
pub mod disk;
pub mod grub;

use std::path::PathBuf;

use guest_tests::{Chipset, Vmm};

/// Ours and QEMU's PCs, with names for tables.
fn contestants(binary: PathBuf) -> [(&'static str, Vmm); 3] {
    [
        ("bhyve soft", Vmm::Bhyve { binary, engine: "soft".to_owned() }),
        ("qemu q35", Vmm::Qemu { chipset: Chipset::Q35 }),
        ("qemu pc", Vmm::Qemu { chipset: Chipset::Pc }),
    ]
}

/// The middle one of some values.
fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle.wrapping_sub(1)), values.get(middle)) {
        (Some(low), Some(high)) if values.len().is_multiple_of(2) => f64::midpoint(*low, *high),
        (_, Some(value)) => *value,
        _ => f64::NAN,
    }
}

/// A JSON array of numbers.
fn json_numbers(values: &[f64]) -> String {
    let values: Vec<String> = values.iter().map(|value| format!("{value:.6}")).collect();
    format!("[{}]", values.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_numbers() {
        let same = |values: &[f64], expected: f64| (median(values) - expected).abs() < 1e-12;
        assert!(same(&[3.0, 1.0, 2.0], 2.0));
        assert!(same(&[4.0, 1.0, 2.0, 3.0], 2.5));
        assert!(same(&[7.0], 7.0));
        assert!(median(&[]).is_nan());
    }
}
