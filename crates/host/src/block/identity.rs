//! Serial number and geometry, which a raw image does not have.

use md5::{Digest, Md5};

/// The serial of a disk that was given none: `BHYVE-xxxx-xxxx-xxxx` from the MD5 of its path, so
/// that it stays the same from run to run.
pub fn default_serial(path: &str) -> String {
    let [a, b, c, d, e, f, ..]: [u8; 16] = Md5::digest(path.as_bytes()).into();
    format!("BHYVE-{a:02X}{b:02X}-{c:02X}{d:02X}-{e:02X}{f:02X}")
}

/// Cylinders, heads, sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders.
    pub cylinders: u16,
    /// Heads.
    pub heads: u8,
    /// Sectors a track.
    pub sectors: u8,
}

/// Largest sector count that a geometry can express (VHD specification, appendix "CHS
/// calculation").
const MAX_SECTORS: u64 = 65535 * 16 * 255;

impl Geometry {
    /// The geometry of a disk of `size` bytes, by the rule of the VHD specification.
    pub fn of(size: u64) -> Self {
        let total = (size / 512).min(MAX_SECTORS);
        let (sectors, heads, tracks);
        if total >= 65536 * 16 * 63 {
            (sectors, heads, tracks) = (255, 16, total / 255);
        } else {
            let fits = |sectors: u64, heads: u64| (total / sectors) < heads * 1024 && heads <= 16;
            let small = (total / 17).div_ceil(1024).max(4);
            (sectors, heads) = if fits(17, small) {
                (17, small)
            } else if fits(31, 16) {
                (31, 16)
            } else {
                (63, 16)
            };
            tracks = total / sectors;
        }
        Self { cylinders: (tracks / heads) as u16, heads: heads as u8, sectors: sectors as u8 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_depends_on_the_path_only() {
        // MD5("disk.img") begins with these six bytes.
        let digest: [u8; 16] = Md5::digest(b"disk.img").into();
        let serial = default_serial("disk.img");
        assert_eq!(serial.len(), 20);
        assert!(serial.starts_with(&format!("BHYVE-{:02X}", digest[0])));
        assert_eq!(serial, default_serial("disk.img"));
        assert_ne!(serial, default_serial("./disk.img"));
    }

    #[test]
    fn geometry_covers_the_disk_as_far_as_it_can() {
        for mib in [0, 1, 10, 100, 504, 1024, 8192, 131_072, 1 << 22] {
            let size = mib << 20;
            let g = Geometry::of(size);
            let covered = u64::from(g.cylinders) * u64::from(g.heads) * u64::from(g.sectors);
            assert!(covered <= size / 512);
            let cylinder = u64::from(g.heads) * u64::from(g.sectors);
            assert!(covered + cylinder > (size / 512).min(MAX_SECTORS), "{mib} MiB: {g:?}");
        }
        // The VHD specification's largest geometry.
        assert_eq!(Geometry::of(1 << 50), Geometry { cylinders: 65535, heads: 16, sectors: 255 });
    }
}
