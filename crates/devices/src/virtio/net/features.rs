//! Feature bits and configuration space of virtio-net (VIRTIO 1.2, 5.1.3 and 5.1.4).

use host::net::{MacAddress, Offloads};

/// The driver may leave checksums to us.
pub(super) const CSUM: u64 = 1 << 0;
/// The driver takes packets without checksum.
pub(super) const GUEST_CSUM: u64 = 1 << 1;
/// The configuration has a largest packet size.
pub(super) const MTU: u64 = 1 << 3;
/// The configuration has an address.
pub(super) const MAC: u64 = 1 << 5;
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const GUEST_ECN: u64 = 1 << 9;
const GUEST_UFO: u64 = 1 << 10;
const HOST_TSO4: u64 = 1 << 11;
const HOST_TSO6: u64 = 1 << 12;
const HOST_ECN: u64 = 1 << 13;
const HOST_UFO: u64 = 1 << 14;
/// A received frame may take several buffers.
pub(super) const MRG_RXBUF: u64 = 1 << 15;
/// The configuration has the link's state.
pub(super) const STATUS: u64 = 1 << 16;

/// `VIRTIO_NET_S_LINK_UP` in `status` (5.1.4).
const LINK_UP: u16 = 1;

/// What a device on a back end with `backend`'s offloads offers.
pub(super) fn offered(backend: Offloads, mtu: Option<u16>) -> u64 {
    let mut features = MAC | STATUS | MRG_RXBUF;
    for (on, bits) in [
        (mtu.is_some(), MTU),
        (backend.checksum, CSUM | GUEST_CSUM),
        (backend.checksum && backend.tso4, GUEST_TSO4 | HOST_TSO4),
        (backend.checksum && backend.tso6, GUEST_TSO6 | HOST_TSO6),
        (backend.checksum && backend.ecn && (backend.tso4 || backend.tso6), GUEST_ECN | HOST_ECN),
        (backend.checksum && backend.ufo, GUEST_UFO | HOST_UFO),
    ] {
        if on {
            features |= bits;
        }
    }
    features
}

/// What the driver takes. Segmentation without checksums, which 5.1.3.1 forbids, counts as none.
pub(super) fn taken_by_guest(features: u64) -> Offloads {
    let has = |bit: u64| features & GUEST_CSUM != 0 && features & bit != 0;
    let (tso4, tso6) = (has(GUEST_TSO4), has(GUEST_TSO6));
    Offloads {
        checksum: has(GUEST_CSUM),
        tso4,
        tso6,
        ecn: has(GUEST_ECN) && (tso4 || tso6),
        ufo: has(GUEST_UFO),
    }
}

/// The configuration space: `mac`, `status`, `max_virtqueue_pairs`, `mtu`.
pub(super) fn config_space(mac: MacAddress, mtu: Option<u16>) -> [u8; 12] {
    let mut config = [0; 12];
    let bytes = mac
        .bytes()
        .into_iter()
        .chain(LINK_UP.to_le_bytes())
        .chain(1u16.to_le_bytes())
        .chain(mtu.unwrap_or(0).to_le_bytes());
    config.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_only_what_the_back_end_can() {
        let all = Offloads { checksum: true, tso4: true, tso6: true, ecn: true, ufo: true };
        assert_eq!(offered(Offloads::default(), None), MAC | STATUS | MRG_RXBUF);
        assert_eq!(offered(Offloads { checksum: false, ..all }, None), MAC | STATUS | MRG_RXBUF);
        let features = offered(all, Some(9000));
        assert_ne!(features & MTU, 0);
        assert_eq!(taken_by_guest(features), all);
        assert_eq!(taken_by_guest(features & !GUEST_CSUM), Offloads::default());
        assert!(!taken_by_guest(features & !(GUEST_TSO4 | GUEST_TSO6)).ecn);
    }

    #[test]
    fn configuration_is_where_drivers_look() {
        let mac = MacAddress::try_from([2, 3, 4, 5, 6, 7]).unwrap();
        assert_eq!(config_space(mac, Some(0x1234)), [2, 3, 4, 5, 6, 7, 1, 0, 1, 0, 0x34, 0x12]);
    }
}
