//! What firmware does on real machines and bhyve does itself: giving addresses to BARs and
//! interrupt inputs to pins.

use std::collections::BTreeMap;
use std::ops::Range;

use config::PciAddress;

use super::config_space::{Bar, BarKind};

/// Ports for BARs, as bhyve.
const IO_WINDOW: Range<u64> = 0x2000..0x1_0000;
/// Memory below 4 GiB for BARs, as bhyve.
pub(super) const MEMORY_WINDOW: Range<u64> = 0xc000_0000..0xe000_0000;
/// Length and alignment of the window above RAM, as bhyve.
const HIGH_WINDOW: u64 = 32 << 30;
/// Larger 64-bit BARs go above RAM. Some drivers can't use small ones there, so bhyve keeps them
/// below 4 GiB.
const HIGH_THRESHOLD: u64 = 128 << 20;
/// The next bus starts on a boundary of this, as bhyve (`BUSIO_ROUNDUP`, `BUSMEM_ROUNDUP`).
const IO_ROUND: u64 = 32;
const MEMORY_ROUND: u64 = 1 << 20;

/// First I/O APIC input for INTx, and their number.
const FIRST_GSI: u32 = 16;
const INTX_GSIS: u32 = 16;
/// Number of PIRQ registers of the ISA bridge.
pub(super) const PIRQS: u8 = 8;

/// IRQs that PIRQA–PIRQH go to where no firmware chooses: the choice of bhyve's UEFI firmware for
/// the first four, repeated.
pub(super) const PIRQ_IRQS: [u8; PIRQS as usize] = [11, 11, 10, 10, 11, 11, 10, 10];

/// No room for a BAR.
#[derive(Debug, thiserror::Error)]
#[error("no room for BAR {bar} ({size:#x} bytes) of the device in slot {address}")]
pub struct AssignError {
    address: PciAddress,
    bar: u8,
    size: u64,
}

/// Where one interrupt pin of a slot goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Bus.
    pub bus: u8,
    /// Slot.
    pub slot: u8,
    /// 0–3 for INTA–INTD.
    pub pin: u8,
    /// I/O APIC input.
    pub gsi: u32,
    /// PIRQ register of the LPC bridge, 0–7 for A–H.
    pub pirq: u8,
}

/// Windows of one root bus, as (first, last), for ACPI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootWindows {
    /// Bus number.
    pub bus: u8,
    /// Port windows.
    pub io: Vec<(u16, u16)>,
    /// Memory windows.
    pub memory: Vec<(u64, u64)>,
}

/// Hands out pins and inputs.
pub(super) struct Router {
    /// The fixed mapping that firmware knows, instead of the least used input.
    fixed: bool,
    routes: BTreeMap<(u8, u8, u8), Route>,
    /// Functions on each pin of a slot.
    users: BTreeMap<(u8, u8, u8), u32>,
}

impl Router {
    pub fn new(fixed: bool) -> Self {
        Self { fixed, routes: BTreeMap::new(), users: BTreeMap::new() }
    }

    /// The route for another function in this slot.
    pub fn add(&mut self, bus: u8, slot: u8) -> Route {
        let users = |pin: u8| self.users.get(&(bus, slot, pin)).copied().unwrap_or(0);
        let pin = (0..4).min_by_key(|pin| users(*pin)).unwrap_or(0);
        *self.users.entry((bus, slot, pin)).or_default() += 1;
        let gsi = if self.fixed {
            FIRST_GSI + u32::from(Self::fixed_pirq(slot, pin))
        } else {
            let taken = |gsi: u32| self.routes.values().filter(|r| r.gsi == gsi).count();
            (FIRST_GSI..FIRST_GSI + INTX_GSIS).min_by_key(|gsi| taken(*gsi)).unwrap_or(FIRST_GSI)
        };
        let pirq = ((gsi - FIRST_GSI) % u32::from(PIRQS)) as u8;
        *self.routes.entry((bus, slot, pin)).or_insert(Route { bus, slot, pin, gsi, pirq })
    }

    /// The mapping that bhyve's firmware images have built in.
    fn fixed_pirq(slot: u8, pin: u8) -> u8 {
        (4 + slot + pin) % PIRQS
    }

    pub fn routes(&self) -> Vec<Route> {
        self.routes.values().copied().collect()
    }
}

/// Three windows and how far they are used.
struct Windows {
    io: Range<u64>,
    memory: Range<u64>,
    high: Range<u64>,
}

fn take(window: &mut Range<u64>, size: u64) -> Option<u64> {
    let base = window.start.next_multiple_of(size);
    let end = base.checked_add(size).filter(|end| *end <= window.end)?;
    window.start = end;
    Some(base)
}

impl Windows {
    fn place(&mut self, bar: &Bar) -> Option<u64> {
        match bar.kind {
            BarKind::Io => take(&mut self.io, bar.size),
            BarKind::Memory64 { .. } if bar.size > HIGH_THRESHOLD => take(&mut self.high, bar.size),
            _ => take(&mut self.memory, bar.size),
        }
    }

    fn round(&mut self) {
        self.io.start = self.io.start.next_multiple_of(IO_ROUND).min(self.io.end);
        self.memory.start = self.memory.start.next_multiple_of(MEMORY_ROUND).min(self.memory.end);
        self.high.start = self.high.start.next_multiple_of(MEMORY_ROUND).min(self.high.end);
    }
}

/// A plan for all BARs.
pub(super) struct Plan {
    pub bars: Vec<(PciAddress, u8, u64)>,
    pub windows: Vec<RootWindows>,
}

/// Plans for `bars`, in the order of their addresses; RAM ends at `memory_end`.
pub(super) fn plan(bars: &[(PciAddress, Bar)], buses: &[u8], memory_end: u64) -> Result<Plan, AssignError> {
    let high = memory_end.max(1 << 32).next_multiple_of(HIGH_WINDOW);
    let mut free = Windows { io: IO_WINDOW, memory: MEMORY_WINDOW, high: high..high + HIGH_WINDOW };
    let mut plan = Plan { bars: Vec::new(), windows: Vec::new() };
    for &bus in buses {
        let start = (free.io.start, free.memory.start, free.high.start);
        let mut here: Vec<_> = bars.iter().filter(|(address, _)| address.bus == bus).collect();
        // Large ones first leaves no gaps.
        here.sort_by_key(|(_, bar)| std::cmp::Reverse(bar.size));
        for (address, bar) in here {
            let base =
                free.place(bar).ok_or(AssignError { address: *address, bar: bar.index, size: bar.size })?;
            plan.bars.push((*address, bar.index, base));
        }
        free.round();
        let used = [(start.0, free.io.start)];
        let ports = used.iter().filter(|(a, b)| a < b).map(|(a, b)| (*a as u16, (*b - 1) as u16));
        let memory = [(start.1, free.memory.start), (start.2, free.high.start)];
        plan.windows.push(RootWindows {
            bus,
            io: ports.collect(),
            memory: memory.into_iter().filter(|(a, b)| a < b).map(|(a, b)| (a, b - 1)).collect(),
        });
    }
    if let Some(first) = plan.windows.first_mut() {
        give_rest(first, &free, buses.len() == 1);
    }
    Ok(plan)
}

/// Bus 0 also has the ISA ports around the configuration ports, and what nobody has taken.
fn give_rest(first: &mut RootWindows, free: &Windows, alone: bool) {
    let below = [(0, 0xcf7), (0xd00, (IO_WINDOW.start - 1) as u16)];
    let rest = [&free.memory, &free.high].into_iter().filter(|r| !r.is_empty()).map(|r| (r.start, r.end - 1));
    if alone {
        // One window each, however much of it is used.
        first.io = vec![(0, 0xcf7), (0xd00, 0xffff)];
        let high_end = free.high.end;
        first.memory =
            vec![(MEMORY_WINDOW.start, MEMORY_WINDOW.end - 1), (high_end - HIGH_WINDOW, high_end - 1)];
        return;
    }
    first.io.splice(0..0, below);
    if !free.io.is_empty() {
        first.io.push((free.io.start as u16, (free.io.end - 1) as u16));
    }
    first.memory.extend(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(bus: u8, slot: u8) -> PciAddress {
        PciAddress { bus, slot, function: 0 }
    }

    fn bar(index: u8, kind: BarKind, size: u64) -> Bar {
        Bar { index, kind, size }
    }

    #[test]
    fn bars_are_placed_as_bhyve_places_them() {
        let wide = BarKind::Memory64 { prefetchable: true };
        let bars = [
            (at(0, 1), bar(0, BarKind::Io, 64)),
            (at(0, 1), bar(1, BarKind::Memory32, 0x1000)),
            (at(0, 2), bar(0, wide, 0x4000)),
            (at(0, 3), bar(0, wide, 1 << 30)),
            (at(0, 3), bar(2, BarKind::Io, 128)),
        ];
        let plan = plan(&bars, &[0], 6 << 30).unwrap();
        let find = |slot: u8, index: u8| {
            plan.bars.iter().find(|(a, i, _)| a.slot == slot && *i == index).map(|(_, _, base)| *base)
        };
        assert_eq!(find(3, 2), Some(0x2000));
        assert_eq!(find(1, 0), Some(0x2080));
        assert_eq!(find(2, 0), Some(0xc000_0000));
        assert_eq!(find(1, 1), Some(0xc000_4000));
        assert_eq!(find(3, 0), Some(32 << 30));
        let [root] = plan.windows.as_slice() else { panic!() };
        assert_eq!(root.io, [(0, 0xcf7), (0xd00, 0xffff)]);
        assert_eq!(root.memory, [(0xc000_0000, 0xdfff_ffff), (32 << 30, (64 << 30) - 1)]);
    }

    #[test]
    fn windows_of_several_buses_do_not_overlap() {
        let bars = [
            (at(0, 1), bar(0, BarKind::Io, 64)),
            (at(0, 1), bar(1, BarKind::Memory32, 0x1000)),
            (at(5, 1), bar(0, BarKind::Io, 32)),
            (at(5, 1), bar(1, BarKind::Memory32, 0x1000)),
        ];
        let plan = plan(&bars, &[0, 5], 1 << 30).unwrap();
        assert_eq!(plan.windows[1].io, [(0x2040, 0x205f)]);
        assert_eq!(plan.windows[1].memory, [(0xc010_0000, 0xc01f_ffff)]);
        let zero = &plan.windows[0];
        assert_eq!(zero.io, [(0, 0xcf7), (0xd00, 0x1fff), (0x2000, 0x203f), (0x2060, 0xffff)]);
        assert_eq!(
            zero.memory,
            [(0xc000_0000, 0xc00f_ffff), (0xc020_0000, 0xdfff_ffff), (32 << 30, (64 << 30) - 1)]
        );
    }

    #[test]
    fn too_much_is_an_error() {
        let bars: Vec<_> = (0..5).map(|slot| (at(0, slot), bar(0, BarKind::Memory32, 128 << 20))).collect();
        let error = plan(&bars, &[0], 0).err().unwrap().to_string();
        assert!(error.contains("0:4:0"), "{error}");
    }

    #[test]
    fn pins_and_inputs() {
        let mut fixed = Router::new(true);
        assert_eq!(fixed.add(0, 3), Route { bus: 0, slot: 3, pin: 0, gsi: 23, pirq: 7 });
        assert_eq!(fixed.add(0, 3), Route { bus: 0, slot: 3, pin: 1, gsi: 16, pirq: 0 });
        for _ in 0..6 {
            fixed.add(0, 3);
        }
        assert_eq!(fixed.routes().len(), 4);
        let mut spread = Router::new(false);
        let inputs: Vec<u32> = (0..17).map(|slot| spread.add(0, slot).gsi).collect();
        assert_eq!(inputs, (16..32).chain([16]).collect::<Vec<_>>());
        assert!(spread.routes().iter().all(|r| u32::from(r.pirq) == (r.gsi - 16) % 8));
    }
}
